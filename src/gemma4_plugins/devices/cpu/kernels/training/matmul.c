// out = FACTOR * (left . right), plus a second such product, for matrices of which rows may stand in columns; sums in fp32.
// A job is a block of rows by one of columns. Slice by slice along the depth the right side is packed as [columns / 16][step]
// [16 columns], and tiles of rows of the left side, packed as [row][step] or as they lie, run over it from registers. A step
// is an fp32 number, or two bf16 neighbours along the depth where the processor multiplies such. A side of int8 numbers with
// fp32 scales is unpacked there, as it is packed: what is multiplied is each number times its scale, rounded to the item's type.
enum {
  ROW_COUNT = FIRST_NUMBER, COLUMN_COUNT, DEPTHS, SECOND_DEPTH = DEPTHS + 1, MATRICES, GROUP, TURNED, WIDE_RESULT, LEFT_DOWN, RIGHT_DOWN,
  ROW_BLOCK, COLUMN_BLOCK, FACTOR, SCALED
};

#if BF16 && AMX
enum { STEP = 2, STEPS = 128, TILE = TILE_ROWS, AT_ONCE = TILE_COLUMNS, WHOLE = TILE_PAIRS };
#elif BF16 && defined(__AVX512BF16__) && !defined(SLOW_PAIRS)
#define PAIRED 1
enum { STEP = 2, STEPS = 128, TILE = 6, AT_ONCE = 64, WHOLE = 1 };
#else
enum { STEP = 1, STEPS = 128, TILE = 6, AT_ONCE = LANES == 16 ? 64 : 16, WHOLE = 1 };
#endif
enum { MOST_ROWS = 512, MOST_COLUMNS = 256, MOST_SUMS = 1 << 16, NEAR = 64, PER_BLOCK = 16 / LANES, AS_LIES = STEP == 2 || !BF16 };

typedef u16 Halves __attribute__((vector_size(32), aligned(2)));
typedef float Floats __attribute__((vector_size(64), aligned(4)));

typedef signed char Bytes __attribute__((vector_size(16), aligned(1)));
typedef int Wholes __attribute__((vector_size(64), aligned(4)));

// `count` rows of `depth` numbers; `down`: they stand in columns. With `scale` they are int8 in memory, with a scale for each
// row there: for each row here, or, where those stand in columns, for each number of the depth.
typedef struct { const item *at; i64 count, depth; int down; const float *scale; } Side;

INLINE u32 widened(item x) { float f = get(x); u32 bits; __builtin_memcpy(&bits, &f, 4); return bits; }
INLINE item unpacked(const Side *s, i64 row, i64 k) {
  const signed char *numbers = (const signed char *)s->at;
  return s->down ? put(numbers[k * s->count + row] * s->scale[k]) : put(numbers[row * s->depth + k] * s->scale[row]);
}

