/* Work on one row at a time: norms, rotations, gates, exponentials. Included after values.h. */

/* exp, within about 1 ulp (Cephes' polynomial, as in Eigen and MLX); not-a-number stays one. */
INLINE vf vf_exp(vf x) {
  x = vf_min(vf_set(88.7f), vf_max(vf_set(-87.3f), x));
  const vf n = vf_round(vf_mul(x, vf_set(1.44269504088896341f)));
  vf r = vf_fma(n, vf_set(-0.693145752f), x);
  r = vf_fma(n, vf_set(-1.42860677e-6f), r);
  vf p = vf_set(1.9875691500e-4f);
  p = vf_fma(p, r, vf_set(1.3981999507e-3f));
  p = vf_fma(p, r, vf_set(8.3334519073e-3f));
  p = vf_fma(p, r, vf_set(4.1665795894e-2f));
  p = vf_fma(p, r, vf_set(1.6666665459e-1f));
  p = vf_fma(p, r, vf_set(5.0000001201e-1f));
  p = vf_fma(p, vf_mul(r, r), vf_add(r, vf_set(1.0f)));
  return vf_ldexp(p, n);
}
/* 2 s(2 u) - 1 with s the logistic function. */
INLINE vf vf_logistic(vf x) { return vf_div(vf_set(1.0f), vf_add(vf_set(1.0f), vf_exp(vf_sub(vf_zero(), x)))); }

static void rms_norm(const float* x, const float* weight, float eps, float* y, int length) {
  vf squares = vf_zero();
  for (int i = 0; i < length; i += W) {
    vf part = vf_load_part(x + i, length - i);
    squares = vf_fma(part, part, squares);
  }
  const vf factor = vf_set(1.0f / sqrtf(vf_sum(squares) / length + eps));
  int i = 0;
  for (; i + W <= length; i += W) {
    vf normed = vf_mul(vf_load(x + i), factor);
    vf_store(y + i, weight ? vf_mul(normed, vf_load(weight + i)) : normed);
  }
  float scalar[W];
  vf_store(scalar, factor);
  for (; i < length; i++) y[i] = x[i] * scalar[0] * (weight ? weight[i] : 1.0f);
}

static void layer_norm(const float* x, const float* weight, const float* bias, float eps, float* y, int length) {
  vf sum = vf_zero();
  for (int i = 0; i < length; i += W) sum = vf_add(sum, vf_load_part(x + i, length - i));
  const float mean = vf_sum(sum) / length;
  float squares = 0.0f;
  int i = 0;
  vf parts = vf_zero();
  for (; i + W <= length; i += W) {
    vf part = vf_sub(vf_load(x + i), vf_set(mean));
    parts = vf_fma(part, part, parts);
  }
  for (; i < length; i++) squares += (x[i] - mean) * (x[i] - mean);
  const float factor = 1.0f / sqrtf((vf_sum(parts) + squares) / length + eps);
  for (i = 0; i < length; i++) {
    const float normed = (x[i] - mean) * factor;
    y[i] = (weight ? normed * weight[i] : normed) + (bias ? bias[i] : 0.0f);
  }
}

static void rotate(const float* x, const float* table, int dims, int length, bool is_traditional, float* y) {
  const int half = dims / 2;
  const float *cosines = table, *sines = table + half;
  int i = 0;
  if (!is_traditional)
    for (; i + W <= half; i += W) {
      const vf a = vf_load(x + i), b = vf_load(x + half + i), c = vf_load(cosines + i), s = vf_load(sines + i);
      vf_store(y + i, vf_sub(vf_mul(a, c), vf_mul(b, s)));
      vf_store(y + half + i, vf_add(vf_mul(a, s), vf_mul(b, c)));
    }
  for (; i < half; i++) {
    const int one = is_traditional ? 2 * i : i, other = is_traditional ? 2 * i + 1 : half + i;
    const float a = x[one], b = x[other];
    y[one] = a * cosines[i] - b * sines[i];
    y[other] = a * sines[i] + b * cosines[i];
  }
  if (y != x) memcpy(y + dims, x + dims, (length - dims) * sizeof(float));
}

/* x * logistic(2 sqrt(2 / pi) (x + 0.044715 x^3)), which is gelu's tanh form. */
INLINE vf vf_gelu_tanh(vf x) {
  const vf inner = vf_mul(x, vf_fma(vf_mul(x, x), vf_set(0.044715f), vf_set(1.0f)));
  return vf_mul(x, vf_logistic(vf_mul(inner, vf_set(1.5957691216057308f))));
}
INLINE vf vf_gate(vf gate, vf up, int kind) {
  return vf_mul(kind == PK_SILU ? vf_mul(gate, vf_logistic(gate)) : vf_gelu_tanh(gate), up);
}
static void apply_gate(const float* gate, const float* up, float* y, size_t length, int kind) {
  size_t i = 0;
  if (kind == PK_GELU) {
    for (; i < length; i++) y[i] = gate[i] * 0.5f * (1.0f + erff(gate[i] * 0.70710678118654752f)) * up[i];
    return;
  }
  for (; i + W <= length; i += W) vf_store(y + i, vf_gate(vf_load(gate + i), vf_load(up + i), kind));
  if (i < length) {
    float lanes[W];
    vf_store(lanes, vf_gate(vf_load_part(gate + i, (int)(length - i)), vf_load_part(up + i, (int)(length - i)), kind));
    memcpy(y + i, lanes, (length - i) * sizeof(float));
  }
}

static void add_rows(const float* a, const float* b, float* y, size_t length) {
  size_t i = 0;
  for (; i + W <= length; i += W) vf_store(y + i, vf_add(vf_load(a + i), vf_load(b + i)));
  for (; i < length; i++) y[i] = a[i] + b[i];
}

INLINE float row_maximum(const float* x, int length, float start) {
  vf lanes = vf_set(start);
  int i = 0;
  for (; i + W <= length; i += W) lanes = vf_max(lanes, vf_load(x + i));
  float largest = vf_largest(lanes);
  for (; i < length; i++)
    if (x[i] > largest) largest = x[i];
  return largest;
}

/* Replaces x by exp(x - maximum) and returns their sum; y may be x. */
INLINE float exponentials(const float* x, float* y, int length, float maximum) {
  const vf shift = vf_set(maximum);
  vf sum = vf_zero();
  int i = 0;
  for (; i + W <= length; i += W) {
    const vf e = vf_exp(vf_sub(vf_load(x + i), shift));
    sum = vf_add(sum, e);
    vf_store(y + i, e);
  }
  float total = vf_sum(sum);
  for (; i < length; i++) total += y[i] = expf(x[i] - maximum);
  return total;
}
