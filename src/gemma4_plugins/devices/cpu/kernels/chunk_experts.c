// The mixture of experts for several rows: each expert multiplies the rows that chose it, gathered.

typedef struct { char *rows; Marks *marks; u32 *tiles; } Gathered;

// `taken` rows, made ready in room of this thread's own, as an operand.
static Ready gathered(int form, const Matrix *m, const Gathered *g, i64 taken, i64 stride, int pairs) {
#if AMX
    if (form == TILES)
        for (i64 group = 0; group * COLUMNS < taken; group++) turn_digits(g->rows, 4 * stride, words_of(m), group, taken, 0, 0, words_of(m), g->tiles);
#endif
    return (Ready){{g->rows, taken, stride, pairs}, form, g->marks, g->tiles};
}

// The same rows of an expert's part of a stack.
static Matrix part_of_stack(const Matrix *stack, i64 from, i64 rows) {
    return (Matrix){(const char *)stack->data + from * stack->cols * bytes_of(stack->type), stack->scale ? stack->scale + from : 0, stack->type, rows, stack->cols};
}

// Rows of one expert through both of its products, into contribution slots [row * top + k][hidden].
static void run_expert(Worker *w, const Layer *l, const Chunk *c, const Ready *x, int down_form, i64 expert, const int *chosen, float *slots, char *room) {
    const Step *s = w->s;
    i64 ff = s->expert_ff, n = s->hidden, stride = row_stride(n), inner = row_stride(ff), taken = 0, most = c->count * s->top;
    i64 pitch = ready_pitch(stride, x->rows.pairs), wide = stride > inner ? stride : inner;
    int *where = (int *)room, down_pairs = pairs_in(s, down_form, l->expert_down.type);
    Gathered mine = {room + (most + 15) / 16 * 64, 0, 0};
    float *hidden = (float *)(mine.rows + c->count * wide * 4);
    mine.marks = (Marks *)(hidden + c->count * inner);
    mine.tiles = (u32 *)(mine.marks + c->count + (-c->count & 3));
    for (i64 i = 0; i < most; i++) if (chosen[i] == expert) {
        __builtin_memcpy(mine.rows + taken * pitch, (const char *)x->rows.x + i / s->top * pitch, (u64)pitch);
        mine.marks[taken] = x->marks[i / s->top];
        where[taken++] = (int)i;
    }
    if (!taken) return;
    Matrix gate = part_of_stack(&l->expert_gate_up, expert * 2 * ff, ff), up = part_of_stack(&l->expert_gate_up, expert * 2 * ff + ff, ff);
    Matrix down = part_of_stack(&l->expert_down, expert * n, n);
    Ready rows = gathered(x->form, &gate, &mine, taken, stride, x->rows.pairs);
    gated_block(c, &gate, &up, 0, ff, PANEL, &rows, hidden, ff);
    for (i64 r = 0; r < taken; r++) ready_line(&down, down_form, down_pairs, hidden + r * ff, ff, mine.rows + r * ready_pitch(inner, down_pairs), mine.marks + r);
    rows = gathered(down_form, &down, &mine, taken, inner, down_pairs);
    for (i64 from = 0; from < n; from += PANEL) {
        i64 width = n - from < PANEL ? n - from : PANEL;
        float *sums = c->sums + taken * PANEL;
        multiply_block(c, &down, from, from + width, from + PANEL, &rows, sums, PANEL);
        for (i64 r = 0; r < taken; r++) for (i64 i = 0; i < width; i++) slots[where[r] * n + from + i] = sums[r * PANEL + i];
    }
}

// The mixture for every row, into c->other [row][hidden].
static void chunk_experts(Worker *w, const Layer *l, const Chunk *c) {
    const Step *s = w->s;
    i64 n = s->hidden, a, b;
    float root = 1.0f / __builtin_sqrtf((float)n), *routed = c->x, *share = c->wide, *slots = share + 2 * c->count * s->top;
    int *chosen = (int *)(share + c->count * s->top);
    while (claim(w, c->count, few_of(c), &a, &b))
        for (i64 r = a; r < b; r++) {
            float *line = c->other + r * n;
            rms_norm(line, c->h + r * n, 0, n, s->eps);
            for (i64 i = 0; i < n; i++) line[i] *= l->router_scale[i] * root;
        }
    barrier(w);
    Ready x = ready_operands(w, c, c->other, 0, 0, &l->router, form_for(s, c->count, &l->router));
    multiply(w, c, &l->router, &x, routed);
    while (claim(w, c->count, few_of(c), &a, &b))
        for (i64 r = a; r < b; r++) {
            i64 picked[MAX_EXPERTS];
            top_experts(s, l, routed + r * s->experts, picked, share + r * s->top);
            for (i64 k = 0; k < s->top; k++) chosen[r * s->top + k] = (int)picked[k];
        }
    barrier(w);
    i64 usual = (c->count * s->top + s->experts - 1) / s->experts;   // rows of an expert
    x = ready_rows(w, c, c->h, l->pre_ff2, 1, &l->expert_gate_up, form_for(s, usual, &l->expert_gate_up));
    char *room = (char *)(c->sums + 2 * c->count * PANEL);
    while (claim(w, s->experts, 1, &a, &b)) run_expert(w, l, c, &x, form_for(s, usual, &l->expert_down), a, chosen, slots, room);
    barrier(w);
    while (claim(w, c->count, few_of(c), &a, &b))
        for (i64 r = a; r < b; r++) {
            float *out = c->other + r * n;
            for (i64 i = 0; i < n; i++) out[i] = 0;
            for (i64 k = 0; k < s->top; k++)
                for (i64 i = 0; i < n; i++) out[i] += slots[(r * s->top + k) * n + i] * share[r * s->top + k];
        }
    barrier(w);
}
