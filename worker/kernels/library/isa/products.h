/* Products with float32 arithmetic. Included after values.h.
 *
 * Few inputs: every weight is unpacked in a register and multiplied with each of up to INPUTS_TOGETHER inputs. Rows of 4 and 8 bits are read
 * as words whose i-th fields form a vector, converted to float where they stand in the word, that is, times a power of two. The input is
 * brought to the same order once, divided by that power of two ("planes"); both are exact. Per weight that is one and, one conversion, and
 * one multiplication per input. What an input gives is summed in one order, however many inputs and rows are computed with it: an answer
 * among others is the answer alone, to the last bit.
 * Many inputs: a panel of 2 * W rows is unpacked into memory, transposed, and read by a register-blocked kernel.
 */

enum {
  PANEL_ROWS = 2 * W,
  PANEL_COLUMNS = 256,   /* 32 KiB of float32 at W = 16: half an L1 cache or less */
  SUMS_TOGETHER = 4,     /* rows whose lanes are summed at once */
  PREFETCH_BYTES = 4096, /* how far ahead codes are asked for, in the order in which they lie: of 2, 4 and 8 KiB the best from memory */
};

INLINE bool has_planes(const pk_matrix* w) { return w->bits == 4 || w->bits == 8; }
INLINE int planes_of(int bits) { return 32 / bits; }
INLINE int block_columns(int bits) { return planes_of(bits) * W; } /* columns that one vector of words holds */
INLINE size_t input_floats(const pk_matrix* w) { return round_up(w->columns, has_planes(w) ? block_columns(w->bits) : W); }
INLINE int lanes_per_scale(int group_size, int bits) { return at_most(group_size / planes_of(bits), W); }

static size_t prepared_floats_exact(const pk_matrix* w) {
  return input_floats(w) + (w->bits ? round_up(num_groups(w), W) : 0);
}

/* Plane i of a block holds every count-th column of it from the i-th on, divided by what the i-th field is multiplied with. */
INLINE void permute_to_planes(const float* x, int columns, const int bits, float* planes) {
  const int count = planes_of(bits), step = block_columns(bits);
  for (int k = 0; k < columns; k += step, planes += step) {
    const int words = at_most((columns - k) / count, W);
#pragma GCC unroll 2
    for (int i = 0; i < count; i += W) {
      vf lane[W];
      for (int r = 0; r < W; r++) lane[r] = r < words ? vf_load_part(x + k + r * count + i, at_most(count - i, W)) : vf_zero();
      vf_transpose(lane);
      for (int j = 0; j < at_most(count - i, W); j++)
        vf_store(planes + (i + j) * W, vf_mul(lane[j], vf_set(1.0f / field_factor(bits, i + j))));
    }
  }
}

static void prepare_exact(const pk_matrix* w, const float* x, float* prepared) {
  if (w->bits == 4)
    permute_to_planes(x, w->columns, 4, prepared);
  else if (w->bits == 8)
    permute_to_planes(x, w->columns, 8, prepared);
  else {
    memcpy(prepared, x, w->columns * sizeof(float));
    memset(prepared + w->columns, 0, (input_floats(w) - w->columns) * sizeof(float));
  }
  if (!w->bits) return;
  float* sums = prepared + input_floats(w);
  const int groups = num_groups(w);
  memset(sums, 0, round_up(groups, W) * sizeof(float));
  for (int g = 0; g < groups; g++) {
    vf sum = vf_zero();
    for (int i = 0; i < w->group_size; i += W) sum = vf_add(sum, vf_load(x + g * w->group_size + i));
    sums[g] = vf_sum(sum);
  }
}

/* y[m * y_stride + n] of row n and input m. */
typedef struct {
  const pk_matrix* w;
  const float* x; /* prepared */
  size_t x_stride;
  float* y;
  size_t y_stride;
} few_inputs;

/* What is known of a matrix when its loop is compiled. */
typedef struct {
  int bits;
  int dtype;      /* 0 bits alone */
  int group_size; /* 4 and 8 bits alone */
  bool is_int8;   /* inputs are int8 codes */
} packing;

typedef vf row_sums[SUMS_TOGETHER]; /* over the lanes; one array per input */

INLINE void store_sums(float* y, const vf* total, int count) {
  if (count == SUMS_TOGETHER)
    vf_store_sums4(y, total);
  else
    for (int r = 0; r < count; r++) y[r] = vf_sum(total[r]);
}

