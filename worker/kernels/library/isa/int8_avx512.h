/* Products with int8 inputs: AVX-512 VNNI. Included after products.h.
 *
 * An input row becomes int8 codes with one scale per 32 values; codes of weights stay unsigned. The bias term uses the sums of the
 * rounded inputs: with the exact sums the error is three times as large. Prepared: scales [columns / 32], sums [groups], codes;
 * for four-bit weights every 32 codes are stored even places first, as nibbles come out of a byte.
 */

enum { INT8_BLOCK = 32, INT8_TILE = 16 };

INLINE size_t int8_scales_floats(const pk_matrix* w) { return round_up(w->columns / INT8_BLOCK, W); }
INLINE size_t int8_sums_floats(const pk_matrix* w) { return round_up(num_groups(w), W); }
INLINE const float* int8_sums(const pk_matrix* w, const float* prepared) { return prepared + int8_scales_floats(w); }
INLINE int8_t* int8_codes(const pk_matrix* w, const float* prepared) {
  return (int8_t*)(prepared + int8_scales_floats(w) + int8_sums_floats(w));
}
static size_t prepared_floats_int8(const pk_matrix* w) {
  return int8_scales_floats(w) + int8_sums_floats(w) + round_up(w->columns, 128) / sizeof(float);
}

/* One block: its codes stored, its scale, and in *sum scale * sum of the codes. */
INLINE float quantize_block(const float* x, bool is_split, int8_t* codes, float* sum) {
  const __m512 a = vf_load(x), b = vf_load(x + W);
  const __m512 sizes = _mm512_add_ps(_mm512_abs_ps(a), _mm512_abs_ps(b));
  const bool is_finite = _mm512_cmp_ps_mask(sizes, vf_set(INFINITY), _CMP_LT_OQ) == 0xffff;
  const float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
  const float scale = largest / 127.0f;
  const __m512 factor = vf_set(largest > 0.0f ? 127.0f / largest : 0.0f);
  const __m512i qa = _mm512_cvtps_epi32(_mm512_mul_ps(a, factor)), qb = _mm512_cvtps_epi32(_mm512_mul_ps(b, factor));
  *sum = scale * (float)_mm512_reduce_add_epi32(_mm512_add_epi32(qa, qb));
  __m128i low = _mm512_cvtsepi32_epi8(qa), high = _mm512_cvtsepi32_epi8(qb);
  if (is_split) {
    const __m128i even_odd = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    const __m128i one = _mm_shuffle_epi8(low, even_odd), other = _mm_shuffle_epi8(high, even_odd);
    low = _mm_unpacklo_epi64(one, other);
    high = _mm_unpackhi_epi64(one, other);
  }
  _mm_storeu_si128((__m128i*)codes, low);
  _mm_storeu_si128((__m128i*)(codes + 16), high);
  /* A row with a value that is not finite must not come out finite. */
  return is_finite ? scale : NAN;
}

static void prepare_int8(const pk_matrix* w, const float* x, float* prepared) {
  const int blocks = w->columns / INT8_BLOCK, per_group = w->group_size / INT8_BLOCK;
  float *scales = prepared, *sums = prepared + int8_scales_floats(w);
  int8_t* codes = int8_codes(w, prepared);
  memset(prepared, 0, (int8_scales_floats(w) + int8_sums_floats(w)) * sizeof(float));
  memset(codes + w->columns, 0, round_up(w->columns, 128) - w->columns);
  for (int b = 0; b < blocks; b++) {
    float sum;
    scales[b] = quantize_block(x + b * INT8_BLOCK, w->bits == 4, codes + b * INT8_BLOCK, &sum);
    sums[b / per_group] += sum;
  }
}

/* The dot products of one block of words: 128 columns of 4 bits, 64 of 8 bits. */
typedef struct {
  __m512i even, odd; /* 8 bits: `even` alone */
  vf scales;
} int8_input;

