/* Attention of the heads that share one KV head. Included after rows.h.
 *
 * A tile of query rows (head, position) goes over all keys it may see: scores into scratch, softmax there, then the weighted sum of
 * the values. Scores stay whole: [QUERY_ROWS, keys] floats fit a second-level cache up to tens of thousands of keys.
 */

enum { KEYS = 4, QUERY_ROWS = W == 16 ? 4 : 2, VALUE_VECTORS = 4 };
INLINE size_t scores_stride(int keys) { return round_up(keys, 16) + 16; }

typedef struct {
  const float* q[QUERY_ROWS];
  float* out[QUERY_ROWS];
  int head[QUERY_ROWS], query[QUERY_ROWS], seen[QUERY_ROWS];
  int rows, keys;
} query_tile;

/* Rows past the end repeat the first, so that loops over a tile have one length. */
static query_tile take_tile(const pk_attention* t, int first, int last, int row) {
  query_tile tile = {.rows = at_most((last - first) * t->heads - row, QUERY_ROWS)};
  for (int r = 0; r < QUERY_ROWS; r++) {
    const int index = row + (r < tile.rows ? r : 0);
    const int head = index % t->heads, query = first + index / t->heads;
    tile.head[r] = head;
    tile.query[r] = query;
    tile.q[r] = t->q + head * t->q_head + query * t->q_row;
    tile.out[r] = t->out + head * t->out_head + query * t->out_row;
    tile.seen[r] = t->is_causal ? t->keys - t->queries + query + 1 : t->keys;
    if (tile.seen[r] > tile.keys) tile.keys = tile.seen[r];
  }
  return tile;
}

static void score_keys(const pk_attention* t, const query_tile* tile, float* scores, size_t stride) {
  for (int key = 0; key < tile->keys; key += KEYS) {
    const float* k[KEYS];
    for (int j = 0; j < KEYS; j++) k[j] = t->k + (int64_t)at_most(key + j, t->keys - 1) * t->k_row;
    vf sum[QUERY_ROWS][KEYS];
    for (int r = 0; r < QUERY_ROWS; r++)
      for (int j = 0; j < KEYS; j++) sum[r][j] = vf_zero();
    for (int d = 0; d < t->head_dim; d += W) {
      vf part[KEYS];
      for (int j = 0; j < KEYS; j++) part[j] = vf_load(k[j] + d);
      for (int r = 0; r < QUERY_ROWS; r++) {
        const vf query = vf_load(tile->q[r] + d);
        for (int j = 0; j < KEYS; j++) sum[r][j] = vf_fma(query, part[j], sum[r][j]);
      }
    }
    for (int r = 0; r < tile->rows; r++) vf_store_sums4(scores + r * stride + key, sum[r]);
  }
}

static void scale_and_mask(const pk_attention* t, const query_tile* tile, int r, float* scores) {
  const vf scale = vf_set(t->scale);
  for (int key = 0; key < tile->keys; key += W) vf_store(scores + key, vf_mul(vf_load(scores + key), scale));
  if (!t->mask) return;
  const int64_t offset = tile->head[r] * t->mask_head + tile->query[r] * t->mask_row;
  for (int key = 0; key < tile->seen[r]; key++) {
    const int64_t at = offset + key * t->mask_key;
    if (t->is_mask_additive)
      scores[key] += ((const float*)t->mask)[at];
    else if (!((const bool*)t->mask)[at])
      scores[key] = PK_MASKED;
  }
}

/* Scores to weights whose sum is still to be divided by: returns 1 / sum. */
static float weigh(const pk_attention* t, const query_tile* tile, int r, float* scores) {
  scale_and_mask(t, tile, r, scores);
  const float sink = t->sinks ? t->sinks[tile->head[r]] : -INFINITY;
  const float largest = row_maximum(scores, tile->seen[r], sink);
  float total = exponentials(scores, scores, tile->seen[r], largest);
  if (t->sinks) total += expf(sink - largest);
  for (int key = tile->seen[r]; key < tile->keys; key++) scores[key] = 0.0f;
  return 1.0f / total;
}

INLINE void sum_values(const pk_attention* t, const query_tile* tile, const float* scores, size_t stride, const float* factors, int d,
                       const int vectors) {
  vf sum[QUERY_ROWS][VALUE_VECTORS];
  for (int r = 0; r < QUERY_ROWS; r++)
    for (int j = 0; j < vectors; j++) sum[r][j] = vf_zero();
  for (int key = 0; key < tile->keys; key++) {
    const float* v = t->v + (int64_t)key * t->v_row + d;
    vf part[VALUE_VECTORS];
    for (int j = 0; j < vectors; j++) part[j] = vf_load(v + j * W);
    for (int r = 0; r < QUERY_ROWS; r++) {
      const vf weight = vf_set(scores[(r < tile->rows ? r : 0) * stride + key]);
      for (int j = 0; j < vectors; j++) sum[r][j] = vf_fma(weight, part[j], sum[r][j]);
    }
  }
  for (int r = 0; r < tile->rows; r++)
    for (int j = 0; j < vectors; j++) vf_store(tile->out[r] + d + j * W, vf_mul(sum[r][j], vf_set(factors[r])));
}

/* head_dim and value_dim are multiples of W (the caller sees to it). */
static void attend(const pk_attention* t, int first, int last, float* scores) {
  const size_t stride = scores_stride(t->keys);
  for (int row = 0; row < (last - first) * t->heads; row += QUERY_ROWS) {
    const query_tile tile = take_tile(t, first, last, row);
    score_keys(t, &tile, scores, stride);
    float factors[QUERY_ROWS];
    for (int r = 0; r < tile.rows; r++) factors[r] = weigh(t, &tile, r, scores + r * stride);
    int d = 0;
    for (; d + VALUE_VECTORS * W <= t->value_dim; d += VALUE_VECTORS * W)
      sum_values(t, &tile, scores, stride, factors, d, VALUE_VECTORS);
    for (; d < t->value_dim; d += W) sum_values(t, &tile, scores, stride, factors, d, 1);
  }
}
