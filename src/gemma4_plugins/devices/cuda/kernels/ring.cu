// Weights stream through a ring of shared-memory stages: some warps copy ahead through all products of the step, since
// weights do not depend on activations; the other warps multiply what has arrived.
//
// A stage holds up to 16 rows (two groups of 8 for the matrix unit) of a piece of columns, each row 16 bytes longer
// than its data so that the eight rows of a tile lie in different banks. Producer and consumers read the same shape;
// nothing but the barriers passes between them.

constexpr int STEP = 64;  // bytes of a row that one step of a warp multiplies

// Rows of two matrices (gate and up) belong together and are multiplied side by side.
DEVICE bool is_paired(int product) { return product == W_GATED || product == W_EXPERT; }

struct Tile { int first, low, high; };  // rows `first …`: `low` in the first group of 8, `high` in the second

// One block's share of a product, and how it is cut. All shapes are worked out when a launch begins: the divisions take
// some 0.5 us, which each product would wait for. 32 bytes, read as two words of 16.
struct alignas(16) Shape {
  int first;                   // row; of paired ones pair
  int tiles, each, extra;      // the first `extra` tiles have a unit of rows more
  int piece, rest, row_bytes;  // bytes of a row in a stage, in its last one, and in all (of a segment, where rows have some)
  int result;                  // where the sums' packets go

  DEVICE Tile tile(int index, bool paired) const {
    const int unit = paired ? 2 : 1;  // pairs come in twos, because two results share a packet
    Tile t;
    t.first = (index * each + (index < extra ? index : extra)) * unit;
    int n = (each + (index < extra)) * unit;
    t.low = paired || n < 8 ? n : 8;
    t.high = paired ? n : n - t.low;
    return t;
  }
};

struct Ring {
  u8* data;
  u64 *full, *empty;
  int stage;
  u32 parity;
  DEVICE void advance() {
    if (++stage == STAGES) { stage = 0; parity ^= 1; }
  }
  DEVICE u8* here() const { return data + stage * STAGE_BYTES; }
};

// ---- the copying warps. Every lane brings one row; a warp can only start one copy after the other, some 60 cycles each,
// so that one alone would not keep up with memory. About FLIGHT bytes are on their way at a time: more would not come
// sooner, and every other load of the multiprocessor, packets above all, would queue behind them.
struct Feeder {
  Ring ring, landing;  // where the next copy goes, and the oldest one that has not been seen to arrive
  int warp, lane, flying;
  u64 policy;

  // this lane's place for a row in a stage
  DEVICE int slot() const { return lane * PRODUCERS + warp; }

  // `used` says whether this lane brings a row; `count` rows are brought by all copying warps.
  DEVICE void rows(bool used, int count, u32 bytes, u32 stride, const u8* source) {
    mbarrier_wait(ring.empty + ring.stage, ring.parity ^ 1);
    for (; flying && (flying == STAGES || (flying + 1) * (int)bytes * count > FLIGHT); flying--) {
      mbarrier_wait(landing.full + landing.stage, landing.parity);
      landing.advance();
    }
    flying++;
    u64* full = ring.full + ring.stage;
    const u32 here = warp_ballot(used);
#if BULK
    if (lane == 0) expect_bytes(full, bytes * count_bits(here));  // a warp without a row still says so
    __syncwarp();
    if (used) bulk_copy(ring.here() + slot() * stride, source, bytes, full, policy);
#else
    int pieces = bytes / 16;
    for (u32 left = here; left; left &= left - 1) {
      const int row = lowest_bit(left);
      const u8* from = (const u8*)__shfl_sync(ALL, (u64)source, row);
      u8* to = ring.here() + (row * PRODUCERS + warp) * stride;
      for (int i = lane; i < pieces; i += 32) copy16(to + i * 16, from + i * 16);
    }
    arrive_when_copied(full);
#endif
    ring.advance();
  }

  // address(unit, second, segment): where a row, or the second row of a pair, begins. Second rows stand in the second
  // group of 8.
  template <class Address> DEVICE void stream(const Shape& s, bool paired, int segments, Address address) {
    for (int index = 0; index < s.tiles; index++) {
      Tile t = s.tile(index, paired);
      const int group = slot() >> 3, within = slot() & 7;
      const bool used = group < 2 && within < (group ? t.high : t.low);
      const int unit = t.first + (!used ? 0 : paired ? within : slot());
      for (int segment = 0; segment < segments; segment++) {
        const u8* row = address(unit, paired && used && group, segment);
        for (int at = 0; at < s.row_bytes; at += s.piece)
          rows(used, t.low + t.high, s.row_bytes - at < s.piece ? s.row_bytes - at : s.piece, s.piece + 16, row + at);
      }
    }
  }
};

