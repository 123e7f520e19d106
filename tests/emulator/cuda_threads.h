// Runs CUDA kernel source on the host: every thread of every block is a fiber of one OS thread, switched at barriers,
// warp-wide operations and polls. For tests of the kernels' logic where there is no GPU. Fibers run in an order that
// changes, and asynchronous copies arrive as late as they may, so that a missing barrier or wait shows; but a fiber runs
// until it waits, so races between single instructions do not.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector>

#ifdef _LIBCPP_VERSION  // compiled without linking that library
void* operator new(size_t size) { return malloc(size); }
void operator delete(void* p) noexcept { free(p); }
void operator delete(void* p, size_t) noexcept { free(p); }
void std::__libcpp_verbose_abort(const char*, ...) noexcept { abort(); }
#endif

#define EMULATED 1
#define BULK 1
#define DEVICE inline
#define __global__
#define __launch_bounds__(...)
#define KERNEL(threads) extern "C" void
#define KERNELS(threads, resident) KERNEL(threads)
#define SHARED_MEMORY(name) unsigned char* name = emulator::current->block->shared
#define BLOCK_MEMORY(name, bytes) SHARED_MEMORY(name)

// aligned as on the device: compile with -fsanitize=alignment to find accesses that would fault there
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
struct Index { int x = 0, y = 0, z = 0; };

