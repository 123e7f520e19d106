// out[COUNT][WIDTH] = x * (mean(x^2) + EPS)^-1/2 * weight, in fp32, x bounded before; ADDED to h.
WIDEST void NAME(item *restrict out, INPUTS, const int core_id) {
  for (i64 row = (i64)COUNT * core_id / PARTS; row < (i64)COUNT * (core_id + 1) / PARTS; row++) {
    float values[WIDTH];
    for (i64 i = 0; i < WIDTH; i++) values[i] = BOUND(get(x[row * WIDTH + i]));
    const float scale = 1.0f / __builtin_sqrtf(sum_of_squares(values, WIDTH) / WIDTH + EPS);
    for (i64 i = 0; i < WIDTH; i++) {
      item normed = put(values[i] * scale * get(weight[i]));
#if ADDED
      normed = put(get(h[row * WIDTH + i]) + get(normed));
#endif
      out[row * WIDTH + i] = normed;
    }
  }
}
