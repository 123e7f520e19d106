// One decode step (batch 1) as one persistent kernel: state, tables and the copying warps. See docs/performance.md.
//
// Compiled for one model, cache and device: plan.py defines sizes in capitals, places in scratch memory (AT_*, in
// packets) and in shared memory (S_*, in bytes).
// Every block holds the residual stream; blocks differ in the rows of the products, and the parts of attention, that
// they make. All blocks must be resident at once.

// The table has a row for the model and one for each layer: 32 fields of 8 bytes, which a warp holds in its lanes, and
// then 32 more: where an int8 matrix named by a field has its row scales.
enum Field {
  F_Q, F_K, F_V, F_O, F_GATE, F_UP, F_DOWN, F_PLE_GATE, F_PLE_PROJECTION, F_CACHE, F_NORM_IN, F_NORM_Q, F_NORM_K,
  F_NORM_ATTENTION, F_NORM_BEFORE, F_NORM_AFTER, F_NORM_PLE, F_SCALAR, F_INFO, F_ROUTER, F_EXPERT_GATE_UP,
  F_EXPERT_DOWN, F_ROUTER_SCALE, F_EXPERT_SCALE, F_NORM_DENSE, F_NORM_BEFORE_EXPERTS, F_NORM_EXPERTS
};
// Bits of F_INFO, and where the layer's kind begins: layers of a kind differ in their weights alone
constexpr u32 IS_FULL = 1, IS_OWN = 2, KEY_IS_VALUE = 4;
constexpr int KIND = 8;
// Fields of the model's table row
enum ModelField {
  M_EMBEDDING, M_NORM, M_PLE_TABLE, M_PLE_PROJECTION, M_PLE_NORM, M_COS_SLIDING, M_SIN_SLIDING, M_COS_FULL, M_SIN_FULL,
  M_SUPPRESSED, M_SLOTS_SLIDING, M_SLOTS_FULL, M_KINDS  // and behind it one field a kind: F_INFO's bits, and above 32 its feed-forward width
};

// Products in the order of their work. W_PLE_GATE and W_PLE exist with per-layer inputs only, W_ROUTER, W_EXPERT and
// W_EXPERT_DOWN with experts only.
enum Product { W_QKV, W_O, W_ROUTER, W_GATED, W_DOWN, W_EXPERT, W_EXPERT_DOWN, W_PLE_GATE, W_PLE, W_CONTEXT, W_HEAD, PRODUCTS };
constexpr int W_LAST = PLE ? W_PLE : EXPERTS ? W_EXPERT_DOWN : W_DOWN;
// Results that travel; a tag names launch, layer and phase.
enum Phase { P_QKV, P_O, P_ROUTER, P_GATED, P_DOWN, P_EXPERT, P_EXPERT_DOWN, P_PLE_GATE, P_PLE, P_PART, P_MIXED, PHASES };

// slices of the cached positions that every block puts together for itself, where it has at most so many twos of pairs a thread
constexpr int JOINED_TWOS = 2;
constexpr bool INT8 = WEIGHT_BYTES == 1;  // all matrices but the router's are int8 with fp32 row scales
constexpr int CONSUMERS = WARPS * 32, THREADS = CONSUMERS + PRODUCERS * 32;
constexpr int D_MAX = D_SLIDING > D_FULL ? D_SLIDING : D_FULL;
// elements of the stream that a thread has: of every step's columns an int8 step takes two
constexpr int H_PER_THREAD = INT8 ? (HIDDEN + 2 * CONSUMERS - 1) / (2 * CONSUMERS) * 2 : (HIDDEN + CONSUMERS - 1) / CONSUMERS;
constexpr int PLE_EACH = INT8 ? 2 : 1;
// packets of an operand made of pairs that a thread asks for at a time, by twos, where there are many: all, if few enough
DEVICE constexpr int larger(int a, int b) { return a > b ? a : b; }
constexpr int PAIRS = larger(FF_MAX, larger(HEADS * D_MAX, TOP * EXPERT_FF)) / 2, TWOS_EACH = (PAIRS / 2 + CONSUMERS - 1) / CONSUMERS;
constexpr int ROUNDS = (TWOS_EACH + 11) / 12, TWOS = (TWOS_EACH + ROUNDS - 1) / ROUNDS;
constexpr int CHOICE_LANES = EXPERTS ? (EXPERTS + 31) / 32 : 1;  // experts that a lane of a warp looks at
constexpr int EXPERT_ROWS = EXPERT_FF ? EXPERT_FF : 1;

struct Arguments {
  const u64* table;      // row 0: the model; row 1 + i: layer i; 64 fields each
  uint2* scratch;
  const int* token;      // the id to run
  int* next;             // the first best id and its log-probability; null where they are not wanted
  float* logprob;
  float* logits;         // [VOCAB] fp32; null where they are not wanted
  const u16* ple_rows;   // the token's row of the per-layer table where that is not on the device, else null
  volatile u32* history; // see history.cu; null if unused
  int position;
  u32 tag;               // first tag of this launch
  u32 sequence;
};

