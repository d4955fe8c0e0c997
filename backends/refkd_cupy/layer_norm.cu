// Layer norm of rows x (rows, width). A warp does a row of up to 1024 entries, which stay in its
// registers; a block does a longer one, and reads it again from the cache. What rounding leaves of
// Σ (x − μ) is taken out as in the reference.
#include "common.cuh"
#include "vectors.cuh"

#define WARPS 4     // of a block that does short rows
#define THREADS 256  // of a block that does a long one

// ---- Short rows: 4 · VECTORS entries in each lane, 4 neighbours at a time where QUADS

// The place in its row of a lane's entry k.
template <bool QUADS>
__device__ __forceinline__ int entry(int k) {
  return QUADS ? (lane_index() + k / 4 * 32) * 4 + k % 4 : lane_index() + 32 * k;
}

// Four entries of a row, those of a lane from 4 · v on; 0 beyond its end.
template <bool QUADS>
__device__ __forceinline__ Vector<4> load_four(const float* row, int v, int width) {
  Vector<4> four = zeros<4>();
  if constexpr (QUADS) {
    if (entry<true>(4 * v) < width) four = load<4>(row + entry<true>(4 * v));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = entry<false>(4 * v + i);
      if (at < width) four.at[i] = row[at];
    }
  }
  return four;
}

template <bool QUADS>
__device__ __forceinline__ void store_four(float* row, const Vector<4>& four, int v, int width) {
  if constexpr (QUADS) {
    if (entry<true>(4 * v) < width) store<4>(row + entry<true>(4 * v), four);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = entry<false>(4 * v + i);
      if (at < width) row[at] = four.at[i];
    }
  }
}

template <int VECTORS, bool QUADS>
__device__ __forceinline__ void load_row(float (&to)[4 * VECTORS], const float* row, int width) {
#pragma unroll
  for (int v = 0; v < VECTORS; ++v) {
    const Vector<4> four = load_four<QUADS>(row, v, width);
#pragma unroll
    for (int i = 0; i < 4; ++i) to[4 * v + i] = four.at[i];
  }
}

// Subtract `level` from the entries of the row, not from those beyond, and return their sum.
template <int VECTORS, bool QUADS>
__device__ __forceinline__ float centre_row(float (&row)[4 * VECTORS], float level, int width) {
  float sum = 0.0f;
#pragma unroll
  for (int k = 0; k < 4 * VECTORS; ++k) {
    row[k] = entry<QUADS>(k) < width ? row[k] - level : 0.0f;
    sum += row[k];
  }
  return warp_sum(sum);
}

// y = (x − μ)/√(v + ε) · weight + bias. Warps go on by as many rows as there are warps.
template <int VECTORS, bool QUADS>
__device__ __forceinline__ void forward_rows(const float* __restrict__ x,
                                             const float* __restrict__ weight,
                                             const float* __restrict__ bias,
                                             float* __restrict__ y, float* __restrict__ mean,
                                             float* __restrict__ rstd, float eps, int rows,
                                             int width) {
  for (int64 i = (int64)blockIdx.x * WARPS + warp_index(); i < rows;
       i += (int64)gridDim.x * WARPS) {
    float values[4 * VECTORS];
    load_row<VECTORS, QUADS>(values, x + i * width, width);
    float sum = 0.0f, square = 0.0f;
#pragma unroll
    for (int k = 0; k < 4 * VECTORS; ++k) sum += values[k];
    const float rough = warp_sum(sum) / width;
    const float shift = centre_row<VECTORS, QUADS>(values, rough, width) / width;
    centre_row<VECTORS, QUADS>(values, shift, width);
#pragma unroll
    for (int k = 0; k < 4 * VECTORS; ++k) square += values[k] * values[k];
    const float scale = 1.0f / sqrtf(warp_sum(square) / width + eps);
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      const Vector<4> weights = load_four<QUADS>(weight, v, width);
      Vector<4> four = load_four<QUADS>(bias, v, width);
#pragma unroll
      for (int k = 0; k < 4; ++k) four.at[k] += values[4 * v + k] * scale * weights.at[k];
      store_four<QUADS>(y + i * width, four, v, width);
    }
    if (lane_index() == 0) {
      mean[i] = rough + shift;
      rstd[i] = scale;
    }
  }
}

