// Hopper's warpgroup matrix unit (sm_90a).
#ifndef EMULATED
// A tile that begins at a multiple of 1024 bytes, in rows of 128 bytes with their 16-byte pieces swizzled by the row.
// Rows run along K; `at` bytes along them, a multiple of 32.
DEVICE u64 matrix_operand(const u8* tile, int at) {
  u64 address = (shared_address(tile) + at) >> 4;
  return (address & 0x3fff) | 1ull << 16 | (u64)(1024 >> 4) << 32 | 1ull << 62;
}
// Rows run along M or N, 64 of them in a block of 64 rows along K; the next 64 lie one block on. From row `k` on.
DEVICE u64 matrix_operand_down(const u8* tile, int k) {
  u64 address = (shared_address(tile) + k * 128) >> 4;
  return (address & 0x3fff) | (u64)(8192 >> 4) << 16 | (u64)(1024 >> 4) << 32 | 1ull << 62;
}
DEVICE void fence_matrix_operands() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
DEVICE void matrix_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void matrix_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT> DEVICE void matrix_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory"); }

#define SUMS(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define SUMS16(i) SUMS(i), SUMS(i + 4), SUMS(i + 8), SUMS(i + 12)
// c[64, 256] += a[64, 16] · b[256, 16]^T; the rows of an operand that is DOWN run along M or N
template <bool A_IS_DOWN = false, bool B_IS_DOWN = false> DEVICE void matrix_multiply(float (&c)[128], u64 a, u64 b) {
  asm volatile("{ .reg .pred add; setp.ne.b32 add, 1, 0; wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "
               "%24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, "
               "%46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, "
               "%68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, "
               "%90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, "
               "%110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
               "}, %128, %129, add, 1, 1, %130, %131; }"
               : SUMS16(0), SUMS16(16), SUMS16(32), SUMS16(48), SUMS16(64), SUMS16(80), SUMS16(96), SUMS16(112)
               : "l"(a), "l"(b), "n"((int)A_IS_DOWN), "n"((int)B_IS_DOWN));
}
// c[64, 128] += a[64, 16] · b[128, 16]^T; the rows of an operand that is DOWN run along M or N
template <bool A_IS_DOWN = false, bool B_IS_DOWN = false> DEVICE void matrix_multiply(float (&c)[64], u64 a, u64 b) {
  asm volatile("{ .reg .pred add; setp.ne.b32 add, 1, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "
               "%24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, "
               "%46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
               "}, %64, %65, add, 1, 1, %66, %67; }"
               : SUMS16(0), SUMS16(16), SUMS16(32), SUMS16(48)
               : "l"(a), "l"(b), "n"((int)A_IS_DOWN), "n"((int)B_IS_DOWN));
}
#undef SUMS16
#undef SUMS
#endif
