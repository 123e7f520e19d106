// AMX's instructions in plain C, for processors without them: amx.c takes these instead of the compiler's. Behaviour after
// Intel's Architecture Instruction Set Extensions reference, chapter on AMX; what would fault there traps here.
#define TILE_STATE unsigned char tile[8][16][64]; int configured;
#define TILE_CONFIGURE(t, from) emulated_configure((t)->tile, &(t)->configured, (const unsigned char *)(from))
#define TILE_RELEASE(t) ((t)->configured = 0)
#define TILE_ZERO(t, n) emulated_zero((t)->tile[n], (t)->configured, (t)->config.rows[n])
#define TILE_LOAD(t, n, from, pitch) emulated_load((t)->tile[n], (t)->configured, (t)->config.rows[n], (t)->config.bytes[n], (const char *)(from), pitch)
#define TILE_STORE(t, n, to, pitch) emulated_store((t)->tile[n], (t)->configured, (t)->config.rows[n], (t)->config.bytes[n], (char *)(to), pitch)
#define TILE_PRODUCT(t, c, a, b) emulated_product((t)->tile[c], (t)->tile[a], (t)->tile[b], (t)->configured, (t)->config.rows, (t)->config.bytes, c, a, b)
#define TILE_PRODUCT_I8(t, c, a, b) emulated_product_i8((t)->tile[c], (t)->tile[a], (t)->tile[b], (t)->configured, (t)->config.rows, (t)->config.bytes, c, a, b)

typedef unsigned char (*Tile)[64];

static void emulated_zero(Tile tile, int configured, int rows) {
    if (configured != 1 || !rows) __builtin_trap();
    for (int i = 0; i < 16 * 64; i++) ((volatile unsigned char *)tile)[i] = 0;
}

static void emulated_configure(unsigned char (*tiles)[16][64], int *configured, const unsigned char *from) {
    if (from[0] != 1 || from[1]) __builtin_trap();
    for (int i = 2; i < 64; i++) if ((i < 16 || i >= 32 && i < 48 || i >= 56) && from[i]) __builtin_trap();  // reserved
    for (int n = 0; n < 8; n++) {
        int bytes = from[16 + 2 * n] | from[17 + 2 * n] << 8, rows = from[48 + n];
        if (rows > 16 || bytes > 64 || !rows != !bytes) __builtin_trap();
        emulated_zero(tiles[n], 1, 16);
    }
    *configured = 1;
}

static void emulated_load(Tile tile, int configured, int rows, int bytes, const char *from, long long pitch) {
    emulated_zero(tile, configured, rows);
    for (int r = 0; r < rows; r++) for (int i = 0; i < bytes; i++) tile[r][i] = (unsigned char)from[r * pitch + i];
}

static void emulated_store(Tile tile, int configured, int rows, int bytes, char *to, long long pitch) {
    if (configured != 1 || !rows) __builtin_trap();
    for (int r = 0; r < rows; r++) for (int i = 0; i < bytes; i++) to[r * pitch + i] = (char)tile[r][i];
}

static float emulated_value(const unsigned char *pair, int which) {
    unsigned bits = (unsigned)(pair[2 * which] | pair[2 * which + 1] << 8) << 16;
    float f;
    __builtin_memcpy(&f, &bits, 4);
    return f;
}

static void emulated_product(Tile c, Tile a, Tile b, int configured, const unsigned char *rows, const unsigned short *bytes, int nc, int na, int nb) {
    if (configured != 1 || !rows[nc] || rows[na] != rows[nc] || bytes[nb] != bytes[nc] || bytes[na] != 4 * rows[nb]) __builtin_trap();
    for (int m = 0; m < rows[nc]; m++)
        for (int k = 0; k < bytes[na] / 4; k++)
            for (int n = 0; n < bytes[nc] / 4; n++) {
                float sum;
                __builtin_memcpy(&sum, c[m] + 4 * n, 4);
                for (int i = 0; i < 2; i++) sum += emulated_value(a[m] + 4 * k, i) * emulated_value(b[k] + 4 * n, i);
                __builtin_memcpy(c[m] + 4 * n, &sum, 4);
            }
}

static void emulated_product_i8(Tile c, Tile a, Tile b, int configured, const unsigned char *rows, const unsigned short *bytes, int nc, int na, int nb) {
    if (configured != 1 || !rows[nc] || rows[na] != rows[nc] || bytes[nb] != bytes[nc] || bytes[na] != 4 * rows[nb]) __builtin_trap();
    for (int m = 0; m < rows[nc]; m++)
        for (int n = 0; n < bytes[nc] / 4; n++) {
            int sum;
            __builtin_memcpy(&sum, c[m] + 4 * n, 4);
            for (int k = 0; k < bytes[na] / 4; k++) for (int i = 0; i < 4; i++) sum += (signed char)a[m][4 * k + i] * (signed char)b[k][4 * n + i];
            __builtin_memcpy(c[m] + 4 * n, &sum, 4);
        }
}
