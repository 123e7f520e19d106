// Attention inside the persistent step. A block takes up to 8 query heads of one key-value head and one slice of the
// cached positions, whose keys and values arrive through the ring like weights. The new position's key and value are
// made here from the projections' packets; slice 0 attends to them and writes them to the cache.

struct AttentionMemory {
  u8* queries;     // [8][QUERY_STRIDE]: bf16 operands, one query head per column of the matrix unit
  float* scores;   // [8][SCORES]; the new position's is at SPAN
  static constexpr int SCORES = SPAN + 4;  // so that a tile's heads lie in different banks
  u8* probabilities;  // [8][PROBABILITY_STRIDE]: bf16 operands
  float *top, *total, *shrink, *fresh;  // per head: maximum, sum, factor for earlier sums, weight of the new position
  DEVICE explicit AttentionMemory(u8* base) {
    queries = base;
    scores = (float*)(base + 8 * QUERY_STRIDE);
    probabilities = (u8*)(scores + 8 * SCORES);
    top = (float*)(probabilities + 8 * PROBABILITY_STRIDE);
    total = top + 8;
    shrink = top + 16;
    fresh = top + 24;
  }
};

// One head vector from its packets: normalised, rotated where `norm` is given. Lane l holds the pairs of elements
// 2l, 2l + 64, … of both halves, so that an element and the one it is rotated with are in the same lane.
struct HeadVector {
  static constexpr int MOST = D_MAX / 128, PAIRS = 2 * MOST;  // pairs of a half, of both
  const uint2* from;
  int half, lane;
  uint4 raw[PAIRS];

  DEVICE bool has(int i) const { return i % MOST * 64 < half; }
  DEVICE int at(int i) const { return i % MOST * 64 + i / MOST * half; }

  DEVICE void ask(const uint2* packets, int d, int of_lane) {
    lane = of_lane, from = packets + 2 * lane, half = d / 2;
#pragma unroll
    for (int i = 0; i < PAIRS; i++)
      if (has(i)) raw[i] = load_two_packets(from + at(i));
  }
  // ask again for what was missing; whether everything is there
  DEVICE bool complete(u32 tag) {
    bool all = true;
#pragma unroll
    for (int i = 0; i < PAIRS; i++)
      if (has(i) && (raw[i].y != tag || raw[i].w != tag)) all = false, raw[i] = load_two_packets(from + at(i));
    return all;
  }
  // `norm` [d], `cos` and `sin` [d / 2] are bf16 in shared memory
  DEVICE void finish(const u16* norm, const u16* cos, const u16* sin, float (&v)[PAIRS][2]) const {
    auto pair = [&](const u16* from, int i) { return has(i) ? *(const u32*)(from + 2 * lane + at(i)) : 0u; };
    float squares = 0;
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
      v[i][0] = has(i) ? as_float(raw[i].x) : 0.f, v[i][1] = has(i) ? as_float(raw[i].z) : 0.f;
      squares += v[i][0] * v[i][0] + v[i][1] * v[i][1];
    }
    float r = rsqrtf(quotient(warp_sum(squares), 2 * half) + EPS);
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
      const u32 w = norm ? pair(norm, i) : 0x3f803f80u;
      v[i][0] *= r * low_bf16(w), v[i][1] *= r * high_bf16(w);
    }
    if (!norm) return;
#pragma unroll
    for (int i = 0; i < MOST; i++) {
      const u32 c = pair(cos, i), s = pair(sin, i);
#pragma unroll
      for (int k = 0; k < 2; k++) {
        float x = v[i][k], y = v[i + MOST][k];
        float cs = k ? high_bf16(c) : low_bf16(c), sn = k ? high_bf16(s) : low_bf16(s);
        v[i][k] = x * cs - y * sn;
        v[i + MOST][k] = y * cs + x * sn;
      }
    }
  }
};

struct NewPosition {  // bf16 [D] each, kept in shared memory for the layers that share them
  u16 *key, *value;
};

struct LayerAttention {
  bool own, key_is_value;
  const u16 *norm_q, *norm_k, *cos, *sin;  // in shared memory
  u8* cache;
  int slots;
};

