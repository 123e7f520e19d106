// One decode step (batch 1) as one persistent kernel: state, tables and the copying warp. See docs/performance.md.
//
// Compiled for one model: HIDDEN LAYERS HEADS VOCAB PLE EXPERTS TOP EXPERT_FF KV_SLIDING KV_FULL D_SLIDING D_FULL WINDOW
// RING_SLOTS FULL_SLOTS EPS SOFTCAP EMBED_SCALE PLE_SCALE, and for one device: GRID WARPS STAGES STAGE_BYTES.
// Every block holds the residual stream; blocks differ in the rows of the products, and the parts of attention, that
// they make. All blocks must be resident at once.

// Fields of a layer's table row, of 8 bytes each; a warp holds a row in its lanes.
enum Field {
  F_Q, F_K, F_V, F_O, F_GATE, F_UP, F_DOWN, F_PLE_GATE, F_PLE_PROJECTION, F_CACHE, F_NORM_IN, F_NORM_Q, F_NORM_K,
  F_NORM_ATTENTION, F_NORM_BEFORE, F_NORM_AFTER, F_NORM_PLE, F_SCALAR, F_INFO, F_ROUTER, F_EXPERT_GATE_UP,
  F_EXPERT_DOWN, F_ROUTER_SCALE, F_EXPERT_SCALE, F_NORM_DENSE, F_NORM_BEFORE_EXPERTS, F_NORM_EXPERTS, F_FF
};
// Bits of F_INFO
constexpr u32 IS_FULL = 1, IS_OWN = 2, KEY_IS_VALUE = 4;
// Fields of the model's table row
enum ModelField {
  M_EMBEDDING, M_NORM, M_PLE_TABLE, M_PLE_PROJECTION, M_PLE_NORM, M_COS_SLIDING, M_SIN_SLIDING, M_COS_FULL, M_SIN_FULL,
  M_SUPPRESSED
};

// Phases whose results travel; a tag names launch, layer and phase.
enum Phase { P_QKV, P_PART, P_MIXED, P_O, P_GATED, P_DOWN, P_PLE_GATE, P_PLE, P_ROUTER, P_EXPERT, P_EXPERT_DOWN, P_STAT, PHASES };

constexpr int CONSUMERS = WARPS * 32, THREADS = CONSUMERS + 32;
constexpr int D_MAX = D_SLIDING > D_FULL ? D_SLIDING : D_FULL;
constexpr int KV_MAX_WIDTH = KV_SLIDING * D_SLIDING > KV_FULL * D_FULL ? KV_SLIDING * D_SLIDING : KV_FULL * D_FULL;
constexpr int WIDTH = HEADS * D_MAX;                        // of attention's output
constexpr int H_PER_THREAD = (HIDDEN + CONSUMERS - 1) / CONSUMERS;
constexpr int SPAN = 256;                                   // positions whose scores are held at a time
constexpr int GROUP_TILES = 4;                              // tiles between two reductions over warps
constexpr int largest(int a, int b) { return a > b ? a : b; }

// ---- scratch in global memory, in packets
constexpr int QKV_SIZE = WIDTH + 2 * KV_MAX_WIDTH;
constexpr int FF_PACKETS = FF_MAX / 2;
constexpr int AT_QKV = 0, AT_MIXED = AT_QKV + QKV_SIZE, AT_O = AT_MIXED + WIDTH / 2, AT_GATED = AT_O + HIDDEN,
              AT_DOWN = AT_GATED + FF_PACKETS, AT_PLE_GATE = AT_DOWN + HIDDEN, AT_PLE = AT_PLE_GATE + PLE,
              AT_CONTEXT = AT_PLE + (PLE ? HIDDEN : 0), AT_ROUTER = AT_CONTEXT + LAYERS * PLE,
              AT_EXPERT = AT_ROUTER + EXPERTS, AT_EXPERT_DOWN = AT_EXPERT + TOP * EXPERT_FF / 2,
              AT_STAT = AT_EXPERT_DOWN + (EXPERTS ? HIDDEN : 0), AT_BEST = AT_STAT + GRID * 16, AT_PART = AT_BEST + GRID * 3,
              SCRATCH_PACKETS = AT_PART + GRID * 8 * (D_MAX / 2);

// ---- shared memory
constexpr int QUERY_STRIDE = D_MAX * 2 + 64, PROBABILITY_STRIDE = SPAN * 2 + 64;
constexpr int ATTENTION_BYTES = 8 * QUERY_STRIDE + (SPAN + 1) * 32 + 8 * PROBABILITY_STRIDE + 4 * 32;
constexpr int OPERAND_BYTES = largest(largest(largest(HIDDEN, WIDTH), largest(FF_MAX, TOP * EXPERT_FF)) * 2, ATTENTION_BYTES);
constexpr int DIGIT_BYTES = OPERAND_BYTES / 2 / 64 * 64;
constexpr int S_RING = 0, S_OPERAND = S_RING + STAGES * STAGE_BYTES, S_ROUTER = S_OPERAND + (OPERAND_BYTES + 127) / 128 * 128,
              S_EXPERTS = S_ROUTER + (EXPERTS ? (HIDDEN * 2 + 127) / 128 * 128 : 0),
              S_STREAM = S_EXPERTS + (EXPERTS ? (HIDDEN * 2 + 127) / 128 * 128 : 0), S_NORMS = S_STREAM + HIDDEN * 4,
              S_PARTS = S_NORMS + (EXPERTS ? 4 : 2) * ((HIDDEN * 2 + 127) / 128 * 128),
              S_NEW = S_PARTS + 2 * GROUP_TILES * WARPS * 64, S_SUMS = S_NEW + 4 * D_MAX * 2,
              S_CHOSEN = S_SUMS + 2 * WARPS * 16, S_BARRIERS = S_CHOSEN + 16 * 8, SHARED_BYTES = S_BARRIERS + (2 * STAGES + 1) * 8;

struct Arguments {
  const u64* table;      // row 0: the model; row 1 + i: layer i; 32 fields each
  uint2* scratch;
  const int* token;      // the id to run
  int* next;             // greedy: the id chosen, its log-probability
  float* logprob;
  float* logits;         // [VOCAB] fp32, or null where the choice is greedy
  const u16* ple_rows;   // the token's row of the per-layer table where that is not on the device, else null
  volatile u32* history; // host memory: (id, log-probability, sequence, 0) at slot sequence % HISTORY; null if unused
  int position;
  u32 tag;               // first tag of this launch
  u32 sequence;
};
