// Rows of a chunk against matrices: rows are made ready in the form that suits their number, then threads claim blocks of
// weight rows.

typedef struct {
    float *h, *x, *wide, *other, *ple;
    u32 *packed;
    float *sums;
    i64 count, runs;
    const int *slot, *position, *first, *until;            // see Call
} Chunk;

// Rows of a claim where each row is work of its own.
static inline i64 few_of(const Chunk *c) { return c->count < 64 ? 1 : 8; }

// One row of fp32 in a form for products with m, and its marks.
static void ready_line(const Matrix *m, int form, int pairs, const float *x, i64 cols, char *to, Marks *mark) {
    if (form == PANELS || form == PLAIN) ready_row(to, x, cols, pairs);
    else if (m->type == I8) {
        Operand o = operand(x, cols, I8, (float *)to);
        *mark = (Marks){o.scale, o.sum_high, o.sum_low, 0};
    } else {
        u16 *high = (u16 *)to, *low = high + cols;
        for (i64 i = 0; i < cols; i++) {
            high[i] = to_bf16(x[i]);
            low[i] = to_bf16(x[i] - from_bf16(high[i]));
        }
    }
}

// Bytes between rows.
static inline i64 ready_pitch(i64 stride, int pairs) { return stride * (pairs ? 2 : 4); }

// Normalise rows of `from` (weight may be 0) into ready rows for products with m and others of its size.
static Ready ready_rows(Worker *w, const Chunk *c, const float *from, const float *weight, int norm, const Matrix *m, int form) {
    const Step *s = w->s;
    i64 cols = m->cols, stride = row_stride(cols), begin, end;
    int pairs = pairs_in(s, form, m->type);
    char *rows = (char *)s->chunk_ready;
    Marks *marks = (Marks *)s->chunk_marks;
    while (claim(w, c->count, few_of(c), &begin, &end))
        for (i64 r = begin; r < end; r++) {
            const float *source = from + r * cols;
            if (norm) { rms_norm(c->sums, source, weight, cols, s->eps); source = c->sums; }
            ready_line(m, form, pairs, source, cols, rows + r * ready_pitch(stride, pairs), marks + r);
        }
    barrier(w);
    return (Ready){{rows, c->count, stride, pairs}, form, marks, (const u32 *)s->chunk_tiles};
}

// What a thread makes ready for itself: a barrier costs more than so few values, the more so where threads wait for cores.
enum { OWN_ROWS = 16, OWN_COLS = 4096, OWN_VALUES = 12288, OWN_ROOM = OWN_VALUES + 32 * OWN_ROWS, OWN_FLOATS = OWN_ROOM + 4 * OWN_ROWS + OWN_ROWS * OWN_COLS };

static Ready ready_own(Worker *w, const Chunk *c, const float *from, const float *weight, int norm, const Matrix *m, int form) {
    i64 cols = m->cols, stride = row_stride(cols);
    int pairs = pairs_in(w->s, form, m->type);
    float *room = w->s->chunk_own + w->thread * OWN_FLOATS, *tiles = room + OWN_ROOM + 4 * OWN_ROWS;
    Marks *marks = (Marks *)(room + OWN_ROOM);
    for (i64 r = 0; r < c->count; r++) {
        const float *source = from + r * cols;
        if (norm) { rms_norm(c->sums, source, weight, cols, w->s->eps); source = c->sums; }
        ready_line(m, form, pairs, source, cols, (char *)room + r * ready_pitch(stride, pairs), marks + r);
    }
#if AMX
    if (form == TILES) turn_digits((const char *)room, stride * 4, words_of(m), 0, c->count, 0, 0, words_of(m), (u32 *)tiles);
#endif
    return (Ready){{room, c->count, stride, pairs}, form, marks, (const u32 *)tiles};
}

// The same with the right sides of tile registers.
static Ready ready_operands(Worker *w, const Chunk *c, const float *from, const float *weight, int norm, const Matrix *m, int form) {
    if (form != PANELS && c->count <= OWN_ROWS && m->cols <= OWN_COLS && c->count * m->cols <= OWN_VALUES) return ready_own(w, c, from, weight, norm, m, form);
    Ready x = ready_rows(w, c, from, weight, norm, m, form);
#if AMX
    if (x.form != TILES) return x;
    i64 words = words_of(m), each = words / 16, groups = (c->count + COLUMNS - 1) / COLUMNS, begin, end;
    while (claim(w, groups * each, 8, &begin, &end))
        for (i64 at = begin; at < end; at++)
            turn_digits((const char *)x.rows.x, x.rows.stride * 4, words, at / each, c->count, 0, at % each * 16, at % each * 16 + 16, (u32 *)w->s->chunk_tiles);
    barrier(w);
#endif
    return x;
}

