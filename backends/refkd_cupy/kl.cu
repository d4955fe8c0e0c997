// Divergences of two softmax distributions of rows (rows.cuh), scale = 1/T.
// hot: kl_*
#include "common.cuh"
#include "rows.cuh"

// log_p, log_q; losses = Σ p (log p − log q)
template <typename Team>
__device__ __forceinline__ void kl_forward(const float* p_logits, const float* q_logits,
                                           float scale, float* log_p, float* log_q, float* losses,
                                           int64 rows, int classes) {
  Row row = own_row<Team>(rows);
  int64 at = row.index * classes;
  Softmax p = softmax_of<Team>(p_logits + at, classes, scale);
  Softmax q = softmax_of<Team>(q_logits + at, classes, scale);
  float loss = sum_of<Team>(classes, [&](int i) {
    float a = p.log(i), b = q.log(i);
    if (row.is_own) {
      log_p[at + i] = a;
      log_q[at + i] = b;
    }
    return expf(a) * (a - b);
  });
  if (row.is_own && Team::index() == 0) losses[row.index] = loss;
}

// dp = p (l − Σ p l) · scale, l = log p − log q, and dq = (q − p) · scale; either may be absent
template <typename Team>
__device__ __forceinline__ void kl_backward(const float* log_p, const float* log_q,
                                            const float* dloss, bool per_row, float scale,
                                            float* dp, float* dq, int64 rows, int classes) {
  Row row = own_row<Team>(rows);
  int64 at = row.index * classes;
  log_p += at;
  log_q += at;
  float factor = row_scale(dloss, per_row, scale, row.index), mean = 0;
  if (dp)
    mean = sum_of<Team>(classes, [&](int i) { return expf(log_p[i]) * (log_p[i] - log_q[i]); });
  if (row.is_own)
    for_each<Team>(classes, [&](int i) {
      float a = log_p[i], b = log_q[i], p = expf(a);
      if (dp) dp[at + i] = p * ((a - b) - mean) * factor;
      if (dq) dq[at + i] = (expf(b) - p) * factor;
    });
}

// s, t; losses = Σ t (log t − s), where log s is due
template <typename Team>
__device__ __forceinline__ void kl_without_log_forward(const float* z, const float* v, float scale,
                                                       float* s, float* t, float* losses,
                                                       int64 rows, int classes) {
  Row row = own_row<Team>(rows);
  int64 at = row.index * classes;
  Softmax student = softmax_of<Team>(z + at, classes, scale);
  Softmax teacher = softmax_of<Team>(v + at, classes, scale);
  float loss = sum_of<Team>(classes, [&](int i) {
    float a = student.value(i), log_t = teacher.log(i), b = expf(log_t);
    if (row.is_own) {
      s[at + i] = a;
      t[at + i] = b;
    }
    return b * (log_t - a);
  });
  if (row.is_own && Team::index() == 0) losses[row.index] = loss;
}

// dz = −s (t − Σ t s) · scale
template <typename Team>
__device__ __forceinline__ void kl_without_log_backward(const float* s, const float* t,
                                                        const float* dloss, bool per_row,
                                                        float scale, float* dz, int64 rows,
                                                        int classes) {
  Row row = own_row<Team>(rows);
  int64 at = row.index * classes;
  s += at;
  t += at;
  float factor = -row_scale(dloss, per_row, scale, row.index);
  float mean = sum_of<Team>(classes, [&](int i) { return t[i] * s[i]; });
  if (row.is_own)
    for_each<Team>(classes, [&](int i) { dz[at + i] = s[i] * (t[i] - mean) * factor; });
}

#define DECLARE(TEAM, SUFFIX)                                                                     \
  extern "C" __global__ void kl_forward_##SUFFIX(const float* p_logits, const float* q_logits,    \
                                                 float scale, float* log_p, float* log_q,         \
                                                 float* losses, long long rows, int classes) {    \
    kl_forward<TEAM>(p_logits, q_logits, scale, log_p, log_q, losses, rows, classes);             \
  }                                                                                               \
  extern "C" __global__ void kl_backward_##SUFFIX(                                                \
      const float* log_p, const float* log_q, const float* dloss, bool per_row, float scale,      \
      float* dp, float* dq, long long rows, int classes) {                                        \
    kl_backward<TEAM>(log_p, log_q, dloss, per_row, scale, dp, dq, rows, classes);                \
  }                                                                                               \
  extern "C" __global__ void kl_without_log_forward_##SUFFIX(                                     \
      const float* z, const float* v, float scale, float* s, float* t, float* losses,             \
      long long rows, int classes) {                                                              \
    kl_without_log_forward<TEAM>(z, v, scale, s, t, losses, rows, classes);                       \
  }                                                                                               \
  extern "C" __global__ void kl_without_log_backward_##SUFFIX(                                    \
      const float* s, const float* t, const float* dloss, bool per_row, float scale, float* dz,   \
      long long rows, int classes) {                                                              \
    kl_without_log_backward<TEAM>(s, t, dloss, per_row, scale, dz, rows, classes);                \
  }
FOR_ALL_TEAMS(DECLARE)
