// What a kernel is told beside its tensors: whole numbers, and fp32 ones by their bits. The compiler leaves them open: a copy
// of the object with them filled in is a kernel of its own, and nothing is compiled for new sizes.
static const volatile i64 numbers[NUMBERS] = {MARK, ~MARK};

INLINE float real(i64 at) {
  const u32 bits = (u32)numbers[at];
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

// The tensors, result first, are followed by the part that this call makes.
#define TENSORS u64 t0, u64 t1, u64 t2, u64 t3, u64 t4, u64 t5, u64 t6
#define GIVEN const u64 given[7] = {t0, t1, t2, t3, t4, t5, t6}; const i64 part = (int)given[numbers[COUNT_OF_TENSORS]], parts = numbers[PARTS]
enum { COUNT_OF_TENSORS, PARTS, FIRST_NUMBER };
