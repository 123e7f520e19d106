// A token drawn from one position's logits by all blocks together: penalty, temperature, top-k, top-p, min-p and noise, as
// gemma4_core.ops.sampling has them. A thread keeps its scores in registers. The two thresholds are found digit by digit
// of the scores' bits, from histograms that all blocks add to, with a barrier after each; all blocks must be resident.

constexpr int DIGITS = 256, ROUNDS_EACH = 4, HISTOGRAMS = 2 * ROUNDS_EACH;
constexpr int SCORES_EACH = (VOCAB + GRID * CHOOSERS - 1) / (GRID * CHOOSERS);
static_assert(SCORES_EACH <= 32, "a bit for each score of a thread");
constexpr float EXCLUDED = -1e30f, ONE = 1073741824.f;  // weights are counted in 2^-30, so that their sums have no order

struct Partial {  // of one block
  float top, sum, highest;  // of the logits: the largest, and the sum of exp(logit - top); of the scores: the largest
  float value, logit;       // of the tokens in question: the best one's
  int token;
};
struct Board {  // memory of all blocks; zero before the first launch, and left so but for the parts
  u64 bins[HISTOGRAMS][DIGITS];
  u32 arrived, unused;
  Partial parts[GRID];
};

DEVICE u32 ordered(float x) {
  u32 bits = as_bits(x);
  return bits >> 31 ? ~bits : bits ^ 0x80000000u;
}
DEVICE u32 mix(u32 h) {  // MurmurHash3's finaliser
  h = (h ^ h >> 16) * 0x85ebca6bu;
  h = (h ^ h >> 13) * 0xc2b2ae35u;
  return h ^ h >> 16;
}
DEVICE float noise(u32 start, int token) {
  u32 bits = mix(mix((u32)token * 0x9e3779b1u + start) + start);
  return -logf(-logf(fminf(((float)(bits >> 8) + 0.5f) * (1.f / 16777216.f), 1.f - 1.f / 16777216.f)));  // 1 would win
}

// Wait until every block has come here for the `turn`-th time.
DEVICE void meet(Board* all, u32 turn) {
  __syncthreads();
  if (threadIdx.x == 0) {
    fence_system();
    atomicAdd(&all->arrived, 1u);
    for (u32 spins = 0; *(volatile u32*)&all->arrived < turn * GRID; spins++) {
      if (spins > SPIN_LIMIT) give_up();
      spin_pause();
    }
    fence_system();
  }
  __syncthreads();
}

struct Room {  // a block's shared memory
  u64 bins[DIGITS];
  u64 above[DIGITS];
  float values[8], others[8];
  int tokens[8];
  u32 digit;
  u64 rest;
};
static_assert(sizeof(Room) == ROOM_BYTES && sizeof(Board) == BOARD_BYTES, "choose.py makes this memory");

template <class Merge> DEVICE float over_block(float v, float* room, Merge merge) {
  for (int o = 16; o; o >>= 1) v = merge(v, __shfl_xor_sync(ALL, v, o));
  __syncthreads();
  if ((threadIdx.x & 31) == 0) room[threadIdx.x >> 5] = v;
  __syncthreads();
  v = room[threadIdx.x & 7];
  for (int o = 4; o; o >>= 1) v = merge(v, __shfl_xor_sync(ALL, v, o));
  return v;
}

// One digit of a threshold: the largest such that its numbers and all above weigh `rest`, 0 where all together do not.
// `rest` loses what those above weigh. Returns what all weigh.
DEVICE u64 find_digit(Room* room, const u64* bins, u64& rest, u32& digit) {
  const int t = threadIdx.x, lane = t & 31;  // thread t has digit 255 - t, so that sums run from above
  u64 sum = ((volatile const u64*)bins)[DIGITS - 1 - t];
  for (int o = 1; o < 32; o <<= 1) {
    u64 other = __shfl_up_sync(ALL, sum, o);
    if (lane >= o) sum += other;
  }
  if (lane == 31) room->bins[t >> 5] = sum;
  __syncthreads();
  for (int w = 0; w < t >> 5; w++) sum += room->bins[w];
  room->above[t] = sum;
  __syncthreads();
  u64 before = t ? room->above[t - 1] : 0;
  if (before < rest && (sum >= rest || t == DIGITS - 1)) room->digit = DIGITS - 1 - t, room->rest = rest - before;
  __syncthreads();
  digit = room->digit, rest = room->rest;
  u64 whole = room->above[DIGITS - 1];
  __syncthreads();
  return whole;
}

