// out[M, N] = a[M, K] @ w[N, K]^T, bf16 with fp32 sums. K is a multiple of 8, N is even.
// A block computes TILE_M x TILE_N; its warps stand side by side in a WARPS_M x WARPS_N grid. Slices of 32 along K pass
// through STAGES buffers. 16-byte pieces of a row are swapped by the row number, which keeps matrix loads free of
// bank conflicts.
constexpr int SLICE = 32, STAGES = 3;
constexpr int WARP_M = TILE_M / WARPS_M, WARP_N = TILE_N / WARPS_N, THREADS = 32 * WARPS_M * WARPS_N;

DEVICE int place(int row, int piece) { return row * SLICE + ((piece ^ ((row >> 1) & 3)) * 8); }

template <int ROWS, int LIMIT> DEVICE void load_slice(u16* to, const u16* from, int first, int k) {
  for (int i = threadIdx.x; i < ROWS * 4; i += THREADS) {
    int row = i >> 2, piece = i & 3, column = k + piece * 8;
    bool real = first + row < LIMIT && column < K;
    copy16(to + place(row, piece), from + (real ? (long long)(first + row) * K + column : 0), real);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) NAME(u16* __restrict__ out, const u16* __restrict__ a,
                                                           const u16* __restrict__ w) {
  __shared__ __align__(128) u16 left[STAGES][TILE_M * SLICE], right[STAGES][TILE_N * SLICE];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int row0 = blockIdx.y * TILE_M, column0 = blockIdx.x * TILE_N;
  const int warp_row = (warp / WARPS_N) * WARP_M, warp_column = (warp % WARPS_N) * WARP_N;
  constexpr int SLICES = (K + SLICE - 1) / SLICE;
  float sums[WARP_M / 16][WARP_N / 8][4] = {};

  for (int s = 0; s < STAGES - 1; s++) {
    if (s < SLICES) {
      load_slice<TILE_M, M>(left[s], a, row0, s * SLICE);
      load_slice<TILE_N, N>(right[s], w, column0, s * SLICE);
    }
    commit();
  }
  for (int s = 0; s < SLICES; s++) {
    wait_copies<STAGES - 2>();
    __syncthreads();
    int next = s + STAGES - 1, slot = next % STAGES;
    if (next < SLICES) {
      load_slice<TILE_M, M>(left[slot], a, row0, next * SLICE);
      load_slice<TILE_N, N>(right[slot], w, column0, next * SLICE);
    }
    commit();
    const u16 *l = left[s % STAGES], *r = right[s % STAGES];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      u32 x[WARP_M / 16][4], y[WARP_N / 16][4];
#pragma unroll
      for (int i = 0; i < WARP_M / 16; i++)
        load4(x[i], l + place(warp_row + i * 16 + (lane & 15), half * 2 + (lane >> 4)));
#pragma unroll
      for (int j = 0; j < WARP_N / 16; j++)
        load4(y[j], r + place(warp_column + j * 16 + (lane & 7) + ((lane >> 4) << 3), half * 2 + ((lane >> 3) & 1)));
#pragma unroll
      for (int i = 0; i < WARP_M / 16; i++)
#pragma unroll
        for (int j = 0; j < WARP_N / 8; j++) multiply(sums[i][j], x[i], y[j / 2][(j & 1) * 2], y[j / 2][(j & 1) * 2 + 1]);
    }
  }
#pragma unroll
  for (int i = 0; i < WARP_M / 16; i++)
#pragma unroll
    for (int j = 0; j < WARP_N / 8; j++) {
      int row = row0 + warp_row + i * 16 + (lane >> 2), column = column0 + warp_column + j * 8 + (lane & 3) * 2;
      if (column >= N) continue;
      if (row < M) *(u32*)(out + (long long)row * N + column) = pack(sums[i][j][0], sums[i][j][1]);
      if (row + 8 < M) *(u32*)(out + (long long)(row + 8) * N + column) = pack(sums[i][j][2], sums[i][j][3]);
    }
}
