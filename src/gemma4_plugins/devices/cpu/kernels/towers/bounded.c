// out = x between bounds, COUNT values.
WIDEST void NAME(item *restrict out, INPUTS, const int core_id) {
  for (i64 i = (i64)COUNT * core_id / PARTS; i < (i64)COUNT * (core_id + 1) / PARTS; i++) out[i] = put(BOUND(get(x[i])));
}
