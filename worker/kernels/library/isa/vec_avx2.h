/* Vectors of 8 floats: AVX2, FMA, F16C. */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

enum { W = 8 };
typedef __m256 vf;
typedef __m256i vi;

#define INLINE static inline __attribute__((always_inline))

/* What vi_field multiplies a code with: its place in the word, but for the last one, which is shifted down (it would be a sign). */
INLINE float field_factor(int bits, int i) { return bits * (i + 1) == 32 ? 1.0f : (float)(1u << (bits * i)); }

INLINE vf vf_load(const float* p) { return _mm256_loadu_ps(p); }
INLINE void vf_store(float* p, vf a) { _mm256_storeu_ps(p, a); }
INLINE vf vf_set(float a) { return _mm256_set1_ps(a); }
INLINE vf vf_zero(void) { return _mm256_setzero_ps(); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
/* Where either is not a number the second is taken: put the value that must not be lost there. */
INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
INLINE vf vf_round(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/* a * 2^n for a near 1 and n in [-126, 128]: the exponent is built in two halves, so that 2^128 does not overflow on the way. */
INLINE vf vf_ldexp(vf a, vf n) {
  const __m256i exponent = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(exponent, 1), rest = _mm256_sub_epi32(exponent, half);
  const __m256i bias = _mm256_set1_epi32(127);
  a = _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
  return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23)));
}
INLINE float vf_sum(vf a) {
  __m128 r = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  r = _mm_add_ps(r, _mm_movehl_ps(r, r));
  return _mm_cvtss_f32(_mm_add_ss(r, _mm_movehdup_ps(r)));
}
INLINE float vf_largest(vf a) {
  __m128 r = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  r = _mm_max_ps(r, _mm_movehl_ps(r, r));
  return _mm_cvtss_f32(_mm_max_ss(r, _mm_movehdup_ps(r)));
}

INLINE vi first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
/* The first n lanes of memory, zeros behind: reads nothing past them. */
INLINE vf vf_load_part(const float* p, int n) { return n >= W ? vf_load(p) : _mm256_maskload_ps(p, first_lanes(n)); }
INLINE __m128i load_halves(const void* p, int n) {
  if (n >= W) return _mm_loadu_si128(p);
  uint16_t part[8] = {0};
  for (int i = 0; i < n; i++) part[i] = ((const uint16_t*)p)[i];
  return _mm_loadu_si128((const __m128i*)part);
}
INLINE vf vf_load_f16(const void* p, int n) { return _mm256_cvtph_ps(load_halves(p, n)); }
INLINE vf vf_load_bf16(const void* p, int n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_halves(p, n)), 16));
}
INLINE vf vf_load_u8(const uint8_t* p) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p))); }

INLINE vi vi_load_part(const uint32_t* p, int n) {
  return n >= W ? _mm256_loadu_si256((const __m256i*)p) : _mm256_maskload_epi32((const int*)p, first_lanes(n));
}
/* The i-th nibble of every word. */
INLINE vf vi_nibble(vi words, int i) {
  return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(words, 4 * i), _mm256_set1_epi32(15)));
}

/* The place of the i-th field of `bits` bits. */
INLINE vi vi_mask(int bits, int i) { return _mm256_set1_epi32((int)(((1u << bits) - 1) << (bits * i))); }
/* The i-th field of `bits` bits of every word, times field_factor: it is converted where it stands. */
INLINE vf vi_field(vi words, vi mask, int bits, int i) {
  return _mm256_cvtepi32_ps(bits * (i + 1) == 32 ? _mm256_srli_epi32(words, 32 - bits) : _mm256_and_si256(words, mask));
}

/* Codes [index, index + 8) of `bits` bits (2, 3, 5 or 6) of a little-endian bit stream; index is a multiple of 8. */
INLINE vf vf_load_codes(const uint8_t* stream, int index, int bits) {
  uint64_t raw = 0;
  memcpy(&raw, stream + index * bits / 8, bits);
  const uint64_t mask = (1u << bits) - 1;
  const __m256i low = _mm256_srlv_epi64(_mm256_set1_epi64x((int64_t)raw), _mm256_setr_epi64x(0, 2 * bits, 4 * bits, 6 * bits));
  const __m256i pair = _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi64x((int64_t)mask)),
                                       _mm256_and_si256(_mm256_slli_epi64(low, 32 - bits), _mm256_set1_epi64x((int64_t)(mask << 32))));
  return _mm256_cvtepi32_ps(pair);
}

/* l / lanes_per_value in lane l; lanes_per_value 4 or 8. */
INLINE vi vi_places(int lanes_per_value) {
  return _mm256_srl_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm_cvtsi32_si128(__builtin_ctz(lanes_per_value)));
}
/* Lane l takes value[first + places[l]]. */
INLINE vf vf_spread(vf values, vi places, int first) {
  return _mm256_permutevar8x32_ps(values, _mm256_add_epi32(places, _mm256_set1_epi32(first)));
}

/* The lower half of a, then that of b. */
INLINE vf vf_join(vf a, vf b) { return _mm256_permute2f128_ps(a, b, 0x20); }
/* The upper half of a in the place of the lower; what is in the upper does not matter. */
INLINE vf vf_upper(vf a) { return _mm256_permute2f128_ps(a, a, 0x11); }

INLINE void vf_transpose(vf* r) {
  __m256 t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; j++) {
      r[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
      r[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0xee);
    }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
    t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
  }
  for (int i = 0; i < 8; i++) r[i] = t[i];
}
INLINE vi vf_as_words(vf a) { return _mm256_castps_si256(a); }
INLINE vf vi_as_floats(vi a) { return _mm256_castsi256_ps(a); }

/* Four sums at once: y[j] = sum of the lanes of a[j]. */
INLINE void vf_store_sums4(float* y, const vf* a) {
  const __m256 t = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
  _mm_storeu_ps(y, _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1)));
}
/* A value that several operations take from a register: left to itself the compiler reads it from memory for each. */
INLINE vf vf_keep(vf a) {
  __asm__("" : "+x"(a));
  return a;
}
INLINE void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }
