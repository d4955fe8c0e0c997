// The product of a warp's tile, C (64 x N) += A (64 x 16) B (16 x N), from shared memory: N is 32,
// or 64 where WIDE.
//
// A lies there with its rows along memory, a[m * A_STEP + k], or COLUMNS of it,
// a[place<A_STEP>(k, m)]; B lies as b[place<B_STEP>(k, n)], or, where the product has PAIRS,
// as b[place_in_pairs<B_STEP>(k, n)]. The steps, ROW_STEP for rows and else PAD more than a block's
// tile is wide, and the places leave no bank of shared memory asked for twice at a time.
#include "common.cuh"

#define DEPTH 16
#define WARP_ROWS 64

// Where B has 2 x 2 entries together: their index, in which the last bit is n's, the next k's.
template <int STEP>
__device__ __forceinline__ int place_in_pairs(int k, int n) {
  int t = k / 4, four = n / 2 ^ ((t & 1) + (t & 2) * 2);
  return k / 2 * 2 * STEP + four * 4 + k % 2 * 2 + n % 2;
}

// Float32 with fused multiply-adds. A lane has 8 x 8 sums: with u = lane / 4 and v = lane % 4
// the columns 4 v + j and 16 + 4 v + j (j < 4); the rows u + 8 i, of COLUMNS 4 u + i and
// 32 + 4 u + i.
template <bool COLUMNS, int A_STEP, int B_STEP>
struct FmaProduct {
  static constexpr int WIDTH = 32, ROW_STEP = DEPTH + 4, PAD = 8;
  static constexpr bool IS_FAST = false, PAIRS = false;
  float sums[8][8];

