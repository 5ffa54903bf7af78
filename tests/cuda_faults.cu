// Kernels with a planted fault each, to see that the emulator shows it, and some that are right. Compiled by cuda_emulation.py,
// called by test_cuda_on_cpu.py.
#include <exception>
#include <string>

#include "cuda/launch.h"

namespace {

constexpr int kThreads = 64;

__global__ void reverse(const int* from, int* to, bool wait) {         // thread k hands its number to thread 63 - k
  __shared__ int numbers[kThreads];
  numbers[threadIdx.x] = from[threadIdx.x];
  if (wait) __syncthreads();
  to[threadIdx.x] = numbers[kThreads - 1 - threadIdx.x];
}
__global__ void reverse_in_warps(const int* from, int* to, bool wait) {
  CU_DYN_SMEM(int, numbers);
  numbers[threadIdx.x] = from[threadIdx.x];
  if (wait) __syncwarp();
  to[threadIdx.x] = numbers[threadIdx.x ^ 31];
}
__global__ void rotate(int* to, int rounds, bool wait) {               // the second barrier of a round is missing
  CU_DYN_SMEM(int, numbers);
  int mine = threadIdx.x;
  for (int round = 0; round < rounds; ++round) {
    numbers[threadIdx.x] = mine;
    __syncthreads();
    mine = numbers[(threadIdx.x + 1) % blockDim.x];
    if (wait) __syncthreads();
  }
  to[threadIdx.x] = mine;
}
__global__ void last_wins(int* to) {                                   // every thread writes the same cell
  __shared__ int winner;
  winner = int(threadIdx.x);
  __syncthreads();
  to[threadIdx.x] = winner;
}
__global__ void some_wait() {  // half of a warp waits for all of it, half for the block
  if (threadIdx.x < 16) __syncwarp();
  else __syncthreads();
}
__global__ void few_shuffle(int* to, int fault) {
  const int lane = threadIdx.x % 32;
  if (fault == 1 && lane < 16) return;                                 // lanes that have left are not waited for
  if (fault == 2 && lane < 16) to[threadIdx.x] = __shfl_sync(0x0000ffffu, lane, 20);  // reads a lane outside its mask
  else if (fault == 3) to[threadIdx.x] = __shfl_sync(lane < 16 ? 0xffffffffu : 0xffff0000u, lane, 17);  // masks that differ
  else if (fault == 4) to[threadIdx.x] = __shfl_sync(0xfffffffeu, lane, 1);  // lane 0 is not in its mask
  else to[threadIdx.x] = __shfl_sync(0xffffffffu, lane, 17);
}
__global__ void add_up(const int* from, int count, int* to) {
  int sum = 0;
  for (int k = threadIdx.x; k <= count; k += blockDim.x) sum += from[k];  // one too far
  to[threadIdx.x] = sum;
}
__global__ void read_shared(int count, int* to) {                      // one too far, in dynamic shared memory
  CU_DYN_SMEM(int, numbers);
  for (int k = threadIdx.x; k < count; k += blockDim.x) numbers[k] = k;
  __syncthreads();
  to[threadIdx.x] = numbers[threadIdx.x * (count - 1) / 31 + (threadIdx.x == 31)];
}
__global__ void write_shared(int place, int* to) {                     // a fixed array
  __shared__ int numbers[kThreads];
  numbers[place + int(threadIdx.x)] = int(threadIdx.x);
  __syncthreads();
  to[threadIdx.x] = numbers[threadIdx.x];
}
__global__ void unwritten(float* to) {                                 // dynamic shared memory begins as NaN
  CU_DYN_SMEM(float, numbers);
  to[threadIdx.x] = numbers[threadIdx.x];
}
__global__ void nothing() {}

__global__ void warp_functions(int* to) {                              // [9][64]
  const int t = int(threadIdx.x), lane = t % 32;
  to[t] = __shfl_sync(0xffffffffu, t, 3);
  to[64 + t] = __shfl_xor_sync(0xffffffffu, t, 5);
  to[128 + t] = __shfl_up_sync(0xffffffffu, t, 2);
  to[192 + t] = __shfl_down_sync(0xffffffffu, t, 2);
  to[256 + t] = __shfl_xor_sync(0xffffffffu, t, 5, 8);
  to[320 + t] = int(__ballot_sync(0xffffffffu, lane % 3 == 0));
  to[384 + t] = __any_sync(0xffffffffu, lane == 7) * 2 + __all_sync(0xffffffffu, lane < 31);
  to[448 + t] = __syncthreads_count(t % 5 == 0);
  to[512 + t] = __syncthreads_or(t == 63) * 2 + __syncthreads_and(t < 63);
}
__global__ void atomics(int* to, float* sum, unsigned long long* large) {  // all threads of all blocks
  const int t = int(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(&to[0], 1);
  atomicMax(&to[1], t);
  atomicMin(&to[2], t);
  for (int seen = to[3], old; (old = atomicCAS(&to[3], seen, seen + 2)) != seen; seen = old) {}
  atomicExch(&to[4], 7);
  atomicAdd(sum, 0.5f);
  atomicAdd(large, 1ull << 33);
}

std::string text;
template <class Launch> const char* caught(Launch launch) {
  try {
    launch();
    return nullptr;
  } catch (const std::exception& error) {
    text = error.what();
    return text.c_str();
  }
}

}  // namespace

#define SHOWN extern "C" __attribute__((visibility("default")))
SHOWN const char* fault_reverse(const int* from, int* to, bool wait) {
  return caught([&] { CU_LAUNCH(reverse, 1, kThreads, 0, nullptr, from, to, wait); });
}
SHOWN const char* fault_reverse_in_warps(const int* from, int* to, bool wait) {
  return caught([&] { CU_LAUNCH(reverse_in_warps, 1, kThreads, kThreads * sizeof(int), nullptr, from, to, wait); });
}
SHOWN const char* fault_rotate(int* to, int rounds, bool wait) {
  return caught([&] { CU_LAUNCH(rotate, 1, kThreads, kThreads * sizeof(int), nullptr, to, rounds, wait); });
}
SHOWN const char* fault_last_wins(int* to) {
  return caught([&] { CU_LAUNCH(last_wins, 1, kThreads, 0, nullptr, to); });
}
SHOWN const char* fault_divergent() {
  return caught([] { CU_LAUNCH(some_wait, 1, kThreads, 0, nullptr); });
}
SHOWN const char* fault_shuffle(int* to, int fault) {
  return caught([&] { CU_LAUNCH(few_shuffle, 1, 32, 0, nullptr, to, fault); });
}
SHOWN const char* fault_bounds(const int* from, int count, int* to) {
  return caught([&] { CU_LAUNCH(add_up, 1, 32, 0, nullptr, from, count, to); });
}
SHOWN const char* fault_shared_bounds(int count, int bytes, int* to) {
  return caught([&] { CU_LAUNCH(read_shared, 1, 32, size_t(bytes), nullptr, count, to); });
}
SHOWN const char* fault_array_bounds(int place, int* to) {
  return caught([&] { CU_LAUNCH(write_shared, 1, 32, 0, nullptr, place, to); });
}
SHOWN const char* fault_unwritten(float* to) {
  return caught([&] { CU_LAUNCH(unwritten, 1, 32, 32 * sizeof(float), nullptr, to); });
}
SHOWN const char* fault_launch(unsigned x, unsigned y, unsigned z, unsigned threads, unsigned thread_layers, int bytes) {
  return caught([&] { CU_LAUNCH(nothing, dim3(x, y, z), dim3(threads, 1, thread_layers), size_t(bytes), nullptr); });
}
SHOWN const char* fault_allowed_shared(int allowed, int bytes) {
  cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, allowed);
  const char* error = caught([&] { CU_LAUNCH(nothing, 1, 32, size_t(bytes), nullptr); });
  cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, 48 << 10);
  return error;
}
SHOWN const char* run_warp_functions(int* to) {
  return caught([&] { CU_LAUNCH(warp_functions, 1, 64, 0, nullptr, to); });
}
SHOWN const char* run_atomics(int blocks, int* to, float* sum, unsigned long long* large) {
  return caught([&] { CU_LAUNCH(atomics, blocks, kThreads, 0, nullptr, to, sum, large); });
}
