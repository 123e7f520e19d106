// Mixture of experts inside the persistent step. A copying warp itself chooses the experts when their rows need to be
// known: until then the ring holds the dense branch, whose rows do not depend on the choice.

// Numbers whose order as integers is that of floats.
DEVICE u32 ordered(float v) { return as_bits(v) & 0x80000000u ? ~as_bits(v) : as_bits(v) | 0x80000000u; }
DEVICE float of_ordered(u32 v) { return as_float(v & 0x80000000u ? v & 0x7fffffffu : ~v); }

// The TOP largest of the router's sums, the earlier of equals first, and their softmax shares times a scale each; bf16
// scales of experts lane, lane + 32, … are in `scales`.
DEVICE void choose_experts(const uint2* sums, u32 tag, const u32 (&scales)[CHOICE_LANES], int lane, const Choice& out) {
  u32 bits[CHOICE_LANES], keys[CHOICE_LANES];
  wait_packets<CHOICE_LANES>(sums + lane, [](int i) { return 32 * i; }, EXPERTS - lane, tag, bits);
  __syncwarp();
#pragma unroll
  for (int i = 0; i < CHOICE_LANES; i++) keys[i] = lane + 32 * i < EXPERTS ? ordered(as_float(bits[i])) : 0;
  float top = 0, total = 0, share = 0, scale = 0;
  int mine = 0;
#pragma unroll
  for (int k = 0; k < TOP; k++) {
    u32 best = keys[0], at = lane;
#pragma unroll
    for (int i = 1; i < CHOICE_LANES; i++)
      if (keys[i] > best) best = keys[i], at = lane + 32 * i;
    const u32 most = warp_largest(best);
    at = warp_least(best == most ? at : ~0u);
    u32 own = 0;
#pragma unroll
    for (int i = 0; i < CHOICE_LANES; i++)
      if (at == (u32)(lane + 32 * i)) keys[i] = 0, own = scales[i];
    own = __shfl_sync(ALL, own, at & 31);
    if (k == 0) top = of_ordered(most);
    const float weight = exp_fast(of_ordered(most) - top);
    total += weight;
    if (lane == k) mine = (int)at, share = weight, scale = low_bf16(own);
  }
  if (lane < TOP) {
    out.expert[lane] = mine;
    out.weight[lane] = quotient(share, total) * scale;
  }
  __syncwarp();
}

// The normed stream with the experts' weights, and with the router's own, which is always bf16.
DEVICE void Consumer::put_branches(const float (&x)[H_PER_THREAD], float norm) {
  u8 *experts = shared + S_EXPERTS + place(first()), *router = shared + S_ROUTER + operand_offset(first());
  const float factor = norm * rsqrtf((float)HIDDEN), units = quotient(1.f, expert_unit);
#pragma unroll
  for (int i = 0; i < H_PER_THREAD; i++) {
    if (!mine(i)) continue;
    put(experts, i, x[i] * norm * weight_at(3, i), units);
    *(u16*)(router + spread(i) * 2) = to_bf16(x[i] * factor * weight_at(2, i));
  }
}

// Both branches of the layer before, each normed: what is normed once more and added to the stream.
DEVICE void Consumer::mix(float (&mixed)[H_PER_THREAD]) {
  float dense[H_PER_THREAD];
  float4 sums = {0, 0, 0, 0}, tops = {0, 0, 0, 0};
  receive(AT_DOWN, tag(P_DOWN - PHASES), dense);
  receive(AT_EXPERT_DOWN, tag(P_EXPERT_DOWN - PHASES), mixed);
#pragma unroll
  for (int i = 0; i < H_PER_THREAD; i++) sums.x += dense[i] * dense[i], sums.y += mixed[i] * mixed[i];
  over_block(sums, tops);
  const float of_dense = inverse_rms(sums.x), of_mixed = inverse_rms(sums.y);
#pragma unroll
  for (int i = 0; i < H_PER_THREAD; i++)
    mixed[i] = mine(i) ? dense[i] * of_dense * weight_at(2, i) + mixed[i] * of_mixed * weight_at(3, i) : 0.f;
}
