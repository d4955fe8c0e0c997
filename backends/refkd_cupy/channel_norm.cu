// Batch norm and group norm of x (examples, rows, channels), the channels side by side in memory.
// Statistics are of every group of channels in every example; for batch norm there is one example,
// of all pixels of the batch, and a group is one channel.
//
// Kernels that pass over x have grids of (examples · chunks, tiles): a block does the rows of one
// chunk, for `tile` vectors of channels, as `place` says. V is 4 where 4 divides the channels.
#include "common.cuh"
#include "vectors.cuh"

#define THREADS 256
#define UNROLL 8
#define PAIRS 4  // of dy and x that are loaded at a time

struct Rows {
  int64 first, last;  // of all examples' rows
  int example, chunk;
};
__device__ __forceinline__ Rows rows_of_block(int rows, int chunks) {
  const int example = blockIdx.x / chunks, chunk = blockIdx.x - example * chunks;
  const int64 begin = (int64)example * rows;
  return {begin + (int64)rows * chunk / chunks, begin + (int64)rows * (chunk + 1) / chunks,
          example, chunk};
}

// sums (examples, kinds, channels, chunks): what a block has found for its chunk.
template <int KINDS, int V>
__device__ __forceinline__ void store_sums(double (&values)[KINDS * V], double* sums,
                                           const Rows& rows, int vector, int channels,
                                           int chunks) {
#pragma unroll
  for (int kind = 0; kind < KINDS; ++kind)
#pragma unroll
    for (int i = 0; i < V; ++i)
      sums[(((int64)rows.example * KINDS + kind) * channels + vector * V + i) * chunks +
           rows.chunk] = values[kind * V + i];
}

// ---- Forward

// Σ (x − o) and Σ (x − o)², o the first value of the group. A thread takes its rows from the first
// of its own; eight at a time are summed about their mean and joined to those before (Chan, Golub,
// LeVeque), so that nothing cancels wherever that first one lies. The rest is done in float64.
template <int V>
__device__ __forceinline__ void moments(const float* __restrict__ x, double* sums, int rows,
                                        int channels, int group, int tile, int chunks,
                                        double* room) {
  const Place at = place(tile);
  const Rows part = rows_of_block(rows, chunks);
  double found[2 * V];
#pragma unroll
  for (int i = 0; i < 2 * V; ++i) found[i] = 0.0;
  const bool inside = at.vector < channels / V;
  if (inside) {
    float mean[V], square[V];
#pragma unroll
    for (int i = 0; i < V; ++i) mean[i] = square[i] = 0.0f;
    float count = 0.0f;
    int64 row = part.first + at.lane;
    const float* source = x + row * channels + at.vector * V;
    const Vector<V> origin = row < part.last ? load<V>(source) : zeros<V>();
    const int64 step = (int64)at.lanes * channels;
    for (; row + (UNROLL - 1) * at.lanes < part.last; row += UNROLL * at.lanes) {
      Vector<V> values[UNROLL];
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) values[u] = load<V>(source + u * step);
      source += UNROLL * step;
      const float share = UNROLL / (count + UNROLL), weight = count * share;
      count += UNROLL;
#pragma unroll
      for (int i = 0; i < V; ++i) {
        float sum = 0.0f, own = 0.0f;
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) sum += values[u].at[i] -= origin.at[i];
        const float middle = sum / UNROLL;
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
          const float gap = values[u].at[i] - middle;
          own += gap * gap;
        }
        const float apart = middle - mean[i];
        mean[i] += apart * share;
        square[i] += own + apart * apart * weight;
      }
    }
    for (; row < part.last; row += at.lanes, source += step) {
      const Vector<V> value = load<V>(source);
      count += 1.0f;
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const float gap = value.at[i] - origin.at[i], apart = gap - mean[i];
        mean[i] += apart / count;
        square[i] += apart * (gap - mean[i]);
      }
    }
    const float* first = x + (int64)part.example * rows * channels;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if (count == 0.0f) continue;
      const double from = first[(at.vector * V + i) / group * group];
      const double gap = (double)origin.at[i] - from + mean[i];
      found[i] = count * gap;
      found[V + i] = square[i] + found[i] * gap;
    }
  }
  sum_lanes(found, room, tile);
  if (inside && at.lane == 0) store_sums<2, V>(found, sums, part, at.vector, channels, chunks);
}

