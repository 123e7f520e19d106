// The multiplying warps of the persistent step: operands in, rows through, packets out, product by product.

struct Consumer {
  Eater eat;
  const Arguments& a;
  u8* shared;
  const Shape* shapes;
  Choice choice;
  u64* choice_made;
  u64 model, layer, next;  // this lane's field of the table rows: the model's, the layer's, the next layer's
  u64 model_scales, layer_scales, next_scales;
  const u16* last_scalar;  // of the layer before
  int index;               // of the layer
  u32 info;
  float ple;               // this thread's element of the layer's per-layer input
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
  DEVICE int element(int i) const { return eat.thread + i * CONSUMERS; }
  DEVICE bool mine(int i) const { return element(i) < HIDDEN; }

  // ---- the residual stream, fp32: a thread keeps every CONSUMERS-th element in shared memory
  DEVICE float& h(int i) const { return ((float*)(shared + S_STREAM))[element(i)]; }

  // ---- norm weights, fetched ahead: of what is added (0), of the operands that follow (1, and 2, 3 with experts)
  DEVICE u16* weights(int which) const { return (u16*)(shared + S_NORM_0 + which * NORM_BYTES); }
  DEVICE float weight_at(int which, int i) const { return low_bf16(weights(which)[element(i)]); }
  DEVICE void fetch_weights(int which, const u16* from) {
    for (int i = eat.thread * 8; i < HIDDEN; i += CONSUMERS * 8) copy16(weights(which) + i, from + i);
  }

  // ---- one number of all the block's threads; alternating buffers make one barrier enough
  template <class Merge> DEVICE float over_block(float v, Merge merge) {
    float* to = next_sums();
    for (int o = 16; o; o >>= 1) v = merge(v, __shfl_xor_sync(ALL, v, o));
    if (eat.lane == 0) to[eat.warp] = v;
    bar_sync(1, CONSUMERS);
    v = to[eat.lane & (WARPS - 1)];
    for (int o = WARPS / 2; o; o >>= 1) v = merge(v, __shfl_xor_sync(ALL, v, o));
    return v;
  }
  DEVICE float* next_sums() {
    float* to = (float*)(shared + S_SUMS) + sums_buffer * WARPS * 2;
    sums_buffer ^= 1;
    return to;
  }
  DEVICE float block_max(float v) {
    return over_block(v, [](float a, float b) { return fmaxf(a, b); });
  }
  DEVICE float block_sum(float v) {
    copies_done();  // of norm weights: they are read only after the barrier below
    return over_block(v, [](float a, float b) { return a + b; });
  }
  // two at once; the second one's warp sums stand behind the first one's
  DEVICE float2 block_sums(float v, float w) {
    copies_done();
    float* to = next_sums();
    v = warp_sum(v), w = warp_sum(w);
    if (eat.lane == 0) to[eat.warp] = v, to[WARPS + eat.warp] = w;
    bar_sync(1, CONSUMERS);
    v = to[eat.lane & (WARPS - 1)], w = to[WARPS + (eat.lane & (WARPS - 1))];
    for (int o = WARPS / 2; o; o >>= 1) v += __shfl_xor_sync(ALL, v, o), w += __shfl_xor_sync(ALL, w, o);
    return make_float2(v, w);
  }
  DEVICE float inverse_rms(const float (&v)[H_PER_THREAD]) {
    float s = 0;
#pragma unroll
    for (int i = 0; i < H_PER_THREAD; i++) s += mine(i) ? v[i] * v[i] : 0.f;
    return rsqrtf(block_sum(s) / HIDDEN + EPS);
  }
  DEVICE float inverse_rms() {
    float s = 0;
#pragma unroll
    for (int i = 0; i < H_PER_THREAD; i++) s += mine(i) ? h(i) * h(i) : 0.f;
    return rsqrtf(block_sum(s) / HIDDEN + EPS);
  }

