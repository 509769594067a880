/* Vectors of 8 floats in plain C: the compiler makes of them what the processor has. */
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { W = 8 };
typedef float vf __attribute__((vector_size(32), aligned(4)));
typedef int32_t vi __attribute__((vector_size(32), aligned(4)));

#define INLINE static inline __attribute__((always_inline))

/* What vi_field multiplies a code with: its place in the word, but for the last one, which is shifted down (it would be a sign). */
INLINE float field_factor(int bits, int i) { return bits * (i + 1) == 32 ? 1.0f : (float)(1u << (bits * i)); }
#define EACH_LANE for (int lane = 0; lane < W; lane++)

INLINE vf vf_load(const float* p) {
  vf a;
  memcpy(&a, p, sizeof a);
  return a;
}
INLINE void vf_store(float* p, vf a) { memcpy(p, &a, sizeof a); }
INLINE vf vf_set(float a) { return (vf){a, a, a, a, a, a, a, a}; }
INLINE vf vf_zero(void) { return vf_set(0.0f); }
INLINE vf vf_fma(vf a, vf b, vf c) { return a * b + c; }
INLINE vf vf_add(vf a, vf b) { return a + b; }
INLINE vf vf_sub(vf a, vf b) { return a - b; }
INLINE vf vf_mul(vf a, vf b) { return a * b; }
INLINE vf vf_div(vf a, vf b) { return a / b; }
INLINE vf vf_select(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }
/* Where either is not a number the second is taken: put the value that must not be lost there. */
INLINE vf vf_max(vf a, vf b) { return vf_select(a > b, a, b); }
INLINE vf vf_min(vf a, vf b) { return vf_select(a < b, a, b); }
/* To the nearest whole number, for |a| < 2^22. */
INLINE vf vf_round(vf a) {
  const vf shift = vf_set(12582912.0f);
  return a + shift - shift;
}
/* a * 2^n for a near 1 and n in [-126, 128]: the exponent is built in two halves, so that 2^128 does not overflow on the way. */
INLINE vf vf_ldexp(vf a, vf n) {
  const vi exponent = __builtin_convertvector(n, vi), half = exponent >> 1, rest = exponent - half;
  return a * (vf)((half + 127) << 23) * (vf)((rest + 127) << 23);
}
INLINE float vf_sum(vf a) { return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7])); }
INLINE float vf_largest(vf a) {
  float largest = a[0];
  EACH_LANE if (a[lane] > largest) largest = a[lane];
  return largest;
}

INLINE vf vf_load_part(const float* p, int n) {
  if (n >= W) return vf_load(p);
  float part[W] = {0};
  for (int i = 0; i < n; i++) part[i] = p[i];
  return vf_load(part);
}
INLINE float widen_half(uint16_t half) {
  const uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
  uint32_t bits = (rest << 13) + (112u << 23);
  if (rest >= 0x7c00) bits += 112u << 23; /* infinity, not a number */
  float value;
  if (rest < 0x0400) {
    value = (float)rest * 5.9604644775390625e-8f; /* below the smallest normal: units of 2^-24 */
    memcpy(&bits, &value, 4);
  }
  bits |= sign;
  memcpy(&value, &bits, 4);
  return value;
}
INLINE vf vf_load_f16(const void* p, int n) {
  float part[W] = {0};
  for (int i = 0; i < (n < W ? n : W); i++) part[i] = widen_half(((const uint16_t*)p)[i]);
  return vf_load(part);
}
INLINE vf vf_load_bf16(const void* p, int n) {
  uint32_t part[W] = {0};
  for (int i = 0; i < (n < W ? n : W); i++) part[i] = (uint32_t)((const uint16_t*)p)[i] << 16;
  vf a;
  memcpy(&a, part, sizeof a);
  return a;
}
INLINE vf vf_load_u8(const uint8_t* p) {
  vf a;
  EACH_LANE a[lane] = p[lane];
  return a;
}

INLINE vi vi_load_part(const uint32_t* p, int n) {
  vi a = {0};
  memcpy(&a, p, sizeof(uint32_t) * (n < W ? n : W));
  return a;
}
/* The i-th nibble of every word. */
INLINE vf vi_nibble(vi words, int i) { return __builtin_convertvector((words >> (4 * i)) & 15, vf); }

/* The place of the i-th field of `bits` bits; of the last one, after it was shifted down. */
INLINE vi vi_mask(int bits, int i) {
  const int32_t mask = (1 << bits) - 1;
  return (vi){0} + (bits * (i + 1) == 32 ? mask : mask << (bits * i));
}
/* The i-th field of `bits` bits of every word, times field_factor: it is converted where it stands. */
INLINE vf vi_field(vi words, vi mask, int bits, int i) {
  return __builtin_convertvector((bits * (i + 1) == 32 ? words >> (32 - bits) : words) & mask, vf);
}

/* Codes [index, index + 8) of `bits` bits (2, 3, 5 or 6) of a little-endian bit stream; index is a multiple of 8. */
INLINE vf vf_load_codes(const uint8_t* stream, int index, int bits) {
  uint64_t raw = 0;
  for (int i = 0; i < bits; i++) raw |= (uint64_t)stream[index * bits / 8 + i] << (8 * i);
  vf a;
  EACH_LANE a[lane] = (float)((raw >> (lane * bits)) & ((1u << bits) - 1));
  return a;
}

/* l / lanes_per_value in lane l; lanes_per_value 4 or 8. */
INLINE vi vi_places(int lanes_per_value) {
  const int other = lanes_per_value == 4;
  return (vi){0, 0, 0, 0, other, other, other, other};
}
/* Lane l takes value[first + places[l]]. */
INLINE vf vf_spread(vf values, vi places, int first) {
  const float a = values[first], b = values[first + places[W - 1]];
  return (vf){a, a, a, a, b, b, b, b};
}

/* The lower half of a, then that of b. */
INLINE vf vf_join(vf a, vf b) { return (vf){a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]}; }
/* The upper half of a in the place of the lower; what is in the upper does not matter. */
INLINE vf vf_upper(vf a) { return (vf){a[4], a[5], a[6], a[7], a[4], a[5], a[6], a[7]}; }

INLINE void vf_transpose(vf* r) {
  float t[W][W];
  for (int i = 0; i < W; i++) EACH_LANE t[lane][i] = r[i][lane];
  for (int i = 0; i < W; i++) r[i] = vf_load(t[i]);
}
INLINE vi vf_as_words(vf a) { return (vi)a; }
INLINE vf vi_as_floats(vi a) { return (vf)a; }

/* Four sums at once: y[j] = sum of the lanes of a[j]. */
INLINE void vf_store_sums4(float* y, const vf* a) {
  for (int j = 0; j < 4; j++) y[j] = vf_sum(a[j]);
}
/* Nothing: where the compiler keeps it is its own choice. */
INLINE vf vf_keep(vf a) { return a; }
INLINE void prefetch(const void* p) { __builtin_prefetch(p); }
