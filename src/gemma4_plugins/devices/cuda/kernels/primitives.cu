// What the kernels need of the instruction set: asynchronous copies, barriers, matrix tiles, tagged packets.
// No CUDA header is included, so that NVRTC alone can compile this. EMULATED builds take these from a host file.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

constexpr u32 ALL = 0xffffffffu;
constexpr u32 SPIN_LIMIT = 1u << 23;  // polls before a wait is given up: some seconds

#ifndef EMULATED
#define DEVICE __device__ __forceinline__
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads, 1)
#define KERNELS(threads, resident) extern "C" __global__ void __launch_bounds__(threads, resident)
#define SHARED_MEMORY(name) extern __shared__ __align__(1024) u8 name[]
#define BLOCK_MEMORY(name, bytes) __shared__ __align__(1024) u8 name[bytes]  // as tinygrad launches: 48 KB at most

DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
// Values that the compiler must not carry, with all that follows from them, through a loop: registers are few.
DEVICE int this_block() {
  int b;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(b));
  return b;
}
DEVICE int opaque(int v) {
  asm volatile("" : "+r"(v));
  return v;
}
DEVICE u32 warp_ballot(bool v) { return __ballot_sync(ALL, v); }
DEVICE u32 warp_largest(u32 v) { return __reduce_max_sync(ALL, v); }
DEVICE u32 warp_least(u32 v) { return __reduce_min_sync(ALL, v); }
DEVICE int count_bits(u32 v) { return __popc(v); }
DEVICE int lowest_bit(u32 v) { return __ffs(v) - 1; }
// Registers of a thread move from copying warps to multiplying ones, where groups of four warps do one or the other.
template <int COUNT> DEVICE void give_registers() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}
template <int COUNT> DEVICE void take_registers() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}
// Ends the kernel with an error, as a trap would, beside which a thread could not have more registers than at the start.
#define GIVE_UP "{ .reg .u64 nowhere; mov.u64 nowhere, 0; st.volatile.global.u32 [nowhere], 0; }"
DEVICE void give_up() { asm volatile(GIVE_UP ::: "memory"); }

// ---- barriers: named ones among the consumer warps, counting ones between copies and consumers
DEVICE void bar_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
DEVICE void mbarrier_init(u64* b, int count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(count) : "memory");
}
DEVICE void mbarrier_arrive(u64* b) {
  asm volatile("{ .reg .b64 t; mbarrier.arrive.shared.b64 t, [%0]; }" ::"r"(shared_address(b)) : "memory");
}
#if __CUDA_ARCH__ >= 900
#define MBARRIER_DONE "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;"
#else
#define MBARRIER_DONE "mbarrier.test_wait.parity.shared.b64 done, [%0], %1;"
#endif
// One loop of the assembler's, without what the compiler puts around a loop that lanes may leave at different times.
DEVICE void mbarrier_wait(u64* b, u32 parity) {
  asm volatile("{ .reg .pred done; .reg .u32 spins; " MBARRIER_DONE " @done bra there; mov.u32 spins, 0; again: " MBARRIER_DONE
               " @done bra there; add.u32 spins, spins, 1; setp.gt.u32 done, spins, %2; @!done bra again; " GIVE_UP " there: }"
               ::"r"(shared_address(b)), "r"(parity), "n"(SPIN_LIMIT) : "memory");
}
DEVICE void fence_barrier_init() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
  asm volatile("fence.acq_rel.cta;" ::: "memory");
#endif
}

// ---- copies from global to shared memory that complete on a counting barrier
DEVICE u64 stream_policy() {
  u64 p = 0;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(p));
  return p;
}
DEVICE void copy16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
DEVICE void copy16_or_zeros(void* to, const void* from, bool real) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(real ? 16 : 0)
               : "memory");
}
DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> DEVICE void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }
DEVICE void copies_done() { asm volatile("cp.async.wait_all;" ::: "memory"); }
#if __CUDA_ARCH__ >= 900 && !defined(NO_BULK)
#define BULK 1
DEVICE void expect_bytes(u64* b, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(bytes) : "memory");
}
DEVICE void bulk_copy(void* to, const void* from, u32 bytes, u64* b, u64 policy) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
               ::"r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(b)), "l"(policy) : "memory");
}
#else
#define BULK 0
DEVICE void arrive_when_copied(u64* b) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(b)) : "memory");
}
#endif

