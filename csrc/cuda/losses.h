// What step.cu knows of the losses: a table of functors, each with host functions that launch its kernels (losses.cu).
#pragma once
#include "cuda/rows.h"
#include "cuda/step.h"

DML_BEGIN

struct CudaEntry {
  CudaFunctor functor;
  int limits, sums, slopes;            // numbers of fields per anchor
  int memory;                          // floats per positive of a row a block works on
  bool (*fits)(const double* options, unsigned char* into);
  int (*cells)(const unsigned char* options);   // of each of a table's histograms, or 0
  void (*forward)(const unsigned char* options, const RowsView&, const RowsChunk&, const RowsLoss&, cudaStream_t);
  void (*close)(const unsigned char* options, const RowsView&, const RowsChunk&, const RowsLoss&, cudaStream_t);   // or nullptr
  void (*backward)(const unsigned char* options, const RowsView&, const RowsChunk&, const RowsLoss&, cudaStream_t);
};

int cuda_entries();
const CudaEntry& cuda_entry(int index);

// Threads of a block that works on rows of so many references: a few references for each.
inline int threads_for(int columns) { return columns <= 64 ? 32 : columns <= 256 ? 64 : columns <= 1024 ? 128 : kMostThreads; }

DML_END
