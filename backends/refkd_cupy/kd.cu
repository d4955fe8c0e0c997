// The distillation loss a · CE(q, labels) + w · KL(t ‖ s) of rows (rows.cuh): q = softmax(z),
// s = softmax(z/T), t = softmax(v/T), scale = 1/T.
// hot: kd_forward_* kd_backward_*
#include "common.cuh"
#include "rows.cuh"

// q, s, t of a row; losses = (−log q at the label, Σ t (log t − log s)). A label that names no
// class makes its loss NaN. q may lie where z does, and t where v does.
template <typename Team>
__device__ __forceinline__ void kd_forward(const float* z, const float* v, int label, float scale,
                                           float* q, float* s, float* t, float* losses,
                                           bool is_own, int classes) {
  float top = largest_of<Team>(z, classes);
  Softmax cold = softmax_below<Team>(z, top, classes, 1);
  Softmax hot = scale == 1 ? cold : softmax_below<Team>(z, top, classes, scale);
  Softmax teacher = softmax_of<Team>(v, classes, scale);
  bool writes_loss = is_own && Team::index() == 0;
  if (writes_loss) losses[0] = label < 0 ? REFKD_NAN : -cold.log(label);
  float soft = sum_of<Team>(classes, [&](int i) {
    float log_s = hot.log(i), log_t = teacher.log(i), p = expf(log_t);
    if (is_own) {
      q[i] = cold.value(i);
      s[i] = expf(log_s);
      t[i] = p;
    }
    return p * (log_t - log_s);
  });
  if (writes_loss) losses[1] = soft;
}

__device__ __forceinline__ int label_or_none(const unsigned char* labels, int width, int64 row,
                                             int classes) {
  return labels ? label_of(labels, width, row, classes) : -1;
}

template <typename Team>
__device__ __forceinline__ void kd_forward(const float* z, const float* v,
                                           const unsigned char* labels, int width, float scale,
                                           float* q, float* s, float* t, float* losses, int64 rows,
                                           int classes) {
  Row row = own_row<Team>(rows);
  int64 at = row.index * classes;
  kd_forward<Team>(z + at, v + at, label_or_none(labels, width, row.index, classes), scale, q + at,
                   s + at, t + at, losses + 2 * row.index, row.is_own, classes);
}

// The same with the logits in shared memory, from where they are read again and again: a warp for
// a row, 2 classes floats each.
extern "C" __global__ void kd_forward_staged(const float* z, const float* v,
                                             const unsigned char* labels, int width, float scale,
                                             float* q, float* s, float* t, float* losses,
                                             long long rows, int classes) {
  DYNAMIC_SHARED(float, room);
  typedef Lanes<32> Team;
  Row row = own_row<Team>(rows);
  int64 at = row.index * classes;
  float* own = room + 2 * classes * warp_index();
  for_each<Team>(classes, [&](int i) {
    cp_async<4>(own + i, z + at + i);
    cp_async<4>(own + classes + i, v + at + i);
  });
  cp_async_commit();
  cp_async_wait<0>();
  __syncwarp();
  kd_forward<Team>(own, own + classes, label_or_none(labels, width, row.index, classes), scale,
                   q + at, s + at, t + at, losses + 2 * row.index, row.is_own, classes);
}

// The same for few classes: a thread for a row, in shared memory of 3 classes floats each, so that
// neighbours in memory are read and written together.
extern "C" __global__ void kd_forward_few(const float* z, const float* v,
                                          const unsigned char* labels, int width, float scale,
                                          float* q, float* s, float* t, float* losses,
                                          long long rows, int classes) {
  DYNAMIC_SHARED(float, room);
  int64 first = (int64)blockIdx.x * blockDim.x, row = first + threadIdx.x;
  int size = blockDim.x * classes;  // of what each array has here
  int count = rows - first < blockDim.x ? (int)(rows - first) * classes : size;
  int64 begin = first * classes;
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    cp_async<4>(room + i, z + begin + i);
    cp_async<4>(room + size + i, v + begin + i);
  }
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  if (row < rows) {
    float* own = room + threadIdx.x * classes;
    kd_forward<Lanes<1>>(own, own + size, label_or_none(labels, width, row, classes), scale, own,
                         own + 2 * size, own + size, losses + 2 * row, true, classes);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    q[begin + i] = room[i];
    t[begin + i] = room[size + i];
    s[begin + i] = room[2 * size + i];
  }
}

