// Attention of several heads. A block does 16 · R queries of one head, whose scores for all keys
// stay in shared memory; keys and values pass through it in tiles of 64, the next one on its way
// while one is worked on. The backward does that for dq, then 64 keys of a head by a block for dk
// and dv. How a block multiplies is a source's own: it says what Rows and Keys are.
//
// Arrays (B, heads, rows, width) lie in memory like that, or with the heads within the rows,
// (B, rows, heads, width), which a bit of `inside` says.
#include "common.cuh"

#define THREADS 256
#define TILE 64  // keys
#define STEP 32  // queries of a tile, where a block does keys
#define WEIGHTS_STEP 72  // entries from row to row, so that 8 of 4 rows lie in different banks

// A head's matrix: `row` entries from one row to the next.
struct Matrix {
  const float* begin;
  int64 row;
  int rows, width;
  bool quads;  // every row lies at a multiple of 16 bytes
};
__device__ __forceinline__ int64 offset_of(int inside, int unit, int heads, int rows, int width) {
  const int64 b = unit / heads, h = unit - b * heads;
  return inside ? (b * rows * heads + h) * width : (int64)unit * rows * width;
}
__device__ __forceinline__ Matrix matrix(const float* array, int inside, int unit, int heads,
                                         int rows, int width) {
  return {array + offset_of(inside, unit, heads, rows, width),
          inside ? (int64)heads * width : width, rows, width,
          width % 4 == 0 && is_aligned16(array)};
}

// A tile's rows have zeros up to a multiple of 8 entries. Steps from row to row are multiples of 4,
// for 16-byte accesses, but odd ones, so that the rows' beginnings lie in different banks.
__device__ __forceinline__ int padded(int width) { return (width + 7) / 8 * 8; }
__device__ __forceinline__ int pitch_of(int width) { return padded(width) + 4; }

// Begin to copy the rows from `first` on into a tile of ROWS; 0 beyond the last.
template <int ROWS>
__device__ __forceinline__ void copy_tile(float* tile, const Matrix& from, int first) {
  const int pitch = pitch_of(from.width), column = threadIdx.x % 16;
  for (int r = threadIdx.x / 16; r < ROWS; r += THREADS / 16) {
    const bool inside = first + r < from.rows;
    const float* source = from.begin + (inside ? (first + r) * from.row : 0);
    if (from.quads) {
      for (int c = 4 * column; c < padded(from.width); c += 64) {
        const bool valid = inside && c < from.width;
        cp_async<16>(tile + r * pitch + c, valid ? source + c : source, valid);
      }
    } else {
      for (int c = column; c < padded(from.width); c += 16) {
        const bool valid = inside && c < from.width;
        cp_async<4>(tile + r * pitch + c, valid ? source + c : source, valid);
      }
    }
  }
}

// STEP rows of `weights` (queries, keys), TILE keys from `first` on; 0 beyond either end.
__device__ __forceinline__ void copy_weights(float* tile, const float* weights, int queries,
                                             int keys, int row, int first) {
  const int n = threadIdx.x % TILE;
  for (int r = threadIdx.x / TILE; r < STEP; r += THREADS / TILE) {
    const bool valid = row + r < queries && first + n < keys;
    cp_async<4>(tile + r * WEIGHTS_STEP + n,
                weights + (valid ? (int64)(row + r) * keys + first + n : 0), valid);
  }
}

// A row of scores becomes P = exp(S − max S) / Σ, here and in `probabilities`: a warp's work.
__device__ __forceinline__ void softmax_row(float* scores, float* probabilities, int keys) {
  float largest = -REFKD_INFINITY, sum = 0.0f;
  for (int n = lane_index(); n < keys; n += 32) largest = max_with_nan(largest, scores[n]);
  largest = warp_max(largest);
  for (int n = lane_index(); n < keys; n += 32) {
    const float e = expf(scores[n] - largest);
    scores[n] = e;
    sum += e;
  }
  sum = warp_sum(sum);
  for (int n = lane_index(); n < keys; n += 32) {
    const float p = scores[n] / sum;
    scores[n] = p;
    probabilities[n] = p;
  }
}

// A row of dP becomes dS = P (dP − Σ dP P), here and in `dscores`.
__device__ __forceinline__ void softmax_gradient_row(float* scores, const float* probabilities,
                                                     float* dscores, int keys) {
  float sum = 0.0f;
  for (int n = lane_index(); n < keys; n += 32) sum += scores[n] * probabilities[n];
  sum = warp_sum(sum);
  for (int n = lane_index(); n < keys; n += 32) {
    const float d = probabilities[n] * (scores[n] - sum);
    scores[n] = d;
    dscores[n] = d;
  }
}

