// Root-mean-square norm of rows x[ROW_COUNT][WIDTH]; r = 1 / sqrt(mean(x^2) + EPS), without WEIGHTED w = 1.
// MODE 0: out = x r w. MODE 1: the gradient of x from that of out, dy. MODE 2: that of w, fp32 [WIDTH].
enum { ROW_COUNT = FIRST_NUMBER, WIDTH, MODE, WEIGHTED, EPS };
enum { COLUMNS = 64 };                                     // of a weight's gradient, that a part makes at a time

static WIDEST __attribute__((noinline)) float root_of(const item *x, i64 n, float eps) {
  vec sums = {0};
  for (i64 i = 0; i < n; i += LANES) {
    const vec v = some(x + i, n - i);
    sums += v * v;
  }
  return 1.0f / __builtin_sqrtf(sum_of(sums) / (float)n + eps);
}

static WIDEST __attribute__((noinline)) void norm(item *out, const item *x, const item *w, i64 n, float eps) {
  const float r = root_of(x, n, eps);
  for (i64 i = 0; i < n; i += LANES) {
    const vec v = some(x + i, n - i) * r;
    put_some(out + i, w ? v * some(w + i, n - i) : v, n - i);
  }
}

static WIDEST __attribute__((noinline)) void norm_gradient(item *out, const item *x, const item *w, const item *dy, i64 n, float eps) {
  const float r = root_of(x, n, eps);
  vec sums = {0};
  for (i64 i = 0; i < n; i += LANES) {
    const vec d = some(dy + i, n - i);
    sums += some(x + i, n - i) * (w ? d * some(w + i, n - i) : d);
  }
  const float along = sum_of(sums) * r * r / (float)n;
  for (i64 i = 0; i < n; i += LANES) {
    const vec d = some(dy + i, n - i);
    put_some(out + i, ((w ? d * some(w + i, n - i) : d) - some(x + i, n - i) * along) * r, n - i);
  }
}

// Every part looks at whole rows, and adds up its own columns.
static WIDEST __attribute__((noinline)) void weight_gradient(float *out, const item *x, const item *dy, i64 rows, i64 n, float eps, i64 part, i64 parts) {
  enum { EACH = 32 };                                      // rows whose roots are known at a time
  const i64 blocks = (n + COLUMNS - 1) / COLUMNS, first = share(blocks, part, parts) * COLUMNS;
  i64 last = share(blocks, part + 1, parts) * COLUMNS;
  if (last > n) last = n;
  for (i64 i = first; i < last; i++) out[i] = 0.0f;
  for (i64 row = 0; row < rows && first < last; row += EACH) {
    const i64 here = rows - row < EACH ? rows - row : EACH;
    float roots[EACH];
    for (i64 r = 0; r < here; r++) roots[r] = root_of(x + (row + r) * n, n, eps);
    for (i64 i = first; i < last; i += LANES) {
      vec sums = some_floats(out + i, last - i);
      for (i64 r = 0; r < here; r++) {
        const i64 at = (row + r) * n + i;
        sums += some(x + at, last - i) * some(dy + at, last - i) * roots[r];
      }
      for (i64 j = 0; j < LANES && i + j < last; j++) out[i + j] = sums[j];
    }
  }
}

WIDEST void kernel(TENSORS) {
  GIVEN;
  const i64 rows = numbers[ROW_COUNT], n = numbers[WIDTH], mode = numbers[MODE], weighted = numbers[WEIGHTED];
  const float eps = real(EPS);
  const item *x = (const item *)given[1], *w = weighted ? (const item *)given[2] : 0, *dy = (const item *)given[2 + weighted];
  if (mode == 2) {
    weight_gradient((float *)given[0], x, dy, rows, n, eps, part, parts);
    return;
  }
  for (i64 row = share(rows, part, parts); row < share(rows, part + 1, parts); row++) {
    item *out = (item *)given[0] + row * n;
    if (mode) norm_gradient(out, x + row * n, w, dy + row * n, n, eps);
    else norm(out, x + row * n, w, n, eps);
  }
}
