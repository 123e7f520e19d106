// A chunk of a prompt: every product is a matrix times matrix. New keys and values go into the cache first (rings have a
// chunk of slack, so nothing that a query sees is overwritten), then each query attends in place.

typedef struct { float *h, *x, *wide, *other, *ple; void *ready; u32 *packed; float *sums; i64 count; } Chunk;

// Normalise rows of `from` (weight may be 0) into ready rows for the product with m.
static Rows ready_rows(Worker *w, const Chunk *c, const float *from, i64 cols, const float *weight, int norm, i64 type) {
    const Step *s = w->s;
    i64 stride = row_stride(cols), a, b;
    int pairs = use_pairs(s, type);
    while (claim(w, c->count, 8, &a, &b))
        for (i64 r = a; r < b; r++) {
            float *line = c->sums;
            const float *source = from + r * cols;
            if (norm) { rms_norm(line, source, weight, cols, s->eps); source = line; }
            ready_row(row_at(c->ready, r, stride, pairs), source, cols, pairs);
        }
    barrier(w);
    return (Rows){c->ready, c->count, stride, pairs};
}

// out[row][m.rows] = x . m
static void multiply(Worker *w, const Chunk *c, const Matrix *m, const Rows *x, float *out) {
    i64 ticket, end;
    while (claim(w, (m->rows + PANEL - 1) / PANEL, 1, &ticket, &end)) {
        i64 from = ticket * PANEL, width = m->rows - from < PANEL ? m->rows - from : PANEL;
        panel(m, from, from + PANEL * w->s->threads, x, c->packed, c->sums);
        for (i64 r = 0; r < c->count; r++) for (i64 n = 0; n < width; n++) out[r * m->rows + from + n] = c->sums[r * PANEL + n];
    }
    barrier(w);
}

// out[row][count] = gelu(gate) * up for rows of x
static void multiply_gated(Worker *w, const Chunk *c, const Matrix *gate, const Matrix *up, const Rows *x, float *out) {
    i64 ticket, end, n = gate->rows;
    float *second = c->sums + c->count * PANEL;
    while (claim(w, (n + PANEL - 1) / PANEL, 1, &ticket, &end)) {
        i64 from = ticket * PANEL, width = n - from < PANEL ? n - from : PANEL;
        i64 next = from + PANEL * w->s->threads;
        panel(gate, from, next, x, c->packed, c->sums);
        panel(up, from, next, x, c->packed, second);
        for (i64 r = 0; r < c->count; r++)
            for (i64 i = 0; i < width; i++) out[r * n + from + i] = gelu(c->sums[r * PANEL + i]) * second[r * PANEL + i];
    }
    barrier(w);
}

// h += rms(x) * weight for every row
static void add_rows(Worker *w, const Chunk *c, const float *x, const float *weight, float scalar) {
    const Step *s = w->s;
    i64 n = s->hidden, a, b;
    while (claim(w, c->count, 8, &a, &b))
        for (i64 r = a; r < b; r++) {
            float *h = c->h + r * n;
            rms_norm(c->sums, x + r * n, weight, n, s->eps);
            for (i64 i = 0; i < n; i++) h[i] = (h[i] + c->sums[i]) * scalar;
        }
    barrier(w);
}

// Keys and values of the chunk into the cache, and unless `keys_only` the queries, normed and rotated, into c->wide.
static void chunk_heads(Worker *w, const Layer *l, const Call *call, const Chunk *c, int keys_only) {
    const Step *s = w->s;
    i64 d = l->head_dim, width = s->heads * d, kv_width = l->kv_heads * d, own = l->k.data ? l->kv_heads : 0, ticket, end;
    i64 jobs = own + (keys_only ? 0 : s->heads);
    float *q = c->wide, *k = q + c->count * width, *v = k + c->count * kv_width;
    Rows x = ready_rows(w, c, c->h, s->hidden, l->in_norm, 1, l->q.type);
    if (!keys_only) multiply(w, c, &l->q, &x, q);
    if (l->k.data) multiply(w, c, &l->k, &x, k);
    if (l->v.data) multiply(w, c, &l->v, &x, v);
    while (claim(w, c->count * jobs, 8, &ticket, &end))
        for (i64 at = ticket; at < end; at++) {
            i64 row = at / jobs, head = at % jobs, position = call->start + row;
            if (head < own) {
                float *key = k + row * kv_width + head * d;
                place_kv(s, l, position, head, key, l->v.data ? v + row * kv_width + head * d : key, c->sums);
                continue;
            }
            float *line = q + row * width + (head - own) * d;
            rms_norm(line, line, l->q_norm, d, s->eps);
            rotate(line, l->cos + position * (d / 2), l->sin + position * (d / 2), d);
        }
    barrier(w);
}

