// Dropout by a given mask, a byte an entry: y = x · scale where it is set, else x · 0, so that
// what is not finite shows. A thread takes 4 neighbours at a time where all addresses allow.
#include "common.cuh"

// hot
extern "C" __global__ void dropout(const float* x, const bool* mask, float* y, long long n,
                                   float scale) {
  int64 first = global_index(), step = grid_stride();
  bool aligned = is_aligned16(x) && is_aligned16(y) && ((unsigned long long)mask & 3) == 0;
  int64 vectors = aligned ? n / 4 : 0;
  for (int64 v = first; v < vectors; v += step) {
    float4 a = load4(x + 4 * v);
    uchar4 kept = *(const uchar4*)(mask + 4 * v);
    store4(y + 4 * v, make_float4(a.x * (kept.x ? scale : 0.0f), a.y * (kept.y ? scale : 0.0f),
                                  a.z * (kept.z ? scale : 0.0f), a.w * (kept.w ? scale : 0.0f)));
  }
  for (int64 i = 4 * vectors + first; i < n; i += step) y[i] = x[i] * (mask[i] ? scale : 0.0f);
}
