/* Products with few inputs: choosing the loop. Included after products.h and, where INT8 is 1, int8_avx512.h. What a loop does is a constant
 * for the compiler; types of scales and sizes of groups are not: they are looked at too seldom to be worth its time. */

#if !INT8
#define dot_rows_int8(...) (void)0
#define int8_sums(w, x) (x)
#endif
static bool is_int8(const pk_matrix* w, bool fast) { return INT8 && fast && (w->bits == 4 || w->bits == 8); }

enum loop { DENSE, PACKED, PLANES, INT8_CODES };

/* `kind`: bits; pk_dtype where the loop is DENSE. */
INLINE void dot_rows(const few_inputs* t, const enum loop loop, const int kind, const int count, const int inputs, int row, row_sums* total) {
  vf sum[MOST_INPUTS][SUMS_TOGETHER];
  for (int m = 0; m < inputs; m++)
    for (int r = 0; r < count; r++) sum[m][r] = vf_zero();
  if (loop == DENSE)
    dot_dense(t, kind, count, inputs, row, sum);
  else if (loop == PACKED)
    dot_packed(t, kind, count, inputs, row, sum);
  else if (loop == PLANES)
    dot_planes(t, kind, inputs, row, sum);
  else
    dot_rows_int8(t, kind, inputs, row, sum);
  for (int m = 0; m < inputs; m++)
    for (int r = 0; r < count; r++) total[m][r] = sum[m][r];
}

/* The lanes of SUMS_TOGETHER rows are summed at once, also at the end, where some are the last row again: a row's sum must not depend on how
 * many there are. */
INLINE void store_sums(float* y, const vf* total, int count) {
  float sums[SUMS_TOGETHER];
  vf_store_sums4(count == SUMS_TOGETHER ? y : sums, total);
  if (count < SUMS_TOGETHER) memcpy(y, sums, count * sizeof(float));
}

/* As many rows as there are registers for. */
INLINE int rows_together(const enum loop loop, const int inputs) {
  if (loop == DENSE) return inputs <= 2 ? 4 : ROWS_TOGETHER;
  return loop == PACKED && inputs == 1 ? 4 : loop == PACKED && inputs > 4 ? 1 : 2;
}

INLINE void few_rows(const few_inputs* t, const enum loop loop, const int kind, const int inputs, int first) {
  const int together = rows_together(loop, inputs);
  for (int row = first; row < t->last; row += SUMS_TOGETHER) {
    vf total[MOST_INPUTS][SUMS_TOGETHER];
    for (int r = 0; r < SUMS_TOGETHER; r += together)
      dot_rows(t, loop, kind, together, inputs, nth_row(t, row, r), (row_sums*)&total[0][r]);
    for (int m = 0; m < inputs; m++) store_sums(t->y + m * t->y_stride + row, total[m], at_most(t->last - row, SUMS_TOGETHER));
  }
}

typedef void few_loop(const few_inputs* t, int first);
typedef struct {
  int most;                      /* inputs at once */
  few_loop* loops[MOST_INPUTS];  /* by inputs - 1 */
} few_loops;

/* Functions of their own: in one of all loops the compiler gives up some of its work. */
#define FEW(NAME, INPUTS, LOOP, KIND) \
  static void NAME##_##INPUTS(const few_inputs* t, int first) { few_rows(t, LOOP, KIND, INPUTS, first); }
#define FEW_TO_4(NAME, LOOP, KIND) \
  FEW(NAME, 1, LOOP, KIND) FEW(NAME, 2, LOOP, KIND) FEW(NAME, 3, LOOP, KIND) FEW(NAME, 4, LOOP, KIND)
#define UP_TO_4(NAME, LOOP, KIND) \
  FEW_TO_4(NAME, LOOP, KIND)      \
  static const few_loops NAME = {4, {NAME##_1, NAME##_2, NAME##_3, NAME##_4}};
/* For weights that take long to unpack. */
#define UP_TO_8(NAME, LOOP, KIND)                                                                                          \
  FEW_TO_4(NAME, LOOP, KIND)                                                                                               \
  FEW(NAME, 5, LOOP, KIND) FEW(NAME, 6, LOOP, KIND) FEW(NAME, 7, LOOP, KIND) FEW(NAME, 8, LOOP, KIND)                      \
  static const few_loops NAME = {8, {NAME##_1, NAME##_2, NAME##_3, NAME##_4, NAME##_5, NAME##_6, NAME##_7, NAME##_8}};

UP_TO_4(few_f32, DENSE, PK_F32)
UP_TO_4(few_f16, DENSE, PK_F16)
UP_TO_4(few_bf16, DENSE, PK_BF16)
UP_TO_8(few_2bit, PACKED, 2)
UP_TO_8(few_3bit, PACKED, 3)
UP_TO_4(few_4bit, PLANES, 4)
UP_TO_8(few_5bit, PACKED, 5)
UP_TO_8(few_6bit, PACKED, 6)
UP_TO_4(few_8bit, PLANES, 8)
#if INT8
UP_TO_4(few_4bit_int8, INT8_CODES, 4)
UP_TO_4(few_8bit_int8, INT8_CODES, 8)
#endif

static const few_loops* choose_loops(const pk_matrix* w) {
  switch (w->bits) {
    case 0: return w->dtype == PK_F32 ? &few_f32 : w->dtype == PK_F16 ? &few_f16 : &few_bf16;
    case 2: return &few_2bit;
    case 3: return &few_3bit;
    case 4: return &few_4bit;
    case 5: return &few_5bit;
    case 6: return &few_6bit;
    default: return &few_8bit;
  }
}

#if INT8
static const few_loops* choose_fast_loops(const pk_matrix* w) { return w->bits == 4 ? &few_4bit_int8 : &few_8bit_int8; }
#else
#define choose_fast_loops choose_loops
#endif

static few_inputs take_inputs(const pk_matrix* w, bool fast, const float* x, size_t stride, float* y, size_t y_stride) {
  few_inputs t = {.w = w, .x = x, .sums = x, .stride = stride, .y = y, .y_stride = y_stride};
  if (!w->bits) return t;
  t.sums = is_int8(w, fast) ? int8_sums(w, x) : x + input_floats(w);
  t.groups = num_groups(w);
  t.group_shift = __builtin_ctz(w->group_size);
  return t;
}

/* Above these a panel of unpacked weights pays. It would from 5 inputs on for int8 codes (73 billion a second against 52, at 16 119 against
 * 58), but an answer that others do not change is worth more. */
static int most_few(const pk_matrix* w, bool fast) {
  const bool takes_long = w->bits && !has_planes(w);
  return takes_long || is_int8(w, fast) ? 16 : FEW_INPUTS;
}

/* Inputs in parts as even as can be: 5 are 3 and 2, which take less time than 4 and 1. */
static void multiply_few(const pk_matrix* w, bool fast, const float* x, size_t x_stride, int num_inputs, float* y, size_t y_stride, int first,
                         int last) {
  const few_loops* few = is_int8(w, fast) ? choose_fast_loops(w) : choose_loops(w);
  const int parts = (num_inputs + few->most - 1) / few->most;
  for (int part = 0; part < parts; part++) {
    const int m = num_inputs * part / parts, inputs = num_inputs * (part + 1) / parts - m;
    few_inputs t = take_inputs(w, fast, x + m * x_stride, x_stride, y + m * y_stride, y_stride);
    t.last = last;
    few->loops[inputs - 1](&t, first);
  }
}
