/* Products with few inputs: choosing the loop. Included after products.h and, where INT8 is 1, int8_avx512.h. Everything is a constant for
 * the compiler by the time it reaches a loop. */

#if !INT8
#define dot_rows_int8(...)
#endif
static bool is_int8(const pk_matrix* w, bool fast) { return INT8 && fast && (w->bits == 4 || w->bits == 8); }

INLINE void dot_rows(const few_inputs* t, const packing p, const int count, const int inputs, int row, row_sums* total) {
  vf sum[INPUTS_TOGETHER][SUMS_TOGETHER];
  for (int m = 0; m < inputs; m++)
    for (int r = 0; r < count; r++) sum[m][r] = vf_zero();
  if (p.is_int8)
    dot_rows_int8(t, p, count, inputs, row, sum);
  else if (!p.bits)
    dot_dense(t, p, count, inputs, row, sum);
  else if (p.group_size)
    dot_planes(t, p, count, inputs, row, sum);
  else
    dot_packed(t, p, count, inputs, row, sum);
  for (int m = 0; m < inputs; m++)
    for (int r = 0; r < count; r++) total[m][r] = sum[m][r];
}

/* With one input alone there are registers for more rows, where rows are not read in the order in which they lie. */
INLINE void few_rows(const few_inputs* t, const packing p, const int inputs, int first, int last) {
  const int together = inputs == 1 && !p.group_size ? 4 : 2;
  for (int row = first, count; row < last; row += count) {
    count = at_most(last - row, SUMS_TOGETHER);
    vf total[INPUTS_TOGETHER][SUMS_TOGETHER];
    int r = 0;
    for (; r + together <= count; r += together) dot_rows(t, p, together, inputs, row + r, (row_sums*)&total[0][r]);
    for (; r < count; r++) dot_rows(t, p, 1, inputs, row + r, (row_sums*)&total[0][r]);
    for (int m = 0; m < inputs; m++) store_sums(t->y + m * t->y_stride + row, total[m], count);
  }
}

INLINE void few_grouped(const few_inputs* t, const int bits, const bool is_int8, const int inputs, int first, int last) {
  switch (t->w->group_size) {
    case 32: few_rows(t, (packing){bits, 0, 32, is_int8}, inputs, first, last); break;
    case 64: few_rows(t, (packing){bits, 0, 64, is_int8}, inputs, first, last); break;
    default: few_rows(t, (packing){bits, 0, 128, is_int8}, inputs, first, last);
  }
}

INLINE void few_dense(const few_inputs* t, const int inputs, int first, int last) {
  switch (t->w->dtype) {
    case PK_F32: few_rows(t, (packing){.dtype = PK_F32}, inputs, first, last); break;
    case PK_F16: few_rows(t, (packing){.dtype = PK_F16}, inputs, first, last); break;
    default: few_rows(t, (packing){.dtype = PK_BF16}, inputs, first, last);
  }
}

INLINE void few_of_any_width(const few_inputs* t, const int inputs, int first, int last) {
  switch (t->w->bits) {
    case 0: few_dense(t, inputs, first, last); break;
    case 2: few_rows(t, (packing){.bits = 2}, inputs, first, last); break;
    case 3: few_rows(t, (packing){.bits = 3}, inputs, first, last); break;
    case 4: few_grouped(t, 4, false, inputs, first, last); break;
    case 5: few_rows(t, (packing){.bits = 5}, inputs, first, last); break;
    case 6: few_rows(t, (packing){.bits = 6}, inputs, first, last); break;
    default: few_grouped(t, 8, false, inputs, first, last);
  }
}

INLINE void few_in_precision(const few_inputs* t, const bool fast, const int inputs, int first, int last) {
  if (!is_int8(t->w, fast))
    few_of_any_width(t, inputs, first, last);
  else if (t->w->bits == 4)
    few_grouped(t, 4, true, inputs, first, last);
  else
    few_grouped(t, 8, true, inputs, first, last);
}

/* Inputs in parts as even as can be: 5 are 3 and 2, which take less time than 4 and 1. */
static void multiply_few(const pk_matrix* w, bool fast, const float* x, size_t x_stride, int num_inputs, float* y, size_t y_stride, int first,
                         int last) {
  const int parts = (num_inputs + INPUTS_TOGETHER - 1) / INPUTS_TOGETHER;
  for (int part = 0; part < parts; part++) {
    const int m = num_inputs * part / parts;
    const few_inputs t = {w, x + m * x_stride, x_stride, y + m * y_stride, y_stride};
    switch (num_inputs * (part + 1) / parts - m) {
      case 1: few_in_precision(&t, fast, 1, first, last); break;
      case 2: few_in_precision(&t, fast, 2, first, last); break;
      case 3: few_in_precision(&t, fast, 3, first, last); break;
      default: few_in_precision(&t, fast, INPUTS_TOGETHER, first, last);
    }
  }
}