/* Scales of W groups of `count` rows from group `first` on; what their biases add goes to the totals. `sums`: those of the first input. */
INLINE void begin_groups(const pk_matrix* w, const int group_size, const int count, const int inputs, int row, int first, const float* sums,
                         size_t stride, vf* scales, row_sums* total) {
  const int groups = w->columns / group_size, present = at_most(groups - first, W);
  for (int r = 0; r < count; r++) {
    const size_t group = (size_t)(row + r) * groups + first;
    scales[r] = load_values(w->scales, w->dtype, group, present);
    const vf biases = load_values(w->biases, w->dtype, group, present);
    for (int m = 0; m < inputs; m++) total[m][r] = vf_fma(biases, vf_load(sums + m * stride + first), total[m][r]);
  }
}

/* Asks, at column k of `count` neighbouring rows, for what comes next in memory: see dot_planes. */
INLINE void prefetch_codes(const uint32_t* codes, int count, int k, int per_word) {
  for (int r = 0; r < count; r++) prefetch((const char*)(codes + (size_t)count * k / per_word + r * W) + PREFETCH_BYTES);
}

/* `count` neighbouring rows of 4 or 8 bits. Scales are loaded for W groups at once and spread over the lanes of each block. Two rows at a
 * time halve the loads of the inputs; memory is asked for in the order in which it lies, so that the processor reads ahead (two or four rows,
 * each asked for on its own, came at 10 GB/s, so at 20). */
INLINE void dot_planes(const few_inputs* t, const packing p, const int count, const int inputs, int row, row_sums* total) {
  const int planes = planes_of(p.bits), step = block_columns(p.bits), lanes = lanes_per_scale(p.group_size, p.bits);
  const int columns = t->w->columns, groups = columns / p.group_size;
  const uint32_t* codes = (const uint32_t*)row_codes(t->w, row);
  const float *x = t->x, *sums = x + input_floats(t->w);
  const size_t stride = t->x_stride;
  for (int first = 0; first < groups; first += W) {
    vf scales[2];
    begin_groups(t->w, p.group_size, count, inputs, row, first, sums, stride, scales, total);
    const int end = at_most(first + W, groups) * p.group_size;
    for (int k = first * p.group_size; k < end; k += step) {
      const int words = at_most((columns - k) / planes, W);
      vi code[2];
      vf block[INPUTS_TOGETHER][2];
      prefetch_codes(codes, count, k, planes);
      for (int r = 0; r < count; r++) {
        code[r] = vi_load_part(codes + ((size_t)r * columns + k) / planes, words);
        for (int m = 0; m < inputs; m++) block[m][r] = vf_zero();
      }
#pragma GCC unroll 8
      for (int i = 0; i < planes; i++) {
        vf field[2];
        for (int r = 0; r < count; r++) field[r] = vi_field(code[r], p.bits, i);
        for (int m = 0; m < inputs; m++) {
          const vf plane = vf_keep(vf_load(x + m * stride + k + i * W));
          for (int r = 0; r < count; r++) block[m][r] = vf_fma(plane, field[r], block[m][r]);
        }
      }
      for (int r = 0; r < count; r++) {
        const vf scale = vf_spread(scales[r], lanes, k / p.group_size - first);
        for (int m = 0; m < inputs; m++) total[m][r] = vf_fma(block[m][r], scale, total[m][r]);
      }
    }
  }
}

/* Sum over groups of bias * sum of the input. */
INLINE vf start_from_biases(const pk_matrix* w, int row, const float* sums) {
  const int groups = num_groups(w);
  vf sum = vf_zero();
  for (int g = 0; g < groups; g += W)
    sum = vf_fma(load_values(w->biases, w->dtype, (size_t)row * groups + g, at_most(groups - g, W)), vf_load(sums + g), sum);
  return sum;
}

INLINE vf load_weights(const uint8_t* group_codes, int index, int bits) {
  return bits == 8 ? vf_load_u8(group_codes + index) : vf_load_codes(group_codes, index, bits);
}

/* `count` rows of other widths. */
INLINE void dot_packed(const few_inputs* t, const packing p, const int count, const int inputs, int row, row_sums* total) {
  const pk_matrix* w = t->w;
  const int groups = num_groups(w), group_size = w->group_size;
  for (int r = 0; r < count; r++)
    for (int m = 0; m < inputs; m++) total[m][r] = start_from_biases(w, row + r, t->x + m * t->x_stride + input_floats(w));
  for (int g = 0; g < groups; g++) {
    const size_t offset = (size_t)g * group_size * p.bits / 8;
    vf block[INPUTS_TOGETHER][SUMS_TOGETHER];
    for (int r = 0; r < count; r++) {
      for (int m = 0; m < inputs; m++) block[m][r] = vf_zero();
      prefetch(row_codes(w, row + r) + offset + PREFETCH_BYTES);
    }
    for (int i = 0; i < group_size; i += W)
      for (int r = 0; r < count; r++) {
        const vf weight = load_weights(row_codes(w, row + r) + offset, i, p.bits);
        for (int m = 0; m < inputs; m++)
          block[m][r] = vf_fma(vf_load(t->x + m * t->x_stride + g * group_size + i), weight, block[m][r]);
      }
    for (int r = 0; r < count; r++) {
      const vf scale = load_everywhere(w->scales, w->dtype, (size_t)(row + r) * groups + g);
      for (int m = 0; m < inputs; m++) total[m][r] = vf_fma(block[m][r], scale, total[m][r]);
    }
  }
}

