// Matrix times vector, row by row, at the speed of memory.

// The operand of a product, laid out once per phase and thread for the storage type of the weights.
//   F32: as it is.  BF16: of each 32 values first the even ones, then the odd ones, to match the halves of a u32.
//   I8: v = x * 32512 / max|x| as whole numbers, exact to 2^-15: of 16 bits, or with VNNI as two int8 digits
//       v = 256 * high + low, the low digits behind the high ones.
typedef struct { const float *x; const i16 *whole; const i8 *high, *low; float scale; int sum_high, sum_low; } Operand;

#if defined(__AVX512VNNI__)
#define VNNI 1
#else
#define VNNI 0
#endif

static inline i32x nearest(f32x y) {                       // y + 0.5 of y's sign, cut
    return __builtin_convertvector(y + (f32x)(((u32x)y & 0x80000000u) | 0x3f000000u), i32x);
}

static Operand operand(const float *x, i64 n, i64 type, float *scratch) {
    Operand o = {x, 0, 0, 0, 0, 0, 0};
    i64 i = 0;
    if (type == BF16) {
        for (; i + 32 <= n; i += 32) {
            f32x low = *(const f32x *)(x + i), high = *(const f32x *)(x + i + 16);
            *(f32x *)(scratch + i) = __builtin_shufflevector(low, high, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            *(f32x *)(scratch + i + 16) = __builtin_shufflevector(low, high, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
        }
        for (; i < n; i++) scratch[i] = x[i];
        o.x = scratch;
    } else if (type == I8) {
        float top = largest(x, n), factor = top > 0 ? 32512.0f / top : 0;
        o.scale = top / 32512.0f;
#if VNNI
        i8 *high = (i8 *)scratch, *low = high + n;
        i32x sum_high = {0}, sum_low = {0};
        for (; i + 64 <= n; i += 64)
#pragma clang loop unroll(full)
            for (int j = 0; j < 64; j += LANES) {
                i32x v = nearest(*(const f32x *)(x + i + j) * factor), h = (v + 128) >> 8, l = v - (h << 8);
                *(i8x *)(high + i + j) = __builtin_convertvector(h, i8x);
                *(i8x *)(low + i + j) = __builtin_convertvector(l, i8x);
                sum_high += h;
                sum_low += l;
            }
        for (int j = 0; j < LANES; j++) { o.sum_high += sum_high[j]; o.sum_low += sum_low[j]; }
        for (; i < n; i++) {
            float y = x[i] * factor;
            int v = (int)(y < 0 ? y - 0.5f : y + 0.5f), h = (v + 128) >> 8;
            high[i] = (i8)h;
            low[i] = (i8)(v - 256 * h);
        }
        o.high = high;
        o.low = low;
#else
        i16 *whole = (i16 *)scratch;
        for (; i + LANES <= n; i += LANES) *(i16x *)(whole + i) = __builtin_convertvector(nearest(*(const f32x *)(x + i) * factor), i16x);
        for (; i < n; i++) { float y = x[i] * factor; whole[i] = (i16)(int)(y < 0 ? y - 0.5f : y + 0.5f); }
        o.whole = whole;
#endif
    }
    return o;
}

// Rows read side by side, and bytes fetched ahead of use. One row after the other is one plain stream, which the
// prefetchers of AMD's and ARM's processors follow at full speed and lose with each added row or fetch of ours
// (Zen 5, two threads that read 31 GB/s: 32, with two rows and fetches 21); Intel's want the two rows and the fetches
// (one with AMX: 32 GB/s against 28). build.py tells which.
#ifndef STREAMS
#define STREAMS 1
#define AHEAD 0
#endif
enum { MOST = 256 };                                       // rows of a block

static void dot_f32(const float *w, i64 n, const float *x, float *out) {
    f32x a = {0}, b = {0};
    i64 i = 0;
    float t = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        a += *(const f32x *)(w + i) * *(const f32x *)(x + i);
        b += *(const f32x *)(w + i + LANES) * *(const f32x *)(x + i + LANES);
    }
    for (; i < n; i++) t += w[i] * x[i];
    *out = sum(a + b) + t;
}

#define INLINE static inline __attribute__((always_inline))

INLINE void fetch(const void *w) {
    if (AHEAD) __builtin_prefetch((const char *)w + AHEAD);
}

// Sums of a row that grow side by side: each addition waits for the one before it, and long rows do not overlap. Where a
// vector is several registers it has that already.
#if defined(__AVX512F__)
enum { CHAINS = 4 / STREAMS };
#else
enum { CHAINS = 1 };
#endif

INLINE void dot_bf16(const u16 *w, int rows, i64 n, const float *x, float *out) {
    f32x even[STREAMS][CHAINS] = {{{0}}}, odd[STREAMS][CHAINS] = {{{0}}};
    i64 i = 0;
    for (; i + 32 * CHAINS <= n; i += 32 * CHAINS)
#pragma clang loop unroll(full)
        for (int c = 0; c < CHAINS; c++) {
            const i64 at = i + 32 * c;
            f32x x0 = *(const f32x *)(x + at), x1 = *(const f32x *)(x + at + 16);
#pragma clang loop unroll(full)
            for (int r = 0; r < rows; r++) {
                u32x pair = *(const u32x *)(w + r * n + at);
                fetch(w + r * n + at);
                even[r][c] += (f32x)(pair << 16) * x0;
                odd[r][c] += (f32x)(pair & 0xffff0000u) * x1;
            }
        }
    for (int r = 0; r < rows; r++) {
        float t = 0;
        i64 j = i;
        for (; j + 32 <= n; j += 32) {
            u32x pair = *(const u32x *)(w + r * n + j);
            even[r][0] += (f32x)(pair << 16) * *(const f32x *)(x + j);
            odd[r][0] += (f32x)(pair & 0xffff0000u) * *(const f32x *)(x + j + 16);
        }
        for (; j < n; j++) t += from_bf16(w[r * n + j]) * x[j];
        for (int c = 1; c < CHAINS; c++) even[r][0] += even[r][c], odd[r][0] += odd[r][c];
        out[r] = sum(even[r][0] + odd[r][0]) + t;
    }
}

#if VNNI
typedef long long v8 __attribute__((vector_size(64), aligned(1)));
typedef int v16 __attribute__((vector_size(64)));
static inline int add(i32x v) {
    v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    return (v[0] + v[2]) + (v[1] + v[3]);
}
INLINE v16 dot4(v16 acc, v16 unsigned_bytes, v16 signed_bytes) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(unsigned_bytes), "v"(signed_bytes));
    return acc;
}
INLINE void dot_i8(const i8 *w, int rows, i64 n, const Operand *o, float *out) {
    v16 a[STREAMS][CHAINS] = {{{0}}}, b[STREAMS][CHAINS] = {{{0}}};
    const v16 flip = (v16){0} + (int)0x80808080;           // w + 128 is unsigned, 128 is taken off again below
    i64 i = 0;
    for (; i + 64 * CHAINS <= n; i += 64 * CHAINS)
#pragma clang loop unroll(full)
        for (int c = 0; c < CHAINS; c++) {
            const i64 at = i + 64 * c;
            v16 xh = (v16)*(const v8 *)(o->high + at), xl = (v16)*(const v8 *)(o->low + at);
#pragma clang loop unroll(full)
            for (int r = 0; r < rows; r++) {
                v16 bytes = (v16)*(const v8 *)(w + r * n + at) ^ flip;
                fetch(w + r * n + at);
                a[r][c] = dot4(a[r][c], bytes, xh);
                b[r][c] = dot4(b[r][c], bytes, xl);
            }
        }
    for (int r = 0; r < rows; r++) {
        i64 j = i;
        for (; j + 64 <= n; j += 64) {
            v16 bytes = (v16)*(const v8 *)(w + r * n + j) ^ flip;
            a[r][0] = dot4(a[r][0], bytes, (v16)*(const v8 *)(o->high + j));
            b[r][0] = dot4(b[r][0], bytes, (v16)*(const v8 *)(o->low + j));
        }
        for (int c = 1; c < CHAINS; c++) a[r][0] += a[r][c], b[r][0] += b[r][c];
        int high = add(a[r][0]) - 128 * o->sum_high, low = add(b[r][0]) - 128 * o->sum_low;
        for (; j < n; j++) { high += w[r * n + j] * o->high[j]; low += w[r * n + j] * o->low[j]; }
        out[r] = 256.0f * (float)high + (float)low;
    }
}
#else
#if defined(__AVX2__)
typedef i16 v16h __attribute__((vector_size(32), aligned(2)));
typedef int v8w __attribute__((vector_size(32)));
// Sums of 32 products, by 8 lanes.
INLINE v8w products(const i8 *w, const i16 *x) {
    v16h a = __builtin_convertvector(*(const i8x *)w, v16h), b = __builtin_convertvector(*(const i8x *)(w + 16), v16h);
    return __builtin_ia32_pmaddwd256(a, *(const v16h *)x) + __builtin_ia32_pmaddwd256(b, *(const v16h *)(x + 16));
}
#else
typedef i32x v8w;
INLINE v8w products(const i8 *w, const i16 *x) {
    i32x a = __builtin_convertvector(__builtin_convertvector(*(const i8x *)w, i16x), i32x) * __builtin_convertvector(*(const i16x *)x, i32x);
    i32x b = __builtin_convertvector(__builtin_convertvector(*(const i8x *)(w + 16), i16x), i32x) * __builtin_convertvector(*(const i16x *)(x + 16), i32x);
    return a + b;
}
#endif
enum { LANES_EACH = sizeof(v8w) / 4, RUN = 128 * 32 };     // a lane takes 128 sums of at most 4 products below 2^22
INLINE void dot_i8(const i8 *w, int rows, i64 n, const Operand *o, float *out) {
    for (int r = 0; r < rows; r++, w += n) {
        i64 total = 0, i = 0;
        while (i + 32 <= n) {
            v8w sums = {0};
            for (i64 end = n - i < RUN ? n - 31 : i + RUN - 31; i < end; i += 32) {
                fetch(w + i);
                sums += products(w + i, o->whole + i);
            }
            for (int j = 0; j < LANES_EACH; j++) total += sums[j];
        }
        for (; i < n; i++) total += w[i] * o->whole[i];
        out[r] = (float)total;
    }
}
#endif

