/* The kernel library: what a model's layers need on a CPU, in plain C. No Python, no MLX.
 *
 * Matrices stay as MLX packs them: a row of codes is a little-endian bit stream, every group of columns has a scale and a bias
 * (value = scale * code + bias). Inputs and results are float32. One pk_isa per instruction set holds the loops; the functions at the
 * end divide work over the pool's threads.
 */
#ifndef PK_KERNELS_H
#define PK_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum pk_dtype { PK_F32 = 0, PK_F16 = 1, PK_BF16 = 2 };

/* A weight matrix [rows, columns]: y = x . W^T. */
typedef struct {
  const void* codes;  /* bits > 0: packed codes, row by row; bits == 0: the values themselves */
  const void* scales; /* [rows, columns / group_size], type `dtype`; unused when bits == 0 */
  const void* biases; /* as scales */
  int dtype;          /* pk_dtype of scales and biases, or of the values when bits == 0 */
  int bits;           /* 2, 3, 4, 5, 6 or 8; 0 = not quantized */
  int group_size;     /* 32, 64 or 128; 0 when not quantized */
  int rows;
  int columns;
} pk_matrix;

/* Attention of the query heads that share one KV head, for the query positions [first, last). Strides count floats. */
typedef struct {
  const float* q; /* [heads, queries, head_dim] */
  int64_t q_head, q_row;
  const float* k; /* [keys, head_dim] */
  int64_t k_row;
  const float* v; /* [keys, value_dim] */
  int64_t v_row;
  float* out; /* [heads, queries, value_dim] */
  int64_t out_head, out_row;
  int heads, queries, keys, head_dim, value_dim;
  float scale;
  bool is_causal;          /* query i sees keys up to keys - queries + i */
  const void* mask;        /* NULL, or [heads, queries, keys] of bool or float32 with these strides (elements) */
  bool is_mask_additive;   /* float32 added to scores; else bool, true = seen */
  int64_t mask_head, mask_row, mask_key;
  const float* sinks;      /* NULL, or per head a score that takes part in the sum alone */
} pk_attention;

enum pk_gate { PK_SILU = 0, PK_GELU_TANH = 1, PK_GELU = 2 };

/* The loops of one instruction set. `fast` means int8 inputs. Nothing here starts threads. */
typedef struct {
  const char* name;
  bool (*is_supported)(void);
  bool has_fast; /* int8 products; without them `fast` is computed exactly */

  /* Inputs are prepared once per row and read by every row of the matrix. Floats that one prepared input takes: */
  size_t (*prepared_floats)(const pk_matrix* w, bool fast);
  void (*prepare)(const pk_matrix* w, bool fast, const float* x, float* prepared);
  /* y[m * y_stride + n] for n in [first, last), inputs m in [0, num_inputs): meant for few inputs. What one gives depends on nothing else, to
   * the last bit: not on how many inputs there are, nor on how the rows are divided. */
  void (*multiply_few)(const pk_matrix* w, bool fast, const float* prepared, size_t prepared_stride, int num_inputs, float* y,
                       size_t y_stride, int first, int last);
  /* As many inputs as multiply_few takes no longer for than multiply_many: at least 16. */
  int (*most_few)(const pk_matrix* w, bool fast);
  /* The same for many inputs: x are the inputs themselves, or prepared ones where needs_prepared says so. */
  bool (*needs_prepared)(const pk_matrix* w, bool fast);
  size_t (*panel_bytes)(const pk_matrix* w, bool fast);
  void (*multiply_many)(const pk_matrix* w, bool fast, const float* x, size_t x_stride, int num_inputs, float* y, size_t y_stride, int first,
                        int last, void* panel);
  int panel_rows; /* first and last of multiply_many are multiples of this, but for the end */

  void (*rms_norm)(const float* x, const float* weight, float eps, float* y, int length);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, float* y, int length);
  /* Rotates the first `dims` of x by angles whose cosines [dims / 2] and sines [dims / 2] are in `table`. y may be x. */
  void (*rotate)(const float* x, const float* table, int dims, int length, bool is_traditional, float* y);
  void (*gate)(const float* gate, const float* up, float* y, size_t length, int kind);
  void (*add)(const float* a, const float* b, float* y, size_t length);
  /* scratch: pk_attention_floats(keys). */
  void (*attend)(const pk_attention* task, int first, int last, float* scratch);
  int vector_floats; /* head_dim and value_dim of attend are multiples of this */
} pk_isa;

/* Those compiled in and supported by this processor, best first; NULL past the end. */
const pk_isa* pk_list_isas(int index);
/* The one in use: the best, until pk_use_isa names another. False when there is none of that name. */
const pk_isa* pk_current_isa(void);
bool pk_use_isa(const char* name);

/* Threads that compute, the caller among them. Not to be called while work runs. */
void pk_set_threads(int count);
int pk_get_threads(void);
/* Calls body(context, chunk) for every chunk in [0, chunks), in any order, on any thread; returns when all are done. */
void pk_parallel(int chunks, void (*body)(void* context, int chunk), void* context);
/* Per-thread memory, aligned to 64 bytes, valid until the slot's next use on this thread. Slots: enum pk_slot. */
enum pk_slot { PK_SLOT_PREPARED, PK_SLOT_PANEL, PK_SLOT_SCORES, PK_SLOT_A, PK_SLOT_B, PK_SLOT_C, PK_SLOT_PROJECTED, PK_SLOT_HIDDEN, PK_NUM_SLOTS };
float* pk_scratch(enum pk_slot slot, size_t floats);

/* Which loops multiply. The faster of the two for the number of inputs; or one of them whatever it is, so that what an input gives does not
 * depend on how many others it comes with: PK_FEW and PK_MANY each give the same bits every time, but not those of the other. */
enum pk_loops { PK_FASTER, PK_FEW, PK_MANY };

/* ys[i] [num_inputs, matrices[i].rows] (row stride y_strides[i]) = x [num_inputs, columns] . matrices[i]^T: all share columns, bits
 * and group_size. */
void pk_multiply(const float* x, int num_inputs, const pk_matrix* matrices, int count, float* const* ys, const size_t* y_strides,
                 bool fast, enum pk_loops loops);
/* Row i of x goes through matrix experts[i] of `stack` (rows of the stack follow each other): y [num_rows, rows]. x_rows[i] is the row
 * of x that output row i reads. */
void pk_multiply_gathered(const float* x, const int* x_rows, const pk_matrix* stack, const int* experts, int num_experts, int num_rows,
                          float* y, bool fast, enum pk_loops loops);

#define PK_MASKED (-3.402823466e38f) /* score of a key that a bool mask hides: MLX's, so that a row without any key gives the same mean */

/* A batch of attentions that share one shape: base pointers move by these strides (floats; mask: elements). */
typedef struct {
  pk_attention first;
  int batch, kv_heads;
  int64_t q_batch, k_batch, v_batch, out_batch, mask_batch;
  int64_t k_head, v_head;
} pk_attention_batch;
void pk_attend(const pk_attention_batch* batch);
size_t pk_attention_floats(int keys);

/* Element-wise work over rows, divided over threads when it is worth it. */
void pk_rms_norm(const float* x, const float* weight, float eps, float* y, int rows, int length);
void pk_gate(const float* gate, const float* up, float* y, size_t length, int kind);
void pk_add(const float* a, const float* b, float* y, size_t length);

#ifdef __cplusplus
}
#endif
#endif
