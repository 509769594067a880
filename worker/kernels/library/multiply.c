/* Products divided over threads. */
#include <string.h>

#include "kernels.h"

enum {
  MIN_SHARED_WORK = 60000, /* multiplications below which waking threads costs more than it saves */
  PREPARED_TOGETHER = 16,
  CROWDED_COLUMNS = 512, /* rows of whole multiples of 2 KiB */
  MAX_TOGETHER = 8,
};

typedef struct {
  const pk_isa* isa;
  const pk_matrix* matrices;
  int count;
  int chunk_rows;
  int chunks_before[MAX_TOGETHER + 1]; /* chunks of the matrices before each */
  const float* x;
  float* prepared;
  size_t prepared_stride;
  int num_inputs;
  float* const* ys;
  const size_t* y_strides;
  bool fast;
  enum pk_loops loops;
} product;

static void prepare_chunk(void* context, int chunk) {
  product* p = context;
  for (int m = chunk * PREPARED_TOGETHER; m < p->num_inputs && m < (chunk + 1) * PREPARED_TOGETHER; m++)
    p->isa->prepare(p->matrices, p->fast, p->x + (size_t)m * p->matrices->columns, p->prepared + m * p->prepared_stride);
}

/* A copy of the row. */
static void spread_chunk(void* context, int chunk) {
  product* p = context;
  const size_t columns = p->matrices->columns;
  for (int m = chunk * PREPARED_TOGETHER; m < p->num_inputs && m < (chunk + 1) * PREPARED_TOGETHER; m++)
    memcpy(p->prepared + m * p->prepared_stride, p->x + m * columns, columns * sizeof(float));
}

/* With room behind rows that lie a multiple of some KiB apart: those share the few places of a cache that such addresses have, and inputs that
 * are read side by side would push each other out. */
static void lay_out_inputs(product* p, size_t stride, void (*body)(void*, int)) {
  p->prepared_stride = stride % CROWDED_COLUMNS ? stride : stride + 16;
  p->prepared = pk_scratch(PK_SLOT_PREPARED, p->prepared_stride * p->num_inputs);
  pk_parallel((p->num_inputs + PREPARED_TOGETHER - 1) / PREPARED_TOGETHER, body, p);
}

static void prepare_inputs(product* p) { lay_out_inputs(p, p->isa->prepared_floats(p->matrices, p->fast), prepare_chunk); }

static void divide(product* p, int chunk_rows) {
  p->chunk_rows = chunk_rows;
  p->chunks_before[0] = 0;
  for (int i = 0; i < p->count; i++)
    p->chunks_before[i + 1] = p->chunks_before[i] + (p->matrices[i].rows + chunk_rows - 1) / chunk_rows;
}

/* The matrix of a chunk and its rows [*first, *last). */
static int find_rows(const product* p, int chunk, int* first, int* last) {
  int i = 0;
  while (chunk >= p->chunks_before[i + 1]) i++;
  *first = (chunk - p->chunks_before[i]) * p->chunk_rows;
  *last = *first + p->chunk_rows < p->matrices[i].rows ? *first + p->chunk_rows : p->matrices[i].rows;
  return i;
}

static void few_chunk(void* context, int chunk) {
  const product* p = context;
  int first, last, i = find_rows(p, chunk, &first, &last);
  p->isa->multiply_few(&p->matrices[i], p->fast, p->prepared, p->prepared_stride, p->num_inputs, p->ys[i], p->y_strides[i], first, last);
}

static void many_chunk(void* context, int chunk) {
  const product* p = context;
  int first, last, i = find_rows(p, chunk, &first, &last);
  void* panel = pk_scratch(PK_SLOT_PANEL, p->isa->panel_bytes(&p->matrices[i], p->fast) / sizeof(float) + 1);
  const float* x = p->prepared ? p->prepared : p->x;
  const size_t x_stride = p->prepared ? p->prepared_stride : (size_t)p->matrices->columns;
  p->isa->multiply_many(&p->matrices[i], p->fast, x, x_stride, p->num_inputs, p->ys[i], p->y_strides[i], first, last, panel);
}

/* Chunks small enough that a thread that comes late finds some left, big enough to be worth taking: multiples of 16 rows. */
static int rows_per_chunk(int rows) {
  const int chunks = pk_get_threads() * 4;
  int chunk_rows = ((rows + chunks - 1) / chunks + 15) / 16 * 16;
  return chunk_rows < 16 ? 16 : chunk_rows < 256 ? chunk_rows : 256;
}