static void chunk_attention(Worker *w, const Layer *l, const Call *call, const Chunk *c) {
    const Step *s = w->s;
    i64 d = l->head_dim, width = s->heads * d, ticket, end;
    float *q = c->wide, *mixed = c->other;
    const int *until = l->window ? call->until : 0;       // full layers are causal even inside a picture
    chunk_heads(w, l, call, c, 0);
    i64 each = attended_rows(s, l, c->count), blocks = (c->count + each - 1) / each;
    while (claim(w, blocks * l->kv_heads, 1, &ticket, &end)) {
        // late rows see the most: they go first, so that no thread is left with them alone
        i64 row = (blocks - 1 - ticket / l->kv_heads) * each, kv = ticket % l->kv_heads, group = s->heads / l->kv_heads;
        if (each > 1) {
            attend_rows(s, l, call->start + row, until ? until + row : 0, kv, c->count - row < each ? c->count - row : each, q + row * width, mixed + row * width, c->sums, c->packed);
            continue;
        }
        i64 position = call->start + row, first = l->window && position + 1 > l->window ? position + 1 - l->window : 0;
        for (i64 g = 0; g < group; g += GROUP) {
            int heads = (int)(group - g < GROUP ? group - g : GROUP);
            i64 head = kv * group + g;
            attend_range(s, l, kv, first, (until ? until[row] : position) + 1, heads, q + row * width + head * d, mixed + row * width + head * d);
        }
    }
    barrier(w);
    Rows x = ready_rows(w, c, mixed, width, 0, 0, l->o.type);
    multiply(w, c, &l->o, &x, c->x);
    add_rows(w, c, c->x, l->attn_norm, 1.0f);
}

// Rows of one expert through both of its products, into contribution slots [row * top + k][hidden].
static void run_expert(Worker *w, const Layer *l, const Chunk *c, const Rows *x, i64 expert, const int *chosen, float *slots, char *room) {
    const Step *s = w->s;
    i64 ff = s->expert_ff, n = s->hidden, stride = row_stride(n), inner = row_stride(ff), taken = 0;
    int *where = (int *)room, down_pairs = use_pairs(s, l->expert_down.type);
    char *rows = room + c->count * s->top * 4, *hidden = rows + c->count * stride * 4;
    for (i64 i = 0; i < c->count * s->top; i++) if (chosen[i] == expert) {
        __builtin_memcpy(row_at(rows, taken, stride, x->pairs), row_at(x->x, i / s->top, stride, x->pairs), (u64)stride * (x->pairs ? 2 : 4));
        where[taken++] = (int)i;
    }
    if (!taken) return;
    Matrix gate = l->expert_gate_up, up, down = l->expert_down;
    i64 item = gate.type == F32 ? 4 : gate.type == BF16 ? 2 : 1, down_item = down.type == F32 ? 4 : down.type == BF16 ? 2 : 1;
    gate.data = (const char *)gate.data + expert * 2 * ff * n * item;
    gate.scale = gate.scale ? gate.scale + expert * 2 * ff : 0;
    gate.rows = ff;
    up = gate;
    up.data = (const char *)gate.data + ff * n * item;
    up.scale = gate.scale ? gate.scale + ff : 0;
    down.data = (const char *)down.data + expert * n * ff * down_item;
    down.scale = down.scale ? down.scale + expert * n : 0;
    down.rows = n;
    Rows mine = {rows, taken, stride, x->pairs}, then = {hidden, taken, inner, down_pairs};
    float *second = c->sums + c->count * PANEL;
    for (i64 i = 0; i < taken * inner * (down_pairs ? 2 : 4); i++) hidden[i] = 0;
    for (i64 from = 0; from < ff; from += PANEL) {
        i64 width = ff - from < PANEL ? ff - from : PANEL;
        panel(&gate, from, from + PANEL, &mine, c->packed, c->sums);
        panel(&up, from, from + PANEL, &mine, c->packed, second);
        for (i64 r = 0; r < taken; r++) for (i64 i = 0; i < width; i++) {
            float y = gelu(c->sums[r * PANEL + i]) * second[r * PANEL + i];
            if (down_pairs) ((u16 *)hidden)[r * inner + from + i] = to_bf16(y);
            else ((float *)hidden)[r * inner + from + i] = y;
        }
    }
    for (i64 from = 0; from < n; from += PANEL) {
        i64 width = n - from < PANEL ? n - from : PANEL;
        panel(&down, from, from + PANEL, &then, c->packed, c->sums);
        for (i64 r = 0; r < taken; r++) for (i64 i = 0; i < width; i++) slots[where[r] * n + from + i] = c->sums[r * PANEL + i];
    }
}

