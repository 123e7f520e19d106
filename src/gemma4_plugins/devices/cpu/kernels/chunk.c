// Rows of one or several slots: a chunk of a prompt, a token of each of many conversations, or both. Every product is a matrix
// times matrix. New keys and values go into the cache first (rings have a chunk of slack, so nothing that a query sees is
// overwritten), then each query attends in place.

// h += rms(x) * weight for every row
static void add_rows(Worker *w, const Chunk *c, const float *x, const float *weight, float scalar) {
    const Step *s = w->s;
    i64 n = s->hidden, a, b;
    while (claim(w, c->count, few_of(c), &a, &b))
        for (i64 r = a; r < b; r++) {
            float *h = c->h + r * n;
            rms_norm(c->sums, x + r * n, weight, n, s->eps);
            for (i64 i = 0; i < n; i++) h[i] = (h[i] + c->sums[i]) * scalar;
        }
    barrier(w);
}

// Keys and values of the rows into the cache, and unless `keys_only` the queries, normed and rotated, into c->wide.
static void chunk_heads(Worker *w, const Layer *l, const Chunk *c, int keys_only) {
    const Step *s = w->s;
    i64 d = l->head_dim, width = s->heads * d, kv_width = l->kv_heads * d, own = l->k.data ? l->kv_heads : 0, ticket, end;
    i64 jobs = own + (keys_only ? 0 : s->heads);
    float *q = c->wide, *k = q + c->count * width, *v = k + c->count * kv_width;
    const Matrix *m[3] = {&l->q, &l->k, &l->v};
    float *out[3] = {q, k, v};
    Ready x = ready_operands(w, c, c->h, l->in_norm, 1, &l->q, form_of(s, c->count, &l->q, &l->k, &l->v));
    multiply_each(w, c, m + keys_only, 3 - keys_only, &x, out + keys_only);
    while (claim(w, c->count * jobs, few_of(c), &ticket, &end))
        for (i64 at = ticket; at < end; at++) {
            i64 row = at / jobs, head = at % jobs, position = c->position[row];
            if (head < own) {
                float *key = k + row * kv_width + head * d;
                place_kv(s, layer_of(s, l, c->slot[row]), position, head, key, l->v.data ? v + row * kv_width + head * d : key, c->sums);
                continue;
            }
            float *line = q + row * width + (head - own) * d;
            rms_norm(line, line, l->q_norm, d, s->eps);
            rotate(line, l->cos + position * (d / 2), l->sin + position * (d / 2), d);
        }
    barrier(w);
}

static void chunk_attention(Worker *w, const Layer *l, const Chunk *c) {
    const Step *s = w->s;
    chunk_heads(w, l, c, 0);
    attend_slots(w, l, c);
    Ready x = ready_operands(w, c, c->other, 0, 0, &l->o, form_for(s, c->count, &l->o));
    multiply(w, c, &l->o, &x, c->x);
    add_rows(w, c, c->x, l->attn_norm, 1.0f);
}

