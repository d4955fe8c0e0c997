// Convolution as a matrix product whose left or right factor, the patches of the images, is never
// stored: blocks copy what they need of it to shared memory as they go (implicit GEMM). Images
// are (N, H, W, C) in memory. Here are the templates; conv_fma.cu and conv_tensor.cu make kernels
// of them.
#include "product.cuh"

#define FAR (-(1 << 30))  // where a row is that is none: beyond every image, whatever is added
#define STAGES 3  // tiles of the factors in shared memory: one is multiplied, two are on their way

// Copy N floats like cp_async, but keep them in the level-1 cache for the next tap of the kernel.
template <int N>
__device__ __forceinline__ void copy_cached(float* target, const float* source, bool valid) {
#if !defined(REFKD_HOST) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(
                   (unsigned)__cvta_generic_to_shared(target)),
               "l"(source), "n"(4 * N), "r"(valid ? 4 * N : 0) : "memory");
#else
  cp_async<4 * N>(target, source, valid);
#endif
}

// ---- Gathering: y = patches(x) W, and dx = patches(dy) Wᵀ
//
// Both sum, for each pixel of the target, over taps of the kernel and channels of the source.
// In the forward target pixel p sees source pixel p·stride − padding + i·dilation. In the
// backward target u sees source (u + padding − i·dilation) / stride where that is an integer. For
// all u of one remainder (a phase) these are the same taps i, every few, and the source pixels
// go in steps of 1: a convolution like the forward's, of fewer taps.

// One axis: target first_target + o·target_step (o < count) sees source
// o·step + first + t·spread through tap first_tap + t·tap_step of the kernel (t < taps).
struct Axis {
  int count, step, first, spread, taps, first_tap, tap_step, first_target, target_step;
};

__device__ __forceinline__ Axis forward_axis(int targets, int kernel, int stride, int padding,
                                             int dilation) {
  return {targets, stride, -padding, dilation, kernel, 0, 1, 0, 1};
}

__device__ __forceinline__ Axis backward_axis(int targets, int kernel, int stride, int padding,
                                              int dilation, int phase) {
  int shift = phase + padding, tap = 0;
  while (tap < kernel && (shift - tap * dilation) % stride != 0) ++tap;
  int next = tap + 1;
  while (next < kernel && (shift - next * dilation) % stride != 0) ++next;
  int tap_step = next - tap, taps = tap < kernel ? (kernel - 1 - tap) / tap_step + 1 : 0;
  return {(targets - phase + stride - 1) / stride, 1, (shift - tap * dilation) / stride,
          -(tap_step * dilation / stride), taps, tap, tap_step, phase, stride};
}

