/* Checks every instruction set that this processor has against plain float64 loops, without Python and MLX, on buffers that end at a page
 * which may not be read. Prints one line per instruction set; exits 1 at the first wrong value, by a signal at the first read too far. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels.h"

enum { MAX_INPUTS = 40 };

static uint32_t state = 1;
static uint32_t next_random(void) { return state = state * 1664525u + 1013904223u; }
static float uniform(void) { return (float)(next_random() >> 8) / (1 << 23) - 1.0f; }

/* Memory whose last byte lies before a forbidden page. */
static void* allocate_at_end(size_t bytes) {
  const size_t page = sysconf(_SC_PAGESIZE), whole = (bytes + page - 1) / page * page;
  char* start = mmap(NULL, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED || mprotect(start + whole, page, PROT_NONE)) abort();
  return start + whole - bytes;
}

static float widen(const void* values, int dtype, size_t i) {
  if (dtype == PK_F32) return ((const float*)values)[i];
  const uint16_t half = ((const uint16_t*)values)[i];
  if (dtype == PK_BF16) {
    const uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
  }
  return ldexpf((half & 0x3ff) | 0x400, (half >> 10 & 31) - 25) * (half >> 15 ? -1.0f : 1.0f);
}

/* Values of either sign between 1/8 and 2 in size. */
static void* make_values(int dtype, size_t count) {
  void* values = allocate_at_end(count * (dtype == PK_F32 ? 4 : 2));
  for (size_t i = 0; i < count; i++) {
    if (dtype == PK_F32)
      ((float*)values)[i] = uniform();
    else if (dtype == PK_F16)
      ((uint16_t*)values)[i] = (uint16_t)((next_random() >> 16 & 0x8fff) + 0x3000);
    else
      ((uint16_t*)values)[i] = (uint16_t)((next_random() >> 16 & 0x81ff) + 0x3e00);
  }
  return values;
}

static pk_matrix make_matrix(int rows, int columns, int bits, int group_size, int dtype) {
  pk_matrix w = {.dtype = dtype, .bits = bits, .group_size = group_size, .rows = rows, .columns = columns};
  if (!bits) {
    w.codes = make_values(dtype, (size_t)rows * columns);
    return w;
  }
  const size_t bytes = (size_t)rows * columns * bits / 8;
  uint8_t* codes = allocate_at_end(bytes);
  for (size_t i = 0; i < bytes; i++) codes[i] = (uint8_t)(next_random() >> 24);
  w.codes = codes;
  w.scales = make_values(dtype, (size_t)rows * columns / group_size);
  w.biases = make_values(dtype, (size_t)rows * columns / group_size);
  return w;
}

static double weight_at(const pk_matrix* w, int row, int column) {
  const size_t i = (size_t)row * w->columns + column;
  if (!w->bits) return widen(w->codes, w->dtype, i);
  const uint8_t* codes = w->codes;
  uint32_t code = 0;
  for (int b = 0; b < w->bits; b++) {
    const size_t bit = i * w->bits + b;
    code |= (uint32_t)(codes[bit / 8] >> bit % 8 & 1) << b;
  }
  const size_t group = i / w->group_size;
  return (double)widen(w->scales, w->dtype, group) * code + widen(w->biases, w->dtype, group);
}

static void check_product(const pk_matrix* w, int inputs, bool fast) {
  const float* x = make_values(PK_F32, (size_t)inputs * w->columns);
  float* y = allocate_at_end(sizeof(float) * inputs * w->rows);
  const size_t stride = w->rows;
  pk_multiply(x, inputs, w, 1, &y, &stride, fast, PK_FASTER);
  double worst = 0, largest = 0;
  for (int m = 0; m < inputs; m++)
    for (int n = 0; n < w->rows; n++) {
      double expected = 0, size = 0;
      for (int k = 0; k < w->columns; k++) {
        const double part = x[m * w->columns + k] * weight_at(w, n, k);
        expected += part;
        size += fabs(part);
      }
      worst = fmax(worst, fabs(expected - y[m * w->rows + n]) / (size + 1e-30));
      largest = fmax(largest, size);
    }
  if (worst <= (fast ? 1e-2 : 1e-5)) return;
  printf("%s: %d bits, group %d, type %d, [%d, %d], %d inputs, fast %d: off by %g of the summands' size\n", pk_current_isa()->name, w->bits,
         w->group_size, w->dtype, w->rows, w->columns, inputs, fast, worst);
  exit(1);
}

