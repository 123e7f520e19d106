// Matrix products of a chunk of positions on the tensor cores: C[rows, N] = A[rows, K] · W[N, K]^T, bf16 in, fp32 sums.
// Weights stay as they are stored. A block of 256 threads makes a tile of M x 256 (or 128 pairs of gate and up), reading
// both operands through a ring of asynchronous copies. Blocks of one column of tiles run next to each other, so that
// weights come from memory once. Few tiles are split along K: every part leaves its own sums for the reader to add.
//
// Every GPU since 8.0 runs this form; gemm_wide.cu is Hopper's.

constexpr int GEMM_STAGES = 4, GEMM_N = 256, GEMM_K = 32;  // 32 columns: rows of 64 bytes

template <int M> struct GemmShape {
  static constexpr int WARPS_M = M == 128 ? 2 : 1, WARPS_N = 8 / WARPS_M;
  static constexpr int WARP_M = M / WARPS_M, WARP_N = GEMM_N / WARPS_N;
  static constexpr int TILES_M = WARP_M / 16, TILES_N = WARP_N / 8;
  static constexpr int STAGE = (M + GEMM_N) * 64, SHARED = GEMM_STAGES * STAGE;
};

// 16-byte piece `c` of row `r`, swizzled so that eight rows of a tile lie in different banks.
DEVICE int swizzled(int r, int c) { return r * 64 + ((c ^ ((r >> 1) & 3)) << 4); }

template <int M> struct Gemm {
  typedef GemmShape<M> S;
  u8* memory;
  int thread, warp, lane, k_first, k_last;
  const u8 *a_from[M / 64], *w_from[4];  // this thread's 16-byte pieces of a stage: rows thread / 4 + 64 i, piece thread % 4
  float sums[S::TILES_M][S::TILES_N][4];

  DEVICE void load(int stage, int at) {
    u8* to = memory + stage * S::STAGE;
    int row = thread >> 2, piece = thread & 3;
#pragma unroll
    for (int i = 0; i < M / 64; i++) copy16(to + swizzled(row + 64 * i, piece), a_from[i] + at * 2);
#pragma unroll
    for (int i = 0; i < 4; i++) copy16(to + M * 64 + swizzled(row + 64 * i, piece), w_from[i] + at * 2);
  }

  DEVICE void step(const u8* stage, int half) {
    int m0 = warp % S::WARPS_M * S::WARP_M, n0 = warp / S::WARPS_M * S::WARP_N;
    u32 a[S::TILES_M][4];
#pragma unroll
    for (int i = 0; i < S::TILES_M; i++) load_tiles(a[i], stage + swizzled(m0 + i * 16 + (lane & 15), half * 2 + (lane >> 4)));
#pragma unroll
    for (int j = 0; j < S::TILES_N; j += 2) {
      u32 b[4];  // two tiles of 8 columns, two halves of 8 elements each
      load_tiles(b, stage + M * 64 + swizzled(n0 + j * 8 + (lane & 7) + (lane >> 4) * 8, half * 2 + ((lane >> 3) & 1)));
#pragma unroll
      for (int i = 0; i < S::TILES_M; i++) {
        multiply(sums[i][j], a[i], b[0], b[1]);
        multiply(sums[i][j + 1], a[i], b[2], b[3]);
      }
    }
  }

  DEVICE void run() {
#pragma unroll
    for (int i = 0; i < S::TILES_M; i++)
#pragma unroll
      for (int j = 0; j < S::TILES_N; j++) sums[i][j][0] = sums[i][j][1] = sums[i][j][2] = sums[i][j][3] = 0;
    int steps = (k_last - k_first) / GEMM_K;
    for (int s = 0; s < GEMM_STAGES - 1; s++) {
      if (s < steps) load(s, k_first + s * GEMM_K);
      copies_commit();
    }
    for (int s = 0; s < steps; s++) {
      copies_wait<GEMM_STAGES - 2>();
      __syncthreads();
      int ahead = s + GEMM_STAGES - 1;
      if (ahead < steps) load(ahead % GEMM_STAGES, k_first + ahead * GEMM_K);
      copies_commit();
      const u8* stage = memory + s % GEMM_STAGES * S::STAGE;
      step(stage, 0);
      step(stage, 1);
    }
  }
  // first row and column of the pair of sums [i][j][0..1]; [2..3] are 8 rows below
  DEVICE int row(int i) const { return warp % S::WARPS_M * S::WARP_M + i * 16 + (lane >> 2); }
  DEVICE int column(int j) const { return warp / S::WARPS_M * S::WARP_N + j * 8 + (lane & 3) * 2; }
};

