// What happens to a chunk's positions between products, one block per position: embeddings, norms around the residual
// stream (fp32), heads into queries and cache, per-layer inputs, and the choice of experts.

constexpr int ROW_THREADS = 256;

// Sum over the block; `memory` holds 8 floats per use, by turns.
struct RowSums {
  float* memory;
  int turn;
  DEVICE float operator()(float v) {
    float* to = memory + (turn & 1) * 8;
    turn++;
    v = warp_sum(v);
    if ((threadIdx.x & 31) == 0) to[threadIdx.x >> 5] = v;
    __syncthreads();
    v = to[threadIdx.x & 7];
    for (int o = 4; o; o >>= 1) v += __shfl_xor_sync(ALL, v, o);
    return v;
  }
};

// An element of an embedding table: bf16, or int8 times its row's scale, rounded.
DEVICE float table_value(const u8* table, u64 at, const float* scale) {
  return scale ? round_bf16((float)(signed char)table[at] * *scale) : low_bf16(((const u16*)table)[at]);
}

// h[t] = the token's scaled embedding, or row soft[t] of `media` where soft[t] >= 0
KERNEL(256) embed_rows(const int* ids, const int* soft, const u16* media, const u8* table, const float* scale, float* h, u16* x) {
  int t = blockIdx.x, from = soft ? soft[t] : -1;
  u64 first = (u64)(u32)ids[t] * HIDDEN;
  for (int i = threadIdx.x; i < HIDDEN; i += ROW_THREADS) {
    float v = from >= 0 ? low_bf16(media[(u64)from * HIDDEN + i]) : round_bf16(table_value(table, first + i, scale ? scale + ids[t] : nullptr) * EMBED_SCALE);
    h[(u64)t * HIDDEN + i] = v;
    x[(u64)t * HIDDEN + i] = to_bf16(v);
  }
}

// A row of a product's result: the sum of its parts, fp32 [parts, rows, HIDDEN].
struct Result {
  const float* y;
  int parts;
  DEVICE float operator()(int i) const {
    u64 at = (u64)blockIdx.x * HIDDEN + i, each = (u64)gridDim.x * HIDDEN;
    float v = 0;
    for (int p = 0; p < parts; p++) v += y[at + p * each];
    return v;
  }
};

// h = (h + norm(y) * after) * scalar; then x = norm(h) * before, and up to two more operands from the same norm; without
// `before` x = h. Without y the stream stays as it is.
KERNEL(256) norm_rows(float* h, const float* y, int parts, const u16* after, const u16* scalar, const u16* before, u16* x, const u16* before1,
                      u16* x1, float factor1, const u16* before2, u16* x2) {
  SHARED_MEMORY(memory);
  constexpr int EACH = (HIDDEN + ROW_THREADS - 1) / ROW_THREADS;
  RowSums total = {(float*)memory, 0};
  Result result = {y, parts};
  u64 at = (u64)blockIdx.x * HIDDEN;
  float factor = scalar ? low_bf16(*scalar) : 1.f, squares = 0, v[EACH], stream[EACH];
#pragma unroll
  for (int k = 0; k < EACH; k++) {
    int i = threadIdx.x + k * ROW_THREADS;
    stream[k] = i < HIDDEN ? h[at + i] : 0.f;
    v[k] = y && i < HIDDEN ? result(i) : 0.f;
    squares += v[k] * v[k];
  }
  if (y) {
    float r = rsqrtf(total(squares) / HIDDEN + EPS);
#pragma unroll
    for (int k = 0; k < EACH; k++) {
      int i = threadIdx.x + k * ROW_THREADS;
      if (i < HIDDEN) h[at + i] = stream[k] = (stream[k] + v[k] * r * low_bf16(after[i])) * factor;
    }
  }
  squares = 0;
#pragma unroll
  for (int k = 0; k < EACH; k++) squares += stream[k] * stream[k];
  float r = before ? rsqrtf(total(squares) / HIDDEN + EPS) : 1.f;
#pragma unroll
  for (int k = 0; k < EACH; k++) {
    int i = threadIdx.x + k * ROW_THREADS;
    if (i >= HIDDEN) continue;
    float u = stream[k] * r;
    x[at + i] = to_bf16(before ? u * low_bf16(before[i]) : u);
    if (x1) x1[at + i] = to_bf16(u * low_bf16(before1[i]) * factor1);
    if (x2) x2[at + i] = to_bf16(u * low_bf16(before2[i]));
  }
}