// ---- the multiplying warps
DEVICE int tile_row(int lane) { return (lane & 7) + ((lane >> 3) & 1) * 8; }

// A row's sum from two neighbouring columns of the matrix unit.
template <bool BYTES> struct Sum {
  typedef float Type;
  DEVICE static float of(float first, float) { return first; }
};
template <> struct Sum<true> {  // of high and of low digits
  typedef int Type;
  DEVICE static float of(int high, int low) { return (float)high * 256.f + (float)low; }
};

struct Waiting {  // for a sum of a group of tiles that will be this thread's
  int unit;
  bool valid;
  float factor;
};

struct Eater {
  Ring ring;
  float* parts;  // [2][GROUP_TILES][WARPS][16]: two buffers, so that one barrier between uses is enough
  int thread, warp, lane, buffer;

  // Multiply this block's rows with the operand `x` in shared memory and hand every sum to
  // `sink(unit, row, valid, sum)`, a call that whole warps make together; the unit is counted from the block's first.
  // `ahead(tile, row)` gives the factor of a sum, and is called long before, so that it can ask memory for it;
  // `scale(tile, row, segment)` says where a part of an int8 row has its own. `make_operand()` waits for the operand,
  // makes it, and says what an int8 one is counted in; whatever does not depend on it is done before.
  template <bool BYTES, class Make, class Scale, class Ahead, class Sink, class Gathered>
  DEVICE void multiply_rows(const Shape& s, bool paired, int segments, const u8* x, Make make_operand, Scale scale, Ahead ahead, Sink sink, Gathered gathered) {
    int group = 0;
    Waiting mine = {0, false, 1.f};
    auto ask = [&](int from) {
      int index = from + thread / 16, row = thread & 15;
      mine.valid = false;
      if (thread >= GROUP_TILES * 16 || index >= s.tiles) return;
      Tile t = s.tile(index, paired);
      mine.unit = t.first + row, mine.valid = row < 8 ? row < t.low : row - 8 < t.high;
      if (mine.valid) mine.factor = ahead(t, row);
    };
    ask(0);
    const Columns c(*this, s, paired, x, BYTES);
    const float unit = make_operand();
    if (!s.tiles) bar_sync(1, CONSUMERS);  // each product has a barrier: what comes next may use the operand's memory
#pragma unroll 1
    for (int index = 0; index < s.tiles; index++) {
      float sums[2];
      tile_product<BYTES>(c, s, paired, index, segments, unit, scale, sums);
      float* to = parts + ((buffer * GROUP_TILES + index - group) * WARPS + warp) * 16;
      if ((lane & 3) == 0) {
        to[lane >> 2] = sums[0];
        to[8 + (lane >> 2)] = sums[1];
      }
      if (index + 1 == s.tiles || index + 1 - group == GROUP_TILES) {
        bar_sync(1, CONSUMERS);
        gathered();
        reduce(index + 1 - group, mine, sink);
        group = index + 1;
        ask(group);
        buffer ^= 1;
      }
    }
  }

  // A warp's columns of a product: every WARPS-th step of each piece.
  struct Columns {
    int rows;         // where this lane's row of a tile begins in a stage; in smaller tiles the last ones are what was there before
    const u8* x;      // this lane's part of the operand
    int steps, last;  // of a whole piece and of the last one of a row
    // bf16: every column of the matrix unit gets the same vector; int8: even ones its high digits, odd ones its low digits
    DEVICE Columns(const Eater& e, const Shape& s, bool paired, const u8* operand, bool bytes) {
      const int most = (s.each + (s.extra > 0)) * (paired ? 2 : 1), row = tile_row(e.lane);
      const int held = paired ? (row & 8) + ((row & 7) < most ? row & 7 : 0) : row < most ? row : 0;
      rows = held * (s.piece + 16) + (e.lane >> 4) * 16 + e.warp * STEP;
      x = operand + (e.lane & 3) * 16 + (bytes ? (e.lane >> 2 & 1) * STEP : 0) + e.warp * STEP * (bytes ? 2 : 1);
      steps = (int)((u32)(s.piece / STEP + WARPS - 1 - e.warp) / WARPS);
      last = (int)((u32)(s.rest / STEP + WARPS - 1 - e.warp) / WARPS);
    }
  };

