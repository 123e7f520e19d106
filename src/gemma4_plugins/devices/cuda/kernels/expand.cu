// int8 numbers as bf16, 16 at a time, for the products that read them next.
KERNEL(256) expand(const u8* from, u16* to, u64 count) {
  for (u64 i = (u64)blockIdx.x * 256 + threadIdx.x; i < count / 16; i += (u64)gridDim.x * 256) {
    uint4 v = ((const uint4*)from)[i], low, high;
    widen(v.x, low.x, low.y), widen(v.y, low.z, low.w), widen(v.z, high.x, high.y), widen(v.w, high.z, high.w);
    ((uint4*)to)[2 * i] = low;
    ((uint4*)to)[2 * i + 1] = high;
  }
}
