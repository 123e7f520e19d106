// Products of a few rows: weights are read in place, once for all rows of x, and not packed. Rows of x are made ready in
// one of the forms below; which one suits is told by `form_of`. Sums go to out[row of x][weight row].

enum { PANELS, PLAIN, DIGITS, TILES };                     // PANELS is that of panels.c; PLAIN are the same rows

// The most rows that cost less in place than in panels, measured on layers of E2B: on a Xeon with tile registers both cost
// the same at some 64 rows, in its vectors of 512 bits at 40, and in those of 256 bits at 25.
#if AMX
enum { FEW = 64 };
#elif defined(__AVX512F__)
enum { FEW = 32 };
#else
enum { FEW = 24 };
#endif

// Digits of an int8 product's row: its scale, and the sums of its digits.
typedef struct { float scale; int high, low, unused; } Marks;

typedef struct {
    Rows rows;                                             // PANELS, PLAIN: the rows; else their number and a row's pitch in `stride` words
    int form;
    const Marks *marks;                                    // [row], of int8 in DIGITS and TILES
    const u32 *tiles;                                      // [16 rows each][high, low][word][16]
} Ready;

// Fewer rows than these go faster through vectors, which read four weight rows at a time where tiles read 32 (E2B, two threads of
// that Xeon by turns: 2 rows at 1.7 and 1.5 times the tokens of one, 4 at 3.6 and 2.9).
enum { LEAST_IN_TILES = 5 };

#if AMX && VNNI && defined(TILE_PRODUCT_I8)
#define WHOLE_TILES 1
#else
#define WHOLE_TILES 0
#endif

// Words of a row of weights as tile registers multiply them: two of bf16, four of int8.
static inline i64 words_of(const Matrix *m) { return m->cols / (m->type == I8 ? 4 : 2); }

static int form_for(const Step *s, i64 count, const Matrix *m) {
    if (count > FEW) return PANELS;
    if (m->type == I8 && s->kv_type == F32) return PLAIN;    // digits of x are exact to 2^-15, which is little in fp32
    if (WHOLE_TILES && count >= LEAST_IN_TILES && m->type == I8 && m->cols % 64 == 0) return TILES;
    if (AMX && count >= LEAST_IN_TILES && m->type == BF16 && s->kv_type != F32 && m->cols % 32 == 0) return TILES;
    return VNNI && m->type == I8 ? DIGITS : PLAIN;
}

// The form of rows that are multiplied with all of these; matrices without data do not count. PLAIN serves any mixture.
static int form_of(const Step *s, i64 count, const Matrix *a, const Matrix *b, const Matrix *c) {
    int form = form_for(s, count, a);
    if (form == PANELS || (!b->data || b->type == a->type) && (!c->data || c->type == a->type)) return form;
    return PLAIN;
}

// Whether the rows of a form are pairs of bf16. AMX is not asked in PLAIN: its processors are slow at pairs in vectors.
static inline int pairs_in(const Step *s, int form, i64 type) { return form == PANELS ? use_pairs(s, type) : form == PLAIN && !AMX && use_pairs(s, type); }

// Words of a full vector of weights, as `words` gives them.
INLINE u32x full_words(const char *at, int type, int pairs) {
    if (pairs && type == BF16) return *(const u32x *)at;
    if (pairs) {
        i32x both = (i32x)__builtin_convertvector(*(const u16x *)at, u32x);
        u32x low = (u32x)__builtin_convertvector((both << 24) >> 24, f32x), high = (u32x)__builtin_convertvector((both << 16) >> 24, f32x);
        return low >> 16 | (high & 0xffff0000u);
    }
    if (type == F32) return *(const u32x *)at;
    if (type == BF16) return __builtin_convertvector(*(const u16x *)at, u32x) << 16;
    return (u32x)__builtin_convertvector(*(const i8x *)at, f32x);
}

#if defined(__AVX512F__)
enum { SIDE_BY_SIDE = 4, DIGIT_ROWS = 2 };                 // weight rows at a time; times OPERANDS sums fit into registers
#else
enum { SIDE_BY_SIDE = 1, DIGIT_ROWS = 1 };
#endif
enum { OPERANDS = 4 };

static inline i64 bytes_of(i64 type) { return type == F32 ? 4 : type == BF16 ? 2 : 1; }

// The lines of the weight rows to come are fetched in equal parts by the groups of rows of x.
INLINE void fetch_next(const char *at, i64 next, int row, i64 part, i64 parts) { if (row % parts == part) __builtin_prefetch(at + next, 0, 2); }