// The forward, of a = q, b = k and c = v: rows of S = (scale · a) bᵀ become those of P, y = P c.
// The backward by queries, of a = dy, b = v and c = k: dP = a bᵀ becomes dS, dq = scale · dS c.
// A block for each `Rows::COUNT` rows of each head, heads one after another.
template <typename Rows, bool FORWARD>
__device__ __forceinline__ void by_queries(const Matrix& a, const Matrix& b, const Matrix& c,
                                           const float* probabilities, float* scores_out,
                                           float* y, const Matrix& of_y, float scale, int first) {
  DYNAMIC_SHARED(float, shared);
  const int keys = b.rows, pitch = pitch_of(keys), tiles = (keys + TILE - 1) / TILE;
  float* own = shared;                                // Rows::COUNT rows of a
  float* scores = own + Rows::COUNT * pitch_of(a.width);  // and of keys
  float* tile = scores + Rows::COUNT * pitch;         // twice TILE rows of b or c
  const int size = TILE * pitch_of(max(b.width, c.width));
  Rows product;
  product.clear();
  // Scores beyond the last key weigh nothing.
  for (int r = threadIdx.x; r < Rows::COUNT; r += THREADS)
    for (int n = keys; n < padded(keys); ++n) scores[r * pitch + n] = 0.0f;
  // Rows of queries that do not exist are nobody's work.
  const bool works = first + Rows::first_row() < a.rows;
  copy_tile<Rows::COUNT>(own, a, first);
  copy_tile<TILE>(tile, b, 0);
  cp_async_commit();
  for (int t = 0; t < 2 * tiles; ++t) {
    const int next = t + 1, begin = (t < tiles ? t : t - tiles) * TILE;
    if (next < tiles)
      copy_tile<TILE>(tile + next % 2 * size, b, next * TILE);
    else if (next < 2 * tiles)
      copy_tile<TILE>(tile + next % 2 * size, c, (next - tiles) * TILE);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    if (FORWARD && t == 0) {  // before the products, which may be too large or too small without
#pragma unroll 1
      for (int i = 4 * threadIdx.x; i < Rows::COUNT * pitch_of(a.width); i += 4 * THREADS) {
        const float4 four = load4(own + i);
        store4(own + i,
               make_float4(four.x * scale, four.y * scale, four.z * scale, four.w * scale));
      }
      __syncthreads();
    }
    const float* now = tile + t % 2 * size;
    const int count = min(TILE, keys - begin);
    if (t < tiles) {
      if (works && count == TILE)
        Rows::template score<true>(own, now, a.width, count, scores + begin, pitch);
      else if (works)
        Rows::template score<false>(own, now, a.width, count, scores + begin, pitch);
    } else if (works) {
      product.collect(scores + begin, pitch, now, c.width, count);
    }
    __syncthreads();
    if (next == tiles) {
      for (int r = warp_index(); r < Rows::COUNT && first + r < a.rows; r += THREADS / 32) {
        const int64 place = (int64)(first + r) * keys;
        if constexpr (FORWARD)
          softmax_row(scores + r * pitch, scores_out + place, keys);
        else
          softmax_gradient_row(scores + r * pitch, probabilities + place, scores_out + place,
                               keys);
      }
    }
  }
  product.store(y, of_y, first, FORWARD ? 1.0f : scale);
}

// y_n = scale · Σ_m weights_mn b_m for TILE keys n from `first` on.
template <typename Keys>
__device__ __forceinline__ void by_keys(const float* weights, const Matrix& b, float* y,
                                        const Matrix& of_y, float scale, int first) {
  DYNAMIC_SHARED(float, shared);
  const int queries = b.rows, keys = of_y.rows, inner = pitch_of(b.width);
  const int size = STEP * (WEIGHTS_STEP + inner);
  Keys product;
  product.clear();
  const bool works = first + Keys::first_row() < keys;
  copy_weights(shared, weights, queries, keys, 0, first);
  copy_tile<STEP>(shared + STEP * WEIGHTS_STEP, b, 0);
  cp_async_commit();
  const int tiles = (queries + STEP - 1) / STEP;
  for (int t = 0; t < tiles; ++t) {
    if (t + 1 < tiles) {
      float* next = shared + (t + 1) % 2 * size;
      copy_weights(next, weights, queries, keys, (t + 1) * STEP, first);
      copy_tile<STEP>(next + STEP * WEIGHTS_STEP, b, (t + 1) * STEP);
    }
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    if (works) {
      const float* now = shared + t % 2 * size;
      product.add(now, now + STEP * WEIGHTS_STEP, b.width, min(STEP, queries - t * STEP));
    }
    __syncthreads();
  }
  product.store(y, of_y, first, scale);
}

