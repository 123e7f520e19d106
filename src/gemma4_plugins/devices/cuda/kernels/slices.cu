// Slices of the cached positions are put together: a few by every block for itself, many by sharing the work out.

// Of a few slices: a thread's twos of pairs of output lanes, CONSUMERS apart from its `first`, bf16 four times each.
// Everything is asked for at once; `shares` is room for each slice's share of each head, fp32 [HEADS][JOINED].
DEVICE void join(const Eater& e, const Arguments& a, const Heads& n, int slices, int first, float* shares, u32 tag, u32 (&out)[JOINED_TWOS][2]) {
  constexpr int EACH = JOINED ? JOINED : 1;  // a power of two, so that a head's lanes are in one warp
  constexpr int STATS = (HEADS * EACH + CONSUMERS - 1) / CONSUMERS;
  const int half = n.d() / 2, twos = HEADS * half / 2, apart = n.items() * 8 * (D_MAX / 2);
  const uint2 *stat[STATS], *part[JOINED_TWOS];
  uint4 stats[STATS];  // maximum and sum
  uint4 v[JOINED_TWOS][EACH];
  const uint4 nothing = make_uint4(0, tag, 0, tag);
#pragma unroll
  for (int k = 0; k < STATS; k++) {
    int i = e.thread + k * CONSUMERS, s = i % EACH, head = i / EACH, local, item = n.item_of(head, local);
    stat[k] = s < slices && head < HEADS ? a.scratch + AT_STAT + (s * n.items() + item) * 16 + local * 2 : nullptr;
    stats[k] = stat[k] ? load_two_packets(stat[k]) : make_uint4(as_bits(-1e30f), tag, 0, tag);
  }
#pragma unroll
  for (int k = 0; k < JOINED_TWOS; k++) {
    int two = first + k * CONSUMERS, head = n.by_half(2 * two), local, item = n.item_of(head, local);
    part[k] = a.scratch + AT_PART + item * 8 * (D_MAX / 2) + local * half + 2 * two - head * half;
#pragma unroll
    for (int s = 0; s < EACH; s++) v[k][s] = two < twos && s < slices ? load_two_packets(part[k] + s * apart) : nothing;
  }
  for (u32 spins = 0;; spins++) {
    bool all = true;
    if (v[0][0].y != tag || v[0][0].w != tag) {  // patiently: asking for all of it over and over would be in the way
      if (spins > SPIN_LIMIT) give_up();
      spin_pause();
      v[0][0] = load_two_packets(part[0]);
      continue;
    }
#pragma unroll
    for (int k = 0; k < STATS; k++)
      if (stats[k].y != tag || stats[k].w != tag) all = false, stats[k] = load_two_packets(stat[k]);
#pragma unroll
    for (int k = 0; k < JOINED_TWOS; k++)
#pragma unroll
      for (int s = 0; s < EACH; s++)
        if (v[k][s].y != tag || v[k][s].w != tag) all = false, v[k][s] = load_two_packets(part[k] + s * apart);
    if (all) break;
    if (spins > SPIN_LIMIT) give_up();
    spin_pause();
  }
  __syncwarp();
#pragma unroll
  for (int k = 0; k < STATS; k++) {
    if (e.warp * 32 + k * CONSUMERS >= HEADS * EACH) continue;
    float top = as_float(stats[k].x), most = top;
    for (int o = EACH / 2; o; o >>= 1) most = fmaxf(most, __shfl_xor_sync(ALL, most, o));
    float share = exp_fast(top - most) * as_float(stats[k].z), sum = share;
    for (int o = EACH / 2; o; o >>= 1) sum += __shfl_xor_sync(ALL, sum, o);
    if (e.thread + k * CONSUMERS < HEADS * EACH) shares[e.thread + k * CONSUMERS] = stat[k] ? quotient(share, sum) : 0.f;
  }
  bar_sync(1, CONSUMERS);
#pragma unroll
  for (int k = 0; k < JOINED_TWOS; k++) {
    int two = first + k * CONSUMERS;
    const float* share = shares + (two < twos ? n.by_half(2 * two) : 0) * EACH;
    float x[4] = {0, 0, 0, 0};
#pragma unroll
    for (int s = 0; s < EACH; s++) {
      const float w = share[s];
      x[0] += w * half_to_float((u16)v[k][s].x), x[1] += w * half_to_float((u16)(v[k][s].x >> 16));
      x[2] += w * half_to_float((u16)v[k][s].z), x[3] += w * half_to_float((u16)(v[k][s].z >> 16));
    }
    out[k][0] = pack_bf16(x[0], x[1]), out[k][1] = pack_bf16(x[2], x[3]);
  }
}

