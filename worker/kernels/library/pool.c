/* Threads that share chunks of one piece of work.
 *
 * Chunks are taken from a counter, not dealt out beforehand: where another process holds a core, the thread that lost it takes fewer
 * chunks and nobody waits for it longer than one chunk. (Dealt out in halves, a matrix product took 7 times as long beside a busy
 * process.) A worker looks for work for a few microseconds, then sleeps in the kernel. Workers are never joined: the process ends
 * without them. A second caller at the same time, or a process that forked, computes alone.
 */
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels.h"

enum { LOOKS_BEFORE_SLEEP = 1000, MAX_THREADS = 1024 };

static struct {
  _Alignas(64) _Atomic uint32_t round; /* workers sleep on it; it moves when there is work */
  _Alignas(64) atomic_int next;        /* the first chunk that nobody took */
  _Alignas(64) atomic_int working;     /* workers inside the current work */
  atomic_bool is_open;                 /* workers may still enter it */
  atomic_int threads;                  /* the caller among them */
  atomic_int sleeping;
  atomic_flag is_taken;
  pid_t owner;
  int started;
  int chunks;
  void (*body)(void*, int);
  void* context;
} pool = {.threads = 1, .is_taken = ATOMIC_FLAG_INIT};

static inline void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static void take_chunks(void) {
  for (;;) {
    int chunk = atomic_fetch_add_explicit(&pool.next, 1, memory_order_relaxed);
    if (chunk >= pool.chunks) return;
    pool.body(pool.context, chunk);
  }
}

static uint32_t wait_for_round(uint32_t seen) {
  for (int looks = 0;; looks++) {
    uint32_t round = atomic_load_explicit(&pool.round, memory_order_acquire);
    if (round != seen) return round;
    if (looks < LOOKS_BEFORE_SLEEP) {
      relax();
      continue;
    }
    atomic_fetch_add(&pool.sleeping, 1);
    syscall(SYS_futex, &pool.round, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    atomic_fetch_sub(&pool.sleeping, 1);
  }
}

static void* work(void* index) {
  uint32_t seen = atomic_load(&pool.round);
  for (;;) {
    seen = wait_for_round(seen);
    if ((int)(intptr_t)index >= atomic_load(&pool.threads)) continue; /* there are fewer threads now */
    atomic_fetch_add(&pool.working, 1);
    if (atomic_load(&pool.is_open)) take_chunks();
    atomic_fetch_sub(&pool.working, 1);
  }
  return NULL;
}

/* Threads that were started and are not wanted any more sleep on. */
void pk_set_threads(int count) {
  count = count < 1 ? 1 : count > MAX_THREADS ? MAX_THREADS : count;
  if (pool.owner != getpid()) {
    pool.owner = getpid();
    pool.started = 1;
  }
  for (; pool.started < count; pool.started++) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, work, (void*)(intptr_t)pool.started)) break;
    pthread_detach(thread);
  }
  atomic_store(&pool.threads, count < pool.started ? count : pool.started);
}

int pk_get_threads(void) { return atomic_load(&pool.threads); }

static void wake_workers(void) {
  atomic_fetch_add(&pool.round, 1);
  if (atomic_load(&pool.sleeping)) syscall(SYS_futex, &pool.round, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void forget_workers(void) { atomic_store(&pool.threads, 1); }
__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_workers); }

void pk_parallel(int chunks, void (*body)(void*, int), void* context) {
  if (chunks <= 1 || pk_get_threads() == 1 || atomic_flag_test_and_set(&pool.is_taken)) {
    for (int chunk = 0; chunk < chunks; chunk++) body(context, chunk);
    return;
  }
  pool.body = body;
  pool.context = context;
  pool.chunks = chunks;
  atomic_store(&pool.next, 0);
  atomic_store(&pool.is_open, true);
  wake_workers();
  take_chunks();
  atomic_store(&pool.is_open, false);
  for (int looks = 0; atomic_load(&pool.working); looks++) {
    if (looks < LOOKS_BEFORE_SLEEP)
      relax();
    else
      sched_yield();
  }
  atomic_flag_clear(&pool.is_taken);
}

/* Memory is kept for the thread's life, in whole huge pages where it is big. */
float* pk_scratch(enum pk_slot slot, size_t floats) {
  static _Thread_local struct {
    float* memory;
    size_t floats;
  } slots[PK_NUM_SLOTS];
  if (slots[slot].floats < floats) {
    free(slots[slot].memory);
    floats += floats / 2;
    slots[slot].memory = aligned_alloc(64, (floats * sizeof(float) + 127) / 64 * 64);
    if (!slots[slot].memory) abort();
    slots[slot].floats = floats;
  }
  return slots[slot].memory;
}
