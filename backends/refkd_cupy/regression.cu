// Mean squared error and Huber loss: sums of parts, one a block, in a fixed order; gradients.
// hot: mse_forward huber_forward difference_backward
#include "common.cuh"

// (x − y)²
struct Square {
  __device__ __forceinline__ float operator()(float d) const { return d * d; }
};
// c (|d| − c/2), c = min(|d|, δ)
struct Huber {
  float delta;
  __device__ __forceinline__ float operator()(float d) const {
    float magnitude = fabsf(d), clipped = magnitude > delta ? delta : magnitude;
    return clipped * (magnitude - 0.5f * clipped);
  }
};

// sums[block] = Σ f(x − y) over every gridDim-th stretch of entries
template <typename F>
__device__ __forceinline__ void sum_differences(const float* x, const float* y, double* sums,
                                                int64 n, F f) {
  int64 first = global_index(), step = grid_stride();
  int64 vectors = is_aligned16(x) && is_aligned16(y) ? n / 4 : 0;
  double sum = 0;
  for (int64 v = first; v < vectors; v += step) {
    float4 a = load4(x + 4 * v), b = load4(y + 4 * v);
    sum += (f(a.x - b.x) + f(a.y - b.y)) + (f(a.z - b.z) + f(a.w - b.w));
  }
  for (int64 i = 4 * vectors + first; i < n; i += step) sum += f(x[i] - y[i]);
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

extern "C" __global__ void mse_forward(const float* x, const float* y, double* sums, long long n) {
  sum_differences(x, y, sums, n, Square{});
}

extern "C" __global__ void huber_forward(const float* x, const float* y, double* sums, long long n,
                                         float delta) {
  sum_differences(x, y, sums, n, Huber{delta});
}

// dx = (x − y within ±δ) · scale = −dy; scale is times *dloss where there is one
extern "C" __global__ void difference_backward(const float* x, const float* y, const float* dloss,
                                               float scale, float delta, float* dx, float* dy,
                                               long long n) {
  float factor = dloss ? scale * *dloss : scale;
  for (int64 i = global_index(); i < n; i += grid_stride()) {
    float d = x[i] - y[i];
    d = d > delta ? delta : d < -delta ? -delta : d;
    dx[i] = d * factor;
    dy[i] = -(d * factor);
  }
}
