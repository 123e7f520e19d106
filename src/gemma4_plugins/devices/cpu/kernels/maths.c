// Threads, scalars and norms.

// The compiler may turn loops into calls of these; there is no libc to provide them.
__attribute__((no_builtin("memcpy"))) void *memcpy(void *to, const void *from, u64 n) {
    u64 i = 0;
    for (; i + 64 <= n; i += 64) *(f32x *)((char *)to + i) = *(const f32x *)((const char *)from + i);
    for (; i < n; i++) ((volatile char *)to)[i] = ((const char *)from)[i];
    return to;
}

__attribute__((no_builtin("memset"))) void *memset(void *to, int value, u64 n) {
    const u32x word = (u32x){0} + (u32)(value & 255) * 0x01010101u;
    u64 i = 0;
    for (; i + 64 <= n; i += 64) *(u32x *)((char *)to + i) = word;
    for (; i < n; i++) ((volatile char *)to)[i] = (char)value;
    return to;
}

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// A thread that waits long gives its core away: another process may hold the core of the thread it waits for.
static inline void give_way(void) {
#if defined(__x86_64__) && defined(YIELD_SYSCALL)
    i64 result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(24L) : "rcx", "r11", "memory");
#else
    relax();
#endif
}

static void barrier(Worker *w) {
    u32 *arrived = w->s->sync, *generation = w->s->sync + 16;
    u32 now = __atomic_load_n(generation, __ATOMIC_ACQUIRE);
    if (w->thread == 0) __atomic_store_n(w->s->sync + 32 + 16 * ((w->phase + 1) % 3), 0, __ATOMIC_RELAXED);
    w->phase++;
    if (__atomic_add_fetch(arrived, 1, __ATOMIC_ACQ_REL) == (u32)w->s->threads) {
        __atomic_store_n(arrived, 0, __ATOMIC_RELAXED);
        __atomic_store_n(generation, now + 1, __ATOMIC_RELEASE);
        return;
    }
    for (u32 spins = 0; __atomic_load_n(generation, __ATOMIC_ACQUIRE) == now; spins++) {
        relax();
        if (spins > 4000) give_way();
    }
}

// How many claims of this phase came before.
static inline i64 next_ticket(Worker *w) { return __atomic_fetch_add(w->s->sync + 32 + 16 * (w->phase % 3), 1, __ATOMIC_RELAXED); }

// The next block of rows of this phase: [*from, *to), 0 where none is left.
static inline int claim(Worker *w, i64 rows, i64 block, i64 *from, i64 *to) {
    *from = next_ticket(w) * block;
    *to = *from + block < rows ? *from + block : rows;
    return *from < rows;
}

// As claim, in blocks that shrink: three quarters of what is left go to as many claims as there are threads, so that streams
// are long, and the last blocks are of `least` rows, so that all end at about the same time.
static inline int claim_shrinking(Worker *w, i64 rows, i64 least, i64 *from, i64 *to) {
    i64 ticket = next_ticket(w), at = 0, threads = w->s->threads;
    for (;;) {
        i64 block = (rows - at) * 3 / (4 * threads);
        if (block <= least) break;
        if (ticket < threads) {
            *from = at + ticket * block;
            *to = *from + block;
            return 1;
        }
        ticket -= threads;
        at += threads * block;
    }
    *from = at + ticket * least;
    *to = *from + least < rows ? *from + least : rows;
    return *from < rows;
}

static inline float sum(f32x v) {
    v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    return (v[0] + v[2]) + (v[1] + v[3]);
}

// The largest magnitude.
static float largest(const float *x, i64 n) {
    u32x top = {0};                                        // magnitudes order as their bits do
    i64 i = 0;
    for (; i + LANES <= n; i += LANES) {
        u32x v = *(const u32x *)(x + i) & 0x7fffffffu;
        top = __builtin_elementwise_max(v, top);
    }
    u32 most = 0, bits;
    for (int j = 0; j < LANES; j++) most = top[j] > most ? top[j] : most;
    for (; i < n; i++) {
        __builtin_memcpy(&bits, x + i, 4);
        bits &= 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    float value;
    __builtin_memcpy(&value, &most, 4);
    return value;
}

static inline float from_bf16(u16 x) { u32 b = (u32)x << 16; float f; __builtin_memcpy(&f, &b, 4); return f; }

static inline u16 to_bf16(float f) {
    u32 b;
    __builtin_memcpy(&b, &f, 4);
    return (u16)((b + 0x7fff + ((b >> 16) & 1)) >> 16);
}

// exp by 2^n * polynomial (degree 6 on [-ln2/2, ln2/2]); relative error below 2e-7
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float n = __builtin_floorf(x * 1.44269504089f + 0.5f), r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    u32 bits = (u32)((int)n + 127) << 23;
    float scale;
    __builtin_memcpy(&scale, &bits, 4);
    return p * scale;
}

static inline float tangent(float x) { return 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f); }

static inline float gelu(float x) { return 0.5f * x * (1.0f + tangent(0.7978845608f * (x + 0.044715f * x * x * x))); }

// natural logarithm of x > 0
static inline float logarithm(float x) {
    u32 bits;
    __builtin_memcpy(&bits, &x, 4);
    int e = (int)(bits >> 23) - 127;
    bits = (bits & 0x7fffff) | 0x3f800000;
    float m;
    __builtin_memcpy(&m, &bits, 4);
    if (m > 1.41421356f) { m *= 0.5f; e++; }
    float t = (m - 1) / (m + 1), t2 = t * t;
    return 2 * t * (1 + t2 * (1.0f / 3 + t2 * (1.0f / 5 + t2 * (1.0f / 7 + t2 / 9)))) + (float)e * 0.69314718056f;
}

// out = x / rms(x) [* weight]; out may be x
static void rms_norm(float *out, const float *x, const float *weight, i64 n, float eps) {
    f32x acc = {0};
    double total = 0;
    i64 i = 0;
    for (; i + LANES <= n; i += LANES) { f32x v = *(const f32x *)(x + i); acc += v * v; }
    for (int j = 0; j < LANES; j++) total += acc[j];
    for (; i < n; i++) total += (double)x[i] * x[i];
    float factor = 1.0f / __builtin_sqrtf((float)(total / (double)n) + eps);
    for (i = 0; i < n; i++) out[i] = x[i] * factor * (weight ? weight[i] : 1.0f);
}

