// Mixture of experts inside the persistent step. The copying warp itself chooses the experts when it needs to know
// their rows: until then the ring holds the dense branch, whose rows do not depend on the choice.

constexpr int CHOICE_LANES = EXPERTS ? (EXPERTS + 31) / 32 : 1, EXPERT_ROWS = EXPERT_FF ? EXPERT_FF : 1;

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

DEVICE void Producer::experts() {
  const u8 *gate_up = field(F_EXPERT_GATE_UP), *down = field(F_EXPERT_DOWN);
  choose_experts(a.scratch + AT_ROUTER, router_tag, (const u16*)field(F_EXPERT_SCALE), feed.lane, choice);
  if (feed.lane == 0) mbarrier_arrive(choice_made);
  const int width = HIDDEN * WEIGHT_BYTES, inner = EXPERT_FF * WEIGHT_BYTES;
  int pair = share(TOP * EXPERT_FF / 2, blockIdx.x) * 2, first = share(HIDDEN, blockIdx.x);
  feed.stream(pairs_of(TOP * EXPERT_FF, width), [&](int unit, bool second, int) {
    int p = pair + unit, row = choice.expert[p / EXPERT_ROWS] * 2 * EXPERT_FF + p % EXPERT_ROWS + (second ? EXPERT_FF : 0);
    return gate_up + (u64)row * width;
  });
  Rows rows = rows_of(HIDDEN, inner);
  rows.segments = TOP;
  feed.stream(rows, [&](int unit, bool, int segment) {
    return down + ((u64)choice.expert[segment] * HIDDEN + first + unit) * inner;
  });
}

DEVICE void Consumer::experts(int index, int ff) {
  float r = inverse_rms();
  u8 *router = shared + S_ROUTER, *inputs = shared + S_EXPERTS;
  put_weighted(operand(), r, 1);
  put_weighted(router, r * rsqrtf((float)HIDDEN), 2);
  put_weighted(inputs, r, 3);
  operand_ready();
  product(router, EXPERTS, HIDDEN * 2, AT_ROUTER, tag(index, P_ROUTER));
  gated(operand(), ff, AT_GATED, tag(index, P_GATED), [](int) { return 1.f; });
  fetch_weights(0, norm(F_NORM_AFTER));
  fetch_weights(2, norm(F_NORM_DENSE));
  fetch_weights(3, norm(F_NORM_EXPERTS));
  put_pairs(AT_GATED, ff / 2, tag(index, P_GATED));
  operand_ready();
  product(operand(), HIDDEN, ff * WEIGHT_BYTES, AT_DOWN, tag(index, P_DOWN));
  mbarrier_wait(choice_made, index & 1);
  gated(inputs, TOP * EXPERT_FF, AT_EXPERT, tag(index, P_EXPERT), [&](int pair) { return choice.weight[pair / EXPERT_ROWS]; });
  put_pairs(AT_EXPERT, TOP * EXPERT_FF / 2, tag(index, P_EXPERT));
  operand_ready();
  Rows rows = rows_of(HIDDEN, EXPERT_FF * WEIGHT_BYTES);
  rows.segments = TOP;
  publish_rows(rows, operand(), share(HIDDEN, blockIdx.x), AT_EXPERT_DOWN, tag(index, P_EXPERT_DOWN));
}

// Both branches, each normed, their sum normed once more.
DEVICE void Consumer::add_mixture(int index, float factor) {
  float dense[H_PER_THREAD], mixed[H_PER_THREAD];
  receive(AT_DOWN, tag(index, P_DOWN), dense);
  receive(AT_EXPERT_DOWN, tag(index, P_EXPERT_DOWN), mixed);
  float rd = inverse_rms(dense), rm = inverse_rms(mixed);
#pragma unroll
  for (int i = 0; i < H_PER_THREAD; i++)
    if (mine(i)) mixed[i] = dense[i] * rd * weight(2, i) + mixed[i] * rm * weight(3, i);
  add_normed(mixed, factor);
}
