// The best logit that a multiplying thread keeps.

struct Best {  // the largest logit, the first token that has it, and the sum of exp(logit - largest)
  float top, sum;
  int token;
  DEVICE void add(float value, int id) {
    if (value > top) {
      sum = sum * expf(top - value) + 1.f;
      top = value;
      token = id;
    } else {
      sum += expf(value - top);
    }
  }
  DEVICE void merge(float other, float other_sum, int id) {
    float grown = fmaxf(top, other);
    sum = sum * expf(top - grown) + other_sum * expf(other - grown);
    if (other > top || (other == top && id < token)) token = id;
    top = grown;
  }
  DEVICE void merge_warp() {
    for (int o = 16; o; o >>= 1) {
      float t = __shfl_xor_sync(ALL, top, o), s = __shfl_xor_sync(ALL, sum, o);
      merge(t, s, __shfl_xor_sync(ALL, token, o));
    }
  }
};
