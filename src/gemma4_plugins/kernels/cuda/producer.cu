// What each block does of a step, and the warp that copies its weights, keys and values ahead of use.

DEVICE int share(int count, int block) { return (int)((u32)count * (u32)block / GRID); }

// The products of a step, in order: the context of the per-layer inputs, then layer by layer, then the head.
struct Walk {
  int layer, product;
  DEVICE Walk() { layer = PLE ? -1 : 0, product = PLE ? W_CONTEXT : W_QKV; }
  DEVICE bool done() const { return layer > LAYERS; }
  DEVICE void advance() {
    if (product == W_CONTEXT || product == W_HEAD || product == W_LAST) {
      layer++;
      product = layer == LAYERS ? W_HEAD : W_QKV;
    } else if (product == W_O && !EXPERTS) {
      product = W_GATED;
    } else if (product == W_DOWN && !EXPERTS) {
      product = W_PLE_GATE;
    } else {
      product++;
    }
  }
};

// A block's rows of a product. Pairs are split in twos.
struct Share {
  int first, count;
  DEVICE Share(int total, bool paired) {
    int unit = paired ? 2 : 1, block = this_block();
    first = share(total / unit, block) * unit;
    count = share(total / unit, block + 1) * unit - first;
  }
};

// ---- attention's geometry: which keys this block reads
struct Slice {
  int item, kv_head, first_head, heads;  // at most 8 query heads of one key-value head
  int slices, index;                     // slices of this step, and this block's; index >= slices: none
  int start, count;                      // positions from the cache, oldest first; the new one is slice 0's
};

template <int D, int KV> struct Heads {
  static constexpr int GROUP = HEADS / KV, SUBGROUPS = (GROUP + 7) / 8, ITEMS = KV * SUBGROUPS, EACH = GROUP / SUBGROUPS;
  static constexpr int FITTING = STAGE_BYTES / (D * 2 + 16) / 16 * 16, PIECE = FITTING < 32 ? FITTING : 32;
  static constexpr int MOST = GRID / ITEMS;
};

