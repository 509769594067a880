/* Which instruction sets were compiled in, and which one is used. */
#include <stdatomic.h>
#include <string.h>

#include "kernels.h"

extern const pk_isa pk_avx512_vnni, pk_avx512, pk_avx2, pk_neon, pk_portable;

/* Best first. */
static const pk_isa* const compiled[] = {
#if defined(__x86_64__)
    &pk_avx512_vnni,
    &pk_avx512,
    &pk_avx2,
#elif defined(__aarch64__)
    &pk_neon,
#endif
    &pk_portable,
};
enum { NUM_COMPILED = sizeof compiled / sizeof *compiled };

static _Atomic(const pk_isa*) chosen;

const pk_isa* pk_list_isas(int index) {
  for (int i = 0; i < NUM_COMPILED; i++)
    if (compiled[i]->is_supported() && index-- == 0) return compiled[i];
  return NULL;
}

const pk_isa* pk_current_isa(void) {
  const pk_isa* isa = atomic_load_explicit(&chosen, memory_order_relaxed);
  if (!isa) atomic_store(&chosen, isa = pk_list_isas(0));
  return isa;
}

bool pk_use_isa(const char* name) {
  for (int i = 0; pk_list_isas(i); i++)
    if (!strcmp(pk_list_isas(i)->name, name)) {
      atomic_store(&chosen, pk_list_isas(i));
      return true;
    }
  return false;
}
