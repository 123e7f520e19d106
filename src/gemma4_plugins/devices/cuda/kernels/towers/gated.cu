// out = gelu(gate) * up for COUNT values, a multiple of 8, all three bounded. Eight values a thread.
KERNELS(256, 4) NAME(u16* out, INPUTS) {
  const int at = blockIdx.x * 256 + threadIdx.x;
  if (at >= COUNT / 8) return;
  auto gated = [&](float x, float y) {
    float g = BOUND_GATE(x);
    float tanh_of = 1.f - quotient(2.f, 1.f + exp_fast(1.5957691216057308f * (g + 0.044715f * g * g * g)));
    return BOUND_OUT(round_bf16(round_bf16(0.5f * g * (1.f + tanh_of)) * BOUND_UP(y)));
  };
  auto two = [&](u32 g, u32 u) { return pack_bf16(gated(low_bf16(g), low_bf16(u)), gated(high_bf16(g), high_bf16(u))); };
  uint4 g = ((const uint4*)gate)[at], u = ((const uint4*)up)[at];
  ((uint4*)out)[at] = make_uint4(two(g.x, u.x), two(g.y, u.y), two(g.z, u.z), two(g.w, u.w));
}