namespace emulator {
struct Warp {
  uint64_t slot[2][32][4];  // what the lanes bring to the operation at hand, by turns
  uint32_t turn = 0, arrived = 0;
};
struct Barrier { uint32_t turn = 0, arrived = 0; };
struct Block { unsigned char* shared; size_t shared_bytes; Barrier barriers[16]; };
struct Copy { void* to; const void* from; size_t bytes; unsigned long long* barrier; };
struct Fiber {
  std::vector<std::vector<Copy>> groups{1};  // cp.async: committed groups, and the open one at the end
  void* stack_pointer = nullptr;
  ucontext_t context;
  Block* block;
  Warp* warp;
  int thread, block_index;
  bool done = false;
  const uint32_t* waits_for = nullptr;
  uint32_t unlike = 0;
};
inline Fiber* current;
inline ucontext_t scheduler;
inline void* scheduler_stack_pointer;
inline std::function<void()> body;
inline std::vector<Copy> flying;  // bulk copies
inline uint32_t noise = 1;
inline uint32_t random_bits() { return noise = noise * 747796405u + 2891336453u, noise >> 16; }
void land(const Copy& c);
inline int grid_size, grid_height = 1, block_size;
inline size_t stack_bytes = 96 << 10;

#if defined(__x86_64__)
extern "C" void emulator_switch(void** save, void* load);
asm(R"(
.text
.globl emulator_switch
emulator_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
)");
inline void to_scheduler() { emulator_switch(&current->stack_pointer, scheduler_stack_pointer); }
inline void entry() {
  body();
  current->done = true;
  to_scheduler();
  abort();
}
inline void prepare(Fiber& f, char* stack) {
  void** top = (void**)(stack + stack_bytes);
  *--top = nullptr;
  *--top = (void*)entry;
  for (int i = 0; i < 6; i++) *--top = nullptr;
  f.stack_pointer = top;
}
inline void enter(Fiber& f) { emulator_switch(&scheduler_stack_pointer, f.stack_pointer); }
#else
inline void to_scheduler() { swapcontext(&current->context, &scheduler); }
inline void entry() {
  body();
  current->done = true;
  to_scheduler();
}
inline void prepare(Fiber& f, char* stack) {
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = stack;
  f.context.uc_stack.ss_size = stack_bytes;
  makecontext(&f.context, (void (*)())entry, 0);
}
inline void enter(Fiber& f) { swapcontext(&scheduler, &f.context); }
#endif

inline void wait_until_changed(const uint32_t* p, uint32_t value) {
  while (*p == value) {
    current->waits_for = p;
    current->unlike = value;
    to_scheduler();
  }
}
inline void yield() {
  current->waits_for = nullptr;
  to_scheduler();
}
// All lanes of the warp bring up to 32 bytes and go on together; the buffer stays valid until the operation after next.
inline const uint64_t (*exchange(const void* data, size_t bytes))[4] {
  Warp& w = *current->warp;
  uint32_t turn = w.turn;
  memcpy(w.slot[turn & 1][current->thread & 31], data, bytes);
  if (++w.arrived == 32) {
    w.arrived = 0;
    w.turn++;
  } else {
    wait_until_changed(&w.turn, turn);
  }
  return w.slot[turn & 1];
}
// Memory for stacks. What most kernels need is kept for the next one, since the system clears fresh pages.
constexpr size_t most_kept = 512 << 20;
inline char* map_stacks(size_t bytes) {
  return (char*)mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}
inline char* kept_stacks() {
  static char* kept = map_stacks(most_kept);
  return kept;
}
inline void run(int width, int height, int depth, int threads, size_t shared_bytes, std::function<void()> kernel) {
  int grid = width * height * depth;
  body = kernel;
  grid_size = width;
  grid_height = height;
  block_size = threads;
  std::vector<Block> blocks(grid);
  std::vector<Warp> warps((size_t)grid * threads / 32);
  std::vector<Fiber> fibers((size_t)grid * threads);
  size_t total = fibers.size() * stack_bytes;
  char* stacks = total > most_kept ? map_stacks(total) : kept_stacks();
  for (Block& b : blocks) {
    b.shared = (unsigned char*)aligned_alloc(1024, shared_bytes / 1024 * 1024 + 2048);
    b.shared_bytes = shared_bytes;
    memset(b.shared, 0xff, shared_bytes);
    memset(b.shared + shared_bytes, 0x5a, 1024);
  }
  for (size_t i = 0; i < fibers.size(); i++) {
    fibers[i].block = &blocks[i / threads];
    fibers[i].warp = &warps[i / 32];
    fibers[i].thread = i % threads;
    fibers[i].block_index = i / threads;
    prepare(fibers[i], stacks + i * stack_bytes);
  }
  size_t left = fibers.size(), idle = 0, count = fibers.size();
  while (left) {
    bool moved = !flying.empty();
    for (size_t i = flying.size(); i-- > 0;)
      if (random_bits() & 1) {
        Copy c = flying[i];
        flying.erase(flying.begin() + i);
        land(c);
      }
    size_t first = random_bits() % count;
    bool backwards = random_bits() & 1;
    for (size_t n = 0; n < count; n++) {
      Fiber& f = fibers[(first + (backwards ? count - n : n)) % count];
      if (f.done || (f.waits_for && *f.waits_for == f.unlike)) continue;
      moved = moved || f.waits_for;
      current = &f;
      enter(f);
      if (f.done) { left--; moved = true; }
    }
    idle = moved ? 0 : idle + 1;
    if (idle > 100000) { fprintf(stderr, "emulated kernel hangs\n"); abort(); }
  }
  for (Block& b : blocks) {
    for (int i = 0; i < 1024; i++)
      if (b.shared[shared_bytes + i] != 0x5a) { fprintf(stderr, "written beyond shared memory\n"); abort(); }
    free(b.shared);
  }
  if (total > most_kept) munmap(stacks, total);
}
inline Index thread_index() { return {current->thread}; }
inline Index block_index() {
  int i = current->block_index;
  return {i % grid_size, i / grid_size % grid_height, i / grid_size / grid_height};
}
inline Index grid_dimension() { return {grid_size, grid_height}; }
}  // namespace emulator

inline int this_block() { return emulator::block_index().x; }
inline int opaque(int v) { return v; }
#define threadIdx emulator::thread_index()
#define blockIdx emulator::block_index()
#define gridDim emulator::grid_dimension()

