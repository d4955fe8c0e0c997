// Softmax and log-softmax of rows, scale = 1/T; grids are of teams, one a row (rows.cuh).
// hot: softmax_* log_softmax_*
#include "common.cuh"
#include "rows.cuh"

// y = softmax(scale · x)
template <typename Team>
__device__ __forceinline__ void softmax_forward(const float* x, float* y, float scale, int64 rows,
                                                int classes) {
  Row row = own_row<Team>(rows);
  x += row.index * classes;
  y += row.index * classes;
  Softmax q = softmax_of<Team>(x, classes, scale);
  if (row.is_own) for_each<Team>(classes, [&](int i) { y[i] = q.value(i); });
}

// dx = y (dy − Σ dy y) · scale
template <typename Team>
__device__ __forceinline__ void softmax_backward(const float* dy, const float* y, float* dx,
                                                 float scale, int64 rows, int classes) {
  Row row = own_row<Team>(rows);
  dy += row.index * classes;
  y += row.index * classes;
  dx += row.index * classes;
  float sum = sum_of<Team>(classes, [&](int i) { return dy[i] * y[i]; });
  if (row.is_own) for_each<Team>(classes, [&](int i) { dx[i] = y[i] * (dy[i] - sum) * scale; });
}

// y = scale · x − log Σ exp(scale · x)
template <typename Team>
__device__ __forceinline__ void log_softmax_forward(const float* x, float* y, float scale,
                                                    int64 rows, int classes) {
  Row row = own_row<Team>(rows);
  x += row.index * classes;
  y += row.index * classes;
  Softmax q = softmax_of<Team>(x, classes, scale);
  if (row.is_own) for_each<Team>(classes, [&](int i) { y[i] = q.log(i); });
}

// dx = (dy − exp(y) Σ dy) · scale
template <typename Team>
__device__ __forceinline__ void log_softmax_backward(const float* dy, const float* y, float* dx,
                                                     float scale, int64 rows, int classes) {
  Row row = own_row<Team>(rows);
  dy += row.index * classes;
  y += row.index * classes;
  dx += row.index * classes;
  float sum = sum_of<Team>(classes, [&](int i) { return dy[i]; });
  if (row.is_own)
    for_each<Team>(classes, [&](int i) { dx[i] = (dy[i] - expf(y[i]) * sum) * scale; });
}

#define DECLARE(TEAM, SUFFIX)                                                                     \
  extern "C" __global__ void softmax_forward_##SUFFIX(const float* x, float* y, float scale,      \
                                                      long long rows, int classes) {              \
    softmax_forward<TEAM>(x, y, scale, rows, classes);                                            \
  }                                                                                               \
  extern "C" __global__ void softmax_backward_##SUFFIX(const float* dy, const float* y,           \
                                                       float* dx, float scale, long long rows,    \
                                                       int classes) {                             \
    softmax_backward<TEAM>(dy, y, dx, scale, rows, classes);                                      \
  }                                                                                               \
  extern "C" __global__ void log_softmax_forward_##SUFFIX(const float* x, float* y, float scale,  \
                                                          long long rows, int classes) {          \
    log_softmax_forward<TEAM>(x, y, scale, rows, classes);                                        \
  }                                                                                               \
  extern "C" __global__ void log_softmax_backward_##SUFFIX(                                       \
      const float* dy, const float* y, float* dx, float scale, long long rows, int classes) {     \
    log_softmax_backward<TEAM>(dy, y, dx, scale, rows, classes);                                  \
  }
FOR_ALL_TEAMS(DECLARE)