// y = norm(dense) * a + norm(mixed) * b, for the mixture's two branches
KERNEL(256) join_branches(const float* dense, int parts, const u16* mixed, const u16* a, const u16* b, float* y) {
  SHARED_MEMORY(memory);
  RowSums total = {(float*)memory, 0};
  Result result = {dense, parts};
  u64 at = (u64)blockIdx.x * HIDDEN;
  float d = 0, m = 0;
  for (int i = threadIdx.x; i < HIDDEN; i += ROW_THREADS) {
    d += result(i) * result(i);
    m += low_bf16(mixed[at + i]) * low_bf16(mixed[at + i]);
  }
  d = rsqrtf(total(d) / HIDDEN + EPS), m = rsqrtf(total(m) / HIDDEN + EPS);
  for (int i = threadIdx.x; i < HIDDEN; i += ROW_THREADS)
    y[at + i] = result(i) * d * low_bf16(a[i]) + low_bf16(mixed[at + i]) * m * low_bf16(b[i]);
}

// One head vector of the projections' row, by one warp: see head_vector of the decode step.
template <int D> DEVICE void head_row(const u16* from, const u16* norm, const u16* cos, const u16* sin, int lane, u16* to) {
  float v[D / 64][2], squares = 0;
#pragma unroll
  for (int i = 0; i < D / 64; i++) {
    u32 pair = *(const u32*)(from + 2 * lane + 64 * i);
    v[i][0] = low_bf16(pair), v[i][1] = high_bf16(pair);
    squares += v[i][0] * v[i][0] + v[i][1] * v[i][1];
  }
  float r = rsqrtf(warp_sum(squares) / D + EPS);
#pragma unroll
  for (int i = 0; i < D / 64; i++) {
    u32 w = norm ? *(const u32*)(norm + 2 * lane + 64 * i) : 0x3f803f80u;
    v[i][0] *= r * low_bf16(w), v[i][1] *= r * high_bf16(w);
  }
  if (norm) {
#pragma unroll
    for (int i = 0; i < D / 128; i++) {
      u32 c = *(const u32*)(cos + 2 * lane + 64 * i), s = *(const u32*)(sin + 2 * lane + 64 * i);
#pragma unroll
      for (int k = 0; k < 2; k++) {
        float x = v[i][k], y = v[i + D / 128][k], cs = k ? high_bf16(c) : low_bf16(c), sn = k ? high_bf16(s) : low_bf16(s);
        v[i][k] = x * cs - y * sn;
        v[i + D / 128][k] = y * cs + x * sn;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < D / 64; i++) *(u32*)(to + 2 * lane + 64 * i) = pack_bf16(v[i][0], v[i][1]);
}

// Queries to `queries`; a layer's own keys and values to the cache. qkv rows: queries, keys, and values unless they are
// the raw keys.
template <int D, int KV>
DEVICE void split_heads(const u16* qkv, int width, bool own, bool one, const u16* norm_q, const u16* norm_k, const u16* cos, const u16* sin, u16* queries,
                        u16* cache, int slots, int start) {
  int t = blockIdx.x, position = start + t, lane = threadIdx.x & 31, slot = position % slots;
  const u16* row = qkv + (u64)t * width;
  cos += (u64)position * (D / 2), sin += (u64)position * (D / 2);
  for (int job = threadIdx.x >> 5; job < HEADS + (own ? 2 * KV : 0); job += ROW_THREADS / 32) {
    bool value = job >= HEADS + KV;
    const u16* from = row + (value && one ? job - KV : job) * D;
    u16* to = job < HEADS ? queries + ((u64)t * HEADS + job) * D : cache + ((u64)(job - HEADS) * slots + slot) * D;
    head_row<D>(from, value ? nullptr : job < HEADS ? norm_q : norm_k, cos, sin, lane, to);
  }
}
KERNEL(256) heads_sliding(const u16* qkv, int width, int own, int one, const u16* norm_q, const u16* norm_k, const u16* cos, const u16* sin, u16* queries,
                          u16* cache, int slots, int start) {
  split_heads<D_SLIDING, KV_SLIDING>(qkv, width, own, one, norm_q, norm_k, cos, sin, queries, cache, slots, start);
}
KERNEL(256) heads_full(const u16* qkv, int width, int own, int one, const u16* norm_q, const u16* norm_k, const u16* cos, const u16* sin, u16* queries,
                       u16* cache, int slots, int start) {
  split_heads<D_FULL, KV_FULL>(qkv, width, own, one, norm_q, norm_k, cos, sin, queries, cache, slots, start);
}

// Per-layer inputs of the first `layers` layers: a block per position, a warp per layer by turns.
KERNEL(256) ple_rows(const int* ids, const u16* context, const u8* table, const float* scales, u64 row_length, int by_position, const u16* norm, u16* out, int layers) {
  int t = blockIdx.x, lane = threadIdx.x & 31;
  int row = by_position ? t : ids[t];
  u64 first = (u64)(u32)row * row_length;
  const float* own = scales ? scales + row : nullptr;
  for (int layer = threadIdx.x >> 5; layer < layers; layer += ROW_THREADS / 32) {
    const u16* from = context + ((u64)t * layers + layer) * PLE;
    float squares = 0;
    const float scale = rsqrtf((float)HIDDEN);
    for (int i = lane; i < PLE; i += 32) squares += low_bf16(from[i]) * scale * low_bf16(from[i]) * scale;
    float r = rsqrtf(warp_sum(squares) / (PLE ? PLE : 1) + EPS) * scale;
    for (int i = lane; i < PLE; i += 32) {
      float v = low_bf16(from[i]) * r * low_bf16(norm[i]) + round_bf16(table_value(table, first + layer * PLE + i, own) * PLE_SCALE);
      out[((u64)t * layers + layer) * PLE + i] = to_bf16(v * 0.70710678f);
    }
  }
}
// x = gelu(gate) * the layer's per-layer input
KERNEL(256) ple_gate(const u16* gate, const u16* inputs, u16* x, int layer, int layers) {
  int t = blockIdx.x;
  for (int i = threadIdx.x; i < PLE; i += ROW_THREADS) {
    float v = low_bf16(inputs[((u64)t * layers + layer) * PLE + i]);
    x[(u64)t * PLE + i] = to_bf16(gelu_tanh(low_bf16(gate[(u64)t * PLE + i])) * v);
  }
}

// ---- experts
// The chosen experts of each position and their weights; counts[e] grows by the positions that chose e.
KERNEL(32) choose_rows(const u16* sums, const u16* scale, int* chosen, float* weight, int* counts) {
  int t = blockIdx.x, lane = threadIdx.x;
  constexpr int EACH = EXPERTS ? (EXPERTS + 31) / 32 : 1;
  float x[EACH], top = 0, total = 0, mine = 0;
  int which = 0;
#pragma unroll
  for (int i = 0; i < EACH; i++) x[i] = lane + 32 * i < EXPERTS ? low_bf16(sums[t * EXPERTS + lane + 32 * i]) : -1e30f;
  for (int k = 0; k < TOP; k++) {
    float best = x[0];
    int at = lane;
#pragma unroll
    for (int i = 1; i < EACH; i++)
      if (x[i] > best) best = x[i], at = lane + 32 * i;
    for (int o = 16; o; o >>= 1) {
      float other = __shfl_xor_sync(ALL, best, o);
      int where = __shfl_xor_sync(ALL, at, o);
      if (other > best || (other == best && where < at)) best = other, at = where;
    }
#pragma unroll
    for (int i = 0; i < EACH; i++)
      if (at == lane + 32 * i) x[i] = -3e30f;
    if (k == 0) top = best;
    float share = exp_fast(best - top);
    total += share;
    if (lane == k) which = at, mine = share;
  }
  if (lane < TOP) {
    chosen[t * TOP + lane] = which;
    weight[t * TOP + lane] = mine / total * low_bf16(scale[which]);
    atomicAdd(counts + which, 1);
  }
}
// One warp: where each expert's rows begin, and the tiles of 64 rows; counts become zero again.
KERNEL(32) plan_experts(int* counts, int* first, int* next, int* tile_expert, int* tile_row, int tiles) {
  constexpr int EACH = EXPERTS ? (EXPERTS + 31) / 32 : 1;
  int lane = threadIdx.x, mine[EACH], rows = 0, used = 0;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    int e = lane * EACH + i;
    mine[i] = e < EXPERTS ? counts[e] : 0;
    if (e < EXPERTS) counts[e] = 0;
    rows += mine[i], used += (mine[i] + 63) / 64;
  }
  int at = rows, tile = used;  // sums over the lanes up to this one
  for (int o = 1; o < 32; o <<= 1) {
    int other = __shfl_up_sync(ALL, at, o), more = __shfl_up_sync(ALL, tile, o);
    if (lane >= o) at += other, tile += more;
  }
  int end = __shfl_sync(ALL, at, 31), last = __shfl_sync(ALL, tile, 31);
  at -= rows, tile -= used;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    int e = lane * EACH + i;
    if (e < EXPERTS) first[e] = next[e] = at;
    for (int row = 0; row < mine[i]; row += 64, tile++) tile_expert[tile] = e, tile_row[tile] = at + row;
    at += mine[i];
  }
  if (lane == 0) first[EXPERTS] = end;
  for (int i = last + lane; i < tiles; i += 32) tile_expert[i] = -1;
}
// Give every choice a row of its expert: source[row] = position, place[position, k] = row.
KERNEL(32) place_rows(const int* chosen, int* next, int* source, int* place) {
  int t = blockIdx.x, lane = threadIdx.x;
  if (lane >= TOP) return;
  int row = atomicAdd(next + chosen[t * TOP + lane], 1);
  source[row] = t;
  place[t * TOP + lane] = row;
}
KERNEL(256) gather_experts(const u16* out, const int* place, const float* weight, u16* mixed) {
  int t = blockIdx.x;
  for (int i = threadIdx.x; i < HIDDEN; i += ROW_THREADS) {
    float v = 0;
    for (int k = 0; k < TOP; k++) v += weight[t * TOP + k] * low_bf16(out[(u64)place[t * TOP + k] * HIDDEN + i]);
    mixed[(u64)t * HIDDEN + i] = to_bf16(v);
  }
}