  // N steps; everything is loaded before it is multiplied.
  template <int N, bool BYTES> DEVICE static void multiply_steps(const u8*& tile, const u8*& x, typename Sum<BYTES>::Type (&sums)[4],
                                                                 typename Sum<BYTES>::Type (&others)[4]) {
    constexpr int EACH = WARPS * STEP, WIDTH = BYTES ? 2 : 1;  // bytes of operand for a byte of a row
    u32 a[N][2][4];
    uint4 v[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
      v[i] = *(const uint4*)(x + i * EACH * WIDTH);
      load_tiles(a[i][0], tile + i * EACH);
      load_tiles(a[i][1], tile + i * EACH + 32);
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
      multiply(sums, a[i][0], v[i].x, v[i].y);
      multiply(others, a[i][1], v[i].z, v[i].w);
    }
    tile += N * EACH, x += N * EACH * WIDTH;
  }

  // This warp's share of the columns. Segments of int8 rows have scales of their own; `unit` is what one step of an int8
  // operand's numbers stands for.
  template <bool BYTES, class Scale>
  DEVICE void tile_product(const Columns& c, const Shape& s, bool paired, int index, int segments, float unit, Scale scale, float (&total)[2]) {
    constexpr int WIDTH = BYTES ? 2 : 1;
    const int own = lane >> 2;
    const u8* operand = c.x;
    total[0] = total[1] = 0;
    for (int segment = 0; segment < segments; segment++, operand += s.row_bytes * WIDTH) {
      typename Sum<BYTES>::Type sums[4] = {0, 0, 0, 0}, others[4] = {0, 0, 0, 0};
      float low_scale = 1.f, high_scale = 1.f;
      if (BYTES && segments > 1) {
        Tile t = s.tile(index, paired);
        if (own < t.low) low_scale = load_float_early(scale(t, own, segment));
        if (own < t.high) high_scale = load_float_early(scale(t, own + 8, segment));
      }
      const u8* x = operand;
#pragma unroll 1
      for (int left = s.row_bytes; left > 0; left -= s.piece, x += s.piece * WIDTH) {
        int n = left > s.piece ? c.steps : c.last;
        mbarrier_wait(ring.full + ring.stage, ring.parity);
        const u8 *tile = ring.here() + c.rows, *b = x;
#pragma unroll 1
        for (; n > 3; n -= 4) multiply_steps<4, BYTES>(tile, b, sums, others);
        if (n == 3) multiply_steps<3, BYTES>(tile, b, sums, others);
        else if (n == 2) multiply_steps<2, BYTES>(tile, b, sums, others);
        else if (n == 1) multiply_steps<1, BYTES>(tile, b, sums, others);
        __syncwarp();
        if (lane == 0) mbarrier_arrive(ring.empty + ring.stage);
        ring.advance();
      }
      total[0] += Sum<BYTES>::of(sums[0] + others[0], sums[1] + others[1]) * low_scale;
      total[1] += Sum<BYTES>::of(sums[2] + others[2], sums[3] + others[3]) * high_scale;
    }
    if (BYTES) total[0] *= unit, total[1] *= unit;
  }

  template <class Sink> DEVICE void reduce(int tiles, const Waiting& mine, Sink sink) {
    static_assert(GROUP_TILES * 16 <= CONSUMERS, "a thread has one sum of a group");
    if (warp * 2 >= tiles) return;
    const float* p = parts + (buffer * GROUP_TILES + thread / 16) * WARPS * 16 + (thread & 15);
    float sum = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += p[w * 16];
    sink(mine.unit, thread & 15, mine.valid, sum * mine.factor);
  }
};

// Where element e of a vector stands in the operand: the 4 lanes of a column read 16 bytes each for two steps of the
// matrix unit, so groups of 32 elements are interleaved by lane.
DEVICE int operand_offset(int e) {
  int g = e >> 5, r = e & 31;
  return g * 64 + ((r & 7) >> 1) * 16 + (r >> 4) * 8 + ((r >> 3) & 1) * 4 + (r & 1) * 2;
}
// Where its high digit stands beside int8 weights, whose groups are of 64 elements; the low one is 64 bytes on.
DEVICE int digit_offset(int e) {
  int g = e >> 6, r = e & 63;
  return g * 128 + (r >> 2 & 3) * 16 + (r >> 4) * 4 + (r & 3);
}
