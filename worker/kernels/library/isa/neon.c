/* 64-bit Arm. */
#include "vec_neon.h"
enum { ROWS_TOGETHER = 4, FEW_INPUTS = 16, INPUTS_PER_TILE = 8 };
#define INT8 0
#include "values.h"
#include "products.h"
#include "few.h"
#include "rows.h"
#include "attention.h"
#include "table.h"

static bool is_supported(void) { return true; }
PK_TABLE("neon", pk_neon, is_supported);
