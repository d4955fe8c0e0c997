// The distillation loss a · CE(q, labels) + w · KL(t ‖ s) of rows (rows.cuh): q = softmax(z),
// s = softmax(z/T), t = softmax(v/T), scale = 1/T.
// hot: kd_forward_* kd_backward_*
#include "common.cuh"
#include "rows.cuh"

// q, s, t; losses[row] = (−log q at the label, Σ t (log t − log s)). A label that names no class
// makes its loss NaN.
template <typename Team>
__device__ __forceinline__ void kd_forward(const float* z, const float* v,
                                           const unsigned char* labels, int width, float scale,
                                           float* q, float* s, float* t, float* losses, int64 rows,
                                           int classes) {
  Row row = own_row<Team>(rows);
  int64 at = row.index * classes;
  z += at;
  v += at;
  float top = largest_of<Team>(z, classes);
  Softmax cold = softmax_below<Team>(z, top, classes, 1);
  Softmax hot = scale == 1 ? cold : softmax_below<Team>(z, top, classes, scale);
  Softmax teacher = softmax_of<Team>(v, classes, scale);
  float soft = sum_of<Team>(classes, [&](int i) {
    float log_s = hot.log(i), log_t = teacher.log(i), p = expf(log_t);
    if (row.is_own) {
      q[at + i] = cold.value(i);
      s[at + i] = expf(log_s);
      t[at + i] = p;
    }
    return p * (log_t - log_s);
  });
  if (row.is_own && Team::index() == 0) {
    int label = labels ? label_of(labels, width, row.index, classes) : -1;
    losses[2 * row.index] = label < 0 ? REFKD_NAN : -cold.log(label);
    losses[2 * row.index + 1] = soft;
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
  int label = labels ? label_of(labels, width, row.index, classes) : -1;
  if (row.is_own)
    for_each<Team>(classes, [&](int i) {
      float slope = (s[at + i] - t[at + i]) * soft;
      if (labels) slope += (q[at + i] - (i == label ? 1.0f : 0.0f)) * hard;
      dz[at + i] = slope * factor;
    });
}

// terms = (a · hard + w · soft, hard, soft), hard and soft the sums of losses over all rows,
// divided; hard is soft · 0 where there are no labels. One block.
extern "C" __global__ void kd_terms(const float* losses, float* loss, float* hard, float* soft,
                                    long long rows, bool has_labels, double hard_weight,
                                    double soft_weight, double divisor) {
  double hard_sum = 0, soft_sum = 0;
  for (int64 row = threadIdx.x; row < rows; row += blockDim.x) {
    hard_sum += losses[2 * row];
    soft_sum += losses[2 * row + 1];
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
