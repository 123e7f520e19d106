// Mixture of experts inside the persistent step. A copying warp itself chooses the experts when their rows need to be
// known: until then the ring holds the dense branch, whose rows do not depend on the choice.

constexpr int CHOICE_LANES = EXPERTS ? (EXPERTS + 31) / 32 : 1;

// The TOP largest of the router's sums, the earlier of equals first, and their softmax shares times a scale each.
DEVICE void choose_experts(const uint2* sums, u32 tag, const u16* scale, int lane, const Choice& out) {
  float x[CHOICE_LANES], values[TOP ? TOP : 1], total = 0;
#pragma unroll
  for (int i = 0; i < CHOICE_LANES; i++)
    x[i] = lane + 32 * i < EXPERTS ? as_float(wait_packet(sums + lane + 32 * i, tag)) : -1e30f;
  int mine = 0;
#pragma unroll
  for (int k = 0; k < TOP; k++) {
    float best = x[0];
    int at = lane;
#pragma unroll
    for (int i = 1; i < CHOICE_LANES; i++)
      if (x[i] > best) best = x[i], at = lane + 32 * i;
    for (int o = 16; o; o >>= 1) {
      float other = __shfl_xor_sync(ALL, best, o);
      int where = __shfl_xor_sync(ALL, at, o);
      if (other > best || (other == best && where < at)) best = other, at = where;
    }
#pragma unroll
    for (int i = 0; i < CHOICE_LANES; i++)
      if (at == lane + 32 * i) x[i] = -3e30f;
    if (lane == k) mine = at;
    values[k] = best;
  }
  float top = values[0], share = 0;
#pragma unroll
  for (int k = 0; k < TOP; k++) {
    values[k] = exp_fast(values[k] - top);
    total += values[k];
  }
#pragma unroll
  for (int k = 0; k < TOP; k++)
    if (lane == k) share = quotient(values[k], total);
  if (lane < TOP) {
    out.expert[lane] = mine;
    out.weight[lane] = share * low_bf16(load_early(scale + mine));
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
