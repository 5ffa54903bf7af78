// What pass.cu knows of the losses: functors, each with host functions that launch its kernels. Every header of csrc/losses is
// compiled by itself (loss.cu); losses.cu puts them in one table.
#pragma once
#include "cuda/pass.h"
#include "cuda/rows.h"

DML_BEGIN

struct CudaEntry {
  CudaFunctor functor;
  int limits, sums, slopes;            // numbers of fields per anchor
  int memory;                          // floats per positive of a row a block works on
  bool (*fits)(const double* options, unsigned char* into);
  int (*cells)(const unsigned char* options);   // of each of a table's histograms, or 0
  void (*forward)(const CudaLoss&, const RowsView&, const RowsChunk&, const RowsLoss&, cudaStream_t);
  void (*close)(const CudaLoss&, const RowsView&, const RowsChunk&, const RowsLoss&, cudaStream_t);   // or nullptr
  void (*backward)(const CudaLoss&, const RowsView&, const RowsChunk&, const RowsLoss&, cudaStream_t);
};

struct CudaFunctors {                  // of one header
  const CudaEntry* entries;
  int count;
};

// Blocks and threads of a launch over the rows of a chunk, a few references for each thread; bytes of shared memory.
inline int threads_for(int columns) { return columns <= 64 ? 32 : columns <= 256 ? 64 : columns <= 1024 ? 128 : kMostThreads; }
inline size_t shared_for(int memory, const RowsLoss& m) { return size_t(memory) * m.short_width * sizeof(float); }

int cuda_entries();
const CudaEntry& cuda_entry(int index);

DML_END
