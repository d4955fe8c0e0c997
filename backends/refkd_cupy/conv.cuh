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
// weight_step >= the channels of the target's group, a multiple of 4, with zeros between. For
// tensor cores that copy 4 channels at a time it has pairs together, (..., half the channels,
// weight_step / 4, 2 channels of the source, 2 of the target).
template <typename Product, int WARPS_M, int WARPS_N, int VECTOR>
__device__ __forceinline__ void gather_product(
    const float* source, const float* weight, const float* bias, float* target, int batch,
    int source_height, int source_width, int source_channels, int target_height, int target_width,
    int target_channels, int weight_step, int groups, int kernel_height, int kernel_width,
    int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h, int dilation_w,
    int backward, int splits) {
  constexpr int ROWS = WARPS_M * WARP_ROWS, COLUMNS = WARPS_N * Product::WIDTH;
  constexpr int THREADS = 32 * WARPS_M * WARPS_N, ENTRIES = DEPTH / VECTOR;
  constexpr int A_STEP = Product::ROW_STEP, B_STEP = COLUMNS + Product::PAD;
  constexpr int A_SIZE = ROWS * A_STEP, SIZE = A_SIZE + DEPTH * B_STEP;
  constexpr bool PAIRS = Product::PAIRS && VECTOR == 4;
  // Floats of B to copy at a time, how many of each column, and how often a row
  constexpr int RUN = Product::PAIRS && !PAIRS ? 1 : 4, DEEP = PAIRS ? 2 : 1;
  constexpr int B_RUNS = COLUMNS * DEEP / RUN;
  static_assert(THREADS % ENTRIES == 0 && THREADS % B_RUNS == 0, "a thread copies of one column");
  DYNAMIC_SHARED(float, stages);  // STAGES of A (ROWS, A_STEP) and B (DEPTH, B_STEP)
  // To each tap: source rows, columns and offset on; offset in the weight
  int4* steps = (int4*)(stages + STAGES * SIZE);
  __shared__ int4 pixels[ROWS];  // first source row, column and offset; target pixel

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
  int first_weight = group * kernel_height * kernel_width * channels / DEEP * weight_step;

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

  int taps = v.taps * h.taps;
  for (int t = threadIdx.x; t < taps; t += THREADS) {
    int tap_v = t / h.taps, tap_h = t % h.taps, down = tap_v * v.spread, right = tap_h * h.spread;
    int of_weight =
        (v.first_tap + tap_v * v.tap_step) * kernel_width + h.first_tap + tap_h * h.tap_step;
    steps[t] = make_int4(down, right,
                         (down * source_width + right) * source_channels + group * channels,
                         of_weight * channels / DEEP * weight_step);
  }

  int tiles = (taps * channels + DEPTH - 1) / DEPTH;
  int each = (tiles + splits - 1) / splits, begin = min(tiles, (int)blockIdx.z * each);
  tiles = min(tiles, begin + each) - begin;

  // A thread copies of A always the same of the DEPTH channels, of taps that it walks along: over
  // all taps with DEPTH channels, where these are a multiple of it, for neighbouring taps see the
  // same pixels; else over the channels with each tap.
  int first = begin * DEPTH + threadIdx.x % ENTRIES * VECTOR;
  bool taps_first = channels % DEPTH == 0;
  int tap = taps_first ? first / DEPTH % max(taps, 1) : first / channels;
  int channel =
      taps_first ? first / DEPTH / max(taps, 1) * DEPTH + first % DEPTH : first % channels;
  __syncthreads();

  auto copy = [&](int stage) {
    int4 step = make_int4(FAR, 0, 0, -1);
    if (tap < taps && channel < channels) {
      step = steps[tap];
      step.z += channel, step.w += channel / DEEP * weight_step;
    }
    float *a = stages + stage * SIZE, *b = a + A_SIZE;
    int r = threadIdx.x / ENTRIES;
    a += r * A_STEP + threadIdx.x % ENTRIES * VECTOR;
    constexpr int ROWS_APART = THREADS / ENTRIES, EACH = ROWS / ROWS_APART;
    constexpr int AT_ONCE = EACH < 4 ? EACH : 4;
#pragma unroll 1
    for (int j = 0; j < ROWS; j += AT_ONCE * ROWS_APART) {
      int4 pixel[AT_ONCE];
#pragma unroll
      for (int i = 0; i < AT_ONCE; ++i) pixel[i] = pixels[j + i * ROWS_APART + r];
#pragma unroll
      for (int i = 0; i < AT_ONCE; ++i) {
        bool inside = (unsigned)(pixel[i].x + step.x) < (unsigned)source_height &&
                      (unsigned)(pixel[i].y + step.y) < (unsigned)source_width;
        const float* from = source + (uint32)(inside ? pixel[i].z + step.z : 0);
        if constexpr (Product::IS_FAST)
          copy_cached<VECTOR>(a + (j + i * ROWS_APART) * A_STEP, from, inside);
        else
          cp_async<4 * VECTOR>(a + (j + i * ROWS_APART) * A_STEP, from, inside);
      }
    }
    int k = threadIdx.x % THREADS / B_RUNS * DEEP, n = threadIdx.x % B_RUNS * RUN / DEEP;
    int of_column = first_weight + (first_column + n) * DEEP;
#pragma unroll 4
    for (int j = 0; j < DEPTH; j += THREADS / B_RUNS * DEEP) {
      int row = __shfl_sync(FULL_MASK, step.w, (j + k) / VECTOR);
      bool inside = row >= 0 && (first_column + n) * DEEP < weight_step;
      int from = row + (j + k) % VECTOR / DEEP * weight_step + of_column;
      int to = Product::PAIRS ? place_in_pairs<B_STEP>(j + k, n)
                              : Product::template place<B_STEP>(j + k, n);
      cp_async<4 * RUN>(b + to, weight + (uint32)(inside ? from : 0), inside);
    }
    if (taps_first) {
      if (++tap == taps) tap = 0, channel += DEPTH;
    } else {
      for (channel += DEPTH; channel >= channels; channel -= channels) ++tap;
    }
  };

  for (int t = 0; t < STAGES - 1; ++t) {
    if (t < tiles) copy(t);
    cp_async_commit();
  }
  Product product;
  product.clear();
  int a_row = warp_index() / WARPS_N * WARP_ROWS;
  int b_column = warp_index() % WARPS_N * Product::WIDTH;
  int stage = 0, next = STAGES - 1;
  for (int t = 0; t < tiles; ++t) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();  // tile t is there for all, and nobody reads tile t − 1 any more
    const float* a = stages + stage * SIZE;
    const float* b = a + A_SIZE + b_column * (Product::PAIRS ? 2 : 1);
    product.add(a + a_row * A_STEP, b, [&] {
      if (t + STAGES - 1 < tiles) copy(next);
      cp_async_commit();
    });
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
  constexpr int A_STEP = ROWS + Product::PAD, B_STEP = COLUMNS + Product::PAD;
  constexpr int A_SIZE = DEPTH * A_STEP, SIZE = A_SIZE + DEPTH * B_STEP;
  constexpr int A_RUNS = ROWS / A_VECTOR, B_RUNS = COLUMNS / B_VECTOR;
  static_assert(THREADS % A_RUNS == 0 && THREADS % B_RUNS == 0, "a thread copies of one column");
  DYNAMIC_SHARED(float, stages);       // STAGES of A (DEPTH, A_STEP) and B (DEPTH, B_STEP)
  __shared__ int4 pixels[2][THREADS];  // first row, column and offset in x; offset in dy

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
  int of_column = (tap / kernel_width * dilation_h * width + right) * channels + group * inputs +
                  column % inputs;
  int row = first_row + threadIdx.x % A_RUNS * A_VECTOR;
  int of_row = group * outputs + row;

  // The threads note where so many pixels are, and then the same of the next, as tiles t = 0,
  // TOGETHER, 2 TOGETHER, ... are begun.
  constexpr int TOGETHER = THREADS / DEPTH;
  auto note = [&](int t) {
    int pixel = (begin + t) * DEPTH + threadIdx.x;
    int q = pixel % y_width, p = pixel / y_width % y_height, image = pixel / y_width / y_height;
    int down = p * stride_h - padding_h, right = q * stride_w - padding_w;
    pixels[t / TOGETHER % 2][threadIdx.x] =
        pixel < all_pixels
            ? make_int4(down, right, ((image * height + down) * width + right) * channels,
                        pixel * y_channels)
            : make_int4(FAR, 0, 0, -1);
  };
  auto copy = [&](int stage, int t) {
    const int4* noted = pixels[0] + t % (2 * TOGETHER) * DEPTH;
    float *a = stages + stage * SIZE, *b = a + A_SIZE;
    int k = threadIdx.x / A_RUNS, m = threadIdx.x % A_RUNS * A_VECTOR;
    constexpr int A_APART = THREADS / A_RUNS, A_AT_ONCE = A_APART < 4 ? 4 : DEPTH / A_APART;
#pragma unroll 1
    for (int j = 0; j < DEPTH; j += A_AT_ONCE * A_APART) {
      int at[A_AT_ONCE];
#pragma unroll
      for (int i = 0; i < A_AT_ONCE; ++i) at[i] = noted[j + i * A_APART + k].w;
#pragma unroll
      for (int i = 0; i < A_AT_ONCE; ++i) {
        bool inside = at[i] >= 0 && row < outputs;
        cp_async<4 * A_VECTOR>(a + Product::template place<A_STEP>(j + i * A_APART + k, m),
                               dy + (uint32)(inside ? of_row + at[i] : 0), inside);
      }
    }
    k = threadIdx.x / B_RUNS;
    int n = threadIdx.x % B_RUNS * B_VECTOR;
    constexpr int B_APART = THREADS / B_RUNS, B_AT_ONCE = B_APART < 4 ? 4 : DEPTH / B_APART;
#pragma unroll 1
    for (int j = 0; j < DEPTH; j += B_AT_ONCE * B_APART) {
      int4 at[B_AT_ONCE];
#pragma unroll
      for (int i = 0; i < B_AT_ONCE; ++i) at[i] = noted[j + i * B_APART + k];
#pragma unroll
      for (int i = 0; i < B_AT_ONCE; ++i) {
        bool inside = (unsigned)(at[i].x + down) < (unsigned)height &&
                      (unsigned)(at[i].y + right) < (unsigned)width;
        cp_async<4 * B_VECTOR>(b + Product::template place<B_STEP>(j + i * B_APART + k, n),
                               x + (uint32)(inside ? of_column + at[i].z : 0), inside);
      }
    }
  };

  static_assert(TOGETHER >= STAGES, "the first notes are of all tiles that are begun here");
  note(0);
  __syncthreads();
  for (int t = 0; t < STAGES - 1; ++t) {
    if (t < tiles) copy(t, t);
    cp_async_commit();
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
    const float* a = stages + stage * SIZE;
    product.add(a + a_row, a + A_SIZE + b_column, [&] {
      if (t + STAGES - 1 < tiles) copy(next, t + STAGES - 1);
      cp_async_commit();
      if ((t + STAGES) % TOGETHER == 0) note(t + STAGES);
    });
    if (sums_dy) {
#pragma unroll
      for (int j = 0; j < (ROWS + THREADS - 1) / THREADS; ++j) {
        float sum = 0;
        int m = threadIdx.x + j * THREADS;
        if (m < ROWS)
          for (int k = 0; k < DEPTH; ++k) sum += a[Product::template place<A_STEP>(k, m)];
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
    using Any = PRODUCT<false, 0, 0>;                                                             \
    using Product = PRODUCT<false, Any::ROW_STEP, N * Any::WIDTH + Any::PAD>;                     \
    gather_product<Product, M, N, VECTOR>(                                                        \
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
    using Any = PRODUCT<true, 0, 0>;                                                              \
    using Product = PRODUCT<true, WARP_ROWS * M + Any::PAD, N * Any::WIDTH + Any::PAD>;           \
    weight_product<Product, M, N, A_VECTOR, B_VECTOR>(                                            \
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
