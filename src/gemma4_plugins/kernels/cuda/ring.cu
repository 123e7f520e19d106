// Weights stream through a ring of shared-memory stages: some warps copy ahead through all products of the step, since
// weights do not depend on activations; the other warps multiply what has arrived.
//
// A stage holds up to 16 rows (two groups of 8 for the matrix unit) of a piece of columns, each row 16 bytes longer
// than its data so that the eight rows of a tile lie in different banks. Producer and consumers derive the same
// geometry from the same numbers; nothing but the barriers passes between them.

struct Tile { int first, low, high; };  // rows `first …`: `low` in the first group of 8, `high` in the second

// One block's share of a product: `count` rows, or, paired, rows of two matrices (gate and up) that belong together.
struct Geometry {
  int tiles, each, extra, piece, unit;  // the first `extra` tiles have a unit of rows more
  bool paired;

  DEVICE Geometry(int count, bool pairs, int row_bytes) {
    paired = pairs;
    unit = pairs ? 2 : 1;  // pairs come in twos, because two results share a packet
    tiles = pairs ? (count + 7) / 8 : (count + 15) / 16;
    int units = count / unit;
    each = tiles ? units / tiles : 0;
    extra = units - each * tiles;
    // pieces of nearly equal size, a multiple of the 64 bytes that one step multiplies
    int rows = (each + (extra > 0)) * unit * (pairs ? 2 : 1);
    int most = rows ? (STAGE_BYTES / rows - 16) & ~63 : 64;
    int pieces = (row_bytes + most - 1) / most;
    piece = ((row_bytes + pieces - 1) / pieces + 63) & ~63;
  }
  DEVICE Tile tile(int index) const {
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

  // this lane's row of a stage
  DEVICE int slot() const { return lane * PRODUCERS + warp; }

  DEVICE void rows(int count, u32 bytes, u32 stride, const u8* source) {
    mbarrier_wait(ring.empty + ring.stage, ring.parity ^ 1);
    for (; flying && (flying == STAGES || (flying + 1) * (int)bytes * count > FLIGHT); flying--) {
      mbarrier_wait(landing.full + landing.stage, landing.parity);
      landing.advance();
    }
    flying++;
    u64* full = ring.full + ring.stage;
    const int mine = (count - warp + PRODUCERS - 1) / PRODUCERS;  // a warp without a row still says so
#if BULK
    if (lane == 0) expect_bytes(full, bytes * mine);
    __syncwarp();
    if (lane < mine) bulk_copy(ring.here() + slot() * stride, source, bytes, full, policy);
#else
    int pieces = bytes / 16;
    for (int row = 0; row < mine; row++) {
      const u8* from = (const u8*)__shfl_sync(ALL, (u64)source, row);
      u8* to = ring.here() + (row * PRODUCERS + warp) * stride;
      for (int i = lane; i < pieces; i += 32) copy16(to + i * 16, from + i * 16);
    }
    arrive_when_copied(full);
#endif
    ring.advance();
  }

  // address(unit, second, segment): where a row, or the second row of a pair, begins
  template <class Address> DEVICE void stream(int count, bool paired, int row_bytes, int segments, Address address) {
    Geometry g(count, paired, row_bytes);
    for (int index = 0; index < g.tiles; index++) {
      Tile t = g.tile(index);
      int rows_here = t.low + t.high, mine = slot() < rows_here ? slot() : 0;
      bool second = paired && mine >= t.low;
      int unit = t.first + (second ? mine - t.low : mine);
      for (int segment = 0; segment < segments; segment++) {
        const u8* row = address(unit, second, segment);
        for (int at = 0; at < row_bytes; at += g.piece)
          rows(rows_here, row_bytes - at < g.piece ? row_bytes - at : g.piece, g.piece + 16, row + at);
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

struct Eater {
  Ring ring;
  float* parts;  // [2][GROUP_TILES][WARPS][16]: two buffers, so that one barrier between uses is enough
  int thread, warp, lane, buffer;

  // Multiply this block's rows with the operand `x` in shared memory and hand every sum to
  // `sink(tile, row, valid, sum)`, a call that whole warps make together. `ahead(tile, row)` gives the factor of a sum,
  // and is called long before, so that it can ask memory for it; `scale(tile, row, segment)` says where a part of an
  // int8 row has its own; `unit` is what an int8 operand is counted in.
  template <bool BYTES, class Scale, class Ahead, class Sink, class Gathered>
  DEVICE void multiply_rows(const Geometry& g, const Matrix& m, const u8* x, float unit, Scale scale, Ahead ahead, Sink sink, Gathered gathered) {
    int turn = 0, group = 0;
    float ready = 1.f;
    auto ask = [&](int from) {
      int index = from + thread / 16, row = thread & 15;
      if (thread >= GROUP_TILES * 16 || index >= g.tiles) return;
      Tile t = g.tile(index);
      if (row < 8 ? row < t.low : row - 8 < t.high) ready = ahead(t, row);
    };
    ask(0);
#pragma unroll 1
    for (int index = 0; index < g.tiles; index++) {
      float sums[2];
      tile_product<BYTES>(g.tile(index), g.piece, m.row_bytes, m.segments, x, unit, scale, turn, sums);
      float* to = parts + ((buffer * GROUP_TILES + index - group) * WARPS + warp) * 16;
      if ((lane & 3) == 0) {
        to[lane >> 2] = sums[0];
        to[8 + (lane >> 2)] = sums[1];
      }
      if (index + 1 == g.tiles || index + 1 - group == GROUP_TILES) {
        bar_sync(1, CONSUMERS);
        gathered();
        reduce(g, group, index + 1, ready, sink);
        group = index + 1;
        ask(group);
        buffer ^= 1;
      }
    }
  }

  // This warp's share of the columns. Segments of int8 rows have scales of their own; `unit` is what one step of an int8
  // operand's numbers stands for.
  template <bool BYTES, class Scale>
  DEVICE void tile_product(const Tile& t, int piece, int row_bytes, int segments, const u8* x, float unit, Scale scale, int& turn, float (&total)[2]) {
    int row = tile_row(lane), slot = row < 8 ? row : t.low + row - 8;
    if (slot >= t.low + t.high || (row < 8 && row >= t.low)) slot = 0;
    int offset = slot * (piece + 16) + (lane >> 4) * 16;
    // bf16: every column of the matrix unit gets the same vector; int8: even ones its high digits, odd ones its low digits
    const u8* operand = x + (lane & 3) * 16 + (BYTES ? (lane >> 2 & 1) * 64 : 0);
    constexpr int WIDTH = BYTES ? 2 : 1;  // bytes of operand for a byte of a row
    const int own = lane >> 2;
    total[0] = total[1] = 0;
    for (int segment = 0; segment < segments; segment++, operand += row_bytes * WIDTH) {
      typename Sum<BYTES>::Type sums[4] = {0, 0, 0, 0}, others[4] = {0, 0, 0, 0};
      float low_scale = 1.f, high_scale = 1.f;
      if (BYTES && segments > 1) {
        if (own < t.low) low_scale = load_float_early(scale(t, own, segment));
        if (own < t.high) high_scale = load_float_early(scale(t, own + 8, segment));
      }
      for (int at = 0; at < row_bytes; at += piece) {
        int steps = (row_bytes - at < piece ? row_bytes - at : piece) / 64;
        mbarrier_wait(ring.full + ring.stage, ring.parity);
        const u8 *tile = ring.here() + offset, *b = operand + at * WIDTH;
        for (int s = (warp + turn) & (WARPS - 1); s < steps; s += WARPS) {
          u32 a0[4], a1[4];
          load_tiles(a0, tile + s * 64);
          load_tiles(a1, tile + s * 64 + 32);
          uint4 v = *(const uint4*)(b + s * 64 * WIDTH);
          multiply(sums, a0, v.x, v.y);
          multiply(others, a1, v.z, v.w);
        }
        turn -= steps;  // the next piece starts at the warp after the last busy one
        __syncwarp();
        if (lane == 0) mbarrier_arrive(ring.empty + ring.stage);
        ring.advance();
      }
      total[0] += Sum<BYTES>::of(sums[0] + others[0], sums[1] + others[1]) * low_scale;
      total[1] += Sum<BYTES>::of(sums[2] + others[2], sums[3] + others[3]) * high_scale;
    }
    if (BYTES) total[0] *= unit, total[1] *= unit;
  }

  template <class Sink> DEVICE void reduce(const Geometry& g, int from, int to, float scale, Sink sink) {
    static_assert(GROUP_TILES * 16 <= CONSUMERS, "a thread has one sum of a group");
    int rows = (to - from) * 16;
    if (warp * 32 < rows) {
      int i = thread, index = i < rows ? i / 16 : 0, row = i & 15;
      const float* p = parts + (buffer * GROUP_TILES + index) * WARPS * 16 + row;
      float sum = 0;
#pragma unroll
      for (int w = 0; w < WARPS; w++) sum += p[w * 16];
      Tile t = g.tile(from + index);
      sink(t, row, i < rows && (row < 8 ? row < t.low : row - 8 < t.high), sum * scale);
    }
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
