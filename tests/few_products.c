// Products of few rows in every form that this processor has, as a function to call: before the kernels' sources its entry,
// behind them the rest. With MAIN a program for Linux on arm64 without libraries: it ends with the number of a
// form whose error is too large, else with 0.
#ifndef FEW_ENTRY
#define FEW_ENTRY
static void all_few_products(char *room, double *worst);
// worst [3 types][4 forms]: the largest error among sums of a form, relative to the sum of magnitudes; room: 64 MB
void few_products(char *room, double *worst) { all_few_products(room, worst); }
#else
static unsigned next_bits(unsigned *state) { return *state = *state * 1664525u + 1013904223u; }
static float next_number(unsigned *state) { return (float)(int)(next_bits(state) >> 8) / (1 << 23) - 1.0f; }

// One size: weights [rows][cols] and x [count][cols] of numbers between -1 and 1.
static double few_case(char *room, i64 type, i64 rows, i64 cols, i64 count, i64 kv_type, int *form) {
    unsigned state = (unsigned)(rows * 31 + cols * 7 + count);
    float *x = (float *)room, *scale = x + count * cols, *out = scale + rows + 16, *sums = out + (count + 1) * rows;
    char *weights = (char *)(((u64)(sums + 4 * PANEL * (count + 32) + cols) + 63) & ~63ULL);
    Step s = {0};
    u32 sync[96] = {0}, packed[DEPTH * PANEL] __attribute__((aligned(64)));
    s.sync = sync;
    s.threads = 1;
    s.kv_type = kv_type;
    s.chunk_ready = weights + rows * cols * 4 + 64;
    s.chunk_marks = (char *)s.chunk_ready + (count + 1) * row_stride(cols) * 4;
    s.chunk_tiles = (void *)(((u64)s.chunk_marks + (count + 4) * 16 + 63) & ~63ULL);
    s.chunk_own = (float *)(((u64)s.chunk_tiles + (count + 16) * row_stride(cols) * 4 + 63) & ~63ULL);
    for (i64 i = 0; i < count * cols; i++) x[i] = next_number(&state);
    for (i64 i = 0; i < rows; i++) scale[i] = next_number(&state);
    for (i64 i = 0; i < rows * cols; i++) {
        float f = next_number(&state);
        if (type == F32) ((float *)weights)[i] = f;
        else if (type == BF16) ((u16 *)weights)[i] = to_bf16(f);
        else ((i8 *)weights)[i] = (i8)(int)(f * 127.0f);
    }
    Matrix m = {weights, type == I8 ? scale : 0, type, rows, cols};
    Worker w = {&s, 0, 0};
    Chunk c = {0};
    c.packed = packed;
    c.sums = sums;
    c.count = count;
    Ready ready = ready_operands(&w, &c, x, 0, 0, &m, form_for(&s, count, &m));
    for (i64 i = 0; i < (count + 1) * rows; i++) out[i] = 7.0f;
    multiply(&w, &c, &m, &ready, out);
    *form = ready.form;
    double worst = out[count * rows] == 7.0f ? 0 : 1;
    for (i64 r = 0; r < count; r++)
        for (i64 n = 0; n < rows; n++) {
            double sum = 0, size = 1e-30;
            for (i64 k = 0; k < cols; k++) {
                double product = (double)element(&m, n, k) * x[r * cols + k];
                sum += product;
                size += product < 0 ? -product : product;
            }
            double error = (out[r * rows + n] - sum) / size;
            error = error < 0 ? -error : error == error ? error : 1;
            worst = error > worst ? error : worst;
        }
    return worst;
}

static void all_few_products(char *room, double *worst) {
    const int sizes[][3] = {{1, 5, 2}, {33, 64, 2}, {64, 100, 3}, {70, 96, 5}, {37, 256, 8}, {100, 192, 16}, {48, 130, 17}, {31, 576, 24}, {65, 64, 64}, {40, 1024, 16}, {20, 4160, 2}};
    for (i64 i = 0; i < 12; i++) worst[i] = 0;
    for (i64 type = F32; type <= I8; type++)
        for (u64 i = 0; i < sizeof sizes / sizeof *sizes; i++)
            for (i64 kv_type = F32; kv_type <= BF16; kv_type++) {
                int form;
                double found = few_case(room, type, sizes[i][0], sizes[i][1], sizes[i][2], kv_type, &form);
                // rows in bf16 are rounded before
                if (form == PLAIN && PAIRS && !AMX && type != F32 && kv_type == BF16 || form == PANELS) found /= 1e4;
                worst[4 * type + form] = found > worst[4 * type + form] ? found : worst[4 * type + form];
            }
}

#ifdef MAIN
static char whole_room[64 << 20] __attribute__((aligned(64)));

void _start(void) {
    double worst[12];
    long ended = 0;
    all_few_products(whole_room, worst);
    for (int i = 0; i < 12; i++) if (!(worst[i] <= (i < 8 ? 1e-6 : 5e-5))) ended = i + 1;
    __asm__ volatile("mov x0, %0\n mov x8, #93\n svc #0" : : "r"(ended) : "x0", "x8");
}
#endif
#endif