// How many positions are in sight before this one, and the slices that they are cut into.
template <int D, int KV> DEVICE Slice slice_of(bool full, int position) {
  typedef Heads<D, KV> N;
  int held = full || position < WINDOW - 1 ? position : WINDOW - 1;
  int length = ((held + N::MOST - 1) / N::MOST + 15) & ~15;
  if (length < N::PIECE) length = N::PIECE;
  Slice s;
  s.slices = held ? (held + length - 1) / length : 1;
  s.item = this_block() % N::ITEMS;
  s.index = this_block() / N::ITEMS;
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
DEVICE void choose_experts(const uint2* sums, u32 tag, const u16* scale, int lane, const Choice& out);

// ---- the copying warp walks through the step
struct Producer {
  Feeder feed;
  u64 model, layer, next;  // this lane's field of the table rows: the model's, the layer's, the next layer's
  const Arguments& a;
  Choice choice;
  u64* choice_made;

  DEVICE const u8* field(int f) const { return (const u8*)__shfl_sync(ALL, layer, f); }
  DEVICE const u8* of_model(int f) const { return (const u8*)__shfl_sync(ALL, model, f); }

  template <int D, int KV> DEVICE void keys_values(bool full, const u8* cache) {
    typedef Heads<D, KV> N;
    Slice s = slice_of<D, KV>(full, a.position);
    if (s.index >= s.slices) return;
    const int slots = (int)(u64)of_model(full ? M_SLOTS_FULL : M_SLOTS_SLIDING);
    for (int base = 0; base < s.count; base += SPAN) {
      int end = base + SPAN < s.count ? base + SPAN : s.count;
      for (int kind = 0; kind < 2; kind++)
        for (int at = base; at < end; at += N::PIECE) {
          int count = end - at < N::PIECE ? end - at : N::PIECE;
          int p = s.start + at + (feed.lane < count ? feed.lane : 0), slot = p % slots;
          feed.rows(count, D * 2, D * 2 + 16, cache + ((u64)(kind * KV + s.kv_head) * slots + slot) * (D * 2));
        }
    }
  }

  // Up to three matrices one below the other.
  struct Source {
    const u8 *base[3];
    int split[2];
  };
  DEVICE void product(int which) {
    u32 info = (u32)(u64)field(F_INFO);
    int ff = (int)(u64)field(F_FF), total = HIDDEN, width = HIDDEN * WEIGHT_BYTES, segments = 1;
    bool paired = false;
    Source s = {{nullptr, nullptr, nullptr}, {1 << 30, 1 << 30}};
    int d = info & IS_FULL ? D_FULL : D_SLIDING, keys = info & IS_FULL ? KV_FULL * D_FULL : KV_SLIDING * D_SLIDING;
    switch (which) {
      case W_CONTEXT: s.base[0] = of_model(M_PLE_PROJECTION), total = LAYERS * PLE; break;
      case W_QKV:
        s = {{field(F_Q), field(F_K), field(F_V)}, {HEADS * d, HEADS * d + keys}};
        total = HEADS * d + (info & IS_OWN ? (info & KEY_IS_VALUE ? keys : 2 * keys) : 0);
        break;
      case W_O: s.base[0] = field(F_O), width = HEADS * d * WEIGHT_BYTES; break;
      case W_ROUTER: s.base[0] = field(F_ROUTER), total = EXPERTS, width = HIDDEN * 2; break;  // never int8
      case W_GATED: s.base[0] = field(F_GATE), s.base[1] = field(F_UP), total = ff, paired = true; break;
      case W_DOWN: s.base[0] = field(F_DOWN), width = ff * WEIGHT_BYTES; break;
      case W_EXPERT: s.base[0] = field(F_EXPERT_GATE_UP), total = TOP * EXPERT_FF, paired = true; break;
      case W_EXPERT_DOWN: s.base[0] = field(F_EXPERT_DOWN), width = EXPERT_FF * WEIGHT_BYTES, segments = TOP; break;
      case W_PLE_GATE: s.base[0] = field(F_PLE_GATE), total = PLE; break;
      case W_PLE: s.base[0] = field(F_PLE_PROJECTION), width = PLE * WEIGHT_BYTES; break;
      default: s.base[0] = of_model(M_EMBEDDING), total = VOCAB;
    }
    Share part(total, paired);
    feed.stream(part.count, paired, width, segments, [&](int unit, bool second, int segment) {
      int row = part.first + unit;
      if (which == W_EXPERT)
        row = (choice.expert[row / EXPERT_ROWS] * 2 + second) * EXPERT_FF + row % EXPERT_ROWS;
      else if (which == W_EXPERT_DOWN)
        row += choice.expert[segment] * HIDDEN;
      else if (second)
        return s.base[1] + (u64)row * width;
      const u8* base = s.base[0];
      if (row >= s.split[1] && which == W_QKV) base = s.base[2], row -= s.split[1];
      else if (row >= s.split[0] && which == W_QKV) base = s.base[1], row -= s.split[0];
      return base + (u64)row * width;
    });
  }

  DEVICE void run() {
    model = a.table[feed.lane];
    layer = next = a.table[64 + feed.lane];
#pragma unroll 1
    for (Walk w; !w.done(); w.advance()) {
      if (w.product == W_QKV) {
        layer = next;
        if (w.layer + 1 < LAYERS) next = a.table[(w.layer + 2) * 64 + feed.lane];
      }
      if (w.product == W_O) {
        const u8* cache = field(F_CACHE);
        if ((u32)(u64)field(F_INFO) & IS_FULL) keys_values<D_FULL, KV_FULL>(true, cache);
        else keys_values<D_SLIDING, KV_SLIDING>(false, cache);
      }
      if (EXPERTS && w.product == W_EXPERT) {  // the choice is needed now, and not sooner
        choose_experts(a.scratch + AT_ROUTER, a.tag + 1 + w.layer * PHASES + P_ROUTER, (const u16*)field(F_EXPERT_SCALE), feed.lane, choice);
        if (feed.lane == 0) mbarrier_arrive(choice_made);
      }
      product(w.product);
    }
  }
};