// A block of WARPS_M x WARPS_N warps makes a tile of pixels x channels of the target. Grid: tiles
// (channels fastest), groups x phases, splits. The sum over taps and channels is cut into `splits`
// parts, each of which is written to a target of its own behind the first; then the bias is
// left out. VECTOR = 4 copies 4 channels at a time and needs all counts of channels and the
// address of the source to be multiples of 4 floats.
// weight: (groups, kernel_height, kernel_width, channels of the source's group, weight_step),
// weight_step >= the channels of the target's group, a multiple of 4, with zeros between.
template <typename Product, int WARPS_M, int WARPS_N, int VECTOR>
__device__ __forceinline__ void gather_product(
    const float* source, const float* weight, const float* bias, float* target, int batch,
    int source_height, int source_width, int source_channels, int target_height, int target_width,
    int target_channels, int weight_step, int groups, int kernel_height, int kernel_width,
    int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h, int dilation_w,
    int backward, int splits) {
  constexpr int ROWS = WARPS_M * WARP_ROWS, COLUMNS = WARPS_N * Product::WIDTH;
  constexpr int THREADS = 32 * WARPS_M * WARPS_N, ENTRIES = DEPTH / VECTOR;
  constexpr int B_STEP = COLUMNS + 8, A_SIZE = ROWS * ROW_STEP, SIZE = A_SIZE + DEPTH * B_STEP;
  constexpr int B_RUNS = COLUMNS / 4;
  static_assert(THREADS % ENTRIES == 0 && THREADS % B_RUNS == 0, "a thread copies of one column");
  DYNAMIC_SHARED(float, stages);     // STAGES of A (ROWS, ROW_STEP) and B (DEPTH, B_STEP)
  __shared__ int4 pixels[ROWS];      // first source row, column and offset; target pixel
  __shared__ int4 steps[2][ENTRIES]; // source rows, columns and offset on; row of the weight
  __shared__ Axis axes[2];           // here, and not in registers, is what only few threads need:
  __shared__ int4 places[ENTRIES];   // channel, horizontal and vertical tap, first channel

  int phases = backward ? stride_h * stride_w : 1;
  int group = blockIdx.y / phases, phase = blockIdx.y % phases;
  Axis v = backward ? backward_axis(target_height, kernel_height, stride_h, padding_h, dilation_h,
                                    phase / stride_w)
                    : forward_axis(target_height, kernel_height, stride_h, padding_h, dilation_h);
  Axis h = backward ? backward_axis(target_width, kernel_width, stride_w, padding_w, dilation_w,
                                    phase % stride_w)
                    : forward_axis(target_width, kernel_width, stride_w, padding_w, dilation_w);
  int channels = source_channels / groups, outputs = target_channels / groups;
  int column_tiles = (outputs + COLUMNS - 1) / COLUMNS;
  int first_pixel = blockIdx.x / column_tiles * ROWS;
  int first_column = blockIdx.x % column_tiles * COLUMNS;
  int count = v.count * h.count;
  if (first_pixel >= batch * count) return;  // of a phase that has fewer pixels than the first
  weight += (int64)group * kernel_height * kernel_width * channels * weight_step;

  for (int r = threadIdx.x; r < ROWS; r += THREADS) {
    int m = first_pixel + r;
    int4 pixel = make_int4(FAR, 0, 0, -1);
    if (m < batch * count) {
      int image = m / count, row = m % count / h.count, column = m % count % h.count;
      pixel.x = row * v.step + v.first;
      pixel.y = column * h.step + h.first;
      pixel.z = ((image * source_height + pixel.x) * source_width + pixel.y) * source_channels;
      pixel.w = (image * target_height + v.first_target + row * v.target_step) * target_width +
                h.first_target + column * h.target_step;
    }
    pixels[r] = pixel;
  }

  if (threadIdx.x == 0) axes[0] = v, axes[1] = h;
  __syncthreads();

  int tiles = (v.taps * h.taps * channels + DEPTH - 1) / DEPTH;
  int each = (tiles + splits - 1) / splits, begin = min(tiles, (int)blockIdx.z * each);
  tiles = min(tiles, begin + each) - begin;

  // The first threads walk over the taps and channels, DEPTH at a time, and note where they are:
  // over all taps with DEPTH channels, where these are a multiple of it, for neighbouring taps see
  // the same pixels; else over the channels with each tap.
  if (threadIdx.x < ENTRIES) {
    int i = begin * DEPTH + threadIdx.x * VECTOR;
    int across = max(h.taps, 1), taps = max(v.taps, 1) * across;  // 0 where nothing is to be summed
    bool taps_first = channels % DEPTH == 0;
    int tap = taps_first ? i / DEPTH % taps : i / channels;
    int channel = taps_first ? i / DEPTH / taps * DEPTH + i % DEPTH : i % channels;
    places[threadIdx.x] = make_int4(channel, tap % across, tap / across, group * channels);
  }
  auto note = [&](int slot) {
    if (threadIdx.x >= ENTRIES) return;
    const Axis &v = axes[0], &h = axes[1];
    int channels = source_channels / groups;
    auto [channel, tap_h, tap_v, first_channel] = places[threadIdx.x];
    int row = (v.first_tap + tap_v * v.tap_step) * kernel_width + h.first_tap + tap_h * h.tap_step;
    int down = tap_v * v.spread, right = tap_h * h.spread;
    steps[slot][threadIdx.x] =
        tap_v < v.taps && channel < channels
            ? make_int4(down, right,
                        (down * source_width + right) * source_channels + first_channel + channel,
                        row * channels + channel)
            : make_int4(FAR, 0, 0, -1);
    if (channels % DEPTH == 0) {
      if (++tap_h >= h.taps) tap_h = 0, ++tap_v;
      if (tap_v >= v.taps) tap_v = 0, channel += DEPTH;
    } else {
      for (channel += DEPTH; channel >= channels; channel -= channels)
        if (++tap_h >= h.taps) tap_h = 0, ++tap_v;
    }
    places[threadIdx.x] = make_int4(channel, tap_h, tap_v, first_channel);
  };
  auto copy = [&](int stage, int slot) {
    float* a = stages + stage * SIZE + threadIdx.x / ENTRIES * ROW_STEP +
               threadIdx.x % ENTRIES * VECTOR;
    int4 step = steps[slot][threadIdx.x % ENTRIES];
#pragma unroll 4
    for (int j = 0; j < ROWS; j += THREADS / ENTRIES) {
      int4 pixel = pixels[j + threadIdx.x / ENTRIES];
      bool inside = (unsigned)(pixel.x + step.x) < (unsigned)source_height &&
                    (unsigned)(pixel.y + step.y) < (unsigned)source_width;
      const float* from = source + (inside ? pixel.z + step.z : 0);
      if constexpr (Product::IS_FAST)
        copy_cached<VECTOR>(a + j * ROW_STEP, from, inside);
      else
        cp_async<4 * VECTOR>(a + j * ROW_STEP, from, inside);
    }
    int k = threadIdx.x / B_RUNS, n = threadIdx.x % B_RUNS * 4;
    float* b = stages + stage * SIZE + A_SIZE + k * B_STEP + n;
#pragma unroll 4
    for (int j = 0; j < DEPTH; j += THREADS / B_RUNS) {
      int row = steps[slot][(j + k) / VECTOR].w;
      bool inside = row >= 0 && first_column + n < weight_step;
      int from = inside ? (row + (j + k) % VECTOR) * weight_step + first_column + n : 0;
      cp_async<16>(b + j * B_STEP, weight + from, inside);
    }
  };

  note(0);
  for (int t = 0; t < STAGES - 1; ++t) {
    __syncthreads();
    if (t < tiles) copy(t, t % 2);
    cp_async_commit();
    note((t + 1) % 2);
  }
  Product product;
  product.clear();
  int a_row = warp_index() / WARPS_N * WARP_ROWS;
  int b_column = warp_index() % WARPS_N * Product::WIDTH;
  int stage = 0, next = STAGES - 1;
  for (int t = 0; t < tiles; ++t) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();  // tile t is there for all, and nobody reads tile t − 1 any more
    if (t + STAGES - 1 < tiles) copy(next, (t + STAGES - 1) % 2);
    cp_async_commit();
    note((t + STAGES) % 2);
    const float* a = stages + stage * SIZE;
    product.add(a + a_row * ROW_STEP, a + A_SIZE + b_column);
    stage = stage + 1 < STAGES ? stage + 1 : 0;
    next = next + 1 < STAGES ? next + 1 : 0;
  }
  cp_async_wait<0>();

  target += (int64)blockIdx.z * batch * target_height * target_width * target_channels;
  first_column += b_column;
  int at = group * outputs + first_column;
  bool aligned = outputs % 4 == 0 && is_aligned16(target);
  if (splits > 1) bias = nullptr;
  product.each([&](int row, int column, auto values) {
    int pixel = pixels[a_row + row].w;
    if (pixel < 0) return;
    put_values(target + (int64)pixel * target_channels + at + column, values,
               outputs - first_column - column, bias ? bias + at + column : nullptr, aligned);
  });
}

