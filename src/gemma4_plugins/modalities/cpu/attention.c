// out[COUNT][HEADS * SIZE] = softmax(q @ k^T) @ v for every head, scale 1, over the keys that `real` marks.
// q [COUNT][HEADS][SIZE], k and v [COUNT][KEY_HEADS][SIZE]. A job is QUERIES queries of one head; keys pass by WIDE at a
// time with a running softmax.
enum { QUERIES = 16 * ROWS, PITCH = (SIZE + LANES - 1) / LANES * LANES };

void NAME(item *restrict out, const item *restrict q, const item *restrict k, const item *restrict v,
          const u8 *restrict real, const int core_id) {
  const i64 groups = (COUNT + QUERIES - 1) / QUERIES;
  for (i64 job = core_id; job < groups * HEADS; job += PARTS) {
    const i64 head = job / groups, own = head / (HEADS / KEY_HEADS), first = job % groups * QUERIES;
    float left[QUERIES * SIZE], keys[SIZE * WIDE], values[WIDE * PITCH], scores[QUERIES * WIDE], mixed[QUERIES * PITCH];
    float peak[QUERIES], total[QUERIES];
    for (i64 r = 0; r < QUERIES; r++) {
      for (i64 d = 0; d < SIZE; d++) left[r * SIZE + d] = first + r < COUNT ? get(q[((first + r) * HEADS + head) * SIZE + d]) : 0.0f;
      peak[r] = -1e30f;
      total[r] = 0.0f;
    }
    for (i64 i = 0; i < QUERIES * PITCH; i++) mixed[i] = 0.0f;
    for (i64 j0 = 0; j0 < COUNT; j0 += WIDE) {
      float bias[WIDE];
      int any = 0;
      for (i64 j = 0; j < WIDE; j++) {
        int seen = j0 + j < COUNT && real[j0 + j];
        bias[j] = seen ? 0.0f : -1e30f;
        any |= seen;
        const i64 at = ((j0 + (seen ? j : 0)) * KEY_HEADS + own) * SIZE;
        for (i64 d = 0; d < SIZE; d++) keys[d * WIDE + j] = seen ? get(k[at + d]) : 0.0f;
        for (i64 d = 0; d < PITCH; d++) values[j * PITCH + d] = seen && d < SIZE ? get(v[at + d]) : 0.0f;
      }
      if (!any) continue;
      for (i64 i = 0; i < QUERIES * WIDE; i += LANES) *(vec *)(scores + i) = (vec){0};
      for (i64 r = 0; r < QUERIES; r += ROWS) multiply(scores + r * WIDE, WIDE, left + r * SIZE, SIZE, keys, WIDE, SIZE, VECTORS);
      for (i64 r = 0; r < QUERIES; r++) {
        float top = peak[r], sum = 0.0f;
        for (i64 j = 0; j < WIDE; j++) {
          scores[r * WIDE + j] += bias[j];
          top = scores[r * WIDE + j] > top ? scores[r * WIDE + j] : top;
        }
        vec keep = exponential((vec){0} + (peak[r] - top)), part = {0};
        for (i64 j = 0; j < WIDE; j += LANES) {
          vec share = exponential(*(const vec *)(scores + r * WIDE + j) - top);
          *(vec *)(scores + r * WIDE + j) = share;
          part += share;
        }
        for (int i = 0; i < LANES; i++) sum += part[i];
        for (i64 d = 0; d < PITCH; d += LANES) *(vec *)(mixed + r * PITCH + d) *= keep;
        total[r] = total[r] * keep[0] + sum;
        peak[r] = top;
      }
      for (i64 r = 0; r < QUERIES; r += ROWS) {
        i64 d = 0;
        for (; d + WIDE <= PITCH; d += WIDE)
          multiply(mixed + r * PITCH + d, PITCH, scores + r * WIDE, WIDE, values + d, PITCH, WIDE, VECTORS);
        for (; d < PITCH; d += LANES)
          multiply(mixed + r * PITCH + d, PITCH, scores + r * WIDE, WIDE, values + d, PITCH, WIDE, 1);
      }
    }
    for (i64 r = 0; r < QUERIES && first + r < COUNT; r++)
      for (i64 d = 0; d < SIZE; d++) out[((first + r) * HEADS + head) * SIZE + d] = put(mixed[r * PITCH + d] / total[r]);
  }
}
