// Building blocks for processors: values of type ITEM (bf16 as u16, or float) widened to fp32, and products of small
// tiles that stay in registers. The compiler's vector types stand for whatever the processor has.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#if defined(__AVX512F__) || defined(TILE_STATE)              // the latter by tests on other processors
enum { LANES = 16, VECTORS = 4 };
#elif defined(__AVX__)
enum { LANES = 8, VECTORS = 2 };
#else
enum { LANES = 4, VECTORS = 4 };
#endif
enum { ROWS = 6, WIDE = LANES * VECTORS };
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4)));
typedef int ivec __attribute__((vector_size(LANES * 4), aligned(4)));
#if defined(__AVX512F__)
#define WIDEST __attribute__((min_vector_width(512)))  // for Intel's, compilers would make two halves of each vector
#else
#define WIDEST
#endif
#define INLINE static inline __attribute__((always_inline))

#if BF16
typedef u16 item;
INLINE float get(item x) { u32 b = (u32)x << 16; float f; __builtin_memcpy(&f, &b, 4); return f; }
INLINE item put(float f) { u32 b; __builtin_memcpy(&b, &f, 4); return (item)((b + 0x7fff + ((b >> 16) & 1)) >> 16); }
#else
typedef float item;
INLINE float get(item x) { return x; }
INLINE item put(float f) { return f; }
#endif

#define SCALAR(p) get(p[0])
INLINE float AT_LEAST(float v, float low) { return v < low ? low : v; }  // what is no number stays so
INLINE float AT_MOST(float v, float high) { return v > high ? high : v; }

// c[ROWS][vectors * LANES] += a[ROWS][depth] @ b[depth][vectors * LANES]; rows of each stand c_pitch, a_pitch, b_pitch apart
#if BF16
INLINE void multiply(float *c, i64 c_pitch, const float *a, i64 a_pitch, const float *b, i64 b_pitch, i64 depth, int vectors) {
  vec sums[ROWS][VECTORS];
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < vectors; v++) sums[r][v] = *(const vec *)(c + r * c_pitch + v * LANES);
  for (i64 k = 0; k < depth; k++) {
    vec x[VECTORS];
    for (int v = 0; v < vectors; v++) x[v] = *(const vec *)(b + k * b_pitch + v * LANES);
#pragma clang loop unroll(full)
    for (int r = 0; r < ROWS; r++) {
      float y = a[r * a_pitch + k];
#pragma clang loop unroll(full)
      for (int v = 0; v < vectors; v++) sums[r][v] += x[v] * y;
    }
  }
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < vectors; v++) *(vec *)(c + r * c_pitch + v * LANES) = sums[r][v];
}
#else
// In double precision: fp32 is for those who compare, and a model multiplies a tower's rounding.
typedef double dvec __attribute__((vector_size(LANES * 8), aligned(4)));
INLINE void multiply(float *c, i64 c_pitch, const float *a, i64 a_pitch, const float *b, i64 b_pitch, i64 depth, int vectors) {
  for (int v = 0; v < vectors; v++) {
    dvec sums[ROWS];
    for (int r = 0; r < ROWS; r++) sums[r] = __builtin_convertvector(*(const vec *)(c + r * c_pitch + v * LANES), dvec);
    for (i64 k = 0; k < depth; k++) {
      const dvec x = __builtin_convertvector(*(const vec *)(b + k * b_pitch + v * LANES), dvec);
#pragma clang loop unroll(full)
      for (int r = 0; r < ROWS; r++) sums[r] += x * (double)a[r * a_pitch + k];
    }
    for (int r = 0; r < ROWS; r++) *(vec *)(c + r * c_pitch + v * LANES) = __builtin_convertvector(sums[r], vec);
  }
}
#endif

INLINE float largest(vec v) {
  float t[LANES];
  __builtin_memcpy(t, &v, sizeof t);
#pragma clang loop unroll(full)
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) t[i] = t[i] > t[i + half] ? t[i] : t[i + half];
  return t[0];
}

INLINE float sum_of(vec v) {
  float sum = 0.0f;
  for (int i = 0; i < LANES; i++) sum += v[i];
  return sum;
}
INLINE float sum_of_squares(const float *x, i64 n) {
  vec parts = {0};
  i64 i = 0;
  for (; i + LANES <= n; i += LANES) parts += *(const vec *)(x + i) * *(const vec *)(x + i);
  float sum = sum_of(parts);
  for (; i < n; i++) sum += x[i] * x[i];
  return sum;
}

// e^x for x <= 0: 2^n times a polynomial; relative error below 2e-7
INLINE vec exponential(vec x) {
  const vec zero = {0};
  ivec small = x < zero - 87.0f;
  x = (vec)(((ivec)(zero - 87.0f) & small) | ((ivec)x & ~small));
  vec n = (x * 1.44269504089f + 12582912.0f) - 12582912.0f;  // to the nearest whole number
  vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  vec p = zero + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * (vec)((__builtin_convertvector(n, ivec) + 127) << 23);
}

// Never below e^-87: behind -1e35, which no model reaches, x * sigmoid(x) is no longer 0.
INLINE vec sigmoid(vec x) {
  const vec one = (vec){0} + 1.0f;
  vec small = exponential((vec)((ivec)x | (-__INT_MAX__ - 1)));  // e^-|x|
  ivec negative = x < 0.0f;
  return (vec)((negative & (ivec)small) | (~negative & (ivec)one)) / (one + small);
}