// dx = r (w dy − Σ w dy / D − x̂ Σ w dy x̂ / D), and of each block's rows Σ dy x̂ and Σ dy: parts
// (blocks, 2, width). A warp keeps to lanes' own columns, the block adds up its warps in order.
template <int VECTORS, bool QUADS>
__device__ __forceinline__ void backward_rows(const float* __restrict__ dy,
                                              const float* __restrict__ x,
                                              const float* __restrict__ weight,
                                              const float* __restrict__ mean,
                                              const float* __restrict__ rstd,
                                              float* __restrict__ dx, double* __restrict__ parts,
                                              int rows, int width, double* room) {
  float dweight[4 * VECTORS], dbias[4 * VECTORS];
#pragma unroll
  for (int k = 0; k < 4 * VECTORS; ++k) dweight[k] = dbias[k] = 0.0f;
  for (int64 i = (int64)blockIdx.x * WARPS + warp_index(); i < rows;
       i += (int64)gridDim.x * WARPS) {
    float normed[4 * VECTORS], gradient[4 * VECTORS];
    load_row<VECTORS, QUADS>(normed, x + i * width, width);
    load_row<VECTORS, QUADS>(gradient, dy + i * width, width);
    const float r = rstd[i];
    const float shift = centre_row<VECTORS, QUADS>(normed, mean[i], width) / width;
    float level = 0.0f, slope = 0.0f;
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      const Vector<4> weights = load_four<QUADS>(weight, v, width);
#pragma unroll
      for (int k = 4 * v; k < 4 * v + 4; ++k) {
        normed[k] = (normed[k] - shift) * r;
        dweight[k] += gradient[k] * normed[k];
        dbias[k] += gradient[k];
        gradient[k] *= weights.at[k - 4 * v];
        level += gradient[k];
        slope += gradient[k] * normed[k];
      }
    }
    level = warp_sum(level) / width;
    slope = warp_sum(slope) / width;
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      Vector<4> four;
#pragma unroll
      for (int k = 0; k < 4; ++k)
        four.at[k] = (gradient[4 * v + k] - normed[4 * v + k] * slope - level) * r;
      store_four<QUADS>(dx + i * width, four, v, width);
    }
  }
  for (int warp = 0; warp < WARPS; ++warp) {
    if (warp == warp_index()) {
#pragma unroll
      for (int k = 0; k < 4 * VECTORS; ++k) {
        const int at = entry<QUADS>(k);
        if (at < width) {
          room[at] = warp ? room[at] + dweight[k] : dweight[k];
          room[width + at] = warp ? room[width + at] + dbias[k] : dbias[k];
        }
      }
    }
    __syncthreads();
  }
  for (int j = threadIdx.x; j < 2 * width; j += blockDim.x)
    parts[(int64)blockIdx.x * 2 * width + j] = room[j];
}

#define SHORT_ROWS(VECTORS)                                                                   \
  extern "C" __global__ void __launch_bounds__(WARPS * 32)                                    \
      layer_norm_forward_##VECTORS(const float* x, const float* weight, const float* bias,    \
                                   float* y, float* mean, float* rstd, float eps, int rows,   \
                                   int width) {                                               \
    if (width % 4 == 0)                                                                       \
      forward_rows<VECTORS, true>(x, weight, bias, y, mean, rstd, eps, rows, width);          \
    else                                                                                      \
      forward_rows<VECTORS, false>(x, weight, bias, y, mean, rstd, eps, rows, width);         \
  }                                                                                           \
  extern "C" __global__ void __launch_bounds__(WARPS * 32, VECTORS == 8 ? 2 : 4)              \
      layer_norm_backward_##VECTORS(const float* dy, const float* x, const float* weight,     \
                                    const float* mean, const float* rstd, float* dx,          \
                                    double* parts, int rows, int width) {                     \
    __shared__ double room[2 * VECTORS * 128];                                                \
    if (width % 4 == 0)                                                                       \
      backward_rows<VECTORS, true>(dy, x, weight, mean, rstd, dx, parts, rows, width, room);  \
    else                                                                                      \
      backward_rows<VECTORS, false>(dy, x, weight, mean, rstd, dx, parts, rows, width, room); \
  }
SHORT_ROWS(1)
SHORT_ROWS(2)
SHORT_ROWS(4)
SHORT_ROWS(8)

// ---- Long rows: a block each

