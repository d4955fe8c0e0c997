// CUDA C for the host: what kernels use of it, emulated so that mistakes show.
//
// The threads of a block are fibers of one thread of the system. A fiber runs until it waits for
// others: at __syncthreads, or in an operation of its warp. In what order they run is drawn for
// each block, as is the order of blocks; shared memory begins as NaN. So a missing barrier is seen
// as a value that was not there yet, or not any more. Asynchronous copies arrive when they are
// waited for and not before. Where the language leaves a thing undefined (a barrier that
// some threads miss, a mask that names lanes which are gone) it is an error here, as are indices
// beyond an array of known size and addresses that are not aligned. Subnormal numbers are flushed,
// as they are on the device. Float atomics are not there: sums in no fixed order are not wanted.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <link.h>
#include <xmmintrin.h>

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#define REFKD_HOST 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __shared__ static thread_local
#define __align__(n) alignas(n)
#define __constant__ static const
#define __restrict__ __restrict

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };
#define REFKD_VECTORS(T, name, a2, a4)                                                    \
  struct alignas(a2) name##2 { T x, y; };                                                 \
  struct name##3 { T x, y, z; };                                                          \
  struct alignas(a4) name##4 { T x, y, z, w; };                                           \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                              \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                      \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
#define uint3 refkd_uint3
REFKD_VECTORS(float, float, 8, 16)
REFKD_VECTORS(int, int, 8, 16)
REFKD_VECTORS(unsigned, uint, 8, 16)
REFKD_VECTORS(double, double, 16, 16)
REFKD_VECTORS(unsigned char, uchar, 2, 4)
REFKD_VECTORS(signed char, char, 2, 4)
#undef uint3

