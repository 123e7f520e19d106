// The multiplying warps of the persistent step: operands in, rows through, packets out, product by product.

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

struct Consumer {
  Eater eat;
  const Arguments& a;
  u8* shared;
  const Shape* shapes;
  const Slice* slices;
  Choice choice;
  u64* choice_made;
  u64 model, layer, next;  // this lane's field of the table rows: the model's, the layer's, the next layer's
  u64 model_scales, layer_scales, next_scales;
  const u16* last_scalar;  // of the layer before
  int index;               // of the layer
  u32 info;
  float ple[PLE_EACH];     // this thread's elements of the layer's per-layer input,
  u32 ple_row[PLE_EACH], ple_weight[PLE_EACH];  // and what they are made of
  uint2 ple_context[PLE_EACH];
  int token;
  float token_scale;       // of the token's int8 row of the per-layer table
  int sums_buffer;
  float unit, expert_unit; // what the int8 operands are counted in
  u32 never;               // whether the token of this thread's next sum is suppressed
  Best best;
#ifdef TIMERS
  long long marked;
#endif

  DEVICE u64 field(int f) const { return __shfl_sync(ALL, layer, f); }
  DEVICE const u16* of_model(int f) const { return (const u16*)__shfl_sync(ALL, model, f); }
  DEVICE const float* scales_of_model(int f) const { return (const float*)__shfl_sync(ALL, model_scales, f); }
  DEVICE const u16* norm(int f) const { return (const u16*)field(f); }
  DEVICE u8* operand() const { return shared + S_OPERAND; }
  DEVICE u32 tag(int phase) const { return a.tag + 1 + index * PHASES + phase; }
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

  DEVICE void put_stream(float top) {
    unit = unit_of(top);
    u8* to = operand() + place(first());
#pragma unroll
    for (int i = 0; i < H_PER_THREAD; i++)
      if (mine(i)) put(to, i, h(i), quotient(1.f, unit));
  }
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

  // ---- where the time goes, for benchmarks: cycles of thread 0, summed by part of the step
  DEVICE void mark(int part) {
#ifdef TIMERS
    if (eat.thread == 0) {
      long long now = clock64();
      ((u32*)(shared + S_TIMERS))[part] += (u32)(now - marked);
      marked = now;
    }
#endif
  }

  DEVICE void start();
  DEVICE void enter_layer();
  DEVICE bool attention(bool own);
  DEVICE void add_and_norm(int product);
  DEVICE void mix(float (&mixed)[H_PER_THREAD]);
  DEVICE void put_branches(const float (&x)[H_PER_THREAD], float norm);
  DEVICE void ask_ple();
  DEVICE void receive_ple();
  DEVICE void put_ple(bool own);
  DEVICE void put_first();
  DEVICE void make_operand(int product, int width, bool own);
  DEVICE void fetch_ahead(int product);
  DEVICE void multiply(int product);
  DEVICE void logit(int id, float sum);
  DEVICE void finish();
  DEVICE void run();
};

// An element of a row of an embedding table, rounded as the weights' type has it.
DEVICE float stored(const u8* row, int i, float scale) {
  return INT8 ? round_bf16((float)(signed char)row[i] * scale) : low_bf16(load_early((const u16*)row + i));
}

// The token's embedding, scaled and rounded as the weights' type has it.
DEVICE void Consumer::start() {
  token = *a.token;
  const u8* row = (const u8*)of_model(M_EMBEDDING) + (u64)(u32)token * HIDDEN * WEIGHT_BYTES;
  float scale = INT8 ? scales_of_model(M_EMBEDDING)[token] : 1.f;
  if (INT8 && PLE) token_scale = scales_of_model(M_PLE_TABLE)[token];
#pragma unroll
  for (int i = 0; i < H_PER_THREAD; i++)
    if (mine(i)) h(i) = round_bf16(stored(row, element(i), scale) * EMBED_SCALE);
}

DEVICE void Consumer::enter_layer() {
  last_scalar = index > 0 ? (const u16*)field(F_SCALAR) : nullptr;
  layer = next;
  layer_scales = next_scales;
  if (index + 1 < LAYERS) {
    const u64* row = a.table + (index + 2) * 64 + eat.lane;
    next = row[0];
    if (INT8) next_scales = row[32];
  }
  info = (u32)field(F_INFO);
}

// The stream itself as an operand.
DEVICE void Consumer::put_first() {
  float4 sums = {}, tops = {};
#pragma unroll
  for (int i = 0; i < H_PER_THREAD; i++)
    if (mine(i)) tops.x = fmaxf(tops.x, fabsf(h(i)));
  if (INT8) over_block(sums, tops);
  put_stream(tops.x);
}

