// A row of attention's weights, or the gradient of its scores; a block makes one of S numbers, VECTOR of them at a time.
// GRADIENT 0: out = softmax(scores) over the keys that are seen, 0 elsewhere; scores are fp32, out is bf16.
// GRADIENT 1: out = p (dp - sum(p dp)), all bf16.
// Rows are queries of heads: [BATCH, key heads, GROUP, T]; key j of a query at position q is at position j. With BAND they are
// [BATCH, key heads, BLOCKS, GROUP, BAND]: blocks of BAND positions, whose keys begin BAND positions before them.
// A query sees keys of its own position and before, WINDOW of them where that is not 0; with MEDIA also later ones in the
// window that are of its own media block (numbers >= 0); with SEGMENTS only those of its own segment.
constexpr int EACH = (S / VECTOR + THREADS - 1) / THREADS, WARPS = THREADS / 32;
constexpr float NOTHING = -3.0e38f;

DEVICE float over_block(float v, float* parts, bool largest) {
  v = largest ? warp_max(v) : warp_sum(v);
  __syncthreads();
  if (!(threadIdx.x & 31)) parts[threadIdx.x >> 5] = v;
  __syncthreads();
  v = parts[0];
  for (int i = 1; i < WARPS; i++) v = largest ? fmaxf(v, parts[i]) : v + parts[i];
  return v;
}

struct Query {
  int start, position, first, last, segment, block;  // keys first ... last may be seen; key 0 of a row is at `start`
  const int *segments, *blocks;

  DEVICE Query(int row, const int* all_segments, const int* all_blocks) {
    const int batch = row / ROWS;
    position = BAND ? row / (BAND * GROUP) % BLOCKS * BAND + row % BAND : row % T;
    start = BAND ? position / BAND * BAND - BAND : 0;
    first = WINDOW && position >= WINDOW ? position - WINDOW + 1 : 0, last = position;
    segments = all_segments + (long long)batch * T, blocks = all_blocks + (long long)batch * T;
    segment = block = -1;
    if (position >= T) {  // behind the end of what was cut into blocks
      last = -1;
    } else if (GRADIENT) {  // all others have weight 0
      if (MEDIA) last = T - 1;
    } else {
      if (SEGMENTS) segment = segments[position];
      if (MEDIA) block = blocks[position];
      if (block >= 0) last = T - 1;
    }
  }
  DEVICE bool sees(int key) const {
    if (key < first || key > last) return false;
    if (SEGMENTS && segments[key] != segment) return false;
    return !MEDIA || key <= position || blocks[key] == block;
  }
};

DEVICE void numbers(const float* from, float (&to)[VECTOR]) {
#if VECTOR == 4
  const float4 v = *(const float4*)from;
  to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
#else
  to[0] = *from;
#endif
}
DEVICE void numbers(const u16* from, float (&to)[VECTOR]) {
#if VECTOR == 4
  const uint2 v = *(const uint2*)from;
  to[0] = low_bf16(v.x), to[1] = high_bf16(v.x), to[2] = low_bf16(v.y), to[3] = high_bf16(v.y);
#else
  to[0] = low_bf16(*from);
#endif
}
DEVICE void put(u16* to, const float (&from)[VECTOR]) {
#if VECTOR == 4
  *(uint2*)to = make_uint2(pack_bf16(from[0], from[1]), pack_bf16(from[2], from[3]));
#else
  *to = to_bf16(from[0]);
#endif
}

// `dp` is read with GRADIENT alone
template <class IN> DEVICE void softmax(u16* out, const IN* given, const u16* dp, const int* segments, const int* blocks) {
  BLOCK_MEMORY(memory, WARPS * 4);
  float* parts = (float*)memory;
  const Query query(blockIdx.x, segments, blocks);
  const long long row = (long long)blockIdx.x * S;
  float x[EACH][VECTOR], y[GRADIENT ? EACH : 1][VECTOR], sum = 0.f, top = NOTHING;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int at = (i * THREADS + threadIdx.x) * VECTOR, key = query.start + at;
    const bool any = at < S && key + VECTOR > query.first && key <= query.last;
#pragma unroll
    for (int j = 0; j < VECTOR; j++) x[i][j] = GRADIENT ? 0.f : NOTHING, y[GRADIENT ? i : 0][j] = 0.f;
    if (!any) continue;
    numbers(given + row + at, x[i]);
    if (GRADIENT) {
      numbers(dp + row + at, y[GRADIENT ? i : 0]);
#pragma unroll
      for (int j = 0; j < VECTOR; j++) sum += x[i][j] * y[GRADIENT ? i : 0][j];
    } else {
#pragma unroll
      for (int j = 0; j < VECTOR; j++) {
        if (!query.sees(key + j)) x[i][j] = NOTHING;
        top = fmaxf(top, x[i][j]);
      }
    }
  }
  if (!GRADIENT) {
    top = over_block(top, parts, true);
#pragma unroll
    for (int i = 0; i < EACH; i++)
#pragma unroll
      for (int j = 0; j < VECTOR; j++) {
        x[i][j] = x[i][j] == NOTHING ? 0.f : exp_fast(x[i][j] - top);
        sum += x[i][j];
      }
  }
  sum = over_block(sum, parts, false);
  const float share = sum == 0.f ? 0.f : 1.f / sum;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int at = (i * THREADS + threadIdx.x) * VECTOR;
    if (at >= S) continue;
#pragma unroll
    for (int j = 0; j < VECTOR; j++) x[i][j] *= GRADIENT ? y[GRADIENT ? i : 0][j] - sum : share;
    put(out + row + at, x[i]);
  }
}

#if GRADIENT
KERNELS(THREADS, 1) NAME(u16* out, const u16* p, const u16* dp) { softmax(out, p, dp, (const int*)p, (const int*)p); }
#elif SEGMENTS && MEDIA
KERNELS(THREADS, 1) NAME(u16* out, const float* scores, const int* segments, const int* blocks) {
  softmax(out, scores, (const u16*)scores, segments, blocks);
}
#elif SEGMENTS || MEDIA
KERNELS(THREADS, 1) NAME(u16* out, const float* scores, const int* numbers) {
  softmax(out, scores, (const u16*)scores, numbers, numbers);
}
#else
KERNELS(THREADS, 1) NAME(u16* out, const float* scores) {
  softmax(out, scores, (const u16*)scores, (const int*)scores, (const int*)scores);
}
#endif