// Queries for the scores; and, with the new position, its key and value. A warp takes a vector at a time.
DEVICE void prepare_heads(const Eater& e, const Arguments& a, const Heads& n, const Slice& s, const LayerAttention& layer, const AttentionMemory& m,
                          const NewPosition& fresh, u32 tag) {
  const int d = n.d(), jobs = s.heads + (s.index == 0 && layer.own ? 2 : 0);
#pragma unroll 1
  for (int job = e.warp; job < jobs; job += WARPS) {
    const bool query = job < s.heads, value = job > s.heads;
    int head = query ? s.first_head + job : HEADS + s.kv_head + (value && !layer.key_is_value ? n.keys() : 0);
    HeadVector vector;
    vector.ask(a.scratch + AT_QKV + head * d, d, e.lane);
    for (u32 spins = 0; !vector.complete(tag); spins++) {
      if (spins > SPIN_LIMIT) give_up();
      spin_pause();
    }
    __syncwarp();
    float x[HeadVector::PAIRS][2];
    vector.finish(query ? layer.norm_q : value ? nullptr : layer.norm_k, layer.cos, layer.sin, x);
    u8* to = query ? m.queries + job * QUERY_STRIDE + operand_offset(2 * e.lane) : (u8*)((value ? fresh.value : fresh.key) + 2 * e.lane);
    u16* cached = (u16*)layer.cache + ((u64)((value ? n.keys() : 0) + s.kv_head) * layer.slots + s.fresh) * d + 2 * e.lane;
    const bool cache = !query && s.first_head == s.kv_head * n.group();
#pragma unroll
    for (int i = 0; i < HeadVector::PAIRS; i++) {
      if (!vector.has(i)) continue;
      u32 bits = pack_bf16(x[i][0], x[i][1]);
      *(u32*)(to + 2 * vector.at(i)) = bits;  // operands, too, lie 128 bytes on for each 64 elements
      if (cache) *(u32*)(cached + vector.at(i)) = bits;
    }
  }
}

// Scores of 16 positions whose key rows this lane addresses at `row`, for 8 heads; head_dim is a multiple of 128.
DEVICE void score_tile(const AttentionMemory& m, const u8* row, int d, int lane, int heads, float (&c)[4]) {
  constexpr int GROUPS = 4;  // of 32 elements
  int head = lane >> 2;
  const u8* query = m.queries + (head < heads ? head : 0) * QUERY_STRIDE + (lane & 3) * 16;
  float sums[4][4] = {};
#pragma unroll 2
  for (int s = 0; s < d / 32; s += GROUPS) {
    u32 a[GROUPS][2][4];
    uint4 q[GROUPS];
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
      load_tiles(a[g][0], row + (s + g) * 64);
      load_tiles(a[g][1], row + (s + g) * 64 + 32);
      q[g] = *(const uint4*)(query + (s + g) * 64);
    }
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
      multiply(sums[g & 1], a[g][0], q[g].x, q[g].y);
      multiply(sums[2 + (g & 1)], a[g][1], q[g].z, q[g].w);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++) c[i] = sums[0][i] + sums[1][i] + (sums[2][i] + sums[3][i]);
}

DEVICE void score_keys(Eater& e, const AttentionMemory& m, int d, int count, int piece, int heads, const u16* fresh_key) {
  const int chunk = (e.lane >> 4) * 16, stride = d * 2 + 16;
  float *own = m.scores + (e.lane & 3) * 2 * m.SCORES + (e.lane >> 2), *other = own + m.SCORES;
  float c[4];
#pragma unroll 1
  for (int at = 0; at < count; at += piece) {
    int here = count - at < piece ? count - at : piece;
    mbarrier_wait(e.ring.full + e.ring.stage, e.ring.parity);
#pragma unroll 1
    for (int tile = 0; tile < here; tile += 16) {
      if (((at + tile) >> 4) % WARPS != e.warp) continue;
      int row = tile + tile_row(e.lane);
      score_tile(m, e.ring.here() + (row < here ? row : here - 1) * stride + chunk, d, e.lane, heads, c);
      own[at + tile] = c[0], other[at + tile] = c[1], own[at + tile + 8] = c[2], other[at + tile + 8] = c[3];
    }
    __syncwarp();
    if (e.lane == 0) mbarrier_arrive(e.ring.empty + e.ring.stage);
    e.ring.advance();
  }
  if (fresh_key && e.warp == WARPS - 1) {
    score_tile(m, (const u8*)fresh_key + chunk, d, e.lane, heads, c);
    if (e.lane < 4) own[SPAN] = c[0], other[SPAN] = c[1];
  }
}