INLINE WIDEST void few_tile(const Matrix *m, i64 row, int rows, int type, const Rows *x, i64 at, int operands, int pairs, i64 part, i64 parts, float *out, i64 stride) {
    f32x acc[SIDE_BY_SIDE][OPERANDS];
    const i64 n = m->cols, item = bytes_of(type), each = pairs ? 2 * LANES : LANES;
    const char *w = (const char *)m->data + row * n * item, *p[OPERANDS];
    i64 k = 0;
    for (int o = 0; o < operands; o++) p[o] = (const char *)row_at(x->x, at + o, x->stride, pairs);
    for (int r = 0; r < rows; r++) for (int o = 0; o < operands; o++) acc[r][o] = (f32x){0};
    for (; k + 2 * LANES <= n; k += 2 * LANES)
#pragma clang loop unroll(full)
        for (i64 half = 0; half < 2 * LANES; half += each) {
            u32x v[SIDE_BY_SIDE];
#pragma clang loop unroll(full)
            for (int r = 0; r < rows; r++) {
                v[r] = full_words(w + (r * n + k + half) * item, type, pairs);
                if (!half) fetch_next(w + (r * n + k) * item, rows * n * item, r, part, parts);
            }
#pragma clang loop unroll(full)
            for (int o = 0; o < operands; o++) {
                u32x y = *(const u32x *)(p[o] + (k + half) * (pairs ? 2 : 4));
#pragma clang loop unroll(full)
                for (int r = 0; r < rows; r++) {
                    if (pairs) acc[r][o] = pairs_of_words(acc[r][o], v[r], y);
                    else acc[r][o] += (f32x)v[r] * (f32x)y;
                }
            }
        }
    for (; k < n; k += each)                               // rows of x are padded with zeros, and `words` pads those of weights
        for (int r = 0; r < rows; r++) {
            u32x v = words(m, row + r, k, pairs);
            for (int o = 0; o < operands; o++) {
                u32x y = *(const u32x *)(p[o] + k * (pairs ? 2 : 4));
                if (pairs) acc[r][o] = pairs_of_words(acc[r][o], v, y);
                else acc[r][o] += (f32x)v * (f32x)y;
            }
        }
    for (int o = 0; o < operands; o++) for (int r = 0; r < rows; r++) out[(at + o) * stride + r] = sum(acc[r][o]) * (type == I8 ? m->scale[row + r] : 1.0f);
}

INLINE WIDEST void few_block(const Matrix *m, i64 row, int rows, int type, const Rows *x, int pairs, float *out, i64 stride) {
    i64 at = 0, parts = (x->rows + OPERANDS - 1) / OPERANDS;
    for (; at + OPERANDS <= x->rows; at += OPERANDS) few_tile(m, row, rows, type, x, at, OPERANDS, pairs, at / OPERANDS, parts, out, stride);
    for (; at < x->rows; at++) few_tile(m, row, rows, type, x, at, 1, pairs, at / OPERANDS, parts, out, stride);
}

INLINE WIDEST void few_plain(const Matrix *m, i64 from, i64 to, int type, const Rows *x, int pairs, float *out, i64 stride) {
    i64 row = from;
    for (; row + SIDE_BY_SIDE <= to; row += SIDE_BY_SIDE) few_block(m, row, SIDE_BY_SIDE, type, x, pairs, out + row - from, stride);
    for (; row < to; row++) few_block(m, row, 1, type, x, pairs, out + row - from, stride);
}

#if VNNI
INLINE void digit_tile(const Matrix *m, i64 row, int rows, const Ready *x, i64 at, int operands, i64 part, i64 parts, float *out, i64 stride) {
    v16 high[DIGIT_ROWS][OPERANDS], low[DIGIT_ROWS][OPERANDS];
    const v16 flip = (v16){0} + (int)0x80808080;
    const i64 n = m->cols;
    const i8 *w = (const i8 *)m->data + row * n, *p[OPERANDS];
    i64 k = 0;
    for (int o = 0; o < operands; o++) p[o] = (const i8 *)x->rows.x + (at + o) * 4 * x->rows.stride;
    for (int r = 0; r < rows; r++) for (int o = 0; o < operands; o++) high[r][o] = low[r][o] = (v16){0};
    for (; k + 64 <= n; k += 64) {
        v16 bytes[DIGIT_ROWS];
#pragma clang loop unroll(full)
        for (int r = 0; r < rows; r++) {
            bytes[r] = (v16)*(const v8 *)(w + r * n + k) ^ flip;
            fetch_next((const char *)w + r * n + k, rows * n, r, part, parts);
        }
#pragma clang loop unroll(full)
        for (int o = 0; o < operands; o++) {
            v16 xh = (v16)*(const v8 *)(p[o] + k), xl = (v16)*(const v8 *)(p[o] + n + k);
#pragma clang loop unroll(full)
            for (int r = 0; r < rows; r++) { high[r][o] = dot4(high[r][o], bytes[r], xh); low[r][o] = dot4(low[r][o], bytes[r], xl); }
        }
    }
    for (int o = 0; o < operands; o++)
        for (int r = 0; r < rows; r++) {
            const Marks *mark = x->marks + at + o;
            int h = add(high[r][o]) - 128 * mark->high, l = add(low[r][o]) - 128 * mark->low;
            for (i64 j = k; j < n; j++) { h += w[r * n + j] * p[o][j]; l += w[r * n + j] * p[o][n + j]; }
            out[(at + o) * stride + r] = (256.0f * (float)h + (float)l) * (mark->scale * m->scale[row + r]);
        }
}

INLINE void digit_block(const Matrix *m, i64 row, int rows, const Ready *x, float *out, i64 stride) {
    i64 at = 0, parts = (x->rows.rows + OPERANDS - 1) / OPERANDS;
    for (; at + OPERANDS <= x->rows.rows; at += OPERANDS) digit_tile(m, row, rows, x, at, OPERANDS, at / OPERANDS, parts, out, stride);
    for (; at < x->rows.rows; at++) digit_tile(m, row, rows, x, at, 1, at / OPERANDS, parts, out, stride);
}

static void few_digits(const Matrix *m, i64 from, i64 to, const Ready *x, float *out, i64 stride) {
    i64 row = from;
    for (; row + DIGIT_ROWS <= to; row += DIGIT_ROWS) digit_block(m, row, DIGIT_ROWS, x, out + row - from, stride);
    for (; row < to; row++) digit_block(m, row, 1, x, out + row - from, stride);
}
#endif
