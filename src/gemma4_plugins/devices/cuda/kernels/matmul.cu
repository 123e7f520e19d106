// out[M, N] = A · B, bf16 with fp32 sums, for GRID_Z pairs of matrices; one B serves GROUP of them in a row.
// A lies as [M, K], or as [K, M] with A_DOWN; B as [N, K], or as [K, N] with B_DOWN: K runs down their columns then.
// Rows of memory are multiples of 16 bytes. out is bf16, or fp32 with WIDE.
// With K2 the sum goes on along a second pair of matrices that lie like the first and are K2 deep: A · B + A2 · B2.
// With PARTS above 1 the sum is cut into as many, whose results lie one behind the other.
// A block computes TILE_M x TILE_N; its warps stand side by side in a WARPS_M x WARPS_N grid. Slices of 32 along K pass
// through STAGES buffers. 16-byte pieces of a row are swapped by the row number, which keeps matrix loads free of
// bank conflicts.
constexpr int SLICE = 32, STAGES = 3;
constexpr int WARP_M = TILE_M / WARPS_M, WARP_N = TILE_N / WARPS_N, THREADS = 32 * WARPS_M * WARPS_N;

// Where 16-byte piece `piece` of row `row` of a slice lies. Rows run along K, or DOWN: along M or N, TILE of them.
template <bool DOWN, int TILE> DEVICE int place(int row, int piece) {
  return DOWN ? row * TILE + ((piece ^ (row & 7)) * 8) : row * SLICE + ((piece ^ ((row >> 1) & 3)) * 8);
}

// LIMIT rows or columns there are in all, LENGTH deep, of which this block's begin at `first`.
template <bool DOWN, int TILE, int LIMIT, int LENGTH> DEVICE void load_slice(u16* to, const u16* from, int first, int k) {
  constexpr int PIECES = DOWN ? TILE / 8 : SLICE / 8;
  for (int i = threadIdx.x; i < TILE * SLICE / 8; i += THREADS) {
    int row = i / PIECES, piece = i % PIECES;
    int deep = k + (DOWN ? row : piece * 8), across = first + (DOWN ? piece * 8 : row);
    bool real = deep < LENGTH && across < LIMIT;
    long long at = DOWN ? (long long)deep * LIMIT + across : (long long)across * LENGTH + deep;
    copy16_or_zeros(to + place<DOWN, TILE>(row, piece), from + (real ? at : 0), real);
  }
}

// The 16 x 16 of A from row `m` on, and of B from column `n` on, at half `half` of a slice.
DEVICE void load_a(u32 (&x)[4], const u16* tile, int m, int half, int lane) {
  if (A_DOWN)
    load_tiles_transposed(x, tile + place<true, TILE_M>(half * 16 + (lane & 7) + (lane >> 4) * 8, m / 8 + ((lane >> 3) & 1)));
  else
    load_tiles(x, tile + place<false, TILE_M>(m + (lane & 15), half * 2 + (lane >> 4)));
}
DEVICE void load_b(u32 (&y)[4], const u16* tile, int n, int half, int lane) {
  if (B_DOWN)
    load_tiles_transposed(y, tile + place<true, TILE_N>(half * 16 + (lane & 15), n / 8 + (lane >> 4)));
  else
    load_tiles(y, tile + place<false, TILE_N>(n + (lane & 7) + ((lane >> 4) << 3), half * 2 + ((lane >> 3) & 1)));
}

DEVICE void put(OUT* out, int row, int column, float x, float y) {
  if (row >= M) return;
  OUT* to = out + (long long)row * N + column;
#if WIDE
  *(float2*)to = make_float2(x, y);
#else
  *(u32*)to = pack_bf16(x, y);
#endif
}

#if K2
KERNELS(32 * WARPS_M * WARPS_N, 2) NAME(OUT* out, const u16* a, const u16* b, const u16* a2, const u16* b2) {
#else
KERNELS(32 * WARPS_M * WARPS_N, 2) NAME(OUT* out, const u16* a, const u16* b) {
  const u16 *a2 = a, *b2 = b;  // nothing is read of them
#endif
  BLOCK_MEMORY(memory, STAGES * SLICE * (TILE_M + TILE_N) * 2);
  u16 *left = (u16*)memory, *right = left + STAGES * SLICE * TILE_M;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int row0 = blockIdx.y * TILE_M, column0 = blockIdx.x * TILE_N;
  const int warp_row = (warp / WARPS_N) * WARP_M, warp_column = (warp % WARPS_N) * WARP_N;
  constexpr int FIRST = (K + SLICE - 1) / SLICE, SLICES = FIRST + (K2 + SLICE - 1) / SLICE, EACH = (SLICES + PARTS - 1) / PARTS;
  const int index = blockIdx.z / PARTS, begin = PARTS > 1 ? blockIdx.z % PARTS * EACH : 0;
  const int end = PARTS > 1 && begin + EACH < SLICES ? begin + EACH : SLICES;
  a += (long long)index * M * K, b += (long long)(index / GROUP) * N * K, out += (long long)blockIdx.z * M * N;
  float sums[WARP_M / 16][WARP_N / 8][4] = {};

  auto load = [&](int s) {
    u16 *l = left + s % STAGES * SLICE * TILE_M, *r = right + s % STAGES * SLICE * TILE_N;
    if (s < end && s < FIRST) {
      load_slice<A_DOWN, TILE_M, M, K>(l, a, row0, s * SLICE);
      load_slice<B_DOWN, TILE_N, N, K>(r, b, column0, s * SLICE);
    } else if (s < end) {
      load_slice<A_DOWN, TILE_M, M, K2>(l, a2, row0, (s - FIRST) * SLICE);
      load_slice<B_DOWN, TILE_N, N, K2>(r, b2, column0, (s - FIRST) * SLICE);
    }
    copies_commit();
  };
  for (int s = begin; s < begin + STAGES - 1; s++) load(s);
  for (int s = begin; s < end; s++) {
    copies_wait<STAGES - 2>();
    __syncthreads();
    load(s + STAGES - 1);
    const u16 *l = left + s % STAGES * SLICE * TILE_M, *r = right + s % STAGES * SLICE * TILE_N;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      u32 x[WARP_M / 16][4], y[WARP_N / 16][4];
#pragma unroll
      for (int i = 0; i < WARP_M / 16; i++) load_a(x[i], l, warp_row + i * 16, half, lane);
#pragma unroll
      for (int j = 0; j < WARP_N / 16; j++) load_b(y[j], r, warp_column + j * 16, half, lane);
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
      put(out, row, column, sums[i][j][0], sums[i][j][1]);
      put(out, row + 8, column, sums[i][j][2], sums[i][j][3]);
    }
}
