// What each block does of a step, and the warp that copies its weights, keys and values ahead of use.

DEVICE int share(int count, int block) { return (int)((u32)count * (u32)block / GRID); }
DEVICE Rows rows_of(int count, int row_bytes) {
  int first = share(count, blockIdx.x);
  return {share(count, blockIdx.x + 1) - first, false, row_bytes, 1};
}
DEVICE Rows pairs_of(int count, int row_bytes) {
  int first = share(count / 2, blockIdx.x) * 2;
  return {share(count / 2, blockIdx.x + 1) * 2 - first, true, row_bytes, 1};
}

// ---- attention's geometry: which keys this block reads
struct Slice {
  int item, kv_head, first_head, heads;  // at most 8 query heads of one key-value head
  int slices, index;                     // slices of this step, and this block's; index >= slices: none
  int start, count;                      // positions from the cache, oldest first; the new one is slice 0's
};

template <int D, int KV> struct Heads {
  static constexpr int GROUP = HEADS / KV, SUBGROUPS = (GROUP + 7) / 8, ITEMS = KV * SUBGROUPS, EACH = GROUP / SUBGROUPS;
  static constexpr int PIECE = (STAGE_BYTES / (D * 2 + 16)) / 16 * 16 < 32 ? (STAGE_BYTES / (D * 2 + 16)) / 16 * 16 : 32;
  static constexpr int MOST = GRID / ITEMS;
};
// How many positions are in sight before this one, and the slices that they are cut into.
template <int D, int KV> DEVICE int slice_length(int held) {
  typedef Heads<D, KV> N;
  int length = ((held + N::MOST - 1) / N::MOST + 15) & ~15;
  return length < N::PIECE ? N::PIECE : length;
}
DEVICE int held_positions(bool full, int position) { return full || position < WINDOW - 1 ? position : WINDOW - 1; }

template <int D, int KV> DEVICE Slice slice_of(bool full, int position) {
  typedef Heads<D, KV> N;
  int held = held_positions(full, position), length = slice_length<D, KV>(held);
  Slice s;
  s.slices = held ? (held + length - 1) / length : 1;
  s.item = blockIdx.x % N::ITEMS;
  s.index = blockIdx.x / N::ITEMS;
  s.kv_head = s.item / N::SUBGROUPS;
  s.first_head = s.kv_head * N::GROUP + s.item % N::SUBGROUPS * N::EACH;
  s.heads = N::EACH;
  int from = s.index * length, to = from + length < held ? from + length : held;
  s.start = position - held + from;
  s.count = to - from;
  return s;
}

struct Choice {  // of experts, in shared memory
  int* expert;
  float* weight;
};

// ---- the copying warp walks through the step
struct Producer {
  Feeder feed;
  u64 layer, next;  // this lane's field of the layer's table row
  const Arguments& a;
  Choice choice;
  u64* choice_made;
  u32 router_tag;

  DEVICE const u8* field(int f) const { return (const u8*)__shfl_sync(ALL, layer, f); }

  template <int D, int KV> DEVICE void keys_values(bool full) {
    typedef Heads<D, KV> N;
    Slice s = slice_of<D, KV>(full, a.position);
    if (s.index >= s.slices) return;
    const u8* cache = field(F_CACHE);
    const int slots = full ? FULL_SLOTS : RING_SLOTS;
    for (int base = 0; base < s.count; base += SPAN)
      for (int kind = 0; kind < 2; kind++)
        for (int at = base; at < s.count && at < base + SPAN; at += N::PIECE) {
          int end = base + SPAN < s.count ? base + SPAN : s.count, count = end - at < N::PIECE ? end - at : N::PIECE;
          int p = s.start + at + (feed.lane < count ? feed.lane : 0), slot = full ? p : p % RING_SLOTS;
          feed.rows(count, D * 2, D * 2 + 16, cache + ((u64)(kind * KV + s.kv_head) * slots + slot) * (D * 2));
        }
  }

  template <int D, int KV> DEVICE void attention(u32 info) {
    const u8 *q = field(F_Q), *k = field(F_K), *v = field(F_V);
    const int queries = HEADS * D, keys = KV * D, width = HIDDEN * WEIGHT_BYTES;
    int count = queries + (info & IS_OWN ? (info & KEY_IS_VALUE ? keys : 2 * keys) : 0), first = share(count, blockIdx.x);
    feed.stream(rows_of(count, width), [&](int unit, bool, int) {
      int row = first + unit;
      return row < queries ? q + (u64)row * width : row < queries + keys ? k + (u64)(row - queries) * width
                                                                         : v + (u64)(row - queries - keys) * width;
    });
    keys_values<D, KV>(info & IS_FULL);
    plain(F_O, HIDDEN, HEADS * D * WEIGHT_BYTES);
  }

  DEVICE void plain(int f, int count, int row_bytes) { matrix(field(f), count, row_bytes); }
  DEVICE void matrix(const u8* base, int count, int row_bytes) {
    const u8* from = base + (u64)share(count, blockIdx.x) * row_bytes;
    feed.stream(rows_of(count, row_bytes), [&](int unit, bool, int) { return from + (u64)unit * row_bytes; });
  }
  DEVICE void gate_up(int count) {
    const u8 *gate = field(F_GATE), *up = field(F_UP);
    const int width = HIDDEN * WEIGHT_BYTES;
    int first = share(count / 2, blockIdx.x) * 2;
    feed.stream(pairs_of(count, width),
                [&](int unit, bool second, int) { return (second ? up : gate) + (u64)(first + unit) * width; });
  }

  DEVICE void experts();  // in experts.cu

  DEVICE void run() {
    const u8* model = (const u8*)a.table[feed.lane];
    auto model_field = [&](int f) { return (const u8*)__shfl_sync(ALL, (u64)model, f); };
    next = a.table[32 + feed.lane];
    if (PLE) matrix(model_field(M_PLE_PROJECTION), LAYERS * PLE, HIDDEN * WEIGHT_BYTES);
    for (int i = 0; i < LAYERS; i++) {
      layer = next;
      if (i + 1 < LAYERS) next = a.table[(i + 2) * 32 + feed.lane];
      u32 info = (u32)(u64)field(F_INFO);
      int ff = (int)(u64)field(F_FF);
      if (info & IS_FULL) attention<D_FULL, KV_FULL>(info);
      else attention<D_SLIDING, KV_SLIDING>(info);
      if (EXPERTS) matrix(field(F_ROUTER), EXPERTS, HIDDEN * 2);
      gate_up(ff);
      plain(F_DOWN, HIDDEN, ff * WEIGHT_BYTES);
      router_tag = a.tag + 1 + i * PHASES + P_ROUTER;
      if (EXPERTS) experts();
      if (PLE) {
        plain(F_PLE_GATE, PLE, HIDDEN * WEIGHT_BYTES);
        plain(F_PLE_PROJECTION, HIDDEN, PLE * WEIGHT_BYTES);
      }
    }
    matrix(model_field(M_EMBEDDING), VOCAB, HIDDEN * WEIGHT_BYTES);
  }
};
