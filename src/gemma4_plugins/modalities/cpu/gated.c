// out = gelu(gate) * up for COUNT values, all three bounded. A job is a block of values.
enum { BLOCK = 1024 };

WIDEST void NAME(item *restrict out, INPUTS, const int core_id) {
  for (i64 first = core_id * BLOCK; first < COUNT; first += PARTS * BLOCK) {
    const i64 count = COUNT - first < BLOCK ? COUNT - first : BLOCK;
    float g[BLOCK];
    for (i64 i = 0; i < count; i++) g[i] = BOUND_GATE(get(gate[first + i]));
    for (i64 i = count; i < BLOCK; i++) g[i] = 0.0f;
    for (i64 i = 0; i < count; i += LANES) {
      const vec v = *(const vec *)(g + i);
      *(vec *)(g + i) = v * sigmoid((v + v * v * v * 0.044715f) * 1.5957691216057308f);  // 1 + tanh(x) is twice sigmoid(2 x)
    }
    for (i64 i = 0; i < count; i++) out[first + i] = put(BOUND_OUT(get(put(get(put(g[i])) * BOUND_UP(get(up[first + i]))))));
  }
}
