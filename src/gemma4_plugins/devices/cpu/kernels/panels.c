// Matrix times matrix for prefill: out[m][n] = x[m] . w[n]. Panels of 64 weight rows are packed block by block (pairs of
// columns side by side), then every row of x runs over the packed block from registers. Weights stay as stored and are
// widened while packing; int8 scales are applied at the end.

enum { PANEL = 64, DEPTH = 256, TILE = 6 };                // weight rows, columns per block, rows of x per tile

#if AMX || defined(__AVX512BF16__) && !defined(SLOW_PAIRS)
#define PAIRS 1                                            // x and packed weights in bf16, two columns per 32 bits
#else
#define PAIRS 0
#endif

#if defined(__AVX512F__)
enum { VECTORS = 4 };                                      // of a panel at a time: TILE times that many sums fit into registers
#define WIDEST __attribute__((min_vector_width(512)))      // for Intel's, compilers would make two halves of each, which do not
#else
enum { VECTORS = 1 };
#define WIDEST
#endif

typedef struct { const void *x; i64 rows, stride; int pairs; } Rows;   // stride in elements, padded to whole pairs

static inline i64 row_stride(i64 cols) { return (cols + 31) & ~31LL; }

// Rows of fp32 x made ready: bf16 where `use_pairs` says so, else fp32.
static void ready_row(void *out, const float *x, i64 cols, int pairs) {
    i64 stride = row_stride(cols);
    if (pairs) for (i64 i = 0; i < stride; i++) ((u16 *)out)[i] = i < cols ? to_bf16(x[i]) : 0;
    else for (i64 i = 0; i < stride; i++) ((float *)out)[i] = i < cols ? x[i] : 0;
}

// An fp32 model keeps its activations in fp32, whatever its weights are stored as.
static inline int use_pairs(const Step *s, i64 type) { return PAIRS && type != F32 && s->kv_type != F32; }
static inline void *row_at(const void *x, i64 row, i64 stride, int pairs) { return (char *)x + row * stride * (pairs ? 2 : 4); }

// 16 words of a weight row from `col` on: pairs of bf16 (32 columns), or fp32 values (16 columns); zeros past the edge.
static inline u32x words(const Matrix *m, i64 row, i64 col, int pairs) {
    u32x out = {0};
    i64 left = m->cols - col, at = row * m->cols + col;
    if (pairs) {
        if (m->type == BF16 && left >= 32) return *(const u32x *)((const u16 *)m->data + at);
        if (m->type == I8 && left >= 32) {                 // int8 values are exact in bf16
            i32x both = (i32x)__builtin_convertvector(*(const u16x *)((const i8 *)m->data + at), u32x);
            u32x low = (u32x)__builtin_convertvector((both << 24) >> 24, f32x), high = (u32x)__builtin_convertvector((both << 16) >> 24, f32x);
            return low >> 16 | (high & 0xffff0000u);
        }
        for (int i = 0; i < 16; i++) {
            u32 low = 0, high = 0;
            if (m->type == BF16) {
                low = 2 * i < left ? ((const u16 *)m->data)[at + 2 * i] : 0;
                high = 2 * i + 1 < left ? ((const u16 *)m->data)[at + 2 * i + 1] : 0;
            } else {
                low = 2 * i < left ? to_bf16(((const i8 *)m->data)[at + 2 * i]) : 0;
                high = 2 * i + 1 < left ? to_bf16(((const i8 *)m->data)[at + 2 * i + 1]) : 0;
            }
            out[i] = low | high << 16;
        }
        return out;
    }
    if (m->type == F32 && left >= 16) return *(const u32x *)((const float *)m->data + at);
    if (m->type == BF16 && left >= 16) return __builtin_convertvector(*(const u16x *)((const u16 *)m->data + at), u32x) << 16;
    if (m->type == I8 && left >= 16) return (u32x)__builtin_convertvector(*(const i8x *)((const i8 *)m->data + at), f32x);
    f32x f = {0};
    for (int i = 0; i < 16 && i < left; i++)
        f[i] = m->type == F32 ? ((const float *)m->data)[at + i] : m->type == BF16 ? from_bf16(((const u16 *)m->data)[at + i]) : (float)((const i8 *)m->data)[at + i];
    return (u32x)f;
}

// Where a packed block holds a word of the columns for 16 rows from `row` on: [word][PANEL], as tile() reads them, or for
// tile registers [PANEL / 16][word][16].
static inline u32 *packed_at(u32 *packed, i64 word, i64 row, int pairs) {
    return AMX && pairs ? packed + (row / 16 * DEPTH + word) * 16 : packed + word * PANEL + row;
}

// Pack rows [from, from + PANEL) of columns [col, col + DEPTH).
static void pack(const Matrix *m, i64 from, i64 end, i64 col, i64 words_count, int pairs, u32 *out) {
    for (i64 k = 0; k < words_count; k += 16)
        for (int j = 0; j < PANEL; j += 16) {
            u32x r[16];
            for (int i = 0; i < 16; i++) {
                i64 row = from + j + i;
                r[i] = row < end ? words(m, row, col + k * (pairs ? 2 : 1), pairs) : (u32x){0};
            }
            transpose(r);
            for (int i = 0; i < 16; i++) *(u32x *)packed_at(out, k + i, j, pairs) = r[i];
        }
}

#if PAIRS && !AMX
INLINE f32x pairs_of_words(f32x acc, u32x w, u32x x) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
    return acc;
}
#else
INLINE f32x pairs_of_words(f32x acc, u32x w, u32x x) { return acc; }
#endif

