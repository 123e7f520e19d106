// Cross entropy of rows of V raw logits, bf16, V a multiple of 8, against targets; rows of a negative target count nothing.
// With CAP above 0 a logit is CAP tanh(raw / CAP).
// GRADIENT 0: out[n, 2] fp32: a row's loss, and the logarithm of its sum of powers; a block makes a row.
// GRADIENT 1: out[n, V] bf16: the gradient of the raw logits, where `slopes[n]` is that of the losses; a row has CHUNKS
// blocks.
struct Logit { float value, tanh; };

DEVICE Logit logit(float raw) {
  if (CAP <= 0.f) return {raw, 0.f};
  const float t = 1.f - quotient(2.f, 1.f + exp_fast(raw * (2.f / CAP)));
  return {CAP * t, t};
}
DEVICE float piece(const uint4& v, int i) {
  const u32 pair = i < 4 ? (i < 2 ? v.x : v.y) : (i < 6 ? v.z : v.w);
  return i & 1 ? high_bf16(pair) : low_bf16(pair);
}

#if GRADIENT
KERNELS(THREADS, 2) NAME(u16* out, const u16* raw, const int* targets, const float* rows, const float* slopes) {
  const int row = blockIdx.x / CHUNKS, target = targets[row];
  const float total = rows[2 * row + 1], slope = slopes[row];
  const uint4* from = (const uint4*)(raw + (long long)row * V);
  uint4* to = (uint4*)(out + (long long)row * V);
#pragma unroll 4
  for (int i = blockIdx.x % CHUNKS * THREADS + threadIdx.x; i < V / 8; i += CHUNKS * THREADS) {
    if (target < 0) {
      to[i] = make_uint4(0, 0, 0, 0);
      continue;
    }
    const uint4 v = from[i];
    float made[8];
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const Logit x = logit(piece(v, j));
      made[j] = slope * (exp_fast(x.value - total) - (i * 8 + j == target ? 1.f : 0.f)) * (1.f - x.tanh * x.tanh);
    }
    to[i] = make_uint4(pack_bf16(made[0], made[1]), pack_bf16(made[2], made[3]), pack_bf16(made[4], made[5]),
                       pack_bf16(made[6], made[7]));
  }
}
#else
KERNELS(THREADS, 2) NAME(float* out, const u16* raw, const int* targets) {
  BLOCK_MEMORY(memory, THREADS / 32 * 8);
  float *tops = (float*)memory, *sums = tops + THREADS / 32;
  const int row = blockIdx.x, target = targets[row], warp = threadIdx.x >> 5;
  const uint4* from = (const uint4*)(raw + (long long)row * V);
  float top = -3.0e38f, sum = 0.f;
#pragma unroll 4
  for (int i = threadIdx.x; i < V / 8; i += THREADS) {
    const uint4 v = from[i];
    float x[8], most = top;
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] = logit(piece(v, j)).value, most = fmaxf(most, x[j]);
    sum *= exp_fast(top - most), top = most;
#pragma unroll
    for (int j = 0; j < 8; j++) sum += exp_fast(x[j] - top);
  }
  const float of_warp = warp_max(top);
  sum = warp_sum(sum * exp_fast(top - of_warp));
  if (!(threadIdx.x & 31)) tops[warp] = of_warp, sums[warp] = sum;
  __syncthreads();
  if (threadIdx.x) return;
  top = tops[0], sum = 0.f;
  for (int w = 1; w < THREADS / 32; w++) top = fmaxf(top, tops[w]);
  for (int w = 0; w < THREADS / 32; w++) sum += sums[w] * exp_fast(tops[w] - top);
  const float total = top + logf(sum);
  out[2 * row] = target < 0 ? 0.f : total - logit(low_bf16(raw[(long long)row * V + target])).value;
  out[2 * row + 1] = total;
}
#endif
