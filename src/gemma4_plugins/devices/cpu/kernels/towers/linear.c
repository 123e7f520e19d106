// out[M][N] = a[M][K] @ w[N][K]^T with fp32 sums, of fp32 values in double precision by slices of DEPTH. A job is a block of rows by WIDE columns; jobs are dealt to PARTS cores.
// Weights are turned slice by slice, and widened where the processor is not faster at pairs of bf16; then tiles of ROWS
// rows run over them from registers, or of TILE_ROWS from tile registers.
enum { BLOCK = 128 * ROWS, DEPTH = 256 };

#if AMX && BF16
// sums[rows][WIDE] = a @ w^T for `columns` rows of w. The last slice is padded with zeros to whole tiles: that of a is
// copied for it.
static inline void multiply_block(float *sums, const item *a, i64 rows, const item *w, i64 columns) {
  enum { PADDED = DEPTH / 2 };                             // pairs of a slice: whole tiles
  u32 packed[WIDE * PADDED] __attribute__((aligned(64)));  // [WIDE / 16][pair][16]
  item edge[TILE_ROWS * 2 * PADDED] __attribute__((aligned(64)));
  Tiles tiles;
  tiles.product_rows = 0;
  for (i64 k0 = 0; k0 < K; k0 += DEPTH) {
    const i64 depth = K - k0 < DEPTH ? K - k0 : DEPTH, pairs = (depth + 2 * TILE_PAIRS - 1) / (2 * TILE_PAIRS) * TILE_PAIRS;
    for (i64 n = 0; n < WIDE; n += 16)
      for (i64 k = 0; k < pairs; k += 16) {
        Words r[16];
        for (i64 i = 0; i < 16; i++) r[i] = pairs_of(w + (n + i < columns ? n + i : 0) * K + k0 + 2 * k, depth - 2 * k);
        transpose(r);
        for (i64 i = 0; i < 16; i++) *(Words *)(packed + n * PADDED + (k + i) * 16) = r[i];
      }
    for (i64 m = 0; m < rows; m += TILE_ROWS) {
      const i64 here = rows - m < TILE_ROWS ? rows - m : TILE_ROWS;
      const item *left = a + m * K + k0;
      i64 pitch = K;
      if (2 * pairs != depth) {
        for (i64 r = 0; r < here; r++)
          for (i64 k = 0; k < 2 * pairs; k++) edge[r * 2 * PADDED + k] = k < depth ? left[r * K + k] : 0;
        left = edge;
        pitch = 2 * PADDED;
      }
      for (i64 n = 0; n < WIDE; n += TILE_COLUMNS)
        multiply_tiles(&tiles, here, pairs, left, pitch * 2, packed + n * PADDED, 16 * PADDED, sums + m * WIDE + n, WIDE * 4, k0 == 0);
    }
  }
  TILE_RELEASE(&tiles);
}
#endif

WIDEST void NAME(item *restrict out, INPUTS, const int core_id) {
  const i64 panels = (N + WIDE - 1) / WIDE, blocks = (M + BLOCK - 1) / BLOCK;
  for (i64 job = core_id; job < panels * blocks; job += PARTS) {
    const i64 n0 = job % panels * WIDE, m0 = job / panels * BLOCK;
    const i64 columns = N - n0 < WIDE ? N - n0 : WIDE, rows = M - m0 < BLOCK ? M - m0 : BLOCK;
    float sums[BLOCK * WIDE] __attribute__((aligned(64)));
#if AMX && BF16
    multiply_block(sums, a + m0 * K, rows, w + n0 * K, columns);
#else
    for (i64 i = 0; i < (rows + ROWS - 1) / ROWS * ROWS * WIDE; i += LANES) *(vec *)(sums + i) = (vec){0};
#if PAIRS && K % 2 == 0
    u32 packed[DEPTH / 2 * WIDE] __attribute__((aligned(64)));  // [pair][WIDE]
    for (i64 k0 = 0; k0 < K; k0 += DEPTH) {
      const i64 depth = K - k0 < DEPTH ? K - k0 : DEPTH, pairs = depth / 2;
      for (i64 n = 0; n < WIDE; n += 16)
        for (i64 k = 0; k < pairs; k += 16) {
          Words r[16];
          for (i64 i = 0; i < 16; i++) r[i] = pairs_of(w + (n0 + (n + i < columns ? n + i : 0)) * K + k0 + 2 * k, depth - 2 * k);
          transpose(r);
          for (i64 i = 0; i < 16 && k + i < pairs; i++) *(Words *)(packed + (k + i) * WIDE + n) = r[i];
        }
      for (i64 m = 0; m < rows; m += ROWS) {
        const item *left[ROWS];
        for (i64 r = 0; r < ROWS; r++) left[r] = a + (m0 + (m + r < rows ? m + r : m)) * K + k0;
        multiply_pairs(sums + m * WIDE, WIDE, left, packed, WIDE, pairs, VECTORS);
      }
    }
#else
    float packed[DEPTH * WIDE], left[ROWS * DEPTH];
    for (i64 k0 = 0; k0 < K; k0 += DEPTH) {
      const i64 depth = K - k0 < DEPTH ? K - k0 : DEPTH;
      for (i64 n = 0; n < WIDE; n++)
        for (i64 k = 0; k < depth; k++) packed[k * WIDE + n] = n < columns ? get(w[(n0 + n) * K + k0 + k]) : 0.0f;
      for (i64 m = 0; m < rows; m += ROWS) {
        for (i64 r = 0; r < ROWS; r++)
          for (i64 k = 0; k < depth; k++) left[r * DEPTH + k] = m + r < rows ? get(a[(m0 + m + r) * K + k0 + k]) : 0.0f;
        multiply(sums + m * WIDE, WIDE, left, DEPTH, packed, WIDE, depth, VECTORS);
      }
    }
#endif
#endif
    for (i64 m = 0; m < rows; m++)
      for (i64 n = 0; n < columns; n++) out[(m0 + m) * N + n0 + n] = put(sums[m * WIDE + n]);
  }
}
