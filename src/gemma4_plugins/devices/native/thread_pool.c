/* Threads for tinygrad's CPU kernels, at about 2 us per kernel. x86-64 Linux; threads.py loads and drives it.

   A kernel is called once per part, with the part's number in one of its arguments. The thread that has a kernel to run
   describes it in pool->job and publishes a ticket; it and the workers take parts from the ticket until none is left.
   So the caller does what a sleeping worker does not, and nobody waits for a worker that has not begun.

   Compiled by tinygrad's own compiler without libc, and loaded by tinygrad's loader, which knows no writable data:
   all state is in the Pool that the caller hands over. The entry point comes first, since it is called by the address
   at which the code is loaded. */

typedef unsigned int u32;
typedef unsigned long long u64;

enum { MODE_RUN, MODE_WORK, MODE_STOP, MODE_CLOCK };
enum { MAX_ARGS = 64, FUTEX_WAIT_PRIVATE = 128, FUTEX_WAKE_PRIVATE = 129, SYS_SCHED_YIELD = 24, SYS_FUTEX = 202 };
enum { PAUSES_BEFORE_YIELD = 4096, EVERYONE = 1 << 30 };

typedef struct {
  u64 function; /* kernel(args[0], ...), every argument in a 64-bit register */
  u64 count;    /* arguments */
  u64 slot;     /* which of them is the number of the part */
  u64 parts;    /* 2 to 65535 */
  u64 args[MAX_ARGS];
} Job;

typedef struct {
  /* sequence << 32 | parts << 16 | next part. One word, so that taking a part checks at once that it belongs to the
     job that was seen. A job's description stays as it is until all parts of it are done. Sequence 0 means stop. */
  u64 ticket;
  u64 fill0[7];
  u32 sleepers; /* workers in, or about to enter, a futex wait on the sequence */
  u32 fill1[15];
  u32 done; /* finished parts of the current job */
  u32 fill2[15];
  u64 spin; /* clock ticks that a worker looks out for a job before it sleeps */
  Job job;
} Pool;

static void run(Pool *pool);
static void work(Pool *pool, u32 seen);
static void stop(Pool *pool);

u64 gemma4_thread_pool(u64 mode, Pool *pool, u64 sequence) {
  switch (mode) {
  case MODE_RUN: run(pool); return 0;
  case MODE_WORK: work(pool, (u32)sequence); return 0;
  case MODE_STOP: stop(pool); return 0;
  default: return __builtin_ia32_rdtsc();
  }
}

static long futex(Pool *pool, long operation, long value) {
  long result;
  register long no_timeout __asm__("r10") = 0;
  u32 *sequence = (u32 *)&pool->ticket + 1; /* the upper half, little-endian */
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"((long)SYS_FUTEX), "D"(sequence), "S"(operation), "d"(value), "r"(no_timeout)
                   : "rcx", "r11", "memory");
  return result;
}

static void yield(void) {
  long result;
  __asm__ volatile("syscall" : "=a"(result) : "a"((long)SYS_SCHED_YIELD) : "rcx", "r11", "memory");
}

#define U8 u64, u64, u64, u64, u64, u64, u64, u64
#define A8(i) a[i], a[i + 1], a[i + 2], a[i + 3], a[i + 4], a[i + 5], a[i + 6], a[i + 7]

static void call(const Job *job, u64 part) {
  u64 a[MAX_ARGS];
  for (u64 i = 0; i < job->count; i++) a[i] = job->args[i];
  a[job->slot] = part;
  /* Surplus arguments are harmless in this calling convention: the caller removes them. */
  if (job->count <= 8) ((void (*)(U8))job->function)(A8(0));
  else if (job->count <= 16) ((void (*)(U8, U8))job->function)(A8(0), A8(8));
  else ((void (*)(U8, U8, U8, U8, U8, U8, U8, U8))job->function)
      (A8(0), A8(8), A8(16), A8(24), A8(32), A8(40), A8(48), A8(56));
}

static void take_parts(Pool *pool, u32 sequence) {
  u64 ticket = __atomic_load_n(&pool->ticket, __ATOMIC_ACQUIRE);
  while ((u32)(ticket >> 32) == sequence && (ticket & 0xffff) < (ticket >> 16 & 0xffff)) {
    if (!__atomic_compare_exchange_n(&pool->ticket, &ticket, ticket + 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE)) continue;
    call(&pool->job, ticket & 0xffff);
    __atomic_add_fetch(&pool->done, 1, __ATOMIC_RELEASE);
    ticket = __atomic_load_n(&pool->ticket, __ATOMIC_ACQUIRE);
  }
}

static void run(Pool *pool) {
  u32 parts = (u32)pool->job.parts, sequence = (u32)(pool->ticket >> 32) + 1;
  if (!sequence) sequence = 1;
  __atomic_store_n(&pool->done, 0, __ATOMIC_RELAXED);
  __atomic_store_n(&pool->ticket, (u64)sequence << 32 | (u64)parts << 16, __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&pool->sleepers, __ATOMIC_SEQ_CST)) futex(pool, FUTEX_WAKE_PRIVATE, parts - 1);
  take_parts(pool, sequence);
  for (u64 pauses = 0; __atomic_load_n(&pool->done, __ATOMIC_ACQUIRE) != parts; pauses++) {
    if (pauses < PAUSES_BEFORE_YIELD) __builtin_ia32_pause();
    else yield(); /* more threads than cores: let the one that computes have this one */
  }
}

static u32 current(Pool *pool) { return (u32)(__atomic_load_n(&pool->ticket, __ATOMIC_SEQ_CST) >> 32); }

static void work(Pool *pool, u32 seen) {
  for (;;) {
    u64 began = __builtin_ia32_rdtsc();
    while (current(pool) == seen) {
      __builtin_ia32_pause();
      if (__builtin_ia32_rdtsc() - began <= pool->spin) continue;
      /* A job published after this increment finds a sleeper to wake; one published before ends the wait at once,
         since the kernel compares the sequence with the one that was seen. */
      __atomic_add_fetch(&pool->sleepers, 1, __ATOMIC_SEQ_CST);
      while (current(pool) == seen) futex(pool, FUTEX_WAIT_PRIVATE, seen);
      __atomic_sub_fetch(&pool->sleepers, 1, __ATOMIC_SEQ_CST);
    }
    seen = current(pool);
    if (!seen) return;
    take_parts(pool, seen);
  }
}

static void stop(Pool *pool) {
  __atomic_store_n(&pool->ticket, 0, __ATOMIC_SEQ_CST);
  futex(pool, FUTEX_WAKE_PRIVATE, EVERYONE);
}
