// out[COUNT][HEADS * SIZE] = softmax(q @ k^T) @ v for every head, scale 1, over the keys that `real` marks.
// q [COUNT][HEADS][SIZE], k and v [COUNT][KEY_HEADS][SIZE]. A job is QUERIES queries of one head; keys pass by WIDE at a
// time with a running softmax. In pairs of bf16 where the processor is faster at those, elsewhere in fp32.
#define UP(n, step) (((n) + (step) - 1) / (step) * (step))
enum {
  QUERIES = 16 * ROWS,
  DEPTH = PAIRED ? UP(SIZE, AMX ? 32 : 2) : SIZE,         // of q and k
  EACH = PAIRED ? 2 : 1,                                  // columns of the left side that one value of the right side meets
  PITCH = UP(SIZE, PAIRED && AMX ? 32 : LANES),           // of v and what is mixed of it
};

#if PAIRED
typedef item left_type;                                   // of the left sides of both products
typedef u32 right_type;                                   // of the right sides: pairs along depth
#define KEEP(f) put(f)
// Where the right side of a product holds a pair for one of `columns` columns.
INLINE i64 place(i64 pair, i64 column, i64 pairs, i64 columns) {
  return AMX ? (column / 16 * pairs + pair) * 16 + column % 16 : pair * columns + column;
}
#else
typedef float left_type, right_type;
#define KEEP(f) (f)
#endif

// c[QUERIES][columns] += a[QUERIES][depth] · b
INLINE void product(float *c, i64 columns, const left_type *a, i64 depth, const right_type *b) {
#if PAIRED && AMX
  Tiles tiles;
  tiles.product_rows = 0;
  for (i64 n = 0; n < columns; n += TILE_COLUMNS)
    for (i64 r = 0; r < QUERIES; r += TILE_ROWS)
      multiply_tiles(&tiles, TILE_ROWS, depth / 2, a + r * depth, depth * 2, b + n * (depth / 2), 16 * (depth / 2), c + r * columns + n, columns * 4, 0);
  TILE_RELEASE(&tiles);
#else
  for (i64 r = 0; r < QUERIES; r += ROWS) {
    i64 n = 0;
#if PAIRED
    const item *rows[ROWS];
    for (int i = 0; i < ROWS; i++) rows[i] = a + (r + i) * depth;
    for (; n + WIDE <= columns; n += WIDE) multiply_pairs(c + r * columns + n, columns, rows, b + n, columns, depth / 2, VECTORS);
    for (; n < columns; n += LANES) multiply_pairs(c + r * columns + n, columns, rows, b + n, columns, depth / 2, 1);
#else
    for (; n + WIDE <= columns; n += WIDE) multiply(c + r * columns + n, columns, a + r * depth, depth, b + n, columns, depth, VECTORS);
    for (; n < columns; n += LANES) multiply(c + r * columns + n, columns, a + r * depth, depth, b + n, columns, depth, 1);
#endif
  }
#endif
}

