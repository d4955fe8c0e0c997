// Softmax cross-entropy of rows (rows.cuh). The target t of a row is `on` for the class of its
// label and `off` for the others, or the row of `distributions` where there are no labels.
// hot: cross_entropy_*
#include "common.cuh"
#include "rows.cuh"

struct Target {
  const float* distribution;
  int label;
  float on, off;
  __device__ __forceinline__ float operator()(int i) const {
    return distribution ? distribution[i] : i == label ? on : off;
  }
};
__device__ __forceinline__ Target target_of(const unsigned char* labels, int width,
                                            const float* distributions, float on, float off,
                                            int64 row, int classes) {
  if (distributions) return {distributions + row * classes, -1, on, off};
  return {nullptr, label_of(labels, width, row, classes), on, off};
}

// log_q = log softmax(logits), losses = −Σ t log_q, where 0 · log 0 is 0
template <typename Team>
__device__ __forceinline__ void cross_entropy_forward(const float* logits,
                                                      const unsigned char* labels, int width,
                                                      const float* distributions, float on,
                                                      float off, float* log_q, float* losses,
                                                      int64 rows, int classes) {
  Row row = own_row<Team>(rows);
  Target t = target_of(labels, width, distributions, on, off, row.index, classes);
  logits += row.index * classes;
  log_q += row.index * classes;
  Softmax q = softmax_of<Team>(logits, classes, 1);
  float loss = sum_of<Team>(classes, [&](int i) {
    float log = q.log(i);
    if (row.is_own) log_q[i] = log;
    const float weight = t(i);
    return weight == 0 ? 0.0f : weight * log;
  });
  if (row.is_own && Team::index() == 0) losses[row.index] = -loss;
}

// dz = (exp(log_q) Σ t − t) · scale
template <typename Team>
__device__ __forceinline__ void cross_entropy_backward(const float* log_q,
                                                       const unsigned char* labels, int width,
                                                       const float* distributions, float on,
                                                       float off, const float* dloss,
                                                       bool per_row, float scale, float* dz,
                                                       int64 rows, int classes) {
  Row row = own_row<Team>(rows);
  Target t = target_of(labels, width, distributions, on, off, row.index, classes);
  log_q += row.index * classes;
  dz += row.index * classes;
  float mass = distributions ? sum_of<Team>(classes, [&](int i) { return t(i); })
               : t.label >= 0 ? on + (classes - 1) * off
                              : classes * off;
  float factor = row_scale(dloss, per_row, scale, row.index);
  if (row.is_own)
    for_each<Team>(classes, [&](int i) { dz[i] = (expf(log_q[i]) * mass - t(i)) * factor; });
}

#define DECLARE(TEAM, SUFFIX)                                                                     \
  extern "C" __global__ void cross_entropy_forward_##SUFFIX(                                      \
      const float* logits, const unsigned char* labels, int width, const float* distributions,    \
      float on, float off, float* log_q, float* losses, long long rows, int classes) {            \
    cross_entropy_forward<TEAM>(logits, labels, width, distributions, on, off, log_q, losses,     \
                                rows, classes);                                                   \
  }                                                                                               \
  extern "C" __global__ void cross_entropy_backward_##SUFFIX(                                     \
      const float* log_q, const unsigned char* labels, int width, const float* distributions,     \
      float on, float off, const float* dloss, bool per_row, float scale, float* dz,              \
      long long rows, int classes) {                                                              \
    cross_entropy_backward<TEAM>(log_q, labels, width, distributions, on, off, dloss, per_row,    \
                                 scale, dz, rows, classes);                                       \
  }
FOR_ALL_TEAMS(DECLARE)
