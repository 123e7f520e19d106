// out[M][N] = a[M][K] @ w[N][K]^T with fp32 sums. A job is a block of rows by WIDE columns; jobs are dealt to PARTS cores.
// Weights are turned and widened slice by slice, then tiles of ROWS rows run over them from registers.
enum { BLOCK = 128 * ROWS, DEPTH = 256 };

void NAME(item *restrict out, const item *restrict a, const item *restrict w, const int core_id) {
  const i64 panels = (N + WIDE - 1) / WIDE, blocks = (M + BLOCK - 1) / BLOCK;
  for (i64 job = core_id; job < panels * blocks; job += PARTS) {
    const i64 n0 = job % panels * WIDE, m0 = job / panels * BLOCK;
    const i64 columns = N - n0 < WIDE ? N - n0 : WIDE, rows = M - m0 < BLOCK ? M - m0 : BLOCK;
    float sums[BLOCK * WIDE], packed[DEPTH * WIDE], left[ROWS * DEPTH];
    for (i64 i = 0; i < (rows + ROWS - 1) / ROWS * ROWS * WIDE; i += LANES) *(vec *)(sums + i) = (vec){0};
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
    for (i64 m = 0; m < rows; m++)
      for (i64 n = 0; n < columns; n++) out[(m0 + m) * N + n0 + n] = put(sums[m * WIDE + n]);
  }
}