  template <int STEP>
  static __device__ __forceinline__ int place(int k, int n) {
    return k * STEP + n;
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 64; ++i) sums[i / 8][i % 8] = 0;
  }

  // Call meanwhile(), which may write to other stages, and add.
  template <typename Meanwhile>
  __device__ __forceinline__ void add(const float* a, const float* b, Meanwhile meanwhile) {
    meanwhile();
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
// them, so that long ones drift towards zero: only DEPTH products are left to them, and their
// sum is added as float32 are.
//
// mma_tf32 takes fours of its left factor and pairs of its right one. They are read into
// neighbouring registers, for else each product would cost moves: so where A lies by rows, C is
// made transposed, of fours of B in pairs and of 4 k of A in two steps.
template <int TERMS, bool WIDE, bool COLUMNS, int A_STEP, int B_STEP>
struct TensorProduct {
  static constexpr int WIDTH = WIDE ? 64 : 32, ROW_STEP = DEPTH, PAD = 0;
  static constexpr int LEFT = COLUMNS ? 4 : WIDTH / 16, RIGHT = COLUMNS ? WIDTH / 8 : 8;
  static constexpr bool IS_FAST = TERMS == 1, PAIRS = !COLUMNS;
  float sums[LEFT][RIGHT][4];  // 16 x 8 tiles, as mma_tf32 has them

  template <int STEP>
  static __device__ __forceinline__ int place(int k, int n) {
    return k * STEP + (n ^ k / 4 * 8);
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < LEFT; ++i)
#pragma unroll
      for (int j = 0; j < RIGHT; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[i][j][e] = 0;
  }

  // Call meanwhile(), which may write to other stages, and add.
  template <typename Meanwhile>
  __device__ __forceinline__ void add(const float* a, const float* b, Meanwhile meanwhile) {
    if constexpr (TERMS == 1) {
      uint32 left[LEFT][2][4], right[RIGHT][2][2];
#pragma unroll
      for (int j = 0; j < RIGHT; ++j) read_right(right[j], a, b, j);
#pragma unroll
      for (int i = 0; i < LEFT; ++i) read_left(left[i], a, b, i);
      meanwhile();
#pragma unroll
      for (int step = 0; step < 2; ++step) {
#pragma unroll
        for (int j = 0; j < RIGHT; ++j) round(right[j][step]);
#pragma unroll
        for (int i = 0; i < LEFT; ++i) {
          if constexpr (COLUMNS) round(left[i][step]);
#pragma unroll
          for (int j = 0; j < RIGHT; ++j) mma_tf32(sums[i][j], left[i][step], right[j][step]);
        }
      }
    } else {
      meanwhile();
#pragma unroll
      for (int first = 0; first < RIGHT; first += 4) {
        uint32 high[4][2][2], low[4][2][2];
#pragma unroll
        for (int j = 0; j < 4; ++j) read_right(high[j], a, b, first + j);
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
          for (int step = 0; step < 2; ++step) split(high[j][step], low[j][step]);
#pragma unroll
        for (int i = 0; i < LEFT; ++i) {
          uint32 left_high[2][4], left_low[2][4];
          read_left(left_high, a, b, i);
#pragma unroll
          for (int step = 0; step < 2; ++step) split(left_high[step], left_low[step]);
          float part[4][4] = {};
#pragma unroll
          for (int step = 0; step < 2; ++step) {
#pragma unroll
            for (int j = 0; j < 4; ++j) mma_tf32(part[j], left_low[step], high[j][step]);
#pragma unroll
            for (int j = 0; j < 4; ++j) mma_tf32(part[j], left_high[step], low[j][step]);
          }
#pragma unroll
          for (int step = 0; step < 2; ++step)
#pragma unroll
            for (int j = 0; j < 4; ++j) mma_tf32(part[j], left_high[step], high[j][step]);
#pragma unroll
          for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) sums[i][first + j][e] += part[j][e];
        }
      }
    }
  }

  // With g = lane / 4, t = lane % 4: k = 4 t + 2 step and the next, of rows 16 i + 2 g of A and the
  // next, or of such columns of B as give this lane 4 neighbours in two i.
  static __device__ __forceinline__ void read_left(uint32 (&four)[2][4], const float* a,
                                                   const float* b, int i) {
    int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      if constexpr (COLUMNS) {
        const float* from = a + place<A_STEP>(4 * t, i % 2 * 16 + 2 * g) + i / 2 * 32;
        uint2 first = *(const uint2*)(from + 2 * step * A_STEP);
        uint2 second = *(const uint2*)(from + (2 * step + 1) * A_STEP);
        four[step][0] = first.x, four[step][1] = first.y;
        four[step][2] = second.x, four[step][3] = second.y;
      } else {
        const float* from = b + place_in_pairs<B_STEP>(4 * t, 4 * g + i % 2 * 2) + i / 2 * 64;
        uint4 read = *(const uint4*)(from + step * 2 * B_STEP);
        four[step][0] = read.x, four[step][1] = read.y;
        four[step][2] = read.z, four[step][3] = read.w;
      }
    }
  }

  // The same k, of column 8 j + g of B or such a row of A.
  static __device__ __forceinline__ void read_right(uint32 (&two)[2][2], const float* a,
                                                    const float* b, int j) {
    int g = lane_index() / 4, t = lane_index() % 4;
    if constexpr (COLUMNS) {
      const float* from = b + place<B_STEP>(4 * t, j % 4 * 8 + g) + j / 4 * 32;
#pragma unroll
      for (int k = 0; k < 4; ++k) two[k / 2][k % 2] = __float_as_uint(from[k * B_STEP]);
    } else {
      uint4 read = *(const uint4*)(a + (8 * j + g) * A_STEP + 4 * t);
      two[0][0] = read.x, two[0][1] = read.y, two[1][0] = read.z, two[1][1] = read.w;
    }
  }

  template <int N>
  static __device__ __forceinline__ void round(uint32 (&x)[N]) {
#pragma unroll
    for (int e = 0; e < N; ++e) x[e] = to_tf32(__uint_as_float(x[e]));
  }
  template <int N>
  static __device__ __forceinline__ void split(uint32 (&high)[N], uint32 (&low)[N]) {
#pragma unroll
    for (int e = 0; e < N; ++e) split_tf32(__uint_as_float(high[e]), high[e], low[e]);
  }

  // Call put(row, column, values) for every run of neighbours that this lane has.
  template <typename Put>
  __device__ __forceinline__ void each(Put put) const {
    int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int j = 0; j < RIGHT; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if constexpr (COLUMNS) {
#pragma unroll
          for (int i = 0; i < LEFT; ++i)
            put(16 * i + 2 * g + e, 8 * j + 2 * t,
                make_float2(sums[i][j][2 * e], sums[i][j][2 * e + 1]));
        } else {
#pragma unroll
          for (int i = 0; i < LEFT; i += 2)
            put(8 * j + 2 * t + e, 16 * i + 4 * g,
                make_float4(sums[i][j][e], sums[i][j][2 + e], sums[i + 1][j][e],
                            sums[i + 1][j][2 + e]));
        }
      }
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
