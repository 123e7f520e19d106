// Rows of attention's weights, KEYS numbers each, or of the gradient of its scores.
// GRADIENT 0: out = softmax(scores) over the keys that are seen, 0 elsewhere; scores are fp32.
// GRADIENT 1: out = p (dp - sum(p dp)).
// Rows are queries of heads, [batch][key heads][GROUP][LENGTH]; key j of a query is at position j. With BAND they are [batch]
// [key heads][BLOCKS][GROUP][BAND]: blocks of BAND positions, whose keys begin BAND positions before them.
// A query sees keys of its own position and before, WINDOW of them where that is not 0; with MEDIA also later ones in the window
// that are of its own media block (numbers >= 0); with SEGMENTS only those of its own segment.
enum { ROWS_OF_ALL = FIRST_NUMBER, ROWS_OF_TEXT, KEYS, LENGTH, GROUP, BAND, BLOCKS, WINDOW, SEGMENTS, MEDIA, GRADIENT };

// Keys first ... last may be seen; key 0 of a row is at `start`.
typedef struct { i64 start, position, first, last, length; int segment, block; const int *segments, *blocks; } Query;

INLINE ivec counted(i64 from) {
  ivec made;
  for (int i = 0; i < LANES; i++) made[i] = (int)from + i;
  return made;
}

INLINE ivec whole_numbers(const int *x, i64 at, i64 length) {
  if (at >= 0 && at + LANES <= length) return *(const ivec *)(x + at);
  ivec made;
  for (i64 i = 0; i < LANES; i++) made[i] = at + i >= 0 && at + i < length ? x[at + i] : -1;
  return made;
}

INLINE ivec seen(const Query *q, i64 at) {
  const i64 key = q->start + at;
  const ivec keys = counted(key);
  ivec made = (keys >= (int)q->first) & (keys <= (int)q->last);
  if (q->segments) made &= whole_numbers(q->segments, key, q->length) == q->segment;
  if (q->blocks && q->block >= 0) made &= (keys <= (int)q->position) | (whole_numbers(q->blocks, key, q->length) == q->block);
  return made;
}

static WIDEST __attribute__((noinline)) void weights(item *out, const float *scores, const Query *q, i64 from, i64 to, i64 n) {
  const vec nothing = (vec){0} - 3.0e38f, zero = {0};
  vec top = nothing, sums = {0};
  for (i64 i = from; i < to; i += LANES) {
    const vec x = chosen(seen(q, i), some_floats(scores + i, n - i), nothing);
    top = chosen(x > top, x, top);
  }
  const vec most = zero + largest(top);
  for (i64 i = from; i < to; i += LANES) {
    const vec x = some_floats(scores + i, n - i);
    sums += chosen(seen(q, i), exponential(x - most), zero);
  }
  const float sum = sum_of(sums), part = sum == 0.0f ? 0.0f : 1.0f / sum;
  for (i64 i = from; i < to; i += LANES) {
    const vec x = some_floats(scores + i, n - i);
    put_some(out + i, chosen(seen(q, i), exponential(x - most) * part, zero), n - i);
  }
}

static WIDEST __attribute__((noinline)) void gradient(item *out, const item *p, const item *dp, i64 from, i64 to, i64 n) {
  vec sums = {0};
  for (i64 i = from; i < to; i += LANES) sums += some(p + i, n - i) * some(dp + i, n - i);
  const float sum = sum_of(sums);
  for (i64 i = from; i < to; i += LANES) put_some(out + i, some(p + i, n - i) * (some(dp + i, n - i) - sum), n - i);
}

WIDEST void kernel(TENSORS) {
  GIVEN;
  const i64 rows = numbers[ROWS_OF_ALL], n = numbers[KEYS], length = numbers[LENGTH], band = numbers[BAND], window = numbers[WINDOW];
  const i64 group = numbers[GROUP], of_text = numbers[ROWS_OF_TEXT], row_blocks = numbers[BLOCKS];
  const i64 has_segments = numbers[SEGMENTS], has_media = numbers[MEDIA], slopes = numbers[GRADIENT];
  for (i64 row = share(rows, part, parts); row < share(rows, part + 1, parts); row++) {
    Query q = {.length = length, .segment = -1, .block = -1};
    q.position = band ? row / (band * group) % row_blocks * band + row % band : row % length;
    q.start = band ? q.position / band * band - band : 0;
    q.first = window && q.position >= window ? q.position - window + 1 : 0;
    q.last = q.position;
    if (q.position >= length) q.last = -1;                 // behind the end of what was cut into blocks
    else if (slopes) q.last = has_media ? length - 1 : q.last;  // all others have weight 0
    else {
      const i64 text = row / of_text * length;
      if (has_segments) q.segments = (const int *)given[2] + text, q.segment = q.segments[q.position];
      if (has_media) q.blocks = (const int *)given[2 + has_segments] + text, q.block = q.blocks[q.position];
      if (q.block >= 0) q.last = length - 1;
    }
    i64 from = q.first - q.start, to = q.last - q.start + 1;
    from = from < 0 ? 0 : from;
    to = to > n ? n : to;
    if (to < from) from = to = 0;
    item *out = (item *)given[0] + row * n;
    if (slopes) gradient(out, (const item *)given[1] + row * n, (const item *)given[2] + row * n, from, to, n);
    else weights(out, (const float *)given[1] + row * n, &q, from, to, n);
    to = to == from ? from : from + (to - from + LANES - 1) / LANES * LANES;
    for (i64 i = 0; i < from; i++) out[i] = put(0.0f);
    for (i64 i = to; i < n; i++) out[i] = put(0.0f);
  }
}
