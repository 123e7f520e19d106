// One decode step of the text model as one call: every thread runs `decode_step`, rows of each product are claimed in
// blocks, and phases are apart by a barrier. Activations are fp32 throughout; weights stay as stored (fp32, bf16, or
// int8 with one scale per row); keys and values have the model's dtype. Freestanding: no libc, no mutable globals.
// Formulas follow transformers 5.23.0, models/gemma4/modeling_gemma4.py, as gemma4_core/model/layers.py does.

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define LANES 16
typedef float f32x __attribute__((vector_size(4 * LANES), aligned(4)));
typedef u32 u32x __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int i32x __attribute__((vector_size(4 * LANES), aligned(4)));
typedef u16 u16x __attribute__((vector_size(2 * LANES), aligned(2)));
typedef i8 i8x __attribute__((vector_size(LANES), aligned(1)));

enum { F32 = 0, BF16 = 1, I8 = 2 };                       // storage types
enum { MAX_EXPERTS = 16, HEAD_BLOCK = 256 };              // experts per token, rows of the head per claim

typedef struct { const void *data; const float *scale; i64 type, rows, cols; } Matrix;

typedef struct {
    Matrix q, k, v, o, gate, up, down;                    // v.data is 0 on K=V layers, k.data on shared layers
    Matrix ple_gate, ple_proj;
    Matrix router, expert_gate_up, expert_down;           // stacks: rows counts all experts
    const float *q_norm, *k_norm, *in_norm, *attn_norm, *pre_ff, *post_ff, *post_ff1, *pre_ff2, *post_ff2, *ple_norm;
    const float *router_scale, *expert_scale, *cos, *sin; // cos, sin: [positions, head_dim / 2]
    void *keys, *values;                                  // [kv heads, slots, head_dim] of the layer whose K/V are read
    float scalar;
    i64 head_dim, kv_heads, slots, window, ff;            // window 0: full attention
} Layer;

typedef struct {
    const Layer *layers;
    i64 layer_count, hidden, heads, vocab, ple, experts, top, expert_ff, kv_type, threads, greedy;
    float eps, embed_scale, ple_scale, softcap;           // softcap 0: none
    Matrix embed, ple_table, ple_model_proj;
    const float *ple_proj_norm, *norm;
    float *q, *k, *v, *mixed, *a, *b, *act, *ple_ctx, *ple_in, *scores, *dense, *router_out, *logits, *scratch;
    i64 scratch_per_thread;                               // floats
    u32 *token_in, *token_out;
    float *logprob_out, *partial;                         // partial: 4 floats a thread
    u32 *sync;                                            // zeroed once: [0] arrived, [16] generation, [32..48..64] tickets
    i64 suppressed_count;
    const u32 *suppressed;
} Step;

static void run_step(const Step *s, i64 position, i64 thread);

void decode_step(const Step *s, u64 position, u64 thread) { run_step(s, (i64)position, (i64)thread); }

// ---------------------------------------------------------------------------------------------- small things

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

typedef struct { const Step *s; i64 thread; u32 phase; } Worker;

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

// The next block of rows of this phase: [*from, *to), 0 where none is left.
static inline int claim(Worker *w, i64 rows, i64 block, i64 *from, i64 *to) {
    u32 ticket = __atomic_fetch_add(w->s->sync + 32 + 16 * (w->phase % 3), 1, __ATOMIC_RELAXED);
    *from = (i64)ticket * block;
    *to = *from + block < rows ? *from + block : rows;
    return *from < rows;
}

