/* Vectors of 4 floats: Advanced SIMD of 64-bit Arm. */
#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

enum { W = 4 };
typedef float32x4_t vf;
typedef uint32x4_t vi;

#define INLINE static inline __attribute__((always_inline))

/* What vi_field multiplies a code with: its place in the word, but for the last one, which is shifted down (it would be a sign). */
INLINE float field_factor(int bits, int i) { return bits * (i + 1) == 32 ? 1.0f : (float)(1u << (bits * i)); }

INLINE vf vf_load(const float* p) { return vld1q_f32(p); }
INLINE void vf_store(float* p, vf a) { vst1q_f32(p, a); }
INLINE vf vf_set(float a) { return vdupq_n_f32(a); }
INLINE vf vf_zero(void) { return vdupq_n_f32(0.0f); }
INLINE vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
INLINE vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }
INLINE vf vf_sub(vf a, vf b) { return vsubq_f32(a, b); }
INLINE vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
INLINE vf vf_div(vf a, vf b) { return vdivq_f32(a, b); }
/* What is not a number stays so. */
INLINE vf vf_max(vf a, vf b) { return vmaxq_f32(a, b); }
INLINE vf vf_min(vf a, vf b) { return vminq_f32(a, b); }
INLINE vf vf_round(vf a) { return vrndnq_f32(a); }
/* a * 2^n for a near 1 and n in [-126, 128]: the exponent is built in two halves, so that 2^128 does not overflow on the way. */
INLINE vf vf_ldexp(vf a, vf n) {
  const int32x4_t exponent = vcvtnq_s32_f32(n), half = vshrq_n_s32(exponent, 1), rest = vsubq_s32(exponent, half);
  const int32x4_t bias = vdupq_n_s32(127);
  a = vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, bias), 23)));
  return vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(rest, bias), 23)));
}
INLINE float vf_sum(vf a) { return vaddvq_f32(a); }
INLINE float vf_largest(vf a) { return vmaxvq_f32(a); }

/* The first n lanes of memory, zeros behind: reads nothing past them. */
INLINE vf vf_load_part(const float* p, int n) {
  if (n >= W) return vld1q_f32(p);
  float part[W] = {0};
  for (int i = 0; i < n; i++) part[i] = p[i];
  return vld1q_f32(part);
}
INLINE uint16x4_t load_halves(const void* p, int n) {
  if (n >= W) return vld1_u16(p);
  uint16_t part[W] = {0};
  for (int i = 0; i < n; i++) part[i] = ((const uint16_t*)p)[i];
  return vld1_u16(part);
}
INLINE vf vf_load_f16(const void* p, int n) { return vcvt_f32_f16(vreinterpret_f16_u16(load_halves(p, n))); }
INLINE vf vf_load_bf16(const void* p, int n) { return vreinterpretq_f32_u32(vshll_n_u16(load_halves(p, n), 16)); }
INLINE vf vf_load_u8(const uint8_t* p) {
  uint32_t four;
  memcpy(&four, p, 4);
  return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four)))));
}

INLINE vi vi_load_part(const uint32_t* p, int n) {
  if (n >= W) return vld1q_u32(p);
  uint32_t part[W] = {0};
  for (int i = 0; i < n; i++) part[i] = p[i];
  return vld1q_u32(part);
}
/* The i-th nibble of every word. */
INLINE vf vi_nibble(vi words, int i) {
  return vcvtq_f32_u32(vandq_u32(vshlq_u32(words, vdupq_n_s32(-4 * i)), vdupq_n_u32(15)));
}

/* The place of the i-th field of `bits` bits. */
INLINE vi vi_mask(int bits, int i) { return vdupq_n_u32(((1u << bits) - 1) << (bits * i)); }
/* The i-th field of `bits` bits of every word, times field_factor: it is converted where it stands. */
INLINE vf vi_field(vi words, vi mask, int bits, int i) {
  return vcvtq_f32_u32(bits * (i + 1) == 32 ? vshlq_u32(words, vdupq_n_s32(bits - 32)) : vandq_u32(words, mask));
}

/* Codes [index, index + 4) of `bits` bits (2, 3, 5 or 6) of a little-endian bit stream; index is a multiple of 4. */
INLINE vf vf_load_codes(const uint8_t* stream, int index, int bits) {
  const int first = index * bits;
  uint32_t raw = 0;
  memcpy(&raw, stream + first / 8, (first % 8 + 4 * bits + 7) / 8);
  const int32_t shifts[4] = {-(first % 8), -(first % 8) - bits, -(first % 8) - 2 * bits, -(first % 8) - 3 * bits};
  return vcvtq_f32_u32(vandq_u32(vshlq_u32(vdupq_n_u32(raw), vld1q_s32(shifts)), vdupq_n_u32((1u << bits) - 1)));
}

/* A group has at least as many words as a vector has lanes. */
INLINE vi vi_places(int lanes_per_value) { return vdupq_n_u32(0 * lanes_per_value); }
/* Every lane takes values[first]. */
INLINE vf vf_spread(vf values, vi places, int first) {
  (void)places;
  const uint8x16_t bytes = vreinterpretq_u8_u32(vdupq_n_u32(0x03020100u + 0x04040404u * (uint32_t)first));
  return vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(values), bytes));
}

/* The lower half of a, then that of b. */
INLINE vf vf_join(vf a, vf b) { return vcombine_f32(vget_low_f32(a), vget_low_f32(b)); }
/* The upper half of a in the place of the lower; what is in the upper does not matter. */
INLINE vf vf_upper(vf a) { return vcombine_f32(vget_high_f32(a), vget_high_f32(a)); }

INLINE void vf_transpose(vf* r) {
  const float32x4_t a = vtrn1q_f32(r[0], r[1]), b = vtrn2q_f32(r[0], r[1]), c = vtrn1q_f32(r[2], r[3]), d = vtrn2q_f32(r[2], r[3]);
  r[0] = vcombine_f32(vget_low_f32(a), vget_low_f32(c));
  r[1] = vcombine_f32(vget_low_f32(b), vget_low_f32(d));
  r[2] = vcombine_f32(vget_high_f32(a), vget_high_f32(c));
  r[3] = vcombine_f32(vget_high_f32(b), vget_high_f32(d));
}
INLINE vi vf_as_words(vf a) { return vreinterpretq_u32_f32(a); }
INLINE vf vi_as_floats(vi a) { return vreinterpretq_f32_u32(a); }

/* Four sums at once: y[j] = sum of the lanes of a[j]. */
INLINE void vf_store_sums4(float* y, const vf* a) {
  vst1q_f32(y, vpaddq_f32(vpaddq_f32(a[0], a[1]), vpaddq_f32(a[2], a[3])));
}
/* A value that several operations take from a register: left to itself the compiler reads it from memory for each. */
INLINE vf vf_keep(vf a) {
  __asm__("" : "+w"(a));
  return a;
}
INLINE void prefetch(const void* p) { __builtin_prefetch(p); }
