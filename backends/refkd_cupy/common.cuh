// What kernels share: constants, sums over warps and blocks, vector access, asynchronous copies
// and the matrix products of tensor cores. The instructions of a GPU stand under REFKD_HOST's
// other branch; tests compile the same sources for the host with an emulation of these.

#define REFKD_INFINITY __int_as_float(0x7f800000)
#define REFKD_NAN __int_as_float(0x7fffffff)
#define FULL_MASK 0xffffffffu

typedef long long int64;
typedef unsigned int uint32;

// Memory that a launch asks for with shared=BYTES, as an array of `type` named `name`.
#ifdef REFKD_HOST
#define DYNAMIC_SHARED(type, name) type* name = (type*)refkd_host::dynamic_shared()
#else
extern __shared__ __align__(16) unsigned char refkd_dynamic_shared[];
#define DYNAMIC_SHARED(type, name) type* name = (type*)refkd_dynamic_shared
#endif

// ---- Where a thread is

__device__ __forceinline__ int lane_index() { return threadIdx.x & 31; }
__device__ __forceinline__ int warp_index() { return threadIdx.x >> 5; }

// The first index of a thread of a one-dimensional grid, and by how much it goes on.
__device__ __forceinline__ int64 global_index() {
  return (int64)blockIdx.x * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ int64 grid_stride() { return (int64)gridDim.x * blockDim.x; }

// ---- Memory, 16 bytes at a time

__device__ __forceinline__ bool is_aligned16(const void* p) {
  return ((unsigned long long)p & 15) == 0;
}
__device__ __forceinline__ float4 load4(const float* p) { return *(const float4*)p; }
__device__ __forceinline__ void store4(float* p, float4 v) { *(float4*)p = v; }

// ---- Sums and maxima. NaN is passed on by both.

__device__ __forceinline__ float max_with_nan(float a, float b) {
  return (a > b || a != a) ? a : b;
}

// Every lane of a warp gets the result. All 32 lanes take part.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int step = 16; step > 0; step >>= 1) value += __shfl_xor_sync(FULL_MASK, value, step);
  return value;
}
__device__ __forceinline__ float warp_max(float value) {
  for (int step = 16; step > 0; step >>= 1)
    value = max_with_nan(value, __shfl_xor_sync(FULL_MASK, value, step));
  return value;
}

// Every thread of a block (of whole warps, one-dimensional) gets the result, the same bits each.
template <typename T>
__device__ __forceinline__ T block_sum(T value) {
  __shared__ T sums[32];
  value = warp_sum(value);
  __syncthreads();  // of an earlier call everybody has read
  if (lane_index() == 0) sums[warp_index()] = value;
  __syncthreads();
  int warps = blockDim.x >> 5;
  return warp_sum(lane_index() < warps ? sums[lane_index()] : T(0));
}
__device__ __forceinline__ float block_max(float value) {
  __shared__ float maxima[32];
  value = warp_max(value);
  __syncthreads();
  if (lane_index() == 0) maxima[warp_index()] = value;
  __syncthreads();
  int warps = blockDim.x >> 5;
  return warp_max(lane_index() < warps ? maxima[lane_index()] : -REFKD_INFINITY);
}

// ---- Copies from global to shared memory that go on while the thread computes (sm_80 and later;
// before, and on the host at the wait, they are plain copies)

// Copy BYTES (4, 8 or 16; both addresses multiples of it), or zeros where not `valid`; `source`
// is not read then.
template <int BYTES>
__device__ __forceinline__ void cp_async(void* target, const void* source, bool valid = true) {
#ifdef REFKD_HOST
  refkd_host::cp_async(target, source, BYTES, valid);
#elif __CUDA_ARCH__ >= 800
  unsigned address = (unsigned)__cvta_generic_to_shared(target);
  int size = valid ? BYTES : 0;
  if constexpr (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(source),
                 "r"(size) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(source),
                 "n"(BYTES), "r"(size) : "memory");
#else
  if constexpr (BYTES == 16)
    *(int4*)target = valid ? *(const int4*)source : make_int4(0, 0, 0, 0);
  else if constexpr (BYTES == 8)
    *(int2*)target = valid ? *(const int2*)source : make_int2(0, 0);
  else
    *(int*)target = valid ? *(const int*)source : 0;
#endif
}

// Close the group of copies begun since the last call.
__device__ __forceinline__ void cp_async_commit() {
#ifdef REFKD_HOST
  refkd_host::cp_async_commit();
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Wait until at most PENDING of this thread's groups are under way. Other threads see what was
// copied after a __syncthreads that follows.
template <int PENDING>
__device__ __forceinline__ void cp_async_wait() {
#ifdef REFKD_HOST
  refkd_host::cp_async_wait(PENDING);
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// ---- Tensor cores (sm_80 and later)

// x rounded to TF32, 10 bits of fraction, as the bits that mma_tf32 takes.
__device__ __forceinline__ uint32 to_tf32(float x) {
#if defined(REFKD_HOST)
  return refkd_host::to_tf32(x);
#elif __CUDA_ARCH__ >= 800
  uint32 bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#else
  return __float_as_uint(x);
#endif
}

// d += A B of a warp, A 16 x 8 and B 8 x 8 in TF32, d 16 x 8. With g = lane / 4, t = lane % 4:
// a = A[g][t], A[g + 8][t], A[g][t + 4], A[g + 8][t + 4];  b = B[t][g], B[t + 4][g];
// d = D[g][2 t], D[g][2 t + 1], D[g + 8][2 t], D[g + 8][2 t + 1].
__device__ __forceinline__ void mma_tf32(float (&d)[4], const uint32 (&a)[4],
                                         const uint32 (&b)[2]) {
#if defined(REFKD_HOST)
  refkd_host::mma_tf32(d, a, b);
#elif __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();  // rather than no product, silently
#endif
}
