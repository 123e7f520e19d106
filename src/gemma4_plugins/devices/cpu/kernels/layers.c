// The parts of a layer for one position.

// Every thread keeps the same stream; thread 0's is the shared one. h += rms(x) * weight.
static void add_normed(const Step *s, float *h, const float *x, const float *weight, float *scratch) {
    rms_norm(scratch, x, weight, s->hidden, s->eps);
    for (i64 i = 0; i < s->hidden; i++) h[i] += scratch[i];
}

static void top_experts(const Step *s, const Layer *l, const float *scores, i64 *chosen, float *weight) {
    float best = -1e30f, total = 0, picked = 0;
    for (i64 e = 0; e < s->experts; e++) best = scores[e] > best ? scores[e] : best;
    for (i64 e = 0; e < s->experts; e++) total += exponential(scores[e] - best);
    for (i64 k = 0; k < s->top; k++) {
        i64 at = -1;
        for (i64 e = 0; e < s->experts; e++) {
            int taken = 0;
            for (i64 j = 0; j < k; j++) taken |= chosen[j] == e;
            if (!taken && (at < 0 || scores[e] > scores[at])) at = e;
        }
        chosen[k] = at;
        weight[k] = exponential(scores[at] - best) / total;
        picked += weight[k];
    }
    for (i64 k = 0; k < s->top; k++) weight[k] = weight[k] / picked * l->expert_scale[chosen[k]];
}

// The mixture of experts of stream h into s->b (unnormalised sum); uses the dense branch's barrier rhythm.
static void experts(Worker *w, const Layer *l, const float *h, float *scratch) {
    const Step *s = w->s;
    i64 n = s->hidden, chosen[MAX_EXPERTS], from, to, ff = s->expert_ff;
    float weight[MAX_EXPERTS], *x = scratch, *packed = scratch + n, root = 1.0f / __builtin_sqrtf((float)n);
    rms_norm(x, h, 0, n, s->eps);
    for (i64 i = 0; i < n; i++) x[i] *= l->router_scale[i] * root;
    Operand o = operand(x, n, l->router.type, packed);
    spread(w, &l->router, &o, s->router_out);
    barrier(w);
    top_experts(s, l, s->router_out, chosen, weight);
    rms_norm(x, h, l->pre_ff2, n, s->eps);
    o = operand(x, n, l->expert_gate_up.type, packed);
    i64 block = block_of(&l->expert_gate_up, s->top * ff, s->threads), blocks = (ff + block - 1) / block;
    while (claim(w, s->top * blocks, 1, &from, &to)) {
        i64 k = from / blocks, begin = from % blocks * block, end = begin + block < ff ? begin + block : ff;
        gated(&l->expert_gate_up, chosen[k] * 2 * ff + begin, &l->expert_gate_up, chosen[k] * 2 * ff + ff + begin, end - begin, &o, s->act + k * ff + begin);
    }
    barrier(w);
    Operand each[MAX_EXPERTS];
    for (i64 k = 0; k < s->top; k++) each[k] = operand(s->act + k * ff, ff, l->expert_down.type, packed + k * ff);
    while (claim(w, n, block_of(&l->expert_down, n, s->threads), &from, &to)) {
        float part[MOST];
        for (i64 i = from; i < to; i++) s->b[i] = 0;
        for (i64 k = 0; k < s->top; k++) {
            dot_rows(&l->expert_down, chosen[k] * n + from, to - from, &each[k], part);
            for (i64 i = from; i < to; i++) s->b[i] += part[i - from] * weight[k];
        }
    }
    barrier(w);
}

static void feed_forward(Worker *w, const Layer *l, float *h, float *scratch) {
    const Step *s = w->s;
    i64 n = s->hidden, from, to;
    float *x = scratch, *packed = scratch + n;
    if (s->experts) experts(w, l, h, scratch);
    rms_norm(x, h, l->pre_ff, n, s->eps);
    Operand o = operand(x, n, l->gate.type, packed);
    while (claim_shrinking(w, l->ff, least_of(&l->gate), &from, &to)) gated(&l->gate, from, &l->up, from, to - from, &o, s->act + from);
    barrier(w);
    o = operand(s->act, l->ff, l->down.type, packed);
    spread(w, &l->down, &o, s->a);
    barrier(w);
    if (s->experts) {
        rms_norm(x, s->a, l->post_ff1, n, s->eps);
        rms_norm(packed, s->b, l->post_ff2, n, s->eps);
        for (i64 i = 0; i < n; i++) x[i] += packed[i];
        add_normed(s, h, x, l->post_ff, packed);
    } else {
        add_normed(s, h, s->a, l->post_ff, x);
    }
}

static void per_layer(Worker *w, const Layer *l, i64 index, float *h, float *scratch) {
    const Step *s = w->s;
    float *packed = scratch;
    i64 from, to;
    Operand o = operand(h, s->hidden, l->ple_gate.type, packed);
    while (claim_shrinking(w, s->ple, least_of(&l->ple_gate), &from, &to)) {
        dot_rows(&l->ple_gate, from, to - from, &o, s->act + from);
        for (i64 i = from; i < to; i++) s->act[i] = gelu(s->act[i]) * s->ple_in[index * s->ple + i];
    }
    barrier(w);
    o = operand(s->act, s->ple, l->ple_proj.type, packed);
    spread(w, &l->ple_proj, &o, s->a);
    barrier(w);
    add_normed(s, h, s->a, l->ple_norm, packed);
}

