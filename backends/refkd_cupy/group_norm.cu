// Group norm of x (examples, pixels, channels): a block does a group of an example, which it reads
// once and keeps in shared memory. Groups for which this does not pay are channel_norm.cu's.
//
// A thread keeps to V neighbouring channels; `tile` of them make up a group, and the lanes of a
// block stand in pixels one below another.
#include "common.cuh"
#include "vectors.cuh"

#define THREADS 256

// The part of a thread: where its first entry lies among those of x, and from where on it has
// entries in shared memory, which nobody else touches.
struct Part {
  int64 begin, step;  // of x, from lane to lane
  int lane, lanes, channel, own, own_step;
};
template <int V>
__device__ __forceinline__ Part part_of(int pixels, int channels, int group) {
  const int tile = group / V, lane = threadIdx.x / tile, vector = threadIdx.x - lane * tile;
  const int groups = channels / group, example = blockIdx.x / groups;
  const int channel = (blockIdx.x - example * groups) * group + vector * V;
  const int lanes = blockDim.x / tile;
  return {((int64)example * pixels + lane) * channels + channel, (int64)lanes * channels, lane,
          lanes, channel, (lane * tile + vector) * V, lanes * tile * V};
}

// Begin to copy a thread's entries of x to its place in shared memory.
template <int V>
__device__ __forceinline__ void copy_part(float* to, const float* x, const Part& part,
                                          int pixels) {
  const float* source = x + part.begin;
  float* target = to + part.own;
  for (int p = part.lane; p < pixels; p += part.lanes) {
    if constexpr (V == 4) {
      cp_async<16>(target, source);
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) cp_async<4>(target + i, source + i);
    }
    source += part.step;
    target += part.own_step;
  }
}

// Every thread of a block gets the sum.
__device__ __forceinline__ float sum_threads(float value, float* room) {
  float values[1] = {value};
  sum_lanes(values, room, 1);
  if (threadIdx.x == 0) room[0] = values[0];
  __syncthreads();
  const float sum = room[0];
  __syncthreads();
  return sum;
}

// y = (x − μ)/√(v + ε) · weight + bias; the variance takes two passes, corrected as the reference.
template <int V>
__device__ __forceinline__ void forward(const float* __restrict__ x,
                                        const float* __restrict__ weight,
                                        const float* __restrict__ bias, float* __restrict__ y,
                                        float* __restrict__ mean, float* __restrict__ rstd,
                                        float eps, int pixels, int channels, int group,
                                        float* room) {
  DYNAMIC_SHARED(float, values);
  const Part part = part_of<V>(pixels, channels, group);
  copy_part<V>(values, x, part, pixels);
  cp_async_commit();
  cp_async_wait<0>();
  const float count = (float)pixels * group;
  float sum = 0.0f, shift = 0.0f, square = 0.0f;
  const float* own = values + part.own;
  for (int p = part.lane; p < pixels; p += part.lanes, own += part.own_step) {
    const Vector<V> value = load<V>(own);
#pragma unroll
    for (int i = 0; i < V; ++i) sum += value.at[i];
  }
  const float rough = sum_threads(sum, room) / count;
  own = values + part.own;
  for (int p = part.lane; p < pixels; p += part.lanes, own += part.own_step) {
    const Vector<V> value = load<V>(own);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float gap = value.at[i] - rough;
      shift += gap;
      square += gap * gap;
    }
  }
  shift = sum_threads(shift, room) / count;
  float variance = sum_threads(square, room) / count - shift * shift;
  if (variance < 0.0f) variance = 0.0f;  // by a rounding, where all values are nearly the same
  const float r = 1.0f / sqrtf(variance + eps);
  if (threadIdx.x == 0) {
    mean[blockIdx.x] = rough + shift;
    rstd[blockIdx.x] = r;
  }
  float scale[V], offset[V];
#pragma unroll
  for (int i = 0; i < V; ++i) {
    scale[i] = weight[part.channel + i] * r;
    offset[i] = bias[part.channel + i] - shift * scale[i];
  }
  own = values + part.own;
  float* to = y + part.begin;
  for (int p = part.lane; p < pixels; p += part.lanes, own += part.own_step, to += part.step) {
    Vector<V> value = load<V>(own);
#pragma unroll
    for (int i = 0; i < V; ++i) value.at[i] = (value.at[i] - rough) * scale[i] + offset[i];
    store<V>(to, value);
  }
}