#define MOMENTS(V)                                                                             \
  extern "C" __global__ void __launch_bounds__(THREADS, 3) moments_##V(                        \
      const float* x, double* sums, int rows, int channels, int group, int tile, int chunks) { \
    __shared__ double room[2 * V * THREADS];                                                   \
    moments<V>(x, sums, rows, channels, group, tile, chunks, room);                            \
  }
MOMENTS(1)
MOMENTS(4)

// μ, v and 1/√(v + ε) of each group, from its sums: a warp each. y = (x − m) · scale + offset with
// m = μ as it is rounded, and what m lacks in the offset: coefficients (examples, 3, channels).
extern "C" __global__ void __launch_bounds__(THREADS)
    statistics(const double* sums, const float* x, const float* weight, const float* bias,
               float* mean, float* var, float* rstd, float* coefficients, double eps, int examples,
               int rows, int channels, int group, int chunks) {
  const int groups = channels / group;
  const int64 unit = (int64)blockIdx.x * (THREADS / 32) + warp_index();
  if (unit >= (int64)examples * groups) return;
  const int64 example = unit / groups;
  const int first = (int)(unit - example * groups) * group;
  const int64 run = (int64)group * chunks;
  const double* own = sums + (example * 2 * channels + first) * chunks;
  double sum = 0.0, square = 0.0;
#pragma unroll 4
  for (int64 i = lane_index(); i < run; i += 32) {
    sum += own[i];
    square += own[(int64)channels * chunks + i];
  }
  const double count = (double)rows * group;
  const double shift = warp_sum(sum) / count;
  double variance = warp_sum(square) / count - shift * shift;
  if (variance < 0.0) variance = 0.0;  // by a rounding, where all values are nearly the same
  double exact = x[example * rows * channels + first] + shift;
  if (!(fabs(exact) < REFKD_INFINITY)) exact = variance = REFKD_NAN;
  const double scale = 1.0 / sqrt(variance + eps);
  const float rounded = (float)exact;
  if (lane_index() == 0) {
    mean[unit] = rounded;
    if (var) var[unit] = (float)variance;
    rstd[unit] = (float)scale;
  }
  float* to = coefficients + example * 3 * channels;
  for (int c = first + lane_index(); c < first + group; c += 32) {
    to[c] = rounded;
    to[channels + c] = (float)(weight[c] * scale);
    to[2 * channels + c] = (float)(bias[c] - (exact - rounded) * (weight[c] * scale));
  }
}

// The same from the statistics given: a thread for each channel. Their copies are the caller's.
extern "C" __global__ void __launch_bounds__(THREADS)
    given_statistics(const float* running_mean, const float* running_var, const float* weight,
                     const float* bias, float* mean, float* var, float* rstd, float* coefficients,
                     float eps, int channels) {
  const int c = blockIdx.x * THREADS + threadIdx.x;
  if (c >= channels) return;
  const float r = 1.0f / sqrtf(running_var[c] + eps);
  mean[c] = running_mean[c];
  var[c] = running_var[c];
  rstd[c] = r;
  coefficients[c] = running_mean[c];
  coefficients[channels + c] = weight[c] * r;
  coefficients[2 * channels + c] = bias[c];
}