INLINE int8_input load_int8_input(const float* scales, const int8_t* codes, const int bits, int k) {
  int8_input input = {.even = _mm512_loadu_si512(codes + k)};
  if (bits == 8) {
    const __m128 two = _mm_castsi128_ps(_mm_loadl_epi64((const __m128i*)(scales + k / INT8_BLOCK)));
    input.scales = vf_spread(_mm512_castps128_ps512(two), vi_places(8), 0);
    return input;
  }
  const __m512i behind = _mm512_loadu_si512(codes + k + 64);
  input.odd = _mm512_permutex2var_epi64(input.even, _mm512_setr_epi64(2, 3, 6, 7, 10, 11, 14, 15), behind);
  input.even = _mm512_permutex2var_epi64(input.even, _mm512_setr_epi64(0, 1, 4, 5, 8, 9, 12, 13), behind);
  input.scales = vf_spread(_mm512_castps128_ps512(_mm_loadu_ps(scales + k / INT8_BLOCK)), vi_places(4), 0);
  return input;
}

INLINE __m512i dot_int8(__m512i code, const int8_input* input, const int bits) {
  if (bits == 8) return _mm512_dpbusd_epi32(_mm512_setzero_si512(), code, input->even);
  const __m512i nibble = _mm512_set1_epi8(15);
  const __m512i dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_and_si512(code, nibble), input->even);
  return _mm512_dpbusd_epi32(dot, _mm512_and_si512(_mm512_srli_epi16(code, 4), nibble), input->odd);
}

/* As dot_planes. */
INLINE void dot_rows_int8(const few_inputs* t, const int bits, const int inputs, int row, row_sums* total) {
  const int per_word = planes_of(bits), step = block_columns(bits), columns = t->w->columns, shift = t->group_shift;
  const vi places = vi_places(lanes_per_scale(1 << shift, bits));
  const uint32_t* codes = (const uint32_t*)row_codes(t->w, row);
  const size_t next_row = (size_t)(nth_row(t, row, 1) - row) * (columns / per_word);
  const int8_t* input_codes = int8_codes(t->w, t->x);
  for (int first = 0; first < t->groups; first += W) {
    vf scales[2];
    begin_groups(t, 2, inputs, row, first, scales, total);
    const int end = at_most(first + W, t->groups) << shift;
    for (int k = first << shift; k < end; k += step) {
      const int words = at_most((columns - k) / per_word, W), group = (k >> shift) - first;
      const vi code[2] = {vi_load_part(codes + k / per_word, words), vi_load_part(codes + next_row + k / per_word, words)};
      const vf scale[2] = {vf_spread(scales[0], places, group), vf_spread(scales[1], places, group)};
      prefetch_codes(codes, k, per_word);
      for (int m = 0; m < inputs; m++) {
        const int8_input input = load_int8_input(t->x + m * t->stride, input_codes + m * t->stride * sizeof(float), bits, k);
        for (int r = 0; r < 2; r++)
          total[m][r] = vf_fma(_mm512_cvtepi32_ps(dot_int8(code[r], &input, bits)), vf_mul(input.scales, scale[r]), total[m][r]);
      }
    }
  }
}

/* -- many inputs: a panel of W rows, words transposed so that a vector holds the same columns of all rows -- */

static size_t panel_bytes_int8(const pk_matrix* w) {
  return (size_t)W * w->columns * w->bits / 8 + sizeof(float) * 2 * W * round_up(num_groups(w), W) + 64;
}

static void transpose_words(const pk_matrix* w, const int* rows, uint32_t* panel) {
  const int words = w->columns * w->bits / 32;
  for (int j = 0; j < words; j += W) {
    vf lane[W];
    for (int r = 0; r < W; r++) lane[r] = vi_as_floats(vi_load_part((const uint32_t*)row_codes(w, rows[r]) + j, at_most(words - j, W)));
    vf_transpose(lane);
    for (int i = 0; i < at_most(words - j, W); i++) _mm512_storeu_si512(panel + (size_t)(j + i) * W, vf_as_words(lane[i]));
  }
}

