// out[ROWS, WIDTH] = x * (mean(x^2) + EPS)^-1/2 * weight, in fp32, bf16 in and out. WIDTH is a multiple of 2. One warp a row.
extern "C" __global__ void __launch_bounds__(128) NAME(u16* __restrict__ out, const u16* __restrict__ x,
                                                       const u16* __restrict__ weight) {
  const int lane = threadIdx.x & 31, row = blockIdx.x * 4 + (threadIdx.x >> 5);
  if (row >= ROWS) return;
  const u32 *from = (const u32*)(x + (long long)row * WIDTH), *scales = (const u32*)weight;
  u32* to = (u32*)(out + (long long)row * WIDTH);
  float sum = 0.f;
  for (int i = lane; i < WIDTH / 2; i += 32) {
    float a = low_half(from[i]), b = high_half(from[i]);
    sum += a * a + b * b;
  }
  for (int d = 16; d; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  const float scale = 1.f / sqrtf(sum / WIDTH + EPS);
  for (int i = lane; i < WIDTH / 2; i += 32)
    to[i] = pack(low_half(from[i]) * scale * low_half(scales[i]), high_half(from[i]) * scale * high_half(scales[i]));
}
