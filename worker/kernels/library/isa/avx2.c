/* AVX2, FMA and F16C (Haswell, Zen and later). */
#include "vec_avx2.h"
enum { ROWS_TOGETHER = 2, FEW_INPUTS = 16, INPUTS_PER_TILE = 6 };
#define INT8 0
#include "values.h"
#include "products.h"
#include "few.h"
#include "rows.h"
#include "attention.h"
#include "table.h"

static bool is_supported(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); }
PK_TABLE("avx2", pk_avx2, is_supported);