// Weight rows [from, to) of m times all rows of x: out[row of x][to - from of `stride`]. In panels `next` are the weight rows
// that this thread will probably have after these.
static void multiply_block(const Chunk *c, const Matrix *m, i64 from, i64 to, i64 next, const Ready *x, float *out, i64 stride) {
    if (x->form == PANELS) {
        for (; from < to; from += PANEL, out += PANEL) {
            i64 width = to - from < PANEL ? to - from : PANEL;
            panel(m, from, from + PANEL < to ? from + PANEL : next, &x->rows, c->packed, c->sums);
            for (i64 r = 0; r < x->rows.rows; r++) for (i64 n = 0; n < width; n++) out[r * stride + n] = c->sums[r * PANEL + n];
        }
        return;
    }
#if AMX
    if (x->form == TILES) { few_tiles(m, from, to, x, out, stride); return; }
#endif
#if VNNI
    if (x->form == DIGITS) { few_digits(m, from, to, x, out, stride); return; }
#endif
#if PAIRS && !AMX
    if (x->rows.pairs && m->type == BF16) { few_plain(m, from, to, BF16, &x->rows, 1, out, stride); return; }
    if (x->rows.pairs) { few_plain(m, from, to, I8, &x->rows, 1, out, stride); return; }
#endif
    if (m->type == F32) few_plain(m, from, to, F32, &x->rows, 0, out, stride);
    else if (m->type == BF16) few_plain(m, from, to, BF16, &x->rows, 0, out, stride);
    else few_plain(m, from, to, I8, &x->rows, 0, out, stride);
}

enum { FEW_BLOCK = 32 };                                   // weight rows that few rows multiply at a time

// The next weight rows of this phase: [*from, *to), 0 where none is left.
static int claim_rows(Worker *w, const Matrix *m, i64 rows, int form, i64 *from, i64 *to) {
    i64 block = form == PANELS ? PANEL : FEW_BLOCK, blocks = (rows + block - 1) / block;
    if (!(form == PANELS ? claim(w, blocks, 1, from, to) : claim_shrinking(w, blocks, (least_of(m) + block - 1) / block, from, to))) return 0;
    *from *= block;
    *to = *to * block < rows ? *to * block : rows;
    return 1;
}

// out[row][m.rows] = x . m
static void multiply(Worker *w, const Chunk *c, const Matrix *m, const Ready *x, float *out) {
    i64 from, to;
    while (claim_rows(w, m, m->rows, x->form, &from, &to)) multiply_block(c, m, from, to, from + PANEL * w->s->threads, x, out + from, m->rows);
    barrier(w);
}

// Several matrices as one phase; those without data are left out.
static void multiply_each(Worker *w, const Chunk *c, const Matrix *const *m, int matrices, const Ready *x, float *const *out) {
    i64 from, to, rows = 0, edge = x->form == PANELS ? PANEL : FEW_BLOCK;
    for (int i = 0; i < matrices; i++) rows += m[i]->data ? (m[i]->rows + edge - 1) / edge * edge : 0;
    while (claim_rows(w, m[0], rows, x->form, &from, &to)) {
        i64 at = 0;                                        // of the matrix's rows among all
        for (int i = 0; i < matrices; i++) {
            if (!m[i]->data) continue;
            i64 begin = from > at ? from - at : 0, end = to - at < m[i]->rows ? to - at : m[i]->rows;
            at += (m[i]->rows + edge - 1) / edge * edge;
            if (begin < end) multiply_block(c, m[i], begin, end, begin + PANEL * w->s->threads, x, out[i] + begin, m[i]->rows);
        }
    }
    barrier(w);
}

// out[row of x][to - from of `stride`] = gelu(gate) * up of rows [from, to) of both
static void gated_block(const Chunk *c, const Matrix *gate, const Matrix *up, i64 from, i64 to, i64 next, const Ready *x, float *out, i64 stride) {
    float *second = c->sums + x->rows.rows * PANEL;
    multiply_block(c, gate, from, to, next, x, out, stride);
    for (i64 at = from; at < to; at += PANEL, out += PANEL) {
        i64 width = to - at < PANEL ? to - at : PANEL;
        multiply_block(c, up, at, at + width, next, x, second, PANEL);
        for (i64 r = 0; r < x->rows.rows; r++)
            for (i64 i = 0; i < width; i++) out[r * stride + i] = gelu(out[r * stride + i]) * second[r * PANEL + i];
    }
}

static void multiply_gated(Worker *w, const Chunk *c, const Matrix *gate, const Matrix *up, const Ready *x, float *out) {
    i64 from, to;
    while (claim_rows(w, gate, gate->rows, x->form, &from, &to)) gated_block(c, gate, up, from, to, from + PANEL * w->s->threads, x, out + from, gate->rows);
    barrier(w);
}