static inline float sum(f32x v) {
    float t = 0;
    for (int i = 0; i < LANES; i++) t += v[i];
    return t;
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

// ---------------------------------------------------------------------------------------------- products

// The operand of a product, laid out once per phase and thread for the storage type of the weights.
//   F32: as it is.  BF16: of each 32 values first the even ones, then the odd ones, to match the halves of a u32.
//   I8: two int8 digits v = 256 * high + low of x * 32512 / max|x|, exact to 2^-15; low digits follow the high ones.
typedef struct { const float *x; const i8 *high, *low; float scale; int sum_high, sum_low; } Operand;

static Operand operand(const float *x, i64 n, i64 type, float *scratch) {
    Operand o = {x, 0, 0, 0, 0, 0};
    if (type == BF16) {
        i64 i = 0;
        for (; i + 32 <= n; i += 32)
            for (int j = 0; j < 16; j++) { scratch[i + j] = x[i + 2 * j]; scratch[i + 16 + j] = x[i + 2 * j + 1]; }
        for (; i < n; i++) scratch[i] = x[i];
        o.x = scratch;
    } else if (type == I8) {
        i8 *high = (i8 *)scratch, *low = high + n;
        float top = 0;
        for (i64 i = 0; i < n; i++) { float a = x[i] < 0 ? -x[i] : x[i]; top = a > top ? a : top; }
        float factor = top > 0 ? 32512.0f / top : 0;
        for (i64 i = 0; i < n; i++) {
            float y = x[i] * factor;
            int v = (int)(y < 0 ? y - 0.5f : y + 0.5f), h = (v + 128) >> 8, l = v - 256 * h;
            high[i] = (i8)h;
            low[i] = (i8)l;
            o.sum_high += h;
            o.sum_low += l;
        }
        o.high = high;
        o.low = low;
        o.scale = top / 32512.0f;
    }
    return o;
}

#define ROWS 4
#define AHEAD 2048                                         // bytes fetched ahead of use

static void dot_f32(const float *w, i64 stride, int rows, i64 n, const float *x, float *out) {
    for (int r = 0; r < rows; r++) {
        const float *p = w + r * stride;
        f32x acc = {0};
        i64 i = 0;
        float t = 0;
        for (; i + LANES <= n; i += LANES) acc += *(const f32x *)(p + i) * *(const f32x *)(x + i);
        for (; i < n; i++) t += p[i] * x[i];
        out[r] = sum(acc) + t;
    }
}

static inline __attribute__((always_inline)) void dot_bf16(const u16 *w, i64 stride, int rows, i64 n, const float *x, float *out) {
    f32x acc[ROWS] = {{0}};
    const u32x mask = {0};
    i64 i = 0;
    for (; i + 32 <= n; i += 32) {
        f32x even = *(const f32x *)(x + i), odd = *(const f32x *)(x + i + 16);
#pragma clang loop unroll(full)
        for (int r = 0; r < rows; r++) {
            u32x pair = *(const u32x *)(w + r * stride + i);
            __builtin_prefetch((const char *)(w + r * stride + i) + AHEAD);
            acc[r] += (f32x)(pair << 16) * even;
            acc[r] += (f32x)(pair & (mask + 0xffff0000u)) * odd;
        }
    }
    for (int r = 0; r < rows; r++) {
        float t = 0;
        for (i64 j = i; j < n; j++) t += from_bf16(w[r * stride + j]) * x[j];
        out[r] = sum(acc[r]) + t;
    }
}

#if defined(__AVX512VNNI__)
typedef long long v8 __attribute__((vector_size(64), aligned(1)));
typedef int v16 __attribute__((vector_size(64)));
static inline __attribute__((always_inline)) v16 dot4(v16 acc, v16 unsigned_bytes, v16 signed_bytes) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(unsigned_bytes), "v"(signed_bytes));
    return acc;
}
static inline __attribute__((always_inline)) void dot_i8(const i8 *w, i64 stride, int rows, i64 n, const Operand *o, int *high, int *low) {
    v16 a[ROWS] = {{0}}, b[ROWS] = {{0}};
    const v16 flip = (v16){0} + (int)0x80808080;
    i64 i = 0;
    for (; i + 64 <= n; i += 64) {
        v16 xh = (v16)*(const v8 *)(o->high + i), xl = (v16)*(const v8 *)(o->low + i);
#pragma clang loop unroll(full)
        for (int r = 0; r < rows; r++) {
            v16 bytes = (v16)*(const v8 *)(w + r * stride + i) ^ flip;  // w + 128, taken off again below
            __builtin_prefetch((const char *)(w + r * stride + i) + AHEAD);
            a[r] = dot4(a[r], bytes, xh);
            b[r] = dot4(b[r], bytes, xl);
        }
    }
    int sh = 0, sl = 0;
    for (i64 j = 0; j < i; j++) { sh += o->high[j]; sl += o->low[j]; }
    for (int r = 0; r < rows; r++) {
        int th = -128 * sh, tl = -128 * sl;
        for (int j = 0; j < 16; j++) { th += a[r][j]; tl += b[r][j]; }
        for (i64 j = i; j < n; j++) { th += w[r * stride + j] * o->high[j]; tl += w[r * stride + j] * o->low[j]; }
        high[r] = th;
        low[r] = tl;
    }
}
#else
static inline __attribute__((always_inline)) void dot_i8(const i8 *w, i64 stride, int rows, i64 n, const Operand *o, int *high, int *low) {
    for (int r = 0; r < rows; r++) {
        const i8 *p = w + r * stride;
        i32x a = {0}, b = {0};
        i64 i = 0;
        for (; i + LANES <= n; i += LANES) {
            i32x v = __builtin_convertvector(*(const i8x *)(p + i), i32x);
            a += v * __builtin_convertvector(*(const i8x *)(o->high + i), i32x);
            b += v * __builtin_convertvector(*(const i8x *)(o->low + i), i32x);
        }
        int th = 0, tl = 0;
        for (int j = 0; j < LANES; j++) { th += a[j]; tl += b[j]; }
        for (; i < n; i++) { th += p[i] * o->high[i]; tl += p[i] * o->low[i]; }
        high[r] = th;
        low[r] = tl;
    }
}
#endif

