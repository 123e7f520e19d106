// The inside of a gated MLP over COUNT bf16 numbers, a multiple of 8: MODE 0: out = gelu_tanh(gate) * up, the first factor
// rounded as the portable form does; 1: the gradient of up, dy * gelu_tanh(gate); 2: that of gate, dy * up * gelu_tanh'(gate).
constexpr float SCALE = 0.7978845608028654f, CUBE = 0.044715f;

DEVICE float bent(float x) {  // tanh of what gelu_tanh bends
  return 1.f - quotient(2.f, 1.f + exp_fast(2.f * SCALE * (x + CUBE * x * x * x)));
}
DEVICE float gelu(float x) { return 0.5f * x * (1.f + bent(x)); }
DEVICE float gelu_slope(float x) {
  const float t = bent(x);
  return 0.5f * (1.f + t) + 0.5f * x * (1.f - t * t) * SCALE * (1.f + 3.f * CUBE * x * x);
}
DEVICE float number(float gate, float one, float two) {
  if (MODE == 0) return round_bf16(gelu(gate)) * one;
  return MODE == 1 ? one * gelu(gate) : one * two * gelu_slope(gate);
}
DEVICE u32 pair(u32 gate, u32 one, u32 two) {
  return pack_bf16(number(low_bf16(gate), low_bf16(one), low_bf16(two)), number(high_bf16(gate), high_bf16(one), high_bf16(two)));
}

// `two` is read in mode 2 alone
DEVICE void gated(u16* out, const u16* gate, const u16* one, const u16* two) {
  const long long at = ((long long)blockIdx.x * THREADS + threadIdx.x) * 8;
  if (at >= COUNT) return;
  const uint4 g = *(const uint4*)(gate + at), a = *(const uint4*)(one + at), b = MODE == 2 ? *(const uint4*)(two + at) : a;
  *(uint4*)(out + at) = make_uint4(pair(g.x, a.x, b.x), pair(g.y, a.y, b.y), pair(g.z, a.z, b.z), pair(g.w, a.w, b.w));
}

#if MODE == 2
KERNELS(THREADS, 2) NAME(u16* out, const u16* gate, const u16* dy, const u16* up) { gated(out, gate, dy, up); }
#else
KERNELS(THREADS, 2) NAME(u16* out, const u16* gate, const u16* factor) { gated(out, gate, factor, factor); }
#endif
