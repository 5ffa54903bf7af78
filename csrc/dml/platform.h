// What every header of csrc needs to compile as plain C++, with nvcc, under the run-time compiler and in the emulator.
// Each instruction set gets its own inline namespace (DML_LEVEL), so that the linker never merges code of two levels.
#pragma once

#ifndef DML_LEVEL
#define DML_LEVEL base
#endif

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define DML_FN __host__ __device__ __forceinline__
#define DML_VECTORS 0
#elif defined(DML_EMULATE_CUDA)
#define DML_FN inline
#define DML_VECTORS 0
#else
#define DML_FN inline __attribute__((always_inline))
#define DML_VECTORS 1
#endif

#ifdef __CUDACC_RTC__
#define __builtin_memcpy memcpy                                        // which it knows by that name only
#endif

#define DML_BEGIN \
  namespace dml { \
  inline namespace DML_LEVEL {
#define DML_END \
  }             \
  }
