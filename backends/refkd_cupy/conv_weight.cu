// Weights of convolutions: packed for the products, and gathered from the parts of their sums.
#include "common.cuh"

__device__ __forceinline__ float rounded(float x, int tf32) {
  return tf32 ? __uint_as_float(to_tf32(x)) : x;
}

// Where an entry lies in a matrix with rows of `step`: in tiles of 2 x 2 where it is in pairs.
__device__ __forceinline__ int64 packed_at(int row, int column, int step, int pairs) {
  int64 two_rows = (int64)(row / 2) * 2 * step;
  return two_rows + (pairs ? column / 2 * 4 + row % 2 * 2 + column % 2 : row % 2 * step + column);
}

// packed (groups, taps, inputs, step) = weight (groups · outputs, inputs, taps), with zeros where
// step > outputs, rounded to TF32 or in pairs where asked: a transposition of
// (outputs, inputs · taps), by tiles of 32 x 32. Blocks of 32 x 8 threads; grid: tiles of
// inputs · taps, tiles of step, groups.
extern "C" __global__ void pack_for_forward(const float* weight, float* packed, int outputs,
                                            int inputs, int taps, int step, int tf32, int pairs) {
  __shared__ float tile[32][33];
  int columns = inputs * taps, first = blockIdx.x * 32, first_output = blockIdx.y * 32;
  weight += (int64)blockIdx.z * outputs * columns;
  packed += (int64)blockIdx.z * columns * step;
  for (int i = threadIdx.y; i < 32; i += 8) {
    int output = first_output + i, column = first + threadIdx.x;
    bool inside = output < outputs && column < columns;
    tile[i][threadIdx.x] = inside ? weight[(int64)output * columns + column] : 0;
  }
  __syncthreads();
  for (int i = threadIdx.y; i < 32; i += 8) {
    int output = first_output + threadIdx.x, column = first + i;
    int row = column % taps * inputs + column / taps;
    if (output < step && column < columns)
      packed[packed_at(row, output, step, pairs)] = rounded(tile[threadIdx.x][i], tf32);
  }
}

// packed (groups, taps, outputs, step) = weight (groups · outputs, inputs, taps), with zeros where
// step > inputs, rounded to TF32 or in pairs where asked. A block for each output; grid: outputs,
// groups.
extern "C" __global__ void pack_for_backward(const float* weight, float* packed, int outputs,
                                             int inputs, int taps, int step, int tf32,
                                             int pairs) {
  int output = blockIdx.x, group = blockIdx.y;
  weight += ((int64)group * outputs + output) * inputs * taps;
  packed += (int64)group * taps * outputs * step;
  for (int i = threadIdx.x; i < taps * step; i += blockDim.x) {
    int tap = i / step, input = i % step;
    float value = input < inputs ? weight[(int64)input * taps + tap] : 0;
    packed[packed_at(tap * outputs + output, input, step, pairs)] = rounded(value, tf32);
  }
}

// dweight (outputs, inputs, taps) = Σ_p sums (parts, outputs, taps, inputs), and where there is
// a dbias: dbias (outputs) = Σ_p bias_sums (parts, outputs). Of few parts: a thread makes entries
// of its own, in the order of dweight, and goes on until all are done.
extern "C" __global__ void finish_weight(const float* sums, const float* bias_sums, float* dweight,
                                         float* dbias, int outputs, int inputs, int taps,
                                         int parts) {
  int64 size = (int64)outputs * inputs * taps;
  for (int64 i = global_index(); i < size; i += grid_stride()) {
    int tap = i % taps, input = i / taps % inputs, output = i / taps / inputs;
    const float* from = sums + ((int64)output * taps + tap) * inputs + input;
    float sum = from[0];
    for (int p = 1; p < parts; ++p) sum += from[p * size];
    dweight[i] = sum;
  }
  if (!dbias) return;
  for (int64 i = global_index(); i < outputs; i += grid_stride()) {
    float sum = bias_sums[i];
    for (int p = 1; p < parts; ++p) sum += bias_sums[(int64)p * outputs + i];
    dbias[i] = sum;
  }
}

// The same of many parts: 8 threads share an entry, in the order of sums, those of dbias behind
// it. Blocks of 32 entries x 8 threads.
extern "C" __global__ void finish_weight_of_many(const float* sums, const float* bias_sums,
                                                 float* dweight, float* dbias, int outputs,
                                                 int inputs, int taps, int parts) {
  __shared__ float shared[8][33];
  int size = outputs * inputs * taps, i = blockIdx.x * 32 + threadIdx.x;
  bool of_bias = i >= size, inside = i < (dbias ? size + outputs : size);
  float sum = 0;
  if (inside) {
    const float* from = of_bias ? bias_sums + (i - size) : sums + i;
    int64 step = of_bias ? outputs : size;
#pragma unroll 4
    for (int p = threadIdx.y; p < parts; p += 8) sum += from[p * step];
  }
  shared[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || !inside) return;
  for (int j = 1; j < 8; ++j) sum += shared[j][threadIdx.x];
  if (of_bias) {
    dbias[i - size] = sum;
  } else {
    int input = i % inputs, tap = i / inputs % taps, output = i / inputs / taps;
    dweight[((int64)output * inputs + input) * taps + tap] = sum;
  }
}