// Add to the stream what this product's operand comes after, attention's result or the end of the layer before:
// h = (h + norm(v) * weights 0) * factor. The norm of that is the operand, before the router with weights of its own for
// router, dense branch and experts. One round over the block gives both norms, and bounds of the operands' elements;
// what does not depend on v is done before that is there.
DEVICE void Consumer::add_and_norm(int product) {
  const bool attended = product != W_QKV && product != W_HEAD, added = attended || index > 0, router = EXPERTS && product == W_ROUTER;
  const u16* scalar = product == W_HEAD ? (const u16*)field(F_SCALAR) : last_scalar;
  u32 bits = 0x3f80;
  if (!attended && added) bits = load_early(scalar);
  weights_done();
  float v[H_PER_THREAD] = {};
  auto stream = early([&](int i) { return mine(i) ? h(i) : 0.f; });
  auto weight = early([&](int i) { return mine(i) && added ? weight_at(0, i) : 0.f; });
  auto before = early([&](int i) { return mine(i) ? weight_at(1, i) : 0.f; });
  float4 sums = {0, 0, 0, 0}, tops = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < H_PER_THREAD; i++) {
    float x = stream(i);
    sums.y += x * x;
    if (INT8) tops.x = fmaxf(tops.x, fabsf(x * before(i)));
    if (INT8 && router && mine(i)) tops.z = fmaxf(tops.z, fabsf(x * weight_at(3, i)));
  }
  // the last layer's result was made under its own tags
  constexpr int LAST = PLE ? P_PLE : P_DOWN;
  if (EXPERTS && !attended) {
    if (added) mix(v);
  } else if (added) {
    receive(attended ? AT_O : PLE ? AT_PLE : AT_DOWN, tag(attended ? P_O : LAST - PHASES), v);
  }
#pragma unroll
  for (int i = 0; i < H_PER_THREAD; i++) {
    sums.x += v[i] * v[i];
    v[i] *= weight(i);
    sums.z += stream(i) * v[i], sums.w += v[i] * v[i];
    if (INT8) tops.y = fmaxf(tops.y, fabsf(v[i] * before(i)));
    if (INT8 && router && mine(i)) tops.w = fmaxf(tops.w, fabsf(v[i] * weight_at(3, i)));
  }
  over_block(sums, tops);
  const float factor = low_bf16(bits), r = inverse_rms(sums.x) * factor;
  const float norm = inverse_rms(sums.y * factor * factor + r * (2.f * factor * sums.z + r * sums.w));
  // the larger of both summands bounds an element to a factor of two
  unit = unit_of((tops.x * fabsf(factor) + fabsf(r) * tops.y) * norm);
  const float units = quotient(1.f, unit);
  u8* to = operand() + place(first());
#pragma unroll
  for (int i = 0; i < H_PER_THREAD; i++) {
    if (!mine(i)) continue;
    v[i] = stream(i) * factor + v[i] * r;
    h(i) = v[i];
    put(to, i, v[i] * norm * before(i), units);
  }
  if (!router) return;
  expert_unit = unit_of((tops.z * fabsf(factor) + fabsf(r) * tops.w) * norm);
  put_branches(v, norm);
}

// Whether the operand of what follows is made, and not only the pairs that it is made of.
DEVICE bool Consumer::attention(bool own) {
  const Heads n(info);
  const Slice s = slices[n.full];
  const int d = n.d();
  const u16 *cos = rotation(n.full), *sin = cos + d / 2;
  int slots = (int)(u64)of_model(n.full ? M_SLOTS_FULL : M_SLOTS_SLIDING);
  LayerAttention settings = {(info & IS_OWN) != 0, (info & KEY_IS_VALUE) != 0, head_norms(), head_norms() + D_MAX, cos, sin, (u8*)field(F_CACHE), slots};
  u16* kept = (u16*)(shared + S_NEW) + (n.full ? 2 * D_SLIDING : 0);
  attend(eat, a, n, s, settings, operand(), {kept, kept + d}, tag(P_QKV), tag(P_PART), [&](int part) { mark(part); });
  mark(33);
  if (s.few) {
    u32 v[JOINED_TWOS][2];
    join(eat, a, n, s.slices, first_two(), (float*)(shared + S_SHARES), tag(P_PART), v);
    put_twos(v, HEADS * d / 2, own);
  } else {
    combine(eat, a, n, s.slices, tag(P_PART), tag(P_MIXED));
  }
  mark(34);
  return s.few;
}

// Ask for what this layer's per-layer input is made of, which has long been there.
DEVICE void Consumer::ask_ple() {
  const u8* table = (const u8*)of_model(M_PLE_TABLE) + (u64)(u32)token * (LAYERS * PLE * WEIGHT_BYTES);
  const u16* weights_of = of_model(M_PLE_NORM);
#pragma unroll
  for (int i = 0; i < PLE_EACH; i++) {
    if (element(i) >= PLE) continue;
    int at = index * PLE + element(i);
    ple_row[i] = a.ple_rows ? load_early(a.ple_rows + at) : INT8 ? load_byte_early(table + at) : load_early((const u16*)table + at);
    ple_weight[i] = load_early(weights_of + element(i));
    ple_context[i] = load_packet(packets(AT_CONTEXT) + at);
  }
  __syncwarp();
}

