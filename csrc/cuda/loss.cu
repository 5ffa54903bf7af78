// One loss on CUDA devices: the functors of a header of csrc/losses with their kernels, compiled with -DDML_LOSS=ms.
#define DML_HEADER_(a) #a
#define DML_HEADER(a) DML_HEADER_(a)
#define DML_JOIN_(a, b) a##b
#define DML_JOIN(a, b) DML_JOIN_(a, b)

#include "cuda/launches.h"
// clang-format off: spaces would become part of the path
#include DML_HEADER(losses/DML_LOSS.h)
// clang-format on

DML_BEGIN

CudaFunctors DML_JOIN(DML_LOSS, _cuda)() {
  static const CudaTable table = [] {
    CudaTable t;
    DML_JOIN(DML_LOSS, _functors)::list(t);
    return t;
  }();
  return {table.entries, table.count};
}

DML_END