// Softmax over the positions at hand, going on from what came before.
DEVICE void weigh(const Eater& e, const AttentionMemory& m, int count, int heads, bool first, bool with_fresh) {
#pragma unroll 1
  for (int head = e.warp; head < heads; head += WARPS) {
    const float *from = m.scores + head * m.SCORES + e.lane, before = first ? -1e30f : m.top[head];
    const float fresh = with_fresh ? m.scores[head * m.SCORES + SPAN] : -1e30f;
    float s[SPAN / 32], top = before, sum = 0;
#pragma unroll
    for (int i = 0; i < SPAN / 32; i++) {
      s[i] = i * 32 + e.lane < count ? from[i * 32] : -1e30f;
      top = fmaxf(top, s[i]);
    }
    top = fmaxf(warp_max(top), fresh);
    u8* to = m.probabilities + head * PROBABILITY_STRIDE + operand_offset(e.lane);
#pragma unroll
    for (int i = 0; i < SPAN / 32; i++) {  // a group of 32 positions: 64 bytes of operand
      if (i * 32 >= count) break;
      float p = i * 32 + e.lane < count ? exp_fast(s[i] - top) : 0.f;
      sum += p;
      *(u16*)(to + i * 64) = to_bf16(p);
    }
    sum = warp_sum(sum);
    float shrink = first ? 0.f : exp_fast(before - top), weight = with_fresh ? exp_fast(fresh - top) : 0.f;
    if (e.lane == 0) {
      m.total[head] = sum + weight + (first ? 0.f : m.total[head] * shrink);
      m.top[head] = top;
      m.shrink[head] = shrink;
      m.fresh[head] = weight;
    }
    __syncwarp();
  }
}

// A warp's tiles of 16 value lanes: sums over positions for 8 heads.
struct Mixed {
  static constexpr int TILES = (D_MAX / 16 + WARPS - 1) / WARPS;
  float sums[TILES][4];
};

DEVICE void mix_values(Eater& e, const AttentionMemory& m, int width, int count, int piece, int heads, bool first, const u16* fresh_value, Mixed& out) {
  int head = (e.lane & 3) * 2, column = e.lane >> 2;
  float shrink0 = first ? 0.f : m.shrink[head], shrink1 = first ? 0.f : m.shrink[head + 1];
#pragma unroll
  for (int k = 0; k < Mixed::TILES; k++) {
    out.sums[k][0] *= shrink0, out.sums[k][1] *= shrink1, out.sums[k][2] *= shrink0, out.sums[k][3] *= shrink1;
    int d = (e.warp + k * WARPS) * 16 + column;
    if (fresh_value && d < width) {
      float low = low_bf16(fresh_value[d]), high = low_bf16(fresh_value[d + 8]), p0 = m.fresh[head], p1 = m.fresh[head + 1];
      out.sums[k][0] += p0 * low, out.sums[k][1] += p1 * low, out.sums[k][2] += p0 * high, out.sums[k][3] += p1 * high;
    }
  }
  const u8* p = m.probabilities + (column < heads ? column : 0) * PROBABILITY_STRIDE + (e.lane & 3) * 16;
#pragma unroll 1
  for (int at = 0; at < count; at += piece) {
    const int here = count - at < piece ? count - at : piece, row = (e.lane & 7) + (e.lane >> 4) * 8;
    mbarrier_wait(e.ring.full + e.ring.stage, e.ring.parity);
    const u8* from = e.ring.here() + ((e.lane >> 3) & 1) * 16 + e.warp * 32;
    for (int step = 0; step < here; step += 32) {  // two tiles of 16 positions; beyond the last one probabilities are zero
      const bool two = step + 16 < here;
      const uint4 b = *(const uint4*)(p + (at + step >> 5) * 64);
      const u8 *low = from + (step + row < here ? step + row : here - 1) * (width * 2 + 16), *high = from + (step + 16 + row < here ? step + 16 + row : here - 1) * (width * 2 + 16);
      u32 a[Mixed::TILES][2][4];
#pragma unroll
      for (int k = 0; k < Mixed::TILES; k++) {
        if ((e.warp + k * WARPS) * 16 >= width) break;
        load_tiles_transposed(a[k][0], low + k * WARPS * 32);
        if (two) load_tiles_transposed(a[k][1], high + k * WARPS * 32);
      }
#pragma unroll
      for (int k = 0; k < Mixed::TILES; k++) {
        if ((e.warp + k * WARPS) * 16 >= width) break;
        multiply(out.sums[k], a[k][0], (at + step) >> 4 & 1 ? b.z : b.x, (at + step) >> 4 & 1 ? b.w : b.y);
        if (two) multiply(out.sums[k], a[k][1], b.z, b.w);
      }
    }
    __syncwarp();
    if (e.lane == 0) mbarrier_arrive(e.ring.empty + e.ring.stage);
    e.ring.advance();
  }
}

