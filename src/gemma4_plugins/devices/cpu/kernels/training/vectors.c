// Vectors of numbers in memory, the last of a row cut short.
typedef u16 hvec __attribute__((vector_size(LANES * 2), aligned(2)));

// The first `left` numbers of a vector, zeros behind them.
INLINE vec some(const item *x, i64 left) {
  if (left >= LANES) {
#if BF16
    return (vec)(__builtin_convertvector(*(const hvec *)x, ivec) << 16);
#else
    return *(const vec *)x;
#endif
  }
  vec made = {0};
  for (i64 i = 0; i < left; i++) made[i] = get(x[i]);
  return made;
}

INLINE void put_some(item *to, vec v, i64 left) {
  if (left >= LANES) {
#if BF16
    const ivec bits = (ivec)v;
    *(hvec *)to = __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, hvec);
#else
    *(vec *)to = v;
#endif
    return;
  }
  for (i64 i = 0; i < left; i++) to[i] = put(v[i]);
}

INLINE vec some_floats(const float *x, i64 left) {
  if (left >= LANES) return *(const vec *)x;
  vec made = {0};
  for (i64 i = 0; i < left; i++) made[i] = x[i];
  return made;
}

// The first and the last of a part's rows.
INLINE i64 share(i64 count, i64 part, i64 parts) { return count * part / parts; }

INLINE vec chosen(ivec where, vec one, vec other) { return (vec)((where & (ivec)one) | (~where & (ivec)other)); }