// out[0..rows) = rows from..from+rows of m times the operand
static void dot_rows(const Matrix *m, i64 from, i64 rows, const Operand *o, float *out) {
    i64 n = m->cols, r = 0;
    if (m->type == BF16) {
        const u16 *w = (const u16 *)m->data + from * n;
        for (; r + STREAMS <= rows; r += STREAMS) dot_bf16(w + r * n, STREAMS, n, o->x, out + r);
        for (; r < rows; r++) dot_bf16(w + r * n, 1, n, o->x, out + r);
    } else if (m->type == I8) {
        const i8 *w = (const i8 *)m->data + from * n;
        for (; r + STREAMS <= rows; r += STREAMS) dot_i8(w + r * n, STREAMS, n, o, out + r);
        for (; r < rows; r++) dot_i8(w + r * n, 1, n, o, out + r);
        for (r = 0; r < rows; r++) out[r] *= o->scale * m->scale[from + r];
    } else {
        for (; r < rows; r++) dot_f32((const float *)m->data + (from + r) * n, n, o->x, out + r);
    }
}

static float element(const Matrix *m, i64 row, i64 col) {
    i64 at = row * m->cols + col;
    if (m->type == BF16) return from_bf16(((const u16 *)m->data)[at]);
    if (m->type == I8) return (float)((const i8 *)m->data)[at] * m->scale[row];
    return ((const float *)m->data)[at];
}