// out[0..rows) = rows from..from+rows of m times the operand; at most ROWS rows
static void dot_rows(const Matrix *m, i64 from, int rows, const Operand *o, float *out) {
    i64 n = m->cols;
    if (m->type == BF16) {
        const u16 *w = (const u16 *)m->data + from * n;
        if (rows == ROWS) dot_bf16(w, n, ROWS, n, o->x, out);
        else for (int r = 0; r < rows; r++) dot_bf16(w + r * n, n, 1, n, o->x, out + r);
    } else if (m->type == I8) {
        const i8 *w = (const i8 *)m->data + from * n;
        int high[ROWS], low[ROWS];
        if (rows == ROWS) dot_i8(w, n, ROWS, n, o, high, low);
        else for (int r = 0; r < rows; r++) dot_i8(w + r * n, n, 1, n, o, high + r, low + r);
        for (int r = 0; r < rows; r++) out[r] = (256.0f * (float)high[r] + (float)low[r]) * o->scale * m->scale[from + r];
    } else {
        dot_f32((const float *)m->data + from * n, n, rows, n, o->x, out);
    }
}

// rows [from, to) of m into out[row - from]
static void product(const Matrix *m, i64 from, i64 to, const Operand *o, float *out) {
    for (i64 r = from; r < to; r += ROWS) dot_rows(m, r, (int)(to - r < ROWS ? to - r : ROWS), o, out + (r - from));
}

static float element(const Matrix *m, i64 row, i64 col) {
    i64 at = row * m->cols + col;
    if (m->type == BF16) return from_bf16(((const u16 *)m->data)[at]);
    if (m->type == I8) return (float)((const i8 *)m->data)[at] * m->scale[row];
    return ((const float *)m->data)[at];
}

static inline i64 block_of(i64 rows, i64 threads) {       // a few blocks per thread, whole groups of ROWS
    i64 block = rows / (threads * 6) / ROWS * ROWS;
    return block < ROWS ? ROWS : block > 256 ? 256 : block;
}

// all rows of m, claimed in blocks, into out
static void spread(Worker *w, const Matrix *m, const Operand *o, float *out) {
    i64 from, to;
    while (claim(w, m->rows, block_of(m->rows, w->s->threads), &from, &to)) product(m, from, to, o, out + from);
}