// As forward_rows.
extern "C" __global__ void __launch_bounds__(THREADS)
    layer_norm_forward_long(const float* __restrict__ x, const float* __restrict__ weight,
                            const float* __restrict__ bias, float* __restrict__ y,
                            float* __restrict__ mean, float* __restrict__ rstd, float eps,
                            int width) {
  const float* row = x + (int64)blockIdx.x * width;
  float* to = y + (int64)blockIdx.x * width;
  float sum = 0.0f, shift = 0.0f, square = 0.0f;
#pragma unroll 4
  for (int j = threadIdx.x; j < width; j += THREADS) sum += row[j];
  const float rough = block_sum(sum) / width;
#pragma unroll 4
  for (int j = threadIdx.x; j < width; j += THREADS) shift += row[j] - rough;
  shift = block_sum(shift) / width;
#pragma unroll 4
  for (int j = threadIdx.x; j < width; j += THREADS) {
    const float gap = row[j] - rough - shift;
    square += gap * gap;
  }
  const float scale = 1.0f / sqrtf(block_sum(square) / width + eps);
#pragma unroll 4
  for (int j = threadIdx.x; j < width; j += THREADS)
    to[j] = (row[j] - rough - shift) * scale * weight[j] + bias[j];
  if (threadIdx.x == 0) {
    mean[blockIdx.x] = rough + shift;
    rstd[blockIdx.x] = scale;
  }
}

// dx as backward_rows, and what rounding has left of each row's Σ (x − μ)/D.
extern "C" __global__ void __launch_bounds__(THREADS)
    layer_norm_backward_long(const float* __restrict__ dy, const float* __restrict__ x,
                             const float* __restrict__ weight, const float* __restrict__ mean,
                             const float* __restrict__ rstd, float* __restrict__ dx,
                             float* __restrict__ shifts, int width) {
  const float *row = x + (int64)blockIdx.x * width, *given = dy + (int64)blockIdx.x * width;
  float* to = dx + (int64)blockIdx.x * width;
  const float middle = mean[blockIdx.x], r = rstd[blockIdx.x];
  float shift = 0.0f, level = 0.0f, slope = 0.0f;
#pragma unroll 4
  for (int j = threadIdx.x; j < width; j += THREADS) shift += row[j] - middle;
  shift = block_sum(shift) / width;
#pragma unroll 4
  for (int j = threadIdx.x; j < width; j += THREADS) {
    const float weighted = given[j] * weight[j];
    level += weighted;
    slope += weighted * ((row[j] - middle - shift) * r);
  }
  level = block_sum(level) / width;
  slope = block_sum(slope) / width;
#pragma unroll 4
  for (int j = threadIdx.x; j < width; j += THREADS)
    to[j] = (given[j] * weight[j] - (row[j] - middle - shift) * r * slope - level) * r;
  if (threadIdx.x == 0) shifts[blockIdx.x] = shift;
}

// Σ dy x̂ and Σ dy over a chunk of rows: parts (chunks, 2, width). Grids of (chunks, tiles) as in
// channel_norm.cu, a thread keeps to its column.
extern "C" __global__ void __launch_bounds__(THREADS)
    layer_norm_sums(const float* __restrict__ dy, const float* __restrict__ x,
                    const float* __restrict__ mean, const float* __restrict__ rstd,
                    const float* __restrict__ shifts, double* __restrict__ parts, int rows,
                    int width, int tile) {
  __shared__ double room[2 * THREADS];
  const Place at = place(tile);
  const int64 last = (int64)rows * (blockIdx.x + 1) / gridDim.x;
  float dweight = 0.0f, dbias = 0.0f;
  if (at.vector < width) {
#pragma unroll 4
    for (int64 i = (int64)rows * blockIdx.x / gridDim.x + at.lane; i < last; i += at.lanes) {
      const float gradient = dy[i * width + at.vector];
      dweight += gradient * ((x[i * width + at.vector] - mean[i] - shifts[i]) * rstd[i]);
      dbias += gradient;
    }
  }
  double found[2] = {dweight, dbias};
  sum_lanes(found, room, tile);
  if (at.lane == 0 && at.vector < width) {
    parts[(int64)blockIdx.x * 2 * width + at.vector] = found[0];
    parts[((int64)blockIdx.x * 2 + 1) * width + at.vector] = found[1];
  }
}

// dweight and dbias: the sums of parts (count, 2, width).
extern "C" __global__ void __launch_bounds__(1024)
    layer_norm_gradients(const double* parts, float* dweight, float* dbias, int count,
                         int width) {
  sum_parts(parts, dweight, dbias, count, width);
}
