// What each block does of a step, and the warps that copy its weights, keys and values ahead of use.

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

// ---- attention's geometry, numbers of a kind of layer
template <int D, int KV> struct HeadsOf {
  static constexpr int WIDTH = D, KEYS = KV, GROUP = HEADS / KV, SUBGROUPS = (GROUP + 7) / 8, ITEMS = KV * SUBGROUPS, EACH = GROUP / SUBGROUPS;
  static constexpr int FITTING = STAGE_BYTES / (D * 2 + 16) / 16 * 16, PIECE = FITTING < 32 ? FITTING : 32;
  static constexpr int MOST = GRID / ITEMS;
};
struct Heads {  // the same code serves both kinds: instructions, too, come through a cache that is small
  bool full;
  DEVICE explicit Heads(u32 info) : full(info & IS_FULL) {}
#define OF_KIND(name, NAME) DEVICE int name() const { return full ? HeadsOf<D_FULL, KV_FULL>::NAME : HeadsOf<D_SLIDING, KV_SLIDING>::NAME; }
  OF_KIND(d, WIDTH)
  OF_KIND(keys, KEYS)              // key-value heads
  OF_KIND(group, GROUP)            // query heads of a key-value head,
  OF_KIND(subgroups, SUBGROUPS)    // in so many parts
  OF_KIND(each, EACH)              // of so many heads, at most 8
  OF_KIND(items, ITEMS)            // parts in all
  OF_KIND(piece, PIECE)            // positions in a stage of the ring
  OF_KIND(most, MOST)              // slices of positions at most
#undef OF_KIND
  // quotients, which are shifts where the number is known to be a power of two
#define BY_KIND(name, NUMBER) DEVICE int name(int v) const { return full ? v / (HeadsOf<D_FULL, KV_FULL>::NUMBER) : v / (HeadsOf<D_SLIDING, KV_SLIDING>::NUMBER); }
  BY_KIND(by_group, GROUP)
  BY_KIND(by_each, EACH)
  BY_KIND(by_half, WIDTH / 2)
  BY_KIND(by_items, ITEMS)
  BY_KIND(by_subgroups, SUBGROUPS)
#undef BY_KIND

  // The item that a query head belongs to, and which of its heads it is.
  DEVICE int item_of(int head, int& local) const {
    const int group = by_group(head), within = head - group * this->group(), sub = by_each(within);
    local = within - sub * each();
    return group * subgroups() + sub;
  }
};

struct alignas(16) Slice {  // of one kind of layer, the same in all of them; 48 bytes
  int kv_head, first_head, heads;  // at most 8 query heads of one key-value head
  int slices, index;               // slices of this step, and this block's; index >= slices: none
  int few;                         // whether there are so few that every block puts them together for itself
  int count;                       // positions from the cache; the new one is slice 0's
  int oldest, fresh;               // the cache's slots of its first position and of the new one

  // How many positions are in sight before this one, and the slices that they are cut into.
  DEVICE Slice(const Heads& n, int position, int slots) : few(false) {
    int held = n.full || position < WINDOW - 1 ? position : WINDOW - 1;
    int most = n.most(), length = larger(((held + most - 1) / most + 15) & ~15, n.piece());
    if (JOINED) {
      int longer = larger(((held + JOINED - 1) / (JOINED ? JOINED : 1) + 15) & ~15, n.piece());
      few = HEADS * n.d() / 4 <= JOINED_TWOS * CONSUMERS && longer <= JOINED_PIECES * n.piece() && longer * most >= held;
      if (few) length = longer;
    }
    slices = held ? (held + length - 1) / length : 1;
    index = n.by_items(this_block());
    int item = this_block() - index * n.items();
    kv_head = n.by_subgroups(item);
    first_head = kv_head * n.group() + (item - kv_head * n.subgroups()) * n.each();
    heads = n.each();
    int from = index * length, to = from + length < held ? from + length : held;
    count = to - from;
    oldest = (position - held + from) % slots, fresh = position % slots;
  }
};

