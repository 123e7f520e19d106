// All blocks of a phase in the order of their claims, [from, to) each, as a function to call; a count of them comes first.
#ifndef CLAIMS_ENTRY
#define CLAIMS_ENTRY
static void all_claims(long long rows, long long least, long long threads, long long *out);
void claims(long long rows, long long least, long long threads, long long *out) { all_claims(rows, least, threads, out); }
#else
static void all_claims(long long rows, long long least, long long threads, long long *out) {
    u32 sync[96] = {0};
    Step s = {0};
    Worker w = {&s, 0, 0};
    s.threads = threads;
    s.sync = sync;
    long long count = 0;
    while (claim_shrinking(&w, rows, least, out + 1 + 2 * count, out + 2 + 2 * count)) count++;
    out[0] = count;
}
#endif
