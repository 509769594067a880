/* Products with float32 arithmetic. Included after values.h.
 *
 * Few inputs: every weight is unpacked in a register and multiplied with each input. Rows of 4 and 8 bits are read as words whose i-th
 * fields form a vector, converted to float where they stand in the word, that is, times a power of two. The input is brought to the same
 * order once, divided by that power of two ("planes"); both are exact. Per weight that is one and, one conversion, one multiplication.
 * Many inputs: a panel of 2 * W rows is unpacked into memory, transposed, and read by a register-blocked kernel.
 */

enum {
  PANEL_ROWS = 2 * W,
  PANEL_COLUMNS = 256,   /* 32 KiB of float32 at W = 16: half an L1 cache or less */
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

static void permute_to_planes(const float* x, int columns, int bits, float* planes) {
  const int count = planes_of(bits);
  for (int k = 0; k < columns; k += block_columns(bits), planes += block_columns(bits))
    for (int i = 0; i < count; i++) {
      const float factor = 1.0f / field_factor(bits, i);
      for (int lane = 0; lane < W; lane++) {
        const int column = k + lane * count + i;
        planes[i * W + lane] = column < columns ? x[column] * factor : 0.0f;
      }
    }
}

static void prepare_exact(const pk_matrix* w, const float* x, float* prepared) {
  if (has_planes(w))
    permute_to_planes(x, w->columns, w->bits, prepared);
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

/* Sum over groups of bias * sum of the inputs: what every product starts from, over the lanes. */
INLINE vf start_from_biases(const pk_matrix* w, int dtype, int row, const float* sums) {
  const int groups = num_groups(w);
  vf sum = vf_zero();
  for (int g = 0; g < groups; g += W)
    sum = vf_fma(load_values(w->biases, dtype, (size_t)row * groups + g, at_most(groups - g, W)), vf_load(sums + g), sum);
  return sum;
}

INLINE void store_sums(float* y, const vf* total, int count) {
  if (count == 4)
    vf_store_sums4(y, total);
  else
    for (int r = 0; r < count; r++) y[r] = vf_sum(total[r]);
}

/* Scales of W groups of `count` rows from group `first` on; what their biases add goes to the totals. */
INLINE void begin_groups(const pk_matrix* w, int dtype, int group_size, int count, int row, int first, const float* sums, vf* scales,
                         vf* total) {
  const int groups = w->columns / group_size, present = at_most(groups - first, W);
  for (int r = 0; r < count; r++) {
    const size_t group = (size_t)(row + r) * groups + first;
    scales[r] = load_values(w->scales, dtype, group, present);
    total[r] = vf_fma(load_values(w->biases, dtype, group, present), vf_load(sums + first), total[r]);
  }
}

/* Asks, at column k of `count` neighbouring rows, for what comes next in memory: see dot_planes. */
INLINE void prefetch_codes(const uint32_t* codes, int count, int k, int per_word) {
  for (int r = 0; r < count; r++) prefetch((const char*)(codes + (size_t)count * k / per_word + r * W) + PREFETCH_BYTES);
}

/* One input, `count` neighbouring rows of 4 or 8 bits; sums are over the lanes. Scales are loaded for W groups at once and spread over the
 * lanes of each block. Two rows at a time halve the loads of the input; memory is asked for in the order in which it lies, so that the
 * processor reads ahead (two or four rows, each asked for on its own, came at 10 GB/s, so at 20). */
INLINE void dot_planes(const pk_matrix* w, const int bits, const int dtype, const int group_size, const int count, const float* x, int row,
                       vf* total) {
  const int planes = planes_of(bits), step = block_columns(bits), lanes = lanes_per_scale(group_size, bits);
  const int columns = w->columns, groups = columns / group_size;
  const uint32_t* codes = (const uint32_t*)row_codes(w, row);
  const float* sums = x + input_floats(w);
  for (int r = 0; r < count; r++) total[r] = vf_zero();
  for (int first = 0; first < groups; first += W) {
    vf scales[2];
    begin_groups(w, dtype, group_size, count, row, first, sums, scales, total);
    const int end = at_most(first + W, groups) * group_size;
    for (int k = first * group_size; k < end; k += step) {
      const int words = at_most((columns - k) / planes, W);
      vi code[2];
      vf block[2];
      prefetch_codes(codes, count, k, planes);
      for (int r = 0; r < count; r++) {
        const uint32_t* p = codes + ((size_t)r * columns + k) / planes;
        code[r] = vi_load_part(p, words);
        block[r] = vf_mul(vf_load(x + k), vi_field(code[r], bits, 0));
      }
#pragma GCC unroll 7
      for (int i = 1; i < planes; i++) {
        const vf plane = vf_load(x + k + i * W);
        for (int r = 0; r < count; r++) block[r] = vf_fma(plane, vi_field(code[r], bits, i), block[r]);
      }
      for (int r = 0; r < count; r++) total[r] = vf_fma(block[r], vf_spread(scales[r], lanes, k / group_size - first), total[r]);
    }
  }
}

INLINE vf load_weights(const uint8_t* group_codes, int index, int bits) {
  return bits == 8 ? vf_load_u8(group_codes + index) : vf_load_codes(group_codes, index, bits);
}

/* One input, `count` rows of other widths. */
INLINE void multiply_one_packed(const pk_matrix* w, const int bits, const int dtype, const int count, const float* x, float* y,
                                int row) {
  const int groups = num_groups(w), group_size = w->group_size;
  const float* sums = x + input_floats(w);
  vf total[4];
  for (int r = 0; r < count; r++) total[r] = start_from_biases(w, dtype, row + r, sums);
  for (int g = 0; g < groups; g++) {
    const size_t offset = (size_t)g * group_size * bits / 8;
    vf block[4];
    for (int r = 0; r < count; r++) {
      block[r] = vf_zero();
      prefetch(row_codes(w, row + r) + offset + PREFETCH_BYTES);
    }
    for (int i = 0; i < group_size; i += W) {
      vf input = vf_load(x + g * group_size + i);
      for (int r = 0; r < count; r++) block[r] = vf_fma(input, load_weights(row_codes(w, row + r) + offset, i, bits), block[r]);
    }
    for (int r = 0; r < count; r++)
      total[r] = vf_fma(block[r], load_everywhere(w->scales, dtype, (size_t)(row + r) * groups + g), total[r]);
  }
  store_sums(y, total, count);
}

/* `inputs` inputs, one or two rows of 4 or 8 bits: unpacked to values, so that each costs one multiplication more. */
INLINE void multiply_several_planes(const pk_matrix* w, const int bits, const int count, const int inputs, const float* x, size_t x_stride,
                                    float* y, size_t y_stride, int row) {
  const int planes = planes_of(bits), step = block_columns(bits), lanes = lanes_per_scale(w->group_size, bits);
  const int columns = w->columns, groups = num_groups(w);
  const uint32_t* codes = (const uint32_t*)row_codes(w, row);
  vf total[2][8];
  for (int r = 0; r < count; r++)
    for (int m = 0; m < inputs; m++) total[r][m] = vf_zero();
  for (int k = 0; k < columns; k += step) {
    const int group = k / w->group_size, present = at_most(groups - group, W / lanes);
    vi code[2];
    vf scale[2], bias[2];
    prefetch_codes(codes, count, k, planes);
    for (int r = 0; r < count; r++) {
      code[r] = vi_load_part(codes + ((size_t)r * columns + k) / planes, at_most((columns - k) / planes, W));
      scale[r] = vf_spread(load_values(w->scales, w->dtype, (size_t)(row + r) * groups + group, present), lanes, 0);
      bias[r] = vf_spread(load_values(w->biases, w->dtype, (size_t)(row + r) * groups + group, present), lanes, 0);
    }
#pragma GCC unroll 8
    for (int i = 0; i < planes; i++)
      for (int r = 0; r < count; r++) {
        const vf weight = vf_fma(vi_field(code[r], bits, i), scale[r], vf_mul(bias[r], vf_set(field_factor(bits, i))));
        for (int m = 0; m < inputs; m++) total[r][m] = vf_fma(weight, vf_load(x + m * x_stride + k + i * W), total[r][m]);
      }
  }
  for (int r = 0; r < count; r++)
    for (int m = 0; m < inputs; m++) y[m * y_stride + r] = vf_sum(total[r][m]);
}

/* The same for other widths. */
INLINE void multiply_several_packed(const pk_matrix* w, const int bits, const int inputs, const float* x, size_t x_stride, float* y,
                                    size_t y_stride, int row) {
  const int groups = num_groups(w);
  vf total[8];
  for (int m = 0; m < inputs; m++) total[m] = vf_zero();
  for (int g = 0; g < groups; g++) {
    const uint8_t* codes = row_codes(w, row) + (size_t)g * w->group_size * bits / 8;
    vf scale = load_everywhere(w->scales, w->dtype, (size_t)row * groups + g);
    vf bias = load_everywhere(w->biases, w->dtype, (size_t)row * groups + g);
    for (int i = 0; i < w->group_size; i += W) {
      vf weight = vf_fma(load_weights(codes, i, bits), scale, bias);
      for (int m = 0; m < inputs; m++)
        total[m] = vf_fma(weight, vf_load(x + m * x_stride + g * w->group_size + i), total[m]);
    }
  }
  for (int m = 0; m < inputs; m++) y[m * y_stride] = vf_sum(total[m]);
}

/* One or two rows that are not packed, 1 to 8 inputs. */
INLINE void multiply_dense(const pk_matrix* w, const int dtype, const int count, const int inputs, const float* x, size_t x_stride,
                           float* y, size_t y_stride, int row) {
  vf total[4][8];
  for (int r = 0; r < count; r++)
    for (int m = 0; m < inputs; m++) total[r][m] = vf_zero();
  const int columns = w->columns, whole = columns / W * W;
  for (int k = 0; k < whole; k += W)
    for (int r = 0; r < count; r++) {
      vf weight = load_values(w->codes, dtype, (size_t)(row + r) * columns + k, W);
      for (int m = 0; m < inputs; m++) total[r][m] = vf_fma(weight, vf_load(x + m * x_stride + k), total[r][m]);
    }
  if (whole < columns)
    for (int r = 0; r < count; r++) {
      vf weight = load_values(w->codes, dtype, (size_t)(row + r) * columns + whole, columns - whole);
      for (int m = 0; m < inputs; m++) total[r][m] = vf_fma(weight, vf_load(x + m * x_stride + whole), total[r][m]);
    }
  for (int r = 0; r < count; r++)
    for (int m = 0; m < inputs; m++) y[m * y_stride + r] = vf_sum(total[r][m]);
}

/* -- choosing among the variants: constants for the compiler -- */

#define BY_DTYPE(dtype, CALL) \
  switch (dtype) {            \
    case PK_F32: CALL(PK_F32); break; \
    case PK_F16: CALL(PK_F16); break; \
    default: CALL(PK_BF16);   \
  }

INLINE void one_planes_rows(const pk_matrix* w, const int bits, const int dtype, const int group_size, const float* x, float* y, int first,
                            int last) {
  int row = first;
  while (row < last) {
    const int count = at_most(last - row, 4);
    vf total[4];
    int r = 0;
    for (; r + 2 <= count; r += 2) dot_planes(w, bits, dtype, group_size, 2, x, row + r, total + r);
    for (; r < count; r++) dot_planes(w, bits, dtype, group_size, 1, x, row + r, total + r);
    store_sums(y + row, total, count);
    row += count;
  }
}
INLINE void one_planes_groups(const pk_matrix* w, const int bits, const int dtype, const float* x, float* y, int first, int last) {
  if (w->group_size == 32)
    one_planes_rows(w, bits, dtype, 32, x, y, first, last);
  else if (w->group_size == 64)
    one_planes_rows(w, bits, dtype, 64, x, y, first, last);
  else
    one_planes_rows(w, bits, dtype, 128, x, y, first, last);
}
static void one_planes(const pk_matrix* w, const float* x, float* y, int first, int last) {
#define CALL(DTYPE)                                           \
  if (w->bits == 4) one_planes_groups(w, 4, DTYPE, x, y, first, last); \
  else one_planes_groups(w, 8, DTYPE, x, y, first, last)
  BY_DTYPE(w->dtype, CALL)
#undef CALL
}

INLINE void one_packed_rows(const pk_matrix* w, const int bits, const int dtype, const float* x, float* y, int first, int last) {
  int row = first;
  for (; row + 4 <= last; row += 4) multiply_one_packed(w, bits, dtype, 4, x, y + row, row);
  for (; row < last; row++) multiply_one_packed(w, bits, dtype, 1, x, y + row, row);
}
static void one_packed(const pk_matrix* w, const float* x, float* y, int first, int last) {
#define CALL(DTYPE)                                                            \
  switch (w->bits) {                                                           \
    case 2: one_packed_rows(w, 2, DTYPE, x, y, first, last); break;            \
    case 3: one_packed_rows(w, 3, DTYPE, x, y, first, last); break;            \
    case 5: one_packed_rows(w, 5, DTYPE, x, y, first, last); break;            \
    default: one_packed_rows(w, 6, DTYPE, x, y, first, last);                  \
  }
  BY_DTYPE(w->dtype, CALL)
#undef CALL
}

INLINE void several_rows(const pk_matrix* w, const int inputs, const float* x, size_t x_stride, float* y, size_t y_stride, int first,
                         int last) {
  int row = first;
#define CALL(BITS)                                                                                                           \
  for (; row + 2 <= last; row += 2) multiply_several_planes(w, BITS, 2, inputs, x, x_stride, y + row, y_stride, row);        \
  for (; row < last; row++) multiply_several_planes(w, BITS, 1, inputs, x, x_stride, y + row, y_stride, row)
  if (w->bits == 4) {
    CALL(4);
  } else if (w->bits == 8) {
    CALL(8);
  } else
    for (; row < last; row++) multiply_several_packed(w, w->bits, inputs, x, x_stride, y + row, y_stride, row);
#undef CALL
}

INLINE void dense_rows(const pk_matrix* w, const int inputs, const float* x, size_t x_stride, float* y, size_t y_stride, int first,
                       int last) {
  enum { TOGETHER = 4 };
  const int together = inputs > 2 ? 2 : TOGETHER;
  int row = first;
#define CALL(DTYPE)                                                                                                          \
  for (; row + together <= last; row += together) multiply_dense(w, DTYPE, together, inputs, x, x_stride, y + row, y_stride, row); \
  for (; row < last; row++) multiply_dense(w, DTYPE, 1, inputs, x, x_stride, y + row, y_stride, row)
  BY_DTYPE(w->dtype, CALL)
#undef CALL
}

static void multiply_few_exact(const pk_matrix* w, const float* x, size_t x_stride, int num_inputs, float* y, size_t y_stride, int first,
                               int last) {
  for (int m = 0; m < num_inputs;) {
    const float* input = x + m * x_stride;
    float* output = y + m * y_stride;
    const int left = num_inputs - m;
#define SEVERAL(N)                                                                              \
  do {                                                                                          \
    if (w->bits) several_rows(w, N, input, x_stride, output, y_stride, first, last);            \
    else dense_rows(w, N, input, x_stride, output, y_stride, first, last);                      \
    m += N;                                                                                     \
  } while (0)
    if (left >= 8) SEVERAL(8);
    else if (left >= 4) SEVERAL(4);
    else if (left >= 2) SEVERAL(2);
    else {
      if (has_planes(w)) one_planes(w, input, output, first, last);
      else if (w->bits) one_packed(w, input, output, first, last);
      else dense_rows(w, 1, input, x_stride, output, y_stride, first, last);
      m += 1;
    }
#undef SEVERAL
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
