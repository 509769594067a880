/* Reading scales, biases and unpacked weights of any pk_dtype. Included after a vec_*.h. */
#include <math.h>
#include <string.h>

#include "../kernels.h"

INLINE size_t round_up(size_t a, size_t multiple) { return (a + multiple - 1) / multiple * multiple; }
INLINE int at_most(int a, int limit) { return a < limit ? a : limit; }

/* n floats from `index` on, zeros behind. */
INLINE vf load_values(const void* p, int dtype, size_t index, int n) {
  if (dtype == PK_F32) return vf_load_part((const float*)p + index, n);
  if (dtype == PK_F16) return vf_load_f16((const uint16_t*)p + index, n);
  return vf_load_bf16((const uint16_t*)p + index, n);
}
/* One value in every lane. */
INLINE vf load_everywhere(const void* p, int dtype, size_t index) {
  return vf_spread(load_values(p, dtype, index, 1), vi_places(W), 0);
}

INLINE const uint8_t* row_codes(const pk_matrix* w, int row) {
  return (const uint8_t*)w->codes + (size_t)row * w->columns * w->bits / 8;
}
INLINE int num_groups(const pk_matrix* w) { return w->columns / w->group_size; }
