/* AVX-512 without VNNI (Skylake-X, Cascade Lake has it). */
#include "vec_avx512.h"
enum { ROWS_TOGETHER = 4, FEW_INPUTS = 32, INPUTS_PER_TILE = 12 };
#define INT8 0
#include "values.h"
#include "products.h"
#include "few.h"
#include "rows.h"
#include "attention.h"
#include "table.h"

static bool is_supported(void) {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("f16c");
}
PK_TABLE("avx512", pk_avx512, is_supported);