// dx = r (w dy − Σ w dy/M − x̂ Σ w dy x̂/M), and of each channel of the example Σ dy x̂ and Σ dy:
// of_channels (examples, 2, channels). The formulas are those of channel_norm.cu.
template <int V>
__device__ __forceinline__ void backward(const float* __restrict__ dy,
                                         const float* __restrict__ x,
                                         const float* __restrict__ weight,
                                         const float* __restrict__ mean,
                                         const float* __restrict__ rstd,
                                         double* __restrict__ of_channels, float* __restrict__ dx,
                                         int pixels, int channels, int group, double* room) {
  DYNAMIC_SHARED(float, values);
  float* gradients = values + pixels * group;
  const Part part = part_of<V>(pixels, channels, group);
  copy_part<V>(values, x, part, pixels);
  copy_part<V>(gradients, dy, part, pixels);
  cp_async_commit();
  cp_async_wait<0>();
  const float middle = mean[blockIdx.x];
  float total[V], dot[V], gaps = 0.0f;
#pragma unroll
  for (int i = 0; i < V; ++i) total[i] = dot[i] = 0.0f;
  int at = part.own;
  for (int p = part.lane; p < pixels; p += part.lanes, at += part.own_step) {
    const Vector<V> value = load<V>(values + at), given = load<V>(gradients + at);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float gap = value.at[i] - middle;
      total[i] += given.at[i];
      dot[i] += given.at[i] * gap;
      gaps += gap;
    }
  }
  double found[2 * V + 1];
#pragma unroll
  for (int i = 0; i < V; ++i) found[i] = total[i], found[V + i] = dot[i];
  found[2 * V] = gaps;
  sum_lanes(found, room, group / V);
  double sums[3] = {0.0, 0.0, 0.0};  // Σ w dy, Σ w dy (x − μ) and Σ (x − μ) of the group
  if (part.lane == 0) {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      sums[0] += weight[part.channel + i] * found[i];
      sums[1] += weight[part.channel + i] * found[V + i];
    }
    sums[2] = found[2 * V];
  }
  __syncthreads();
  sum_lanes(sums, room, 1);
  if (threadIdx.x == 0) room[0] = sums[0], room[1] = sums[1], room[2] = sums[2];
  __syncthreads();
  const double count = (double)pixels * group, r = rstd[blockIdx.x], shift = room[2] / count;
  const double slope = r * r * r * (room[1] - shift * room[0]) / count;
  const float level = (float)(shift * slope - r * room[0] / count);
  if (part.lane == 0) {
    double* to = of_channels + (int64)(blockIdx.x / (channels / group)) * 2 * channels;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      to[part.channel + i] = r * (found[V + i] - shift * found[i]);
      to[channels + part.channel + i] = found[i];
    }
  }
  float scale[V];
#pragma unroll
  for (int i = 0; i < V; ++i) scale[i] = (float)(weight[part.channel + i] * r);
  at = part.own;
  float* to = dx + part.begin;
  for (int p = part.lane; p < pixels; p += part.lanes, at += part.own_step, to += part.step) {
    const Vector<V> given = load<V>(gradients + at);
    Vector<V> value = load<V>(values + at);
#pragma unroll
    for (int i = 0; i < V; ++i)
      value.at[i] =
          given.at[i] * scale[i] + level - (value.at[i] - middle) * (float)slope;
    store<V>(to, value);
  }
}

// mean and rstd (examples, groups); a block for each.
#define GROUP_NORM(V)                                                                          \
  extern "C" __global__ void __launch_bounds__(THREADS)                                        \
      group_norm_forward_##V(const float* x, const float* weight, const float* bias, float* y, \
                             float* mean, float* rstd, float eps, int pixels, int channels,    \
                             int group) {                                                      \
    __shared__ float room[THREADS];                                                            \
    forward<V>(x, weight, bias, y, mean, rstd, eps, pixels, channels, group, room);            \
  }                                                                                            \
  extern "C" __global__ void __launch_bounds__(THREADS)                                        \
      group_norm_backward_##V(const float* dy, const float* x, const float* weight,            \
                              const float* mean, const float* rstd, double* of_channels,       \
                              float* dx, int pixels, int channels, int group) {                \
    __shared__ double room[(2 * V + 1) * THREADS];                                             \
    backward<V>(dy, x, weight, mean, rstd, of_channels, dx, pixels, channels, group,           \
                        room);                                                                 \
  }
GROUP_NORM(1)
GROUP_NORM(4)
