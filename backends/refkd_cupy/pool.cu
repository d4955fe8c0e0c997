// Max-pooling of x (N, H, W, C): a thread takes the windows' maxima of V neighbouring channels.
// Sizes are below 2^31 entries, so that places are 32-bit numbers.
#include "common.cuh"
#include "vectors.cuh"

#define THREADS 256

// y = max_ij x(p·sH + i·dH − pH)(q·sW + j·dW − pW), and its place h · W + w: the first of equal
// maxima, the last NaN. `count` is how many vectors y has.
template <int V>
__device__ __forceinline__ void max_pool(const float* __restrict__ x, float* __restrict__ y,
                                         int64* __restrict__ indices, int count, int channels,
                                         int height, int width, int rows, int columns,
                                         int kernel_h, int kernel_w, int stride_h, int stride_w,
                                         int padding_h, int padding_w, int dilation_h,
                                         int dilation_w) {
  const int vectors = channels / V;
  for (int64 u = global_index(); u < count; u += grid_stride()) {
    const int unit = (int)u, pixel = unit / vectors, c = (unit - pixel * vectors) * V;
    const int line = pixel / columns, q = pixel - line * columns;
    const int n = line / rows, p = line - n * rows;
    const float* plane = x + (int64)n * height * width * channels + c;
    Vector<V> best;
    int at[V];
#pragma unroll
    for (int i = 0; i < V; ++i) best.at[i] = -REFKD_INFINITY, at[i] = -1;
    for (int i = 0; i < kernel_h; ++i) {
      const int h = p * stride_h + i * dilation_h - padding_h;
      if (h < 0 || h >= height) continue;
      for (int j = 0; j < kernel_w; ++j) {
        const int w = q * stride_w + j * dilation_w - padding_w;
        if (w < 0 || w >= width) continue;
        const int place = h * width + w;
        const Vector<V> value = load<V>(plane + (int64)place * channels);
#pragma unroll
        for (int k = 0; k < V; ++k)
          // at < 0: the first is taken though it be −∞.
          if (value.at[k] > best.at[k] || value.at[k] != value.at[k] || at[k] < 0)
            best.at[k] = value.at[k], at[k] = place;
      }
    }
    store<V>(y + (int64)unit * V, best);
    int64* to = indices + (int64)unit * V;
    if constexpr (V == 4) {
      *(int4*)to = make_int4(at[0], 0, at[1], 0);
      *(int4*)(to + 2) = make_int4(at[2], 0, at[3], 0);
    } else {
#pragma unroll
      for (int k = 0; k < V; ++k) to[k] = at[k];
    }
  }
}

#define MAX_POOL(V)                                                                          \
  extern "C" __global__ void __launch_bounds__(THREADS)                                      \
      max_pool_##V(const float* x, float* y, long long* indices, int count, int channels,    \
                   int height, int width, int rows, int columns, int kernel_h, int kernel_w, \
                   int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h, \
                   int dilation_w) {                                                         \
    max_pool<V>(x, y, indices, count, channels, height, width, rows, columns, kernel_h,      \
                kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h,              \
                dilation_w);                                                                 \
  }
MAX_POOL(1)
MAX_POOL(4)

// The backward is not told the windows, only their maxima. Bounds say which rows of windows have
// maxima in a row of x, and which columns in a column: `least` and `most` (H + W,), rows first.

extern "C" __global__ void __launch_bounds__(THREADS)
    max_pool_no_bounds(int* least, int* most, int sides) {
  const int i = blockIdx.x * THREADS + threadIdx.x;
  if (i < sides) {
    least[i] = 0x7fffffff;
    most[i] = -1;
  }
}

__device__ __forceinline__ void widen(int* least, int* most, int first, int last) {
  if (first < *least) atomicMin(least, first);  // most often nothing is left to do
  if (last > *most) atomicMax(most, last);
}

// `count` indices (N, P, Q, C); one that is outside of its plane is left out. Shared memory holds
// the bounds that a block finds.
extern "C" __global__ void __launch_bounds__(THREADS)
    max_pool_bounds(const long long* __restrict__ indices, int* least, int* most, int count,
                    int channels, int height, int width, int rows, int columns) {
  DYNAMIC_SHARED(int, own_least);
  const int sides = height + width;
  int* own_most = own_least + sides;
  for (int i = threadIdx.x; i < sides; i += THREADS) own_least[i] = 0x7fffffff, own_most[i] = -1;
  __syncthreads();
  for (int64 unit = global_index(); unit < count; unit += grid_stride()) {
    const int64 index = indices[unit];
    if (index < 0 || index >= (int64)height * width) continue;
    const int pixel = (int)unit / channels, line = pixel / columns, q = pixel - line * columns;
    const int p = line % rows, h = (int)index / width, w = (int)index - h * width;
    widen(own_least + h, own_most + h, p, p);
    widen(own_least + height + w, own_most + height + w, q, q);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < sides; i += THREADS)
    if (own_most[i] >= 0) widen(least + i, most + i, own_least[i], own_most[i]);
}

// Which of V maxima lie at `place` of their plane.
template <int V>
__device__ __forceinline__ void lie_at(const int64* indices, int place, bool (&result)[V]) {
  if constexpr (V == 4) {
    const int4 two = *(const int4*)indices, more = *(const int4*)(indices + 2);
    result[0] = two.x == place && two.y == 0;
    result[1] = two.z == place && two.w == 0;
    result[2] = more.x == place && more.y == 0;
    result[3] = more.z == place && more.w == 0;
  } else {
#pragma unroll
    for (int k = 0; k < V; ++k) result[k] = indices[k] == place;
  }
}

// dx_hw = Σ_pq dy_pq [indices_pq = h · W + w], window after window. `count` vectors of dx.
template <int V>
__device__ __forceinline__ void max_pool_gradient(const float* __restrict__ dy,
                                                  const int64* __restrict__ indices,
                                                  const int* __restrict__ least,
                                                  const int* __restrict__ most,
                                                  float* __restrict__ dx, int count, int channels,
                                                  int height, int width, int rows, int columns) {
  const int vectors = channels / V;
  for (int64 u = global_index(); u < count; u += grid_stride()) {
    const int unit = (int)u, pixel = unit / vectors, c = (unit - pixel * vectors) * V;
    const int line = pixel / width, w = pixel - line * width;
    const int n = line / height, h = line - n * height;
    const int last_p = most[h], first_q = least[height + w], last_q = most[height + w];
    Vector<V> sum = zeros<V>();
    for (int p = least[h]; p <= last_p; ++p)
      for (int q = first_q; q <= last_q; ++q) {
        const int64 window = (((int64)n * rows + p) * columns + q) * channels + c;
        bool hit[V];
        lie_at<V>(indices + window, h * width + w, hit);
        const Vector<V> gradient = load<V>(dy + window);
#pragma unroll
        for (int k = 0; k < V; ++k)
          if (hit[k]) sum.at[k] += gradient.at[k];
      }
    store<V>(dx + (int64)unit * V, sum);
  }
}

#define MAX_POOL_GRADIENT(V)                                                                 \
  extern "C" __global__ void __launch_bounds__(THREADS)                                      \
      max_pool_gradient_##V(const float* dy, const long long* indices, const int* least,     \
                            const int* most, float* dx, int count, int channels, int height, \
                            int width, int rows, int columns) {                              \
    max_pool_gradient<V>(dy, indices, least, most, dx, count, channels, height, width,       \
                         rows, columns);                                                     \
  }
MAX_POOL_GRADIENT(1)
MAX_POOL_GRADIENT(4)
