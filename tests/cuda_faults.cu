// Kernels with a planted fault each, to see that the emulator shows it. Compiled by test_cuda_emulated.py.
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
__global__ void some_wait() {  // half of a warp waits for all of it, half for the block
  if (threadIdx.x < 16) __syncwarp();
  else __syncthreads();
}
__global__ void add_up(const int* from, int count, int* to) {
  int sum = 0;
  for (int k = threadIdx.x; k <= count; k += blockDim.x) sum += from[k];  // one too far
  to[threadIdx.x] = sum;
}
__global__ void nothing() {}

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
SHOWN const char* fault_divergent() {
  return caught([] { CU_LAUNCH(some_wait, 1, kThreads, 0, nullptr); });
}
SHOWN const char* fault_bounds(const int* from, int count, int* to) {
  return caught([&] { CU_LAUNCH(add_up, 1, 32, 0, nullptr, from, count, to); });
}
SHOWN const char* fault_shared(int bytes) {
  return caught([&] { CU_LAUNCH(nothing, 1, 32, size_t(bytes), nullptr); });
}
SHOWN const char* fault_grid(int blocks) {
  return caught([&] { CU_LAUNCH(nothing, blocks, 32, 0, nullptr); });
}