// ---- The weight's gradient: dW = dyᵀ patches(x), a sum over the pixels of y
//
// A block makes a tile of (channels of dy) x (taps x channels of x) of a part of the sum: sums
// (splits, K, kernel_height, kernel_width, C / groups). Grid: tiles (the latter fastest), groups,
// splits. The blocks of the first tiles also sum dy: bias_sums (splits, K), or null.
// A_VECTOR = 4 needs the channels of dy and its address to be multiples of 4 floats, B_VECTOR = 4
// those of x.
template <typename Product, int WARPS_M, int WARPS_N, int A_VECTOR, int B_VECTOR>
__device__ __forceinline__ void weight_product(
    const float* dy, const float* x, float* sums, float* bias_sums, int batch, int height,
    int width, int channels, int y_height, int y_width, int y_channels, int groups,
    int kernel_height, int kernel_width, int stride_h, int stride_w, int padding_h, int padding_w,
    int dilation_h, int dilation_w, int splits) {
  constexpr int ROWS = WARPS_M * WARP_ROWS, COLUMNS = WARPS_N * Product::WIDTH;
  constexpr int THREADS = 32 * WARPS_M * WARPS_N;
  constexpr int A_STEP = ROWS + 8, B_STEP = COLUMNS + 8;
  constexpr int A_SIZE = DEPTH * A_STEP, SIZE = A_SIZE + DEPTH * B_STEP;
  constexpr int A_RUNS = ROWS / A_VECTOR, B_RUNS = COLUMNS / B_VECTOR;
  static_assert(THREADS % A_RUNS == 0 && THREADS % B_RUNS == 0, "a thread copies of one column");
  DYNAMIC_SHARED(float, stages);     // STAGES of A (DEPTH, A_STEP) and B (DEPTH, B_STEP)
  __shared__ int4 pixels[2][DEPTH];  // first row, column and offset in x; offset in dy
  __shared__ int4 places[DEPTH];     // column, row and image of a pixel of y, and which it is

  int group = blockIdx.y, inputs = channels / groups, outputs = y_channels / groups;
  int all_columns = kernel_height * kernel_width * inputs;
  int column_tiles = (all_columns + COLUMNS - 1) / COLUMNS;
  int first_row = blockIdx.x / column_tiles * ROWS;
  int first_column = blockIdx.x % column_tiles * COLUMNS;
  int all_pixels = batch * y_height * y_width;
  int tiles = (all_pixels + DEPTH - 1) / DEPTH;
  int each = (tiles + splits - 1) / splits, begin = min(tiles, (int)blockIdx.z * each);
  tiles = min(tiles, begin + each) - begin;

  // Where in the patches this thread's columns are, and its rows in dy
  int column = first_column + threadIdx.x % B_RUNS * B_VECTOR, tap = column / inputs;
  int down = column < all_columns ? tap / kernel_width * dilation_h : FAR / 2;
  int right = tap % kernel_width * dilation_w;
  const float* x_of_column =
      x + (int64)(tap / kernel_width * dilation_h * width + right) * channels + group * inputs +
      column % inputs;
  int row = first_row + threadIdx.x % A_RUNS * A_VECTOR;
  const float* dy_of_row = dy + group * outputs + row;

  // The first threads walk over the pixels, DEPTH at a time, and note where they are.
  if (threadIdx.x < DEPTH) {
    int i = begin * DEPTH + threadIdx.x;
    places[threadIdx.x] = make_int4(i % y_width, i / y_width % y_height, i / y_width / y_height, i);
  }
  auto note = [&](int slot) {
    if (threadIdx.x >= DEPTH) return;
    auto [q, p, image, pixel] = places[threadIdx.x];
    int down = p * stride_h - padding_h, right = q * stride_w - padding_w;
    pixels[slot][threadIdx.x] =
        pixel < all_pixels
            ? make_int4(down, right, ((image * height + down) * width + right) * channels,
                        pixel * y_channels)
            : make_int4(FAR, 0, 0, -1);
    for (q += DEPTH; q >= y_width; q -= y_width)
      if (++p >= y_height) p = 0, ++image;
    places[threadIdx.x] = make_int4(q, p, image, pixel + DEPTH);
  };
  auto copy = [&](int stage, int slot) {
    int k = threadIdx.x / A_RUNS;
    float* a = stages + stage * SIZE + k * A_STEP + threadIdx.x % A_RUNS * A_VECTOR;
#pragma unroll 4
    for (int j = 0; j < DEPTH; j += THREADS / A_RUNS) {
      int at = pixels[slot][j + k].w;
      bool inside = at >= 0 && row < outputs;
      cp_async<4 * A_VECTOR>(a + j * A_STEP, inside ? dy_of_row + at : dy, inside);
    }
    k = threadIdx.x / B_RUNS;
    float* b = stages + stage * SIZE + A_SIZE + k * B_STEP + threadIdx.x % B_RUNS * B_VECTOR;
#pragma unroll 4
    for (int j = 0; j < DEPTH; j += THREADS / B_RUNS) {
      int4 at = pixels[slot][j + k];
      bool inside = (unsigned)(at.x + down) < (unsigned)height &&
                    (unsigned)(at.y + right) < (unsigned)width;
      cp_async<4 * B_VECTOR>(b + j * B_STEP, inside ? x_of_column + at.z : x, inside);
    }
  };

  note(0);
  for (int t = 0; t < STAGES - 1; ++t) {
    __syncthreads();
    if (t < tiles) copy(t, t % 2);
    cp_async_commit();
    note((t + 1) % 2);
  }
  Product product;
  product.clear();
  bool sums_dy = bias_sums && first_column == 0;
  float dy_sums[(ROWS + THREADS - 1) / THREADS] = {};
  int a_row = warp_index() / WARPS_N * WARP_ROWS;
  int b_column = warp_index() % WARPS_N * Product::WIDTH;
  int stage = 0, next = STAGES - 1;
  for (int t = 0; t < tiles; ++t) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    if (t + STAGES - 1 < tiles) copy(next, (t + STAGES - 1) % 2);
    cp_async_commit();
    note((t + STAGES) % 2);
    const float* a = stages + stage * SIZE;
    product.add(a + a_row, a + A_SIZE + b_column);
    if (sums_dy) {
#pragma unroll
      for (int j = 0; j < (ROWS + THREADS - 1) / THREADS; ++j) {
        float sum = 0;
        int m = threadIdx.x + j * THREADS;
        if (m < ROWS)
          for (int k = 0; k < DEPTH; ++k) sum += a[k * A_STEP + m];
        dy_sums[j] += sum;
      }
    }
    stage = stage + 1 < STAGES ? stage + 1 : 0;
    next = next + 1 < STAGES ? next + 1 : 0;
  }
  cp_async_wait<0>();

  if (sums_dy) {
#pragma unroll
    for (int j = 0; j < (ROWS + THREADS - 1) / THREADS; ++j) {
      int m = threadIdx.x + j * THREADS;
      if (m < ROWS && first_row + m < outputs)
        bias_sums[(int64)blockIdx.z * y_channels + group * outputs + first_row + m] = dy_sums[j];
    }
  }
  sums += ((int64)blockIdx.z * y_channels + group * outputs + first_row + a_row) * all_columns;
  first_column += b_column;
  bool aligned = all_columns % 4 == 0 && is_aligned16(sums);
  product.each([&](int row, int column, auto values) {
    if (first_row + a_row + row < outputs)
      put_values(sums + (int64)row * all_columns + first_column + column, values,
                 all_columns - first_column - column, nullptr, aligned);
  });
}