namespace refkd_host {

constexpr int STACK = 128 * 1024;
constexpr int MOST_THREADS = 1024;
constexpr int GUARD = 4096;  // bytes around dynamic shared memory

enum State { READY, AT_BARRIER, IN_WARP, DONE };

struct Copy { void* target; const void* source; int size; bool valid; };

struct Fiber {
  void* stack_pointer;
  State state;
  int thread;
  uint3 index;
  int barrier;                // the line it waits at
  unsigned mask;              // of the warp operation it waits in
  int operation;
  std::vector<Copy> copies;
  std::vector<size_t> groups;  // the ends of the groups in `copies`
};

struct Warp {
  unsigned arrived;
  alignas(16) unsigned char given[32][32], result[32][32];
};

inline Fiber fibers[MOST_THREADS];
inline Warp warps[MOST_THREADS / 32];
inline char* stacks = nullptr;
inline Fiber* current = nullptr;
inline void* scheduler = nullptr;
inline uint3 block_index;
inline dim3 block_size, grid_size;
inline int threads, alive;
inline int votes, vote_count, vote_result;
inline std::vector<unsigned char> dynamic;
inline unsigned char* dynamic_start = nullptr;
inline char message[512];
inline sigjmp_buf escape;
inline void (*body)(void**) = nullptr;
inline void** body_arguments = nullptr;

// Save what a function must preserve, swap stacks, restore.
extern "C" void refkd_switch(void** from, void* to);
asm(R"(
.pushsection .text
.type refkd_switch, @function
refkd_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size refkd_switch, .-refkd_switch
.popsection
)");

[[noreturn]] inline void fail(const char* what) {
  if (!message[0]) {
    if (current)
      snprintf(message, sizeof message, "%s, in block (%u, %u, %u), thread (%u, %u, %u)", what,
               block_index.x, block_index.y, block_index.z, current->index.x, current->index.y,
               current->index.z);
    else
      snprintf(message, sizeof message, "%s, in block (%u, %u, %u)", what, block_index.x,
               block_index.y, block_index.z);
  }
  siglongjmp(escape, 1);
}

inline void leave(State state) {
  current->state = state;
  refkd_switch(&current->stack_pointer, scheduler);
}

inline void start() {
  body(body_arguments);
  alive--;
  leave(DONE);
  abort();
}

inline void release_barrier() {
  int waiting = 0;
  for (int i = 0; i < threads; i++) waiting += fibers[i].state == AT_BARRIER;
  if (waiting < alive) return;
  int line = -1;
  for (int i = 0; i < threads; i++)
    if (fibers[i].state == AT_BARRIER) {
      if (line >= 0 && fibers[i].barrier != line) {
        current = &fibers[i];
        fail("threads wait at different barriers");
      }
      line = fibers[i].barrier;
      fibers[i].state = READY;
    }
  vote_result = votes;
  vote_count = waiting;
  votes = 0;
}

// Wait until every thread that has not returned is here; return how many came with a true vote.
inline int barrier(int line, bool vote = false) {
  current->barrier = line;
  votes += vote;
  current->state = AT_BARRIER;
  release_barrier();
  if (current->state == AT_BARRIER) leave(AT_BARRIER);
  return vote_result;
}

// Give `size` bytes to the lanes of `mask`; return those of all lanes, 32 bytes apart.
inline unsigned char (*exchange(unsigned mask, int operation, const void* value, size_t size))[32] {
  Warp& warp = warps[current->thread >> 5];
  int lane = current->thread & 31, first = current->thread & ~31;
  unsigned bit = 1u << lane;
  if (!(mask & bit)) fail("a lane is not in the mask it names");
  memcpy(warp.given[lane], value, size);
  current->mask = mask;
  current->operation = operation;
  warp.arrived |= bit;
  for (int i = 0; i < 32; i++)
    if (mask >> i & 1) {
      if (first + i >= threads || fibers[first + i].state == DONE)
        fail("a mask names a lane that is not there");
      if (warp.arrived >> i & 1 &&
          (fibers[first + i].mask != mask || fibers[first + i].operation != operation))
        fail("lanes of a warp are in different operations");
    }
  if ((warp.arrived & mask) == mask) {
    warp.arrived &= ~mask;
    for (int i = 0; i < 32; i++)
      if (mask >> i & 1) {
        memcpy(warp.result[i], warp.given[i], sizeof warp.given[i]);
        if (i != lane) fibers[first + i].state = READY;
      }
  } else {
    leave(IN_WARP);
  }
  return warp.result;
}

enum Operation { SHUFFLE, VOTE, SYNC, PRODUCT };

template <typename T>
inline T of_lane(unsigned mask, T value, int lane, int width, int own) {
  static_assert(sizeof(T) <= 32 && std::is_trivially_copyable_v<T>);
  auto all = exchange(mask, SHUFFLE, &value, sizeof value);
  (void)width;
  if (lane < 0) lane = own;
  if (!(mask >> lane & 1)) fail("a shuffle reads a lane that is not in its mask");
  T result;
  memcpy(&result, all[lane], sizeof result);
  return result;
}

inline int own_lane() { return current->thread & 31; }

inline void* dynamic_shared() { return dynamic_start; }

inline void cp_async(void* target, const void* source, int size, bool valid) {
  if ((uintptr_t)target % size || (valid && (uintptr_t)source % size))
    fail("an asynchronous copy is not aligned");
  memset(target, 0xff, size);  // NaN until it is waited for
  current->copies.push_back({target, source, size, valid});
}

inline void cp_async_commit() { current->groups.push_back(current->copies.size()); }

inline void cp_async_wait(size_t pending) {
  auto& groups = current->groups;
  auto& copies = current->copies;
  if (groups.size() <= pending) return;
  size_t finished = groups.size() - pending, count = groups[finished - 1];
  for (size_t i = 0; i < count; i++)
    if (copies[i].valid)
      memcpy(copies[i].target, copies[i].source, copies[i].size);
    else
      memset(copies[i].target, 0, copies[i].size);
  copies.erase(copies.begin(), copies.begin() + count);
  groups.erase(groups.begin(), groups.begin() + finished);
  for (auto& group : groups) group -= count;
}

inline unsigned to_tf32(float x) {
  unsigned bits;
  memcpy(&bits, &x, 4);
  if ((bits & 0x7f800000) == 0x7f800000) return bits;
  return (bits + 0x1000) & 0xffffe000;  // to nearest, ties away from zero
}

inline void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  unsigned own[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  auto all = exchange(0xffffffffu, PRODUCT, own, sizeof own);
  auto value = [&](int lane, int which) {
    unsigned bits;
    float x;
    memcpy(&bits, all[lane] + 4 * which, 4);
    bits &= 0xffffe000;  // a tensor core looks at no more
    memcpy(&x, &bits, 4);
    return x;
  };
  int g = own_lane() / 4, t = own_lane() % 4;
  for (int i = 0; i < 4; i++) {
    int row = g + 8 * (i / 2), column = 2 * t + i % 2;
    float sum = d[i];
    for (int k = 0; k < 8; k++)
      sum += value(row % 8 * 4 + k % 4, row / 8 + 2 * (k / 4)) * value(column * 4 + k % 4, 4 + k / 4);
    d[i] = sum;
  }
}

inline unsigned draw(unsigned& seed) {
  seed = seed * 1664525u + 1013904223u;
  return seed >> 8;
}

// Fill what this library's kernels declare __shared__ with NaN: all that is thread_local in it.
inline int find_thread_locals(dl_phdr_info* info, size_t, void* found) {
  auto own = (ElfW(Addr))&find_thread_locals;
  bool here = false;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    auto& part = info->dlpi_phdr[i];
    auto begin = info->dlpi_addr + part.p_vaddr;
    here |= part.p_type == PT_LOAD && own >= begin && own < begin + part.p_memsz;
  }
  if (!here) return 0;
  for (int i = 0; i < info->dlpi_phnum; i++)
    if (info->dlpi_phdr[i].p_type == PT_TLS)
      *(std::pair<void*, size_t>*)found = {info->dlpi_tls_data, info->dlpi_phdr[i].p_memsz};
  return 1;
}

