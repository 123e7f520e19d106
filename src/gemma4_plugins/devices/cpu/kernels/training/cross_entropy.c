// Cross entropy of rows of WORDS raw logits against targets; rows of a negative target count nothing. With CAP above 0 a logit is
// CAP tanh(raw / CAP).
// GRADIENT 0: out[n][2] fp32: a row's loss, and the logarithm of its sum of powers.
// GRADIENT 1: out[n][WORDS]: the gradient of the raw logits, where `slopes[n]` is that of the losses.
enum { ROW_COUNT = FIRST_NUMBER, WORDS, GRADIENT, CAP };
enum { PIECE = 4096 };                                     // words whose powers are added in fp32

INLINE vec logit(vec raw, float cap) { return cap > 0.0f ? (sigmoid(raw * (2.0f / cap)) * 2.0f - 1.0f) * cap : raw; }

INLINE double logarithm(double x) {                        // of x in [1e-300, 1e300]
  u64 bits;
  __builtin_memcpy(&bits, &x, 8);
  i64 power = (i64)(bits >> 52) - 1023;
  bits = (bits & 0xfffffffffffffull) | 1023ull << 52;
  double m;
  __builtin_memcpy(&m, &bits, 8);
  if (m > 1.4142135623730951) m *= 0.5, power++;
  const double z = (m - 1.0) / (m + 1.0), y = z * z;
  double sum = 0.0;
  for (int i = 17; i > 0; i -= 2) sum = sum * y + 1.0 / i;
  return 2.0 * z * sum + (double)power * 0.6931471805599453;
}

static WIDEST __attribute__((noinline)) void loss(float *out, const item *raw, i64 n, i64 target, float cap) {
  const vec nothing = (vec){0} - 3.0e38f, zero = {0};
  vec most = nothing;
  if (cap > 0.0f && cap <= 40.0f) most = zero + cap;       // from there all powers can be told from 0
  else {
    for (i64 i = 0; i < n; i += LANES) {
      vec x = logit(some(raw + i, n - i), cap);
      if (n - i < LANES) for (i64 j = n - i; j < LANES; j++) x[j] = nothing[0];
      most = chosen(x > most, x, most);
    }
    most = zero + largest(most);
  }
  double sum = 0.0;
  for (i64 piece = 0; piece < n; piece += PIECE) {
    vec sums = {0};
    for (i64 i = piece; i < n && i < piece + PIECE; i += LANES) {
      vec power = exponential(logit(some(raw + i, n - i), cap) - most);
      if (n - i < LANES) for (i64 j = n - i; j < LANES; j++) power[j] = 0.0f;
      sums += power;
    }
    sum += sum_of(sums);
  }
  // what is no number stays none
  const float total = sum > 0.0 && sum < 1e300 ? (float)(most[0] + logarithm(sum)) : (float)sum + most[0];
  out[0] = target < 0 ? 0.0f : total - logit((vec){0} + get(raw[target]), cap)[0];
  out[1] = total;
}

static WIDEST __attribute__((noinline)) void gradient(item *out, const item *raw, i64 n, i64 target, float cap, float total, float slope) {
  for (i64 i = 0; i < n; i += LANES) {
    const vec x = some(raw + i, n - i), y = x * (cap > 0.0f ? 2.0f / cap : 0.0f);
    vec made = exponential(logit(x, cap) - total);
    if (target >= i && target < i + LANES) made[target - i] -= 1.0f;
    if (cap > 0.0f) made *= sigmoid(y) * sigmoid(-y) * 4.0f;
    put_some(out + i, made * slope, n - i);
  }
}

WIDEST void kernel(TENSORS) {
  GIVEN;
  const i64 rows = numbers[ROW_COUNT], n = numbers[WORDS], slopes = numbers[GRADIENT];
  const float cap = real(CAP);
  const int *targets = (const int *)given[2];
  for (i64 row = share(rows, part, parts); row < share(rows, part + 1, parts); row++) {
    const item *raw = (const item *)given[1] + row * n;
    if (!slopes) loss((float *)given[0] + 2 * row, raw, n, targets[row], cap);
    else if (targets[row] >= 0) gradient((item *)given[0] + row * n, raw, n, targets[row], cap, ((const float *)given[3])[2 * row + 1], ((const float *)given[4])[row]);
    else for (i64 i = 0; i < n; i++) ((item *)given[0])[row * n + i] = put(0.0f);
  }
}
