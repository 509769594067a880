/* Vectors of 16 floats: AVX-512 F, BW, VL, DQ. */
#include <immintrin.h>
#include <stdint.h>

enum { W = 16 };
typedef __m512 vf;
typedef __m512i vi;

#define INLINE static inline __attribute__((always_inline))

/* What vi_field multiplies a code with: its place in the word, but for the last one, which is shifted down (it would be a sign). */
INLINE float field_factor(int bits, int i) { return bits * (i + 1) == 32 ? 1.0f : (float)(1u << (bits * i)); }

INLINE vf vf_load(const float* p) { return _mm512_loadu_ps(p); }
INLINE void vf_store(float* p, vf a) { _mm512_storeu_ps(p, a); }
INLINE vf vf_set(float a) { return _mm512_set1_ps(a); }
INLINE vf vf_zero(void) { return _mm512_setzero_ps(); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
/* Where either is not a number the second is taken: put the value that must not be lost there. */
INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
INLINE vf vf_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vf vf_ldexp(vf a, vf n) { return _mm512_scalef_ps(a, n); }
INLINE float vf_sum(vf a) { return _mm512_reduce_add_ps(a); }
INLINE float vf_largest(vf a) { return _mm512_reduce_max_ps(a); }

INLINE __mmask16 first_lanes(int n) { return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1); }
/* The first n lanes of memory, zeros behind: reads nothing past them. */
INLINE vf vf_load_part(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
INLINE vf vf_load_f16(const void* p, int n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p)); }
INLINE vf vf_load_bf16(const void* p, int n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(n), p)), 16));
}
INLINE vf vf_load_u8(const uint8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))); }

INLINE vi vi_load_part(const uint32_t* p, int n) { return n >= 16 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi32(first_lanes(n), p); }
/* The i-th nibble of every word. A permutation looks at 4 bits of its index: no mask, no conversion. */
INLINE vf vi_nibble(vi words, int i) {
  const __m512 values = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm512_permutexvar_ps(_mm512_srli_epi32(words, 4 * i), values);
}

/* The place of the i-th field of `bits` bits. Opaque: the compiler would make it anew in a general register for every use. */
INLINE vi vi_mask(int bits, int i) {
  vi mask = _mm512_set1_epi32((int)(((1u << bits) - 1) << (bits * i)));
  __asm__("" : "+v"(mask));
  return mask;
}
/* The i-th field of `bits` bits of every word, times field_factor: it is converted where it stands. */
INLINE vf vi_field(vi words, vi mask, int bits, int i) {
  return _mm512_cvtepi32_ps(bits * (i + 1) == 32 ? _mm512_srli_epi32(words, 32 - bits) : _mm512_and_si512(words, mask));
}

/* Codes [index, index + 16) of `bits` bits (2, 3, 5 or 6) of a little-endian bit stream; index is a multiple of 16. */
INLINE vf vf_load_codes(const uint8_t* stream, int index, int bits) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i bit = _mm512_mullo_epi32(lane, _mm512_set1_epi32(bits));
  const __m512i byte = _mm512_srli_epi32(bit, 3);
  /* Each lane takes the two bytes that hold its code: byte, byte + 1. */
  const __m512i pick = _mm512_or_si512(_mm512_or_si512(byte, _mm512_slli_epi32(_mm512_add_epi32(byte, _mm512_set1_epi32(1)), 8)),
                                       _mm512_set1_epi32((int)0x80800000u));
  const __m128i raw = _mm_maskz_loadu_epi8((__mmask16)((1u << (2 * bits)) - 1), stream + index * bits / 8);
  const __m512i two = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(raw), pick);
  const __m512i code = _mm512_srlv_epi32(two, _mm512_and_si512(bit, _mm512_set1_epi32(7)));
  return _mm512_cvtepi32_ps(_mm512_and_si512(code, _mm512_set1_epi32((1 << bits) - 1)));
}

/* l / lanes_per_value in lane l; lanes_per_value 4, 8 or 16. */
INLINE vi vi_places(int lanes_per_value) {
  const vi lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm512_srl_epi32(lane, _mm_cvtsi32_si128(__builtin_ctz(lanes_per_value)));
}
/* Lane l takes value[first + places[l]]. */
INLINE vf vf_spread(vf values, vi places, int first) {
  return _mm512_permutexvar_ps(_mm512_add_epi32(places, _mm512_set1_epi32(first)), values);
}

/* The lower half of a, then that of b. */
INLINE vf vf_join(vf a, vf b) { return _mm512_shuffle_f32x4(a, b, 0x44); }
/* The upper half of a in the place of the lower; what is in the upper does not matter. */
INLINE vf vf_upper(vf a) { return _mm512_shuffle_f32x4(a, a, 0xee); }

INLINE void vf_transpose(vf* r) {
  __m512 t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; j++) {
      __m512d low = _mm512_castps_pd(t[i + j]), high = _mm512_castps_pd(t[i + j + 2]);
      r[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      r[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; i++) {
    r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
  }
}
INLINE vi vf_as_words(vf a) { return _mm512_castps_si512(a); }
INLINE vf vi_as_floats(vi a) { return _mm512_castsi512_ps(a); }

/* Four sums at once: y[j] = sum of the lanes of a[j]. */
INLINE void vf_store_sums4(float* y, const vf* a) {
  __m512 t0 = _mm512_add_ps(_mm512_unpacklo_ps(a[0], a[1]), _mm512_unpackhi_ps(a[0], a[1]));
  __m512 t1 = _mm512_add_ps(_mm512_unpacklo_ps(a[2], a[3]), _mm512_unpackhi_ps(a[2], a[3]));
  __m512d d0 = _mm512_castps_pd(t0), d1 = _mm512_castps_pd(t1);
  __m512 t = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(d0, d1)), _mm512_castpd_ps(_mm512_unpackhi_pd(d0, d1)));
  __m256 u = _mm256_add_ps(_mm512_castps512_ps256(t), _mm512_extractf32x8_ps(t, 1));
  _mm_storeu_ps(y, _mm_add_ps(_mm256_castps256_ps128(u), _mm256_extractf128_ps(u, 1)));
}
/* A value that several operations take from a register: left to itself the compiler reads it from memory for each. */
INLINE vf vf_keep(vf a) {
  __asm__("" : "+v"(a));
  return a;
}
INLINE void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }
