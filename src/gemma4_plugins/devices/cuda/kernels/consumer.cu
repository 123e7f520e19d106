// The multiplying warps of the persistent step: operands in, rows through, packets out, product by product.

struct Consumer : Vectors {
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
  float expert_unit;       // what the experts' operand is counted in
  u32 never;               // whether the token of this thread's next sum is suppressed
  Best best;
#ifdef TIMERS
  long long marked;
#endif

  DEVICE u64 field(int f) const { return __shfl_sync(ALL, layer, f); }
  DEVICE const u16* of_model(int f) const { return (const u16*)__shfl_sync(ALL, model, f); }
  DEVICE const float* scales_of_model(int f) const { return (const float*)__shfl_sync(ALL, model_scales, f); }
  DEVICE const u16* norm(int f) const { return (const u16*)field(f); }
  DEVICE u32 tag(int phase) const { return a.tag + 1 + index * PHASES + phase; }

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
  if (INT8 && PLE && !a.ple_rows) token_scale = scales_of_model(M_PLE_TABLE)[token];
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
  unit = unit_of(tops.x);
  u8* to = operand() + place(first());
#pragma unroll
  for (int i = 0; i < H_PER_THREAD; i++)
    if (mine(i)) put(to, i, h(i), quotient(1.f, unit));
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
  // an element is at most what both summands are at most
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
