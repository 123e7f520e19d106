// Reads memory and nothing else: the rate that a decode step cannot exceed.

extern "C" __global__ void read_all(const uint4* p, unsigned long long n, uint4* o) {
  uint4 s = make_uint4(0, 0, 0, 0);
  for (unsigned long long i = blockIdx.x * 512ull + threadIdx.x; i < n; i += gridDim.x * 512ull) {
    uint4 v = __ldcs(p + i);
    s.x ^= v.x; s.y ^= v.y; s.z ^= v.z; s.w ^= v.w;
  }
  if (s.x == 0x12345678) *o = s;
}
