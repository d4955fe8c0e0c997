// Average pooling of x (N, H, W, C), over windows of one size or over parts of the image: a thread
// takes V neighbouring channels of a window, or of a pixel. Sizes are below 2^31 entries.
#include "common.cuh"
#include "vectors.cuh"

#define THREADS 256
#define UNROLL 8

// The windows along an axis of `size` entries. Those of one size begin at o · stride − padding, and
// are averaged with the entries of theirs that lie up to `counted` beyond the edges. A stride of 0
// stands for `count` parts, of which neighbours may share an entry; size · count is below 2^31.
struct Axis {
  int size, count, kernel, stride, padding, counted;

  __device__ __forceinline__ int begin(int o) const {
    return stride ? max(o * stride - padding, 0) : o * size / count;
  }
  __device__ __forceinline__ int end(int o) const {
    return stride ? min(o * stride - padding + kernel, size)
                  : ((o + 1) * size + count - 1) / count;
  }
  __device__ __forceinline__ int length(int o) const {
    if (!stride) return end(o) - begin(o);
    const int start = o * stride - padding;
    return min(start + kernel, size + counted) - max(start, -counted);
  }
  // The windows that hold entry i, from the first to the last.
  __device__ __forceinline__ int first(int i) const {
    if (!stride) return i * count / size;
    const int least = i + padding - kernel + 1;
    return least > 0 ? (least - 1) / stride + 1 : 0;
  }
  __device__ __forceinline__ int last(int i) const {
    return stride ? min((i + padding) / stride, count - 1) : ((i + 1) * count - 1) / size;
  }
};

// y_pq = Σ x_hw / m_pq, summed along rows first. `count` vectors of y.
template <int V>
__device__ __forceinline__ void avg_pool(const float* __restrict__ x, float* __restrict__ y,
                                         int count, int channels, Axis down, Axis right) {
  const int vectors = channels / V;
  for (int64 u = global_index(); u < count; u += grid_stride()) {
    const int unit = (int)u, pixel = unit / vectors, c = (unit - pixel * vectors) * V;
    const int line = pixel / right.count, q = pixel - line * right.count;
    const int n = line / down.count, p = line - n * down.count;
    const float* plane = x + (int64)n * down.size * right.size * channels + c;
    const int w_begin = right.begin(q), w_end = right.end(q), h_end = down.end(p);
    Vector<V> sum = zeros<V>();
    for (int h = down.begin(p); h < h_end; ++h) {
      Vector<V> of_row = zeros<V>();
      for (int w = w_begin; w < w_end; ++w) {
        const Vector<V> value = load<V>(plane + ((int64)h * right.size + w) * channels);
#pragma unroll
        for (int k = 0; k < V; ++k) of_row.at[k] += value.at[k];
      }
#pragma unroll
      for (int k = 0; k < V; ++k) sum.at[k] += of_row.at[k];
    }
    const float entries = (float)down.length(p) * right.length(q);
#pragma unroll
    for (int k = 0; k < V; ++k) sum.at[k] /= entries;
    store<V>(y + (int64)unit * V, sum);
  }
}

// dx_hw = Σ_pq dy_pq / m_pq over the windows that hold the pixel. `count` vectors of dx.
template <int V>
__device__ __forceinline__ void avg_pool_gradient(const float* __restrict__ dy,
                                                  float* __restrict__ dx, int count, int channels,
                                                  Axis down, Axis right) {
  const int vectors = channels / V;
  for (int64 u = global_index(); u < count; u += grid_stride()) {
    const int unit = (int)u, pixel = unit / vectors, c = (unit - pixel * vectors) * V;
    const int line = pixel / right.size, w = pixel - line * right.size;
    const int n = line / down.size, h = line - n * down.size;
    const float* windows = dy + (int64)n * down.count * right.count * channels + c;
    const int q_first = right.first(w), q_last = right.last(w), p_last = down.last(h);
    Vector<V> sum = zeros<V>();
#pragma unroll 1
    for (int p = down.first(h); p <= p_last; ++p) {
      const float height = (float)down.length(p);
#pragma unroll 1
      for (int q = q_first; q <= q_last; ++q) {
        const float share = 1.0f / (height * right.length(q));
        const Vector<V> value =
            load<V>(windows + ((int64)p * right.count + q) * channels);
#pragma unroll
        for (int k = 0; k < V; ++k) sum.at[k] += value.at[k] * share;
      }
    }
    store<V>(dx + (int64)unit * V, sum);
  }
}

