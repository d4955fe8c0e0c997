// One number or four neighbours, by the same code; and sums over what is not a warp.

// V neighbours: V is 1 or 4. Addresses are multiples of as many.
template <int V>
struct Vector {
  float at[V];
};

template <int V>
__device__ __forceinline__ Vector<V> load(const float* p) {
  Vector<V> result;
  if constexpr (V == 4) {
    float4 four = load4(p);
    result.at[0] = four.x, result.at[1] = four.y, result.at[2] = four.z, result.at[3] = four.w;
  } else {
    result.at[0] = *p;
  }
  return result;
}

template <int V>
__device__ __forceinline__ void store(float* p, const Vector<V>& values) {
  if constexpr (V == 4)
    store4(p, make_float4(values.at[0], values.at[1], values.at[2], values.at[3]));
  else
    *p = values.at[0];
}

template <int V>
__device__ __forceinline__ Vector<V> zeros() {
  Vector<V> result;
#pragma unroll
  for (int i = 0; i < V; ++i) result.at[i] = 0.0f;
  return result;
}

// Where a thread works in rows of channels: it keeps to one vector of them. `tile` neighbouring
// threads make up a piece of a row, and blockDim.x / tile lanes of those stand one below another.
struct Place {
  int vector, lane, lanes;
};
__device__ __forceinline__ Place place(int tile) {
  int lane = threadIdx.x / tile;
  return {(int)(blockIdx.y * tile + threadIdx.x - lane * tile), lane, (int)blockDim.x / tile};
}

// Sum K values over the lanes of a block, in a fixed order; lane 0 gets the sums. All threads
// take part. `room` is shared memory for K numbers of each thread. Lanes are of `tile` slots, and
// a thread has one slot: its own index, or where a kernel puts it.
template <int K, typename T>
__device__ __forceinline__ void sum_lanes(T (&values)[K], T* room, int tile, int slot) {
  const int lane = slot / tile;
#pragma unroll
  for (int k = 0; k < K; ++k) room[k * blockDim.x + slot] = values[k];
  __syncthreads();
  for (int n = blockDim.x / tile; n > 1; n = (n + 1) / 2) {
    const int half = (n + 1) / 2;
    if (lane + half < n) {
#pragma unroll
      for (int k = 0; k < K; ++k)
        room[k * blockDim.x + slot] += room[k * blockDim.x + slot + half * tile];
    }
    __syncthreads();
  }
  if (lane == 0) {
#pragma unroll
    for (int k = 0; k < K; ++k) values[k] = room[k * blockDim.x + slot];
  }
}
template <int K, typename T>
__device__ __forceinline__ void sum_lanes(T (&values)[K], T* room, int tile) {
  sum_lanes(values, room, tile, threadIdx.x);
}

// Sum parts (count, 2, width) over the first axis into first (width,) and second (width,).
// Blocks of 1024 threads, 32 columns of the 2 · width each.
__device__ __forceinline__ void sum_parts(const double* parts, float* first, float* second,
                                          int count, int width) {
  __shared__ double sums[32][33];
  const int column = blockIdx.x * 32 + lane_index(), row = warp_index();
  double sum = 0.0;
  if (column < 2 * width) {
#pragma unroll 8
    for (int i = row; i < count; i += 32) sum += parts[(int64)i * 2 * width + column];
  }
  sums[row][lane_index()] = sum;
  __syncthreads();
  // Warp w adds up the column w.
  sum = warp_sum(sums[lane_index()][row]);
  const int own = blockIdx.x * 32 + row;
  if (lane_index() == 0 && own < 2 * width) {
    if (own < width)
      first[own] = (float)sum;
    else
      second[own - width] = (float)sum;
  }
}
