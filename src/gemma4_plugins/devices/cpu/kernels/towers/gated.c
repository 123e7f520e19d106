// out = gelu(gate) * up for COUNT values, all three bounded; with SILU, gate * sigmoid(gate). A job is a block of values.
#if SILU
#define ARGUMENT(v) (v)
#define TIMES_UP(y, at) (y)
#else
#define ARGUMENT(v) ((v + v * v * v * 0.044715f) * 1.5957691216057308f)  // 1 + tanh(x) is twice sigmoid(2 x)
#define TIMES_UP(y, at) get(put((y) * BOUND_UP(get(up[at]))))
#endif
enum { BLOCK = 1024 };

WIDEST void NAME(item *restrict out, INPUTS, const int core_id) {
  for (i64 first = core_id * BLOCK; first < COUNT; first += PARTS * BLOCK) {
    const i64 count = COUNT - first < BLOCK ? COUNT - first : BLOCK;
    float values[BLOCK];
    for (i64 i = 0; i < count; i++) values[i] = BOUND_GATE(get(gate[first + i]));
    for (i64 i = count; i < BLOCK; i++) values[i] = 0.0f;
    for (i64 i = 0; i < count; i += LANES) {
      const vec v = *(const vec *)(values + i);
      *(vec *)(values + i) = v * sigmoid(ARGUMENT(v));
    }
    for (i64 i = 0; i < count; i++) out[first + i] = put(BOUND_OUT(TIMES_UP(get(put(values[i])), first + i)));
  }
}