// The running statistics after a batch, each step rounded by itself as in the reference.
extern "C" __global__ void __launch_bounds__(THREADS)
    running_statistics(const float* running_mean, const float* running_var, const float* mean,
                       const float* var, float* next_mean, float* next_var, float keep,
                       float share, float share_of_var, int channels) {
  const int c = blockIdx.x * THREADS + threadIdx.x;
  if (c >= channels) return;
  next_mean[c] = __fadd_rn(__fmul_rn(keep, running_mean[c]), __fmul_rn(share, mean[c]));
  next_var[c] = __fadd_rn(__fmul_rn(keep, running_var[c]), __fmul_rn(share_of_var, var[c]));
}

// y = (x − centre) · scale + offset, coefficients (examples, 3, channels).
template <int V>
__device__ __forceinline__ void normalise(const float* __restrict__ x,
                                          const float* __restrict__ coefficients,
                                          float* __restrict__ y, int rows, int channels, int tile,
                                          int chunks) {
  const Place at = place(tile);
  const Rows part = rows_of_block(rows, chunks);
  if (at.vector >= channels / V) return;
  const float* own = coefficients + (int64)part.example * 3 * channels + at.vector * V;
  const Vector<V> centre = load<V>(own), scale = load<V>(own + channels);
  const Vector<V> offset = load<V>(own + 2 * channels);
  int64 place = (part.first + at.lane) * channels + at.vector * V;
  const int64 step = (int64)at.lanes * channels, end = part.last * channels;
  for (; place + (PAIRS - 1) * step < end; place += PAIRS * step) {
    Vector<V> values[PAIRS];
#pragma unroll
    for (int u = 0; u < PAIRS; ++u) values[u] = load<V>(x + place + u * step);
#pragma unroll
    for (int u = 0; u < PAIRS; ++u) {
#pragma unroll
      for (int i = 0; i < V; ++i)
        values[u].at[i] = (values[u].at[i] - centre.at[i]) * scale.at[i] + offset.at[i];
      store<V>(y + place + u * step, values[u]);
    }
  }
  for (; place < end; place += step) {
    Vector<V> value = load<V>(x + place);
#pragma unroll
    for (int i = 0; i < V; ++i)
      value.at[i] = (value.at[i] - centre.at[i]) * scale.at[i] + offset.at[i];
    store<V>(y + place, value);
  }
}

#define NORMALISE(V)                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS)                            \
      normalise_##V(const float* x, const float* coefficients, float* y, int rows, \
                    int channels, int tile, int chunks) {                          \
    normalise<V>(x, coefficients, y, rows, channels, tile, chunks);                \
  }
NORMALISE(1)
NORMALISE(4)

// ---- Backward

// Σ dy, Σ dy (x − μ) and Σ (x − μ) of each channel.
template <int V>
__device__ __forceinline__ void gradient_sums(const float* __restrict__ dy,
                                              const float* __restrict__ x, const float* mean,
                                              double* sums, int rows, int channels, int group,
                                              int tile, int chunks, double* room) {
  const Place at = place(tile);
  const Rows part = rows_of_block(rows, chunks);
  double found[3 * V];
#pragma unroll
  for (int i = 0; i < 3 * V; ++i) found[i] = 0.0;
  const bool inside = at.vector < channels / V;
  if (inside) {
    float centre[V], total[V], dot[V], shift[V];
    const float* means = mean + (int64)part.example * (channels / group);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      centre[i] = means[(at.vector * V + i) / group];
      total[i] = dot[i] = shift[i] = 0.0f;
    }
    int64 place = (part.first + at.lane) * channels + at.vector * V;
    const int64 step = (int64)at.lanes * channels, end = part.last * channels;
    for (; place + (PAIRS - 1) * step < end; place += PAIRS * step) {
      Vector<V> gradients[PAIRS], values[PAIRS];
#pragma unroll
      for (int u = 0; u < PAIRS; ++u) {
        gradients[u] = load<V>(dy + place + u * step);
        values[u] = load<V>(x + place + u * step);
      }
#pragma unroll
      for (int i = 0; i < V; ++i) {
        float of_total = 0.0f, of_dot = 0.0f, of_shift = 0.0f;
#pragma unroll
        for (int u = 0; u < PAIRS; ++u) {
          const float gap = values[u].at[i] - centre[i];
          of_total += gradients[u].at[i];
          of_dot += gradients[u].at[i] * gap;
          of_shift += gap;
        }
        total[i] += of_total;
        dot[i] += of_dot;
        shift[i] += of_shift;
      }
    }
    for (; place < end; place += step) {
      const Vector<V> gradient = load<V>(dy + place);
      const Vector<V> value = load<V>(x + place);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const float gap = value.at[i] - centre[i];
        total[i] += gradient.at[i];
        dot[i] += gradient.at[i] * gap;
        shift[i] += gap;
      }
    }
