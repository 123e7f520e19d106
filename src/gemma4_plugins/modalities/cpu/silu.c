// out = x * sigmoid(x) for COUNT values, bounded before and after. A job is a block of values.
enum { BLOCK = 1024 };

WIDEST void NAME(item *restrict out, INPUTS, const int core_id) {
  for (i64 first = core_id * BLOCK; first < COUNT; first += PARTS * BLOCK) {
    const i64 count = COUNT - first < BLOCK ? COUNT - first : BLOCK;
    float values[BLOCK];
    for (i64 i = 0; i < count; i++) values[i] = BOUND(get(x[first + i]));
    for (i64 i = count; i < BLOCK; i++) values[i] = 0.0f;
    for (i64 i = 0; i < count; i += LANES) {
      const vec v = *(const vec *)(values + i);
      *(vec *)(values + i) = v * sigmoid(v);
    }
    for (i64 i = 0; i < count; i++) out[first + i] = put(BOUND_AFTER(get(put(values[i]))));
  }
}
