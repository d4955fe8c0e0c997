// Optimiser and averaging updates in place, one pass over the arrays each changes.
#include "common.cuh"
#include "optimizer.cuh"

// hot
extern "C" __global__ void sgd_update(float* param, const float* grad, float* momentum_buffer,
                                      long long n, float lr, float momentum, float decay,
                                      bool nesterov) {
  SgdNumbers numbers{lr, momentum, decay, nesterov};
  for (int64 i = global_index(); i < n; i += grid_stride())
    sgd(param[i], grad[i], momentum_buffer[i], numbers);
}

// A thread takes 4 neighbours at a time where all addresses allow.
// hot
extern "C" __global__ void adam_update(float* param, const float* grad, float* exp_avg,
                                       float* exp_avg_sq, long long n, float beta1, float rest1,
                                       float beta2, float rest2, float step_size, float floor,
                                       float decay, float shrink) {
  AdamNumbers numbers{beta1, rest1, beta2, rest2, step_size, floor, decay, shrink};
  int64 first = global_index(), step = grid_stride();
  bool aligned = is_aligned16(param) && is_aligned16(grad) && is_aligned16(exp_avg) &&
                 is_aligned16(exp_avg_sq);
  int64 vectors = aligned ? n / 4 : 0;
  for (int64 i = 4 * first; i < 4 * vectors; i += 4 * step) {
    float4 w = load4(param + i), g = load4(grad + i);
    float4 m = load4(exp_avg + i), v = load4(exp_avg_sq + i);
    adam(w.x, g.x, m.x, v.x, numbers);
    adam(w.y, g.y, m.y, v.y, numbers);
    adam(w.z, g.z, m.z, v.z, numbers);
    adam(w.w, g.w, m.w, v.w, numbers);
    store4(param + i, w);
    store4(exp_avg + i, m);
    store4(exp_avg_sq + i, v);
  }
  for (int64 i = 4 * vectors + first; i < n; i += step)
    adam(param[i], grad[i], exp_avg[i], exp_avg_sq[i], numbers);
}

// average ← decay · average + rest · value
extern "C" __global__ void ema_update(float* average, const float* value, long long n, float decay,
                                      float rest) {
  for (int64 i = global_index(); i < n; i += grid_stride())
    average[i] = decay * average[i] + rest * value[i];
}