// out = gelu(gate rows) * up rows, rows offset + [0, count) of gate and of up
static void spread_gated(Worker *w, const Matrix *gate, i64 gate_at, const Matrix *up, i64 up_at, i64 count, const Operand *o, float *out) {
    i64 from, to;
    while (claim(w, count, block_of(count, w->s->threads), &from, &to))
        for (i64 r = from; r < to; r += ROWS) {
            int rows = (int)(to - r < ROWS ? to - r : ROWS);
            float g[ROWS], u[ROWS];
            dot_rows(gate, gate_at + r, rows, o, g);
            dot_rows(up, up_at + r, rows, o, u);
            for (int i = 0; i < rows; i++) out[r + i] = gelu(g[i]) * u[i];
        }
}

// ---------------------------------------------------------------------------------------------- attention

static void rotate(float *x, const float *cos, const float *sin, i64 n) {
    for (i64 i = 0; i < n / 2; i++) {
        float a = x[i], b = x[i + n / 2];
        x[i] = a * cos[i] - b * sin[i];
        x[i + n / 2] = b * cos[i] + a * sin[i];
    }
}

static inline f32x load_kv(const void *base, i64 at, i64 type) {
    if (type == BF16) return (f32x)(__builtin_convertvector(*(const u16x *)((const u16 *)base + at), u32x) << 16);
    return *(const f32x *)((const float *)base + at);
}

static inline float load_kv1(const void *base, i64 at, i64 type) {
    return type == BF16 ? from_bf16(((const u16 *)base)[at]) : ((const float *)base)[at];
}

static void store_kv(void *base, i64 at, i64 type, const float *x, i64 n) {
    for (i64 i = 0; i < n; i++) {
        if (type == BF16) ((u16 *)base)[at + i] = to_bf16(x[i]);
        else ((float *)base)[at + i] = x[i];
    }
}

enum { SLOTS = 64, GROUP = 8, SPLITS = 64 };              // slots per block, heads per pass, parts of a context

// How many positions each part of a context of n takes: whole blocks, at most SPLITS parts.
static inline i64 part_of(i64 n) {
    i64 blocks = (n + 255) / 256, each = (blocks + SPLITS - 1) / SPLITS;
    return 256 * each;
}

// Scores and values of `count` slots (<= SLOTS) for `heads` (<= GROUP) heads that share keys; online softmax state in
// top, total and out [heads][d].
static void attend_block(const Step *s, const Layer *l, i64 base, i64 at, i64 count, int heads, const float *q,
                         float *top, float *total, float *out) {
    i64 d = l->head_dim, type = s->kv_type, where[SLOTS];
    float score[GROUP][SLOTS], weight[GROUP][SLOTS];
    for (i64 j = 0; j < count; j++) where[j] = base + (l->window ? (at + j) % l->slots : at + j) * d;
    for (i64 j = 0; j < count; j++) {
        f32x acc[GROUP] = {{0}};
        float tail[GROUP] = {0};
        i64 i = 0;
        for (; i + LANES <= d; i += LANES) {
            f32x k = load_kv(l->keys, where[j] + i, type);
            for (int g = 0; g < heads; g++) acc[g] += k * *(const f32x *)(q + g * d + i);
        }
        for (; i < d; i++) for (int g = 0; g < heads; g++) tail[g] += load_kv1(l->keys, where[j] + i, type) * q[g * d + i];
        for (int g = 0; g < heads; g++) score[g][j] = sum(acc[g]) + tail[g];
    }
    for (int g = 0; g < heads; g++) {
        float best = top[g];
        for (i64 j = 0; j < count; j++) best = score[g][j] > best ? score[g][j] : best;
        float shrink = exponential(top[g] - best), added = 0;
        for (i64 j = 0; j < count; j++) weight[g][j] = exponential(score[g][j] - best);
        for (i64 j = 0; j < count; j++) added += weight[g][j];
        top[g] = best;
        total[g] = total[g] * shrink + added;
        for (i64 i = 0; i < d; i++) out[g * d + i] *= shrink;
    }
    i64 i = 0;
    for (; i + LANES <= d; i += LANES) {
        f32x acc[GROUP] = {{0}};
        for (i64 j = 0; j < count; j++) {
            f32x v = load_kv(l->values, where[j] + i, type);
            for (int g = 0; g < heads; g++) acc[g] += v * weight[g][j];
        }
        for (int g = 0; g < heads; g++) *(f32x *)(out + g * d + i) += acc[g];
    }
    for (; i < d; i++)
        for (i64 j = 0; j < count; j++)
            for (int g = 0; g < heads; g++) out[g * d + i] += load_kv1(l->values, where[j] + i, type) * weight[g][j];
}