// `counts` is null where nothing is counted; what it counts is punished, whether it stood in the prompt or was generated.
KERNEL(256) choose_token(const float* logits, const u8* suppressed, int* counts, Board* all, int* token, float* logprob, u32* history, int position,
                         u32 sequence, float temperature, float top_k, float top_p, float min_p, float penalty, u32 seed) {
  SHARED_MEMORY(memory);
  Room* room = (Room*)memory;
  const int t = threadIdx.x, block = this_block();
  const u32 start = mix(seed + (u32)position * 0x9e3779b1u);
  auto larger_of = [](float a, float b) { return fmaxf(a, b); };
  auto added = [](float a, float b) { return a + b; };
  auto given = [&](int id) { return suppressed && suppressed[id] ? EXCLUDED : logits[id]; };
  float score[SCORES_EACH], scaled[SCORES_EACH], top = EXCLUDED, highest = -3e38f, sum = 0;
  u32 key[SCORES_EACH], kept = 0, turn = 0;
  #pragma unroll
  for (int i = 0; i < SCORES_EACH; i++) {
    int id = (i * GRID + block) * CHOOSERS + t;
    if (id >= VOCAB) continue;
    float v = given(id);
    score[i] = !counts || !counts[id] ? v : v > 0 ? v / penalty : v * penalty;
    scaled[i] = score[i] / (temperature > 0 ? temperature : 1.f);
    key[i] = ordered(scaled[i]);
    kept |= 1u << i;
    top = fmaxf(top, v), highest = fmaxf(highest, scaled[i]);
  }
  top = over_block(top, room->values, larger_of), highest = over_block(highest, room->values, larger_of);
#pragma unroll
  for (int i = 0; i < SCORES_EACH; i++) {
    int id = (i * GRID + block) * CHOOSERS + t;
    if (id < VOCAB) sum += expf(given(id) - top);
  }
  sum = over_block(sum, room->values, added);
  if (t == 0) all->parts[block].top = top, all->parts[block].sum = sum, all->parts[block].highest = highest;
  meet(all, ++turn);
  for (int b = t; b < GRID; b += CHOOSERS) highest = fmaxf(highest, ((volatile Partial*)all->parts)[b].highest);
  highest = over_block(highest, room->values, larger_of);

  for (int cut = 0; cut < 2; cut++) {  // top-k counts, top-p weighs what that left
    if (cut ? top_p >= 1.f : top_k <= 0.f) continue;
    u64 rest = cut ? 0 : (u64)ceilf(top_k);
    u32 threshold = 0;
    for (int round = 0; round < ROUNDS_EACH; round++) {
      const int shift = 24 - 8 * round;
      u64* bins = all->bins[cut * ROUNDS_EACH + round];
      room->bins[t] = 0;
      __syncthreads();
#pragma unroll
      for (int i = 0; i < SCORES_EACH; i++) {
        if (!(kept >> i & 1) || (round && key[i] >> (shift + 8) != threshold >> (shift + 8))) continue;
        u64 weight = cut ? (u64)(expf(scaled[i] - highest) * ONE + 0.5f) : 1;
        if (weight) atomicAdd(&room->bins[key[i] >> shift & (DIGITS - 1)], weight);
      }
      __syncthreads();
      if (room->bins[t]) atomicAdd(&bins[t], room->bins[t]);
      meet(all, ++turn);
      u32 digit;
      if (cut && round == 0) {  // only now is it known what the share is of
        u64 never = ~0ull;
        double wanted = (double)top_p * (double)find_digit(room, bins, never, digit);
        rest = (u64)wanted + ((double)(u64)wanted < wanted);
      }
      if (!rest) rest = 1;  // the likeliest token at least
      find_digit(room, bins, rest, digit);
      threshold |= digit << shift;
    }
#pragma unroll
    for (int i = 0; i < SCORES_EACH; i++)
      if ((kept >> i & 1) && key[i] < threshold) kept &= ~(1u << i);
  }

  float best = -3e38f, logit = 0;
  int which = 0x7fffffff;
#pragma unroll
  for (int i = 0; i < SCORES_EACH; i++) {
    int id = (i * GRID + block) * CHOOSERS + t;
    if (!(kept >> i & 1) || expf(scaled[i] - highest) < min_p) continue;
    float value = temperature > 0 ? scaled[i] + noise(start, id) : score[i];
    if (value > best || (value == best && id < which)) best = value, which = id, logit = given(id);
  }
  auto better = [&](float v, int id, float l) {
    if (v > best || (v == best && id < which)) best = v, which = id, logit = l;
  };
  for (int o = 16; o; o >>= 1) {
    float v = __shfl_xor_sync(ALL, best, o), l = __shfl_xor_sync(ALL, logit, o);
    better(v, __shfl_xor_sync(ALL, which, o), l);
  }
  if ((t & 31) == 0) room->values[t >> 5] = best, room->tokens[t >> 5] = which, room->others[t >> 5] = logit;
  __syncthreads();
  if (t == 0) {
    for (int w = 1; w < CHOOSERS / 32; w++) better(room->values[w], room->tokens[w], room->others[w]);
    all->parts[block].value = best, all->parts[block].token = which, all->parts[block].logit = logit;
  }
  if (block) {  // the first block ends it
    __syncthreads();
    if (t == 0) fence_system(), atomicAdd(&all->arrived, 1u);
    return;
  }
  meet(all, ++turn);
  for (int i = t; i < HISTOGRAMS * DIGITS; i += CHOOSERS) all->bins[i / DIGITS][i % DIGITS] = 0;
  if (t) return;
  all->arrived = 0;
  volatile Partial* parts = all->parts;
  for (int b = 0; b < GRID; b++) top = fmaxf(top, parts[b].top), better(parts[b].value, parts[b].token, parts[b].logit);
  sum = 0;
  for (int b = 0; b < GRID; b++) sum += parts[b].sum * expf(parts[b].top - top);
  float chosen = logit - top - logf(sum);
  *token = which, *logprob = chosen;
  if (counts) counts[which] += 1;
  tell_host(history, sequence, which, chosen);
}