static void run(product* p, void (*body)(void*, int), int64_t work) {
  const int chunks = p->chunks_before[p->count];
  if (work >= MIN_SHARED_WORK) {
    pk_parallel(chunks, body, p);
    return;
  }
  for (int chunk = 0; chunk < chunks; chunk++) body(p, chunk);
}

static bool takes_few(const product* p) {
  return p->loops == PK_FASTER ? p->num_inputs <= p->isa->most_few(p->matrices, p->fast) : p->loops == PK_FEW;
}

static void multiply_together(product* p) {
  int rows = 0;
  for (int i = 0; i < p->count; i++) rows += p->matrices[i].rows;
  const int64_t work = (int64_t)rows * p->matrices->columns * p->num_inputs;
  if (takes_few(p)) {
    prepare_inputs(p);
    divide(p, rows_per_chunk(rows));
    run(p, few_chunk, work);
    return;
  }
  if (p->isa->needs_prepared(p->matrices, p->fast))
    prepare_inputs(p);
  else if (p->matrices->columns % CROWDED_COLUMNS == 0)
    lay_out_inputs(p, p->matrices->columns, spread_chunk);
  divide(p, p->isa->panel_rows);
  run(p, many_chunk, work);
}

void pk_multiply(const float* x, int num_inputs, const pk_matrix* matrices, int count, float* const* ys, const size_t* y_strides,
                 bool fast, enum pk_loops loops) {
  if (num_inputs == 0) return;
  for (int i = 0; i < count; i += MAX_TOGETHER) {
    product p = {.isa = pk_current_isa(), .matrices = matrices + i, .count = count - i < MAX_TOGETHER ? count - i : MAX_TOGETHER,
                 .x = x, .num_inputs = num_inputs, .ys = ys + i, .y_strides = y_strides + i, .fast = fast,
                 .loops = loops};
    multiply_together(&p);
  }
}

/* -- mixtures of experts: rows of one expert are brought together, multiplied, and put back -- */

typedef struct {
  const float* x;
  const int* x_rows;
  const pk_matrix* stack;
  float* y;
  const int* order; /* output rows, those of one expert side by side */
  bool fast;
  enum pk_loops loops;
} gathering;

static pk_matrix take_expert(const pk_matrix* stack, int expert) {
  pk_matrix w = *stack;
  static const int sizes[] = {4, 2, 2};
  const size_t values = (size_t)stack->rows * stack->columns;
  w.codes = (const char*)stack->codes + expert * (stack->bits ? values * stack->bits / 8 : values * sizes[stack->dtype]);
  if (stack->bits) {
    const size_t scales = values / stack->group_size * sizes[stack->dtype];
    w.scales = (const char*)stack->scales + expert * scales;
    w.biases = (const char*)stack->biases + expert * scales;
  }
  return w;
}

static void multiply_expert(const gathering* g, int expert, int first, int last) {
  const pk_matrix w = take_expert(g->stack, expert);
  const int count = last - first;
  const size_t stride = w.rows;
  if (count == 1) {
    const int row = g->order[first];
    float* y = g->y + row * stride;
    pk_multiply(g->x + (size_t)g->x_rows[row] * w.columns, 1, &w, 1, &y, &stride, g->fast, g->loops);
    return;
  }
  float* x = pk_scratch(PK_SLOT_A, (size_t)count * w.columns);
  float* y = pk_scratch(PK_SLOT_B, (size_t)count * w.rows);
  for (int i = 0; i < count; i++)
    memcpy(x + (size_t)i * w.columns, g->x + (size_t)g->x_rows[g->order[first + i]] * w.columns, w.columns * sizeof(float));
  pk_multiply(x, count, &w, 1, &y, &stride, g->fast, g->loops);
  for (int i = 0; i < count; i++) memcpy(g->y + g->order[first + i] * stride, y + i * stride, stride * sizeof(float));
}

void pk_multiply_gathered(const float* x, const int* x_rows, const pk_matrix* stack, const int* experts, int num_experts, int num_rows,
                          float* y, bool fast, enum pk_loops loops) {
  int* starts = (int*)pk_scratch(PK_SLOT_C, num_experts + 1 + num_rows);
  int* order = starts + num_experts + 1;
  memset(starts, 0, (num_experts + 1) * sizeof(int));
  for (int i = 0; i < num_rows; i++) starts[experts[i] + 1]++;
  for (int e = 0; e < num_experts; e++) starts[e + 1] += starts[e];
  for (int i = 0; i < num_rows; i++) order[starts[experts[i]]++] = i; /* afterwards starts[e] is where e ends */
  const gathering g = {x, x_rows, stack, y, order, fast, loops};
  for (int e = 0, first = 0; e < num_experts; first = starts[e++])
    if (starts[e] > first) multiply_expert(&g, e, first, starts[e]);
}