// ---- matrix tiles
DEVICE void load_tiles(u32 (&a)[4], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(shared_address(p)) : "memory");
}
DEVICE void load_tiles_transposed(u32 (&a)[4], const void* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(shared_address(p)) : "memory");
}
DEVICE void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE void multiply(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- packets: a value and the tag of the phase that made it travel in one 8-byte access, so a reader polls the value
// itself and no barrier is needed
DEVICE uint2 load_packet(const uint2* p) {
  u64 v;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
  return make_uint2((u32)v, (u32)(v >> 32));
}
DEVICE uint4 load_two_packets(const uint2* p) {
  u64 v, w;
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(v), "=l"(w) : "l"(p) : "memory");
  return make_uint4((u32)v, (u32)(v >> 32), (u32)w, (u32)(w >> 32));
}
DEVICE void store_packet(uint2* p, u32 value, u32 tag) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(p), "l"((u64)tag << 32 | value) : "memory");
}
#ifdef POLL_PAUSE
DEVICE void spin_pause() { u32 t = clock(); while ((u32)clock() - t < POLL_PAUSE) {} }
#else
DEVICE void spin_pause() {}
#endif

// ---- loads that must not sink below the work that hides their latency
DEVICE u32 load_early(const u16* p) {  // into 32 bits: widening 16 would wait for them
  u32 v;
  asm volatile("ld.global.nc.u16 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}
DEVICE u32 load_byte_early(const u8* p) {
  u32 v;
  asm volatile("ld.global.nc.u8 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}
DEVICE float load_float_early(const float* p) {
  float v;
  asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(v) : "l"(p));
  return v;
}
DEVICE void fence_system() { __threadfence_system(); }

// ---- numbers
DEVICE u32 pack_bf16(float low, float high) {
  u32 v;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
  return v;
}
DEVICE u32 pack_half(float low, float high) {
  u32 v;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
  return v;
}
DEVICE float half_to_float(u16 h) {
  float v;
  asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(h));
  return v;
}
// Four int8 numbers to two pairs of bf16: with a byte's low 7 bits as mantissa of 128 + m, less 128, or 256 where its
// sign bit is set, which is the lowest exponent bit.
DEVICE void widen(u32 bytes, u32& first, u32& second) {
  u32 one, two;
  asm("prmt.b32 %0, %1, %2, 0x4140;" : "=r"(one) : "r"(bytes), "r"(0x43434343u));
  asm("prmt.b32 %0, %1, %2, 0x4342;" : "=r"(two) : "r"(bytes), "r"(0x43434343u));
  const u32 unit = 0x3f803f80u, minus = 0x80008000u;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(first) : "r"(one & 0xff7fff7fu), "r"(unit), "r"((one & 0xff80ff80u) ^ minus));
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(second) : "r"(two & 0xff7fff7fu), "r"(unit), "r"((two & 0xff80ff80u) ^ minus));
}
DEVICE float exp_fast(float x) { return __expf(x); }
// without the subroutine for denormal numbers, which costs registers all around it
DEVICE float quotient(float x, float y) { return __fdividef(x, y); }
DEVICE float as_float(u32 v) { return __uint_as_float(v); }
DEVICE u32 as_bits(float v) { return __float_as_uint(v); }
DEVICE u32 byte_permute(u32 a, u32 b, u32 pick) { return __byte_perm(a, b, pick); }
DEVICE u32 larger_pair(u32 a, u32 b) {  // of each of two bf16
  u32 v;
  asm("max.bf16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
  return v;
}
#endif

DEVICE float low_bf16(u32 v) { return as_float(v << 16); }
DEVICE float high_bf16(u32 v) { return as_float(v & 0xffff0000u); }
DEVICE u16 to_bf16(float v) { return (u16)pack_bf16(v, 0.f); }
DEVICE float round_bf16(float v) { return low_bf16(pack_bf16(v, 0.f)); }
DEVICE float gelu_tanh(float x) { return 0.5f * x * (1.f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x))); }

