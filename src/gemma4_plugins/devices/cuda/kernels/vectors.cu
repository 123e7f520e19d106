// What the multiplying warps of a block hold of vectors: the residual stream, norm weights, sums over the block, what other
// blocks made, and operands.

// A thread's numbers of a vector, read before a wait if registers hold them all, else at each use.
template <class Read, bool KEPT = (H_PER_THREAD <= 10)> struct Early {
  float values[H_PER_THREAD];
  DEVICE explicit Early(Read read) {
#pragma unroll
    for (int i = 0; i < H_PER_THREAD; i++) values[i] = read(i);
  }
  DEVICE float operator()(int i) const { return values[i]; }
};
template <class Read> struct Early<Read, false> {
  Read read;
  DEVICE explicit Early(Read r) : read(r) {}
  DEVICE float operator()(int i) const { return read(i); }
};
template <class Read> DEVICE Early<Read> early(Read read) { return Early<Read>(read); }

struct Vectors {
  Eater eat;
  const Arguments& a;
  u8* shared;
  int sums_buffer;
  float unit;  // what the operand is counted in beside int8 weights

  DEVICE u8* operand() const { return shared + S_OPERAND; }
  DEVICE uint2* packets(int at) const { return a.scratch + at; }

  // ---- who has what of a vector: a warp's elements are those of the columns that it multiplies, wherever pieces are
  // such that every warp has as many steps. What it makes of an operand, and the norm weights that it fetches, concern
  // no other warp then, and no barrier is needed between making and multiplying.
  static constexpr int RUN = INT8 ? 64 : 32;  // elements of a step
  DEVICE static constexpr int spread(int i) { return INT8 ? (i >> 1) * 2 * CONSUMERS + (i & 1) * 32 : i * CONSUMERS; }
  DEVICE int first() const { return eat.warp * RUN + eat.lane; }
  DEVICE int element(int i) const { return first() + spread(i); }
  DEVICE bool mine(int i) const { return element(i) < HIDDEN; }
  DEVICE static bool is_own(const Shape& s, int product) {
    return s.piece % (WARPS * STEP) == 0 && product != W_EXPERT_DOWN && !(INT8 && product == W_ROUTER);
  }

  // ---- the residual stream, fp32, in shared memory
  DEVICE float& h(int i) const { return ((float*)(shared + S_STREAM))[element(i)]; }

  // ---- norm weights, fetched ahead: of what is added (0), of the operands that follow (1, and 2, 3 with experts)
  DEVICE u16* weights(int which) const { return (u16*)(shared + S_NORM_0 + which * NORM_BYTES); }
  DEVICE float weight_at(int which, int i) const { return low_bf16(weights(which)[element(i)]); }
  DEVICE void fetch_weights(int which, const u16* from) {
    constexpr int PARTS = RUN / 8;  // of 16 bytes
#pragma unroll 1
    for (int i = eat.lane; i < (HIDDEN + WARPS * RUN - 1) / (WARPS * RUN) * PARTS; i += 32) {
      int at = (i / PARTS * WARPS + eat.warp) * RUN + i % PARTS * 8;
      if (at < HIDDEN) copy16(weights(which) + at, from + at);
    }
  }
  // What attention needs of every layer: norm weights of queries and keys; and of every launch: cosines and sines of the
  // position. They are seen by all warps after the next round over the block.
  DEVICE u16* head_norms() const { return (u16*)(shared + S_HEAD_NORMS); }  // [2][D_MAX]
  DEVICE u16* rotation(bool full) const { return (u16*)(shared + S_ROTATION) + (full ? D_SLIDING : 0); }  // cosines, then sines
  DEVICE void fetch_shared(u16* to, const u16* from, int count) {
    for (int i = eat.thread * 8; i < count; i += CONSUMERS * 8) copy16(to + i, from + i);
  }
  // of the layer that `row`, this lane's field of its table row, tells of
  DEVICE void fetch_head_norms(u64 row) {
    const u32 info_of = (u32)__shfl_sync(ALL, row, F_INFO);
    const u16 *q = (const u16*)__shfl_sync(ALL, row, F_NORM_Q), *k = (const u16*)__shfl_sync(ALL, row, F_NORM_K);
    const int d = Heads(info_of).d();
    fetch_shared(head_norms(), q, d);
    if (info_of & IS_OWN) fetch_shared(head_norms() + D_MAX, k, d);
  }
  DEVICE void weights_done() {
    copies_done();
    __syncwarp();
  }