// rows (<= TILE) rows of x against a packed block: out[r][0..PANEL) (+)= ...
INLINE WIDEST void tile(const u32 *packed, i64 count, const Rows *x, i64 row, i64 word, int rows, int pairs, float *out, int first) {
    f32x acc[TILE][VECTORS];
    const u32 *p[TILE];
#pragma clang loop unroll(full)
    for (int r = 0; r < rows; r++) {
        p[r] = (const u32 *)row_at(x->x, row + r, x->stride, pairs) + word;
        for (int j = 0; j < VECTORS; j++) acc[r][j] = first ? (f32x){0} : *(const f32x *)(out + r * PANEL + j * LANES);
    }
    for (i64 k = 0; k < count; k++) {
        u32x w[VECTORS];
        for (int j = 0; j < VECTORS; j++) w[j] = *(const u32x *)(packed + k * PANEL + j * LANES);
#pragma clang loop unroll(full)
        for (int r = 0; r < rows; r++)
            for (int j = 0; j < VECTORS; j++) {
                if (pairs) acc[r][j] = pairs_of_words(acc[r][j], w[j], (u32x){0} + p[r][k]);
                else { float f; __builtin_memcpy(&f, p[r] + k, 4); acc[r][j] += (f32x)w[j] * f; }
            }
    }
#pragma clang loop unroll(full)
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < VECTORS; j++) *(f32x *)(out + r * PANEL + j * LANES) = acc[r][j];
}

// Bytes of weight rows that will be packed next, brought into the cache bit by bit beside the work at hand.
typedef struct { const char *from; i64 stride, bytes; int rows; } Ahead;

static inline void bring(const Ahead *a, i64 part, i64 parts) {
    i64 lines = a->bytes / 64, all = lines * a->rows;
    for (i64 i = all * part / parts; i < all * (part + 1) / parts; i++) __builtin_prefetch(a->from + i / lines * a->stride + i % lines * 64, 0, 2);
}

#if AMX
static void register_tiles(const u32 *packed, i64 count, const Rows *x, i64 word, float *sums, int first, const Ahead *ahead) {
    i64 blocks = (x->rows + TILE_ROWS - 1) / TILE_ROWS, parts = blocks * (PANEL / TILE_COLUMNS);
    Tiles t;
    t.product_rows = 0;
    for (i64 part = 0; part < parts; part++) {             // columns outermost: their words stay in the first cache
        i64 column = part / blocks * TILE_COLUMNS, r = part % blocks * TILE_ROWS, rows = x->rows - r < TILE_ROWS ? x->rows - r : TILE_ROWS;
        if (ahead) bring(ahead, part, parts);
        multiply_tiles(&t, rows, count, (const u32 *)row_at(x->x, r, x->stride, 1) + word, x->stride * 2, packed + column * DEPTH, 16 * DEPTH, sums + r * PANEL + column, PANEL * 4, first);
    }
    TILE_RELEASE(&t);
}
#endif

// All rows of x against a packed block of `count` words: sums[row][PANEL] (+)= ...
static WIDEST void tiles(const u32 *packed, i64 count, const Rows *x, i64 word, float *sums, int first, const Ahead *ahead) {
#if AMX
    if (x->pairs) {
        register_tiles(packed, count, x, word, sums, first, ahead);
        return;
    }
#endif
    for (i64 r = 0; r < x->rows; r += TILE) {
        if (ahead) bring(ahead, r / TILE, (x->rows + TILE - 1) / TILE);
        float *out = sums + r * PANEL;
        int rows = (int)(x->rows - r < TILE ? x->rows - r : TILE);
        for (int j = 0; j < PANEL; j += VECTORS * LANES)
            if (rows == TILE) {
                if (x->pairs) tile(packed + j, count, x, r, word, TILE, 1, out + j, first);
                else tile(packed + j, count, x, r, word, TILE, 0, out + j, first);
            } else for (int i = 0; i < rows; i++) {
                if (x->pairs) tile(packed + j, count, x, r + i, word, 1, 1, out + i * PANEL + j, first);
                else tile(packed + j, count, x, r + i, word, 1, 0, out + i * PANEL + j, first);
            }
    }
}

// Where the block after this one lies: further columns of the same rows, else the first ones of rows to come.
static inline Ahead after(const Matrix *m, i64 from, i64 col, i64 step, i64 next) {
    i64 item = m->type == F32 ? 4 : m->type == BF16 ? 2 : 1;
    if (col + step >= m->cols) from = next, col = 0; else col += step;
    i64 rows = m->rows - from < PANEL ? m->rows - from : PANEL, cols = m->cols - col < step ? m->cols - col : step;
    return (Ahead){(const char *)m->data + (from * m->cols + col) * item, m->cols * item, cols * item, rows > 0 ? (int)rows : 0};
}

// All rows of x against weight rows [from, from + PANEL): sums[row][PANEL]. packed: DEPTH * PANEL words. `next` are the
// rows that this thread will probably have after these.
static void panel(const Matrix *m, i64 from, i64 next, const Rows *x, u32 *packed, float *sums) {
    i64 end = from + PANEL < m->rows ? from + PANEL : m->rows, all = x->pairs ? x->stride / 2 : (m->cols + 15) & ~15LL;
    for (i64 word = 0; word < all; word += DEPTH) {
        i64 count = all - word < DEPTH ? all - word : DEPTH, each = x->pairs ? 2 : 1;
        Ahead ahead = after(m, from, word * each, DEPTH * each, next);
        pack(m, from, end, word * each, count, x->pairs, packed);
        tiles(packed, count, x, word, sums, word == 0, &ahead);
    }
    if (m->scale) for (i64 r = 0; r < x->rows; r++) for (i64 n = from; n < end; n++) sums[r * PANEL + n - from] *= m->scale[n];
}
