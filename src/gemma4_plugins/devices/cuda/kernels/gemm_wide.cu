// The products of gemm.cu for Hopper's warpgroup matrix unit, which reads both operands from shared memory: two
// warpgroups make 64 x 256 each of a tile of 128 x 256. Rows of 64 columns (128 bytes) lie in shared memory with their
// 16-byte pieces swizzled by row, as the unit's 128-byte mode has it. K must be a multiple of 64.

constexpr int WIDE_STAGES = 4, WIDE_A = 128 * 128, WIDE_STAGE = (128 + 256) * 128;

struct WideGemm {
  u8* memory;
  int thread, k_first, k_last;
  const u8 *a_from[4], *w_from[8];  // this thread's 16-byte pieces of a stage: rows thread / 8 + 32 i, piece thread % 8
  float sums[128];

  DEVICE void load(int stage, int at) {
    int row = thread >> 3, piece = thread & 7;
    u8* to = memory + stage * WIDE_STAGE + row * 128 + ((piece ^ (row & 7)) << 4);
#pragma unroll
    for (int i = 0; i < 4; i++) copy16(to + i * 4096, a_from[i] + at * 2);
#pragma unroll
    for (int i = 0; i < 8; i++) copy16(to + WIDE_A + i * 4096, w_from[i] + at * 2);
  }

  // Copies run two steps ahead: the stage that they overwrite was read two steps ago, which the barrier has seen.
  DEVICE void run() {
#pragma unroll
    for (int i = 0; i < 128; i++) sums[i] = 0;
    int steps = (k_last - k_first) / 64, group = thread >> 7;
    for (int s = 0; s < 2; s++) {
      if (s < steps) load(s, k_first + s * 64);
      copies_commit();
    }
    for (int s = 0; s < steps; s++) {
      copies_wait<1>();
      fence_matrix_operands();
      __syncthreads();
      const u8* stage = memory + s % WIDE_STAGES * WIDE_STAGE;
      matrix_fence();
#pragma unroll
      for (int i = 0; i < 4; i++) matrix_multiply(sums, matrix_operand(stage + group * 8192, i * 32), matrix_operand(stage + WIDE_A, i * 32));
      matrix_commit();
      if (s + 2 < steps) load((s + 2) % WIDE_STAGES, k_first + (s + 2) * 64);
      copies_commit();
      matrix_wait<1>();
    }
    matrix_wait<0>();
  }
};

template <bool PAIRED, class ARow, class WRow, class Store>
DEVICE void wide_tile(u8* memory, int rows, int columns, int k_first, int k_last, int n_first, ARow a_row, WRow w_row, Store store) {
  WideGemm g;
  g.memory = memory, g.thread = threadIdx.x, g.k_first = k_first, g.k_last = k_last;
  int row = g.thread >> 3, piece = g.thread & 7;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    int m = row + 32 * i;
    g.a_from[i] = (const u8*)a_row(m < rows ? m : rows - 1) + piece * 16;
  }
#pragma unroll
  for (int i = 0; i < 8; i++) {
    bool up = PAIRED && i >= 4;
    int n = n_first + row + 32 * (up ? i - 4 : i);
    g.w_from[i] = (const u8*)w_row(n < columns ? n : columns - 1, up) + piece * 16;
  }
  g.run();
  int lane = g.thread & 31, m_first = (g.thread >> 5) * 16 + (lane >> 2);
#pragma unroll
  for (int j = 0; j < (PAIRED ? 16 : 32); j++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      int m = m_first + 8 * h, n = n_first + j * 8 + (lane & 3) * 2;
      float x = g.sums[4 * j + 2 * h], y = g.sums[4 * j + 2 * h + 1];
      if (m < rows && n < columns) store(m, n, x, y, PAIRED ? g.sums[(4 * j + 64 + 2 * h) % 128] : 0.f, PAIRED ? g.sums[(4 * j + 65 + 2 * h) % 128] : 0.f);
    }
}

KERNEL(256) wide_plain(const u16* a, const u16* w0, const u16* w1, const u16* w2, const float* s0, const float* s1, const float* s2, void* c, int rows,
                       int columns, int k, int split0, int split1, int parts) {
  SHARED_MEMORY(memory);
  Product p = {a, {{w0, w1, w2}, {split0, split1}}, {{s0, s1, s2}}, c, rows, columns, k, parts};
  int m_first = blockIdx.x * 128, n_first = blockIdx.y * 256;
  wide_tile<false>(
      memory, rows - m_first, columns, p.part_first(blockIdx.z), p.part_last(blockIdx.z), n_first,
      [&](int m) { return p.a + (u64)(m_first + m) * p.k; }, [&](int n, bool) { return p.w.row(n, p.k); },
      [&](int m, int n, float x, float y, float, float) { p.store(m_first + m, n, x, y); });
}
KERNEL(256) wide_gated(const u16* a, const u16* gate, const u16* up, const float* gate_scale, const float* up_scale, u16* c, int rows, int columns, int k) {
  SHARED_MEMORY(memory);
  int m_first = blockIdx.x * 128, n_first = blockIdx.y * 128;
  wide_tile<true>(
      memory, rows - m_first, columns, 0, k, n_first, [&](int m) { return a + (u64)(m_first + m) * k; },
      [&](int n, bool second) { return (second ? up : gate) + (u64)n * k; },
      [&](int m, int n, float x, float y, float u, float v) {
        store_gated(c, (u64)(m_first + m) * columns + n, n, x, y, u, v, gate_scale, up_scale);
      });
}