inline void run_block(unsigned& seed, std::pair<void*, size_t> shared) {
  if (shared.first) memset(shared.first, 0xff, shared.second);
  std::fill(dynamic.begin(), dynamic.end(), 0xff);
  memset(warps, 0, sizeof warps);
  alive = threads;
  votes = 0;
  for (int i = 0; i < threads; i++) {
    Fiber& fiber = fibers[i];
    void** top = (void**)(stacks + (size_t)(i + 1) * STACK) - 2;
    *top = (void*)start;
    fiber.stack_pointer = top - 6;
    fiber.state = READY;
    fiber.thread = i;
    fiber.index = {i % block_size.x, i / block_size.x % block_size.y,
                   i / (block_size.x * block_size.y)};
    fiber.copies.clear();
    fiber.groups.clear();
  }
  // Warps in a drawn order, the lanes of each up or down.
  int order[MOST_THREADS], count = 0, of_warps[32], warp_count = (threads + 31) / 32;
  for (int i = 0; i < warp_count; i++) of_warps[i] = i;
  for (int i = warp_count - 1; i > 0; i--) std::swap(of_warps[i], of_warps[draw(seed) % (i + 1)]);
  bool down = draw(seed) & 1;
  for (int w = 0; w < warp_count; w++)
    for (int k = 0; k < 32; k++) {
      int thread = 32 * of_warps[w] + (down ? 31 - k : k);
      if (thread < threads) order[count++] = thread;
    }
  while (alive) {
    bool moved = false;
    for (int i = 0; i < count; i++) {
      Fiber& fiber = fibers[order[i]];
      if (fiber.state != READY) continue;
      moved = true;
      current = &fiber;
      refkd_switch(&scheduler, fiber.stack_pointer);
    }
    current = nullptr;
    if (!moved && alive) {
      release_barrier();
      bool waits = true;
      for (int i = 0; i < threads; i++) waits &= fibers[i].state != READY;
      if (waits) fail("threads wait for each other without end");
    }
  }
  current = nullptr;
  for (int i = 0; i < GUARD; i++)
    if (dynamic_start[-1 - i] != 0xff || dynamic.end()[-1 - i] != 0xff)
      fail("a write beyond dynamic shared memory");
}