// ---- the products' sizes and matrices
struct Matrix { int rows, row_bytes, result; };  // of each of a pair; where the sums' packets go
DEVICE Matrix matrix_of(int product, u32 info, int ff) {
  Heads n(info);
  const int d = n.d(), keys = n.keys() * d, hidden = HIDDEN * WEIGHT_BYTES;
  switch (product) {
    case W_CONTEXT: return {LAYERS * PLE, hidden, AT_CONTEXT};
    case W_QKV: return {HEADS * d + (info & IS_OWN ? (info & KEY_IS_VALUE ? keys : 2 * keys) : 0), hidden, AT_QKV};
    case W_O: return {HIDDEN, HEADS * d * WEIGHT_BYTES, AT_O};
    case W_ROUTER: return {EXPERTS, HIDDEN * 2, AT_ROUTER};  // never int8
    case W_GATED: return {ff, hidden, AT_GATED};
    case W_DOWN: return {HIDDEN, ff * WEIGHT_BYTES, AT_DOWN};
    case W_EXPERT: return {TOP * EXPERT_FF, hidden, AT_EXPERT};
    case W_EXPERT_DOWN: return {HIDDEN, EXPERT_FF * WEIGHT_BYTES, AT_EXPERT_DOWN};  // TOP such segments
    case W_PLE_GATE: return {PLE, hidden, AT_PLE_GATE};
    case W_PLE: return {HIDDEN, PLE * WEIGHT_BYTES, AT_PLE};
    default: return {VOCAB, hidden, 0};
  }
}
DEVICE int segments_of(int product) { return EXPERTS && product == W_EXPERT_DOWN ? TOP : 1; }

// How this block makes its rows of a product in layers of a kind.
DEVICE Shape shape_of(int product, u32 info, int ff) {
  const Matrix m = matrix_of(product, info, ff);
  const bool paired = is_paired(product);
  const int unit = paired ? 2 : 1, block = this_block(), most_units = paired ? 4 : 16;
  const int from = share(m.rows / unit, block), units = share(m.rows / unit, block + 1) - from;
  Shape s = {from * unit, (units + most_units - 1) / most_units, 0, 0, STEP, STEP, m.row_bytes, m.result};
  if (!units || !m.row_bytes) return s;
  s.each = units / s.tiles, s.extra = units - s.each * s.tiles;
  // pieces of nearly equal size; such that all warps have as many steps, where there is room
  const int rows = (s.each + (s.extra > 0)) * unit, most = (STAGE_BYTES / (paired ? 8 + rows : rows) - 16) / STEP * STEP;
  const int pieces = (m.row_bytes + most - 1) / most, piece = ((m.row_bytes + pieces - 1) / pieces + STEP - 1) / STEP * STEP;
  constexpr int EVEN = WARPS * STEP;
  const int even = (piece + EVEN - 1) / EVEN * EVEN;
  s.piece = even <= most ? even : piece;
  s.rest = m.row_bytes - (m.row_bytes - 1) / s.piece * s.piece;
  return s;
}
// Of all products in all kinds of layers: [KINDS][PRODUCTS]; and the slices of sliding and of full attention.
DEVICE void work_out(const u64* model, int position, int thread, Shape* shapes, Slice* slices) {
  if (thread < 2) slices[thread] = Slice(Heads(thread ? IS_FULL : 0), position, (int)model[thread ? M_SLOTS_FULL : M_SLOTS_SLIDING]);
  for (int i = thread; i < KINDS * PRODUCTS; i += THREADS) {
    u64 kind = model[M_KINDS + i / PRODUCTS];
    shapes[i] = shape_of(i % PRODUCTS, (u32)kind, (int)(kind >> 32));
  }
}
// The table's fields of a product's matrices: up to three one below the other, or two side by side.
struct Fields { int first, second, third; bool of_model; };
DEVICE Fields fields_of(int product) {
  Fields f = {F_Q, F_K, F_V, product == W_CONTEXT || product == W_HEAD};
  switch (product) {
    case W_CONTEXT: f.first = M_PLE_PROJECTION; break;
    case W_QKV: break;
    case W_O: f.first = F_O; break;
    case W_ROUTER: f.first = F_ROUTER; break;
    case W_GATED: f.first = F_GATE, f.second = F_UP; break;
    case W_DOWN: f.first = F_DOWN; break;
    case W_EXPERT: f.first = F_EXPERT_GATE_UP; break;
    case W_EXPERT_DOWN: f.first = F_EXPERT_DOWN; break;
    case W_PLE_GATE: f.first = F_PLE_GATE; break;
    case W_PLE: f.first = F_PLE_PROJECTION; break;
    default: f.first = M_EMBEDDING;
  }
  return f;
}
// Where the second and the third of three matrices begin; beyond all rows where there is one.
struct Split {
  int second, third;
  DEVICE Split(int product, u32 info) {
    Heads n(info);
    second = product == W_QKV ? HEADS * n.d() : 1 << 30;
    third = product == W_QKV ? (HEADS + n.keys()) * n.d() : 1 << 30;
  }
};

