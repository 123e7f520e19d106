// A row of weights times a vector, as a function to call: before the kernels' sources its entry, behind them the rest.
#ifndef PRODUCT_ENTRY
#define PRODUCT_ENTRY
static void product_of(const void *w, long long type, long long n, const float *x, float *scratch, float *out);
void row_product(const void *w, long long type, long long n, const float *x, float *scratch, float *out) {
    product_of(w, type, n, x, scratch, out);
}
#else
static void product_of(const void *w, long long type, long long n, const float *x, float *scratch, float *out) {
    float one = 1;
    Matrix m = {w, &one, type, 1, n};
    Operand o = operand(x, n, type, scratch);
    dot_rows(&m, 0, 1, &o, out);
}
#endif