  // ---- what other blocks made
  DEVICE void receive(int at, u32 tag_in, float (&v)[H_PER_THREAD]) {
    u32 bits[H_PER_THREAD];
    wait_packets<H_PER_THREAD, false>(packets(at) + eat.thread, CONSUMERS, HIDDEN - eat.thread, tag_in, bits);
#pragma unroll
    for (int i = 0; i < H_PER_THREAD; i++) v[i] = as_float(bits[i]);
  }
  // h = (h + norm(v) * weights 0) * factor
  DEVICE void add_normed(const float (&v)[H_PER_THREAD], float factor) {
    float r = inverse_rms(v);
#pragma unroll
    for (int i = 0; i < H_PER_THREAD; i++)
      if (mine(i)) h(i) = (h(i) + v[i] * r * weight_at(0, i)) * factor;
  }

  // ---- operands: bf16, or beside int8 weights two digits of each element and the unit that they count. A thread's
  // elements are CONSUMERS apart, whole groups of the operand's order.
  static_assert(CONSUMERS % 64 == 0, "an operand's order is one of groups of 32 or 64");
  DEVICE static int place(int e) { return INT8 ? digit_offset(e) : operand_offset(e); }
  DEVICE static void put(u8* to, int i, float v, float units) {
    to += i * CONSUMERS * 2;
    if (INT8) {
      int q = digits_of(v, units);
      to[0] = high_digit(q), to[64] = low_digit(q);
    } else {
      *(u16*)to = to_bf16(v);
    }
  }
  DEVICE static void put_pair(u8* to, int i, u32 pair, float units) {
    to += i * CONSUMERS * 4;
    if (INT8) {
      int p = digits_of(low_bf16(pair), units), q = digits_of(high_bf16(pair), units);
      *(u16*)to = (u16)(high_digit(p) | high_digit(q) << 8);
      *(u16*)(to + 64) = (u16)(low_digit(p) | low_digit(q) << 8);
    } else {
      *(u32*)to = pair;
    }
  }
  // a vector's unit from the largest of all threads' elements; their inverse is what digits are made with
  DEVICE static float unit_of(float top) { return fmaxf(top, 1e-20f) / MOST_DIGITS; }
  DEVICE void put_vector(u8* to, float& counted_in, const float (&v)[H_PER_THREAD]) {
    if (INT8) {
      float top = 0;
#pragma unroll
      for (int i = 0; i < H_PER_THREAD; i++) top = mine(i) ? fmaxf(top, fabsf(v[i])) : top;
      counted_in = unit_of(block_max(top));
    }
    const float units = 1.f / counted_in;
#pragma unroll
    for (int i = 0; i < H_PER_THREAD; i++)
      if (mine(i)) put(to + place(eat.thread), i, v[i], units);
  }
  DEVICE void put_stream() {
    float v[H_PER_THREAD];
#pragma unroll
    for (int i = 0; i < H_PER_THREAD; i++) v[i] = mine(i) ? h(i) : 0.f;
    put_vector(operand(), unit, v);
  }
  DEVICE void put_normed(u8* to, float& counted_in, float factor, int which) {
    float v[H_PER_THREAD];
#pragma unroll
    for (int i = 0; i < H_PER_THREAD; i++) v[i] = mine(i) ? h(i) * factor * weight_at(which, i) : 0.f;
    put_vector(to, counted_in, v);
  }
  // from packets of two bf16
  template <int COUNT, int TIMES> DEVICE void put_some_pairs(int at, int count, u32 tag_in) {
    u32 v[TIMES][COUNT];
#pragma unroll
    for (int r = 0; r < TIMES; r++) {
      int base = eat.thread + r * COUNT * CONSUMERS;
      wait_packets<COUNT, (COUNT > 8)>(packets(at) + base, CONSUMERS, count - base, tag_in, v[r]);
    }
    put_taken(v, count);
  }
  // this thread's of `count` pairs, which are CONSUMERS apart
  template <int COUNT, int TIMES> DEVICE void put_taken(const u32 (&v)[TIMES][COUNT], int count) {
    if (INT8) {
      float top = 0;
#pragma unroll
      for (int r = 0; r < TIMES; r++)
#pragma unroll
        for (int i = 0; i < COUNT; i++)
          if (eat.thread + (r * COUNT + i) * CONSUMERS < count) top = fmaxf(top, fmaxf(fabsf(low_bf16(v[r][i])), fabsf(high_bf16(v[r][i]))));
      unit = unit_of(block_max(top));
    }
    u8* to = operand() + place(2 * eat.thread);
    const float units = 1.f / unit;
#pragma unroll
    for (int r = 0; r < TIMES; r++)
#pragma unroll
      for (int i = 0; i < COUNT; i++)
        if (eat.thread + (r * COUNT + i) * CONSUMERS < count) put_pair(to, r * COUNT + i, v[r][i], units);
  }
  DEVICE void put_pairs(int at, int count, u32 tag_in) {
    if (count <= 8 * CONSUMERS) put_some_pairs<8, 1>(at, count, tag_in);
    else put_some_pairs<MANY_PAIRS, ROUNDS>(at, count, tag_in);
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
  DEVICE bool attention();
  DEVICE void add_result(int product);
  DEVICE void receive_ple();
  DEVICE void put_ple();
  DEVICE void put_branches(int product);
  DEVICE void add_mixture(float factor);
  DEVICE void make_operand(int product, int width);
  DEVICE void fetch_ahead(int product);
  DEVICE void multiply(const Shape& s, int product);
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
  u32 token = (u32)*a.token;
  const u8* row = (const u8*)of_model(M_EMBEDDING) + (u64)token * HIDDEN * WEIGHT_BYTES;
  float scale = INT8 ? scales_of_model(M_EMBEDDING)[token] : 1.f;
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

// Add to the stream what this product's operand comes after: attention's result, or the end of the layer before.
DEVICE void Consumer::add_result(int product) {
  const bool attended = product != W_QKV && product != W_HEAD;
  if (!attended && index == 0) return;
  const u16* scalar = product == W_HEAD ? (const u16*)field(F_SCALAR) : last_scalar;
  float factor = attended ? 1.f : low_bf16(load_early(scalar)), v[H_PER_THREAD];
  if (EXPERTS && !attended) return add_mixture(factor);
  // the last layer's result was made under its own tags
  constexpr int LAST = PLE ? P_PLE : P_DOWN;
  receive(attended ? AT_O : PLE ? AT_PLE : AT_DOWN, tag(attended ? P_O : LAST - PHASES), v);
  add_normed(v, factor);
}

// Whether the operand of what follows is made, and not only the pairs that it is made of.
DEVICE bool Consumer::attention() {
  const Heads n(info);
  const Slice s(n, a.position);
  const int d = n.d();
  const u16* cos = of_model(n.full ? M_COS_FULL : M_COS_SLIDING) + (u64)a.position * (d / 2);
  const u16* sin = of_model(n.full ? M_SIN_FULL : M_SIN_SLIDING) + (u64)a.position * (d / 2);
  int slots = (int)(u64)of_model(n.full ? M_SLOTS_FULL : M_SLOTS_SLIDING);
  bool own = info & IS_OWN, one = info & KEY_IS_VALUE;
  LayerAttention settings = {own, one, norm(F_NORM_Q), norm(F_NORM_K), cos, sin, (u8*)field(F_CACHE), slots};
  u16* kept = (u16*)(shared + S_NEW) + (n.full ? 2 * D_MAX : 0);
  attend(eat, a, n, s, settings, operand(), {kept, kept + D_MAX}, tag(P_QKV), tag(P_PART), [&](int part) { mark(part); });
  mark(33);
  if (s.few) {
    float* shares = (float*)(shared + S_SHARES);
    u32 v[1][JOINED_PAIRS];
    weigh_slices(eat, a, n, s.slices, shares, tag(P_PART));
    bar_sync(1, CONSUMERS);
    join(eat, a, n, s.slices, shares, tag(P_PART), v[0]);
    put_taken(v, HEADS * d / 2);
  } else {
    combine(eat, a, n, s.slices, tag(P_PART), tag(P_MIXED));
  }
  mark(34);
  return s.few;
}

// The stream after the feed-forward part; and this layer's per-layer input, whose parts have long been there.
DEVICE void Consumer::receive_ple() {
  int t = eat.thread;
  float token = 0, weight = 0, made = 0, v[H_PER_THREAD], squares = 0;
  const u8* table = (const u8*)of_model(M_PLE_TABLE) + (u64)(u32)*a.token * (LAYERS * PLE * WEIGHT_BYTES);
  const float* scales = scales_of_model(M_PLE_TABLE);
  const u16* weights_of = of_model(M_PLE_NORM);
  if (t < PLE) {
    int at = index * PLE + t;
    token = a.ple_rows ? low_bf16(load_early(a.ple_rows + at)) : stored(table, at, INT8 ? scales[*a.token] : 1.f);
    token = round_bf16(token * PLE_SCALE);
    weight = low_bf16(load_early(weights_of + t));
    made = as_float(wait_packet(packets(AT_CONTEXT) + index * PLE + t, a.tag)) * rsqrtf((float)HIDDEN);
  }
  receive(AT_DOWN, tag(P_DOWN), v);
#pragma unroll
  for (int i = 0; i < H_PER_THREAD; i++) squares += mine(i) ? v[i] * v[i] : 0.f;
  float2 sums = block_sums(squares, made * made);
  float r = rsqrtf(sums.x / HIDDEN + EPS);
  ple = (made * rsqrtf(sums.y / (PLE ? PLE : 1) + EPS) * weight + token) * 0.70710678f;
#pragma unroll
  for (int i = 0; i < H_PER_THREAD; i++)
    if (mine(i)) h(i) += v[i] * r * weight_at(0, i);
  put_stream();
}

DEVICE void Consumer::put_ple() {
  int t = eat.thread;
  float v = t < PLE ? gelu_tanh(as_float(wait_packet(packets(AT_PLE_GATE) + t, tag(P_PLE_GATE)))) * ple : 0.f;
  if (INT8) unit = unit_of(block_max(fabsf(v)));
  if (t < PLE) put(operand() + place(t), 0, v, 1.f / unit);
}

DEVICE void Consumer::run() {
  model = a.table[eat.lane], model_scales = a.table[32 + eat.lane];
  layer = next = a.table[64 + eat.lane];
  layer_scales = next_scales = a.table[96 + eat.lane];
  best = {-1e38f, 0.f, 0x7fffffff}, never = 0, info = 0, unit = expert_unit = 1.f;
#ifdef TIMERS
  marked = clock64();
  if (eat.thread < 40) ((u32*)(shared + S_TIMERS))[eat.thread] = 0;
#endif
  start();
  fetch_weights(1, norm(F_NORM_IN));
#pragma unroll 1
  for (Walk w; !w.done(); w.advance()) {
    index = w.layer;
    eat.thread = opaque(eat.thread), eat.warp = eat.thread >> 5, eat.lane = eat.thread & 31;
    if (w.product == W_QKV) enter_layer();
    const Shape s = shapes[(info >> KIND) * PRODUCTS + w.product];
    make_operand(w.product, s.row_bytes / WEIGHT_BYTES);
    bar_sync(1, CONSUMERS);
    mark(w.product * 3);
    fetch_ahead(w.product);
    multiply(s, w.product);
    mark(w.product * 3 + 2);
  }
  finish();
  mark(35);
#ifdef TIMERS
  if (eat.thread == 0)
    for (int i = 0; i < 40; i++) ((u32*)(a.scratch + AT_TIMERS))[this_block() * 40 + i] = ((u32*)(shared + S_TIMERS))[i];
#endif
}