DEVICE float warp_sum(float v) {
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(ALL, v, o);
  return v;
}
// Numbers of a vector as two signed digits to the base of 256: 16 bits of its largest, more than bf16 has.
constexpr float MOST_DIGITS = 32512.f;
// In the low 16 bits: the low digit, and what has the high one above it. Adding this number leaves a rounded integer in a
// float's low bits; 128 more carry into the high digit where the low one is negative.
constexpr float WHOLE = 12582912.f;
DEVICE u32 low_digits(float v, float units) { return as_bits(fmaf(v, units, WHOLE)); }
DEVICE u32 high_digits(u32 low) { return low + 128; }
DEVICE u32 four_bytes(u32 a, u32 b, u32 c, u32 d, u32 which) {  // the byte `which` of each
  const u32 pick = which * 0x11 + 0x40;
  return byte_permute(byte_permute(a, b, pick), byte_permute(c, d, pick), 0x5410);
}
DEVICE u32 larger_sizes(u32 a, u32 b) { return larger_pair(a & 0x7fff7fffu, b & 0x7fff7fffu); }

DEVICE float warp_max(float v) {
  for (int o = 16; o; o >>= 1) v = fmaxf(v, __shfl_xor_sync(ALL, v, o));
  return v;
}
DEVICE u32 wait_packet(const uint2* p, u32 tag) {
  uint2 v = load_packet(p);
  for (u32 spins = 0; v.y != tag; v = load_packet(p)) {
    if (++spins > SPIN_LIMIT) give_up();
    spin_pause();
  }
  return v.x;
}
// Packets `at(i)` on while below `limit`: whatever is missing is asked for again in one go, so that the last one's
// arrival costs one round trip and not one for each.
template <int COUNT, class At> DEVICE void wait_packets(const uint2* p, At at, int limit, u32 tag, u32 (&out)[COUNT]) {
  uint2 v[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; i++) v[i] = at(i) < limit ? load_packet(p + at(i)) : make_uint2(0, tag);
  for (u32 spins = 0;; spins++) {
    bool all = true;
#pragma unroll
    for (int i = 0; i < COUNT; i++) all = all && v[i].y == tag;
    if (all) break;
    if (spins > SPIN_LIMIT) give_up();
    spin_pause();
#pragma unroll
    for (int i = 0; i < COUNT; i++)
      if (v[i].y != tag) v[i] = load_packet(p + at(i));
  }
#pragma unroll
  for (int i = 0; i < COUNT; i++) out[i] = v[i].x;
}
// Two neighbours at a time, `stride` twos apart while below `limit` twos; the first stands at an even index. A patient
// reader asks for its first two alone until they are there.
template <int COUNT, bool PATIENT> DEVICE void wait_two_packets(const uint2* p, int stride, int limit, u32 tag, u32 (*out)[2]) {
  uint4 v[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; i++) v[i] = i * stride < limit ? load_two_packets(p + 2 * i * stride) : make_uint4(0, tag, 0, tag);
  for (u32 spins = 0;; spins++) {
    bool all = true;
#pragma unroll
    for (int i = 0; i < COUNT; i++) all = all && v[i].y == tag && v[i].w == tag;
    if (all) break;
    if (spins > SPIN_LIMIT) give_up();
    spin_pause();
    if (PATIENT && (v[0].y != tag || v[0].w != tag)) {
      v[0] = load_two_packets(p);
      continue;
    }
#pragma unroll
    for (int i = 0; i < COUNT; i++)
      if (v[i].y != tag || v[i].w != tag) v[i] = load_two_packets(p + 2 * i * stride);
  }
#pragma unroll
  for (int i = 0; i < COUNT; i++) out[i][0] = v[i].x, out[i][1] = v[i].z;
}