// ---- Kernels of all tiles: conv2d_gather_ROWSxCOLUMNS_vVECTOR, conv2d_weight_ROWSxCOLUMNS_vAB, of
// M x N warps. Registers are shared out so that WARPS warps are resident.

#define GATHER_KERNEL(PRODUCT, M, N, WARPS, VECTOR, NAME)                                         \
  extern "C" __global__ void __launch_bounds__(32 * M * N, WARPS / M / N) conv2d_gather_##NAME(   \
      const float* source, const float4* weight, const float* bias, float* target, int batch,     \
      int source_height, int source_width, int source_channels, int target_height,                \
      int target_width, int target_channels, int weight_step, int groups, int kernel_height,      \
      int kernel_width, int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h, \
      int dilation_w, int backward, int splits) {                                                 \
    using Width = PRODUCT<false, ROW_STEP, 0>;                                                    \
    gather_product<PRODUCT<false, ROW_STEP, N * Width::WIDTH + 8>, M, N, VECTOR>(                 \
        source, (const float*)weight, bias, target, batch, source_height, source_width,           \
        source_channels, target_height, target_width, target_channels, weight_step, groups,       \
        kernel_height, kernel_width, stride_h, stride_w, padding_h, padding_w, dilation_h,        \
        dilation_w, backward, splits);                                                            \
  }