// One slice's share of a pair of output lanes.
struct SlicePart {
  const uint2 *stat, *part;
  uint2 top, total, pair;
  DEVICE void ask(const uint2* stats, const uint2* parts) {
    stat = stats, part = parts;
    top = load_packet(stat), total = load_packet(stat + 1), pair = load_packet(part);
  }
  DEVICE bool complete(u32 tag) {
    if (top.y == tag && total.y == tag && pair.y == tag) return true;
    if (top.y != tag) top = load_packet(stat);
    if (total.y != tag) total = load_packet(stat + 1);
    if (pair.y != tag) pair = load_packet(part);
    return false;
  }
};

// Of many slices: put them together, a block its share of the result. A warp makes two neighbouring lanes of a head (two
// such pairs at a time), its lanes look at one slice each.
DEVICE void combine(const Eater& e, const Arguments& a, const Heads& n, int slices, u32 tag_in, u32 tag_out) {
  const int half = n.d() / 2, pairs = HEADS * half, to = share(pairs, this_block() + 1);
#pragma unroll 1
  for (int first = share(pairs, this_block()) + e.warp; first < to; first += 2 * WARPS) {
    float top[2] = {-1e30f, -1e30f}, sum[2] = {0, 0}, x[2] = {0, 0}, y[2] = {0, 0};
    const bool two = first + WARPS < to;
    int stat[2], part[2];
#pragma unroll
    for (int k = 0; k < 2; k++) {
      int pair = first + k * WARPS, head = n.by_half(pair), local, item = n.item_of(head, local);
      stat[k] = AT_STAT + item * 16 + local * 2;
      part[k] = AT_PART + item * 8 * (D_MAX / 2) + local * half + pair - head * half;
    }
#pragma unroll 1
    for (int s = e.lane; s < slices; s += 32) {
      const int block = s * n.items();
      SlicePart p[2];
#pragma unroll
      for (int k = 0; k < 2; k++)
        if (k == 0 || two) p[k].ask(a.scratch + stat[k] + block * 16, a.scratch + part[k] + block * 8 * (D_MAX / 2));
      bool done[2] = {false, !two};
      for (u32 spins = 0; !done[0] || !done[1]; spins++) {
        if (!done[0]) done[0] = p[0].complete(tag_in);
        if (!done[1]) done[1] = p[1].complete(tag_in);
        if (spins > SPIN_LIMIT) give_up();
        spin_pause();
      }
#pragma unroll
      for (int k = 0; k < 2; k++) {
        if (k && !two) continue;
        float m = as_float(p[k].top.x), grown = fmaxf(top[k], m), before = exp_fast(top[k] - grown);
        float w = exp_fast(m - grown) * as_float(p[k].total.x);
        sum[k] = sum[k] * before + w;
        x[k] = x[k] * before + w * half_to_float((u16)p[k].pair.x);
        y[k] = y[k] * before + w * half_to_float((u16)(p[k].pair.x >> 16));
        top[k] = grown;
      }
    }
    __syncwarp();
#pragma unroll 1
    for (int k = 0; k <= (int)two; k++) {
      float w = exp_fast(top[0] - warp_max(top[0])), total = sum[0] * w, v0 = x[0] * w, v1 = y[0] * w;
#pragma unroll 1
      for (int o = 16; o; o >>= 1) {
        total += __shfl_xor_sync(ALL, total, o);
        v0 += __shfl_xor_sync(ALL, v0, o);
        v1 += __shfl_xor_sync(ALL, v1, o);
      }
      if (e.lane == 0) store_packet(a.scratch + AT_MIXED + first + k * WARPS, pack_bf16(quotient(v0, total), quotient(v1, total)), tag_out);
      top[0] = top[1], sum[0] = sum[1], x[0] = x[1], y[0] = y[1];
    }
  }
}