/* `count` rows that are not packed. */
INLINE void dot_dense(const few_inputs* t, const packing p, const int count, const int inputs, int row, row_sums* total) {
  const int columns = t->w->columns;
  for (int k = 0; k < columns; k += W)
    for (int r = 0; r < count; r++) {
      const vf weight = load_values(t->w->codes, p.dtype, (size_t)(row + r) * columns + k, at_most(columns - k, W));
      for (int m = 0; m < inputs; m++) total[m][r] = vf_fma(weight, vf_load(t->x + m * t->x_stride + k), total[m][r]);
    }
}

/* -- many inputs -- */

/* Scales (or biases) of W rows by group: out[group * W + lane], for `groups` groups from `group` on. */
static void transpose_scales(const pk_matrix* w, const void* values, const int* rows, int group, int groups, float* out) {
  const int all = num_groups(w);
  for (int g = 0; g < groups; g += W) {
    vf lane[W];
    for (int r = 0; r < W; r++) lane[r] = load_values(values, w->dtype, (size_t)rows[r] * all + group + g, at_most(groups - g, W));
    vf_transpose(lane);
    for (int i = 0; i < at_most(groups - g, W); i++) vf_store(out + (size_t)(g + i) * W, lane[i]);
  }
}

enum { NIBBLES = 8 };

/* W four-bit rows, columns [k, k + columns), to panel[column][PANEL_ROWS]. */
static void unpack_4bit(const pk_matrix* w, const int* rows, int k, int columns, const float* scales, const float* biases, float* panel) {
  for (int c = 0; c < columns; c += NIBBLES * W) {
    const int words = at_most((columns - c) / NIBBLES, W);
    vf lane[W];
    for (int r = 0; r < W; r++)
      lane[r] = vi_as_floats(vi_load_part((const uint32_t*)row_codes(w, rows[r]) + (k + c) / NIBBLES, words));
    vf_transpose(lane);
    for (int j = 0; j < words; j++) {
      const int column = c + j * NIBBLES, group = column / w->group_size;
      const vf scale = vf_load(scales + (size_t)group * W), bias = vf_load(biases + (size_t)group * W);
      const vi word = vf_as_words(lane[j]);
#pragma GCC unroll 8
      for (int i = 0; i < NIBBLES; i++) vf_store(panel + (size_t)(column + i) * PANEL_ROWS, vf_fma(vi_nibble(word, i), scale, bias));
    }
  }
}

static void unpack_packed(const pk_matrix* w, const int* rows, int k, int columns, const float* scales, const float* biases, float* panel) {
  for (int c = 0; c < columns; c += W) {
    vf lane[W];
    const int column = k + c, in_group = column % w->group_size;
    const size_t offset = (size_t)(column - in_group) * w->bits / 8;
    for (int r = 0; r < W; r++) lane[r] = load_weights(row_codes(w, rows[r]) + offset, in_group, w->bits);
    vf_transpose(lane);
    const size_t group = c / w->group_size;
    const vf scale = vf_load(scales + group * W), bias = vf_load(biases + group * W);
    for (int i = 0; i < W; i++) vf_store(panel + (size_t)(c + i) * PANEL_ROWS, vf_fma(lane[i], scale, bias));
  }
}

static void unpack_dense(const pk_matrix* w, const int* rows, int k, int columns, float* panel) {
  for (int c = 0; c < columns; c += W) {
    const int left = at_most(columns - c, W);
    vf lane[W];
    for (int r = 0; r < W; r++) lane[r] = load_values(w->codes, w->dtype, (size_t)rows[r] * w->columns + k + c, left);
    vf_transpose(lane);
    for (int i = 0; i < left; i++) vf_store(panel + (size_t)(c + i) * PANEL_ROWS, lane[i]);
  }
}

/* Rows [row, row + W) (the last one again past `last`) of the matrix, columns [k, k + columns). PANEL_COLUMNS is a multiple of every
 * group size, so a block begins with a group. */
