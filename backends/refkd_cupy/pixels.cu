// Stored images become float32: x = (pixels · scale − mean) / std, each step rounded by itself as
// in the reference, mean and std those of the channel: `run` neighbours in memory belong to one.
#include "common.cuh"

template <typename T>
__device__ __forceinline__ void convert(const T* pixels, const float* mean, const float* std,
                                        float* x, int64 n, int channels, int run, float scale) {
  for (int64 i = global_index(); i < n; i += grid_stride()) {
    int channel = channels == 1 ? 0 : (int)(i / run % channels);
    float value = __fmul_rn((float)pixels[i], scale);
    x[i] = __fadd_rn(value, -mean[channel]) / std[channel];
  }
}

extern "C" __global__ void pixels_from_u8(const unsigned char* pixels, const float* mean,
                                          const float* std, float* x, long long n, int channels,
                                          int run, float scale) {
  convert(pixels, mean, std, x, n, channels, run, scale);
}

extern "C" __global__ void pixels_from_f32(const float* pixels, const float* mean,
                                           const float* std, float* x, long long n, int channels,
                                           int run, float scale) {
  convert(pixels, mean, std, x, n, channels, run, scale);
}