#pragma unroll
    for (int i = 0; i < V; ++i)
      found[i] = total[i], found[V + i] = dot[i], found[2 * V + i] = shift[i];
  }
  sum_lanes(found, room, tile);
  if (inside && at.lane == 0) store_sums<3, V>(found, sums, part, at.vector, channels, chunks);
}

#define GRADIENT_SUMS(V)                                                                  \
  extern "C" __global__ void __launch_bounds__(THREADS, 3)                                \
      gradient_sums_##V(const float* dy, const float* x, const float* mean, double* sums, \
                        int rows, int channels, int group, int tile, int chunks) {        \
    __shared__ double room[3 * V * THREADS];                                              \
    gradient_sums<V>(dy, x, mean, sums, rows, channels, group, tile, chunks, room);       \
  }
GRADIENT_SUMS(1)
GRADIENT_SUMS(4)

// From these sums, dx = dy · scale + level − (x − centre) · slope, coefficients (examples, 4,
// channels) in the order centre, scale, slope, level, and of_channels (examples, 2, channels):
// Σ dy x̂ and Σ dy, which are dweight and dbias where there is but one example. With M values in a group, d the mean of x − μ that rounding has left, r of the
// group and w of each channel:
//   Σ dy x̂ = r (Σ dy (x − μ) − d Σ dy)      slope = r² Σ_c w_c Σ dy x̂ / M
//   scale = w r      level = d · slope − r Σ_c w_c Σ dy / M
// A warp does a group, `width` lanes of it a channel at a time (a power of 2). Statistics that
// are constants have neither slope nor level nor d.
extern "C" __global__ void __launch_bounds__(THREADS)
    gradient_coefficients(const double* sums, const float* weight, const float* mean,
                          const float* rstd, double* of_channels, float* coefficients,
                          float* dweight, float* dbias, int examples, int rows, int channels,
                          int group, int chunks, int width, int of_batch) {
  const int groups = channels / group;
  const int64 unit = (int64)blockIdx.x * (THREADS / 32) + warp_index();
  if (unit >= (int64)examples * groups) return;
  const int64 example = unit / groups;
  const int first = (int)(unit - example * groups) * group;
  const int at_once = 32 / width, own = lane_index() / width, part = lane_index() % width;
  const int64 kind = (int64)channels * chunks;
  double* dots = of_channels + example * 2 * channels;
  double level = 0.0, slope = 0.0, shift = 0.0;
  for (int c0 = 0; c0 < group; c0 += at_once) {
    const int c = first + c0 + own;
    double total = 0.0, dot = 0.0;
    if (c < first + group) {
      const double* from = sums + example * 3 * kind + (int64)c * chunks;
#pragma unroll 4
      for (int i = part; i < chunks; i += width) {
        total += from[i];
        dot += from[kind + i];
        shift += from[2 * kind + i];
      }
    }
    for (int step = width / 2; step > 0; step /= 2) {
      total += __shfl_xor_sync(FULL_MASK, total, step);
      dot += __shfl_xor_sync(FULL_MASK, dot, step);
    }
    if (c < first + group && part == 0) {
      level += weight[c] * total;
      slope += weight[c] * dot;
      dots[c] = dot;
      dots[channels + c] = total;
    }
  }
  const double count = (double)rows * group, r = rstd[unit];
  shift = of_batch ? warp_sum(shift) / count : 0.0;
  level = warp_sum(level);
  slope = r * r * r * (warp_sum(slope) - shift * level) / count;
  level = shift * slope - r * level / count;
  float* to = coefficients + example * 4 * channels;
  for (int c = first + own; c < first + group; c += at_once) {
    if (part == 0) {
      dots[c] = r * (dots[c] - shift * dots[channels + c]);
      if (examples == 1) {
        dweight[c] = (float)dots[c];
        dbias[c] = (float)dots[channels + c];
      }
      to[c] = mean[unit];
      to[channels + c] = (float)(weight[c] * r);
      to[2 * channels + c] = (float)slope;
      to[3 * channels + c] = (float)level;
    }
  }
}