// Which weight row column `n` of a tile stands for. Gate and up lie side by side in every warp's columns, so that both
// sums of a pair end up in one thread.
template <int M> DEVICE int paired_row(int n, int first, bool& up) {
  const int each = GemmShape<M>::WARP_N;
  int within = n % each;
  up = within >= each / 2;
  return first + n / each * (each / 2) + (up ? within - each / 2 : within);
}

// Rows `rows` and columns `columns` are how many there are from this tile on, and in all; k from k_first to k_last.
template <int M, bool PAIRED, class ARow, class WRow, class Store>
DEVICE void gemm_tile(u8* memory, int rows, int columns, int k_first, int k_last, int n_first, ARow a_row, WRow w_row, Store store) {
  Gemm<M> g;
  g.memory = memory, g.thread = threadIdx.x, g.warp = g.thread >> 5, g.lane = g.thread & 31, g.k_first = k_first, g.k_last = k_last;
  int row = g.thread >> 2, piece = g.thread & 3;
#pragma unroll
  for (int i = 0; i < M / 64; i++) {
    int m = row + 64 * i;
    g.a_from[i] = (const u8*)a_row(m < rows ? m : rows - 1) + piece * 16;
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    bool up = false;
    int n = PAIRED ? paired_row<M>(row + 64 * i, n_first, up) : n_first + row + 64 * i;
    g.w_from[i] = (const u8*)w_row(n < columns ? n : columns - 1, up) + piece * 16;
  }
  g.run();
  typedef GemmShape<M> S;
#pragma unroll
  for (int i = 0; i < S::TILES_M; i++)
#pragma unroll
    for (int j = 0; j < S::TILES_N / (PAIRED ? 2 : 1); j++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        int m = g.row(i) + 8 * h, n = g.column(j);
        float x = g.sums[i][j][2 * h], y = g.sums[i][j][2 * h + 1];
        if (PAIRED) {
          const int each = S::WARP_N;
          n = n / each * (each / 2) + n % each;
          if (m < rows && n_first + n < columns) {
            const float* up = g.sums[i][j + S::TILES_N / 2];
            store(m, n_first + n, x, y, up[2 * h], up[2 * h + 1]);
          }
        } else if (m < rows && n_first + n < columns) {
          store(m, n_first + n, x, y, 0.f, 0.f);
        }
      }
}

template <int M> DEVICE void plain_product(u8* memory, const Product& p) {
  int m_first = blockIdx.x * M, n_first = blockIdx.y * GEMM_N;
  gemm_tile<M, false>(
      memory, p.rows - m_first, p.columns, p.part_first(blockIdx.z), p.part_last(blockIdx.z), n_first,
      [&](int m) { return p.a + (u64)(m_first + m) * p.k; }, [&](int n, bool) { return p.w.row(n, p.k); },
      [&](int m, int n, float x, float y, float, float) { p.store(m_first + m, n, x, y); });
}