// 16 int8 numbers times a scale as steps of one item each, rounded to the item's type
INLINE Words scaled(Wholes numbers, float scale) {
  const Words bits = (Words)(__builtin_convertvector(numbers, Floats) * scale);
#if BF16
  return (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
#else
  return bits;
#endif
}

// as `along` and `across` for numbers with scales
INLINE Words along_scaled(const Side *s, i64 row, i64 k) {
  const char *first = (const char *)s->at + row * s->depth + k;
  if (STEP == 1) return scaled(__builtin_convertvector(*(const Bytes *)first, Wholes), s->scale[row]);
  const Wholes pairs = (Wholes)__builtin_convertvector(*(const Halves *)first, Words);
  return scaled(pairs << 24 >> 24, s->scale[row]) >> 16 | scaled(pairs << 16 >> 24, s->scale[row]);
}
INLINE Words across_scaled(const Side *s, i64 row, i64 k) {
  const char *first = (const char *)s->at + k * s->count + row;
  const Words low = scaled(__builtin_convertvector(*(const Bytes *)first, Wholes), s->scale[k]);
  if (STEP == 1) return low;
  return low >> 16 | scaled(__builtin_convertvector(*(const Bytes *)(first + s->count), Wholes), s->scale[k + 1]);
}

INLINE u32 step_at(const Side *s, i64 row, i64 k) {
  if (row >= s->count || k >= s->depth) return 0;
  if (s->scale) {
    const u32 low = widened(unpacked(s, row, k));
    return STEP == 1 ? low : low >> 16 | (k + 1 < s->depth ? widened(unpacked(s, row, k + 1)) : 0);
  }
  const item *first = s->at + (s->down ? k * s->count + row : row * s->depth + k);
#if BF16
  if (STEP == 2) return (u32)first[0] | (k + 1 < s->depth ? (u32)first[s->down ? s->count : 1] << 16 : 0);
#endif
  return widened(first[0]);
}

// 16 steps of a row from number k on, for rows that lie; zeros behind the edges.
INLINE Words along(const Side *s, i64 row, i64 k) {
  const item *first = s->at + row * s->depth + k;
  if (row < s->count && k + 16 * STEP <= s->depth) {
    if (s->scale) return along_scaled(s, row, k);
#if BF16
    if (STEP == 1) return __builtin_convertvector(*(const Halves *)first, Words) << 16;
#endif
    return *(const Words *)first;
  }
  Words made = {0};
  for (i64 i = 0; i < 16; i++) made[i] = step_at(s, row, k + i * STEP);
  return made;
}

// A step of 16 rows, for rows that stand in columns.
INLINE Words across(const Side *s, i64 row, i64 k) {
  const item *first = s->at + k * s->count + row;
  if (row + 16 <= s->count && k + STEP <= s->depth) {
    if (s->scale) return across_scaled(s, row, k);
#if BF16
    const Words low = __builtin_convertvector(*(const Halves *)first, Words);
    if (STEP == 1) return low << 16;
    return low | __builtin_convertvector(*(const Halves *)(first + s->count), Words) << 16;
#else
    return *(const Words *)first;
#endif
  }
  Words made = {0};
  for (i64 i = 0; i < 16; i++) made[i] = step_at(s, row + i, k);
  return made;
}

// 16 rows by 16 steps, each row's in a row if `in_rows`, else each step's.
static WIDEST __attribute__((noinline)) void packed_block(const Side *s, i64 row, i64 k, int in_rows, u32 *to, i64 pitch) {
  Words r[16];
  if (s->down) for (i64 i = 0; i < 16; i++) r[i] = across(s, row, k + i * STEP);
  else for (i64 i = 0; i < 16; i++) r[i] = along(s, row + i, k);
  if (in_rows == s->down) transpose(r);
  for (i64 i = 0; i < 16; i++) *(Words *)(to + i * pitch) = r[i];
}

#if !(BF16 && AMX)
// c[TILE][AT_ONCE] += rows . b; rows by address
INLINE void multiply_rows(float *c, const u32 *const *rows, const u32 *b, i64 block, i64 steps) {
  enum { ACROSS = AT_ONCE / LANES };
  vec sums[TILE][ACROSS];
  for (int r = 0; r < TILE; r++)
    for (int v = 0; v < ACROSS; v++) sums[r][v] = *(const vec *)(c + r * NEAR + v * LANES);
  for (i64 k = 0; k < steps; k++) {
    vec x[ACROSS];
    for (int v = 0; v < ACROSS; v++) x[v] = *(const vec *)(b + v / PER_BLOCK * block + k * 16 + v % PER_BLOCK * LANES);
#pragma clang loop unroll(full)
    for (int r = 0; r < TILE; r++) {
      float y;
      __builtin_memcpy(&y, rows[r] + k, 4);
      const vec all = (vec){0} + y;
#pragma clang loop unroll(full)
      for (int v = 0; v < ACROSS; v++) {
#ifdef PAIRED
        __asm__("vdpbf16ps %2, %1, %0" : "+v"(sums[r][v]) : "v"(x[v]), "v"(all));
#else
        sums[r][v] += x[v] * all;
#endif
      }
    }
  }
  for (int r = 0; r < TILE; r++)
    for (int v = 0; v < ACROSS; v++) *(vec *)(c + r * NEAR + v * LANES) = sums[r][v];
}
#endif

// c += the product of these rows and columns: NEAR columns of all rows, then the next; each has room for `height` rows
static WIDEST __attribute__((noinline)) void add_product(float *c, i64 height, const Side *left, const Side *right, i64 row, i64 row_end, i64 column, i64 column_end) {
  u32 packed[MOST_COLUMNS * STEPS + MOST_COLUMNS] __attribute__((aligned(64))), lefts[MOST_ROWS * STEPS] __attribute__((aligned(64)));
#if BF16 && AMX
  Tiles tiles;
  tiles.product_rows = 0;
#endif
  for (i64 k = 0; k < left->depth; k += STEPS * STEP) {
    const i64 depth = left->depth - k < STEPS * STEP ? left->depth - k : STEPS * STEP;
    const i64 steps = ((depth + STEP - 1) / STEP + WHOLE - 1) / WHOLE * WHOLE, block = (steps + 15) / 16 * 256 + 16;  // of 16 columns, at another place in the cache than the next
    for (i64 n = 0; n < column_end - column; n += 16)
      for (i64 i = 0; i < steps; i += 16) packed_block(right, column + n, k + i * STEP, 0, packed + n / 16 * block + i * 16, 16);
    const int as_lies = AS_LIES && !left->down && !left->scale && depth % (STEP * WHOLE) == 0;
    const char *from = (const char *)(left->at + row * left->depth + k);
    i64 bytes = left->depth * (i64)sizeof(item);
    if (!as_lies) {
      for (i64 i = 0; i < steps; i += 16)
        for (i64 m = 0; m < row_end - row; m += 16) packed_block(left, row + m, k + i * STEP, 1, lefts + m * STEPS + i, STEPS);
      from = (const char *)lefts;
      bytes = STEPS * 4;
    }
    // a few columns stay in the nearest cache while all rows run over them
    for (i64 first = 0; first < column_end - column; first += NEAR)
      for (i64 m = 0; m < row_end - row; m += TILE) {
        const i64 here = row_end - row - m < TILE ? row_end - row - m : TILE;
#if !(BF16 && AMX)
        const u32 *rows[TILE];
        for (i64 r = 0; r < TILE; r++) rows[r] = (const u32 *)(from + (m + (r < here ? r : 0)) * bytes);
#endif
        for (i64 n = first; n < first + NEAR && n < column_end - column; n += AT_ONCE) {
          float *sums = c + (first * height + m * NEAR) + (n - first);
#if BF16 && AMX
          multiply_tiles(&tiles, here, steps, from + m * bytes, bytes, packed + n / 16 * block, block, sums, NEAR * 4, 0);
#else
          multiply_rows(sums, rows, packed + n / 16 * block, block, steps);
#endif
        }
      }
  }
#if BF16 && AMX
  TILE_RELEASE(&tiles);
#endif
}

INLINE void put_values(void *out, i64 at, const float *from, i64 count, int wide, float factor) {
  if (wide) for (i64 i = 0; i < count; i++) ((float *)out)[at + i] = from[i] * factor;
  else for (i64 i = 0; i < count; i++) ((item *)out)[at + i] = put(from[i] * factor);
}

// NEAR columns of the rows of a job
static WIDEST __attribute__((noinline)) void put_block(void *out, i64 at, const float *c, i64 rows, i64 columns, i64 pitch, int wide, int turned, float factor) {
  if (!turned) {
    for (i64 m = 0; m < rows; m++) put_values(out, at + m * pitch, c + m * NEAR, columns, wide, factor);
    return;
  }
  for (i64 n = 0; n < columns; n += 16)
    for (i64 m = 0; m < rows; m += 16) {
      Words r[16];
      for (i64 i = 0; i < 16; i++) r[i] = *(const Words *)(c + (m + i) * NEAR + n);
      transpose(r);
      for (i64 i = 0; i < 16 && n + i < columns; i++) {
        const Floats values = (Floats)r[i];
        const float *from = (const float *)&values;
        if (rows - m >= 16) put_values(out, at + (n + i) * pitch + m, from, 16, wide, factor);
        else put_values(out, at + (n + i) * pitch + m, from, rows - m, wide, factor);
      }
    }
}

WIDEST void kernel(TENSORS) {
  GIVEN;
  const i64 rows = numbers[ROW_COUNT], columns = numbers[COLUMN_COUNT], row_block = numbers[ROW_BLOCK], column_block = numbers[COLUMN_BLOCK];
  const i64 row_jobs = (rows + row_block - 1) / row_block, column_jobs = (columns + column_block - 1) / column_block;
  const i64 group = numbers[GROUP], height = row_block + 16;  // the last tile may end behind the last row
  const int turned = (int)numbers[TURNED], wide = (int)numbers[WIDE_RESULT];
  float c[MOST_SUMS + 16 * MOST_COLUMNS] __attribute__((aligned(64)));
  for (i64 job = part; job < row_jobs * column_jobs * numbers[MATRICES]; job += parts) {
    const i64 row = job % row_jobs * row_block, column = job / row_jobs % column_jobs * column_block, matrix = job / row_jobs / column_jobs;
    const i64 row_end = row + row_block < rows ? row + row_block : rows, column_end = column + column_block < columns ? column + column_block : columns;
    for (i64 n = 0; n < column_end - column; n += NEAR)
      for (i64 i = 0; i < (row_end - row + 15) / 16 * 16 * NEAR; i += 16) *(Floats *)(c + n * height + i) = (Floats){0};
    for (i64 pair = 0; pair < 2; pair++) {
      const i64 depth = numbers[DEPTHS + pair];
      if (!depth) continue;
      // of a pair of tensors the first has as many matrices as the result; the scales of the first pair's other one stand behind it
      const i64 own = 1 + 2 * pair + turned, other = 1 + 2 * pair + !turned, behind = pair ? numbers[SCALED] : 0;
      const float *scale = numbers[SCALED] && !pair ? (const float *)given[3] : 0;
      const Side left = {(const item *)given[own + behind] + (turned ? matrix / group : matrix) * rows * depth, rows, depth, (int)numbers[LEFT_DOWN], turned ? scale : 0};
      const Side right = {(const item *)given[other + behind] + (turned ? matrix : matrix / group) * columns * depth, columns, depth, (int)numbers[RIGHT_DOWN], turned ? 0 : scale};
      add_product(c, height, &left, &right, row, row_end, column, column_end);
    }
    const i64 first = matrix * rows * columns + (turned ? column * rows + row : row * columns + column), pitch = turned ? rows : columns;
    for (i64 n = 0; n < column_end - column; n += NEAR) {
      const i64 here = column_end - column - n < NEAR ? column_end - column - n : NEAR;
      put_block((void *)given[0], first + n * (turned ? rows : 1), c + n * height, row_end - row, here, pitch, wide, turned, real(FACTOR));
    }
  }
}