#define AVG_POOL(V)                                                                            \
  extern "C" __global__ void __launch_bounds__(THREADS)                                        \
      avg_pool_##V(const float* x, float* y, int count, int channels, int height, int rows,    \
                   int kernel_h, int stride_h, int padding_h, int counted_h, int width,        \
                   int columns, int kernel_w, int stride_w, int padding_w, int counted_w) {    \
    const Axis down = {height, rows, kernel_h, stride_h, padding_h, counted_h};                \
    const Axis right = {width, columns, kernel_w, stride_w, padding_w, counted_w};             \
    avg_pool<V>(x, y, count, channels, down, right);                                           \
  }                                                                                            \
  extern "C" __global__ void __launch_bounds__(THREADS, 4) avg_pool_gradient_##V(              \
      const float* dy, float* dx, int count, int channels, int height, int rows, int kernel_h, \
      int stride_h, int padding_h, int counted_h, int width, int columns, int kernel_w,        \
      int stride_w, int padding_w, int counted_w) {                                            \
    const Axis down = {height, rows, kernel_h, stride_h, padding_h, counted_h};                \
    const Axis right = {width, columns, kernel_w, stride_w, padding_w, counted_w};             \
    avg_pool_gradient<V>(dy, dx, count, channels, down, right);                                \
  }
AVG_POOL(1)
AVG_POOL(4)

// y (N, C), the means over all pixels of x (N, pixels, C). Grids of (N, tiles): a block takes
// `tile` vectors of channels of an image, its lanes the pixels in turn.
template <int V>
__device__ __forceinline__ void means(const float* __restrict__ x, float* __restrict__ y,
                                      int pixels, int channels, int tile, float* room) {
  const Place at = place(tile);
  const bool inside = at.vector < channels / V;
  float sum[V];
#pragma unroll
  for (int k = 0; k < V; ++k) sum[k] = 0.0f;
  if (inside) {
    const int64 step = (int64)at.lanes * channels;
    const float* source = x + ((int64)blockIdx.x * pixels + at.lane) * channels + at.vector * V;
    int pixel = at.lane;
    for (; pixel + (UNROLL - 1) * at.lanes < pixels; pixel += UNROLL * at.lanes) {
      Vector<V> values[UNROLL];
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) values[u] = load<V>(source + u * step);
      source += UNROLL * step;
#pragma unroll
      for (int k = 0; k < V; ++k) {
        float of_few = 0.0f;
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) of_few += values[u].at[k];
        sum[k] += of_few;
      }
    }
    for (; pixel < pixels; pixel += at.lanes, source += step) {
      const Vector<V> value = load<V>(source);
#pragma unroll
      for (int k = 0; k < V; ++k) sum[k] += value.at[k];
    }
  }
  sum_lanes(sum, room, tile);
  if (inside && at.lane == 0) {
#pragma unroll
    for (int k = 0; k < V; ++k)
      y[(int64)blockIdx.x * channels + at.vector * V + k] = sum[k] / pixels;
  }
}

#define MEANS(V)                                                                \
  extern "C" __global__ void __launch_bounds__(THREADS)                         \
      means_##V(const float* x, float* y, int pixels, int channels, int tile) { \
    __shared__ float room[V * THREADS];                                         \
    means<V>(x, y, pixels, channels, tile, room);                               \
  }
MEANS(1)
MEANS(4)
