// Rows of weights times a vector, as a function to call: before the kernels' sources its entry, behind them the rest.
#ifndef PRODUCT_ENTRY
#define PRODUCT_ENTRY
static void products_of(const void *w, const float *scale, long long type, long long rows, long long n, const float *x, float *scratch, float *out);
void row_products(const void *w, const float *scale, long long type, long long rows, long long n, const float *x, float *scratch, float *out) {
    products_of(w, scale, type, rows, n, x, scratch, out);
}
#else
static void products_of(const void *w, const float *scale, long long type, long long rows, long long n, const float *x, float *scratch, float *out) {
    Matrix m = {w, scale, type, rows, n};
    Operand o = operand(x, n, type, scratch);
    dot_rows(&m, 0, rows, &o, out);
}
#endif
