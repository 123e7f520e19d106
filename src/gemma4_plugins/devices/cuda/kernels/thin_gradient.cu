// u' · x in fp32 for bf16 u[T, R] of few columns, R a multiple of 16, and x[T, N], N a multiple of 8: out[R, N], or
// out[N, R] with TURNED. A block makes 64 columns of x, its WARPS warps share T in steps of 16. Lanes read 8 columns of x
// and 2 of u at a time, of 4 rows each, and put rows together in pairs for the matrix tiles, whose rows and columns so
// stand for others in memory: tile j has columns j, 8 + j, …, 56 + j.
DEVICE u32 first_of(u32 one, u32 two) { return byte_permute(one, two, 0x5410); }
DEVICE u32 second_of(u32 one, u32 two) { return byte_permute(one, two, 0x7632); }

KERNELS(32 * WARPS, 1) NAME(float* out, const u16* u, const u16* x) {
  BLOCK_MEMORY(memory, WARPS * R * 64 * 4);
  float* parts = (float*)memory;  // [WARPS][R][64]
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, q = lane & 3, column = blockIdx.x * 64 + g * 8;
  float sums[R / 16][8][4] = {};
#pragma unroll 2
  for (int step = warp * 16; step < T; step += 16 * WARPS) {
    u32 wide[4][4], narrow[R / 16][4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int t = step + q * 4 + i;
      uint4 v = make_uint4(0, 0, 0, 0);
      if (t < T && column < N) v = *(const uint4*)(x + (long long)t * N + column);
      wide[i][0] = v.x, wide[i][1] = v.y, wide[i][2] = v.z, wide[i][3] = v.w;
#pragma unroll
      for (int k = 0; k < R / 16; k++) narrow[k][i] = t < T ? *(const u32*)(u + (long long)t * R + k * 16 + 2 * g) : 0;
    }
#pragma unroll
    for (int k = 0; k < R / 16; k++) {
      const u32* n = narrow[k];
      const u32 a[4] = {first_of(n[0], n[1]), second_of(n[0], n[1]), first_of(n[2], n[3]), second_of(n[2], n[3])};
#pragma unroll
      for (int j = 0; j < 4; j++) {
        multiply(sums[k][2 * j], a, first_of(wide[0][j], wide[1][j]), first_of(wide[2][j], wide[3][j]));
        multiply(sums[k][2 * j + 1], a, second_of(wide[0][j], wide[1][j]), second_of(wide[2][j], wide[3][j]));
      }
    }
  }
#pragma unroll
  for (int k = 0; k < R / 16; k++)
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        parts[(warp * R + k * 16 + 2 * g + (i >> 1)) * 64 + (q * 2 + (i & 1)) * 8 + j] = sums[k][j][i];
  __syncthreads();
  for (int i = threadIdx.x; i < R * 64; i += 32 * WARPS) {
    const int r = TURNED ? i % R : i / 64, n = TURNED ? i / R : i % 64, at = blockIdx.x * 64 + n;
    float sum = 0.f;
    for (int w = 0; w < WARPS; w++) sum += parts[(w * R + r) * 64 + n];
    if (at < N) out[TURNED ? (long long)at * R + r : (long long)r * N + at] = sum;
  }
}
