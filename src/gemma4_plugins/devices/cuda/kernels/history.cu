// What the host reads of a step without a driver call: its token and log-probability in page-locked memory, at slot
// sequence % HISTORY as (id, log-probability, sequence, 0); the sequence number comes last.
DEVICE void tell_host(volatile u32* history, u32 sequence, int token, float logprob) {
  volatile u32* slot = history + (sequence & (HISTORY - 1)) * 4;
  slot[0] = (u32)token;
  slot[1] = as_bits(logprob);
  fence_system();
  slot[2] = sequence;
}
