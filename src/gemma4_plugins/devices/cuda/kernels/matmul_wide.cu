// The product of matmul.cu for Hopper's warpgroup matrix unit, which reads both operands from shared memory: two
// warpgroups make 64 x TILE_N each of a tile of TILE_M x TILE_N. Slices of DEPTH along K pass through STAGES buffers, in rows of
// 128 bytes as wgmma.cu has them: along K, or along M or N where K runs down a matrix. K2 and PARTS are as there.
constexpr int THREADS = 256;
constexpr int LEFT_BYTES = TILE_M * DEPTH * 2, STAGE_BYTES = LEFT_BYTES + TILE_N * DEPTH * 2;

// One thread's share of a slice: 16-byte pieces of rows of memory, LIMIT rows or columns there are across K in all.
template <bool DOWN, int TILE, int LIMIT> struct Slices {
  static constexpr int PIECES = DOWN ? TILE / 8 : DEPTH / 8, ROWS = THREADS / PIECES, ROUNDS = TILE * DEPTH / 8 / THREADS;
  int first, row, piece;
  u8* to;

  DEVICE Slices(int first, u8* memory) : first(first) {
    row = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
    to = memory + (piece >> 3) * 8192 + row * 128 + (((piece & 7) ^ (row & 7)) << 4);
  }
  // Of a matrix that is LENGTH deep, from `k` on.
  template <int LENGTH> DEVICE void load(const u16* from, int stage, int k) {
#pragma unroll
    for (int i = 0; i < ROUNDS; i++) {
      int along = row + i * ROWS, deep = k + (DOWN ? along : piece * 8), across = first + (DOWN ? piece * 8 : along);
      bool real = deep < LENGTH && across < LIMIT;
      long long at = DOWN ? (long long)deep * LIMIT + across : (long long)across * LENGTH + deep;
      copy16_or_zeros(to + stage * STAGE_BYTES + i * ROWS * 128, from + (real ? at : 0), real);
    }
  }
};

DEVICE u64 left_operand(const u8* tile, int group, int part) {
  return A_DOWN ? matrix_operand_down(tile + group * 8192, part * 16) : matrix_operand(tile + group * 8192, part * 32);
}
DEVICE u64 right_operand(const u8* tile, int part) {
  return B_DOWN ? matrix_operand_down(tile, part * 16) : matrix_operand(tile, part * 32);
}

#if K2
KERNEL(THREADS) NAME(OUT* out, const u16* a, const u16* b, const u16* a2, const u16* b2) {
#else
KERNEL(THREADS) NAME(OUT* out, const u16* a, const u16* b) {
  const u16 *a2 = a, *b2 = b;  // nothing is read of them
#endif
  SHARED_MEMORY(memory);
  const int group = threadIdx.x >> 7, lane = threadIdx.x & 31, row0 = blockIdx.y * TILE_M, column0 = blockIdx.x * TILE_N;
  constexpr int FIRST = (K + DEPTH - 1) / DEPTH, STEPS = FIRST + (K2 + DEPTH - 1) / DEPTH, EACH = (STEPS + PARTS - 1) / PARTS;
  const int index = blockIdx.z / PARTS, begin = PARTS > 1 ? blockIdx.z % PARTS * EACH : 0;
  const int end = PARTS > 1 && begin + EACH < STEPS ? begin + EACH : STEPS;
  a += (long long)index * M * K, b += (long long)(index / GROUP) * N * K, out += (long long)blockIdx.z * M * N;
  Slices<A_DOWN, TILE_M, M> left(row0, memory);
  Slices<B_DOWN, TILE_N, N> right(column0, memory + LEFT_BYTES);
  float sums[TILE_N / 2] = {};

  auto load = [&](int s) {
    const int stage = s % STAGES;
    if (s < end && s < FIRST) {
      left.load<K>(a, stage, s * DEPTH), right.load<K>(b, stage, s * DEPTH);
    } else if (s < end) {
      left.load<K2>(a2, stage, (s - FIRST) * DEPTH), right.load<K2>(b2, stage, (s - FIRST) * DEPTH);
    }
    copies_commit();
  };
  load(begin), load(begin + 1);
  // Copies run two steps ahead: the stage that they overwrite was read two steps ago, which the barrier has seen.
  for (int s = begin; s < end; s++) {
    copies_wait<1>();
    fence_matrix_operands();
    __syncthreads();
    const u8* stage = memory + s % STAGES * STAGE_BYTES;
    matrix_fence();
#pragma unroll
    for (int part = 0; part < DEPTH / 16; part++)
      matrix_multiply<A_DOWN, B_DOWN>(sums, left_operand(stage, group, part), right_operand(stage + LEFT_BYTES, part));
    matrix_commit();
    load(s + 2);
    matrix_wait<1>();
  }
  matrix_wait<0>();

  const int row = row0 + (threadIdx.x >> 5) * 16 + (lane >> 2);
#pragma unroll
  for (int j = 0; j < TILE_N / 8; j++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      int column = column0 + j * 8 + (lane & 3) * 2;
      if (row + 8 * h >= M || column >= N) continue;
      OUT* to = out + (long long)(row + 8 * h) * N + column;
      float x = sums[4 * j + 2 * h], y = sums[4 * j + 2 * h + 1];
#if WIDE
      *(float2*)to = make_float2(x, y);
#else
      *(u32*)to = pack_bf16(x, y);
#endif
    }
}