static void chunk_feed_forward(Worker *w, const Layer *l, const Chunk *c, float scalar) {
    const Step *s = w->s;
    i64 n = s->hidden, a, b;
    const Matrix none = {0};
    if (s->experts) chunk_experts(w, l, c);
    Ready x = ready_operands(w, c, c->h, l->pre_ff, 1, &l->gate, form_of(s, c->count, &l->gate, &l->up, &none));
    multiply_gated(w, c, &l->gate, &l->up, &x, c->wide);
    x = ready_operands(w, c, c->wide, 0, 0, &l->down, form_for(s, c->count, &l->down));
    multiply(w, c, &l->down, &x, c->x);
    if (s->experts) {
        while (claim(w, c->count, few_of(c), &a, &b))
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

static void chunk_layer(Worker *w, i64 index, const Chunk *c) {
    const Step *s = w->s;
    const Layer *l = s->layers + index;
    i64 ticket, end;
    chunk_attention(w, l, c);
    chunk_feed_forward(w, l, c, s->ple ? 1.0f : l->scalar);
    if (!s->ple) return;
    Ready x = ready_operands(w, c, c->h, 0, 0, &l->ple_gate, form_for(s, c->count, &l->ple_gate));
    multiply(w, c, &l->ple_gate, &x, c->wide);
    while (claim(w, c->count, few_of(c), &ticket, &end))
        for (i64 r = ticket; r < end; r++)
            for (i64 i = 0; i < s->ple; i++)
                c->wide[r * s->ple + i] = gelu(c->wide[r * s->ple + i]) * c->ple[(r * s->layer_count + index) * s->ple + i];
    barrier(w);
    x = ready_operands(w, c, c->wide, 0, 0, &l->ple_proj, form_for(s, c->count, &l->ple_proj));
    multiply(w, c, &l->ple_proj, &x, c->x);
    add_rows(w, c, c->x, l->ple_norm, l->scalar);
}

static void chunk_embed(Worker *w, const Call *call, const Chunk *c) {
    const Step *s = w->s;
    i64 n = s->hidden, a, b, wide = s->layer_count * s->ple;
    while (claim(w, c->count, few_of(c), &a, &b))
        for (i64 r = a; r < b; r++)
            for (i64 i = 0; i < n; i++)
                c->h[r * n + i] = call->soft && call->is_soft[r] ? call->soft[r * n + i] : element(&s->embed, call->ids[r], i) * s->embed_scale;
    barrier(w);
    if (!s->ple) return;
    Ready x = ready_operands(w, c, c->h, 0, 0, &s->ple_model_proj, form_for(s, c->count, &s->ple_model_proj));
    multiply(w, c, &s->ple_model_proj, &x, c->ple);
    float root = 1.0f / __builtin_sqrtf((float)n);
    while (claim(w, c->count * s->layer_count, 32, &a, &b))
        for (i64 at = a; at < b; at++) {
            i64 r = at / s->layer_count, layer = at % s->layer_count;
            float *context = c->ple + r * wide + layer * s->ple;
            for (i64 i = 0; i < s->ple; i++) context[i] *= root;
            rms_norm(context, context, s->ple_proj_norm, s->ple, s->eps);
            for (i64 i = 0; i < s->ple; i++)
                context[i] = (context[i] + element(&s->ple_table, call->ids[r], layer * s->ple + i) * s->ple_scale) * 0.70710678f;
        }
    barrier(w);
}

// Logits and choices of all rows.
static void chunk_head(Worker *w, const Call *call, const Chunk *c) {
    const Step *s = w->s;
    i64 blocks = (s->vocab + HEAD_BLOCK - 1) / HEAD_BLOCK, first, last, a, b;
    Ready x = ready_operands(w, c, c->h, s->norm, 1, &s->embed, form_for(s, c->count, &s->embed));
    while (claim_shrinking(w, blocks, 1, &first, &last))
        for (i64 block = first; block < last; block++) {
            i64 from = block * HEAD_BLOCK, to = from + HEAD_BLOCK < s->vocab ? from + HEAD_BLOCK : s->vocab;
            multiply_block(c, &s->embed, from, to, to, &x, call->logits + from, s->vocab);
            for (i64 r = 0; r < c->count; r++) finish_block(s, from, to, call->logits + r * s->vocab, call->partial + r * blocks * 4);
        }
    barrier(w);
    while (claim(w, c->count, 1, &a, &b)) finish_row(w, call, a);
    barrier(w);
}

// Go on with the wanted rows alone.
static void keep_wanted(Worker *w, const Call *call, Chunk *c) {
    const Step *s = w->s;
    i64 n = s->hidden, wide = s->layer_count * s->ple;
    if (w->thread == 0)                                    // in place: a row moves to a lower number, or stays
        for (i64 m = 0; m < call->wanted_count; m++) {
            i64 r = call->wanted[m];
            for (i64 i = 0; i < n; i++) c->h[m * n + i] = c->h[r * n + i];
            for (i64 i = 0; i < wide; i++) c->ple[m * wide + i] = c->ple[r * wide + i];
        }
    barrier(w);
    c->count = c->runs = call->wanted_count;
    c->slot = call->wanted_slot;
    c->position = call->wanted_position;
    c->first = call->alone;
    c->until = 0;
}

// The rest of the layers and the head for a single row.
static void finish_alone(Worker *w, const Call *call, const Chunk *c, i64 layer) {
    const Step *s = w->s;
    i64 n = s->hidden, last = *call->wanted;
    float *h = s->scratch + w->thread * s->scratch_per_thread, *scratch = h + n;
    for (i64 i = 0; i < n; i++) h[i] = c->h[last * n + i];
    if (s->ple && w->thread == 0)
        for (i64 i = 0; i < s->layer_count * s->ple; i++) s->ple_in[i] = c->ple[last * s->layer_count * s->ple + i];
    barrier(w);
    for (; layer < s->layer_count; layer++) run_layer(w, s->slots[*call->wanted_slot] + layer, layer, *call->wanted_position, h, scratch);
    head(w, call, h, scratch);
}

static void run_chunk(Worker *w, const Call *call) {
    const Step *s = w->s;
    i64 n = s->hidden, a, b, layer = 0, all = call->wanted_count == call->count;
    Chunk c = {s->chunk_h, s->chunk_x, s->chunk_wide, s->chunk_other, s->chunk_ple,
               (u32 *)(s->chunk_room + w->thread * s->chunk_room_per_thread), 0, call->count, call->runs,
               call->slot, call->position, call->first, call->until};
    c.sums = (float *)(c.packed + DEPTH * PANEL);
    chunk_embed(w, call, &c);
    // a prompt is there for its keys and values: the last layer that makes any, and all after it, run for wanted rows
    for (; layer < (all ? s->layer_count : s->first_shared - 1); layer++) chunk_layer(w, layer, &c);
    if (!all) chunk_heads(w, s->layers + layer, &c, 1);
    if (!all && call->wanted_count == 1 && !call->hidden) {
        finish_alone(w, call, &c, layer);
        return;
    }
    if (!all && call->wanted_count) {
        keep_wanted(w, call, &c);
        for (; layer < s->layer_count; layer++) chunk_layer(w, layer, &c);
    }
    if (call->hidden) {
        while (claim(w, c.count, few_of(&c), &a, &b)) for (i64 r = a; r < b; r++) rms_norm(call->hidden + r * n, c.h + r * n, s->norm, n, s->eps);
        barrier(w);
    }
    if (call->logits) chunk_head(w, call, &c);
    reset_tickets(w);
}
