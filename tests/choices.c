// Choices of rows from their logits, as a function to call: before the kernels' sources its entry, behind them the rest.
#ifndef CHOICES_ENTRY
#define CHOICES_ENTRY
static void all_choices(void *call, long long vocab, long long rows, float *scores);
void choices(void *call, long long vocab, long long rows, float *scores) { all_choices(call, vocab, rows, scores); }
#else
static void all_choices(void *call, long long vocab, long long rows, float *scores) {
    const Call *c = (const Call *)call;
    Step s = {0};
    s.vocab = vocab;
    s.choosing = scores;
    Worker w = {&s, 0, 0};
    for (long long row = 0; row < rows; row++) {
        for (long long from = 0; from < vocab; from += HEAD_BLOCK) finish_block(&s, from, from + HEAD_BLOCK < vocab ? from + HEAD_BLOCK : vocab, c->logits + row * vocab, c->partial + row * ((vocab + HEAD_BLOCK - 1) / HEAD_BLOCK) * 4);
        finish_row(&w, c, row);
    }
}
#endif
