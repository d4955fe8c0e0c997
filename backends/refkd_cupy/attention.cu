// Attention in float32: threads stand 16 by 16.
#include "attention.cuh"

// The first of the columns i, i + 1, ... that a thread does: all together, or in two groups.
template <int COLUMNS>
__device__ __forceinline__ int column(int i) {
  const int tx = threadIdx.x % 16;
  return COLUMNS == 2 ? 2 * tx + i : 64 * (i / 4) + 4 * tx + i % 4;
}

// COLUMNS entries of a tile's row. Those beyond its end are anything, and of no use.
template <int COLUMNS>
__device__ __forceinline__ void load_columns(float (&to)[COLUMNS], const float* row, int pitch) {
  if constexpr (COLUMNS == 2) {
    const float2 two = *(const float2*)(row + min(column<2>(0), pitch - 2));
    to[0] = two.x, to[1] = two.y;
  } else {
#pragma unroll
    for (int g = 0; g < COLUMNS; g += 4) {
      const float4 four = load4(row + min(column<COLUMNS>(g), pitch - 4));
      to[g] = four.x, to[g + 1] = four.y, to[g + 2] = four.z, to[g + 3] = four.w;
    }
  }
}

// R rows of COLUMNS entries in each thread.
template <int R, int COLUMNS>
struct Sums {
  float at[R][COLUMNS];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < R; ++i)
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) at[i][c] = 0.0f;
  }

  // Write them, times `scale`, as the rows of a matrix from `first` on.
  __device__ __forceinline__ void store(float* to, const Matrix& of, int first, float scale) {
    constexpr int GROUP = COLUMNS < 4 ? COLUMNS : 4;
    first += threadIdx.x / 16 * R;
#pragma unroll
    for (int i = 0; i < R; ++i) {
      if (first + i >= of.rows) return;
#pragma unroll
      for (int g = 0; g < COLUMNS; g += GROUP) {
        const int left = of.width - column<COLUMNS>(g);
        float* place = to + (first + i) * of.row + column<COLUMNS>(g);
#pragma unroll
        for (int c = g; c < g + GROUP; ++c) at[i][c] *= scale;
        if (GROUP == 4 && of.quads) {
          if (left > 0)
            store4(place, make_float4(at[i][g], at[i][g + 1], at[i][g + GROUP - 2],
                                      at[i][g + GROUP - 1]));
        } else {
#pragma unroll
          for (int c = 0; c < GROUP; ++c)
            if (c < left) place[c] = at[i][g + c];
        }
      }
    }
  }
};

// 16 · R rows of a block: a thread has R x 4 scores of a tile, then R x COLUMNS of the result.
template <int R, int COLUMNS>
struct Rows : Sums<R, COLUMNS> {
  static constexpr int COUNT = 16 * R;

  // The first row of a warp.
  static __device__ __forceinline__ int first_row() { return warp_index() * 2 * R; }

  // Write the products of a's R rows of this thread with every 16th row of b's tile into the
  // thread's rows of scores. `count` of the tile's rows exist; FULL promises all.
  template <bool FULL>
  static __device__ __forceinline__ void score(const float* a, const float* b, int width,
                                               int count, float* scores, int pitch) {
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16, inner = pitch_of(width);
    float products[R][4];
#pragma unroll
    for (int i = 0; i < R; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) products[i][j] = 0.0f;
    a += ty * R * inner;
    b += tx * inner;
#pragma unroll 1
    for (int k = 0; k < width; k += 4) {
      float4 of_a[R];
#pragma unroll
      for (int i = 0; i < R; ++i) of_a[i] = load4(a + i * inner + k);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (FULL || 16 * j < count) {
          const float4 of_b = load4(b + 16 * j * inner + k);
#pragma unroll
          for (int i = 0; i < R; ++i) {
            products[i][j] += of_a[i].x * of_b.x;
            products[i][j] += of_a[i].y * of_b.y;
            products[i][j] += of_a[i].z * of_b.z;
            products[i][j] += of_a[i].w * of_b.w;
          }
        }
      }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (FULL || tx + 16 * j < count) {
#pragma unroll
        for (int i = 0; i < R; ++i)
          scores[(ty * R + i) * pitch + tx + 16 * j] = products[i][j];
      }
    }
  }

  // Add the thread's R rows of scores times `count` rows of the tile, or four at a time.
  __device__ __forceinline__ void collect(const float* scores, int pitch, const float* tile,
                                          int width, int count) {
    const int inner = pitch_of(width);
    scores += threadIdx.x / 16 * R * pitch;
#pragma unroll 1
    for (int n = 0; n < count; n += 4) {
      float4 weights[R];
#pragma unroll
      for (int i = 0; i < R; ++i) weights[i] = load4(scores + i * pitch + n);
      float values[COLUMNS];
      load_columns<COLUMNS>(values, tile + n * inner, inner);
#pragma unroll
      for (int i = 0; i < R; ++i)
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) this->at[i][c] += weights[i].x * values[c];
      load_columns<COLUMNS>(values, tile + (n + 1) * inner, inner);
#pragma unroll
      for (int i = 0; i < R; ++i)
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) this->at[i][c] += weights[i].y * values[c];
      load_columns<COLUMNS>(values, tile + (n + 2) * inner, inner);
#pragma unroll
      for (int i = 0; i < R; ++i)
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) this->at[i][c] += weights[i].z * values[c];
      load_columns<COLUMNS>(values, tile + (n + 3) * inner, inner);
#pragma unroll
      for (int i = 0; i < R; ++i)
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) this->at[i][c] += weights[i].w * values[c];
    }
  }
};

// TILE keys of a block: 4 in each thread.
template <int COLUMNS>
struct Keys : Sums<4, COLUMNS> {
  static __device__ __forceinline__ int first_row() { return warp_index() * 8; }

  // Add the transpose of `count` rows of weights times the rows of b.
  __device__ __forceinline__ void add(const float* weights, const float* b, int width,
                                      int count) {
    const int inner = pitch_of(width);
    weights += threadIdx.x / 16 * 4;
#pragma unroll 4
    for (int m = 0; m < count; ++m) {
      const float4 four = load4(weights + m * WEIGHTS_STEP);
      float values[COLUMNS];
      load_columns<COLUMNS>(values, b + m * inner, inner);
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) {
        this->at[0][c] += four.x * values[c];
        this->at[1][c] += four.y * values[c];
        this->at[2][c] += four.z * values[c];
        this->at[3][c] += four.w * values[c];
      }
    }
  }
};

ATTENTION_KERNELS
