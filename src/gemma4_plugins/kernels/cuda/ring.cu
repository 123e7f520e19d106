// Weights stream through a ring of shared-memory stages: one warp copies ahead through all phases of the step, since
// weights do not depend on activations; the other warps multiply what has arrived.
//
// A stage holds up to 16 rows (two groups of 8 for the matrix unit) of a piece of columns, each row 16 bytes longer
// than its data so that the eight rows of a tile lie in different banks. Producer and consumers derive the same
// geometry from the same numbers; nothing but the barriers passes between them.

struct Rows {      // this block's share of a product
  int count;       // rows, or pairs of rows (gate and up)
  bool paired;
  int row_bytes;   // of one segment
  int segments;    // a row may be put together from several places (the experts' down projections)
};

struct Tile { int first, low, high; };  // rows `first …`: `low` in the first group of 8, `high` in the second

DEVICE int tiles_of(const Rows& r) { return r.paired ? (r.count + 7) / 8 : (r.count + 15) / 16; }

// Tiles of nearly equal size; pairs come in twos, because two results share a packet.
DEVICE Tile tile_at(const Rows& r, int index, int tiles) {
  Tile t;
  if (r.paired) {
    int units = r.count / 2;
    t.first = units * index / tiles * 2;
    t.low = t.high = units * (index + 1) / tiles * 2 - t.first;
  } else {
    t.first = r.count * index / tiles;
    int n = r.count * (index + 1) / tiles - t.first;
    t.low = n < 8 ? n : 8;
    t.high = n - t.low;
  }
  return t;
}

// Bytes of each row in one stage: pieces of nearly equal size, a multiple of the 64 bytes that one step multiplies.
DEVICE int piece_bytes(int rows, int row_bytes) {
  int most = (STAGE_BYTES / rows - 16) & ~63;
  int pieces = (row_bytes + most - 1) / most;
  return ((row_bytes + pieces - 1) / pieces + 63) & ~63;
}

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

// ---- the copying warp. Every lane brings one row.
struct Feeder {
  Ring ring;
  int lane;
  u64 policy;

  DEVICE void rows(int count, u32 bytes, u32 stride, const u8* source) {
    mbarrier_wait(ring.empty + ring.stage, ring.parity ^ 1);
    u64* full = ring.full + ring.stage;
#if BULK
    if (lane == 0) expect_bytes(full, bytes * count);
    __syncwarp();
    if (lane < count) bulk_copy(ring.here() + lane * stride, source, bytes, full, policy);
#else
    u8* to = ring.here();
    int pieces = bytes / 16;
    for (int row = 0; row < count; row++) {
      const u8* from = (const u8*)__shfl_sync(ALL, (u64)source, row);
      for (int i = lane; i < pieces; i += 32) copy16(to + row * stride + i * 16, from + i * 16);
    }
    arrive_when_copied(full);
#endif
    ring.advance();
  }

  // address(unit, second, segment): where a row, or the second row of a pair, begins
  template <class Address> DEVICE void stream(const Rows& r, Address address) {
    if (r.count <= 0) return;
    int tiles = tiles_of(r);
    for (int index = 0; index < tiles; index++) {
      Tile t = tile_at(r, index, tiles);
      int count = t.low + t.high, mine = lane < count ? lane : 0;
      int unit = t.first + (r.paired && mine >= t.low ? mine - t.low : mine);
      int piece = piece_bytes(count, r.row_bytes);
      for (int segment = 0; segment < r.segments; segment++) {
        const u8* row = address(unit, r.paired && mine >= t.low, segment);
        for (int at = 0; at < r.row_bytes; at += piece)
          rows(count, r.row_bytes - at < piece ? r.row_bytes - at : piece, piece + 16, row + at);
      }
    }
  }
};

// ---- the multiplying warps
DEVICE int tile_row(int lane) { return (lane & 7) + ((lane >> 3) & 1) * 8; }

struct Sums {  // one warp's sums of a tile: fp32 from bf16 products, or two int32 digits from int8 products
  float real[4];
  int digits[4];
  DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < 4; i++) { real[i] = 0; digits[i] = 0; }
  }
};

struct Eater {
  Ring ring;
  float* parts;  // [2][GROUP_TILES][WARPS][16]: two buffers, so that one barrier between uses is enough
  int thread, warp, lane, buffer;