// One part of the context for all heads of one kv head; result in the parts buffer: [head][part][d + 2].
static void attend_part(const Step *s, const Layer *l, i64 kv, i64 part, i64 parts, i64 from, i64 to, float *scratch) {
    i64 d = l->head_dim, group = s->heads / l->kv_heads;
    for (i64 first = 0; first < group; first += GROUP) {
        int heads = (int)(group - first < GROUP ? group - first : GROUP);
        i64 head = kv * group + first;
        float top[GROUP], total[GROUP];
        for (int g = 0; g < heads; g++) { top[g] = -1e30f; total[g] = 0; }
        for (i64 i = 0; i < heads * d; i++) scratch[i] = 0;
        for (i64 at = from; at < to; at += SLOTS)
            attend_block(s, l, kv * l->slots * d, at, to - at < SLOTS ? to - at : SLOTS, heads, s->q + head * d, top, total, scratch);
        for (int g = 0; g < heads; g++) {
            float *mine = s->scores + ((head + g) * parts + part) * (d + 2);
            mine[0] = top[g];
            mine[1] = total[g];
            for (i64 i = 0; i < d; i++) mine[2 + i] = scratch[g * d + i];
        }
    }
}

static void merge_parts(const Step *s, i64 d, i64 head, i64 parts) {
    const float *each = s->scores + head * parts * (d + 2);
    float top = -1e30f, total = 0, *out = s->mixed + head * d;
    for (i64 p = 0; p < parts; p++) top = each[p * (d + 2)] > top ? each[p * (d + 2)] : top;
    for (i64 i = 0; i < d; i++) out[i] = 0;
    for (i64 p = 0; p < parts; p++) {
        const float *part = each + p * (d + 2);
        float share = exponential(part[0] - top);
        total += part[1] * share;
        for (i64 i = 0; i < d; i++) out[i] += part[2 + i] * share;
    }
    for (i64 i = 0; i < d; i++) out[i] /= total;
}

// Norms and rotation of this position's K and V, and their place in the cache; one thread per kv head.
static void write_kv(const Step *s, const Layer *l, i64 position, i64 head) {
    i64 d = l->head_dim, slot = l->window ? position % l->slots : position, where = (head * l->slots + slot) * d;
    float *k = s->k + head * d, *v = s->v + head * d;
    rms_norm(v, l->v.data ? v : k, 0, d, s->eps);
    rms_norm(k, k, l->k_norm, d, s->eps);
    rotate(k, l->cos + position * (d / 2), l->sin + position * (d / 2), d);
    store_kv(l->keys, where, s->kv_type, k, d);
    store_kv(l->values, where, s->kv_type, v, d);
}

// Rows of q, k and v as one phase.
static void spread_qkv(Worker *w, const Layer *l, const float *x, float *packed) {
    const Step *s = w->s;
    const Matrix *each[3] = {&l->q, &l->k, &l->v};
    float *out[3] = {s->q, s->k, s->v};
    i64 rows = l->q.rows + (l->k.data ? l->k.rows : 0) + (l->v.data ? l->v.rows : 0), block = block_of(rows, s->threads), ticket, end;
    Operand o = operand(x, s->hidden, l->q.type, packed);
    i64 type = l->q.type, blocks[3], count = 0;
    for (int i = 0; i < 3; i++) count += blocks[i] = each[i]->data ? (each[i]->rows + block - 1) / block : 0;
    while (claim(w, count, 1, &ticket, &end)) {
        int i = 0;
        while (ticket >= blocks[i]) ticket -= blocks[i++];
        if (each[i]->type != type) o = operand(x, s->hidden, type = each[i]->type, packed);
        i64 from = ticket * block, to = from + block < each[i]->rows ? from + block : each[i]->rows;
        product(each[i], from, to, &o, out[i] + from);
    }
    barrier(w);
}