// The mixture for every row, into c->other [row][hidden].
static void chunk_experts(Worker *w, const Layer *l, const Chunk *c) {
    const Step *s = w->s;
    i64 n = s->hidden, a, b;
    float root = 1.0f / __builtin_sqrtf((float)n), *routed = c->x, *share = c->wide, *slots = share + 2 * c->count * s->top;
    int *chosen = (int *)(share + c->count * s->top);
    i64 stride = row_stride(n);
    int pairs = use_pairs(s, l->router.type);
    while (claim(w, c->count, 8, &a, &b))
        for (i64 r = a; r < b; r++) {
            rms_norm(c->sums, c->h + r * n, 0, n, s->eps);
            for (i64 i = 0; i < n; i++) c->sums[i] *= l->router_scale[i] * root;
            ready_row(row_at(c->ready, r, stride, pairs), c->sums, n, pairs);
        }
    barrier(w);
    Rows x = {c->ready, c->count, stride, pairs};
    multiply(w, c, &l->router, &x, routed);
    while (claim(w, c->count, 8, &a, &b))
        for (i64 r = a; r < b; r++) {
            i64 picked[MAX_EXPERTS];
            top_experts(s, l, routed + r * s->experts, picked, share + r * s->top);
            for (i64 k = 0; k < s->top; k++) chosen[r * s->top + k] = (int)picked[k];
        }
    barrier(w);
    x = ready_rows(w, c, c->h, n, l->pre_ff2, 1, l->expert_gate_up.type);
    char *room = (char *)(c->sums + 2 * c->count * PANEL);
    while (claim(w, s->experts, 1, &a, &b)) run_expert(w, l, c, &x, a, chosen, slots, room);
    barrier(w);
    while (claim(w, c->count, 8, &a, &b))
        for (i64 r = a; r < b; r++) {
            float *out = c->other + r * n;
            for (i64 i = 0; i < n; i++) out[i] = 0;
            for (i64 k = 0; k < s->top; k++)
                for (i64 i = 0; i < n; i++) out[i] += slots[(r * s->top + k) * n + i] * share[r * s->top + k];
        }
    barrier(w);
}

static void chunk_feed_forward(Worker *w, const Layer *l, const Chunk *c, float scalar) {
    const Step *s = w->s;
    i64 n = s->hidden, a, b;
    if (s->experts) chunk_experts(w, l, c);
    Rows x = ready_rows(w, c, c->h, n, l->pre_ff, 1, l->gate.type);
    multiply_gated(w, c, &l->gate, &l->up, &x, c->wide);
    x = ready_rows(w, c, c->wide, l->ff, 0, 0, l->down.type);
    multiply(w, c, &l->down, &x, c->x);
    if (s->experts) {
        while (claim(w, c->count, 8, &a, &b))
            for (i64 r = a; r < b; r++) {
                float *dense = c->x + r * n, *mixed = c->other + r * n;
                rms_norm(dense, dense, l->post_ff1, n, s->eps);
                rms_norm(mixed, mixed, l->post_ff2, n, s->eps);
                for (i64 i = 0; i < n; i++) dense[i] += mixed[i];
            }
        barrier(w);
    }
    add_rows(w, c, c->x, l->post_ff, scalar);
}

