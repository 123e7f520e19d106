// Matrix times vector, row by row, at the speed of memory.

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

