// Attention of a chunk against the cache, which already holds the chunk's own keys and values. Tokens of a picture may see
// those behind them: `until` has the last position that each position of the chunk sees, or is null. A block takes 64 rows: the
// query heads of one key head for some neighbouring positions, so that each key read serves them all. Warps 0-3 and 4-7
// take 16 rows each; the two warps of a row group share the keys for the scores and the value lanes for the mixing.

template <int D> struct ChunkShape {
  static constexpr int KEYS = D > 256 ? 32 : 64, STRIDE = D * 2 + 16, CHANCE = KEYS * 2 + 16;
  static constexpr int QUERIES = 0, KEY = QUERIES + 64 * STRIDE, VALUE = KEY + KEYS * STRIDE, CHANCES = VALUE + KEYS * STRIDE,
                       TOPS = CHANCES + 64 * CHANCE, SHARED = TOPS + 2 * 64 * 4;
  static constexpr int SCORE_TILES = KEYS / 16;      // of 8 keys, for one warp
  static constexpr int VALUE_TILES = D / 16;         // of 8 lanes, for one warp
};

template <int D> struct ChunkAttention {
  typedef ChunkShape<D> S;
  u8* memory;
  int thread, rows, half, lane;
  float sums[S::VALUE_TILES][4], top[2], total[2];

  DEVICE void copy_keys(int place, const u16* from, int slots, int first, int last) {
    constexpr int PIECES = D / 8;
    for (int i = thread; i < S::KEYS * PIECES; i += 256) {
      int key = i / PIECES, p = first + key < last ? first + key : last - 1;
      copy16(memory + place + key * S::STRIDE + i % PIECES * 16, from + (u64)(p % slots) * D + i % PIECES * 8);
    }
    copies_commit();
  }

  DEVICE void scores(float (&s)[S::SCORE_TILES][4]) {
    const u8* q = memory + S::QUERIES + (rows + (lane & 15)) * S::STRIDE + (lane >> 4) * 16;
    const u8* k = memory + S::KEY + (half * (S::KEYS / 2) + (lane & 7) + (lane >> 4) * 8) * S::STRIDE + ((lane >> 3) & 1) * 16;
#pragma unroll
    for (int j = 0; j < S::SCORE_TILES; j++) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0;
#pragma unroll 4
    for (int d = 0; d < D / 16; d++) {
      u32 a[4];
      load_tiles(a, q + d * 32);
#pragma unroll
      for (int j = 0; j < S::SCORE_TILES; j += 2) {
        u32 b[4];
        load_tiles(b, k + j * 8 * S::STRIDE + d * 32);
        multiply(s[j], a, b[0], b[1]);
        if (j + 1 < S::SCORE_TILES) multiply(s[j + 1], a, b[2], b[3]);
      }
    }
  }

  // Row maxima with the other warp of the rows, then weights to shared memory.
  DEVICE void weigh(float (&s)[S::SCORE_TILES][4]) {
    float* tops = (float*)(memory + S::TOPS);
    float high[2] = {-1e30f, -1e30f};
#pragma unroll
    for (int j = 0; j < S::SCORE_TILES; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) high[i >> 1] = fmaxf(high[i >> 1], s[j][i]);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      high[h] = fmaxf(high[h], __shfl_xor_sync(ALL, high[h], 1));
      high[h] = fmaxf(high[h], __shfl_xor_sync(ALL, high[h], 2));
      if ((lane & 3) == 0) tops[half * 64 + rows + (lane >> 2) + 8 * h] = high[h];
    }
    __syncthreads();
#pragma unroll
    for (int h = 0; h < 2; h++) {
      int row = rows + (lane >> 2) + 8 * h;
      float grown = fmaxf(top[h], fmaxf(high[h], tops[(1 - half) * 64 + row])), shrink = exp_fast(top[h] - grown), sum = 0;
      u8* to = memory + S::CHANCES + row * S::CHANCE + (half * (S::KEYS / 2) + (lane & 3) * 2) * 2;
#pragma unroll
      for (int j = 0; j < S::SCORE_TILES; j++) {
        float x = exp_fast(s[j][2 * h] - grown), y = exp_fast(s[j][2 * h + 1] - grown);
        // a row that has seen no key yet: every score is the mask's
        if (grown <= -1e29f) x = y = 0.f;
        sum += x + y;
        *(u32*)(to + j * 16) = pack_bf16(x, y);
      }
      total[h] = total[h] * shrink + sum;
      top[h] = grown;
#pragma unroll
      for (int j = 0; j < S::VALUE_TILES; j++) sums[j][2 * h] *= shrink, sums[j][2 * h + 1] *= shrink;
    }
  }

  DEVICE void mix() {
    const u8* p = memory + S::CHANCES + (rows + (lane & 15)) * S::CHANCE + (lane >> 4) * 16;
    const u8* v = memory + S::VALUE + (lane & 15) * S::STRIDE + half * D + (lane >> 4) * 16;
#pragma unroll
    for (int k = 0; k < S::KEYS / 16; k++) {
      u32 a[4];
      load_tiles(a, p + k * 32);
#pragma unroll
      for (int j = 0; j < S::VALUE_TILES; j += 2) {
        u32 b[4];
        load_tiles_transposed(b, v + k * 16 * S::STRIDE + j * 16);
        multiply(sums[j], a, b[0], b[1]);
        multiply(sums[j + 1], a, b[2], b[3]);
      }
    }
  }
};

