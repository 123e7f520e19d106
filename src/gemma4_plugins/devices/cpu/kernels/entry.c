// The text model's forward pass as one call, for one position or for rows of one or several slots: every thread runs
// `text_step`, work is claimed in blocks, and phases are apart by a barrier. Activations are fp32 throughout; weights stay as stored (fp32, bf16, or
// int8 with one scale per row); keys and values have the model's dtype. Freestanding: no libc, no mutable globals.
// These files are compiled as one unit in the order of `SOURCES` in text.py; the entry point must come first.
// Formulas follow transformers 5.23.0, models/gemma4/modeling_gemma4.py, as gemma4_core/model/layers.py does.

typedef unsigned char u8;
typedef signed char i8;
typedef short i16;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define LANES 16
typedef float f32x __attribute__((vector_size(4 * LANES), aligned(4)));
typedef u32 u32x __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int i32x __attribute__((vector_size(4 * LANES), aligned(4)));
typedef u16 u16x __attribute__((vector_size(2 * LANES), aligned(2)));
typedef i16 i16x __attribute__((vector_size(2 * LANES), aligned(2)));
typedef i8 i8x __attribute__((vector_size(LANES), aligned(1)));

enum { F32 = 0, BF16 = 1, I8 = 2 };                       // storage types
enum { MAX_EXPERTS = 16, HEAD_BLOCK = 256 };              // experts per token, rows of the head summed up together

typedef struct { const void *data; const float *scale; i64 type, rows, cols; } Matrix;

typedef struct {
    Matrix q, k, v, o, gate, up, down;                    // v.data is 0 on K=V layers, k.data on shared layers
    Matrix ple_gate, ple_proj;
    Matrix router, expert_gate_up, expert_down;           // stacks: rows counts all experts
    const float *q_norm, *k_norm, *in_norm, *attn_norm, *pre_ff, *post_ff, *post_ff1, *pre_ff2, *post_ff2, *ple_norm;
    const float *router_scale, *expert_scale, *cos, *sin; // cos, sin: [positions, head_dim / 2]
    void *keys, *values;                                  // [kv heads, slots, head_dim] of the layer whose K/V are read
    float scalar;
    i64 head_dim, kv_heads, slots, window, ff;            // window 0: full attention
} Layer;

typedef struct {
    const Layer *layers;                                  // with the keys and values of slot 0
    const Layer *const *slots;                            // the same layers with those of each slot
    i64 layer_count, hidden, heads, vocab, ple, experts, top, expert_ff, kv_type, threads;
    float eps, embed_scale, ple_scale, softcap;           // softcap 0: none
    Matrix embed, ple_table, ple_model_proj;
    const float *ple_proj_norm, *norm;
    float *q, *k, *v, *mixed, *a, *b, *act, *ple_ctx, *ple_in, *scores, *router_out, *scratch;
    i64 scratch_per_thread;                               // floats
    float *chunk_h, *chunk_x, *chunk_wide, *chunk_other, *chunk_ple, *chunk_parts;
    void *chunk_ready, *chunk_marks, *chunk_tiles;
    float *chunk_own;                                     // per thread: rows that it makes ready for itself
    char *chunk_room;                                     // per thread: a packed block, sums of two panels, an expert's rows
    i64 chunk_room_per_thread, first_shared;
    float *choosing;                                      // per thread: the scores of a row
    u32 *sync;                                            // zeroed once: [0] arrived, [16] generation, [32..48..64] tickets
    i64 suppressed_count;
    const u32 *suppressed;
} Step;

// N rows, those of a slot behind each other, and the M of them whose results are wanted.
typedef struct {
    i64 decode;                                           // 1: one row, its choice wanted
    i64 count, runs, wanted_count;                        // N, slots, M; M 0: only keys and values are wanted
    const u32 *ids;                                       // [N]
    const int *slot, *position;                           // [N]
    const int *first;                                     // [runs + 1] the first row of each slot, N at the end
    const int *wanted, *wanted_slot, *wanted_position;    // [M] numbers of rows, and what those are
    const int *alone;                                     // 0, 1, 2, … M
    const int *until;                                     // [N] the last position that each row sees on sliding layers, or 0: its own
    const float *soft;                                    // [N][hidden] rows that replace embeddings, or 0
    const u8 *is_soft;                                    // [N]
    float *hidden;                                        // [M][hidden], or 0
    float *logits, *partial;                              // [M][vocab], or 0: nothing is chosen; [M][blocks of the head][4]
    u32 *tokens;                                          // [M]
    float *logprobs;                                      // [M]
    const float *params;                                  // [M][7], see SamplingRows, or 0: all take the largest
    const u32 *seed;                                      // [M]
    int *counts;                                          // [slots][vocab], or 0
    const float *bias;                                    // [slots][vocab], or 0
    const u32 *mask;                                      // [M][(vocab + 31) / 32], or 0
    const int *drafted;                                   // [M][drafts], or 0
    i64 drafts;
} Call;

typedef struct { const Step *s; i64 thread; u32 phase; } Worker;

static void run_decode(Worker *w, const Call *c);
static void run_chunk(Worker *w, const Call *c);

void text_step(const Step *s, const Call *c, u64 thread) {
    Worker w = {s, (i64)thread, 0};
    if (c->decode) run_decode(&w, c);
    else run_chunk(&w, c);
}