// dweight and dbias: the sum of of_channels over examples.
extern "C" __global__ void __launch_bounds__(1024)
    channel_gradients(const double* of_channels, float* dweight, float* dbias, int examples,
                      int channels) {
  sum_parts(of_channels, dweight, dbias, examples, channels);
}

// dx = dy · scale + level − (x − centre) · slope, or dy · scale where x is not given.
template <int V>
__device__ __forceinline__ void gradient(const float* __restrict__ dy,
                                         const float* __restrict__ x,
                                         const float* __restrict__ coefficients,
                                         float* __restrict__ dx, int rows, int channels, int tile,
                                         int chunks) {
  const Place at = place(tile);
  const Rows part = rows_of_block(rows, chunks);
  if (at.vector >= channels / V) return;
  const float* own = coefficients + (int64)part.example * 4 * channels + at.vector * V;
  const Vector<V> centre = load<V>(own), scale = load<V>(own + channels);
  const Vector<V> slope = load<V>(own + 2 * channels);
  const Vector<V> level = load<V>(own + 3 * channels);
  int64 place = (part.first + at.lane) * channels + at.vector * V;
  const int64 step = (int64)at.lanes * channels, end = part.last * channels;
  if (!x) {
#pragma unroll 4
    for (; place < end; place += step) {
      Vector<V> value = load<V>(dy + place);
#pragma unroll
      for (int i = 0; i < V; ++i) value.at[i] *= scale.at[i];
      store<V>(dx + place, value);
    }
    return;
  }
  for (; place + (PAIRS - 1) * step < end; place += PAIRS * step) {
    Vector<V> gradients[PAIRS], values[PAIRS];
#pragma unroll
    for (int u = 0; u < PAIRS; ++u) {
      gradients[u] = load<V>(dy + place + u * step);
      values[u] = load<V>(x + place + u * step);
    }
#pragma unroll
    for (int u = 0; u < PAIRS; ++u) {
#pragma unroll
      for (int i = 0; i < V; ++i)
        values[u].at[i] = gradients[u].at[i] * scale.at[i] + level.at[i] -
                          (values[u].at[i] - centre.at[i]) * slope.at[i];
      store<V>(dx + place + u * step, values[u]);
    }
  }
  for (; place < end; place += step) {
    const Vector<V> given = load<V>(dy + place);
    Vector<V> value = load<V>(x + place);
#pragma unroll
    for (int i = 0; i < V; ++i)
      value.at[i] = given.at[i] * scale.at[i] + level.at[i] -
                    (value.at[i] - centre.at[i]) * slope.at[i];
    store<V>(dx + place, value);
  }
}

#define GRADIENT(V)                                                                       \
  extern "C" __global__ void __launch_bounds__(THREADS)                                   \
      gradient_##V(const float* dy, const float* x, const float* coefficients, float* dx, \
                   int rows, int channels, int tile, int chunks) {                        \
    gradient<V>(dy, x, coefficients, dx, rows, channels, tile, chunks);                   \
  }
GRADIENT(1)
GRADIENT(4)
