// Root-mean-square norm of rows x[M, N], bf16 with fp32 sums, N a multiple of 8; r = 1 / sqrt(mean(x^2) + EPS).
// MODE 0: out = x r w. MODE 1: the gradient of x from that of out, dy. MODE 2: that of w, as fp32 sums of ROWS rows each:
// out[M / ROWS, N]. WEIGHTED 0 is w = 1. TEAM threads make a row, in pieces of 8 numbers; a block has 128 or TEAM.
constexpr int THREADS = TEAM > 128 ? TEAM : 128, TEAMS = THREADS / TEAM, EACH = (N / 8 + TEAM - 1) / TEAM;

// The sum over a team, which all of its threads get; `parts` has a place for every warp of the block.
DEVICE float team_sum(float v, float* parts) {
  v = warp_sum(v);
  if (TEAM == 32) return v;
  const int warp = threadIdx.x >> 5, first = warp / (TEAM / 32) * (TEAM / 32);
  __syncthreads();
  if (!(threadIdx.x & 31)) parts[warp] = v;
  __syncthreads();
  v = 0.f;
  for (int i = 0; i < TEAM / 32; i++) v += parts[first + i];
  return v;
}
DEVICE void eight(const u16* from, float (&to)[8]) {
  const uint4 v = *(const uint4*)from;
  to[0] = low_bf16(v.x), to[1] = high_bf16(v.x), to[2] = low_bf16(v.y), to[3] = high_bf16(v.y);
  to[4] = low_bf16(v.z), to[5] = high_bf16(v.z), to[6] = low_bf16(v.w), to[7] = high_bf16(v.w);
}

// Thread `me` of a team has pieces me, me + TEAM, …; beyond the row it has zeros.
DEVICE void row_of(const u16* from, bool real, int me, float (&to)[EACH][8]) {
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int piece = i * TEAM + me;
#pragma unroll
    for (int j = 0; j < 8; j++) to[i][j] = 0.f;
    if (real && piece < N / 8) eight(from + piece * 8, to[i]);
  }
}
DEVICE float product_sum(const float (&x)[EACH][8], const float (&y)[EACH][8]) {
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < EACH; i++)
#pragma unroll
    for (int j = 0; j < 8; j++) sum += x[i][j] * y[i][j];
  return sum;
}

// `w` and `dy` are what MODE and WEIGHTED say
DEVICE void norm(OUT* out, const u16* x, const u16* w, const u16* dy) {
  BLOCK_MEMORY(memory, THREADS / 32 * 4);
  float* parts = (float*)memory;
  const int me = threadIdx.x % TEAM, team = threadIdx.x / TEAM;
  float v[EACH][8], d[EACH][8];
#if MODE == 2
  float sums[EACH][8] = {};
  for (int row = blockIdx.x * ROWS; row < (blockIdx.x + 1) * ROWS; row++) {
    const bool real = row < M;
    row_of(x + (long long)row * N, real, me, v), row_of(dy + (long long)row * N, real, me, d);
    const float r = rsqrtf(team_sum(product_sum(v, v), parts) / N + EPS);
#pragma unroll
    for (int i = 0; i < EACH; i++)
#pragma unroll
      for (int j = 0; j < 8; j++) sums[i][j] += d[i][j] * v[i][j] * r;
  }
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int piece = i * TEAM + me;
    if (piece >= N / 8) continue;
#pragma unroll
    for (int j = 0; j < 8; j++) out[(long long)blockIdx.x * N + piece * 8 + j] = sums[i][j];
  }
#else
  const int row = blockIdx.x * TEAMS + team;
  const bool real = row < M;
  row_of(x + (long long)row * N, real, me, v);
  if (MODE == 1) row_of(dy + (long long)row * N, real, me, d);
  const float r = rsqrtf(team_sum(product_sum(v, v), parts) / N + EPS);
  if (WEIGHTED) {
    float weight[EACH][8];
    row_of(w, true, me, weight);
#pragma unroll
    for (int i = 0; i < EACH; i++)
#pragma unroll
      for (int j = 0; j < 8; j++) (MODE == 1 ? d : v)[i][j] *= weight[i][j];
  }
  const float share = MODE == 1 ? team_sum(product_sum(v, d), parts) * r * r / N : 0.f;
  if (!real) return;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int piece = i * TEAM + me;
    if (piece >= N / 8) continue;
    u32 made[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      float one = v[i][2 * j], two = v[i][2 * j + 1];
      if (MODE == 1) one = d[i][2 * j] - one * share, two = d[i][2 * j + 1] - two * share;
      made[j] = pack_bf16(one * r, two * r);
    }
    *(uint4*)(out + (long long)row * N + piece * 8) = make_uint4(made[0], made[1], made[2], made[3]);
  }
#endif
}

#if MODE == 0 && WEIGHTED
KERNELS(THREADS, 2) NAME(OUT* out, const u16* x, const u16* w) { norm(out, x, w, x); }
#elif MODE == 0
KERNELS(THREADS, 2) NAME(OUT* out, const u16* x) { norm(out, x, x, x); }
#elif MODE == 1 && WEIGHTED
KERNELS(THREADS, 2) NAME(OUT* out, const u16* x, const u16* w, const u16* dy) { norm(out, x, w, dy); }
#else
KERNELS(THREADS, 2) NAME(OUT* out, const u16* x, const u16* dy) { norm(out, x, x, dy); }
#endif
