/* The pk_isa of one compilation unit. Defines PK_TABLE(name, symbol, is_supported); INT8 = 1 where int8 products were included. */

#if !INT8
static size_t prepared_floats_int8(const pk_matrix* w) { return prepared_floats_exact(w); }
static size_t panel_bytes_int8(const pk_matrix* w) { return panel_bytes_exact(w); }
#define prepare_int8(...)
#define multiply_many_int8(...)
#endif

static size_t prepared_floats(const pk_matrix* w, bool fast) {
  return round_up(is_int8(w, fast) ? prepared_floats_int8(w) : prepared_floats_exact(w), 16);
}
static void prepare(const pk_matrix* w, bool fast, const float* x, float* prepared) {
  if (is_int8(w, fast))
    prepare_int8(w, x, prepared);
  else
    prepare_exact(w, x, prepared);
}
static bool needs_prepared(const pk_matrix* w, bool fast) { return is_int8(w, fast); }
static size_t panel_bytes(const pk_matrix* w, bool fast) { return is_int8(w, fast) ? panel_bytes_int8(w) : panel_bytes_exact(w); }
static void multiply_many(const pk_matrix* w, bool fast, const float* x, size_t stride, int num_inputs, float* y, size_t y_stride, int first,
                          int last, void* panel) {
  if (is_int8(w, fast))
    multiply_many_int8(w, x, stride, num_inputs, y, y_stride, first, last, panel);
  else
    multiply_many_exact(w, x, stride, num_inputs, y, y_stride, first, last, panel);
}

#define PK_TABLE(NAME, SYMBOL, IS_SUPPORTED)                                                                              \
  const pk_isa SYMBOL = {                                                                                                 \
      .name = NAME,                                                                                                       \
      .is_supported = IS_SUPPORTED,                                                                                       \
      .has_fast = INT8,                                                                                                   \
      .prepared_floats = prepared_floats,                                                                                 \
      .prepare = prepare,                                                                                                 \
      .multiply_few = multiply_few,                                                                                       \
      .most_few = most_few,                                                                                               \
      .needs_prepared = needs_prepared,                                                                                   \
      .panel_bytes = panel_bytes,                                                                                         \
      .multiply_many = multiply_many,                                                                                     \
      .panel_rows = PANEL_ROWS,                                                                                           \
      .rms_norm = rms_norm,                                                                                               \
      .layer_norm = layer_norm,                                                                                           \
      .rotate = rotate,                                                                                                   \
      .gate = apply_gate,                                                                                                 \
      .add = add_rows,                                                                                                    \
      .attend = attend,                                                                                                   \
      .vector_floats = W,                                                                                                 \
  }
