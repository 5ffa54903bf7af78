// One step of an ensemble on a GPU, as a binding sees it: device pointers, plain data and a stream in, error text out (nullptr:
// none). Nothing here allocates, waits for the device or needs CUDA's headers; all arithmetic is float32 and every result has
// one writer, so that the same inputs give the same bits.
//
// The losses of an ensemble run one after the other over the same prepared vectors; one pass that feeds them all would replace
// the loops in step.cu and the table in losses.h, not the functors and not this interface.
#pragma once
#include <cstdint>

namespace dml {

struct CudaSide {  // anchors or references
  const float* data;  // [rows, width] in the caller's order
  const int64_t* order;  // [rows]: index of the rows in order of their class
  int64_t rows;
  bool normalise;
};

struct CudaProblem {
  CudaSide anchors, references;
  bool self;  // the references are the anchors: `references` is not read, no pair with itself
  const int64_t *row_first, *row_last;  // [anchors, in class order]: the references of the anchor's class, in class order
  int64_t width;
  int64_t most_positives;  // of any anchor; read only by losses with slots
};

struct CudaLoss {
  int functor;
  alignas(16) unsigned char options[64];
};

struct CudaFunctor {
  const char *name, *options;
  int values, bytes;
  bool slots;
};

struct CudaBytes {  // kept lies from forward to backward; the others only during their call
  int64_t kept, forward, backward;
};

int cuda_functors();
CudaFunctor cuda_functor(int index);
bool cuda_fits(int functor, const double* options, unsigned char* into);  // false: the next functor of that name is wider

// What the caller must allocate. An error: the kernels do not take this problem (slots over `slot_bytes`, say).
const char* cuda_workspace(const CudaProblem&, const CudaLoss*, int losses, int64_t slot_bytes, CudaBytes*);
// values, counts [V, A] in the caller's order.
const char* cuda_forward(const CudaProblem&, const CudaLoss*, int losses, void* kept, void* scratch, float* values,
                         float* counts, void* stream);
// cotangents [V, A]; a gradient that is nullptr is not computed. Without references the anchors' gradient holds both sides.
const char* cuda_backward(const CudaProblem&, const CudaLoss*, int losses, const void* kept, void* scratch,
                          const float* cotangents, float* grad_anchors, float* grad_references, void* stream);
int cuda_runtime_version();  // of the runtime linked in, as CUDART_VERSION

}  // namespace dml
