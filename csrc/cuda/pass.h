// One pass on a GPU, as a binding sees it: device pointers, plain data and a stream in, error text out (nullptr:
// none). Nothing here allocates, waits for the device or needs CUDA's headers; every result has one writer or is a sum of whole
// numbers, so that the same inputs give the same bits.
//
// The caller multiplies matrices: for every chunk of anchors and references it hands in their products, all losses read them one
// after the other, and in backward all add their slopes to one chunk that the caller multiplies with the vectors.
//
//   prepare                       vectors in class order and of unit norm, ranges of the classes
//   for every chunk: forward      rows in order, and in every row of chunks the columns in order
//   finish                        what needs all anchors: losses with partners, tables
//   for every chunk: backward
//   scatter                       gradients through the normalisation, back to the caller's order
#pragma once
#include <cstdint>

namespace dml {

struct CudaShape {
  int64_t A, N, D;
  bool self;  // the references are the anchors, no pair with itself; N is A
  bool lists, own;  // positives are listed; an anchor may be one of the references
  int64_t list_length;  // of all lists together
  int64_t most_positives;  // of any anchor; 0: unknown
  int64_t workspace;  // bytes of a chunk's products
  int64_t rows, columns;  // of a chunk; 0: planned
};

// A functor that was compiled at run time: its kernels of row_kernels.h as handles of the driver, and numbers of `RowsLayout`.
struct CudaExternal {
  void *forward, *close, *backward;  // close: with partners only
  int values, bytes, given, limits, sums, slopes, memory;
  bool slots, partners, centres;
};
// cuLaunchKernel: kernel, grid, block, bytes of shared memory, stream, arguments, extra; 0 is success.
using CudaLauncher = int (*)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**,
                             void**);

// One kernel for several losses of a pass (set_kernels.h), compiled at run time.
struct CudaSet {
  void *forward, *backward;
  CudaLauncher launcher;
};

struct CudaLoss {
  int functor;  // not read with `external`
  alignas(16) unsigned char options[64];
  const float *given, *windows;  // [K, A], [4, A] in the caller's order, or nullptr
  bool has_windows, in_set;
  const CudaExternal* external;  // nullptr: built in
  CudaLauncher launcher;
};

struct CudaFunctor {
  const char *name, *options;
  int values, bytes, given;
  bool slots, partners, centres, table;
};

struct CudaPlan {
  int64_t rows, columns;  // of a chunk
  bool whole;  // every chunk holds whole rows
  int64_t table_cells;
  int64_t kept, forward, backward;  // bytes: from prepare to the last backward; during forward; during backward
  int64_t long_blocks;  // that work on anchors with more positives than fit shared memory
};

struct CudaSide {  // anchors or references
  const float* data;  // [rows, width] in the caller's order
  const int64_t *order, *labels;  // [rows]: the caller's index of the rows in class order, and their labels; nullptr with lists
  float *unit, *factors;  // [rows, width], [rows]: written by prepare, in class order
  bool normalise;
};

struct CudaProblem {
  CudaShape shape;
  CudaPlan plan;
  CudaSide anchors, references;  // references of a batch with itself are not read
  const int64_t *own, *starts, *lists;  // in the caller's order
  void* kept;
  CudaSet set;  // of the losses that say `in_set`
};

struct CudaChunk {
  float* products;  // [rows, columns]
  float* slopes;  // the same; backward
  int64_t row0, rows, column0, columns;
  bool fresh;  // the products have not been in `forward` before
};

int cuda_functors();
CudaFunctor cuda_functor(int index);
bool cuda_fits(int functor, const double* options, unsigned char* into);  // false: the next functor of that name is wider
bool cuda_joins(const CudaLoss&);  // whether a loss can share its kernel with others

// An error: the kernels do not take this problem.
const char* cuda_plan(const CudaShape&, const CudaLoss*, int losses, CudaPlan*);
const char* cuda_prepare(const CudaProblem&, const CudaLoss*, int losses, void* stream);
// values, counts [V, A] in the caller's order; tables [cells].
const char* cuda_forward(const CudaProblem&, const CudaLoss*, int losses, const CudaChunk&, void* scratch, float* values,
                         float* counts, void* stream);
const char* cuda_finish(const CudaProblem&, const CudaLoss*, int losses, void* scratch, float* values, float* counts,
                        float* tables, void* stream);
// cotangents [V, A], table_cotangents [cells].
const char* cuda_backward(const CudaProblem&, const CudaLoss*, int losses, const CudaChunk&, void* scratch,
                          const float* cotangents, const float* table_cotangents, void* stream);
// grad [rows, width] of the unit vectors, in class order; to: the same of the caller's vectors in their order.
const char* cuda_scatter(const CudaProblem&, bool references, const float* grad, float* to, void* stream);
int cuda_runtime_version();  // of the runtime linked in, as CUDART_VERSION

}  // namespace dml