// dz = (hard (q − y) + soft (s − t)) · dloss, y the one-hot label
template <typename Team>
__device__ __forceinline__ void kd_backward(const float* q, const float* s, const float* t,
                                            const unsigned char* labels, int width, float hard,
                                            float soft, const float* dloss, bool per_row,
                                            float scale, float* dz, int64 rows, int classes) {
  Row row = own_row<Team>(rows);
  int64 at = row.index * classes;
  float factor = row_scale(dloss, per_row, scale, row.index);
  int label = label_or_none(labels, width, row.index, classes);
  if (row.is_own)
    for_each<Team>(classes, [&](int i) {
      float slope = (s[at + i] - t[at + i]) * soft;
      if (labels) slope += (q[at + i] - (i == label ? 1.0f : 0.0f)) * hard;
      dz[at + i] = slope * factor;
    });
}

// Two sums of each block: of its share of the rows of losses.
extern "C" __global__ void kd_sums(const float* losses, double* sums, long long rows) {
  double hard = 0, soft = 0;
  for (int64 row = global_index(); row < rows; row += grid_stride()) {
    hard += losses[2 * row];
    soft += losses[2 * row + 1];
  }
  hard = block_sum(hard);
  soft = block_sum(soft);
  if (threadIdx.x == 0) {
    sums[2 * blockIdx.x] = hard;
    sums[2 * blockIdx.x + 1] = soft;
  }
}

// terms = (a · hard + w · soft, hard, soft), hard and soft the totals of `count` pairs of losses or
// of sums, divided; hard is soft · 0 where there are no labels. One block.
template <typename T>
__device__ __forceinline__ void kd_terms(const T* pairs, float* loss, float* hard, float* soft,
                                         int64 count, int64 rows, bool has_labels,
                                         double hard_weight, double soft_weight, double divisor) {
  double hard_sum = 0, soft_sum = 0;
  for (int64 i = threadIdx.x; i < count; i += blockDim.x) {
    hard_sum += pairs[2 * i];
    soft_sum += pairs[2 * i + 1];
  }
  hard_sum = block_sum(hard_sum);
  soft_sum = block_sum(soft_sum) / divisor;
  if (threadIdx.x == 0) {
    hard_sum = has_labels ? hard_sum / rows : soft_sum * 0;
    *hard = (float)hard_sum;
    *soft = (float)soft_sum;
    *loss = (float)(hard_weight * hard_sum + soft_weight * soft_sum);
  }
}

extern "C" __global__ void kd_terms_f32(const float* pairs, float* loss, float* hard,
                                        float* soft, long long count, long long rows,
                                        bool has_labels, double hard_weight, double soft_weight,
                                        double divisor) {
  kd_terms(pairs, loss, hard, soft, count, rows, has_labels, hard_weight, soft_weight, divisor);
}

extern "C" __global__ void kd_terms_f64(const double* pairs, float* loss, float* hard,
                                        float* soft, long long count, long long rows,
                                        bool has_labels, double hard_weight, double soft_weight,
                                        double divisor) {
  kd_terms(pairs, loss, hard, soft, count, rows, has_labels, hard_weight, soft_weight, divisor);
}

#define DECLARE(TEAM, SUFFIX)                                                                     \
  extern "C" __global__ void kd_forward_##SUFFIX(                                                 \
      const float* z, const float* v, const unsigned char* labels, int width, float scale,        \
      float* q, float* s, float* t, float* losses, long long rows, int classes) {                 \
    kd_forward<TEAM>(z, v, labels, width, scale, q, s, t, losses, rows, classes);                 \
  }                                                                                               \
  extern "C" __global__ void kd_backward_##SUFFIX(                                                \
      const float* q, const float* s, const float* t, const unsigned char* labels, int width,     \
      float hard, float soft, const float* dloss, bool per_row, float scale, float* dz,           \
      long long rows, int classes) {                                                              \
    kd_backward<TEAM>(q, s, t, labels, width, hard, soft, dloss, per_row, scale, dz, rows,        \
                      classes);                                                                   \
  }
FOR_ALL_TEAMS(DECLARE)
