// Products of bf16 pairs, and of int8, in the tile registers of AMX, each 16 rows of 64 bytes. The names in capitals are the compiler's
// instructions, unless whoever compiles this has defined them (the tests say them in plain C).
#if defined(AMX_PERMITTED) && defined(__AMX_BF16__) && defined(__AVX512F__) && !defined(TILE_STATE)
#define TILE_STATE
#define TILE_CONFIGURE(t, config) __builtin_ia32_tile_loadconfig(config)
#define TILE_RELEASE(t) __builtin_ia32_tilerelease()
#define TILE_ZERO(t, n) __builtin_ia32_tilezero(n)
#define TILE_LOAD(t, n, from, pitch) __builtin_ia32_tileloadd64(n, from, (u64)(pitch))
#define TILE_STORE(t, n, to, pitch) __builtin_ia32_tilestored64(n, to, (u64)(pitch))
#define TILE_PRODUCT(t, c, a, b) __builtin_ia32_tdpbf16ps(c, a, b)
#if defined(__AMX_INT8__)
#define TILE_PRODUCT_I8(t, c, a, b) __builtin_ia32_tdpbssd(c, a, b)
#endif
#endif

#ifdef TILE_STATE
#define AMX 1
enum { TILE_ROWS = 32, TILE_COLUMNS = 32, TILE_PAIRS = 16 };   // of a product; its depth is a multiple of TILE_PAIRS

// What the configuration instruction reads; `product_rows` is what it was last made for.
typedef struct {
    struct { u8 palette, start, reserved[14]; u16 bytes[16]; u8 rows[16]; } __attribute__((aligned(64))) config;
    i64 product_rows;
    TILE_STATE
} Tiles;

// Registers 0..3: sums, two by two; 4, 5: rows of the left side; 6, 7: columns of the right side.
static void configure_tiles(Tiles *t, i64 rows) {
    i64 first = rows < 16 ? rows : 16, second = rows - first;
    __builtin_memset(&t->config, 0, sizeof t->config);
    t->config.palette = 1;
    for (int n = 0; n < 8; n++) {
        i64 here = n > 5 ? 16 : n == 5 || n == 2 || n == 3 ? second : first;
        t->config.rows[n] = (u8)here;
        t->config.bytes[n] = here ? 64 : 0;
    }
    t->product_rows = rows;
    TILE_CONFIGURE(t, &t->config);
}

// c[rows][32] (+)= a[rows][2 * pairs] . b, at most 32 rows. Rows of a and c stand a_pitch and c_pitch bytes apart; b is
// [pair][16 columns], its second 16 columns begin `second` words behind the first.
static void multiply_tiles(Tiles *t, i64 rows, i64 pairs, const void *a, i64 a_pitch, const u32 *b, i64 second, float *c, i64 c_pitch, int first) {
    const char *left = (const char *)a, *below = left + 16 * a_pitch;
    float *c_below = (float *)((char *)c + 16 * c_pitch);
    if (t->product_rows != rows) configure_tiles(t, rows);
    if (first) { TILE_ZERO(t, 0); TILE_ZERO(t, 1); } else { TILE_LOAD(t, 0, c, c_pitch); TILE_LOAD(t, 1, c + 16, c_pitch); }
    if (rows > 16) {
        if (first) { TILE_ZERO(t, 2); TILE_ZERO(t, 3); } else { TILE_LOAD(t, 2, c_below, c_pitch); TILE_LOAD(t, 3, c_below + 16, c_pitch); }
        for (i64 k = 0; k < pairs; k += TILE_PAIRS) {
            TILE_LOAD(t, 4, left + 4 * k, a_pitch);
            TILE_LOAD(t, 6, b + 16 * k, 64);
            TILE_PRODUCT(t, 0, 4, 6);
            TILE_LOAD(t, 7, b + second + 16 * k, 64);
            TILE_PRODUCT(t, 1, 4, 7);
            TILE_LOAD(t, 5, below + 4 * k, a_pitch);
            TILE_PRODUCT(t, 2, 5, 6);
            TILE_PRODUCT(t, 3, 5, 7);
        }
        TILE_STORE(t, 2, c_below, c_pitch);
        TILE_STORE(t, 3, c_below + 16, c_pitch);
    } else for (i64 k = 0; k < pairs; k += TILE_PAIRS) {
        TILE_LOAD(t, 4, left + 4 * k, a_pitch);
        TILE_LOAD(t, 6, b + 16 * k, 64);
        TILE_LOAD(t, 7, b + second + 16 * k, 64);
        TILE_PRODUCT(t, 0, 4, 6);
        TILE_PRODUCT(t, 1, 4, 7);
    }
    TILE_STORE(t, 0, c, c_pitch);
    TILE_STORE(t, 1, c + 16, c_pitch);
}
#else
#define AMX 0
#endif