KERNEL(256) gemm_plain(const u16* a, const u16* w0, const u16* w1, const u16* w2, const float* s0, const float* s1, const float* s2, void* c, int rows,
                        int columns, int k, int split0, int split1, int parts) {
  SHARED_MEMORY(memory);
  plain_product<128>(memory, {a, {{w0, w1, w2}, {split0, split1}}, {{s0, s1, s2}}, c, rows, columns, k, parts});
}
KERNEL(256) gemm_low(const u16* a, const u16* w0, const u16* w1, const u16* w2, const float* s0, const float* s1, const float* s2, void* c, int rows,
                        int columns, int k, int split0, int split1, int parts) {
  SHARED_MEMORY(memory);
  plain_product<64>(memory, {a, {{w0, w1, w2}, {split0, split1}}, {{s0, s1, s2}}, c, rows, columns, k, parts});
}

// c[rows, columns] = gelu(a · gate^T) * (a · up^T)
KERNEL(256) gemm_gated(const u16* a, const u16* gate, const u16* up, const float* gate_scale, const float* up_scale, u16* c, int rows, int columns, int k) {
  SHARED_MEMORY(memory);
  int m_first = blockIdx.x * 128, n_first = blockIdx.y * (GEMM_N / 2);
  gemm_tile<128, true>(
      memory, rows - m_first, columns, 0, k, n_first, [&](int m) { return a + (u64)(m_first + m) * k; },
      [&](int n, bool second) { return (second ? up : gate) + (u64)n * k; },
      [&](int m, int n, float x, float y, float u, float v) {
        store_gated(c, (u64)(m_first + m) * columns + n, n, x, y, u, v, gate_scale, up_scale);
      });
}

// Experts: rows of `a` are gathered by `source`, tile by tile of one expert each (tile_expert < 0: no such tile).
// first[e] is the first row of expert e in the packed order, first[EXPERTS] their number.
KERNEL(256) gemm_experts_gated(const u16* a, const u16* w, const float* scale, u16* c, const int* source, const int* first, const int* tile_expert, const int* tile_row) {
  SHARED_MEMORY(memory);
  int expert = tile_expert[blockIdx.x], n_first = blockIdx.y * (GEMM_N / 2);
  if (expert < 0) return;
  int m_first = tile_row[blockIdx.x], rows = first[expert + 1] - m_first;
  const u16* matrix = w + (u64)expert * 2 * EXPERT_FF * HIDDEN;
  const float* gate_scale = scale ? scale + expert * 2 * EXPERT_FF : nullptr;
  gemm_tile<64, true>(
      memory, rows < 64 ? rows : 64, EXPERT_FF, 0, HIDDEN, n_first, [&](int m) { return a + (u64)source[m_first + m] * HIDDEN; },
      [&](int n, bool second) { return matrix + (u64)(n + (second ? EXPERT_FF : 0)) * HIDDEN; },
      [&](int m, int n, float x, float y, float u, float v) {
        store_gated(c, (u64)(m_first + m) * EXPERT_FF + n, n, x, y, u, v, gate_scale, gate_scale ? gate_scale + EXPERT_FF : nullptr);
      });
}
KERNEL(256) gemm_experts_down(const u16* a, const u16* w, const float* scale, u16* c, const int* first, const int* tile_expert, const int* tile_row) {
  SHARED_MEMORY(memory);
  int expert = tile_expert[blockIdx.x], n_first = blockIdx.y * GEMM_N;
  if (expert < 0) return;
  int m_first = tile_row[blockIdx.x], rows = first[expert + 1] - m_first;
  const u16* matrix = w + (u64)expert * HIDDEN * EXPERT_FF;
  const float* row_scale = scale ? scale + expert * HIDDEN : nullptr;
  gemm_tile<64, false>(
      memory, rows < 64 ? rows : 64, HIDDEN, 0, EXPERT_FF, n_first, [&](int m) { return a + (u64)(m_first + m) * EXPERT_FF; },
      [&](int n, bool) { return matrix + (u64)n * EXPERT_FF; },
      [&](int m, int n, float x, float y, float, float) {
        *(u32*)(c + (u64)(m_first + m) * HIDDEN + n) = pack_bf16(x * scale_at(row_scale, n), y * scale_at(row_scale, n + 1));
      });
}
