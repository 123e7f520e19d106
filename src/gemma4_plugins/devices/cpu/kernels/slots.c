// Attention of rows of several slots. Prompts, which have several rows in a slot, attend as products (rows.c); a row that is
// alone in its slot attends by parts of its context. All parts are of about one length, so that threads share the work out
// whatever the lengths are.

// The layer with the keys and values of a slot.
static inline const Layer *layer_of(const Step *s, const Layer *l, i64 slot) { return s->slots[slot] + (l - s->layers); }

typedef struct { i64 first, seen; } Sight;                 // the first position that a row sees, and how many there are

static inline Sight sight_of(const Layer *l, i64 position) {
    i64 first = l->window && position + 1 > l->window ? position + 1 - l->window : 0;
    return (Sight){first, position + 1 - first};
}

static inline i64 run_length(const Chunk *c, i64 run) { return c->first[run + 1] - c->first[run]; }

// Positions of a part: as part_of for one row, whose context is that of all rows that are alone.
static i64 common_part(const Layer *l, const Chunk *c) {
    i64 blocks = 0;
    for (i64 run = 0; run < c->runs; run++)
        if (run_length(c, run) == 1) blocks += (sight_of(l, c->position[c->first[run]]).seen + 255) / 256;
    i64 each = (blocks + SPLITS - 1) / SPLITS;
    return 256 * (each > 1 ? each : 1);
}

// Where a thread is among the jobs of a phase: `before` jobs and `parts` parts belong to runs before `run`.
typedef struct { i64 run, before, parts; } Place;

// Jobs of runs of several rows: positions that attend together, times key heads.
static inline i64 jobs_of_run(const Step *s, const Layer *l, i64 length, i64 *each) {
    *each = attended_rows(s, l, length);
    return (length + *each - 1) / *each * l->kv_heads;
}

static void attend_run(Worker *w, const Layer *l, const Chunk *c, i64 run, i64 job, i64 each, i64 blocks) {
    const Step *s = w->s;
    const Layer *mine = layer_of(s, l, c->slot[c->first[run]]);
    i64 d = l->head_dim, width = s->heads * d, group = s->heads / l->kv_heads, kv = job % l->kv_heads;
    // late rows see the most: they go first, so that no thread is left with them alone
    i64 at = (blocks - 1 - job / l->kv_heads) * each, row = c->first[run] + at, left = run_length(c, run) - at, position = c->position[row];
    const int *until = l->window && c->until ? c->until + row : 0;   // full layers are causal even inside a picture
    const float *q = c->wide + row * width;
    float *mixed = c->other + row * width;
    if (each > 1) {
        attend_rows(s, mine, position, until, kv, left < each ? left : each, q, mixed, c->sums, c->packed);
        return;
    }
    Sight sight = sight_of(l, position);
    for (i64 g = 0; g < group; g += GROUP) {
        int heads = (int)(group - g < GROUP ? group - g : GROUP);
        i64 head = (kv * group + g) * d;
        attend_range(s, mine, kv, sight.first, (until ? *until : position) + 1, heads, q + head, mixed + head);
    }
}

// Every row's queries in c->wide attend, into c->other.
static void attend_slots(Worker *w, const Layer *l, const Chunk *c) {
    const Step *s = w->s;
    i64 d = l->head_dim, width = s->heads * d, size = common_part(l, c), ticket, end, each;
    Place at = {0, 0, 0};
    while (claim(w, 1LL << 40, 1, &ticket, &end)) {
        for (; at.run < c->runs; at.run++) {               // prompts first: their jobs are the largest
            i64 length = run_length(c, at.run), jobs = length > 1 ? jobs_of_run(s, l, length, &each) : 0;
            if (ticket < at.before + jobs) {
                attend_run(w, l, c, at.run, ticket - at.before, each, jobs / l->kv_heads);
                break;
            }
            at.before += jobs;
        }
        if (at.run < c->runs) continue;
        for (; at.run < 2 * c->runs; at.run++) {
            i64 run = at.run - c->runs, row = c->first[run];
            if (run_length(c, run) > 1) continue;
            Sight sight = sight_of(l, c->position[row]);
            i64 parts = (sight.seen + size - 1) / size, job = ticket - at.before;
            if (job < parts * l->kv_heads) {
                i64 part = job % parts, begin = sight.first + part * size, stop = sight.first + sight.seen;
                float *scores = s->chunk_parts + at.parts * s->heads * (d + 2);
                attend_part(s, layer_of(s, l, c->slot[row]), job / parts, part, parts, begin, begin + size < stop ? begin + size : stop, c->wide + row * width, scores, c->sums);
                break;
            }
            at.before += parts * l->kv_heads;
            at.parts += parts;
        }
        if (at.run == 2 * c->runs) break;
    }
    barrier(w);
    at = (Place){0, 0, 0};
    while (claim(w, c->runs * s->heads, 1, &ticket, &end)) {
        i64 run = ticket / s->heads, row = c->first[run];
        if (run_length(c, run) > 1) continue;
        for (; at.run < run; at.run++)
            if (run_length(c, at.run) == 1) at.parts += (sight_of(l, c->position[c->first[at.run]]).seen + size - 1) / size;
        i64 parts = (sight_of(l, c->position[row]).seen + size - 1) / size;
        merge_parts(d, s->chunk_parts + at.parts * s->heads * (d + 2), ticket % s->heads, parts, c->other + row * width);
    }
    barrier(w);
}
