// The product of a warp's tile, C (64 x N) += A (64 x 16) B (16 x N), from shared memory: N is 32,
// or 64 where WIDE.
//
// A lies there with its rows along memory, a[m * A_STEP + k], or COLUMNS of it, a[k * A_STEP + m];
// B lies as b[k * B_STEP + n]. The steps leave no bank of shared memory asked for twice at a time:
// 20 for rows, 8 more than a multiple of 32 for columns and for B.
#include "common.cuh"

#define DEPTH 16
#define WARP_ROWS 64
#define ROW_STEP (DEPTH + 4)

// Float32 with fused multiply-adds. A lane has 8 x 8 sums: with u = lane / 4 and v = lane % 4
// the columns 4 v + j and 16 + 4 v + j (j < 4); the rows u + 8 i, of COLUMNS 4 u + i and
// 32 + 4 u + i.
template <bool COLUMNS, int A_STEP, int B_STEP>
struct FmaProduct {
  static constexpr int WIDTH = 32;
  static constexpr bool IS_FAST = false;
  float sums[8][8];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 64; ++i) sums[i / 8][i % 8] = 0;
  }

  __device__ __forceinline__ void add(const float* a, const float* b) {
    int u = lane_index() / 4, v = lane_index() % 4;
    b += 4 * v;
    if constexpr (COLUMNS) {
      a += 4 * u;
#pragma unroll
      for (int k = 0; k < DEPTH; ++k) {
        float4 low = load4(a + k * A_STEP), high = load4(a + k * A_STEP + 32);
        float rows[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        step(rows, b + k * B_STEP);
      }
    } else {
      a += u * A_STEP;
#pragma unroll 1  // or registers run out
      for (int k = 0; k < DEPTH; k += 4) {
        float rows[4][8];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          float4 four = load4(a + 8 * i * A_STEP + k);
          rows[0][i] = four.x, rows[1][i] = four.y, rows[2][i] = four.z, rows[3][i] = four.w;
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) step(rows[j], b + (k + j) * B_STEP);
      }
    }
  }

  __device__ __forceinline__ void step(const float (&rows)[8], const float* b) {
    float4 low = load4(b), high = load4(b + 16);
    float columns[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) sums[i][j] = fmaf(rows[i], columns[j], sums[i][j]);
  }

  // Call put(row, column, values) for every run of neighbours that this lane has.
  template <typename Put>
  __device__ __forceinline__ void each(Put put) const {
    int u = lane_index() / 4, v = lane_index() % 4;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      int row = COLUMNS ? 32 * (i / 4) + 4 * u + i % 4 : u + 8 * i;
      put(row, 4 * v, make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]));
      put(row, 16 + 4 * v, make_float4(sums[i][4], sums[i][5], sums[i][6], sums[i][7]));
    }
  }
};

// x = high + low up to 2^-23 of x, both of 11 significant bits. An infinite x, or one that rounds
// to infinity, has an infinite low part or NaN, so that it makes NaN of a product. Below 2^-114 the
// low part is flushed to zero.
__device__ __forceinline__ void split_tf32(float x, uint32& high, uint32& low) {
  high = (__float_as_uint(x) + 0x1000u) & 0xffffe000u;
  low = __float_as_uint(x - __uint_as_float(high));
}

// Tensor cores. TERMS = 1 rounds the factors to TF32; where A lies by rows, B is rounded already.
// It is fast enough to be kept waiting by the level-2 cache. TERMS = 3 has the accuracy of float32:
// a factor is the sum of two of TF32, a b = a_high b_high + a_high b_low + a_low b_high, where
// a_low b_low is below the rounding of float32. Tensor cores do not round their sums but cut
// them, so that long ones drift towards zero: only 8 products are left to them, and their
// sum is added as float32 are.
template <int TERMS, bool WIDE, bool COLUMNS, int A_STEP, int B_STEP>
struct TensorProduct {
  static constexpr int WIDTH = WIDE ? 64 : 32, TILES = WIDTH / 8;
  static constexpr bool IS_FAST = TERMS == 1;
  float sums[4][TILES][4];  // 16 x 8 tiles, as mma_tf32 has them

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < TILES; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[i][j][e] = 0;
  }

  __device__ __forceinline__ void add(const float* a, const float* b) {
    int g = lane_index() / 4, t = lane_index() % 4;
    a += COLUMNS ? t * A_STEP + g : g * A_STEP + t;
    b += t * B_STEP + g;
#pragma unroll(TERMS == 1 ? 2 : 1)  // or registers run out
    for (int k = 0; k < DEPTH; k += 8) {
      uint32 b_high[TILES][2], b_low[TILES][2];
#pragma unroll
      for (int j = 0; j < TILES; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          take<COLUMNS>(b[(k + 4 * e) * B_STEP + 8 * j], b_high[j][e], b_low[j][e]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32 a_high[4], a_low[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          int row = 16 * i + e % 2 * 8, depth = k + e / 2 * 4;
          take<true>(a[COLUMNS ? depth * A_STEP + row : row * A_STEP + depth], a_high[e], a_low[e]);
        }
        if constexpr (TERMS == 1) {
#pragma unroll
          for (int j = 0; j < TILES; ++j) mma_tf32(sums[i][j], a_high, b_high[j]);
        } else {
#pragma unroll
          for (int first = 0; first < TILES; first += 4) {
            float part[4][4] = {};
#pragma unroll
            for (int j = 0; j < 4; ++j) mma_tf32(part[j], a_low, b_high[first + j]);
#pragma unroll
            for (int j = 0; j < 4; ++j) mma_tf32(part[j], a_high, b_low[first + j]);
#pragma unroll
            for (int j = 0; j < 4; ++j) mma_tf32(part[j], a_high, b_high[first + j]);
#pragma unroll
            for (int j = 0; j < 4; ++j)
#pragma unroll
              for (int e = 0; e < 4; ++e) sums[i][first + j][e] += part[j][e];
          }
        }
      }
    }
  }

  template <bool ROUNDS>
  __device__ __forceinline__ void take(float x, uint32& high, uint32& low) {
    if constexpr (TERMS == 3)
      split_tf32(x, high, low);
    else
      high = ROUNDS ? to_tf32(x) : __float_as_uint(x);
  }

  // Call put(row, column, values) for every run of neighbours that this lane has.
  template <typename Put>
  __device__ __forceinline__ void each(Put put) const {
    int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int j = 0; j < TILES; ++j)
          put(16 * i + 8 * half + g, 8 * j + 2 * t,
              make_float2(sums[i][j][2 * half], sums[i][j][2 * half + 1]));
  }
};

// Add what `bias` has for them, if it is not null, and write as many of the values as there are
// columns left. Vectors where all rows of the target are aligned to them.
__device__ __forceinline__ void put_values(float* target, float2 v, int left, const float* bias,
                                           bool aligned) {
  if (bias) {
    if (left > 0) v.x += bias[0];
    if (left > 1) v.y += bias[1];
  }
  if (aligned && left > 1) {
    *(float2*)target = v;
  } else {
    if (left > 0) target[0] = v.x;
    if (left > 1) target[1] = v.y;
  }
}
__device__ __forceinline__ void put_values(float* target, float4 v, int left, const float* bias,
                                           bool aligned) {
  if (aligned && left > 3) {
    if (bias) v.x += bias[0], v.y += bias[1], v.z += bias[2], v.w += bias[3];
    store4(target, v);
  } else {
    put_values(target, make_float2(v.x, v.y), left, bias, false);
    put_values(target + 2, make_float2(v.z, v.w), left - 2, bias ? bias + 2 : bias, false);
  }
}
