// out[COUNT, WIDTH] = x * (mean(x^2) + EPS)^-1/2 * weight, in fp32, x bounded before; ADDED to h. bf16 in and out. WIDTH is
// a multiple of 2. One warp a row.
KERNELS(128, 8) NAME(u16* out, INPUTS) {
  const int lane = threadIdx.x & 31, row = blockIdx.x * 4 + (threadIdx.x >> 5);
  if (row >= COUNT) return;
  const u32 *from = (const u32*)(x + (long long)row * WIDTH), *scales = (const u32*)weight;
  u32* to = (u32*)(out + (long long)row * WIDTH);
  float sum = 0.f;
  for (int i = lane; i < WIDTH / 2; i += 32) {
    float a = BOUND(low_bf16(from[i])), b = BOUND(high_bf16(from[i]));
    sum += a * a + b * b;
  }
  const float scale = 1.f / sqrtf(warp_sum(sum) / WIDTH + EPS);
  for (int i = lane; i < WIDTH / 2; i += 32) {
    u32 normed = pack_bf16(BOUND(low_bf16(from[i])) * scale * low_bf16(scales[i]),
                           BOUND(high_bf16(from[i])) * scale * high_bf16(scales[i]));
#if ADDED
    u32 before = ((const u32*)(h + (long long)row * WIDTH))[i];
    normed = pack_bf16(low_bf16(before) + low_bf16(normed), high_bf16(before) + high_bf16(normed));
#endif
    to[i] = normed;
  }
}