// The fewest rows of a claim: 32 KB, since each block starts a stream anew (Zen 5: blocks of 12 KB at 66 % of the read rate, of
// 48 KB at 93 %, of 192 KB at 95 to 100 %).
static inline i64 least_of(const Matrix *m) { return 1 + 32768 / (m->cols * (m->type == I8 ? 1 : m->type == BF16 ? 2 : 4)); }

// Rows of a claim where blocks are alike.
static inline i64 block_of(const Matrix *m, i64 rows, i64 threads) {
    i64 least = least_of(m), block = rows / (threads * 8);
    block = block < least ? least : block;
    return block < MOST ? block : MOST;
}

// all rows of m, claimed in blocks, into out
static void spread(Worker *w, const Matrix *m, const Operand *o, float *out) {
    i64 from, to;
    while (claim_shrinking(w, m->rows, least_of(m), &from, &to)) dot_rows(m, from, to - from, o, out + from);
}

// out[i] = gelu(gate row i) * up row i of rows from .. from + count of each
static void gated(const Matrix *gate, i64 gate_at, const Matrix *up, i64 up_at, i64 count, const Operand *o, float *out) {
    dot_rows(gate, gate_at, count, o, out);
    for (i64 at = 0; at < count; at += MOST) {
        float other[MOST];
        i64 here = count - at < MOST ? count - at : MOST;
        dot_rows(up, up_at + at, here, o, other);
        for (i64 i = 0; i < here; i++) out[at + i] = gelu(out[at + i]) * other[i];
    }
}
