// One row: embedding, layers, head.

static void embed(Worker *w, u32 token, float *h, float *scratch) {
    const Step *s = w->s;
    i64 from, to;
    for (i64 i = 0; i < s->hidden; i++) h[i] = element(&s->embed, token, i) * s->embed_scale;
    if (!s->ple) return;
    Operand o = operand(h, s->hidden, s->ple_model_proj.type, scratch);
    spread(w, &s->ple_model_proj, &o, s->ple_ctx);
    barrier(w);
    float root = 1.0f / __builtin_sqrtf((float)s->hidden);
    while (claim(w, s->layer_count, 1, &from, &to)) {
        float *context = s->ple_ctx + from * s->ple;
        for (i64 i = 0; i < s->ple; i++) context[i] *= root;
        rms_norm(context, context, s->ple_proj_norm, s->ple, s->eps);
        for (i64 i = 0; i < s->ple; i++) {
            float row = element(&s->ple_table, token, from * s->ple + i) * s->ple_scale;
            s->ple_in[from * s->ple + i] = (context[i] + row) * 0.70710678f;
        }
    }
    barrier(w);
}

static void reset_tickets(Worker *w) {                    // after the last barrier: nobody claims any more
    if (w->thread == 0) for (int i = 0; i < 3; i++) w->s->sync[32 + 16 * i] = 0;
}

// What is made of the products of a block of the head: logits of a row, the largest and the sum of exponentials.
static void finish_block(const Step *s, i64 from, i64 to, float *logits, float *partial) {
    float top = -1e30f, total = 0, shares[HEAD_BLOCK], *mine = partial + from / HEAD_BLOCK * 4;
    if (s->softcap > 0) for (i64 i = from; i < to; i++) logits[i] = s->softcap * tangent(logits[i] / s->softcap);
    for (i64 j = 0; j < s->suppressed_count; j++)
        if ((i64)s->suppressed[j] >= from && (i64)s->suppressed[j] < to) logits[s->suppressed[j]] = -1e30f;
    for (i64 i = from; i < to; i++) top = logits[i] > top ? logits[i] : top;
    i64 best = from;
    while (best < to - 1 && logits[best] != top) best++;
    for (i64 i = from; i < to; i++) shares[i - from] = exponential(logits[i] - top);
    for (i64 i = 0; i < to - from; i++) total += shares[i];
    mine[0] = top;
    mine[1] = total;
    ((u32 *)mine)[2] = (u32)best;
}

// The choice of a row from its logits and what is known of their blocks, which are summed up in their order, so that the
// result does not depend on which thread took which.
static void finish_row(Worker *w, const Call *c, i64 row) {
    const Step *s = w->s;
    const float *blocks = c->partial + row * ((s->vocab + HEAD_BLOCK - 1) / HEAD_BLOCK) * 4;
    float top = blocks[0], total = blocks[1];
    u32 best = ((const u32 *)blocks)[2];
    for (i64 block = 1; block * HEAD_BLOCK < s->vocab; block++) {
        const float *other = blocks + block * 4;
        if (other[0] > top) {
            total *= exponential(top - other[0]);
            top = other[0];
            best = ((const u32 *)other)[2];
        }
        total += other[1] * exponential(other[0] - top);
    }
    float all = top + logarithm(total);
    c->tokens[row] = c->params ? choose(w, c, row, best) : best;
    c->logprobs[row] = c->params ? c->logits[row * s->vocab + c->tokens[row]] - all : -logarithm(total);
}

static void head(Worker *w, const Call *c, const float *h, float *scratch) {
    const Step *s = w->s;
    i64 from, to, first, last;
    float *x = scratch, *packed = scratch + s->hidden;
    rms_norm(x, h, s->norm, s->hidden, s->eps);
    Operand o = operand(x, s->hidden, s->embed.type, packed);
    while (claim_shrinking(w, (s->vocab + HEAD_BLOCK - 1) / HEAD_BLOCK, 1, &first, &last)) {
        from = first * HEAD_BLOCK;
        to = last * HEAD_BLOCK < s->vocab ? last * HEAD_BLOCK : s->vocab;
        dot_rows(&s->embed, from, to - from, &o, c->logits + from);
        for (; from < to; from += HEAD_BLOCK) finish_block(s, from, from + HEAD_BLOCK < to ? from + HEAD_BLOCK : to, c->logits, c->partial);
    }
    barrier(w);
    reset_tickets(w);
    if (w->thread == 0) finish_row(w, c, 0);
}

static void run_layer(Worker *w, const Layer *l, i64 index, i64 position, float *h, float *scratch) {
    const Step *s = w->s;
    attention(w, l, position, h, scratch);
    add_normed(s, h, s->a, l->attn_norm, scratch);
    feed_forward(w, l, h, scratch);
    if (s->ple) per_layer(w, l, index, h, scratch);
    for (i64 j = 0; j < s->hidden; j++) h[j] *= l->scalar;
}

static void run_decode(Worker *w, const Call *c) {
    const Layer *layers = w->s->slots[*c->slot];
    float *h = w->s->scratch + w->thread * w->s->scratch_per_thread, *scratch = h + w->s->hidden;
    embed(w, *c->ids, h, scratch);
    for (i64 i = 0; i < w->s->layer_count; i++) run_layer(w, layers + i, i, *c->position, h, scratch);
    head(w, c, h, scratch);
}