WIDEST void NAME(item *restrict out, INPUTS, const int core_id) {
  const i64 groups = (COUNT + QUERIES - 1) / QUERIES;
  for (i64 job = core_id; job < groups * HEADS; job += PARTS) {
    const i64 head = job / groups, own = head / (HEADS / KEY_HEADS), first = job % groups * QUERIES;
    left_type left[QUERIES * DEPTH] __attribute__((aligned(64)));
    right_type keys[DEPTH / EACH * WIDE] __attribute__((aligned(64))), values[WIDE / EACH * PITCH] __attribute__((aligned(64)));
    float scores[QUERIES * WIDE] __attribute__((aligned(64))), mixed[QUERIES * PITCH] __attribute__((aligned(64)));
    item nothing[SIZE];
#if PAIRED
    left_type shares[QUERIES * WIDE] __attribute__((aligned(64)));
#else
    left_type *shares = scores;                           // which they replace
#endif
    float peak[QUERIES];
    vec total[QUERIES];                                   // by lanes
    for (i64 i = 0; i < SIZE; i++) nothing[i] = 0;
    for (i64 i = 0; i < WIDE / EACH * PITCH; i++) values[i] = 0;  // columns beyond SIZE stay so
    for (i64 r = 0; r < QUERIES; r++) {
      const item *query = q + ((first + (first + r < COUNT ? r : 0)) * HEADS + head) * SIZE;
      for (i64 d = 0; d < DEPTH; d++) left[r * DEPTH + d] = d < SIZE ? KEEP(get(query[d])) : 0;
      peak[r] = -1e30f;
      total[r] = (vec){0};
    }
    for (i64 i = 0; i < QUERIES * PITCH; i++) mixed[i] = 0.0f;
    for (i64 j0 = 0; j0 < COUNT; j0 += WIDE) {
      const item *key[WIDE], *value[WIDE];
      float bias[WIDE];
      int any = 0;
      for (i64 j = 0; j < WIDE; j++) {
        int seen = j0 + j < COUNT && real[j0 + j];
        bias[j] = seen ? 0.0f : -1e30f;
        any |= seen;
        key[j] = seen ? k + ((j0 + j) * KEY_HEADS + own) * SIZE : nothing;  // whatever lies there
        value[j] = seen ? v + ((j0 + j) * KEY_HEADS + own) * SIZE : nothing;
      }
      if (!any) continue;
#if PAIRED
      for (i64 j = 0; j < WIDE; j += 16)
        for (i64 pair = 0; pair < DEPTH / 2; pair += 16) {
          Words r[16];
          for (i64 i = 0; i < 16; i++) r[i] = pairs_of(key[j + i] + 2 * pair, SIZE - 2 * pair);
          transpose(r);
          for (i64 i = 0; i < 16 && pair + i < DEPTH / 2; i++) *(Words *)(keys + place(pair + i, j, DEPTH / 2, WIDE)) = r[i];
        }
      for (i64 j = 0; j < WIDE; j += 2)
        for (i64 d0 = 0; d0 < SIZE; d0 += 16) {
          u32 *to = values + place(j / 2, d0, WIDE / 2, PITCH);
          for (i64 d = 0; d < (SIZE - d0 < 16 ? SIZE - d0 : 16); d++) to[d] = both(value[j][d0 + d], value[j + 1][d0 + d]);
        }
#else
      for (i64 j = 0; j < WIDE; j++) {
        for (i64 d = 0; d < SIZE; d++) keys[d * WIDE + j] = get(key[j][d]);
        for (i64 d = 0; d < SIZE; d++) values[j * PITCH + d] = get(value[j][d]);
      }
#endif
      for (i64 i = 0; i < QUERIES * WIDE; i += LANES) *(vec *)(scores + i) = (vec){0};
      product(scores, WIDE, left, DEPTH, keys);
      for (i64 r = 0; r < QUERIES; r++) {
        vec tops = (vec){0} + peak[r];
        for (i64 j = 0; j < WIDE; j += LANES) {
          vec score = *(const vec *)(scores + r * WIDE + j) + *(const vec *)(bias + j);
          *(vec *)(scores + r * WIDE + j) = score;
          tops = __builtin_elementwise_max(tops, score);
        }
        const float top = largest(tops);
        vec keep = exponential((vec){0} + (peak[r] - top)), part = {0};
        for (i64 j = 0; j < WIDE; j += LANES) {
          vec share = exponential(*(const vec *)(scores + r * WIDE + j) - top);
          *(vec *)(scores + r * WIDE + j) = share;
          part += share;
        }
        if (PAIRED) for (i64 j = 0; j < WIDE; j++) shares[r * WIDE + j] = KEEP(scores[r * WIDE + j]);
        for (i64 d = 0; d < PITCH; d += LANES) *(vec *)(mixed + r * PITCH + d) *= keep;
        total[r] = total[r] * keep + part;
        peak[r] = top;
      }
      product(mixed, PITCH, shares, WIDE, values);
    }
    for (i64 r = 0; r < QUERIES && first + r < COUNT; r++) {
      float sum = sum_of(total[r]);
      for (i64 d = 0; d < SIZE; d++) out[((first + r) * HEADS + head) * SIZE + d] = put(mixed[r * PITCH + d] / sum);
    }
  }
}
