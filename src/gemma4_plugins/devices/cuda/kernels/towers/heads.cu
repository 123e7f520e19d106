// Heads of queries, keys or values, [COUNT, HEADS, SIZE]: bounded, divided by their root mean square, WEIGHTED, and TURNED
// in two dimensions: the first half of a head by the angles of its row's first axis, the second half by the second's,
// lane j with lane j + SIZE / 4. cos and sin are [COUNT, 2, SIZE / 4] in fp32. One warp a head.
constexpr int QUARTER = SIZE / 4, PAIRS = SIZE / 2, EACH = (PAIRS + 31) / 32;

KERNELS(128, 8) NAME(u16* out, INPUTS) {
  const int lane = threadIdx.x & 31, head = blockIdx.x * 4 + (threadIdx.x >> 5), row = head / HEADS;
  if (head >= COUNT * HEADS) return;
  const u16* from = x + (long long)head * SIZE;
  u16* to = out + (long long)head * SIZE;
  auto place = [](int pair) { return pair / QUARTER * PAIRS + pair % QUARTER; };
  float first[EACH], second[EACH], sum = 0.f;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    int pair = lane + i * 32;
    bool real = pair < PAIRS;
    first[i] = real ? BOUND(low_bf16(from[place(pair)])) : 0.f;
    second[i] = real ? BOUND(low_bf16(from[place(pair) + QUARTER])) : 0.f;
    sum += first[i] * first[i] + second[i] * second[i];
  }
  const float scale = 1.f / sqrtf(warp_sum(sum) / SIZE + EPS);
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    int pair = lane + i * 32;
    if (pair >= PAIRS) continue;
    float a = first[i] * scale, b = second[i] * scale;
#if WEIGHTED
    a *= low_bf16(weight[place(pair)]), b *= low_bf16(weight[place(pair) + QUARTER]);
#endif
#if TURNED
    float c = cos[row * PAIRS + pair], s = sin[row * PAIRS + pair];
    float u = round_bf16(a), v = round_bf16(b);
    a = u * c - v * s, b = v * c + u * s;
#endif
    to[place(pair)] = to_bf16(a), to[place(pair) + QUARTER] = to_bf16(b);
  }
}
