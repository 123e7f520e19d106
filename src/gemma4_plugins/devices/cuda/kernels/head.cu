// The end of the persistent step: the best logit of all blocks becomes the next token; and the kernel itself.

DEVICE void publish_best(const Arguments& a, const Best& best, u32 tag) {
  uint2* to = a.scratch + AT_BEST + blockIdx.x * 3;
  store_packet(to, as_bits(best.top), tag);
  store_packet(to + 1, as_bits(best.sum), tag);
  store_packet(to + 2, (u32)best.token, tag);
}

// Block 0's first warp: the best of all blocks becomes the next token.
DEVICE void announce(const Arguments& a, int lane, u32 tag) {
  Best best = {-1e38f, 0.f, 0x7fffffff};
  for (int b = lane; b < GRID; b += 32) {
    const uint2* from = a.scratch + AT_BEST + b * 3;
    float top = as_float(wait_packet(from, tag)), sum = as_float(wait_packet(from + 1, tag));
    best.merge(top, sum, (int)wait_packet(from + 2, tag));
  }
  best.merge_warp();
  if (lane) return;
  float logprob = -logf(best.sum);
  *a.next = best.token;
  *a.logprob = logprob;
  if (a.history) tell_host(a.history, a.sequence, best.token, logprob);
}

DEVICE void Consumer::finish() {
  if (!a.next) return;
  u32 last = a.tag + 1 + LAYERS * PHASES;
  best.merge_warp();
  float* top = (float*)(shared + S_PARTS);
  bar_sync(1, CONSUMERS);
  if (eat.lane == 0) {
    top[eat.warp * 3] = best.top;
    top[eat.warp * 3 + 1] = best.sum;
    top[eat.warp * 3 + 2] = as_float((u32)best.token);
  }
  bar_sync(1, CONSUMERS);
  if (eat.warp) return;
  int w = eat.lane & (WARPS - 1);
  Best all = {-1e38f, 0.f, 0x7fffffff};
  if (eat.lane < WARPS) all.merge(top[w * 3], top[w * 3 + 1], (int)as_bits(top[w * 3 + 2]));
  all.merge_warp();
  if (eat.lane == 0) publish_best(a, all, last);
  if (blockIdx.x == 0) announce(a, eat.lane, last);
}

KERNEL(THREADS) decode_step(const u64* table, uint2* scratch, const int* token, int* next, float* logprob, float* logits,
                            const u16* ple_rows, u32* history, int position, u32 tag, u32 sequence) {
  SHARED_MEMORY(memory);
  Arguments a = {table, scratch, token, next, logprob, logits, ple_rows, history, position, tag, sequence};
  u64 *full = (u64*)(memory + S_BARRIERS), *empty = full + STAGES, *choice_made = empty + STAGES;
  Choice choice = {(int*)(memory + S_CHOSEN), (float*)(memory + S_CHOSEN) + 16};
  int thread = threadIdx.x, warp = __shfl_sync(ALL, thread >> 5, 0), lane = thread & 31;
  Shape* shapes = (Shape*)(memory + S_SHAPES);
  Slice* slices = (Slice*)(memory + S_SLICES);
  work_out(table, position, thread, shapes, slices);
  if (thread == 0) {
    for (int i = 0; i < STAGES; i++) {
      mbarrier_init(full + i, BULK ? PRODUCERS : PRODUCERS * 32);
      mbarrier_init(empty + i, WARPS);
    }
    mbarrier_init(choice_made, 1);
    fence_barrier_init();
  }
  __syncthreads();
  Ring ring = {memory + S_RING, full, empty, 0, 0};
  // of the registers that the kernel is started with copying warps keep what they need
  constexpr int STARTED = 65536 / THREADS / 8 * 8, KEPT = EXPERTS ? 88 : 56, TAKEN = (THREADS / 32 * STARTED - PRODUCERS * KEPT) / WARPS / 8 * 8;
  if (warp >= WARPS) {
    if (MOVES_REGISTERS) give_registers<KEPT>();
    Producer producer = {{ring, ring, warp - WARPS, lane, 0, stream_policy()}, 0, 0, 0, a, shapes, slices, choice, choice_made};
    producer.run();
  } else {
    if (MOVES_REGISTERS) take_registers<TAKEN>();
    Consumer consumer = {{{ring, (float*)(memory + S_PARTS), thread, warp, lane, 0}, a, memory, 0, 1.f}, shapes, slices, choice, choice_made};
    consumer.run();
  }
}