static int check_products(void) {
  static const int widths[] = {0, 2, 3, 4, 5, 6, 8}, groups[] = {32, 64, 128}, inputs[] = {1, 2, 3, 8, 13, 17, MAX_INPUTS};
  int checked = 0;
  for (size_t b = 0; b < sizeof widths / sizeof *widths; b++)
    for (size_t g = 0; g < 3; g++)
      for (int dtype = 0; dtype < 3; dtype++)
        for (size_t m = 0; m < sizeof inputs / sizeof *inputs; m++) {
          const int rows = 1 + (int)(next_random() >> 16) % 70;
          const int columns = widths[b] ? groups[g] * (1 + (int)(next_random() >> 16) % 9) : 1 + (int)(next_random() >> 16) % 300;
          const pk_matrix w = make_matrix(rows, columns, widths[b], widths[b] ? groups[g] : 0, dtype);
          for (int fast = 0; fast < 2; fast++, checked++) check_product(&w, inputs[m], fast);
        }
  return checked;
}

static void check_attention(int queries, int keys, int dim) {
  enum { HEADS = 3 };
  const size_t q_size = (size_t)HEADS * queries * dim, kv_size = (size_t)keys * dim;
  float *q = make_values(PK_F32, q_size), *k = make_values(PK_F32, kv_size), *v = make_values(PK_F32, kv_size);
  float* out = allocate_at_end(sizeof(float) * q_size);
  pk_attention_batch all = {.batch = 1, .kv_heads = 1};
  all.first = (pk_attention){.q = q, .q_head = (int64_t)queries * dim, .q_row = dim, .k = k, .k_row = dim, .v = v, .v_row = dim, .out = out,
                             .out_head = (int64_t)queries * dim, .out_row = dim, .heads = HEADS, .queries = queries, .keys = keys,
                             .head_dim = dim, .value_dim = dim, .scale = 0.125f, .is_causal = queries > 1};
  pk_attend(&all);
  for (int h = 0; h < HEADS; h++)
    for (int i = 0; i < queries; i++) {
      const float *query = q + ((size_t)h * queries + i) * dim, *found = out + ((size_t)h * queries + i) * dim;
      const int seen = queries > 1 ? keys - queries + i + 1 : keys;
      double total = 0, *sums = calloc(dim, sizeof(double));
      for (int j = 0; j < seen; j++) {
        double score = 0;
        for (int d = 0; d < dim; d++) score += query[d] * k[(size_t)j * dim + d];
        const double e = exp(score * 0.125);
        total += e;
        for (int d = 0; d < dim; d++) sums[d] += e * v[(size_t)j * dim + d];
      }
      for (int d = 0; d < dim; d++)
        if (!(fabs(sums[d] / total - found[d]) <= 1e-5)) {
          printf("%s: attention of %d queries over %d keys of %d is off\n", pk_current_isa()->name, queries, keys, dim);
          exit(1);
        }
      free(sums);
    }
}

int main(void) {
  for (int i = 0; pk_list_isas(i); i++) {
    pk_use_isa(pk_list_isas(i)->name);
    int checked = 0;
    for (int threads = 1; threads <= 2; threads++) {
      pk_set_threads(threads);
      checked += check_products();
      check_attention(1, 1, 64);
      check_attention(1, 77, 64);
      check_attention(19, 83, 128);
    }
    printf("%s: %d products\n", pk_current_isa()->name, checked);
  }
  return 0;
}
