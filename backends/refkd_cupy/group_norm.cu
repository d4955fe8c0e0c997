// Group norm of x (examples, pixels, channels): a block does some neighbouring groups of an example,
// so that what lies side by side in memory is read together, and keeps them in shared memory.
// Groups for which this does not pay are channel_norm.cu's.
//
// A thread keeps to V neighbouring channels; `tile` of them make up the block's groups, and the
// lanes of a block stand in pixels one below another.
#include "common.cuh"
#include "vectors.cuh"

#define THREADS 256

// The part of a thread: where its first entry lies among those of x, and from where on it has
// entries in shared memory, which nobody else touches.
struct Part {
  int64 begin, step;  // of x, from lane to lane
  int lane, lanes, channel, own, own_step;
  int slot, group;  // of sums over a group: (lane, vector of the group, group of the block)
};
template <int V>
__device__ __forceinline__ Part part_of(int pixels, int channels, int group, int groups) {
  const int vectors = group / V, tile = groups * vectors;
  const int lane = threadIdx.x / tile, vector = threadIdx.x - lane * tile;
  const int blocks = channels / (group * groups), example = blockIdx.x / blocks;
  const int channel = (blockIdx.x - example * blocks) * group * groups + vector * V;
  const int lanes = blockDim.x / tile, of_block = vector / vectors;
  return {((int64)example * pixels + lane) * channels + channel,
          (int64)lanes * channels,
          lane,
          lanes,
          channel,
          (int)threadIdx.x * V,
          lanes * tile * V,
          (lane * vectors + vector - of_block * vectors) * groups + of_block,
          of_block};
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

// Every thread gets the sum of its group.
__device__ __forceinline__ float sum_group(float value, float* room, const Part& part,
                                           int groups) {
  float values[1] = {value};
  sum_lanes(values, room, groups, part.slot);
  const float sum = room[part.group];
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
                                        int groups, float* room) {
  DYNAMIC_SHARED(float, values);
  const Part part = part_of<V>(pixels, channels, group, groups);
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
  const float rough = sum_group(sum, room, part, groups) / count;
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
  shift = sum_group(shift, room, part, groups) / count;
  float variance = sum_group(square, room, part, groups) / count - shift * shift;
  if (variance < 0.0f) variance = 0.0f;  // by a rounding, where all values are nearly the same
  const float r = 1.0f / sqrtf(variance + eps);
  if (part.slot < groups) {
    mean[blockIdx.x * groups + part.group] = rough + shift;
    rstd[blockIdx.x * groups + part.group] = r;
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
                                         int pixels, int channels, int group, int groups,
                                         double* room) {
  DYNAMIC_SHARED(float, values);
  float* gradients = values + pixels * group * groups;
  const Part part = part_of<V>(pixels, channels, group, groups);
  copy_part<V>(values, x, part, pixels);
  copy_part<V>(gradients, dy, part, pixels);
  cp_async_commit();
  cp_async_wait<0>();
  const float middle = mean[blockIdx.x * groups + part.group];
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
  sum_lanes(found, room, groups * (group / V));
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
  sum_lanes(sums, room, groups, part.slot);
#pragma unroll
  for (int k = 0; k < 3; ++k) sums[k] = room[k * blockDim.x + part.group];
  const double count = (double)pixels * group, r = rstd[blockIdx.x * groups + part.group];
  const double shift = sums[2] / count;
  const double slope = r * r * r * (sums[1] - shift * sums[0]) / count;
  const float level = (float)(shift * slope - r * sums[0] / count);
  if (part.lane == 0) {
    const int example = blockIdx.x / (channels / (group * groups));
    double* to = of_channels + (int64)example * 2 * channels;
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

// mean and rstd (examples, groups); a block for every `groups` neighbours.
#define GROUP_NORM(V)                                                                          \
  extern "C" __global__ void __launch_bounds__(THREADS)                                        \
      group_norm_forward_##V(const float* x, const float* weight, const float* bias, float* y, \
                             float* mean, float* rstd, float eps, int pixels, int channels,    \
                             int group, int groups) {                                          \
    __shared__ float room[THREADS];                                                            \
    forward<V>(x, weight, bias, y, mean, rstd, eps, pixels, channels, group, groups, room);    \
  }                                                                                            \
  extern "C" __global__ void __launch_bounds__(THREADS)                                        \
      group_norm_backward_##V(const float* dy, const float* x, const float* weight,            \
                              const float* mean, const float* rstd, double* of_channels,       \
                              float* dx, int pixels, int channels, int group, int groups) {    \
    __shared__ double room[(2 * V + 1) * THREADS];                                             \
    backward<V>(dy, x, weight, mean, rstd, of_channels, dx, pixels, channels, group, groups,   \
                room);                                                                         \
  }
GROUP_NORM(1)
GROUP_NORM(4)