#define WEIGHT_KERNEL(PRODUCT, M, N, WARPS, A_VECTOR, B_VECTOR, NAME)                             \
  extern "C" __global__ void __launch_bounds__(32 * M * N, WARPS / M / N) conv2d_weight_##NAME(   \
      const float* dy, const float* x, float* sums, float* bias_sums, int batch, int height,      \
      int width, int channels, int y_height, int y_width, int y_channels, int groups,             \
      int kernel_height, int kernel_width, int stride_h, int stride_w, int padding_h,             \
      int padding_w, int dilation_h, int dilation_w, int splits) {                                \
    using Width = PRODUCT<true, 0, 0>;                                                            \
    weight_product<PRODUCT<true, 64 * M + 8, N * Width::WIDTH + 8>, M, N, A_VECTOR, B_VECTOR>(    \
        dy, x, sums, bias_sums, batch, height, width, channels, y_height, y_width, y_channels,    \
        groups, kernel_height, kernel_width, stride_h, stride_w, padding_h, padding_w,            \
        dilation_h, dilation_w, splits);                                                          \
  }

// NARROW is a product of 32 columns; N128 warps of WIDE make 128, N64 make 64.
#define CONV_KERNELS(NARROW, NARROW_WARPS, WIDE, N128, N64, WIDE_WARPS) \
  GATHER_KERNEL(WIDE, 2, N128, WIDE_WARPS, 4, 128x128_v4)               \
  GATHER_KERNEL(WIDE, 2, N64, WIDE_WARPS, 4, 128x64_v4)                 \
  GATHER_KERNEL(NARROW, 2, 1, NARROW_WARPS, 4, 128x32_v4)               \
  GATHER_KERNEL(NARROW, 1, 2, NARROW_WARPS, 4, 64x64_v4)                \
  GATHER_KERNEL(NARROW, 2, 2, NARROW_WARPS, 1, 128x64_v1)               \
  GATHER_KERNEL(NARROW, 1, 2, NARROW_WARPS, 1, 64x64_v1)                \
  WEIGHT_KERNEL(WIDE, 2, N128, WIDE_WARPS, 4, 4, 128x128_v44)           \
  WEIGHT_KERNEL(WIDE, 1, N128, WIDE_WARPS, 4, 4, 64x128_v44)            \
  WEIGHT_KERNEL(NARROW, 1, 2, NARROW_WARPS, 4, 4, 64x64_v44)            \
  WEIGHT_KERNEL(NARROW, 1, 2, NARROW_WARPS, 4, 1, 64x64_v41)            \
  WEIGHT_KERNEL(NARROW, 1, 2, NARROW_WARPS, 1, 1, 64x64_v11)
