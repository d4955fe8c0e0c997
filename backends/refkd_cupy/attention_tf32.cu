// Attention on tensor cores, whose products round the factors to TF32. Warps share the tiles of
// 16 x 8 that a block makes: GROUPS of them stand one below another, 8 / GROUPS side by side.
#include "attention.cuh"

// N tiles of 16 x 8 of a result, side by side, in each warp; as mma_tf32 has them.
template <int GROUPS, int N>
struct Sums {
  float at[N][4];

  static __device__ __forceinline__ int row() { return warp_index() % GROUPS * 16; }
  static __device__ __forceinline__ int column() { return warp_index() / GROUPS * 8 * N; }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int j = 0; j < N; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) at[j][e] = 0.0f;
  }

  // Add A (16 x 8) times a tile's 8 rows: B lies as b[k * b_row + n * b_column]. What lies beyond
  // `limit` columns is left out.
  __device__ __forceinline__ void add(const uint32 (&a)[4], const float* b, int b_row,
                                      int b_column, int limit) {
    const int g = lane_index() / 4, t = lane_index() % 4;
    b += t * b_row + g * b_column;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (8 * j < limit) {
        const uint32 of_b[2] = {to_tf32(b[8 * j * b_column]),
                                to_tf32(b[8 * j * b_column + 4 * b_row])};
        mma_tf32(at[j], a, of_b);
      }
    }
  }

  // Write them, times `scale`, as the rows of a matrix from `first` on.
  __device__ __forceinline__ void store(float* to, const Matrix& of, int first, float scale) {
    const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = first + row() + g + 8 * half;
      if (r >= of.rows) return;
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const int left = of.width - (column() + 8 * j + 2 * t);
        float* place = to + r * of.row + column() + 8 * j + 2 * t;
        const float2 two = make_float2(at[j][2 * half] * scale, at[j][2 * half + 1] * scale);
        if (of.quads) {
          if (left > 0) *(float2*)place = two;
        } else {
          if (left > 0) place[0] = two.x;
          if (left > 1) place[1] = two.y;
        }
      }
    }
  }
};

// A (16 x 8) of mma_tf32 where it lies as a[m * a_row + k * a_column].
__device__ __forceinline__ void load_a(uint32 (&to)[4], const float* a, int a_row, int a_column) {
  a += lane_index() / 4 * a_row + lane_index() % 4 * a_column;
  to[0] = to_tf32(a[0]);
  to[1] = to_tf32(a[8 * a_row]);
  to[2] = to_tf32(a[4 * a_column]);
  to[3] = to_tf32(a[8 * a_row + 4 * a_column]);
}

// 16 · R rows of a block: R groups of warps, that have R tiles of a tile's scores side by side, then
// 16 · COLUMNS columns of the result among them.
template <int R, int COLUMNS>
struct Rows : Sums<R, (COLUMNS * R + 3) / 4> {
  using Result = Sums<R, (COLUMNS * R + 3) / 4>;
  static constexpr int COUNT = 16 * R;

  static __device__ __forceinline__ int first_row() { return Result::row(); }

  // Write the products of a's rows of this warp with its rows of b's tile into scores. `count` of
  // the tile's rows exist.
  template <bool FULL>
  static __device__ __forceinline__ void score(const float* a, const float* b, int width,
                                               int count, float* scores, int pitch) {
    using Products = Sums<R, R>;
    const int inner = pitch_of(width), row = Products::row(), column = Products::column();
    Products products;
    products.clear();
#pragma unroll 2
    for (int k = 0; k < width; k += 8) {
      uint32 of_a[4];
      load_a(of_a, a + row * inner + k, inner, 1);
      products.add(of_a, b + column * inner + k, 1, inner, FULL ? TILE : count - column);
    }
    const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int j = 0; j < R; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int n = column + 8 * j + 2 * t + e % 2;
        if (FULL || n < count)
          scores[(row + g + e / 2 * 8) * pitch + n] = products.at[j][e];
      }
  }

  // Add the warp's rows of scores times `count` rows of the tile, or eight at a time.
  __device__ __forceinline__ void collect(const float* scores, int pitch, const float* tile,
                                          int width, int count) {
    const int inner = pitch_of(width), column = Result::column();
#pragma unroll 2
    for (int n = 0; n < count; n += 8) {
      uint32 weights[4];
      load_a(weights, scores + Result::row() * pitch + n, pitch, 1);
      this->add(weights, tile + n * inner + column, inner, 1, width - column);
    }
  }
};

// TILE keys of a block: 4 groups of warps, 2 side by side.
template <int COLUMNS>
struct Keys : Sums<4, COLUMNS> {
  using Result = Sums<4, COLUMNS>;

  static __device__ __forceinline__ int first_row() { return Result::row(); }

  // Add the transpose of `count` rows of weights times the rows of b, or of eight at a time.
  __device__ __forceinline__ void add(const float* weights, const float* b, int width,
                                      int count) {
    const int inner = pitch_of(width), column = Result::column();
#pragma unroll 2
    for (int m = 0; m < count; m += 8) {
      uint32 of_weights[4];
      load_a(of_weights, weights + m * WEIGHTS_STEP + Result::row(), 1, WEIGHTS_STEP);
      Result::add(of_weights, b + m * inner + column, inner, 1, width - column);
    }
  }
};

ATTENTION_KERNELS
