// What step.cu knows of the losses: a table of functors, each with host functions that launch its kernels (losses.cu).
#pragma once
#include "cuda/step.h"
#include "cuda/tile.h"

DML_BEGIN

struct LossMemory {                    // of one loss; arrays over the anchors in class order, [field][A]
  float *limits, *sums, *slopes;
  float* partial;                      // [split][field][A]
  float *slot_limits, *slot_sums;      // [field][positive][A]
  int64_t most_positives;
  int splits;                          // blocks that share the references of a row of tiles
  float* long_lists;                   // [long_blocks][N], or nullptr: every list of positives is short
  int long_blocks;
};

struct RowsOut {                       // values and counts of a loss, in the caller's order
  const int64_t* order;
  const float* factors;                // [A]: NaN for an anchor that is not finite
  float *values, *counts;              // [values][A]
};

struct Owners {  // whose gradient is computed, and which slopes enter: the owners', the others', or both
  const float *vectors, *others;
  int count, other_count;
  bool by_owner, by_other;
  float* grad;  // [count][D]
  bool add;
};

constexpr int kShortList = 256;  // positives kept in shared memory

struct CudaEntry {
  CudaFunctor functor;
  int limits, sums, slopes, slot_limits, slot_sums;  // numbers of fields
  bool (*fits)(const double* options, unsigned char* into);
  void (*open)(const unsigned char* options, const View&, const LossMemory&, cudaStream_t);
  void (*collect)(const unsigned char* options, const View&, const LossMemory&, cudaStream_t);
  void (*close)(const unsigned char* options, const View&, const LossMemory&, const RowsOut&, cudaStream_t);
  void (*weigh)(const unsigned char* options, const View&, const LossMemory&, const int64_t* order, const float* cotangents,
                cudaStream_t);
  void (*gradient)(const unsigned char* options, const View&, const LossMemory&, const Owners&, cudaStream_t);
};

int cuda_entries();
const CudaEntry& cuda_entry(int index);

DML_END