// The stream after the feed-forward part; and this layer's per-layer input.
DEVICE void Consumer::receive_ple() {
  float v[H_PER_THREAD], made[PLE_EACH];
  float4 sums = {0, 0, 0, 0}, tops = {0, 0, 0, 0};
  weights_done();
  auto stream = early([&](int i) { return mine(i) ? h(i) : 0.f; });
  auto weight = early([&](int i) { return mine(i) ? weight_at(0, i) : 0.f; });
#pragma unroll
  for (int i = 0; i < H_PER_THREAD; i++)
    if (INT8) tops.x = fmaxf(tops.x, fabsf(stream(i)));
#pragma unroll
  for (int i = 0; i < PLE_EACH; i++) {
    if (element(i) >= PLE) continue;
    u32 bits = ple_context[i].y == a.tag ? ple_context[i].x : wait_packet(packets(AT_CONTEXT) + index * PLE + element(i), a.tag);
    made[i] = as_float(bits) * rsqrtf((float)HIDDEN);
    sums.y += made[i] * made[i];
  }
  __syncwarp();
  receive(AT_DOWN, tag(P_DOWN), v);
#pragma unroll
  for (int i = 0; i < H_PER_THREAD; i++) {
    sums.x += v[i] * v[i];
    v[i] *= weight(i);
    if (INT8) tops.y = fmaxf(tops.y, fabsf(v[i]));
  }
  over_block(sums, tops);
  const float r = inverse_rms(sums.x);
  unit = unit_of(tops.x + r * tops.y);
  const float units = quotient(1.f, unit);
  u8* to = operand() + place(first());
#pragma unroll
  for (int i = 0; i < H_PER_THREAD; i++) {
    if (!mine(i)) continue;
    v[i] = stream(i) + v[i] * r;
    h(i) = v[i];
    put(to, i, v[i], units);
  }
#pragma unroll
  for (int i = 0; i < PLE_EACH; i++) {
    if (element(i) >= PLE) continue;
    float of_token = a.ple_rows || !INT8 ? low_bf16(ple_row[i]) : round_bf16((float)(signed char)ple_row[i] * token_scale);
    ple[i] = (made[i] * rsqrtf(sums.y * (1.f / (PLE ? PLE : 1)) + EPS) * low_bf16(ple_weight[i]) + round_bf16(of_token * PLE_SCALE)) * 0.70710678f;
  }
}

DEVICE void Consumer::put_ple(bool own) {
  float v[PLE_EACH], top = 0;
  u32 bits[PLE_EACH];
  wait_packets<PLE_EACH>(packets(AT_PLE_GATE) + first(), [](int i) { return spread(i); }, PLE - first(), tag(P_PLE_GATE), bits);
#pragma unroll
  for (int i = 0; i < PLE_EACH; i++) {
    v[i] = element(i) < PLE ? gelu_tanh(as_float(bits[i])) * ple[i] : 0.f;
    top = fmaxf(top, fabsf(v[i]));
  }
  __syncwarp();
  if (INT8) unit = unit_over(top, own);
#pragma unroll
  for (int i = 0; i < PLE_EACH; i++)
    if (element(i) < PLE) put(operand() + place(first()), i, v[i], quotient(1.f, unit));
}

DEVICE void Consumer::run() {
  model = a.table[eat.lane], model_scales = a.table[32 + eat.lane];
  layer = next = a.table[64 + eat.lane];
  layer_scales = next_scales = a.table[96 + eat.lane];
  best = {-1e38f, 0.f, 0x7fffffff}, never = 0, info = 0, unit = expert_unit = token_scale = 1.f;
#ifdef TIMERS
  marked = clock64();
  if (eat.thread < 40) ((u32*)(shared + S_TIMERS))[eat.thread] = 0;
#endif
  start();
  fetch_weights(1, norm(F_NORM_IN));
  fetch_head_norms(layer);
  for (int full = 0; full < 2; full++) {
    const int half = (full ? D_FULL : D_SLIDING) / 2;
    fetch_shared(rotation(full), of_model(full ? M_COS_FULL : M_COS_SLIDING) + (u64)a.position * half, half);
    fetch_shared(rotation(full) + half, of_model(full ? M_SIN_FULL : M_SIN_SLIDING) + (u64)a.position * half, half);
  }
#pragma unroll 1
  for (Walk w; !w.done(); w.advance()) {
    index = w.layer;
    eat.thread = opaque(eat.thread), eat.warp = eat.thread >> 5, eat.lane = eat.thread & 31;
    if (w.product == W_QKV) enter_layer();
    multiply(w.product);
    mark(w.product * 3 + 2);
    fetch_ahead(w.product);
  }
  finish();
  mark(35);
#ifdef TIMERS
  if (eat.thread == 0)
    for (int i = 0; i < 40; i++) ((u32*)(a.scratch + AT_TIMERS))[this_block() * 40 + i] = ((u32*)(shared + S_TIMERS))[i];
#endif
}
