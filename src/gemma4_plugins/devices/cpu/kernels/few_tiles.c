// Products of a few rows in tile registers. Weights are the left side as they lie in memory, 16 rows of 64 bytes to a
// register; 16 rows of x are the 16 columns of the right side, which holds two digits of each value: x = high + low in bf16,
// exact to 2^-16, or 256 * high + low in int8. Nothing is packed but x.
#if AMX
enum { COLUMNS = 16 };

#if WHOLE_TILES
#define DIGIT_PRODUCT(t, c, a, b) if (whole) TILE_PRODUCT_I8(t, c, a, b); else TILE_PRODUCT(t, c, a, b)
#else
#define DIGIT_PRODUCT(t, c, a, b) TILE_PRODUCT(t, c, a, b)
#endif

// c[row of weights][32] = a[at most 32 rows of weights][64 bytes a step] . b: 16 sums with high digits, 16 with low ones, which
// stand `second` words behind. `lines` lines a step are fetched from `ahead`.
INLINE void weigh(Tiles *t, i64 rows, i64 steps, const char *a, i64 pitch, const u32 *b, i64 second, float *c, int whole, const char *ahead, i64 lines) {
    const char *below = a + 16 * pitch;
    if (t->product_rows != rows) configure_tiles(t, rows);
    TILE_ZERO(t, 0);
    TILE_ZERO(t, 1);
    if (rows > 16) { TILE_ZERO(t, 2); TILE_ZERO(t, 3); }
    for (i64 k = 0; k < steps; k++) {
        TILE_LOAD(t, 4, a + 64 * k, pitch);
        TILE_LOAD(t, 6, b + 256 * k, 64);
        DIGIT_PRODUCT(t, 0, 4, 6);
        TILE_LOAD(t, 7, b + second + 256 * k, 64);
        DIGIT_PRODUCT(t, 1, 4, 7);
        if (rows > 16) {
            TILE_LOAD(t, 5, below + 64 * k, pitch);
            DIGIT_PRODUCT(t, 2, 5, 6);
            DIGIT_PRODUCT(t, 3, 5, 7);
        }
        for (i64 i = 0; i < lines; i++) __builtin_prefetch(ahead + (k * lines + i) * 64, 0, 2);
    }
    TILE_STORE(t, 0, c, 128);
    TILE_STORE(t, 1, c + 16, 128);
    if (rows > 16) { TILE_STORE(t, 2, c + 512, 128); TILE_STORE(t, 3, c + 528, 128); }
}

// Sums of `rows` (<= 16) rows of weights from `row` on to out[row of x][..].
static void place_sums(const Matrix *m, i64 row, i64 rows, const Ready *x, i64 at, const float *c, float *out, i64 stride) {
    u32x r[16];
    i64 count = x->rows.rows - at < COLUMNS ? x->rows.rows - at : COLUMNS;
    for (int i = 0; i < 16; i++) {
        if (i >= rows) r[i] = (u32x){0};
        else if (m->type != I8) r[i] = (u32x)(*(const f32x *)(c + 32 * i) + *(const f32x *)(c + 32 * i + 16));
        else r[i] = (u32x)(256.0f * __builtin_convertvector(*(const i32x *)(c + 32 * i), f32x) + __builtin_convertvector(*(const i32x *)(c + 32 * i + 16), f32x));
    }
    transpose(r);
    for (i64 j = 0; j < count; j++) {
        float *to = out + (at + j) * stride;
        if (m->type == I8) for (i64 i = 0; i < rows; i++) to[i] = ((f32x)r[j])[i] * (x->marks[at + j].scale * m->scale[row + i]);
        else if (rows == 16) *(f32x *)to = (f32x)r[j];
        else for (i64 i = 0; i < rows; i++) to[i] = ((f32x)r[j])[i];
    }
}

static void few_tiles(const Matrix *m, i64 from, i64 to, const Ready *x, float *out, i64 stride) {
    i64 words = words_of(m), pitch = words * 4, steps = words / 16, groups = (x->rows.rows + COLUMNS - 1) / COLUMNS;
    float c[32 * 32] __attribute__((aligned(64)));
    Tiles t;
    t.product_rows = 0;
    for (i64 row = from; row < to; row += 32) {
        i64 rows = to - row < 32 ? to - row : 32, lines = (32 + groups - 1) / groups;
        const char *a = (const char *)m->data + row * pitch, *ahead = a + 32 * pitch;
        for (i64 g = 0; g < groups; g++) {
            const u32 *b = x->tiles + g * 32 * words;
            if (m->type == I8) weigh(&t, rows, steps, a, pitch, b, 16 * words, c, 1, ahead + g * lines * steps * 64, lines);
            else weigh(&t, rows, steps, a, pitch, b, 16 * words, c, 0, ahead + g * lines * steps * 64, lines);
            place_sums(m, row, rows < 16 ? rows : 16, x, g * COLUMNS, c, out + row - from, stride);
            if (rows > 16) place_sums(m, row + 16, rows - 16, x, g * COLUMNS, c + 512, out + row + 16 - from, stride);
        }
    }
    TILE_RELEASE(&t);
}

// Digits of rows [row][high, low][word] as right sides of products: words [from, to) of the 16 rows from `group` * 16 on.
// `which` names the rows where they are not 0, 1, 2, …
static void turn_digits(const char *digits, i64 pitch, i64 words, i64 group, i64 rows, const int *which, i64 from, i64 to, u32 *tiles) {
    for (int digit = 0; digit < 2; digit++)
        for (i64 word = from; word < to; word += 16) {
            u32x r[16];
            for (i64 i = 0; i < 16; i++) {
                i64 row = group * COLUMNS + i;
                r[i] = row < rows ? *(const u32x *)(digits + (which ? which[row] : row) * pitch + (digit * words + word) * 4) : (u32x){0};
            }
            transpose(r);
            for (int i = 0; i < 16; i++) *(u32x *)(tiles + ((group * 2 + digit) * words + word + i) * 16) = r[i];
        }
}
#endif
