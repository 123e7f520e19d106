// 16 rows of 16 words, turned: how rows of weights become columns side by side.

typedef u32 Words __attribute__((vector_size(64), aligned(4)));

static inline void swap_halves(Words *a, Words *b, int distance) {
    Words x = *a, y = *b;
    switch (distance) {
    case 8:
        *a = __builtin_shufflevector(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
        *b = __builtin_shufflevector(x, y, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
        break;
    case 4:
        *a = __builtin_shufflevector(x, y, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
        *b = __builtin_shufflevector(x, y, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
        break;
    case 2:
        *a = __builtin_shufflevector(x, y, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
        *b = __builtin_shufflevector(x, y, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
        break;
    default:
        *a = __builtin_shufflevector(x, y, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
        *b = __builtin_shufflevector(x, y, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
    }
}

static inline __attribute__((always_inline)) void transpose(Words *r) {
#pragma clang loop unroll(full)
    for (int d = 8; d >= 1; d /= 2)
#pragma clang loop unroll(full)
        for (int i = 0; i < 16; i++)
            if (!(i & d)) swap_halves(r + i, r + i + d, d);
}