  // Multiply this block's rows with the vector `x` in shared memory (see operand_offset) and hand every sum to
  // `sink(tile, row, valid, sum)`, a call that whole warps make together. `x_bytes` is one segment of x.
  template <bool INT8, class Sink> DEVICE void multiply_rows(const Rows& r, const u8* x, Sink sink) {
    if (r.count <= 0) return;
    int tiles = tiles_of(r), turn = 0, group_start = 0;
    for (int index = 0; index < tiles; index++) {
      Tile t = tile_at(r, index, tiles);
      Sums sums;
      sums.clear();
      tile_product<INT8>(r, t, x, turn, sums);
      float* to = parts + ((buffer * GROUP_TILES + index - group_start) * WARPS + warp) * 16;
      if ((lane & 3) == 0) {
        to[lane >> 2] = INT8 ? 256.f * sums.digits[0] + sums.digits[1] : sums.real[0];
        to[8 + (lane >> 2)] = INT8 ? 256.f * sums.digits[2] + sums.digits[3] : sums.real[2];
      }
      if (index + 1 == tiles || index + 1 - group_start == GROUP_TILES) {
        bar_sync(1, CONSUMERS);
        reduce(r, tiles, group_start, index + 1, sink);
        group_start = index + 1;
        buffer ^= 1;
      }
    }
  }

  template <bool INT8> DEVICE void tile_product(const Rows& r, const Tile& t, const u8* x, int& turn, Sums& sums) {
    int count = t.low + t.high, piece = piece_bytes(count, r.row_bytes), stride = piece + 16;
    int row = tile_row(lane), slot = row < 8 ? row : t.low + row - 8;
    if (slot >= count || (row < 8 && row >= t.low)) slot = 0;
    int offset = slot * stride + (lane >> 4) * 16;
    // an operand step of x: 4 lanes of a column read 64 bytes; int8 has the low digits in odd columns
    const u8* operand = x + (lane & 3) * 16 + (INT8 && (lane & 4) ? DIGIT_BYTES : 0);
    for (int segment = 0; segment < r.segments; segment++)
      for (int at = 0; at < r.row_bytes; at += piece) {
        int steps = (r.row_bytes - at < piece ? r.row_bytes - at : piece) / 64;
        mbarrier_wait(ring.full + ring.stage, ring.parity);
        const u8* tile = ring.here() + offset;
        const u8* b = operand + segment * r.row_bytes + at;
        for (int s = (warp + turn) & (WARPS - 1); s < steps; s += WARPS) {
          u32 a0[4], a1[4];
          load_tiles(a0, tile + s * 64);
          load_tiles(a1, tile + s * 64 + 32);
          uint4 v = *(const uint4*)(b + s * 64);
          if (INT8) {
            multiply(sums.digits, a0, v.x, v.y);
            multiply(sums.digits, a1, v.z, v.w);
          } else {
            multiply(sums.real, a0, v.x, v.y);
            multiply(sums.real, a1, v.z, v.w);
          }
        }
        turn += WARPS - steps % WARPS;  // the next piece starts at the warp after the last busy one
        __syncwarp();
        if (lane == 0) mbarrier_arrive(ring.empty + ring.stage);
        ring.advance();
      }
  }

  template <class Sink> DEVICE void reduce(const Rows& r, int tiles, int from, int to, Sink sink) {
    int rows = (to - from) * 16;
    for (int base = warp * 32; base < rows; base += CONSUMERS) {
      int i = base + lane, index = from + i / 16, row = i & 15;
      float sum = 0;
      bool valid = i < rows;
      Tile t = tile_at(r, valid ? index : from, tiles);
      if (valid) {
        const float* p = parts + (buffer * GROUP_TILES + index - from) * WARPS * 16 + row;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += p[w * 16];
        valid = row < 8 ? row < t.low : row - 8 < t.high;
      }
      sink(t, row, valid, sum);
    }
  }
};

// Where element e of a vector stands in the operand: the 4 lanes of a column read 16 bytes each for two steps of the
// matrix unit, so groups of 32 (bf16) or 64 (int8) elements are interleaved by lane.
DEVICE int operand_offset(int e) {
  int g = e >> 5, r = e & 31;
  return g * 64 + ((r & 7) >> 1) * 16 + (r >> 4) * 8 + ((r >> 3) & 1) * 4 + (r & 1) * 2;
}
DEVICE int operand_offset_int8(int e) {
  int g = e >> 6, r = e & 63;
  return g * 64 + ((r & 15) >> 2) * 16 + (r >> 5) * 8 + ((r >> 4) & 1) * 4 + (r & 3);
}
