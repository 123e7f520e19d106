// What the products' kernels have in common: where weights lie, their scales, and where results go.

struct GemmWeights {  // up to three matrices one below the other
  const u16 *base[3];
  int split[2];
  DEVICE const u16* row(int n, int k) const {
    return n < split[0] ? base[0] + (u64)n * k : n < split[1] ? base[1] + (u64)(n - split[0]) * k : base[2] + (u64)(n - split[1]) * k;
  }
};

// Row scales of int8 weights, which are multiplied in bf16 without them; null for bf16 weights.
struct GemmScales {
  const float *base[3];
  DEVICE float of(int n, const int (&split)[2]) const {
    if (!base[0]) return 1.f;
    return n < split[0] ? base[0][n] : n < split[1] ? base[1][n - split[0]] : base[2][n - split[1]];
  }
};
DEVICE float scale_at(const float* scale, int n) { return scale ? scale[n] : 1.f; }

struct Product {  // c is bf16 [rows, columns], or with parts > 0 fp32 [parts, rows, columns] of sums over parts of k
  const u16* a;
  GemmWeights w;
  GemmScales s;
  void* c;
  int rows, columns, k, parts;
  DEVICE int part_first(int part) const { return parts ? k / 64 * part / parts * 64 : 0; }
  DEVICE int part_last(int part) const { return parts && part + 1 < parts ? part_first(part + 1) : k; }
  DEVICE void store(int m, int n, float x, float y) const {
    u64 at = (u64)m * columns + n;
    x *= s.of(n, w.split), y *= s.of(n + 1, w.split);
    if (parts) *(float2*)((float*)c + (u64)blockIdx.z * rows * columns + at) = make_float2(x, y);
    else *(u32*)((u16*)c + at) = pack_bf16(x, y);
  }
};

DEVICE void store_gated(u16* c, u64 at, int n, float g0, float g1, float u0, float u1, const float* gate_scale, const float* up_scale) {
  float x = gelu_tanh(g0 * scale_at(gate_scale, n)) * (u0 * scale_at(up_scale, n));
  float y = gelu_tanh(g1 * scale_at(gate_scale, n + 1)) * (u1 * scale_at(up_scale, n + 1));
  *(u32*)(c + at) = pack_bf16(x, y);
}
