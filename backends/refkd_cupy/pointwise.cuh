// One pass over arrays of one size. A thread takes 4 neighbours at a time where all addresses
// allow; grids are one-dimensional, and a thread goes on by the grid's size until all is done.

// y = f(x)
template <typename F>
__device__ __forceinline__ void map(const float* x, float* y, int64 n, F f) {
  int64 first = global_index(), step = grid_stride();
  int64 vectors = is_aligned16(x) && is_aligned16(y) ? n / 4 : 0;
  for (int64 v = first; v < vectors; v += step) {
    float4 a = load4(x + 4 * v);
    store4(y + 4 * v, make_float4(f(a.x), f(a.y), f(a.z), f(a.w)));
  }
  for (int64 i = 4 * vectors + first; i < n; i += step) y[i] = f(x[i]);
}

// y = f(a, b)
template <typename F>
__device__ __forceinline__ void map(const float* a, const float* b, float* y, int64 n, F f) {
  int64 first = global_index(), step = grid_stride();
  int64 vectors = is_aligned16(a) && is_aligned16(b) && is_aligned16(y) ? n / 4 : 0;
  for (int64 v = first; v < vectors; v += step) {
    float4 c = load4(a + 4 * v), d = load4(b + 4 * v);
    store4(y + 4 * v, make_float4(f(c.x, d.x), f(c.y, d.y), f(c.z, d.z), f(c.w, d.w)));
  }
  for (int64 i = 4 * vectors + first; i < n; i += step) y[i] = f(a[i], b[i]);
}
