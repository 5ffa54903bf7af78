// How kernels are launched and take dynamic shared memory: nvcc's definitions. tests/cuda_on_cpu.h has others, with which the
// same sources run on the CPU. The run-time compiler sees device code only: no runtime, no launches.
#pragma once
#ifdef __CUDACC__
#ifdef __CUDACC_RTC__
typedef struct CUstream_st* cudaStream_t;
#else
#include <cuda_runtime.h>
#endif
#define CU_LAUNCH(kernel, grid, block, smem, stream, ...) (kernel)<<<(grid), (block), (smem), (stream)>>>(__VA_ARGS__)
#define CU_DYN_SMEM(T, name)                                       \
  extern __shared__ __align__(16) unsigned char cu_dynamic_smem[]; \
  T* name = reinterpret_cast<T*>(cu_dynamic_smem)
#endif

#ifndef __CUDACC_RTC__
namespace dml {

// The error of the launches since the last call, or nullptr.
inline const char* launch_error() {
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace dml
#endif
