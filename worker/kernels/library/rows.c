/* Attention and row-wise work divided over threads. */
#include "kernels.h"

enum { MIN_SHARED_VALUES = 32768, MIN_SHARED_ATTENTION = 40000, VALUES_PER_CHUNK = 16384, QUERIES_PER_CHUNK = 16, MAX_QUERY_ROWS = 4 };

/* -- attention -- */

size_t pk_attention_floats(int keys) { return MAX_QUERY_ROWS * ((size_t)keys + 64); }

typedef struct {
  const pk_attention_batch* batch;
  int blocks, block_queries;
} attention_work;

static void attend_chunk(void* context, int chunk) {
  const attention_work* work = context;
  const pk_attention_batch* all = work->batch;
  /* The last queries see the most keys under a causal mask: they go first. */
  const int block = work->blocks - 1 - chunk % work->blocks;
  const int kv_head = chunk / work->blocks % all->kv_heads, sequence = chunk / work->blocks / all->kv_heads;
  pk_attention task = all->first;
  const int head = kv_head * task.heads;
  task.q += sequence * all->q_batch + head * task.q_head;
  task.k += sequence * all->k_batch + kv_head * all->k_head;
  task.v += sequence * all->v_batch + kv_head * all->v_head;
  task.out += sequence * all->out_batch + head * task.out_head;
  if (task.mask) task.mask = (const char*)task.mask + (sequence * all->mask_batch + head * task.mask_head) * (task.is_mask_additive ? 4 : 1);
  if (task.sinks) task.sinks += head;
  const int first = block * work->block_queries;
  const int last = first + work->block_queries < task.queries ? first + work->block_queries : task.queries;
  pk_current_isa()->attend(&task, first, last, pk_scratch(PK_SLOT_SCORES, pk_attention_floats(task.keys)));
}

void pk_attend(const pk_attention_batch* batch) {
  const pk_attention* task = &batch->first;
  attention_work work = {batch, (task->queries + QUERIES_PER_CHUNK - 1) / QUERIES_PER_CHUNK, QUERIES_PER_CHUNK};
  const int chunks = work.blocks * batch->kv_heads * batch->batch;
  const int64_t size = (int64_t)batch->batch * batch->kv_heads * task->heads * task->queries * task->keys * task->head_dim;
  if (size >= MIN_SHARED_ATTENTION) {
    pk_parallel(chunks, attend_chunk, &work);
    return;
  }
  for (int chunk = 0; chunk < chunks; chunk++) attend_chunk(&work, chunk);
}

/* -- rows -- */

typedef struct {
  const float *x, *weight;
  float eps, *y;
  int rows, length, rows_per_chunk;
} norm_work;

static void norm_chunk(void* context, int chunk) {
  const norm_work* w = context;
  for (int row = chunk * w->rows_per_chunk; row < w->rows && row < (chunk + 1) * w->rows_per_chunk; row++)
    pk_current_isa()->rms_norm(w->x + (size_t)row * w->length, w->weight, w->eps, w->y + (size_t)row * w->length, w->length);
}

void pk_rms_norm(const float* x, const float* weight, float eps, float* y, int rows, int length) {
  int rows_per_chunk = VALUES_PER_CHUNK / length + 1;
  if ((size_t)rows * length < MIN_SHARED_VALUES) rows_per_chunk = rows;
  norm_work work = {x, weight, eps, y, rows, length, rows_per_chunk};
  pk_parallel(rows ? (rows + rows_per_chunk - 1) / rows_per_chunk : 0, norm_chunk, &work);
}

typedef struct {
  const float *a, *b;
  float* y;
  size_t length;
  int kind;
} pair_work;

enum { ADDITION = -1 };

static void pair_chunk(void* context, int chunk) {
  const pair_work* w = context;
  const size_t first = (size_t)chunk * VALUES_PER_CHUNK;
  const size_t length = w->length - first < VALUES_PER_CHUNK ? w->length - first : VALUES_PER_CHUNK;
  if (w->kind == ADDITION)
    pk_current_isa()->add(w->a + first, w->b + first, w->y + first, length);
  else
    pk_current_isa()->gate(w->a + first, w->b + first, w->y + first, length, w->kind);
}

static void run_pairs(pair_work work) {
  const int chunks = (int)((work.length + VALUES_PER_CHUNK - 1) / VALUES_PER_CHUNK);
  if (work.length >= MIN_SHARED_VALUES) {
    pk_parallel(chunks, pair_chunk, &work);
    return;
  }
  for (int chunk = 0; chunk < chunks; chunk++) pair_chunk(&work, chunk);
}

void pk_gate(const float* gate, const float* up, float* y, size_t length, int kind) { run_pairs((pair_work){gate, up, y, length, kind}); }
void pk_add(const float* a, const float* b, float* y, size_t length) { run_pairs((pair_work){a, b, y, length, ADDITION}); }