template <class T> inline T lane_value(T v, int source) {
  auto slots = emulator::exchange(&v, sizeof v);
  T out;
  memcpy(&out, slots[source & 31], sizeof out);
  return out;
}
inline int lane_id() { return emulator::current->thread & 31; }
template <class T> inline T __shfl_xor_sync(unsigned, T v, int mask) { return lane_value(v, lane_id() ^ mask); }
template <class T> inline T __shfl_sync(unsigned, T v, int source) { return lane_value(v, source); }
template <class T> inline T __shfl_down_sync(unsigned, T v, int delta) {
  int l = lane_id();
  return lane_value(v, l + delta < 32 ? l + delta : l);
}
template <class T> inline T __shfl_up_sync(unsigned, T v, int delta) {
  int l = lane_id();
  return lane_value(v, l >= delta ? l - delta : l);
}
inline unsigned warp_ballot(bool v) {
  auto slots = emulator::exchange(&v, sizeof v);
  unsigned bits = 0;
  for (int i = 0; i < 32; i++) bits |= (unsigned)*(const bool*)slots[i] << i;
  return bits;
}
inline unsigned warp_largest(unsigned v) {
  auto slots = emulator::exchange(&v, sizeof v);
  for (int i = 0; i < 32; i++) v = v > *(const unsigned*)slots[i] ? v : *(const unsigned*)slots[i];
  return v;
}
inline unsigned warp_least(unsigned v) { return ~warp_largest(~v); }
inline int count_bits(unsigned v) { return __builtin_popcount(v); }
inline int lowest_bit(unsigned v) { return __builtin_ctz(v); }
inline void __syncwarp() { char c = 0; emulator::exchange(&c, 1); }
inline void bar_sync(int id, int threads) {
  emulator::Barrier& b = emulator::current->block->barriers[id];
  uint32_t turn = b.turn;
  if (++b.arrived == (uint32_t)threads) {
    b.arrived = 0;
    b.turn++;
  } else {
    emulator::wait_until_changed(&b.turn, turn);
  }
}
#define __syncthreads() bar_sync(0, emulator::block_size)

