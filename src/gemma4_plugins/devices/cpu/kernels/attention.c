// Attention over the cache in place.

static void rotate(float *x, const float *cos, const float *sin, i64 n) {
    for (i64 i = 0; i < n / 2; i++) {
        float a = x[i], b = x[i + n / 2];
        x[i] = a * cos[i] - b * sin[i];
        x[i + n / 2] = b * cos[i] + a * sin[i];
    }
}

static inline f32x load_kv(const void *base, i64 at, i64 type) {
    if (type == BF16) return (f32x)(__builtin_convertvector(*(const u16x *)((const u16 *)base + at), u32x) << 16);
    return *(const f32x *)((const float *)base + at);
}

static inline float load_kv1(const void *base, i64 at, i64 type) {
    return type == BF16 ? from_bf16(((const u16 *)base)[at]) : ((const float *)base)[at];
}

static void store_kv(void *base, i64 at, i64 type, const float *x, i64 n) {
    for (i64 i = 0; i < n; i++) {
        if (type == BF16) ((u16 *)base)[at + i] = to_bf16(x[i]);
        else ((float *)base)[at + i] = x[i];
    }
}

enum { SLOTS = 64, GROUP = 8, SPLITS = 64 };              // slots per block, heads per pass, parts of a context

// How many positions each part of a context of n takes: whole blocks, at most SPLITS parts.
static inline i64 part_of(i64 n) {
    i64 blocks = (n + 255) / 256, each = (blocks + SPLITS - 1) / SPLITS;
    return 256 * each;
}

// Scores and values of `count` slots (<= SLOTS) for `heads` (<= GROUP) heads that share keys; online softmax state in
// top, total and out [heads][d].
static void attend_block(const Step *s, const Layer *l, i64 base, i64 at, i64 count, int heads, const float *q,
                         float *top, float *total, float *out) {
    i64 d = l->head_dim, type = s->kv_type, where[SLOTS];
    float score[GROUP][SLOTS], weight[GROUP][SLOTS];
    for (i64 j = 0; j < count; j++) where[j] = base + (l->window ? (at + j) % l->slots : at + j) * d;
    for (i64 j = 0; j < count; j++) {
        f32x acc[GROUP] = {{0}};
        float tail[GROUP] = {0};
        i64 i = 0;
        for (; i + LANES <= d; i += LANES) {
            f32x k = load_kv(l->keys, where[j] + i, type);
            for (int g = 0; g < heads; g++) acc[g] += k * *(const f32x *)(q + g * d + i);
        }
        for (; i < d; i++) for (int g = 0; g < heads; g++) tail[g] += load_kv1(l->keys, where[j] + i, type) * q[g * d + i];
        for (int g = 0; g < heads; g++) score[g][j] = sum(acc[g]) + tail[g];
    }
    for (int g = 0; g < heads; g++) {
        float best = top[g];
        for (i64 j = 0; j < count; j++) best = score[g][j] > best ? score[g][j] : best;
        float shrink = exponential(top[g] - best), added = 0;
        for (i64 j = 0; j < count; j++) weight[g][j] = exponential(score[g][j] - best);
        for (i64 j = 0; j < count; j++) added += weight[g][j];
        top[g] = best;
        total[g] = total[g] * shrink + added;
        for (i64 i = 0; i < d; i++) out[g * d + i] *= shrink;
    }
    i64 i = 0;
    for (; i + LANES <= d; i += LANES) {
        f32x acc[GROUP] = {{0}};
        for (i64 j = 0; j < count; j++) {
            f32x v = load_kv(l->values, where[j] + i, type);
            for (int g = 0; g < heads; g++) acc[g] += v * weight[g][j];
        }
        for (int g = 0; g < heads; g++) *(f32x *)(out + g * d + i) += acc[g];
    }
    for (; i < d; i++)
        for (i64 j = 0; j < count; j++)
            for (int g = 0; g < heads; g++) out[g * d + i] += load_kv1(l->values, where[j] + i, type) * weight[g][j];
}

// All slots of positions [from, to) for heads that share keys: out [heads][d].
static void attend_range(const Step *s, const Layer *l, i64 kv, i64 from, i64 to, int heads, const float *q, float *out) {
    i64 d = l->head_dim;
    float top[GROUP], total[GROUP];
    for (int g = 0; g < heads; g++) { top[g] = -1e30f; total[g] = 0; }
    for (i64 i = 0; i < heads * d; i++) out[i] = 0;
    for (i64 at = from; at < to; at += SLOTS)
        attend_block(s, l, kv * l->slots * d, at, to - at < SLOTS ? to - at : SLOTS, heads, q, top, total, out);
    for (int g = 0; g < heads; g++) for (i64 i = 0; i < d; i++) out[g * d + i] /= total[g];
}

