// Choosing a token from a row's logits, as gemma4_core/ops/sampling.py does: biases, penalties, mask, temperature, top-k, top-p,
// min-p, and noise from a hash of seed, position and token.

enum { IN_PROMPT = 1 << 30, DIGIT_BITS = 11, DIGIT_VALUES = 1 << DIGIT_BITS };
#define EXCLUDED (-1e30f)

static inline u32 mixed_bits(u32 h) {
    h = (h ^ (h >> 16)) * 0x85EBCA6Bu;
    h = (h ^ (h >> 13)) * 0xC2B2AE35u;
    return h ^ (h >> 16);
}

static inline float noise(u32 start, u32 token) {
    u32 bits = mixed_bits(mixed_bits(token * 0x9E3779B1u + start) + start);
    const float smallest = 1.0f / (1 << 24);
    float once = -logarithm(((float)(bits >> 8) + 0.5f) * smallest);
    return -logarithm(once > smallest ? once : smallest);  // the largest number is rounded to 1, whose noise would be infinite
}

// A number whose order is that of floats.
static inline u32 ordered(float x) {
    u32 bits;
    __builtin_memcpy(&bits, &x, 4);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// A score after the penalties for an id that occurred `count` times; see SamplingRows.
static inline float punished(float score, int count, const float *params) {
    int generated = count >= IN_PROMPT ? count - IN_PROMPT : count;
    float repeated = score > 0 ? score / params[4] : score * params[4];
    return (count > 0 ? repeated : score) - (generated > 0 ? params[5] : 0.0f) - (float)generated * params[6];
}

// The logits with bias, penalties and mask.
static void score_row(const Step *s, const Call *c, i64 row, float *scores) {
    const float *logits = c->logits + row * s->vocab, *params = c->params + 7 * row;
    i64 n = s->vocab, slot = c->wanted_slot[row];
    const float *bias = c->bias ? c->bias + slot * n : 0;
    const int *drafted = c->drafted + row * c->drafts;
    for (i64 i = 0; i < n; i++) scores[i] = bias ? logits[i] + bias[i] : logits[i];
    if (c->counts) {
        const int *counts = c->counts + slot * n;
        for (i64 i = 0; i < n; i++) scores[i] = punished(scores[i], counts[i], params);
        for (i64 j = 0; j < c->drafts; j++) {              // what these drafts add; rows of one slot share the counts
            int id = drafted[j], more = 0;
            if (id < 0) continue;
            for (i64 k = 0; k < c->drafts; k++) more += drafted[k] == id;
            scores[id] = punished(bias ? logits[id] + bias[id] : logits[id], counts[id] + more, params);
        }
    }
    if (c->mask) {
        const u32 *mask = c->mask + row * ((n + 31) / 32);
        for (i64 i = 0; i < n; i++) scores[i] = mask[i / 32] >> (i % 32) & 1 ? scores[i] : EXCLUDED;
    }
}

// The largest key t for which the weights of keys >= t still sum to `enough`, 1 each or exp(score - top) / total of the keys
// from `least` on: digit by digit, from histograms.
static u32 threshold(const float *scores, i64 n, float enough, int by_share, u32 least, float top, float total) {
    float above = 0, weights[DIGIT_VALUES];
    u32 found = 0;
    for (int shift = 32 - DIGIT_BITS, bits = DIGIT_BITS; bits > 0; bits = shift < DIGIT_BITS ? shift : DIGIT_BITS, shift -= bits) {
        i64 values = 1LL << bits, digit = values - 1;
        u64 prefix = (u64)found >> (shift + bits);
        for (i64 i = 0; i < values; i++) weights[i] = 0;
        for (i64 i = 0; i < n; i++) {
            u32 key = ordered(scores[i]);
            if (key < least || (u64)key >> (shift + bits) != prefix) continue;
            weights[key >> shift & (values - 1)] += by_share ? exponential(scores[i] - top) / total : 1.0f;
        }
        while (digit > 0 && above + weights[digit] < enough) above += weights[digit--];
        found |= (u32)digit << shift;
    }
    return found;
}

// The choice of a row whose logits are there; `best` is the largest of them.
static u32 choose(Worker *w, const Call *c, i64 row, u32 best) {
    const Step *s = w->s;
    const float *params = c->params + 7 * row;
    float temperature = params[0], *scores = s->choosing + w->thread * s->vocab;
    i64 n = s->vocab;
    u32 token = best;
    if (temperature > 0 || c->bias || c->counts || c->mask) {
        score_row(s, c, row, scores);
        token = 0;
        for (i64 i = 1; i < n; i++) token = scores[i] > scores[token] ? (u32)i : token;
    }
    if (temperature > 0) {
        for (i64 i = 0; i < n; i++) scores[i] /= temperature;
        float top = scores[token], total = 0, drawn = -3e38f;
        u32 least = params[1] > 0 ? threshold(scores, n, params[1] < (float)n ? params[1] : (float)n, 0, 0, top, 1) : 0;
        if (params[2] < 1 || params[3] > 0) {
            float parts[LANES] = {0};                      // of equal size, so that small shares are not lost
            for (i64 i = 0; i < n; i++) parts[i % LANES] += ordered(scores[i]) >= least ? exponential(scores[i] - top) : 0;
            for (int j = 0; j < LANES; j++) total += parts[j];
            if (params[2] < 1) {
                u32 cut = threshold(scores, n, params[2], 1, least, top, total);
                least = cut > least ? cut : least;
            }
        }
        u32 start = mixed_bits(c->seed[row] + (u32)(c->wanted_position[row] + 1) * 0x9E3779B1u);
        for (i64 i = 0; i < n; i++) {
            if (ordered(scores[i]) < least || params[3] > 0 && exponential(scores[i] - top) < params[3]) continue;
            float value = scores[i] + noise(start, (u32)i);
            if (value > drawn) { drawn = value; token = (u32)i; }
        }
    }
    if (c->counts && !c->drafted) c->counts[c->wanted_slot[row] * n + token]++;
    return token;
}
