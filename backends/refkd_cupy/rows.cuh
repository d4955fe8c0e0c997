// Rows of classes: who computes one, and what is computed of one. A team is 8 or 32 neighbouring
// lanes, or a block; each of its threads takes every size()-th class, and all get the same sums.
// Where there are more teams than rows, the last ones do the last row again and write nothing.

template <int WIDTH>
struct Lanes {
  static __device__ __forceinline__ int64 row() { return global_index() / WIDTH; }
  static __device__ __forceinline__ int index() { return threadIdx.x & (WIDTH - 1); }
  static __device__ __forceinline__ int size() { return WIDTH; }
  static __device__ __forceinline__ float sum(float value) {
    for (int step = WIDTH / 2; step > 0; step >>= 1)
      value += __shfl_xor_sync(FULL_MASK, value, step);
    return value;
  }
  static __device__ __forceinline__ float max(float value) {
    for (int step = WIDTH / 2; step > 0; step >>= 1)
      value = max_with_nan(value, __shfl_xor_sync(FULL_MASK, value, step));
    return value;
  }
};

struct Block {
  static __device__ __forceinline__ int64 row() { return blockIdx.x; }
  static __device__ __forceinline__ int index() { return threadIdx.x; }
  static __device__ __forceinline__ int size() { return blockDim.x; }
  static __device__ __forceinline__ float sum(float value) { return block_sum(value); }
  static __device__ __forceinline__ float max(float value) { return block_max(value); }
};

// Declare kernels KERNEL_8, KERNEL_32 and KERNEL_block.
#define FOR_ALL_TEAMS(DECLARE) \
  DECLARE(Lanes<8>, 8)         \
  DECLARE(Lanes<32>, 32)       \
  DECLARE(Block, block)

// The row of this team, and whether it is not done by another team too.
struct Row {
  int64 index;
  bool is_own;
};
template <typename Team>
__device__ __forceinline__ Row own_row(int64 rows) {
  int64 row = Team::row();
  return {row < rows ? row : rows - 1, row < rows};
}

template <typename Team, typename F>
__device__ __forceinline__ void for_each(int classes, F f) {
#pragma unroll 4
  for (int i = Team::index(); i < classes; i += Team::size()) f(i);
}
template <typename Team, typename F>
__device__ __forceinline__ float sum_of(int classes, F f) {
  float sum = 0;
  for_each<Team>(classes, [&](int i) { sum += f(i); });
  return Team::sum(sum);
}
template <typename Team>
__device__ __forceinline__ float largest_of(const float* x, int classes) {
  float top = -REFKD_INFINITY;
  for_each<Team>(classes, [&](int i) { top = max_with_nan(top, x[i]); });
  return Team::max(top);
}

// softmax(scale · x) of a row, and its logarithm: with z = (x − max x) · scale, the logarithm is
// z − log Σ exp z.
struct Softmax {
  const float* x;
  float top, scale, inverse, log_sum;  // inverse of Σ exp z
  __device__ __forceinline__ float shifted(int i) const { return (x[i] - top) * scale; }
  __device__ __forceinline__ float log(int i) const { return shifted(i) - log_sum; }
  __device__ __forceinline__ float value(int i) const { return expf(shifted(i)) * inverse; }
};
template <typename Team>
__device__ __forceinline__ Softmax softmax_below(const float* x, float top, int classes,
                                                 float scale) {
  Softmax q{x, top, scale, 0, 0};
  float sum = sum_of<Team>(classes, [&](int i) { return expf(q.shifted(i)); });
  q.inverse = 1 / sum;
  q.log_sum = logf(sum);
  return q;
}
template <typename Team>
__device__ __forceinline__ Softmax softmax_of(const float* x, int classes, float scale) {
  return softmax_below<Team>(x, largest_of<Team>(x, classes), classes, scale);
}

// The factor of a row's gradient: `scale`, times dloss or its entry of the row where it is an array.
__device__ __forceinline__ float row_scale(const float* dloss, bool per_row, float scale,
                                           int64 row) {
  return dloss ? scale * dloss[per_row ? row : 0] : scale;
}

// The label of a row, −1 where it names no class. `width` is the bytes of an entry, negative for
// signed integers.
__device__ __forceinline__ int label_of(const unsigned char* labels, int width, int64 row,
                                        int classes) {
  long long label;
  switch (width) {
    case 1: label = labels[row]; break;
    case 2: label = ((const unsigned short*)labels)[row]; break;
    case 4: label = ((const unsigned int*)labels)[row]; break;
    case -1: label = ((const signed char*)labels)[row]; break;
    case -2: label = ((const short*)labels)[row]; break;
    case -4: label = ((const int*)labels)[row]; break;
    default: label = ((const long long*)labels)[row];
  }
  return label >= 0 && label < classes ? (int)label : -1;
}