template <int D, int KV>
DEVICE void attend_chunk(const u16* queries, const u16* cache, u16* out, int slots, int start, int count, int window,
                         const int* until) {
  typedef ChunkShape<D> S;
  constexpr int GROUP = HEADS / KV;
  SHARED_MEMORY(memory);
  ChunkAttention<D> c;
  int warp = threadIdx.x >> 5, head = blockIdx.y, first_row = blockIdx.x * 64;
  c.memory = memory, c.thread = threadIdx.x, c.lane = c.thread & 31, c.rows = (warp & 3) * 16, c.half = warp >> 2;
#pragma unroll
  for (int j = 0; j < S::VALUE_TILES; j++) c.sums[j][0] = c.sums[j][1] = c.sums[j][2] = c.sums[j][3] = 0;
  c.top[0] = c.top[1] = -1e30f, c.total[0] = c.total[1] = 0;
  // row r of the key head: position r / GROUP, query head r % GROUP
  int last_row = first_row + 63 < count * GROUP ? first_row + 63 : count * GROUP - 1;
  for (int i = c.thread; i < 64 * (D / 8); i += 256) {
    int r = first_row + i / (D / 8);
    if (r > last_row) r = last_row;
    copy16(memory + S::QUERIES + i / (D / 8) * S::STRIDE + i % (D / 8) * 16,
           queries + ((u64)(r / GROUP) * HEADS + head * GROUP + r % GROUP) * D + i % (D / 8) * 8);
  }
  const u16 *keys = cache + (u64)head * slots * D, *values = cache + (u64)(KV + head) * slots * D;
  int oldest = start + first_row / GROUP, newest = last_row / GROUP, end = (until ? until[newest] : start + newest) + 1;
  int first = window && oldest - window + 1 > 0 ? oldest - window + 1 : 0;
  if (!window) first = 0;
  int mine[2], seen[2];  // positions of this thread's rows, and the last that they see
#pragma unroll
  for (int h = 0; h < 2; h++) {
    int r = first_row + c.rows + (c.lane >> 2) + 8 * h, at = (r < last_row ? r : last_row) / GROUP;
    mine[h] = start + at, seen[h] = until ? until[at] : start + at;
  }
  c.copy_keys(S::KEY, keys, slots, first, end);
  for (; first < end; first += S::KEYS) {
    copies_wait<0>();
    __syncthreads();
    c.copy_keys(S::VALUE, values, slots, first, end);
    float s[S::SCORE_TILES][4];
    c.scores(s);
#pragma unroll
    for (int j = 0; j < S::SCORE_TILES; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        int p = first + c.half * (S::KEYS / 2) + j * 8 + (c.lane & 3) * 2 + (i & 1), q = mine[i >> 1];
        if (p > seen[i >> 1] || (window && p <= q - window)) s[j][i] = -1e30f;
      }
    c.weigh(s);
    copies_wait<0>();
    __syncthreads();
    if (first + S::KEYS < end) c.copy_keys(S::KEY, keys, slots, first + S::KEYS, end);
    c.mix();
  }
  // both warps' shares of the sum
  float* tops = (float*)(memory + S::TOPS);
  __syncthreads();
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float t = c.total[h];
    t += __shfl_xor_sync(ALL, t, 1);
    t += __shfl_xor_sync(ALL, t, 2);
    c.total[h] = t;
    if ((c.lane & 3) == 0) tops[c.half * 64 + c.rows + (c.lane >> 2) + 8 * h] = t;
  }
  __syncthreads();
#pragma unroll
  for (int h = 0; h < 2; h++) {
    int row = c.rows + (c.lane >> 2) + 8 * h, r = first_row + row;
    if (r > last_row) continue;
    float scale = 1.f / (c.total[h] + tops[(1 - c.half) * 64 + row]);
    u16* to = out + ((u64)(r / GROUP) * HEADS + head * GROUP + r % GROUP) * D + c.half * (D / 2) + (c.lane & 3) * 2;
#pragma unroll
    for (int j = 0; j < S::VALUE_TILES; j++) *(u32*)(to + j * 8) = pack_bf16(c.sums[j][2 * h] * scale, c.sums[j][2 * h + 1] * scale);
  }
}
KERNEL(256) attend_sliding(const u16* queries, const u16* cache, u16* out, int slots, int start, int count, int window,
                           const int* until) {
  attend_chunk<D_SLIDING, KV_SLIDING>(queries, cache, out, slots, start, count, window, until);
}
KERNEL(256) attend_full(const u16* queries, const u16* cache, u16* out, int slots, int start, int count) {
  attend_chunk<D_FULL, KV_FULL>(queries, cache, out, slots, start, count, 0, nullptr);
}
