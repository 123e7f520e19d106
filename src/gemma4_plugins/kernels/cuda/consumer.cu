// The multiplying warps of the persistent step: operands in, rows through, packets out, layer by layer.

struct Consumer {
  Eater eat;
  const Arguments& a;
  u8* shared;
  Choice choice;
  u64* choice_made;
  u64 model, layer, next;   // this lane's field of the table rows: the model's, the layer's, the next layer's
  float ple;                // this thread's element of the layer's per-layer input
  int sums_buffer;

  DEVICE u64 field(int f) const { return __shfl_sync(ALL, layer, f); }
  DEVICE const u16* of_model(int f) const { return (const u16*)__shfl_sync(ALL, model, f); }
  DEVICE const u16* norm(int f) const { return (const u16*)field(f); }
  DEVICE u8* operand() const { return shared + S_OPERAND; }
  DEVICE u32 tag(int index, int phase) const { return a.tag + 1 + index * PHASES + phase; }
  DEVICE uint2* packets(int at) const { return a.scratch + at; }
  DEVICE bool mine(int i) const { return eat.thread + i * CONSUMERS < HIDDEN; }

  // ---- sums over the block's threads; alternating buffers make one barrier enough
  DEVICE float block_sum(float v) {
    copies_done();  // of norm weights: they are read only after the barrier below
    float* to = (float*)(shared + S_SUMS) + sums_buffer * WARPS;
    sums_buffer ^= 1;
    v = warp_sum(v);
    if (eat.lane == 0) to[eat.warp] = v;
    bar_sync(1, CONSUMERS);
    v = to[eat.lane & (WARPS - 1)];
    for (int o = WARPS / 2; o; o >>= 1) v += __shfl_xor_sync(ALL, v, o);
    return v;
  }

  // ---- the residual stream, fp32: a thread keeps elements thread, thread + CONSUMERS, … in shared memory
  DEVICE float& h(int i) const { return ((float*)(shared + S_STREAM))[eat.thread + i * CONSUMERS]; }

  // ---- norm weights, fetched ahead: of what is added (0), of the operands that follow (1, and 2, 3 with experts)
  DEVICE u16* weights(int which) const { return (u16*)(shared + S_NORMS + which * ((HIDDEN * 2 + 127) / 128 * 128)); }
  DEVICE float weight(int which, int i) const { return low_bf16(weights(which)[eat.thread + i * CONSUMERS]); }
  DEVICE void fetch_weights(int which, const u16* from) {
    for (int i = eat.thread * 8; i < HIDDEN; i += CONSUMERS * 8) copy16(weights(which) + i, from + i);
  }

