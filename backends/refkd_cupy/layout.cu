// Images between planes and pixels: y (batch, columns, rows) of x (batch, rows, columns), words of
// 4 or 8 bytes. A block of 256 threads moves 32 x 32 words through shared memory, so that memory
// is read and written along its rows; grids are of (batch · tiles of columns, tiles of rows).
#include "common.cuh"

#define SIDE 32

template <typename T>
__device__ __forceinline__ void transpose(const T* __restrict__ x, T* __restrict__ y, int rows,
                                          int columns) {
  __shared__ T tile[SIDE][SIDE + 1];
  const int tiles = (columns + SIDE - 1) / SIDE, batch = blockIdx.x / tiles;
  const int column = (blockIdx.x - batch * tiles) * SIDE, row = blockIdx.y * SIDE;
  const int lane = lane_index(), warp = warp_index();
  const int64 begin = (int64)batch * rows * columns;
#pragma unroll
  for (int i = 0; i < SIDE; i += 8)
    if (row + warp + i < rows && column + lane < columns)
      tile[warp + i][lane] = x[begin + (int64)(row + warp + i) * columns + column + lane];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < SIDE; i += 8)
    if (column + warp + i < columns && row + lane < rows)
      y[begin + (int64)(column + warp + i) * rows + row + lane] = tile[lane][warp + i];
}

extern "C" __global__ void __launch_bounds__(256)
    transpose_4(const int* x, int* y, int rows, int columns) {
  transpose(x, y, rows, columns);
}

extern "C" __global__ void __launch_bounds__(256)
    transpose_8(const long long* x, long long* y, int rows, int columns) {
  transpose(x, y, rows, columns);
}