static void attention(Worker *w, const Layer *l, i64 position, const float *h, float *scratch) {
    const Step *s = w->s;
    i64 d = l->head_dim, from, to;
    float *x = scratch, *packed = scratch + s->hidden;
    rms_norm(x, h, l->in_norm, s->hidden, s->eps);
    spread_qkv(w, l, x, packed);
    i64 own = l->k.data ? l->kv_heads : 0;
    while (claim(w, own + s->heads, 1, &from, &to)) {
        if (from < own) { write_kv(s, l, position, from); continue; }
        float *q = s->q + (from - own) * d;
        rms_norm(q, q, l->q_norm, d, s->eps);
        rotate(q, l->cos + position * (d / 2), l->sin + position * (d / 2), d);
    }
    barrier(w);
    i64 first = l->window && position + 1 > l->window ? position + 1 - l->window : 0;
    i64 seen = position + 1 - first, size = part_of(seen), parts = (seen + size - 1) / size;
    while (claim(w, l->kv_heads * parts, 1, &from, &to)) {
        i64 kv = from / parts, part = from % parts, begin = first + part * size;
        attend_part(s, l, kv, part, parts, begin, begin + size < position + 1 ? begin + size : position + 1, packed);
    }
    barrier(w);
    while (claim(w, s->heads, 1, &from, &to)) merge_parts(s, d, from, parts);
    barrier(w);
    Operand o = operand(s->mixed, s->heads * d, l->o.type, packed);
    spread(w, &l->o, &o, s->a);
    barrier(w);
}

// ---------------------------------------------------------------------------------------------- feed-forward

// Every thread keeps the same stream; thread 0's is the shared one. h += rms(x) * weight.
static void add_normed(const Step *s, float *h, const float *x, const float *weight, float *scratch) {
    rms_norm(scratch, x, weight, s->hidden, s->eps);
    for (i64 i = 0; i < s->hidden; i++) h[i] += scratch[i];
}

static void top_experts(const Step *s, const Layer *l, i64 *chosen, float *weight) {
    float best = -1e30f, total = 0, picked = 0;
    for (i64 e = 0; e < s->experts; e++) best = s->router_out[e] > best ? s->router_out[e] : best;
    for (i64 e = 0; e < s->experts; e++) total += exponential(s->router_out[e] - best);
    for (i64 k = 0; k < s->top; k++) {
        i64 at = -1;
        for (i64 e = 0; e < s->experts; e++) {
            int taken = 0;
            for (i64 j = 0; j < k; j++) taken |= chosen[j] == e;
            if (!taken && (at < 0 || s->router_out[e] > s->router_out[at])) at = e;
        }
        chosen[k] = at;
        weight[k] = exponential(s->router_out[at] - best) / total;
        picked += weight[k];
    }
    for (i64 k = 0; k < s->top; k++) weight[k] = weight[k] / picked * l->expert_scale[chosen[k]];
}