static void unpack_rows(const pk_matrix* w, int row, int last, int k, int columns, float* scales, float* panel) {
  int rows[W];
  for (int r = 0; r < W; r++) rows[r] = at_most(row + r, last - 1);
  if (!w->bits) {
    unpack_dense(w, rows, k, columns, panel);
    return;
  }
  const int groups = columns / w->group_size;
  float* biases = scales + (size_t)groups * W;
  transpose_scales(w, w->scales, rows, k / w->group_size, groups, scales);
  transpose_scales(w, w->biases, rows, k / w->group_size, groups, biases);
  if (w->bits == 4)
    unpack_4bit(w, rows, k, columns, scales, biases, panel);
  else
    unpack_packed(w, rows, k, columns, scales, biases, panel);
}

/* y[inputs][n] (+)= x[inputs][columns] . panel[columns][PANEL_ROWS]; keeps 2 * inputs vectors in registers. */
INLINE void multiply_tile(const int inputs, const float* x, size_t x_stride, const float* panel, int columns, float* y, size_t y_stride,
                          int n, bool is_first) {
  vf total[INPUTS_PER_TILE][2];
  for (int m = 0; m < inputs; m++) total[m][0] = total[m][1] = vf_zero();
  for (int k = 0; k < columns; k++) {
    const vf left = vf_load(panel + (size_t)k * PANEL_ROWS), right = vf_load(panel + (size_t)k * PANEL_ROWS + W);
#pragma GCC unroll 12
    for (int m = 0; m < inputs; m++) {
      const vf input = vf_set(x[m * x_stride + k]);
      total[m][0] = vf_fma(input, left, total[m][0]);
      total[m][1] = vf_fma(input, right, total[m][1]);
    }
  }
  for (int m = 0; m < inputs; m++) {
    float* out = y + m * y_stride;
    if (n == PANEL_ROWS) {
      vf_store(out, is_first ? total[m][0] : vf_add(total[m][0], vf_load(out)));
      vf_store(out + W, is_first ? total[m][1] : vf_add(total[m][1], vf_load(out + W)));
      continue;
    }
    float lanes[PANEL_ROWS];
    vf_store(lanes, total[m][0]);
    vf_store(lanes + W, total[m][1]);
    for (int i = 0; i < n; i++) out[i] = is_first ? lanes[i] : out[i] + lanes[i];
  }
}

static void multiply_panel(const float* x, size_t x_stride, int num_inputs, const float* panel, int columns, float* y, size_t y_stride,
                           int n, bool is_first) {
  int m = 0;
#define TILE(N) \
  for (; m + N <= num_inputs; m += N) \
    multiply_tile(N, x + m * x_stride, x_stride, panel, columns, y + m * y_stride, y_stride, n, is_first)
  TILE(INPUTS_PER_TILE);
  TILE(4);
  TILE(2);
  TILE(1);
#undef TILE
}

static size_t panel_bytes_exact(const pk_matrix* w) {
  const size_t groups = w->bits ? PANEL_COLUMNS / w->group_size : 0;
  return sizeof(float) * (PANEL_ROWS * PANEL_COLUMNS + 2 * groups * W);
}

/* Asks for what unpack_rows will read of PANEL_ROWS packed rows. They lie too far apart, and are wanted too seldom, for the processor to see
 * it coming. */
static void prefetch_rows(const pk_matrix* w, int row, int last, int k) {
  if (!w->bits) return;
  const size_t offset = (size_t)k * w->bits / 8, bytes = (size_t)PANEL_COLUMNS * w->bits / 8;
  const size_t value_bytes = w->dtype == PK_F32 ? 4 : 2;
  for (int r = row; r < at_most(row + PANEL_ROWS, last); r++) {
    for (size_t line = 0; line < bytes; line += 64) prefetch((const char*)row_codes(w, r) + offset + line);
    const size_t scale = ((size_t)r * num_groups(w) + k / w->group_size) * value_bytes;
    prefetch((const char*)w->scales + scale);
    prefetch((const char*)w->biases + scale);
  }
}

static void multiply_many_exact(const pk_matrix* w, const float* x, size_t x_stride, int num_inputs, float* y, size_t y_stride, int first,
                                int last, float* panel) {
  float* scales = panel + PANEL_ROWS * PANEL_COLUMNS;
  for (int row = first; row < last; row += PANEL_ROWS)
    for (int k = 0; k < w->columns; k += PANEL_COLUMNS) {
      const int columns = at_most(w->columns - k, PANEL_COLUMNS);
      unpack_rows(w, row, last, k, columns, scales, panel);
      unpack_rows(w, at_most(row + W, last - 1), last, k, columns, scales, panel + W);
      const bool is_last = k + columns == w->columns;
      prefetch_rows(w, is_last ? row + PANEL_ROWS : row, last, is_last ? 0 : k + columns);
      multiply_panel(x + k, x_stride, num_inputs, panel, columns, y + row, y_stride, at_most(last - row, PANEL_ROWS), k == 0);
    }
}
