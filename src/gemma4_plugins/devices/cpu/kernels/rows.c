// Attention of a chunk: the queries of some positions and of all heads that share keys are the rows of a product with a
// block of keys, and their weights those of a product with its values; between them an online softmax. In pairs of bf16
// where products of bf16 models are, else in fp32.

enum { ATTENDED = 120 };                                   // rows of x at a time, a multiple of TILE

// Positions whose queries attend together, fewer where threads would have nothing to do: 1 where heads are not whole panels
// or two positions are too many.
static inline i64 attended_rows(const Step *s, const Layer *l, i64 count) {
    i64 group = s->heads / l->kv_heads, most = ATTENDED / group, share = (count * l->kv_heads + s->threads - 1) / s->threads;
    return l->head_dim % PANEL || most < 2 ? 1 : share < most ? share : most;
}

// 16 values of the cache as fp32.
static inline u32x wide_values(const void *cache, i64 at, i64 type) {
    if (type == F32) return *(const u32x *)((const float *)cache + at);
    return __builtin_convertvector(*(const u16x *)((const u16 *)cache + at), u32x) << 16;
}

// Columns of a block of keys [slot][d] from `word` on, packed: pairs of bf16, or fp32 values.
static void pack_keys(const void *keys, i64 type, const i64 *where, i64 count, i64 word, i64 words_count, int pairs, u32 *out) {
    for (i64 k = 0; k < words_count; k += 16)
        for (int j = 0; j < PANEL; j += 16) {
            u32x r[16];
            for (int i = 0; i < 16; i++) {
                if (j + i >= count) r[i] = (u32x){0};
                else if (pairs) r[i] = *(const u32x *)((const u16 *)keys + where[j + i] + 2 * (word + k));
                else r[i] = wide_values(keys, where[j + i] + word + k, type);
            }
            transpose(r);
            for (int i = 0; i < 16; i++) *(u32x *)packed_at(out, k + i, j, pairs) = r[i];
        }
}

// PANEL lanes of a block of values [slot][d] from `lane` on, packed by pairs of slots or by slots.
static void pack_values(const void *values, i64 type, const i64 *where, i64 count, i64 lane, int pairs, u32 *out) {
    if (!pairs) {
        for (int k = 0; k < SLOTS; k++)
            for (int j = 0; j < PANEL; j += 16) *(u32x *)packed_at(out, k, j, 0) = k < count ? wide_values(values, where[k] + lane + j, type) : (u32x){0};
        return;
    }
    for (int k = 0; k < SLOTS / 2; k++)
        for (int j = 0; j < PANEL; j += 16) {
            u32x low = {0}, high = {0};
            if (2 * k < count) low = __builtin_convertvector(*(const u16x *)((const u16 *)values + where[2 * k] + lane + j), u32x);
            if (2 * k + 1 < count) high = __builtin_convertvector(*(const u16x *)((const u16 *)values + where[2 * k + 1] + lane + j), u32x);
            *(u32x *)packed_at(out, k, j, 1) = low | high << 16;
        }
}

typedef struct { float top, total, shrink; } Soft;

// Scores of SLOTS slots to weights, in place and in bf16 unless `weight` is 0; only slots [low, high) are in sight.
static void soften(float *score, i64 low, i64 high, Soft *soft, u16 *weight) {
    float best = soft->top, added = 0;
    for (i64 j = low; j < high; j++) best = score[j] > best ? score[j] : best;
    for (i64 j = 0; j < SLOTS; j++) score[j] = j >= low && j < high ? exponential(score[j] - best) : 0;
    for (i64 j = 0; j < SLOTS; j++) added += score[j];
    if (weight) for (i64 j = 0; j < SLOTS; j++) weight[j] = to_bf16(score[j]);
    soft->shrink = exponential(soft->top - best);
    soft->total = soft->total * soft->shrink + added;
    soft->top = best;
}

// `count` positions from `start` on, each up to `until` where that is given, all heads of one key-value head: q and mixed
// point to the first one's rows [position][heads][d]. room: ATTENDED * (2 d + 2 SLOTS + 4) floats; packed: DEPTH * PANEL words.
static void attend_rows(const Step *s, const Layer *l, i64 start, const int *until, i64 kv, i64 count, const float *q, float *mixed, float *room, u32 *packed) {
    i64 d = l->head_dim, width = s->heads * d, group = s->heads / l->kv_heads, rows = count * group, stride = row_stride(d);
    int pairs = use_pairs(s, BF16) && s->kv_type == BF16;
    i64 all = pairs ? d / 2 : d, slots = pairs ? SLOTS / 2 : SLOTS;   // words of a product's depth
    i64 first = l->window && start + 1 > l->window ? start + 1 - l->window : 0, last = start + count, base = kv * l->slots * d, where[SLOTS];
    float *scores = room, *out = scores + ATTENDED * SLOTS;
    Soft *soft = (Soft *)(out + rows * d);
    char *queries = (char *)(soft + rows + (-rows & 15));
    u16 *weights = pairs ? (u16 *)queries + rows * stride : 0;
    if (until) for (i64 i = 0; i < count; i++) last = until[i] + 1 > last ? until[i] + 1 : last;
    for (i64 r = 0; r < rows; r++) {
        ready_row(row_at(queries, r, stride, pairs), q + r / group * width + (kv * group + r % group) * d, d, pairs);
        soft[r] = (Soft){-1e30f, 0, 0};
    }
    for (i64 at = first; at < last; at += SLOTS) {
        i64 here = last - at < SLOTS ? last - at : SLOTS;
        for (i64 j = 0; j < here; j++) where[j] = base + (l->window ? (at + j) % l->slots : at + j) * d;
        for (i64 word = 0; word < all; word += DEPTH) {
            i64 part = all - word < DEPTH ? all - word : DEPTH;
            pack_keys(l->keys, s->kv_type, where, here, word, part, pairs, packed);
            tiles(packed, part, &(Rows){queries, rows, stride, pairs}, word, scores, word == 0, 0);
        }
        for (i64 r = 0; r < rows; r++) {
            i64 position = start + r / group, low = l->window ? position + 1 - l->window - at : 0, high = (until ? until[r / group] : position) + 1 - at;
            soften(scores + r * SLOTS, low > 0 ? low : 0, high < here ? high : here, soft + r, weights ? weights + r * SLOTS : 0);
        }
        for (i64 lane = 0; lane < d; lane += PANEL) {
            float *sums = out + lane * rows;               // [d / PANEL][rows][PANEL]
            if (at > first) for (i64 r = 0; r < rows; r++) if (soft[r].shrink != 1.0f) for (int i = 0; i < PANEL; i++) sums[r * PANEL + i] *= soft[r].shrink;
            pack_values(l->values, s->kv_type, where, here, lane, pairs, packed);
            tiles(packed, slots, &(Rows){pairs ? (const void *)weights : scores, rows, SLOTS, pairs}, 0, sums, at == first, 0);
        }
    }
    for (i64 r = 0; r < rows; r++) {
        float *line = mixed + r / group * width + (kv * group + r % group) * d, share = 1.0f / soft[r].total;
        for (i64 lane = 0; lane < d; lane += PANEL) for (int i = 0; i < PANEL; i++) line[lane + i] = out[lane * rows + r * PANEL + i] * share;
    }
}
