// Enlarging x (N, H, W, C) by whole factors, and the shortcut that halves it, with their
// backwards: a thread takes V neighbouring channels. Sizes are below 2^31 entries.
#include "common.cuh"
#include "vectors.cuh"

#define THREADS 256

// y_pq = x_⌊p/down⌋⌊q/right⌋. `count` vectors of y (N, rows, columns, C).
template <int V>
__device__ __forceinline__ void enlarge(const float* __restrict__ x, float* __restrict__ y,
                                        int count, int channels, int rows, int columns, int down,
                                        int right) {
  const int vectors = channels / V;
  for (int64 u = global_index(); u < count; u += grid_stride()) {
    const int unit = (int)u, pixel = unit / vectors, c = (unit - pixel * vectors) * V;
    const int line = pixel / columns, q = pixel - line * columns;
    // Rows of all images lie one below another, and `down` divides those of each.
    const int64 source = (int64)(line / down) * (columns / right) + q / right;
    store<V>(y + (int64)unit * V, load<V>(x + source * channels + c));
  }
}

// dx_hw = Σ_ij dy(h · down + i)(w · right + j). `count` vectors of dx (N, height, width, C).
template <int V>
__device__ __forceinline__ void block_sums(const float* __restrict__ dy, float* __restrict__ dx,
                                           int count, int channels, int height, int width,
                                           int down, int right) {
  const int vectors = channels / V;
  const int64 row = (int64)width * right * channels;
  for (int64 u = global_index(); u < count; u += grid_stride()) {
    const int unit = (int)u, pixel = unit / vectors, c = (unit - pixel * vectors) * V;
    const int line = pixel / width, w = pixel - line * width;
    const float* source = dy + line * down * row + (int64)w * right * channels + c;
    Vector<V> sum = zeros<V>();
    for (int j = 0; j < right; ++j) {
      Vector<V> of_column = zeros<V>();
      for (int i = 0; i < down; ++i) {
        const Vector<V> value = load<V>(source + i * row + (int64)j * channels);
#pragma unroll
        for (int k = 0; k < V; ++k) of_column.at[k] += value.at[k];
      }
#pragma unroll
      for (int k = 0; k < V; ++k) sum.at[k] += of_column.at[k];
    }
    store<V>(dx + (int64)unit * V, sum);
  }
}

#define RESAMPLE(V)                                                                   \
  extern "C" __global__ void __launch_bounds__(THREADS)                               \
      enlarge_##V(const float* x, float* y, int count, int channels, int rows,        \
                  int columns, int down, int right) {                                 \
    enlarge<V>(x, y, count, channels, rows, columns, down, right);                    \
  }                                                                                   \
  extern "C" __global__ void __launch_bounds__(THREADS)                               \
      block_sums_##V(const float* dy, float* dx, int count, int channels, int height, \
                     int width, int down, int right) {                                \
    block_sums<V>(dy, dx, count, channels, height, width, down, right);               \
  }
RESAMPLE(1)
RESAMPLE(4)

// y_c = x_(c − before) of every stride-th row and column, or 0: y (N, rows, columns, wide), x
// (N, height, width, narrow). A thread does an entry of y.
extern "C" __global__ void __launch_bounds__(THREADS)
    padded_shortcut(const float* __restrict__ x, float* __restrict__ y, int count, int height,
                    int width, int narrow, int rows, int columns, int wide, int before,
                    int stride) {
  for (int64 u = global_index(); u < count; u += grid_stride()) {
    const int unit = (int)u, pixel = unit / wide, c = unit - pixel * wide - before;
    const int line = pixel / columns, q = pixel - line * columns;
    const int n = line / rows, p = line - n * rows;
    const int64 source = ((int64)n * height + p * stride) * width + q * stride;
    y[unit] = c >= 0 && c < narrow ? x[source * narrow + c] : 0.0f;
  }
}

// dx = dy at the pixels kept, 0 elsewhere. A thread does an entry of dx.
extern "C" __global__ void __launch_bounds__(THREADS)
    padded_shortcut_gradient(const float* __restrict__ dy, float* __restrict__ dx, int count,
                             int height, int width, int narrow, int rows, int columns, int wide,
                             int before, int stride) {
  for (int64 u = global_index(); u < count; u += grid_stride()) {
    const int unit = (int)u, pixel = unit / narrow, c = unit - pixel * narrow + before;
    const int line = pixel / width, w = pixel - line * width;
    const int n = line / height, h = line - n * height;
    const int64 source = ((int64)n * rows + h / stride) * columns + w / stride;
    dx[unit] = h % stride == 0 && w % stride == 0 ? dy[source * wide + c] : 0.0f;
  }
}