// The mixture of experts of stream h into s->b (unnormalised sum); uses the dense branch's barrier rhythm.
static void experts(Worker *w, const Layer *l, const float *h, float *scratch) {
    const Step *s = w->s;
    i64 n = s->hidden, chosen[MAX_EXPERTS], from, to, ff = s->expert_ff;
    float weight[MAX_EXPERTS], *x = scratch, *packed = scratch + n, root = 1.0f / __builtin_sqrtf((float)n);
    rms_norm(x, h, 0, n, s->eps);
    for (i64 i = 0; i < n; i++) x[i] *= l->router_scale[i] * root;
    Operand o = operand(x, n, l->router.type, packed);
    spread(w, &l->router, &o, s->router_out);
    barrier(w);
    top_experts(s, l, chosen, weight);
    rms_norm(x, h, l->pre_ff2, n, s->eps);
    o = operand(x, n, l->expert_gate_up.type, packed);
    i64 block = block_of(ff, 1), blocks = (ff + block - 1) / block;
    while (claim(w, s->top * blocks, 1, &from, &to)) {
        i64 k = from / blocks, begin = from % blocks * block, end = begin + block < ff ? begin + block : ff;
        for (i64 r = begin; r < end; r += ROWS) {
            int rows = (int)(end - r < ROWS ? end - r : ROWS);
            float g[ROWS], u[ROWS];
            dot_rows(&l->expert_gate_up, chosen[k] * 2 * ff + r, rows, &o, g);
            dot_rows(&l->expert_gate_up, chosen[k] * 2 * ff + ff + r, rows, &o, u);
            for (int i = 0; i < rows; i++) s->act[k * ff + r + i] = gelu(g[i]) * u[i];
        }
    }
    barrier(w);
    Operand each[MAX_EXPERTS];
    for (i64 k = 0; k < s->top; k++) each[k] = operand(s->act + k * ff, ff, l->expert_down.type, packed + k * ff);
    while (claim(w, n, block_of(n, s->threads), &from, &to))
        for (i64 r = from; r < to; r += ROWS) {
            int rows = (int)(to - r < ROWS ? to - r : ROWS);
            float total[ROWS] = {0}, part[ROWS];
            for (i64 k = 0; k < s->top; k++) {
                dot_rows(&l->expert_down, chosen[k] * n + r, rows, &each[k], part);
                for (int i = 0; i < rows; i++) total[i] += part[i] * weight[k];
            }
            for (int i = 0; i < rows; i++) s->b[r + i] = total[i];
        }
    barrier(w);
}

static void feed_forward(Worker *w, const Layer *l, float *h, float *scratch) {
    const Step *s = w->s;
    i64 n = s->hidden;
    float *x = scratch, *packed = scratch + n;
    if (s->experts) experts(w, l, h, scratch);
    rms_norm(x, h, l->pre_ff, n, s->eps);
    Operand o = operand(x, n, l->gate.type, packed);
    spread_gated(w, &l->gate, 0, &l->up, 0, l->ff, &o, s->act);
    barrier(w);
    o = operand(s->act, l->ff, l->down.type, packed);
    spread(w, &l->down, &o, s->a);
    barrier(w);
    if (s->experts) {
        rms_norm(x, s->a, l->post_ff1, n, s->eps);
        rms_norm(packed, s->b, l->post_ff2, n, s->eps);
        for (i64 i = 0; i < n; i++) x[i] += packed[i];
        add_normed(s, h, x, l->post_ff, packed);
    } else {
        add_normed(s, h, s->a, l->post_ff, x);
    }
}

static void per_layer(Worker *w, const Layer *l, i64 index, float *h, float *scratch) {
    const Step *s = w->s;
    float *packed = scratch;
    i64 from, to;
    Operand o = operand(h, s->hidden, l->ple_gate.type, packed);
    while (claim(w, s->ple, block_of(s->ple, s->threads), &from, &to)) {
        product(&l->ple_gate, from, to, &o, s->act + from);
        for (i64 i = from; i < to; i++) s->act[i] = gelu(s->act[i]) * s->ple_in[index * s->ple + i];
    }
    barrier(w);
    o = operand(s->act, s->ple, l->ple_proj.type, packed);
    spread(w, &l->ple_proj, &o, s->a);
    barrier(w);
    add_normed(s, h, s->a, l->ple_norm, packed);
}

// ---------------------------------------------------------------------------------------------- the step

