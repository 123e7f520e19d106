// out[COUNT, HEADS * SIZE] = softmax(q @ k^T) @ v for every head, scale 1, over the keys that `real` marks.
// q [COUNT, HEADS, SIZE], k and v [COUNT, KEY_HEADS, SIZE], bf16. COUNT is a multiple of 64, SIZE of 8.
// A block takes 64 queries of one head, a warp 16 of them; keys pass by in tiles of 64 with a running softmax, so scores
// never reach memory.
constexpr int TILE = 64, WARPS = 4;
constexpr int WIDE = (SIZE + 15) / 16 * 16, PITCH = WIDE + 8;  // rows an odd number of 16 bytes apart: no bank conflicts
constexpr float LOG2E = 1.4426950408889634f, MASKED = -1e30f;

DEVICE void load_tile(u16* to, const u16* from, int first, int head) {
  constexpr int PIECES = WIDE / 8;
  for (int i = threadIdx.x; i < TILE * PIECES; i += 32 * WARPS) {
    int row = i / PIECES, piece = i % PIECES;
    bool real = piece * 8 < SIZE;
    copy16_or_zeros(to + row * PITCH + piece * 8,
                    from + ((long long)(first + row) * KEY_HEADS + head) * SIZE + (real ? piece * 8 : 0), real);
  }
}

DEVICE u32 pair(const u16* row, int column) { return column < SIZE ? *(const u32*)(row + column) : 0u; }

DEVICE float across(float x, bool largest) {  // over the four lanes that share a row
  for (int d = 1; d < 4; d *= 2) {
    float y = __shfl_xor_sync(0xffffffffu, x, d);
    x = largest ? fmaxf(x, y) : x + y;
  }
  return x;
}

KERNELS(32 * WARPS, 1) NAME(u16* out, INPUTS) {
  BLOCK_MEMORY(memory, 4 * TILE * PITCH * 2 + 2 * TILE * 4);
  typedef u16 Tile[TILE * PITCH];
  Tile *keys = (Tile*)memory, *values = keys + 2;
  float(*bias)[TILE] = (float(*)[TILE])(values + 2);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, head = blockIdx.y, key_head = head / (HEADS / KEY_HEADS);
  const int row = blockIdx.x * TILE + warp * 16 + (lane >> 2), column = (lane & 3) * 2;

  u32 queries[WIDE / 16][4];
  const u16 *top = q + ((long long)row * HEADS + head) * SIZE, *bottom = top + 8LL * HEADS * SIZE;
#pragma unroll
  for (int i = 0; i < WIDE / 16; i++) {
    queries[i][0] = pair(top, i * 16 + column);
    queries[i][1] = pair(bottom, i * 16 + column);
    queries[i][2] = pair(top, i * 16 + column + 8);
    queries[i][3] = pair(bottom, i * 16 + column + 8);
  }
  float mixed[WIDE / 8][4] = {}, peak[2] = {MASKED, MASKED}, total[2] = {0.f, 0.f};

  load_tile(keys[0], k, 0, key_head);
  load_tile(values[0], v, 0, key_head);
  copies_commit();
  for (int tile = 0; tile < COUNT / TILE; tile++) {
    const int slot = tile & 1;
    if (threadIdx.x < TILE) bias[slot][threadIdx.x] = real[tile * TILE + threadIdx.x] ? 0.f : MASKED;
    copies_wait<0>();
    __syncthreads();
    if (tile + 1 < COUNT / TILE) {
      load_tile(keys[slot ^ 1], k, (tile + 1) * TILE, key_head);
      load_tile(values[slot ^ 1], v, (tile + 1) * TILE, key_head);
    }
    copies_commit();

    float scores[TILE / 8][4] = {};
#pragma unroll
    for (int i = 0; i < WIDE / 16; i++)
#pragma unroll
      for (int j = 0; j < TILE / 16; j++) {
        u32 b[4];
        load_tiles(b, keys[slot] + (j * 16 + (lane & 7) + ((lane >> 4) << 3)) * PITCH + i * 16 + ((lane >> 3) & 1) * 8);
        multiply(scores[2 * j], queries[i], b[0], b[1]);
        multiply(scores[2 * j + 1], queries[i], b[2], b[3]);
      }
    float now[2] = {peak[0], peak[1]};
#pragma unroll
    for (int j = 0; j < TILE / 8; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        scores[j][e] += bias[slot][j * 8 + column + (e & 1)];
        now[e >> 1] = fmaxf(now[e >> 1], scores[j][e]);
      }
    float sum[2] = {0.f, 0.f};
#pragma unroll
    for (int h = 0; h < 2; h++) {
      now[h] = across(now[h], true);
      float keep = exp2f((peak[h] - now[h]) * LOG2E);
      peak[h] = now[h];
      total[h] *= keep;
#pragma unroll
      for (int j = 0; j < WIDE / 8; j++) {
        mixed[j][2 * h] *= keep;
        mixed[j][2 * h + 1] *= keep;
      }
    }
#pragma unroll
    for (int j = 0; j < TILE / 8; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        scores[j][e] = exp2f((scores[j][e] - peak[e >> 1]) * LOG2E);
        sum[e >> 1] += scores[j][e];
      }
    total[0] += sum[0];
    total[1] += sum[1];
#pragma unroll
    for (int i = 0; i < TILE / 16; i++) {
      u32 p[4] = {pack_bf16(scores[2 * i][0], scores[2 * i][1]), pack_bf16(scores[2 * i][2], scores[2 * i][3]),
                  pack_bf16(scores[2 * i + 1][0], scores[2 * i + 1][1]), pack_bf16(scores[2 * i + 1][2], scores[2 * i + 1][3])};
#pragma unroll
      for (int j = 0; j < WIDE / 16; j++) {
        u32 b[4];
        load_tiles_transposed(b, values[slot] + (i * 16 + (lane & 15)) * PITCH + j * 16 + (lane >> 4) * 8);
        multiply(mixed[2 * j], p, b[0], b[1]);
        multiply(mixed[2 * j + 1], p, b[2], b[3]);
      }
    }
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float share = 1.f / across(total[h], false);
    u16* to = out + ((long long)(row + 8 * h) * HEADS + head) * SIZE;
#pragma unroll
    for (int j = 0; j < WIDE / 8; j++)
      if (j * 8 + column < SIZE) *(u32*)(to + j * 8 + column) = pack_bf16(mixed[j][2 * h] * share, mixed[j][2 * h + 1] * share);
  }
}