static void chunk_layer(Worker *w, i64 index, const Call *call, const Chunk *c) {
    const Step *s = w->s;
    const Layer *l = s->layers + index;
    i64 ticket, end;
    chunk_attention(w, l, call, c);
    chunk_feed_forward(w, l, c, s->ple ? 1.0f : l->scalar);
    if (!s->ple) return;
    Rows x = ready_rows(w, c, c->h, s->hidden, 0, 0, l->ple_gate.type);
    multiply(w, c, &l->ple_gate, &x, c->wide);
    while (claim(w, c->count, 8, &ticket, &end))
        for (i64 r = ticket; r < end; r++)
            for (i64 i = 0; i < s->ple; i++)
                c->wide[r * s->ple + i] = gelu(c->wide[r * s->ple + i]) * c->ple[(r * s->layer_count + index) * s->ple + i];
    barrier(w);
    x = ready_rows(w, c, c->wide, s->ple, 0, 0, l->ple_proj.type);
    multiply(w, c, &l->ple_proj, &x, c->x);
    add_rows(w, c, c->x, l->ple_norm, l->scalar);
}

static void chunk_embed(Worker *w, const Call *call, const Chunk *c) {
    const Step *s = w->s;
    i64 n = s->hidden, a, b, wide = s->layer_count * s->ple;
    while (claim(w, c->count, 8, &a, &b))
        for (i64 r = a; r < b; r++)
            for (i64 i = 0; i < n; i++)
                c->h[r * n + i] = call->soft && call->is_soft[r] ? call->soft[r * n + i] : element(&s->embed, call->ids[r], i) * s->embed_scale;
    barrier(w);
    if (!s->ple) return;
    Rows x = ready_rows(w, c, c->h, n, 0, 0, s->ple_model_proj.type);
    multiply(w, c, &s->ple_model_proj, &x, c->ple);
    float root = 1.0f / __builtin_sqrtf((float)n);
    while (claim(w, c->count, 4, &a, &b))
        for (i64 r = a; r < b; r++)
            for (i64 layer = 0; layer < s->layer_count; layer++) {
                float *context = c->ple + r * wide + layer * s->ple;
                for (i64 i = 0; i < s->ple; i++) context[i] *= root;
                rms_norm(context, context, s->ple_proj_norm, s->ple, s->eps);
                for (i64 i = 0; i < s->ple; i++)
                    context[i] = (context[i] + element(&s->ple_table, call->ids[r], layer * s->ple + i) * s->ple_scale) * 0.70710678f;
            }
    barrier(w);
}

static void run_chunk(Worker *w, const Call *call) {
    const Step *s = w->s;
    i64 n = s->hidden, a, b, layer = 0, last = call->count - 1;
    Chunk c = {s->chunk_h, s->chunk_x, s->chunk_wide, s->chunk_other, s->chunk_ple, s->chunk_ready,
               (u32 *)(s->chunk_room + w->thread * s->chunk_room_per_thread), 0, call->count};
    c.sums = (float *)(c.packed + DEPTH * PANEL);
    chunk_embed(w, call, &c);
    // a prompt is there for its keys and values: the last layer that makes any, and all after it, run for its last row
    for (; layer < (call->every ? s->layer_count : s->first_shared - 1); layer++) chunk_layer(w, layer, call, &c);
    if (!call->every) chunk_heads(w, s->layers + layer, call, &c, 1);
    if (call->every) {
        while (claim(w, call->count, 8, &a, &b)) for (i64 r = a; r < b; r++) rms_norm(call->hidden + r * n, c.h + r * n, s->norm, n, s->eps);
    } else if (call->wanted) {
        float *h = s->scratch + w->thread * s->scratch_per_thread, *scratch = h + n;
        for (i64 i = 0; i < n; i++) h[i] = c.h[last * n + i];
        if (s->ple && w->thread == 0)
            for (i64 i = 0; i < s->layer_count * s->ple; i++) s->ple_in[i] = c.ple[last * s->layer_count * s->ple + i];
        barrier(w);
        for (; layer < s->layer_count; layer++) run_layer(w, layer, call->start + last, h, scratch);
        head(w, h, scratch);
        return;
    }
    barrier(w);
    reset_tickets(w);
}