static void embed(Worker *w, u32 token, float *h, float *scratch) {
    const Step *s = w->s;
    i64 from, to;
    for (i64 i = 0; i < s->hidden; i++) h[i] = element(&s->embed, token, i) * s->embed_scale;
    if (!s->ple) return;
    Operand o = operand(h, s->hidden, s->ple_model_proj.type, scratch);
    spread(w, &s->ple_model_proj, &o, s->ple_ctx);
    barrier(w);
    float root = 1.0f / __builtin_sqrtf((float)s->hidden);
    while (claim(w, s->layer_count, 1, &from, &to)) {
        float *context = s->ple_ctx + from * s->ple;
        for (i64 i = 0; i < s->ple; i++) context[i] *= root;
        rms_norm(context, context, s->ple_proj_norm, s->ple, s->eps);
        for (i64 i = 0; i < s->ple; i++) {
            float row = element(&s->ple_table, token, from * s->ple + i) * s->ple_scale;
            s->ple_in[from * s->ple + i] = (context[i] + row) * 0.70710678f;
        }
    }
    barrier(w);
}

// Logits of all rows; with greedy also the first largest and the logarithm of the sum of exponentials.
static void head(Worker *w, const float *h, float *scratch) {
    const Step *s = w->s;
    i64 from, to, best = -1;
    float *x = scratch, *packed = scratch + s->hidden, top = -1e30f, total = 0;
    rms_norm(x, h, s->norm, s->hidden, s->eps);
    Operand o = operand(x, s->hidden, s->embed.type, packed);
    while (claim(w, s->vocab, HEAD_BLOCK, &from, &to)) {
        product(&s->embed, from, to, &o, s->logits + from);
        float high = -1e30f, shares[HEAD_BLOCK];
        if (s->softcap > 0) for (i64 i = from; i < to; i++) s->logits[i] = s->softcap * tangent(s->logits[i] / s->softcap);
        for (i64 j = 0; j < s->suppressed_count; j++)
            if ((i64)s->suppressed[j] >= from && (i64)s->suppressed[j] < to) s->logits[s->suppressed[j]] = -1e30f;
        for (i64 i = from; i < to; i++) high = s->logits[i] > high ? s->logits[i] : high;
        if (!s->greedy) continue;
        for (i64 i = from; i < to; i++) if (s->logits[i] == high) {
            if (high > top || (high == top && i < best)) best = i;
            break;
        }
        if (high > top) { total *= exponential(top - high); top = high; }
        for (i64 i = from; i < to; i++) shares[i - from] = exponential(s->logits[i] - top);
        for (i64 i = 0; i < to - from; i++) total += shares[i];
    }
    float *mine = s->partial + w->thread * 16;
    mine[0] = top;
    mine[1] = total;
    ((u32 *)mine)[2] = (u32)best;
    barrier(w);
    if (w->thread) return;
    for (int i = 0; i < 3; i++) s->sync[32 + 16 * i] = 0;  // tickets of the next step
    if (!s->greedy) return;
    for (i64 t = 1; t < s->threads; t++) {
        const float *other = s->partial + t * 16;
        u32 id = ((const u32 *)other)[2];
        if (id == (u32)-1) continue;
        if (best < 0 || other[0] > top || (other[0] == top && (i64)id < best)) best = id;
        float high = other[0] > top ? other[0] : top;
        total = total * exponential(top - high) + other[1] * exponential(other[0] - high);
        top = high;
    }
    *s->token_out = (u32)best;
    *s->logprob_out = -logarithm(total);
}

static void run_step(const Step *s, i64 position, i64 thread) {
    Worker w = {s, thread, 0};
    float *h = s->scratch + thread * s->scratch_per_thread, *scratch = h + s->hidden;
    embed(&w, *s->token_in, h, scratch);
    for (i64 i = 0; i < s->layer_count; i++) {
        const Layer *l = s->layers + i;
        attention(&w, l, position, h, scratch);
        add_normed(s, h, s->a, l->attn_norm, scratch);
        feed_forward(&w, l, h, scratch);
        if (s->ple) per_layer(&w, l, i, h, scratch);
        for (i64 j = 0; j < s->hidden; j++) h[j] *= l->scalar;
    }
    head(&w, h, scratch);
}
