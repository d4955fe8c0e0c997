// Depthwise convolution: each channel of the output sees one of the input. Images are (N, H, W, C)
// in memory, the weight is (outputs, taps); output k sees input k / (outputs / inputs).
#include "common.cuh"

// A thread has outputs of its own; neighbours have neighbouring channels.
extern "C" __global__ void depthwise_forward(const float* x, const float* weight,
                                             const float* bias, float* y, int batch, int height,
                                             int width, int inputs, int y_height, int y_width,
                                             int outputs, int kernel_height, int kernel_width,
                                             int stride_h, int stride_w, int padding_h,
                                             int padding_w, int dilation_h, int dilation_w) {
  int size = batch * y_height * y_width * outputs, each = outputs / inputs;
  for (int64 i = global_index(); i < size; i += grid_stride()) {
    int k = i % outputs, pixel = i / outputs;
    int q = pixel % y_width, p = pixel / y_width % y_height, image = pixel / y_width / y_height;
    const float* taps = weight + (int64)k * kernel_height * kernel_width;
    float sum = bias ? bias[k] : 0;
    for (int r = 0; r < kernel_height; ++r) {
      int row = p * stride_h - padding_h + r * dilation_h;
      for (int s = 0; s < kernel_width; ++s) {
        int column = q * stride_w - padding_w + s * dilation_w;
        bool inside = (unsigned)row < (unsigned)height && (unsigned)column < (unsigned)width;
        // Padding is multiplied like the rest: a weight of NaN makes NaN of it.
        float value = inside ? x[((image * height + row) * width + column) * inputs + k / each] : 0;
        sum = fmaf(value, taps[r * kernel_width + s], sum);
      }
    }
    y[i] = sum;
  }
}

// dx at u collects from every output that has seen it: p · stride = u + padding − r · dilation.
extern "C" __global__ void depthwise_backward_input(
    const float* dy, const float* weight, float* dx, int batch, int height, int width, int inputs,
    int y_height, int y_width, int outputs, int kernel_height, int kernel_width, int stride_h,
    int stride_w, int padding_h, int padding_w, int dilation_h, int dilation_w) {
  int size = batch * height * width * inputs, each = outputs / inputs;
  for (int64 i = global_index(); i < size; i += grid_stride()) {
    int c = i % inputs, pixel = i / inputs;
    int v = pixel % width, u = pixel / width % height, image = pixel / width / height;
    float sum = 0;
    for (int r = 0; r < kernel_height; ++r) {
      int down = u + padding_h - r * dilation_h;
      if (down < 0 || down % stride_h != 0 || down / stride_h >= y_height) continue;
      for (int s = 0; s < kernel_width; ++s) {
        int right = v + padding_w - s * dilation_w;
        if (right < 0 || right % stride_w != 0 || right / stride_w >= y_width) continue;
        int at = ((image * y_height + down / stride_h) * y_width + right / stride_w) * outputs;
        for (int k = c * each; k < (c + 1) * each; ++k)
          sum = fmaf(dy[at + k], weight[(k * kernel_height + r) * kernel_width + s], sum);
      }
    }
    dx[i] = sum;
  }
}

// sums (parts, outputs, taps) = Σ dy x over a part of the pixels of y. Blocks of 32 channels x 8
// threads for each; grid: blocks of channels, taps, parts. A thread adds every eighth pixel.
extern "C" __global__ void depthwise_backward_weight(
    const float* dy, const float* x, float* sums, int batch, int height, int width, int inputs,
    int y_height, int y_width, int outputs, int kernel_height, int kernel_width, int stride_h,
    int stride_w, int padding_h, int padding_w, int dilation_h, int dilation_w) {
  __shared__ float shared[8][33];
  int k = blockIdx.x * 32 + threadIdx.x, pixels = batch * y_height * y_width;
  int taps = kernel_height * kernel_width, each = (pixels + gridDim.z - 1) / gridDim.z;
  int begin = blockIdx.z * each, end = min(pixels, begin + each);
  int down = blockIdx.y / kernel_width * dilation_h - padding_h;
  int right = blockIdx.y % kernel_width * dilation_w - padding_w;
  float total = 0;
  if (k < outputs) {
    int c = k / (outputs / inputs);
    for (int pixel = begin + threadIdx.y; pixel < end; pixel += 8) {
      int q = pixel % y_width, p = pixel / y_width % y_height, image = pixel / y_width / y_height;
      int row = p * stride_h + down, column = q * stride_w + right;
      bool inside = (unsigned)row < (unsigned)height && (unsigned)column < (unsigned)width;
      float value = inside ? x[((image * height + row) * width + column) * inputs + c] : 0;
      total = fmaf(dy[pixel * outputs + k], value, total);
    }
  }
  shared[threadIdx.y][threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.y == 0 && k < outputs) {
    for (int i = 1; i < 8; ++i) total += shared[i][threadIdx.x];
    sums[((int64)blockIdx.z * outputs + k) * taps + blockIdx.y] = total;
  }
}
