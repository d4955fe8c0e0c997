// Sums of parts and of columns, always in one order.
#include "common.cuh"

// out[i] = Σ_p parts[p][i], plus bias[i % columns] where there is a bias. A grid goes on until
// all `size` entries are done.
extern "C" __global__ void sum_parts(const float* parts, const float* bias, float* out,
                                     long long size, int columns, int count) {
  for (int64 i = global_index(); i < size; i += grid_stride()) {
    float sum = parts[i];
#pragma unroll 8
    for (int p = 1; p < count; ++p) sum += parts[p * size + i];
    out[i] = bias ? sum + bias[i % columns] : sum;
  }
}

// parts[p][j] = Σ x[i][j] over the p-th part of the rows of x (rows, columns). Blocks of 32
// columns x 8 threads for each; grid: blocks of columns, parts. A thread adds every eighth row, 16
// of them to a sum of their own.
extern "C" __global__ void column_sums(const float* x, float* parts, int rows, int columns) {
  __shared__ float sums[8][33];
  int column = blockIdx.x * 32 + threadIdx.x;
  int64 each = ((int64)rows + gridDim.y - 1) / gridDim.y;
  int64 begin = blockIdx.y * each, end = min((int64)rows, begin + each);
  float total = 0;
  if (column < columns) {
    for (int64 first = begin + threadIdx.y; first < end; first += 128) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        int64 row = first + 8 * i;
        if (row < end) sum += x[row * columns + column];
      }
      total += sum;
    }
  }
  sums[threadIdx.y][threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.y == 0 && column < columns) {
    for (int i = 1; i < 8; ++i) total += sums[i][threadIdx.x];
    parts[(int64)blockIdx.y * columns + column] = total;
  }
}

// y[i][j] += bias[j] for y (size / columns, columns).
extern "C" __global__ void add_bias(float* y, const float* bias, long long size, int columns) {
  if (columns % 4 == 0 && is_aligned16(y)) {
    for (int64 i = global_index(); i < size / 4; i += grid_stride()) {
      int j = i % (columns / 4) * 4;
      float4 v = load4(y + 4 * i);
      v.x += bias[j], v.y += bias[j + 1], v.z += bias[j + 2], v.w += bias[j + 3];
      store4(y + 4 * i, v);
    }
  } else {
    for (int64 i = global_index(); i < size; i += grid_stride()) y[i] += bias[i % columns];
  }
}
