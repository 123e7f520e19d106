// The inside of a gated MLP over AMOUNT numbers. MODE 0: out = gelu_tanh(gate) * up, the first factor rounded as the portable form
// does. MODE 1: the gradient of up, dy gelu_tanh(gate). MODE 2: that of gate, dy up gelu_tanh'(gate).
enum { AMOUNT = FIRST_NUMBER, MODE };
#define BEND(x) ((x + x * x * x * 0.044715f) * 1.5957691216057308f)          // 1 + tanh(x) is twice sigmoid(2 x)
#define BEND_SLOPE(x) ((x * x * (3 * 0.044715f) + 1.0f) * 1.5957691216057308f)

INLINE vec rounded(vec v) {
#if BF16
  const ivec bits = (ivec)v;
  return (vec)((bits + 0x7fff + (bits >> 16 & 1)) & ~0xffff);
#else
  return v;
#endif
}

static WIDEST __attribute__((noinline)) void gated(item *out, const item *gate, const item *one, const item *two, i64 count, i64 mode) {
  for (i64 i = 0; i < count; i += LANES) {
    const i64 left = count - i;
    const vec x = some(gate + i, left), bent = BEND(x), s = sigmoid(bent);
    vec made = some(one + i, left);
    if (mode == 0) made *= rounded(x * s);
    else if (mode == 1) made *= x * s;
    else made *= some(two + i, left) * (s + x * s * sigmoid(-bent) * BEND_SLOPE(x));
    put_some(out + i, made, left);
  }
}

WIDEST void kernel(TENSORS) {
  GIVEN;
  const i64 blocks = (numbers[AMOUNT] + 63) / 64, first = share(blocks, part, parts) * 64;
  i64 last = share(blocks, part + 1, parts) * 64;
  if (last > numbers[AMOUNT]) last = numbers[AMOUNT];
  const i64 mode = numbers[MODE];
  const item *gate = (const item *)given[1], *one = (const item *)given[2], *two = mode == 2 ? (const item *)given[3] : one;
  gated((item *)given[0] + first, gate + first, one + first, two + first, last - first, mode);
}
