// Sums of all entries in a fixed order and in float64, by one block or many.
#include "common.cuh"

template <typename T>
__device__ __forceinline__ void sum(const T* x, float* total, int64 n, double divisor) {
  double result = 0;
  for (int64 i = threadIdx.x; i < n; i += blockDim.x) result += x[i];
  result = block_sum(result);
  if (threadIdx.x == 0) *total = (float)(result / divisor);
}

extern "C" __global__ void sum_f32(const float* x, float* total, long long n, double divisor) {
  sum(x, total, n, divisor);
}

extern "C" __global__ void sum_f64(const double* x, float* total, long long n, double divisor) {
  sum(x, total, n, divisor);
}

// sums[block] = the sum of every gridDim-th stretch of entries
extern "C" __global__ void part_sums(const float* x, double* sums, long long n) {
  double result = 0;
  for (int64 i = global_index(); i < n; i += grid_stride()) result += x[i];
  result = block_sum(result);
  if (threadIdx.x == 0) sums[blockIdx.x] = result;
}
