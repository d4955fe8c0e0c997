// What ends a training step: the check that all is finite, the update of all parameters, and the
// report. Arrays are given by tables of their addresses, so that one launch does for all. Blocks
// take a chunk each: `tensors` and `chunks` say of which array, and which of it.
// hot: check_gradients update_by_*
#include "common.cuh"
#include "optimizer.cuh"

#define EACH 4  // entries of a thread, which are read at once
#define CHUNK 1024

__device__ __forceinline__ float* array_at(const long long* addresses, int i) {
  return (float*)addresses[i];
}

// The part of its array that a block takes.
struct Chunk {
  int tensor;
  int64 begin, end;
};
__device__ __forceinline__ Chunk own_chunk(const long long* sizes, const int* tensors,
                                           const int* chunks) {
  int tensor = tensors[blockIdx.x];
  int64 begin = (int64)chunks[blockIdx.x] * CHUNK, end = begin + CHUNK;
  return {tensor, begin, end < sizes[tensor] ? end : sizes[tensor]};
}

__device__ __forceinline__ bool is_finite(float x) { return fabsf(x) < REFKD_INFINITY; }

// Whether a flag is raised or a term is not finite; all threads of the block get the answer.
__device__ __forceinline__ bool refused(const int* flags, int count, const long long* terms,
                                        int term_count) {
  bool bad = false;
  for (int i = threadIdx.x; i < count; i += blockDim.x) bad |= flags[i] != 0;
  for (int i = threadIdx.x; i < term_count; i += blockDim.x)
    bad |= !is_finite(*array_at(terms, i));
  return __syncthreads_or(bad);
}

// Philox4x32 of 10 rounds (Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3): four
// words of a counter and a key.
__device__ __forceinline__ uint4 philox(int64 counter, uint32 key0, uint32 key1) {
  uint4 c = make_uint4((uint32)counter, (uint32)(counter >> 32), 0, 0);
  for (int round = 0; round < 10; round++) {
    uint32 high0 = __umulhi(0xD2511F53u, c.x), low0 = 0xD2511F53u * c.x;
    uint32 high1 = __umulhi(0xCD9E8D57u, c.z), low1 = 0xCD9E8D57u * c.z;
    c = make_uint4(high1 ^ c.y ^ key0, low1, high0 ^ c.w ^ key1, low0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}

// Of 24 bits, uniform in [0, 1)
__device__ __forceinline__ bool is_kept(uint32 word, float p) {
  return (word >> 8) * (1.0f / 16777216) >= p;
}

// mask = u >= p, u uniform in [0, 1): a word each, of the counters from `first` on, keyed by seed
extern "C" __global__ void draw_mask(const unsigned int* seed, long long first, float p,
                                     bool* mask, long long n) {
  for (int64 v = global_index(); 4 * v < n; v += grid_stride()) {
    uint4 words = philox(first + v, seed[0], seed[1]);
    bool kept[4] = {is_kept(words.x, p), is_kept(words.y, p), is_kept(words.z, p),
                    is_kept(words.w, p)};
    for (int k = 0; k < 4; k++)
      if (4 * v + k < n) mask[4 * v + k] = kept[k];
  }
}

// flags[i] = 1 if gradient i holds NaN or infinity
extern "C" __global__ void check_gradients(const long long* grads, const long long* sizes,
                                           const int* tensors, const int* chunks, int* flags) {
  Chunk chunk = own_chunk(sizes, tensors, chunks);
  const float* grad = array_at(grads, chunk.tensor);
  bool bad = false;
  for (int64 i = chunk.begin + threadIdx.x; i < chunk.end; i += blockDim.x)
    bad |= !is_finite(grad[i]);
  if (__syncthreads_or(bad) && threadIdx.x == 0) flags[chunk.tensor] = 1;
}

// Entry k of a thread in its chunk; all of a warp are neighbours.
__device__ __forceinline__ int64 entry_of(Chunk chunk, int k) {
  return chunk.begin + k * (CHUNK / EACH) + threadIdx.x;
}
__device__ __forceinline__ void read(float (&entries)[EACH], const float* array, Chunk chunk) {
#pragma unroll
  for (int k = 0; k < EACH; k++)
    entries[k] = entry_of(chunk, k) < chunk.end ? array[entry_of(chunk, k)] : 0;
}
__device__ __forceinline__ void write(float* array, const float (&entries)[EACH], Chunk chunk) {
#pragma unroll
  for (int k = 0; k < EACH; k++)
    if (entry_of(chunk, k) < chunk.end) array[entry_of(chunk, k)] = entries[k];
}

// numbers = lr, momentum, decay, nesterov (0 or 1). CHUNK / EACH threads.
extern "C" __global__ void update_by_sgd(const long long* params, const long long* grads,
                                         const long long* buffers, const long long* sizes,
                                         const int* tensors, const int* chunks, const int* flags,
                                         int count, const long long* terms, int term_count,
                                         const float* numbers) {
  Chunk chunk = own_chunk(sizes, tensors, chunks);
  float* param = array_at(params, chunk.tensor);
  float* buffer = array_at(buffers, chunk.tensor);
  float w[EACH], b[EACH], g[EACH];
  read(w, param, chunk);
  read(b, buffer, chunk);
  read(g, array_at(grads, chunk.tensor), chunk);
  SgdNumbers a{numbers[0], numbers[1], numbers[2], numbers[3] != 0};
  if (refused(flags, count, terms, term_count)) return;
  for (int k = 0; k < EACH; k++) sgd(w[k], g[k], b[k], a);
  write(param, w, chunk);
  write(buffer, b, chunk);
}

// numbers as adam_update takes them. CHUNK / EACH threads.
extern "C" __global__ void update_by_adam(const long long* params, const long long* grads,
                                          const long long* first, const long long* second,
                                          const long long* sizes, const int* tensors,
                                          const int* chunks, const int* flags, int count,
                                          const long long* terms, int term_count,
                                          const float* numbers) {
  Chunk chunk = own_chunk(sizes, tensors, chunks);
  float* param = array_at(params, chunk.tensor);
  float* exp_avg = array_at(first, chunk.tensor);
  float* exp_avg_sq = array_at(second, chunk.tensor);
  float w[EACH], g[EACH], m[EACH], v[EACH];
  read(w, param, chunk);
  read(g, array_at(grads, chunk.tensor), chunk);
  read(m, exp_avg, chunk);
  read(v, exp_avg_sq, chunk);
  AdamNumbers a{numbers[0], numbers[1], numbers[2], numbers[3],
                numbers[4], numbers[5], numbers[6], numbers[7]};
  if (refused(flags, count, terms, term_count)) return;
  for (int k = 0; k < EACH; k++) adam(w[k], g[k], m[k], v[k], a);
  write(param, w, chunk);
  write(exp_avg, m, chunk);
  write(exp_avg_sq, v, chunk);
}

// report = the terms, and the flags, which are lowered for the next step. One block.
extern "C" __global__ void report(const long long* terms, int term_count, int* flags, int count,
                                  float* report) {
  for (int i = threadIdx.x; i < term_count; i += blockDim.x) report[i] = *array_at(terms, i);
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    report[term_count + i] = flags[i];
    flags[i] = 0;
  }
}

// Copy array i, so many words of 4 bytes, to its offset in `flat`. A block for each array.
extern "C" __global__ void gather(const long long* sources, const long long* words,
                                  const long long* offsets, int* flat) {
  const int* source = (const int*)sources[blockIdx.x];
  int* target = flat + offsets[blockIdx.x];
  for (int64 i = threadIdx.x; i < words[blockIdx.x]; i += blockDim.x) target[i] = source[i];
}
