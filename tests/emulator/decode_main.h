// The exported entry of an emulated persistent step; comes after the kernel's source.
extern "C" void launch(size_t shared_bytes, const u64* table, uint2* scratch, const int* token, int* next, float* logprob,
                       float* logits, const u16* ple_rows, u32* history, int position, u32 tag, u32 sequence) {
  emulator::run(GRID, THREADS, shared_bytes, [=] {
    decode_step(table, scratch, token, next, logprob, logits, ple_rows, history, position, tag, sequence);
  });
}