  // ---- what other blocks made, and the stream's norms
  DEVICE void receive(int at, u32 tag_in, float (&v)[H_PER_THREAD]) {
    constexpr int STEP = H_PER_THREAD < 4 ? H_PER_THREAD : 4;
#pragma unroll
    for (int base = 0; base < H_PER_THREAD; base += STEP) {
      u32 bits[STEP];
      int from = eat.thread + base * CONSUMERS;
      wait_packets<STEP>(packets(at) + from, CONSUMERS, HIDDEN - from, tag_in, bits);
#pragma unroll
      for (int i = 0; i < STEP; i++)
        if (base + i < H_PER_THREAD) v[base + i] = as_float(bits[i]);
    }
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
  // h = (h + norm(v) * weights 0) * factor
  DEVICE void add_normed(const float (&v)[H_PER_THREAD], float factor) {
    float r = inverse_rms(v);
#pragma unroll
    for (int i = 0; i < H_PER_THREAD; i++)
      if (mine(i)) h(i) = (h(i) + v[i] * r * weight(0, i)) * factor;
  }
  DEVICE void put(u8* to, int e, float v) { *(u16*)(to + operand_offset(e)) = to_bf16(v); }
  // an operand h * factor * weights
  DEVICE void put_weighted(u8* to, float factor, int which) {
#pragma unroll
    for (int i = 0; i < H_PER_THREAD; i++)
      if (mine(i)) put(to, eat.thread + i * CONSUMERS, h(i) * factor * weight(which, i));
  }
  DEVICE void put_normed() { put_weighted(operand(), inverse_rms(), 1); }
  DEVICE void put_plain() {
#pragma unroll
    for (int i = 0; i < H_PER_THREAD; i++)
      if (mine(i)) put(operand(), eat.thread + i * CONSUMERS, h(i));
  }
  // an operand that comes as packets of two bf16
  DEVICE void put_pairs(int at, int count, u32 tag_in) {
    for (int base = eat.thread; base < count; base += 8 * CONSUMERS) {
      u32 v[8];
      wait_packets<8>(packets(at) + base, CONSUMERS, count - base, tag_in, v);
#pragma unroll
      for (int i = 0; i < 8; i++)
        if (base + i * CONSUMERS < count) *(u32*)(operand() + operand_offset(2 * (base + i * CONSUMERS))) = v[i];
    }
  }
  DEVICE void operand_ready() { bar_sync(1, CONSUMERS); }

  // ---- products whose sums are published one by one
  DEVICE void publish_rows(const Rows& r, const u8* x, int first, int at, u32 tag_out, float factor = 1.f) {
    uint2* to = packets(at) + first;
    eat.multiply_rows<false>(r, x, [&](const Tile& t, int row, bool valid, float sum) {
      if (valid) store_packet(to + t.first + row, as_bits(sum * factor), tag_out);
    });
  }
  DEVICE void product(const u8* x, int count, int row_bytes, int at, u32 tag_out, float factor = 1.f) {
    publish_rows(rows_of(count, row_bytes), x, share(count, blockIdx.x), at, tag_out, factor);
  }
  // gelu(gate) * up, two results to a packet; `scale(unit)` multiplies a result
  template <class Scale> DEVICE void gated(const u8* x, int count, int at, u32 tag_out, Scale scale) {
    int first = share(count / 2, blockIdx.x) * 2;
    uint2* to = packets(at) + first / 2;
    eat.multiply_rows<false>(pairs_of(count, HIDDEN * WEIGHT_BYTES), x, [&](const Tile& t, int row, bool valid, float sum) {
      float up = __shfl_down_sync(ALL, sum, 8);
      float value = row < 8 ? gelu_tanh(sum) * up * scale(first + t.first + row) : 0.f;
      float second = __shfl_down_sync(ALL, value, 1);
      if (valid && row < 8 && !(row & 1)) store_packet(to + (t.first + row) / 2, pack_bf16(value, second), tag_out);
    });
  }

  DEVICE void start();
  DEVICE void context();
  template <int D, int KV> DEVICE void attention(int index, u32 info);
  DEVICE void dense(int index, int ff);
  DEVICE void experts(int index, int ff);
  DEVICE void add_mixture(int index, float factor);
  DEVICE void per_layer(int index);
  DEVICE float scalar() const { return low_bf16(load_early((const u16*)field(F_SCALAR))); }
  DEVICE void head();
  DEVICE void run();
};

// The token's embedding, scaled and rounded as the weights' type has it.
DEVICE void Consumer::start() {
  const u16* row = of_model(M_EMBEDDING) + (u64)(u32)*a.token * HIDDEN;
#pragma unroll
  for (int i = 0; i < H_PER_THREAD; i++)
    if (mine(i)) h(i) = round_bf16(low_bf16(load_early(row + eat.thread + i * CONSUMERS)) * EMBED_SCALE);
}

// The projection of the embedding that every layer's per-layer input starts from.
DEVICE void Consumer::context() {
  put_plain();
  operand_ready();
  product(operand(), LAYERS * PLE, HIDDEN * WEIGHT_BYTES, AT_CONTEXT, a.tag, rsqrtf((float)HIDDEN));
}

template <int D, int KV> DEVICE void Consumer::attention(int index, u32 info) {
  bool full = info & IS_FULL, own = info & IS_OWN, one = info & KEY_IS_VALUE;
  int rows = HEADS * D + (own ? (one ? 1 : 2) * KV * D : 0);
  const u16* cos = of_model(full ? M_COS_FULL : M_COS_SLIDING) + (u64)a.position * (D / 2);
  const u16* sin = of_model(full ? M_SIN_FULL : M_SIN_SLIDING) + (u64)a.position * (D / 2);
  LayerAttention settings = {full, own, one, norm(F_NORM_Q), norm(F_NORM_K), cos, sin, (u8*)field(F_CACHE)};
  product(operand(), rows, HIDDEN * WEIGHT_BYTES, AT_QKV, tag(index, P_QKV));
  u16* kept = (u16*)(shared + S_NEW) + (full ? 2 * D_MAX : 0);
  attend<D, KV>(eat, a, settings, operand(), {kept, kept + D_MAX}, tag(index, P_QKV), tag(index, P_PART));
  fetch_weights(0, norm(F_NORM_ATTENTION));
  fetch_weights(1, norm(F_NORM_BEFORE));
  if (EXPERTS) {
    fetch_weights(2, norm(F_ROUTER_SCALE));
    fetch_weights(3, norm(F_NORM_BEFORE_EXPERTS));
  }
  combine<D, KV>(eat, a, full, tag(index, P_PART), tag(index, P_MIXED));
  put_pairs(AT_MIXED, HEADS * D / 2, tag(index, P_MIXED));
  operand_ready();
  product(operand(), HIDDEN, HEADS * D * WEIGHT_BYTES, AT_O, tag(index, P_O));
}

DEVICE void Consumer::dense(int index, int ff) {
  put_normed();
  operand_ready();
  gated(operand(), ff, AT_GATED, tag(index, P_GATED), [](int) { return 1.f; });
  fetch_weights(0, norm(F_NORM_AFTER));
  put_pairs(AT_GATED, ff / 2, tag(index, P_GATED));
  operand_ready();
  product(operand(), HIDDEN, ff * WEIGHT_BYTES, AT_DOWN, tag(index, P_DOWN));
}

// The gated per-layer input. Its own vector is made from the context while the stream is on its way.
DEVICE void Consumer::per_layer(int index) {
  int t = eat.thread;
  float token = 0, weight = 0, made = 0;
  const u16* row = a.ple_rows ? a.ple_rows : of_model(M_PLE_TABLE) + (u64)(u32)*a.token * (LAYERS * PLE);
  const u16* weights_of = of_model(M_PLE_NORM);
  if (t < PLE) {
    token = round_bf16(low_bf16(load_early(row + index * PLE + t)) * PLE_SCALE);
    weight = low_bf16(load_early(weights_of + t));
    made = as_float(wait_packet(packets(AT_CONTEXT) + index * PLE + t, a.tag));
  }
  float r = rsqrtf(block_sum(made * made) / (PLE ? PLE : 1) + EPS);
  ple = (made * r * weight + token) * 0.70710678f;
  float v[H_PER_THREAD];
  receive(AT_DOWN, tag(index, P_DOWN), v);
  add_normed(v, 1.f);
  put_plain();
  operand_ready();
  product(operand(), PLE, HIDDEN * WEIGHT_BYTES, AT_PLE_GATE, tag(index, P_PLE_GATE));
  fetch_weights(0, norm(F_NORM_PLE));
  if (t < PLE) put(operand(), t, gelu_tanh(as_float(wait_packet(packets(AT_PLE_GATE) + t, tag(index, P_PLE_GATE)))) * ple);
  operand_ready();
  product(operand(), HIDDEN, PLE * WEIGHT_BYTES, AT_PLE, tag(index, P_PLE));
}

DEVICE void Consumer::run() {
  model = a.table[eat.lane];
  next = a.table[32 + eat.lane];
  layer = next;
  start();
  fetch_weights(1, norm(F_NORM_IN));
  if (PLE) context();
  float v[H_PER_THREAD];
  for (int i = 0; i < LAYERS; i++) {
    layer = next;
    next = i + 1 < LAYERS ? a.table[(i + 2) * 32 + eat.lane] : 0;
    u32 info = (u32)field(F_INFO);
    int ff = (int)field(F_FF);
    put_normed();
    operand_ready();
    if (info & IS_FULL) attention<D_FULL, KV_FULL>(i, info);
    else attention<D_SLIDING, KV_SLIDING>(i, info);
    float factor = scalar();
    receive(AT_O, tag(i, P_O), v);
    add_normed(v, 1.f);
    if (EXPERTS) experts(i, ff);
    else dense(i, ff);
    if (PLE) per_layer(i);
    const u16* following = i + 1 < LAYERS ? (const u16*)__shfl_sync(ALL, next, F_NORM_IN) : of_model(M_NORM);
    fetch_weights(1, following);
    if (EXPERTS) {
      add_mixture(i, factor);
    } else {
      receive(PLE ? AT_PLE : AT_DOWN, tag(i, PLE ? P_PLE : P_DOWN), v);
      add_normed(v, factor);
    }
  }
  put_normed();
  operand_ready();
  head();
}
