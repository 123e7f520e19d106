// A row of int8 weights times a vector, as a function to call: before the kernels' sources its entry, behind them the rest.
#ifndef PRODUCT_ENTRY
#define PRODUCT_ENTRY
static void product_of(const void *w, long long n, const float *x, float *scratch, float *out);
void int8_product(const void *w, long long n, const float *x, float *scratch, float *out) { product_of(w, n, x, scratch, out); }
#else
static void product_of(const void *w, long long n, const float *x, float *scratch, float *out) {
    Operand o = operand(x, n, I8, scratch);
    dot_i8((const i8 *)w, 1, n, &o, out);
    *out *= o.scale;
}
#endif