// This slice's part of the output, normalised by its own sum, as pairs of fp16 (values are unit-norm vectors' means,
// so that fp16 holds them with more bits than bf16).
DEVICE void publish_part(const Eater& e, const Arguments& a, const AttentionMemory& m, int width, int heads, const Mixed& out, u32 tag) {
  uint2* part = a.scratch + AT_PART + this_block() * 8 * (D_MAX / 2);
  int head = (e.lane & 3) * 2, column = e.lane >> 2, odd = column & 1;
  float scale0 = head < heads ? quotient(1.f, m.total[head]) : 0.f, scale1 = head + 1 < heads ? quotient(1.f, m.total[head + 1]) : 0.f;
#pragma unroll
  for (int k = 0; k < Mixed::TILES; k++) {
    int tile = e.warp + k * WARPS;
    if (tile * 16 >= width) continue;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      // lanes of even columns send the pair of the first head, lanes of odd columns that of the second
      float one = out.sums[k][half * 2] * scale0, two = out.sums[k][half * 2 + 1] * scale1;
      float got = __shfl_xor_sync(ALL, odd ? one : two, 4);
      u32 pair = odd ? pack_half(got, two) : pack_half(one, got);
      int h = head + odd, d = tile * 16 + half * 8 + (column & ~1);
      if (h < heads) store_packet(part + h * (width / 2) + d / 2, pair, tag);
    }
  }
  uint2* stat = a.scratch + AT_STAT + this_block() * 16;
  if (e.thread < heads) {
    store_packet(stat + e.thread * 2, as_bits(m.top[e.thread]), tag);
    store_packet(stat + e.thread * 2 + 1, as_bits(m.total[e.thread]), tag);
  }
}

template <class Mark>
DEVICE void attend(Eater& e, const Arguments& a, const Heads& n, const Slice& s, const LayerAttention& layer, u8* memory, const NewPosition& fresh, u32 tag_in,
                   u32 tag_out, Mark mark) {
  if (s.index >= s.slices) return;
  AttentionMemory m(memory);
  prepare_heads(e, a, n, s, layer, m, fresh, tag_in);
  bar_sync(1, CONSUMERS);
  mark(36);
  Mixed out = {};
  const int piece = n.piece(), d = n.d();
#pragma unroll 1
  for (int base = 0; base == 0 || base < s.count; base += SPAN) {
    int count = s.count - base < SPAN ? s.count - base : SPAN;
    bool first = base == 0, with_fresh = first && s.index == 0;
    score_keys(e, m, d, count, piece, s.heads, with_fresh ? fresh.key : nullptr);
    bar_sync(1, CONSUMERS);
    mark(37);
    weigh(e, m, count, s.heads, first, with_fresh);
    bar_sync(1, CONSUMERS);
    mark(38);
    mix_values(e, m, d, count, piece, s.heads, first, with_fresh ? fresh.value : nullptr, out);
    mark(39);
  }
  publish_part(e, a, m, d, s.heads, out, tag_out);
  bar_sync(1, CONSUMERS);  // the memory is the next operand's
}
