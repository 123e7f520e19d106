// Attention of a chunk: the queries of some positions and of all heads that share keys are the rows of a product with a
// block of keys, and their weights those of a product with its values; between them an online softmax.

enum { ATTENDED = 120 };                                   // rows of x at a time, whole tiles

// Positions whose queries attend together: 1 where products in pairs of bf16 do not serve.
static inline i64 attended_rows(const Step *s, const Layer *l) {
    i64 group = s->heads / l->kv_heads;
    if (!use_pairs(s, BF16) || s->kv_type != BF16 || l->head_dim % PANEL || l->head_dim / 2 > DEPTH || 2 * group > ATTENDED) return 1;
    return ATTENDED / group;
}

// A block of keys [slot][d], packed by pairs of columns.
static void pack_keys(const u16 *keys, const i64 *where, i64 count, i64 d, u32 *out) {
    for (i64 k = 0; k < d / 2; k += 16)
        for (int j = 0; j < PANEL; j += 16) {
            u32x r[16];
            for (int i = 0; i < 16; i++) r[i] = j + i < count ? *(const u32x *)(keys + where[j + i] + 2 * k) : (u32x){0};
            transpose(r);
            for (int i = 0; i < 16; i++) *(u32x *)packed_at(out, k + i, j, 1) = r[i];
        }
}

// PANEL lanes of a block of values [slot][d], packed by pairs of slots.
static void pack_values(const u16 *values, const i64 *where, i64 count, u32 *out) {
    for (int k = 0; k < SLOTS / 2; k++)
        for (int j = 0; j < PANEL; j += 16) {
            u32x low = {0}, high = {0};
            if (2 * k < count) low = __builtin_convertvector(*(const u16x *)(values + where[2 * k] + j), u32x);
            if (2 * k + 1 < count) high = __builtin_convertvector(*(const u16x *)(values + where[2 * k + 1] + j), u32x);
            *(u32x *)packed_at(out, k, j, 1) = low | high << 16;
        }
}

typedef struct { float top, total, shrink; } Soft;

// Scores of SLOTS slots to weights in bf16; only slots [low, high) are in sight.
static void soften(float *score, i64 low, i64 high, Soft *soft, u16 *weight) {
    float best = soft->top, added = 0;
    for (i64 j = low; j < high; j++) best = score[j] > best ? score[j] : best;
    for (i64 j = 0; j < SLOTS; j++) score[j] = j >= low && j < high ? exponential(score[j] - best) : 0;
    for (i64 j = 0; j < SLOTS; j++) added += score[j];
    for (i64 j = 0; j < SLOTS; j++) weight[j] = to_bf16(score[j]);
    soft->shrink = exponential(soft->top - best);
    soft->total = soft->total * soft->shrink + added;
    soft->top = best;
}

// `count` positions from `start` on, each up to `until` where that is given, all heads of one key-value head: q and mixed
// point to the first one's rows [position][heads][d]. room: ATTENDED * (2 d + 2 SLOTS + 4) floats; packed: DEPTH * PANEL words.
static void attend_rows(const Step *s, const Layer *l, i64 start, const int *until, i64 kv, i64 count, const float *q, float *mixed, float *room, u32 *packed) {
    i64 d = l->head_dim, width = s->heads * d, group = s->heads / l->kv_heads, rows = count * group, stride = row_stride(d);
    i64 first = l->window && start + 1 > l->window ? start + 1 - l->window : 0, last = start + count, base = kv * l->slots * d, where[SLOTS];
    float *scores = room, *out = scores + ATTENDED * SLOTS;
    Soft *soft = (Soft *)(out + rows * d);
    u16 *queries = (u16 *)(soft + rows + (-rows & 15)), *weights = queries + rows * stride;
    if (until) for (i64 i = 0; i < count; i++) last = until[i] + 1 > last ? until[i] + 1 : last;
    for (i64 r = 0; r < rows; r++) {
        ready_row(queries + r * stride, q + r / group * width + (kv * group + r % group) * d, d, 1);
        soft[r] = (Soft){-1e30f, 0, 0};
    }
    for (i64 at = first; at < last; at += SLOTS) {
        i64 here = last - at < SLOTS ? last - at : SLOTS;
        for (i64 j = 0; j < here; j++) where[j] = base + (l->window ? (at + j) % l->slots : at + j) * d;
        pack_keys((const u16 *)l->keys, where, here, d, packed);
        tiles(packed, d / 2, &(Rows){queries, rows, stride, 1}, 0, scores, 1, 0);
        for (i64 r = 0; r < rows; r++) {
            i64 position = start + r / group, low = l->window ? position + 1 - l->window - at : 0, high = (until ? until[r / group] : position) + 1 - at;
            soften(scores + r * SLOTS, low > 0 ? low : 0, high < here ? high : here, soft + r, weights + r * SLOTS);
        }
        for (i64 lane = 0; lane < d; lane += PANEL) {
            float *sums = out + lane * rows;               // [d / PANEL][rows][PANEL]
            if (at > first) for (i64 r = 0; r < rows; r++) if (soft[r].shrink != 1.0f) for (int i = 0; i < PANEL; i++) sums[r * PANEL + i] *= soft[r].shrink;
            pack_values((const u16 *)l->values + lane, where, here, packed);
            tiles(packed, SLOTS / 2, &(Rows){weights, rows, SLOTS, 1}, 0, sums, at == first, 0);
        }
    }
    for (i64 r = 0; r < rows; r++) {
        float *line = mixed + r / group * width + (kv * group + r % group) * d, share = 1.0f / soft[r].total;
        for (i64 lane = 0; lane < d; lane += PANEL) for (int i = 0; i < PANEL; i++) line[lane + i] = out[lane * rows + r * PANEL + i] * share;
    }
}