/* Codes of 32 columns as 8 vectors of 4 columns a lane: for 4 bits alternately the even and the odd places of 8 columns. */
INLINE void load_code_block(const uint32_t* panel, const int bits, int block, __m512i* codes) {
  const __m512i nibble = _mm512_set1_epi8(15);
  for (int j = 0; j < bits; j++) {
    const __m512i word = _mm512_loadu_si512(panel + (size_t)(block * bits + j) * W);
    if (bits == 4) {
      codes[2 * j] = _mm512_and_si512(word, nibble);
      codes[2 * j + 1] = _mm512_and_si512(_mm512_srli_epi16(word, 4), nibble);
    } else
      codes[j] = word;
  }
}

INLINE __m512i dot_block(const __m512i* codes, const int bits, const int32_t* input) {
  __m512i even = _mm512_setzero_si512(), odd = even;
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    const int one = bits == 4 ? j : 2 * j, other = bits == 4 ? 4 + j : 2 * j + 1;
    even = _mm512_dpbusd_epi32(even, codes[2 * j], _mm512_set1_epi32(input[one]));
    odd = _mm512_dpbusd_epi32(odd, codes[2 * j + 1], _mm512_set1_epi32(input[other]));
  }
  return _mm512_add_epi32(even, odd);
}

INLINE void multiply_tile_int8(const pk_matrix* w, const int bits, const int inputs, const float* x, size_t x_stride,
                               const uint32_t* panel, const float* scales, const float* biases, float* y, size_t y_stride, int n) {
  const int blocks = w->columns / INT8_BLOCK, per_group = w->group_size / INT8_BLOCK;
  vf total[INT8_TILE];
  for (int m = 0; m < inputs; m++) total[m] = vf_zero();
  for (int b = 0; b < blocks; b++) {
    __m512i codes[8];
    load_code_block(panel, bits, b, codes);
    const int group = b / per_group;
    const vf scale = vf_load(scales + (size_t)group * W), bias = vf_load(biases + (size_t)group * W);
#pragma GCC unroll 16
    for (int m = 0; m < inputs; m++) {
      const float* input = x + m * x_stride;
      const __m512i dot = dot_block(codes, bits, (const int32_t*)(int8_codes(w, input) + b * INT8_BLOCK));
      total[m] = vf_fma(_mm512_cvtepi32_ps(dot), vf_mul(scale, vf_set(input[b])), total[m]);
      if (b % per_group == 0) total[m] = vf_fma(bias, vf_set(int8_sums(w, input)[group]), total[m]);
    }
  }
  for (int m = 0; m < inputs; m++) _mm512_mask_storeu_ps(y + m * y_stride, first_lanes(n), total[m]);
}

INLINE void multiply_panel_int8(const pk_matrix* w, const int bits, const float* x, size_t x_stride, int num_inputs, const uint32_t* panel,
                                const float* scales, const float* biases, float* y, size_t y_stride, int n) {
  int m = 0;
#define TILE(N) \
  for (; m + N <= num_inputs; m += N) \
    multiply_tile_int8(w, bits, N, x + m * x_stride, x_stride, panel, scales, biases, y + m * y_stride, y_stride, n)
  TILE(INT8_TILE);
  TILE(4);
  TILE(1);
#undef TILE
}

static void multiply_many_int8(const pk_matrix* w, const float* x, size_t x_stride, int num_inputs, float* y, size_t y_stride, int first,
                               int last, void* memory) {
  const int groups = num_groups(w);
  float *scales = memory, *biases = scales + round_up(groups, W) * W;
  uint32_t* panel = (uint32_t*)(biases + round_up(groups, W) * W);
  for (int row = first; row < last; row += W) {
    int rows[W];
    for (int r = 0; r < W; r++) rows[r] = at_most(row + r, last - 1);
    transpose_scales(w, w->scales, rows, 0, groups, scales);
    transpose_scales(w, w->biases, rows, 0, groups, biases);
    transpose_words(w, rows, panel);
    const int n = at_most(last - row, W);
    if (w->bits == 4)
      multiply_panel_int8(w, 4, x, x_stride, num_inputs, panel, scales, biases, y + row, y_stride, n);
    else
      multiply_panel_int8(w, 8, x, x_stride, num_inputs, panel, scales, biases, y + row, y_stride, n);
  }
}