// One part of the context for all heads of one kv head of queries q [head][d]; result in `each`: [head][part][d + 2].
static void attend_part(const Step *s, const Layer *l, i64 kv, i64 part, i64 parts, i64 from, i64 to, const float *q, float *each, float *scratch) {
    i64 d = l->head_dim, group = s->heads / l->kv_heads;
    for (i64 first = 0; first < group; first += GROUP) {
        int heads = (int)(group - first < GROUP ? group - first : GROUP);
        i64 head = kv * group + first;
        float top[GROUP], total[GROUP];
        for (int g = 0; g < heads; g++) { top[g] = -1e30f; total[g] = 0; }
        for (i64 i = 0; i < heads * d; i++) scratch[i] = 0;
        for (i64 at = from; at < to; at += SLOTS)
            attend_block(s, l, kv * l->slots * d, at, to - at < SLOTS ? to - at : SLOTS, heads, q + head * d, top, total, scratch);
        for (int g = 0; g < heads; g++) {
            float *mine = each + ((head + g) * parts + part) * (d + 2);
            mine[0] = top[g];
            mine[1] = total[g];
            for (i64 i = 0; i < d; i++) mine[2 + i] = scratch[g * d + i];
        }
    }
}

static void merge_parts(i64 d, const float *all, i64 head, i64 parts, float *mixed) {
    const float *each = all + head * parts * (d + 2);
    float top = -1e30f, total = 0, *out = mixed + head * d;
    for (i64 p = 0; p < parts; p++) top = each[p * (d + 2)] > top ? each[p * (d + 2)] : top;
    for (i64 i = 0; i < d; i++) out[i] = 0;
    for (i64 p = 0; p < parts; p++) {
        const float *part = each + p * (d + 2);
        float share = exponential(part[0] - top);
        total += part[1] * share;
        for (i64 i = 0; i < d; i++) out[i] += part[2 + i] * share;
    }
    for (i64 i = 0; i < d; i++) out[i] /= total;
}

// Norms and rotation of one position's key and value, and their place in the cache. `value` may be `key`; room: d floats.
static void place_kv(const Step *s, const Layer *l, i64 position, i64 head, float *key, const float *value, float *room) {
    i64 d = l->head_dim, slot = l->window ? position % l->slots : position, where = (head * l->slots + slot) * d;
    rms_norm(room, value, 0, d, s->eps);
    rms_norm(key, key, l->k_norm, d, s->eps);
    rotate(key, l->cos + position * (d / 2), l->sin + position * (d / 2), d);
    store_kv(l->keys, where, s->kv_type, key, d);
    store_kv(l->values, where, s->kv_type, room, d);
}

// Rows of q, k and v as one phase.
static void spread_qkv(Worker *w, const Layer *l, const float *x, float *packed) {
    const Step *s = w->s;
    const Matrix *each[3] = {&l->q, &l->k, &l->v};
    float *out[3] = {s->q, s->k, s->v};
    i64 rows = l->q.rows + (l->k.data ? l->k.rows : 0) + (l->v.data ? l->v.rows : 0), type = l->q.type, first, last;
    Operand o = operand(x, s->hidden, type, packed);
    while (claim_shrinking(w, rows, least_of(&l->q), &first, &last)) {
        i64 at = 0;                                        // of the matrix's rows among all
        for (int i = 0; i < 3; i++) {
            if (!each[i]->data) continue;
            i64 from = first > at ? first - at : 0, to = last - at < each[i]->rows ? last - at : each[i]->rows;
            at += each[i]->rows;
            if (from >= to) continue;
            if (each[i]->type != type) o = operand(x, s->hidden, type = each[i]->type, packed);
            dot_rows(each[i], from, to - from, &o, out[i] + from);
        }
    }
    barrier(w);
}

static void attention(Worker *w, const Layer *l, i64 position, const float *h, float *scratch) {
    const Step *s = w->s;
    i64 d = l->head_dim, from, to;
    float *x = scratch, *packed = scratch + s->hidden;
    rms_norm(x, h, l->in_norm, s->hidden, s->eps);
    spread_qkv(w, l, x, packed);
    i64 own = l->k.data ? l->kv_heads : 0;
    while (claim(w, own + s->heads, 1, &from, &to)) {
        if (from < own) {
            float *key = s->k + from * d;
            place_kv(s, l, position, from, key, l->v.data ? s->v + from * d : key, packed);
            continue;
        }
        float *q = s->q + (from - own) * d;
        rms_norm(q, q, l->q_norm, d, s->eps);
        rotate(q, l->cos + position * (d / 2), l->sin + position * (d / 2), d);
    }
    barrier(w);
    i64 first = l->window && position + 1 > l->window ? position + 1 - l->window : 0;
    i64 seen = position + 1 - first, size = part_of(seen), parts = (seen + size - 1) / size;
    while (claim(w, l->kv_heads * parts, 1, &from, &to)) {
        i64 kv = from / parts, part = from % parts, begin = first + part * size;
        attend_part(s, l, kv, part, parts, begin, begin + size < position + 1 ? begin + size : position + 1, s->q, s->scores, packed);
    }
    barrier(w);
    while (claim(w, s->heads, 1, &from, &to)) merge_parts(d, s->scores, from, parts, s->mixed);
    barrier(w);
    Operand o = operand(s->mixed, s->heads * d, l->o.type, packed);
    spread(w, &l->o, &o, s->a);
    barrier(w);
}