#define BY_QUERIES(R, COLUMNS)                                                                 \
  /* probabilities (B, heads, queries, keys); bits of inside: q, k, v, y */                    \
  extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_forward_##R##_##COLUMNS(  \
      const float* q, const float* k, const float* v, float* probabilities, float* y,          \
      float scale, int heads, int queries, int keys, int width, int value_width, int inside) { \
    const int blocks = (queries + 16 * R - 1) / (16 * R), unit = blockIdx.x / blocks;          \
    const Matrix of_q = matrix(q, inside & 1, unit, heads, queries, width);                    \
    const Matrix of_k = matrix(k, inside & 2, unit, heads, keys, width);                       \
    const Matrix of_v = matrix(v, inside & 4, unit, heads, keys, value_width);                 \
    const Matrix of_y = matrix(y, inside & 8, unit, heads, queries, value_width);              \
    by_queries<Rows<R, COLUMNS>, true>(                                                        \
        of_q, of_k, of_v, nullptr, probabilities + (int64)unit * queries * keys,               \
        y + offset_of(inside & 8, unit, heads, queries, value_width), of_y, scale,             \
        (blockIdx.x - unit * blocks) * 16 * R);                                                \
  }                                                                                            \
  /* dscores (B, heads, queries, keys): dS / scale; bits of inside: dy, k, v, dq */            \
  extern "C" __global__ void __launch_bounds__(THREADS, 2)                                     \
      attention_gradient_##R##_##COLUMNS(                                                      \
          const float* dy, const float* k, const float* v, const float* probabilities,         \
          float* dscores, float* dq, float scale, int heads, int queries, int keys, int width, \
          int value_width, int inside) {                                                       \
    const int blocks = (queries + 16 * R - 1) / (16 * R), unit = blockIdx.x / blocks;          \
    const Matrix of_dy = matrix(dy, inside & 1, unit, heads, queries, value_width);            \
    const Matrix of_k = matrix(k, inside & 2, unit, heads, keys, width);                       \
    const Matrix of_v = matrix(v, inside & 4, unit, heads, keys, value_width);                 \
    const Matrix of_dq = matrix(dq, inside & 8, unit, heads, queries, width);                  \
    by_queries<Rows<R, COLUMNS>, false>(                                                       \
        of_dy, of_v, of_k, probabilities + (int64)unit * queries * keys,                       \
        dscores + (int64)unit * queries * keys,                                                \
        dq + offset_of(inside & 8, unit, heads, queries, width), of_dq, scale,                 \
        (blockIdx.x - unit * blocks) * 16 * R);                                                \
  }

// dv = Pᵀ dy where blockIdx.y is 0, dk = scale · dSᵀ q where it is 1. Bits of inside: dy, q, dv, dk.
#define BY_KEYS(COLUMNS)                                                                      \
  extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_keys_gradient_##COLUMNS( \
      const float* dy, const float* q, const float* probabilities, const float* dscores,      \
      float* dv, float* dk, float scale, int heads, int queries, int keys, int width,         \
      int value_width, int inside) {                                                          \
    const int blocks = (keys + TILE - 1) / TILE, unit = blockIdx.x / blocks;                  \
    const int first = (blockIdx.x - unit * blocks) * TILE;                                    \
    const bool of_values = blockIdx.y == 0;                                                   \
    const int columns = of_values ? value_width : width;                                      \
    const int place = of_values ? inside & 4 : inside & 8;                                    \
    float* y = of_values ? dv : dk;                                                           \
    const Matrix b = of_values ? matrix(dy, inside & 1, unit, heads, queries, columns)        \
                               : matrix(q, inside & 2, unit, heads, queries, columns);        \
    const float* weights = of_values ? probabilities : dscores;                               \
    by_keys<Keys<COLUMNS>>(weights + (int64)unit * queries * keys, b,                         \
                     y + offset_of(place, unit, heads, keys, columns),                        \
                     matrix(y, place, unit, heads, keys, columns), of_values ? 1.0f : scale,  \
                     first);                                                                  \
  }

#define ATTENTION_KERNELS \
  BY_QUERIES(1, 2)        \
  BY_QUERIES(1, 4)        \
  BY_QUERIES(1, 8)        \
  BY_QUERIES(2, 2)        \
  BY_QUERIES(2, 4)        \
  BY_QUERIES(2, 8)        \
  BY_QUERIES(4, 2)        \
  BY_QUERIES(4, 4)        \
  BY_QUERIES(4, 8)        \
  BY_KEYS(2)              \
  BY_KEYS(4)              \
  BY_KEYS(8)