struct Choice {  // of experts, in shared memory
  int* expert;
  float* weight;
};
DEVICE void choose_experts(const uint2* sums, u32 tag, const u32 (&scales)[CHOICE_LANES], int lane, const Choice& out);

// ---- a copying warp walks through the step
struct Producer {
  Feeder feed;
  u64 model, layer, next;  // this lane's field of the table rows: the model's, the layer's, the next layer's
  const Arguments& a;
  const Shape* shapes;
  const Slice* slices;
  Choice choice;
  u64* choice_made;

  u32 expert_scales[CHOICE_LANES];

  DEVICE const u8* field(int f) const { return (const u8*)__shfl_sync(ALL, layer, f); }
  DEVICE const u8* of_model(int f) const { return (const u8*)__shfl_sync(ALL, model, f); }

  DEVICE void keys_values(u32 info) {
    const Heads n(info);
    const Slice s = slices[n.full];
    const u8* cache = field(F_CACHE);
    const int slots = (int)(u64)of_model(n.full ? M_SLOTS_FULL : M_SLOTS_SLIDING);
    if (s.index >= s.slices) return;
    const int row = n.d() * 2, piece = n.piece();
#pragma unroll 1
    for (int base = 0; base < s.count; base += SPAN) {
      int end = base + SPAN < s.count ? base + SPAN : s.count;
#pragma unroll 1
      for (int kind = 0; kind < 2; kind++)
#pragma unroll 1
        for (int at = base; at < end; at += piece) {
          int count = end - at < piece ? end - at : piece;
          const bool used = feed.slot() < count;
          int slot = s.oldest + at + (used ? feed.slot() : 0);
          if (slot >= slots) slot -= slots;  // no slice is longer than the cache
          feed.rows(used, count, row, row + 16, cache + ((u64)(kind * n.keys() + s.kv_head) * slots + slot) * row);
        }
    }
  }

  DEVICE void product(int which) {
    const u32 info = (u32)(u64)field(F_INFO);
    const Shape s = shapes[(info >> KIND) * PRODUCTS + which];
    const Fields f = fields_of(which);
    const Split split(which, info);
    const u64 row = f.of_model ? model : layer;
    const u8 *first = (const u8*)__shfl_sync(ALL, row, f.first), *other = (const u8*)__shfl_sync(ALL, row, f.second),
             *third = (const u8*)__shfl_sync(ALL, row, f.third);
    feed.stream(s, is_paired(which), segments_of(which), [&](int unit, bool second, int segment) {
      int row = s.first + unit;
      const u8* base = first;
      if (which == W_EXPERT) row = (choice.expert[row / EXPERT_ROWS] * 2 + second) * EXPERT_FF + row % EXPERT_ROWS;
      else if (which == W_EXPERT_DOWN) row += choice.expert[segment] * HIDDEN;
      else if (second) base = other;
      else if (row >= split.third) base = third, row -= split.third;
      else if (row >= split.second) base = other, row -= split.second;
      return base + (u64)row * s.row_bytes;
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
        if (EXPERTS && feed.warp == 0) {  // long before: a page that was not looked at for a while takes 10 us
          const u16* scales = (const u16*)field(F_EXPERT_SCALE);
#pragma unroll
          for (int i = 0; i < CHOICE_LANES; i++) expert_scales[i] = feed.lane + 32 * i < EXPERTS ? load_early(scales + feed.lane + 32 * i) : 0;
        }
      }
      if (w.product == W_O) keys_values((u32)(u64)field(F_INFO));
      if (EXPERTS && w.product == W_EXPERT) {  // the choice is needed now, and not sooner
        if (feed.warp == 0) {
          choose_experts(a.scratch + AT_ROUTER, a.tag + 1 + w.layer * PHASES + P_ROUTER, expert_scales, feed.lane, choice);
          if (feed.lane == 0) mbarrier_arrive(choice_made);
        } else {
          mbarrier_wait(choice_made, w.layer & 1);
        }
      }
      product(w.product);
    }
  }
};
