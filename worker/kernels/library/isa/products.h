/* Products with float32 arithmetic. Included after values.h.
 *
 * Few inputs: every weight is unpacked in a register and multiplied with each of up to 4 or 8 inputs. Rows of 4 and 8 bits are read
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
  MOST_INPUTS = 8,       /* of one pass over the weights */
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

/* Plane i of a block holds every count-th column of it from the i-th on, divided by what the i-th field is multiplied with. Half a block at
 * the end stands in both halves of its vectors: see dot_halves. */
INLINE void permute_to_planes(const float* x, int columns, const int bits, float* planes) {
  const int count = planes_of(bits), step = block_columns(bits);
  for (int k = 0; k < columns; k += step, planes += step) {
    const int words = at_most((columns - k) / count, W);
#pragma GCC unroll 2
    for (int i = 0; i < count; i += W) {
      vf lane[W];
      for (int r = 0; r < W; r++) lane[r] = r < words ? vf_load_part(x + k + r * count + i, at_most(count - i, W)) : vf_zero();
      vf_transpose(lane);
      for (int j = 0; j < at_most(count - i, W); j++) {
        const vf plane = vf_mul(lane[j], vf_set(1.0f / field_factor(bits, i + j)));
        vf_store(planes + (i + j) * W, words <= W / 2 ? vf_join(plane, plane) : plane);
      }
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

/* y[m * y_stride + n] for rows n before `last`. What follows from the matrix is worked out once: divisions took a tenth of the time. */
typedef struct {
  const pk_matrix* w;
  const float* x;    /* prepared */
  const float* sums; /* of the first input's groups */
  size_t stride;     /* from an input to the next, floats */
  float* y;
  size_t y_stride;
  int last;
  int groups, group_shift; /* of a row; log2 of the group's size */
} few_inputs;

/* A row's products with an input, over the lanes. */
typedef vf row_sums[SUMS_TOGETHER];

/* Past the last row the last again: loops compute a fixed number of rows. */
INLINE int nth_row(const few_inputs* t, int row, int r) { return at_most(row + r, t->last - 1); }

/* Scales of W groups of `count` rows from group `first` on; what their biases add goes to the totals. */
INLINE void begin_groups_of(const few_inputs* t, const int dtype, const int count, const int inputs, int row, int first, vf* scales,
                            row_sums* total) {
  const int present = at_most(t->groups - first, W);
  for (int r = 0; r < count; r++) {
    const size_t group = (size_t)nth_row(t, row, r) * t->groups + first;
    scales[r] = load_values(t->w->scales, dtype, group, present);
    const vf biases = load_values(t->w->biases, dtype, group, present);
    for (int m = 0; m < inputs; m++) total[m][r] = vf_fma(biases, vf_load(t->sums + m * t->stride + first), total[m][r]);
  }
}
INLINE void begin_groups(const few_inputs* t, const int count, const int inputs, int row, int first, vf* scales, row_sums* total) {
  switch (t->w->dtype) {
    case PK_F32: begin_groups_of(t, PK_F32, count, inputs, row, first, scales, total); break;
    case PK_F16: begin_groups_of(t, PK_F16, count, inputs, row, first, scales, total); break;
    default: begin_groups_of(t, PK_BF16, count, inputs, row, first, scales, total);
  }
}

/* Asks, at column k of two neighbouring rows, for what comes next in memory: see dot_planes. */
INLINE void prefetch_codes(const uint32_t* codes, int k, int per_word) {
  for (int r = 0; r < 2; r++) prefetch((const char*)(codes + (size_t)2 * k / per_word + r * W) + PREFETCH_BYTES);
}

/* sum[m][r] = vector r of words . the planes of input m. */
INLINE void dot_fields(const vi* code, const vi* masks, const int count, const int bits, const int inputs, const float* x, size_t stride, vf (*sum)[2]) {
  for (int r = 0; r < count; r++)
    for (int m = 0; m < inputs; m++) sum[m][r] = vf_zero();
#pragma GCC unroll 8
  for (int i = 0; i < planes_of(bits); i++) {
    vf field[2];
    for (int r = 0; r < count; r++) field[r] = vi_field(code[r], masks[i], bits, i);
    for (int m = 0; m < inputs; m++) {
      const vf plane = vf_keep(vf_load(x + m * stride + i * W));
      for (int r = 0; r < count; r++) sum[m][r] = vf_fma(plane, field[r], sum[m][r]);
    }
  }
}

/* The end of two rows that fills at most half a vector each: both as one. Without it 576 columns of 4 bits take as long as 640. */
INLINE void dot_halves(const vi* code, const vi* masks, const vf* scale, const int bits, const int inputs, const float* x, size_t stride, row_sums* total) {
  const vi both = vf_as_words(vf_join(vi_as_floats(code[0]), vi_as_floats(code[1])));
  vf sum[MOST_INPUTS][2];
  dot_fields(&both, masks, 1, bits, inputs, x, stride, sum);
  const vf factor = vf_join(scale[0], scale[1]);
  for (int m = 0; m < inputs; m++) {
    const vf scaled = vf_mul(sum[m][0], factor);
    total[m][0] = vf_add(total[m][0], vf_join(scaled, vf_zero()));
    total[m][1] = vf_add(total[m][1], vf_join(vf_upper(scaled), vf_zero()));
  }
}

/* Two neighbouring rows of 4 or 8 bits. Scales are loaded for W groups at once and spread over the lanes of each block. Two rows at a time
 * halve the loads of the inputs; memory is asked for in the order in which it lies, so that the processor reads ahead (two or four rows, each
 * asked for on its own, came at 10 GB/s, so at 20). */
INLINE void dot_planes(const few_inputs* t, const int bits, const int inputs, int row, row_sums* total) {
  const int planes = planes_of(bits), step = block_columns(bits), columns = t->w->columns, shift = t->group_shift;
  const vi places = vi_places(lanes_per_scale(1 << shift, bits));
  vi masks[8];
  for (int i = 0; i < planes; i++) masks[i] = vi_mask(bits, i);
  const uint32_t* codes = (const uint32_t*)row_codes(t->w, row);
  const size_t next_row = (size_t)(nth_row(t, row, 1) - row) * (columns / planes);
  for (int first = 0; first < t->groups; first += W) {
    vf scales[2];
    begin_groups(t, 2, inputs, row, first, scales, total);
    const int end = at_most(first + W, t->groups) << shift;
    int k = first << shift;
    for (; k < at_most(end, columns - step / 2); k += step) {
      const int words = at_most((columns - k) / planes, W);
      const vi code[2] = {vi_load_part(codes + k / planes, words), vi_load_part(codes + next_row + k / planes, words)};
      vf sum[MOST_INPUTS][2];
      prefetch_codes(codes, k, planes);
      dot_fields(code, masks, 2, bits, inputs, t->x + k, t->stride, sum);
      for (int r = 0; r < 2; r++) {
        const vf scale = vf_spread(scales[r], places, (k >> shift) - first);
        for (int m = 0; m < inputs; m++) total[m][r] = vf_fma(sum[m][r], scale, total[m][r]);
      }
    }
    if (k < end) {
      const int words = (columns - k) / planes, group = (k >> shift) - first;
      const vi code[2] = {vi_load_part(codes + k / planes, words), vi_load_part(codes + next_row + k / planes, words)};
      const vf scale[2] = {vf_spread(scales[0], places, group), vf_spread(scales[1], places, group)};
      dot_halves(code, masks, scale, bits, inputs, t->x + k, t->stride, total);
    }
  }
}

INLINE vf load_weights(const uint8_t* group_codes, int index, int bits) {
  return bits == 8 ? vf_load_u8(group_codes + index) : vf_load_codes(group_codes, index, bits);
}

/* `count` rows of other widths. */
INLINE void dot_packed(const few_inputs* t, const int bits, const int count, const int inputs, int row, row_sums* total) {
  const int group_size = t->w->group_size;
  const uint8_t* codes[SUMS_TOGETHER];
  for (int r = 0; r < count; r++) codes[r] = row_codes(t->w, nth_row(t, row, r));
  for (int first = 0; first < t->groups; first += W) {
    vf scales[SUMS_TOGETHER];
    begin_groups(t, count, inputs, row, first, scales, total);
    for (int g = first; g < at_most(first + W, t->groups); g++) {
      vf sum[MOST_INPUTS][SUMS_TOGETHER];
      for (int r = 0; r < count; r++) {
        prefetch(codes[r] + PREFETCH_BYTES);
        for (int m = 0; m < inputs; m++) sum[m][r] = vf_zero();
      }
      const float* x = t->x + g * group_size;
      for (int i = 0; i < group_size; i += W)
        for (int r = 0; r < count; r++) {
          const vf weight = load_weights(codes[r], i, bits);
          for (int m = 0; m < inputs; m++) sum[m][r] = vf_fma(vf_load(x + m * t->stride + i), weight, sum[m][r]);
        }
      for (int r = 0; r < count; r++) {
        codes[r] += group_size * bits / 8;
        const vf scale = vf_spread(scales[r], vi_places(W), g - first);
        for (int m = 0; m < inputs; m++) total[m][r] = vf_fma(sum[m][r], scale, total[m][r]);
      }
    }
  }
}

/* Adds columns [k, k + n) of `count` rows that are not packed. */
INLINE void add_columns(const few_inputs* t, const int dtype, const int count, const int inputs, const size_t* rows, int k, int n,
                        row_sums* total) {
  vf weight[SUMS_TOGETHER];
  for (int r = 0; r < count; r++) weight[r] = load_values(t->w->codes, dtype, rows[r] + k, n);
  for (int m = 0; m < inputs; m++) {
    const vf input = vf_keep(vf_load(t->x + m * t->stride + k));
    for (int r = 0; r < count; r++) total[m][r] = vf_fma(weight[r], input, total[m][r]);
  }
}
INLINE void dot_dense(const few_inputs* t, const int dtype, const int count, const int inputs, int row, row_sums* total) {
  const int columns = t->w->columns, whole = columns / W * W;
  size_t rows[SUMS_TOGETHER];
  for (int r = 0; r < count; r++) rows[r] = (size_t)nth_row(t, row, r) * columns;
  for (int k = 0; k < whole; k += W) add_columns(t, dtype, count, inputs, rows, k, W, total);
  if (whole < columns) add_columns(t, dtype, count, inputs, rows, whole, columns - whole, total);
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
