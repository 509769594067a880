/* Any processor. */
#include "vec_portable.h"
enum { ROWS_TOGETHER = 2, FEW_INPUTS = 32, INPUTS_PER_TILE = 4 };
#define INT8 0
#include "values.h"
#include "products.h"
#include "few.h"
#include "rows.h"
#include "attention.h"
#include "table.h"

static bool is_supported(void) { return true; }
PK_TABLE("portable", pk_portable, is_supported);
