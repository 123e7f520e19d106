// Pairs: 32-bit words of two bf16 neighbours along the depth of a product.
#if BF16 && defined(__AVX512BF16__) && !defined(SLOW_PAIRS)
#define PAIRS 1
typedef u32 uvec __attribute__((vector_size(LANES * 4), aligned(4)));

// c[ROWS][vectors * LANES] += a · b, where each 32 bits hold two bf16 neighbours along depth: rows of a by address
INLINE void multiply_pairs(float *c, i64 c_pitch, const item *const *a, const u32 *b, i64 b_pitch, i64 pairs, int vectors) {
  vec sums[ROWS][VECTORS];
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < vectors; v++) sums[r][v] = *(const vec *)(c + r * c_pitch + v * LANES);
  for (i64 k = 0; k < pairs; k++) {
    uvec x[VECTORS];
    for (int v = 0; v < vectors; v++) x[v] = *(const uvec *)(b + k * b_pitch + v * LANES);
#pragma clang loop unroll(full)
    for (int r = 0; r < ROWS; r++) {
      u32 both;
      __builtin_memcpy(&both, a[r] + 2 * k, 4);
      uvec y = (uvec){0} + both;
#pragma clang loop unroll(full)
      for (int v = 0; v < vectors; v++) __asm__("vdpbf16ps %2, %1, %0" : "+v"(sums[r][v]) : "v"(x[v]), "v"(y));
    }
  }
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < vectors; v++) *(vec *)(c + r * c_pitch + v * LANES) = sums[r][v];
}
#else
#define PAIRS 0
#endif

#define PAIRED (BF16 && (PAIRS || AMX))
#if PAIRED
INLINE u32 both(item low, item high) { return low | (u32)high << 16; }

// The next 16 pairs of a row that ends `left` values on; zeros behind it.
INLINE Words pairs_of(const item *row, i64 left) {
  if (left >= 32) return *(const Words *)row;
  Words found = {0};
  for (i64 i = 0; i < 16; i++) found[i] = both(2 * i < left ? row[2 * i] : 0, 2 * i + 1 < left ? row[2 * i + 1] : 0);
  return found;
}
#endif
