// What an optimiser does to one parameter, as in refkd.ops.update. Where a product and a sum are
// one operation is written out, so that every kernel rounds alike.

// Without a factor even an infinite y does not count.
__device__ __forceinline__ float plus(float x, float factor, float y) {
  return factor != 0 ? fmaf(factor, y, x) : x;
}

// g ← g + decay · w, b ← momentum · b + g, w ← w − lr · (g + momentum · b if nesterov else b)
struct SgdNumbers {
  float lr, momentum, decay;
  bool nesterov;
};
__device__ __forceinline__ void sgd(float& w, float g, float& b, SgdNumbers a) {
  g = plus(g, a.decay, w);
  if (a.momentum != 0) {
    b = fmaf(a.momentum, b, g);
    g = a.nesterov ? fmaf(a.momentum, b, g) : b;
  }
  w = fmaf(-a.lr, g, w);
}

// w ← shrink · w, g ← g + decay · w, m ← β1 m + rest1 · g, v ← β2 v + rest2 · g²,
// w ← w − step_size · m / (√v + floor)
struct AdamNumbers {
  float beta1, rest1, beta2, rest2, step_size, floor, decay, shrink;
};
__device__ __forceinline__ void adam(float& w, float g, float& m, float& v, AdamNumbers a) {
  g = plus(g, a.decay, w);
  m = fmaf(a.beta1, m, a.rest1 * g);
  v = fmaf(a.beta2, v, a.rest2 * (g * g));
  w = fmaf(-a.step_size, m / (sqrtf(v) + a.floor), a.shrink * w);
}
