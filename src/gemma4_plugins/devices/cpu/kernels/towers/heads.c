// Heads of queries, keys or values, [COUNT][HEADS][SIZE]: bounded, divided by their root mean square, WEIGHTED, and TURNED
// in two dimensions: the first half of a head by the angles of its row's first axis, the second half by the second's,
// lane j with lane j + SIZE / 4. cos and sin are [COUNT][2][SIZE / 4] in fp32.
enum { QUARTER = SIZE / 4, HALF = SIZE / 2 };

WIDEST void NAME(item *restrict out, INPUTS, const int core_id) {
  for (i64 row = (i64)COUNT * core_id / PARTS; row < (i64)COUNT * (core_id + 1) / PARTS; row++)
    for (i64 head = 0; head < HEADS; head++) {
      const i64 first = (row * HEADS + head) * SIZE;
      float values[SIZE];
      for (i64 i = 0; i < SIZE; i++) values[i] = BOUND(get(x[first + i]));
      const float scale = 1.0f / __builtin_sqrtf(sum_of_squares(values, SIZE) / SIZE + EPS);
      for (i64 i = 0; i < SIZE; i++) {
        values[i] *= scale;
#if WEIGHTED
        values[i] *= get(weight[i]);
#endif
      }
#if TURNED
      for (i64 axis = 0; axis < 2; axis++) {
        const float *c = cos + row * HALF + axis * QUARTER, *s = sin + row * HALF + axis * QUARTER;
        for (i64 j = 0; j < QUARTER; j++) {
          const float a = get(put(values[axis * HALF + j])), b = get(put(values[axis * HALF + QUARTER + j]));
          values[axis * HALF + j] = a * c[j] - b * s[j];
          values[axis * HALF + QUARTER + j] = b * c[j] + a * s[j];
        }
      }
#endif
      for (i64 i = 0; i < SIZE; i++) out[first + i] = put(values[i]);
    }
}
