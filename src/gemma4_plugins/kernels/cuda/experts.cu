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
    if (lane == k) share = values[k] / total;
  if (lane < TOP) {
    out.expert[lane] = mine;
    out.weight[lane] = share * low_bf16(load_early(scale + mine));
  }
  __syncwarp();
}

// The normed stream as operand; before the router with its own weights for router, dense branch and experts.
DEVICE void Consumer::put_branches(int product) {
  float r = inverse_rms();
  put_normed(operand(), unit, r, 1);
  if (!EXPERTS || product != W_ROUTER) return;
  put_normed(shared + S_EXPERTS, expert_unit, r, 3);
  u8* router = shared + S_ROUTER + operand_offset(eat.thread);  // always bf16
  float factor = r * rsqrtf((float)HIDDEN);
#pragma unroll
  for (int i = 0; i < H_PER_THREAD; i++)
    if (mine(i)) *(u16*)(router + i * CONSUMERS * 2) = to_bf16(h(i) * factor * weight_at(2, i));
}

// Both branches, each normed, their sum normed once more.
DEVICE void Consumer::add_mixture(float factor) {
  float dense[H_PER_THREAD], mixed[H_PER_THREAD];
  receive(AT_DOWN, tag(P_DOWN - PHASES), dense);  // of the layer before
  receive(AT_EXPERT_DOWN, tag(P_EXPERT_DOWN - PHASES), mixed);
  float squares[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < H_PER_THREAD; i++)
    if (mine(i)) squares[0] += dense[i] * dense[i], squares[1] += mixed[i] * mixed[i];
  float2 sums = block_sums(squares[0], squares[1]);
  float rd = rsqrtf(sums.x / HIDDEN + EPS), rm = rsqrtf(sums.y / HIDDEN + EPS);
#pragma unroll
  for (int i = 0; i < H_PER_THREAD; i++)
    if (mine(i)) mixed[i] = dense[i] * rd * weight_at(2, i) + mixed[i] * rm * weight_at(3, i);
  add_normed(mixed, factor);
}
