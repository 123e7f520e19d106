// out[M, R] = FACTOR * x[M, K] · A, bf16 with fp32 sums, for few columns: A lies as [R, K], or as [K, R] with DOWN. R is
// a multiple of 16, K of 32. A block makes 16 rows, its WARPS warps share K in steps of 32. Each lane reads 8 numbers
// along K at a time, so that a matrix tile's order along K is another than in memory, alike in both operands.
DEVICE uint4 eight(const u16* p) { return *(const uint4*)p; }

// Numbers k ... k + 7 of columns 2 * g and 2 * g + 1 from `at` on, as the two operands of tiles of 8 columns.
DEVICE void turned(const u16* at, u32 (&even)[4], u32 (&odd)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    u32 one = *(const u32*)(at + 2 * i * R), two = *(const u32*)(at + (2 * i + 1) * R);
    even[i] = byte_permute(one, two, 0x5410), odd[i] = byte_permute(one, two, 0x7632);
  }
}

KERNELS(32 * WARPS, 1) NAME(u16* out, const u16* x, const u16* a) {
  BLOCK_MEMORY(memory, WARPS * 16 * R * 4);
  float* parts = (float*)memory;  // [WARPS][16][R]
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, q = lane & 3, row = blockIdx.x * 16 + g;
  const u16* upper = x + (long long)(row < M ? row : M - 1) * K + q * 8;
  const u16* lower = x + (long long)(row + 8 < M ? row + 8 : M - 1) * K + q * 8;
  float sums[R / 8][4] = {};
#pragma unroll 4
  for (int k = warp * 32; k < K; k += 32 * WARPS) {
    const uint4 u = eight(upper + k), v = eight(lower + k);
    const u32 first[4] = {u.x, v.x, u.y, v.y}, second[4] = {u.z, v.z, u.w, v.w};
#pragma unroll
    for (int j = 0; j < R / 8; j += 2) {
#if DOWN
      u32 one[4], two[4];  // of tile j the even columns, of tile j + 1 the odd ones
      turned(a + (long long)(k + q * 8) * R + j * 8 + 2 * g, one, two);
#else
      const u16* at = a + (long long)(j * 8 + g) * K + q * 8 + k;
      const uint4 w = eight(at), z = eight(at + (long long)8 * K);
      const u32 one[4] = {w.x, w.y, w.z, w.w}, two[4] = {z.x, z.y, z.z, z.w};
#endif
      multiply(sums[j], first, one[0], one[1]), multiply(sums[j], second, one[2], one[3]);
      multiply(sums[j + 1], first, two[0], two[1]), multiply(sums[j + 1], second, two[2], two[3]);
    }
  }
#pragma unroll
  for (int j = 0; j < R / 8; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int place = q * 2 + (i & 1), column = DOWN ? (j >> 1) * 16 + place * 2 + (j & 1) : j * 8 + place;
      parts[(warp * 16 + g + (i >> 1) * 8) * R + column] = sums[j][i];
    }
  __syncthreads();
  for (int i = threadIdx.x; i < 8 * R; i += 32 * WARPS) {
    const int r = i / (R / 2), column = i % (R / 2) * 2;
    float s = 0.f, t = 0.f;
    for (int w = 0; w < WARPS; w++) s += parts[(w * 16 + r) * R + column], t += parts[(w * 16 + r) * R + column + 1];
    if (blockIdx.x * 16 + r < M) *(u32*)(out + (long long)(blockIdx.x * 16 + r) * R + column) = pack_bf16(s * FACTOR, t * FACTOR);
  }
}