  // ---- sums and maxima over the block; alternating buffers make one barrier enough
  DEVICE float4* next_sums() {
    float4* to = (float4*)(shared + S_SUMS) + sums_buffer * WARPS * 2;
    sums_buffer ^= 1;
    return to;
  }
  // A warp's four numbers at once: each step halves what a lane holds, until number i is in lanes 8 i to 8 i + 7.
  template <class Merge> DEVICE float gather(const float4& v, Merge merge) {
    const bool high = eat.lane & 16, odd = eat.lane & 8;
    float x = merge(high ? v.z : v.x, __shfl_xor_sync(ALL, high ? v.x : v.z, 16));
    float y = merge(high ? v.w : v.y, __shfl_xor_sync(ALL, high ? v.y : v.w, 16));
    float z = merge(odd ? y : x, __shfl_xor_sync(ALL, odd ? x : y, 8));
    for (int o = 4; o; o >>= 1) z = merge(z, __shfl_xor_sync(ALL, z, o));
    return z;
  }
  DEVICE static float add(float x, float y) { return x + y; }
  // Four sums, and beside int8 weights four maxima.
  DEVICE void over_block(float4& sums, float4& tops) {
    float4* to = next_sums();
    float sum = gather(sums, add), top = INT8 ? gather(tops, fmaxf) : 0.f;
    if ((eat.lane & 7) == 0) {
      ((float*)(to + eat.warp))[eat.lane >> 3] = sum;
      if (INT8) ((float*)(to + WARPS + eat.warp))[eat.lane >> 3] = top;
    }
    bar_sync(1, CONSUMERS);
    sums = to[0];
    if (INT8) tops = to[WARPS];
#pragma unroll
    for (int w = 1; w < WARPS; w++) {
      float4 s = to[w];
      sums.x += s.x, sums.y += s.y, sums.z += s.z, sums.w += s.w;
      if (!INT8) continue;
      float4 m = to[WARPS + w];
      tops.x = fmaxf(tops.x, m.x), tops.y = fmaxf(tops.y, m.y), tops.z = fmaxf(tops.z, m.z), tops.w = fmaxf(tops.w, m.w);
    }
  }
  DEVICE float block_max(float v) {
    float4 sums = {}, tops = {v, 0.f, 0.f, 0.f};
    over_block(sums, tops);
    return tops.x;
  }
  DEVICE static float inverse_rms(float squares) { return rsqrtf(fmaxf(squares, 0.f) * (1.f / HIDDEN) + EPS); }

  // ---- what other blocks made
  DEVICE void receive(int at, u32 tag_in, float (&v)[H_PER_THREAD]) {
    u32 bits[H_PER_THREAD];
    wait_packets<H_PER_THREAD>(packets(at) + first(), [](int i) { return spread(i); }, HIDDEN - first(), tag_in, bits);
#pragma unroll
    for (int i = 0; i < H_PER_THREAD; i++) v[i] = as_float(bits[i]);
  }

  // ---- operands: bf16, or beside int8 weights two digits of each element and the unit that they count
  static_assert(CONSUMERS % 64 == 0, "an operand's order is one of groups of 32 or 64");
  DEVICE static int place(int e) { return INT8 ? digit_offset(e) : operand_offset(e); }
  // element i of a thread, whose first one stands at `to`
  DEVICE static void put(u8* to, int i, float v, float units) {
    if (INT8) {
      const u32 low = low_digits(v, units);
      to += (i >> 1) * CONSUMERS * 4 + (i & 1) * 8;
      to[0] = (u8)(high_digits(low) >> 8), to[STEP] = (u8)low;
    } else {
      *(u16*)(to + i * CONSUMERS * 2) = to_bf16(v);
    }
  }
  // two pairs of neighbours
  DEVICE static void put_two(u8* to, u32 a, u32 b, float units) {
    if (INT8) {
      const u32 q[4] = {low_digits(low_bf16(a), units), low_digits(high_bf16(a), units), low_digits(low_bf16(b), units), low_digits(high_bf16(b), units)};
      *(u32*)to = four_bytes(high_digits(q[0]), high_digits(q[1]), high_digits(q[2]), high_digits(q[3]), 1);
      *(u32*)(to + STEP) = four_bytes(q[0], q[1], q[2], q[3], 0);
    } else {
      *(u32*)to = a, *(u32*)(to + 16) = b;
    }
  }
  // a vector's unit from its largest element, or from a bound of that; their inverse is what digits are made with
  DEVICE static float unit_of(float top) { return fmaxf(top, 1e-20f) * (1.f / MOST_DIGITS); }
  // of a warp's columns alone where the operand is its own
  DEVICE float unit_over(float top, bool own) { return unit_of(own ? warp_max(top) : block_max(top)); }

  // Of an operand of pairs, two neighbours at a time: this thread's first two, the others are CONSUMERS twos apart.
  DEVICE int first_two() const {
    return INT8 ? eat.warp * 16 + (eat.lane & 15) + (eat.lane >> 4) * (CONSUMERS / 2) : eat.warp * 8 + (eat.lane & 7) + (eat.lane >> 3) * (CONSUMERS / 4);
  }
  template <int COUNT> DEVICE void put_twos(const u32 (&v)[COUNT][2], int count, bool own) {
    const int left = count / 2 - first_two();
    if (INT8) {
      u32 top = 0;
#pragma unroll
      for (int i = 0; i < COUNT; i++)
        if (i * CONSUMERS < left) top = larger_sizes(top, larger_sizes(v[i][0], v[i][1]));
      unit = unit_over(fmaxf(low_bf16(top), high_bf16(top)), own);
    }
    u8* to = operand() + place(4 * first_two());
    const float units = quotient(1.f, unit);
#pragma unroll
    for (int i = 0; i < COUNT; i++)
      if (i * CONSUMERS < left) put_two(to + i * CONSUMERS * 8, v[i][0], v[i][1], units);
  }
  // from packets of two bf16; patiently where there are many
  template <int COUNT, int TIMES> DEVICE void take_some_pairs(int at, int count, u32 tag_in, bool own) {
    u32 v[TIMES * COUNT][2];
    const uint2* from = packets(at) + 2 * first_two();
    const int left = count / 2 - first_two();
#pragma unroll
    for (int r = 0; r < TIMES; r++)
      wait_two_packets<COUNT, (COUNT > 4)>(from + r * COUNT * CONSUMERS * 2, CONSUMERS, left - r * COUNT * CONSUMERS, tag_in, v + r * COUNT);
    put_twos(v, count, own);
  }
  DEVICE void take_pairs(int at, int count, u32 tag_in, bool own) {
    if (count <= 8 * CONSUMERS) take_some_pairs<4, 1>(at, count, tag_in, own);
    else take_some_pairs<TWOS, ROUNDS>(at, count, tag_in, own);
  }
};