inline void on_signal(int number) {
  (void)number;
  fail("a segmentation fault");
}

// Run a kernel; return what went wrong, or null.
inline const char* run(void (*kernel)(void**), void** arguments, const unsigned* sizes,
                       unsigned shared_bytes, unsigned seed) {
  if (!stacks)
    stacks = (char*)mmap(nullptr, (size_t)STACK * MOST_THREADS, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  grid_size = {sizes[0], sizes[1], sizes[2]};
  block_size = {sizes[3], sizes[4], sizes[5]};
  threads = block_size.x * block_size.y * block_size.z;
  body = kernel;
  body_arguments = arguments;
  message[0] = 0;
  dynamic.assign(shared_bytes + 2 * GUARD + 128, 0xff);
  dynamic_start = dynamic.data() + GUARD + (-(uintptr_t)(dynamic.data() + GUARD) & 127);
  dynamic.resize(dynamic_start - dynamic.data() + shared_bytes + GUARD);
  static thread_local volatile char touched;
  touched = 1;  // thread-local memory is not there before
  std::pair<void*, size_t> thread_locals{nullptr, 0};
  dl_iterate_phdr(find_thread_locals, &thread_locals);
  static char signal_stack[64 * 1024];
  stack_t alternative{}, before{};
  alternative.ss_sp = signal_stack;
  alternative.ss_size = sizeof signal_stack;
  sigaltstack(&alternative, &before);
  struct sigaction action{}, old_segv, old_bus;
  action.sa_handler = on_signal;
  action.sa_flags = SA_ONSTACK | SA_NODEFER;
  sigaction(SIGSEGV, &action, &old_segv);
  sigaction(SIGBUS, &action, &old_bus);
  unsigned control = _mm_getcsr();
  _mm_setcsr(control | 0x8040);  // flush subnormals
  size_t blocks = (size_t)grid_size.x * grid_size.y * grid_size.z;
  if (!sigsetjmp(escape, 1)) {
    // From a drawn block on, in steps that visit each once.
    size_t begin = draw(seed) % blocks, step = blocks > 2 && draw(seed) & 1 ? blocks - 1 : 1;
    for (size_t k = 0; k < blocks; k++) {
      size_t b = (begin + k * step) % blocks;
      block_index = {unsigned(b % grid_size.x), unsigned(b / grid_size.x % grid_size.y),
                     unsigned(b / ((size_t)grid_size.x * grid_size.y))};
      run_block(seed, thread_locals);
    }
  }
  current = nullptr;
  _mm_setcsr(control);
  sigaction(SIGSEGV, &old_segv, nullptr);
  sigaction(SIGBUS, &old_bus, nullptr);
  sigaltstack(&before, nullptr);
  return message[0] ? message : nullptr;
}

struct Location { const char* file; unsigned line, column; };

[[noreturn]] inline void fail_at(const char* what, void* data) {
  auto place = (const Location*)data;
  char text[256];
  snprintf(text, sizeof text, "%s at line %u of %s", what, place->line, place->file);
  fail(text);
}

}  // namespace refkd_host

// What -fsanitize=bounds,alignment calls.
extern "C" __attribute__((used)) inline void __ubsan_handle_out_of_bounds(void* data, void*) {
  refkd_host::fail_at("an index beyond its array", data);
}
extern "C" __attribute__((used)) inline void __ubsan_handle_type_mismatch_v1(void* data, void*) {
  refkd_host::fail_at("an address that is not aligned", data);
}

#define threadIdx (refkd_host::current->index)
#define blockIdx (refkd_host::block_index)
#define blockDim (refkd_host::block_size)
#define gridDim (refkd_host::grid_size)
#define warpSize 32

