// The functors of all headers of csrc/losses, one after the other.
#include "cuda/losses.h"

#include <vector>

#include "dml_losses.h"                // DML_LOSSES(use): their names

DML_BEGIN

#define DML_DECLARE(loss) CudaFunctors loss##_cuda();                  // loss.cu
#define DML_ADDRESS(loss) loss##_cuda,
DML_LOSSES(DML_DECLARE)

static const std::vector<CudaEntry>& table() {
  static const std::vector<CudaEntry> entries = [] {
    std::vector<CudaEntry> all;
    for (CudaFunctors (*loss)() : {DML_LOSSES(DML_ADDRESS)}) {
      const CudaFunctors functors = loss();
      all.insert(all.end(), functors.entries, functors.entries + functors.count);
    }
    return all;
  }();
  return entries;
}

int cuda_entries() { return int(table().size()); }
const CudaEntry& cuda_entry(int index) { return table()[index]; }

DML_END