// ---- counting barriers: expected (16 bits), pending (16), bytes outstanding (31), phase (1)
struct Counter { uint16_t expected, pending; int32_t bytes_phase; };
inline Counter& counter(unsigned long long* b) { return *(Counter*)b; }
inline int bytes_of(const Counter& c) { return c.bytes_phase >> 1; }
inline void settle(Counter& c) {
  if (c.pending == 0 && bytes_of(c) == 0) {
    c.pending = c.expected;
    c.bytes_phase ^= 1;
  }
}
inline void mbarrier_init(unsigned long long* b, int n) { counter(b) = {(uint16_t)n, (uint16_t)n, 0}; }
inline void mbarrier_arrive(unsigned long long* b) { counter(b).pending--; settle(counter(b)); }
inline unsigned byte_permute(unsigned a, unsigned b, unsigned pick) {
  uint64_t both = (uint64_t)b << 32 | a;
  unsigned out = 0;
  for (int i = 0; i < 4; i++) out |= (unsigned)(both >> (pick >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return out;
}
inline float as_float(unsigned v);
inline unsigned larger_pair(unsigned a, unsigned b) {
  unsigned low = as_float(a << 16) > as_float(b << 16) ? a : b, high = as_float(a & 0xffff0000u) > as_float(b & 0xffff0000u) ? a : b;
  return (low & 0xffffu) | (high & 0xffff0000u);
}
inline float quotient(float x, float y) { return x / y; }
template <int> inline void give_registers() {}
template <int> inline void take_registers() {}
inline void give_up() { fprintf(stderr, "kernel gave up waiting\n"); abort(); }
inline void spin_pause() { emulator::yield(); }
inline void mbarrier_wait(unsigned long long* b, unsigned parity) {
  for (unsigned spins = 0; (unsigned)(counter(b).bytes_phase & 1) == parity; spins++) {
    if (spins > 1u << 23) give_up();
    spin_pause();
  }
}
inline void fence_barrier_init() {}
inline void fence_system() {}
inline void expect_bytes(unsigned long long* b, unsigned n) {
  counter(b).bytes_phase += 2 * (int)n;
  counter(b).pending--;
  settle(counter(b));
}
inline unsigned long long stream_policy() { return 0; }
inline void bulk_copy(void* to, const void* from, unsigned n, unsigned long long* b, unsigned long long) {
  if (((uintptr_t)to | (uintptr_t)from | n) & 15) { fprintf(stderr, "misaligned bulk copy\n"); abort(); }
  emulator::flying.push_back({to, from, n, b});
}
inline void emulator::land(const Copy& c) {
  memcpy(c.to, c.from, c.bytes);
  counter(c.barrier).bytes_phase -= 2 * (int)c.bytes;
  settle(counter(c.barrier));
}

// ---- matrix tiles
inline void load_tiles(unsigned (&a)[4], const void* p) {
  uint64_t address = (uint64_t)p;
  if (address & 15) { fprintf(stderr, "misaligned tile row\n"); abort(); }
  const emulator::Block& block = *emulator::current->block;
  if (address - (uint64_t)block.shared > block.shared_bytes - 16) { fprintf(stderr, "tile row outside of shared memory\n"); abort(); }
  auto slots = emulator::exchange(&address, 8);
  int l = lane_id();
  for (int i = 0; i < 4; i++) memcpy(&a[i], (const char*)slots[i * 8 + l / 4][0] + l % 4 * 4, 4);
}
inline void load_tiles_transposed(unsigned (&a)[4], const void* p) {
  uint64_t address = (uint64_t)p;
  auto slots = emulator::exchange(&address, 8);
  int l = lane_id();
  for (int i = 0; i < 4; i++) {
    uint16_t low, high;
    memcpy(&low, (const char*)slots[i * 8 + l % 4 * 2][0] + l / 4 * 2, 2);
    memcpy(&high, (const char*)slots[i * 8 + l % 4 * 2 + 1][0] + l / 4 * 2, 2);
    a[i] = low | (unsigned)high << 16;
  }
}
struct Fragments { unsigned a[4], b[2]; };
template <class T, int K, class Get> inline void multiply_any(T (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, Get get) {
  Fragments mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  auto slots = emulator::exchange(&mine, sizeof mine);
  int l = lane_id();
  constexpr int EACH = K / 8;  // elements of a register
  for (int i = 0; i < 4; i++) {
    int row = l / 4 + (i / 2) * 8, column = l % 4 * 2 + i % 2;
    T sum = 0;
    for (int k = 0; k < K; k++) {
      const Fragments& x = *(const Fragments*)slots[row % 8 * 4 + k % (K / 2) / EACH];
      const Fragments& y = *(const Fragments*)slots[column * 4 + k % (K / 2) / EACH];
      sum += get(x.a[row / 8 + 2 * (k / (K / 2))], k % EACH) * get(y.b[k / (K / 2)], k % EACH);
    }
    c[i] += sum;
  }
}
inline float as_float(unsigned v) { float f; memcpy(&f, &v, 4); return f; }
inline unsigned as_bits(float f) { unsigned v; memcpy(&v, &f, 4); return v; }
inline void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  multiply_any<float, 16>(c, a, b0, b1, [](unsigned v, int i) { return as_float(i ? v & 0xffff0000u : v << 16); });
}
inline void multiply(int (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  multiply_any<int, 32>(c, a, b0, b1, [](unsigned v, int i) { return (int)(signed char)(v >> 8 * i); });
}
// ---- the warpgroup matrix unit: every thread computes its own sums from shared memory
inline uint64_t matrix_operand(const unsigned char* tile, int at) {
  if ((uintptr_t)tile & 1023) { fprintf(stderr, "misaligned matrix operand\n"); abort(); }
  return (uint64_t)tile + at;
}
inline void fence_matrix_operands() {}
inline void matrix_fence() {}
inline void matrix_commit() {}
template <int LEFT> inline void matrix_wait() {}
inline uint64_t matrix_operand_down(const unsigned char* tile, int k) { return matrix_operand(tile, k * 128); }
template <bool DOWN> inline float matrix_element(uint64_t operand, int row, int k) {
  uint64_t logical = operand + (DOWN ? row / 64 * 8192 + k * 128 + row % 64 * 2 : row * 128 + k * 2);
  uint64_t physical = logical ^ (logical >> 7 & 7) << 4;
  uint16_t v;
  memcpy(&v, (const void*)physical, 2);
  return as_float((unsigned)v << 16);
}
template <bool A_IS_DOWN = false, bool B_IS_DOWN = false, int SUMS> inline void matrix_multiply(float (&c)[SUMS], uint64_t a, uint64_t b) {
  int t = emulator::current->thread & 127, l = t & 31;
  for (int h = 0; h < 2; h++) {
    float row[16];
    for (int k = 0; k < 16; k++) row[k] = matrix_element<A_IS_DOWN>(a, t / 32 * 16 + l / 4 + 8 * h, k);
    for (int j = 0; j < SUMS / 4; j++)
      for (int i = 0; i < 2; i++)
        for (int k = 0; k < 16; k++) c[4 * j + 2 * h + i] += row[k] * matrix_element<B_IS_DOWN>(b, j * 8 + l % 4 * 2 + i, k);
  }
}

// ---- packets and numbers
inline unsigned __float_as_uint(float f) { return as_bits(f); }
inline long long clock64() { return 0; }
inline uint2 load_packet(const uint2* p) { return *p; }
inline void store_packet(uint2* p, unsigned value, unsigned tag) { *p = {value, tag}; }
inline uint4 load_two_packets(const uint2* p) { return {p[0].x, p[0].y, p[1].x, p[1].y}; }
inline unsigned load_early(const unsigned short* p) { return *p; }
inline float load_float_early(const float* p) { return *p; }
inline unsigned load_byte_early(const unsigned char* p) { return *p; }
inline unsigned load_pair_early(const unsigned short* p) { unsigned v; memcpy(&v, p, 4); return v; }
inline void copy16(void* to, const void* from) {
  if (((uintptr_t)to | (uintptr_t)from) & 15) { fprintf(stderr, "misaligned copy\n"); abort(); }
  emulator::current->groups.back().push_back({to, from, 16, nullptr});
}
inline void copy16_or_zeros(void* to, const void* from, bool real) {
  static const unsigned char zeros[16] __attribute__((aligned(16))) = {};
  copy16(to, real ? from : zeros);
}
inline void copies_commit() { emulator::current->groups.emplace_back(); }
inline void copies_finish(size_t left) {
  auto& groups = emulator::current->groups;
  while (groups.size() > left) {
    for (const emulator::Copy& c : groups.front()) memcpy(c.to, c.from, c.bytes);
    groups.erase(groups.begin());
  }
}
template <int LEFT> inline void copies_wait() { copies_finish(LEFT + 1); }
inline void copies_done() {
  copies_finish(0);
  emulator::current->groups.emplace_back();
}
template <class T> inline T atomicAdd(T* p, T v) { T old = *p; *p += v; return old; }
inline unsigned bf16_bits(float f) {
  unsigned v = as_bits(f);
  return f != f ? 0x7fffu : (v + 0x7fff + (v >> 16 & 1)) >> 16;
}
inline unsigned pack_bf16(float low, float high) { return bf16_bits(low) | bf16_bits(high) << 16; }
inline void widen(unsigned bytes, unsigned& first, unsigned& second) {
  auto value = [&](int i) { return (float)(int8_t)(bytes >> (8 * i)); };
  first = pack_bf16(value(0), value(1));
  second = pack_bf16(value(2), value(3));
}
inline unsigned short half_bits(float f) { _Float16 h = (_Float16)f; unsigned short v; memcpy(&v, &h, 2); return v; }
inline unsigned pack_half(float low, float high) { return half_bits(low) | (unsigned)half_bits(high) << 16; }
inline float half_to_float(unsigned short v) { _Float16 h; memcpy(&h, &v, 2); return (float)h; }
inline float exp_fast(float x) { return expf(x); }
inline float rsqrtf(float v) { return 1.f / sqrtf(v); }