#define __syncthreads() ((void)refkd_host::barrier(__LINE__))
#define __syncthreads_count(vote) (refkd_host::barrier(__LINE__, (vote) != 0))
#define __syncthreads_or(vote) (refkd_host::barrier(__LINE__, (vote) != 0) != 0)
#define __syncthreads_and(vote) (refkd_host::barrier(__LINE__, (vote) == 0) == 0)

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  char nothing = 0;
  refkd_host::exchange(mask, refkd_host::SYNC, &nothing, 1);
}

template <typename T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  int own = refkd_host::own_lane();
  return refkd_host::of_lane(mask, value, (own & -width) + (source & (width - 1)), width, own);
}
template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  int own = refkd_host::own_lane(), other = own ^ bits;
  return refkd_host::of_lane(mask, value, other >= (own & -width) + width ? -1 : other, width, own);
}
template <typename T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  int own = refkd_host::own_lane(), other = own + (int)by;
  return refkd_host::of_lane(mask, value, other >= (own & -width) + width ? -1 : other, width, own);
}
template <typename T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  int own = refkd_host::own_lane(), other = own - (int)by;
  return refkd_host::of_lane(mask, value, other < (own & -width) ? -1 : other, width, own);
}
inline unsigned __ballot_sync(unsigned mask, int vote) {
  auto all = refkd_host::exchange(mask, refkd_host::VOTE, &vote, sizeof vote);
  unsigned result = 0;
  for (int i = 0; i < 32; i++) {
    int given = 0;
    if (mask >> i & 1) memcpy(&given, all[i], sizeof given);
    result |= (given != 0 ? 1u : 0u) << i;
  }
  return result;
}
inline int __any_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) != 0; }
inline int __all_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) == mask; }

template <typename T>
inline T atomicAdd(T* address, std::common_type_t<T> value) {
  static_assert(std::is_integral_v<T>, "float atomics add in no fixed order");
  T old = *address;
  *address = old + value;
  return old;
}
template <typename T>
inline T atomicMax(T* address, std::common_type_t<T> value) {
  static_assert(std::is_integral_v<T>);
  T old = *address;
  *address = std::max(old, value);
  return old;
}
template <typename T>
inline T atomicMin(T* address, std::common_type_t<T> value) {
  static_assert(std::is_integral_v<T>);
  T old = *address;
  *address = std::min(old, value);
  return old;
}
template <typename T>
inline T atomicOr(T* address, std::common_type_t<T> value) {
  T old = *address;
  *address = old | value;
  return old;
}
template <typename T>
inline T atomicExch(T* address, std::common_type_t<T> value) {
  return std::exchange(*address, value);
}
inline unsigned atomicInc(unsigned* address, unsigned limit) {
  unsigned old = *address;
  *address = old >= limit ? 0 : old + 1;
  return old;
}

template <typename To, typename From>
inline To refkd_bits(From from) {
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
inline float __int_as_float(int x) { return refkd_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return refkd_bits<float>(x); }
inline int __float_as_int(float x) { return refkd_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return refkd_bits<unsigned>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __frcp_rn(float x) { return 1 / x; }
inline unsigned __umulhi(unsigned x, unsigned y) { return (uint64_t(x) * y) >> 32; }
inline int __mulhi(int x, int y) { return (int64_t(x) * y) >> 32; }
template <typename T>
inline T __ldg(const T* p) { return *p; }
template <typename T>
inline T __ldcs(const T* p) { return *p; }
template <typename T>
inline void __stcs(T* p, T value) { *p = value; }
inline size_t __cvta_generic_to_shared(const void* p) { return (size_t)p; }
#define REFKD_BOTH(T)                           \
  inline T min(T a, T b) { return a < b ? a : b; } \
  inline T max(T a, T b) { return a > b ? a : b; }
REFKD_BOTH(int)
REFKD_BOTH(unsigned)
REFKD_BOTH(long long)
REFKD_BOTH(unsigned long long)
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
