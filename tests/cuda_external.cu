// The toy's kernels with a launcher like the driver's: how a functor that was compiled at run time joins a pass. Built for the
// emulator by cuda_emulation.py.
#include "cuda/functors.h"
#include "losses/ms.h"
#include "losses/sup_con.h"
#include "toy_loss/toy.h"

DML_BEGIN

struct Choosy : ToyPairs<float> {
  DML_FN bool fits() const { return margin < 0.5f; }
};

DML_END

#define SHOWN extern "C" __attribute__((visibility("default")))
using Toy = dml::ToyPairs<float>;
SHOWN void external_layout(int* to) {
  for (int k = 0; k < 10; ++k) to[k] = dml::RowsLayout<Toy>::numbers[k];
}
using Ms = dml::MultiSimilarity<float, false>;
using SupCon = dml::SupCon<float, false>;
static int set_launches = 0;
SHOWN int external_set_launches() { return set_launches; }
// The handles of its kernels are 1 and 2, those of a set with two built-in losses 11 and 12, and 3 asks whether options fit; another
// is an error.
SHOWN int external_launch(void* kernel, unsigned blocks, unsigned, unsigned, unsigned threads, unsigned, unsigned,
                          unsigned shared, void*, void** arguments, void**) {
  const Toy f = *static_cast<Toy*>(arguments[0]);
  if (kernel == reinterpret_cast<void*>(3)) {
    CU_LAUNCH(dml::rows_fits<dml::Choosy>, blocks, threads, shared, nullptr, dml::Choosy{f}, *static_cast<int**>(arguments[1]));
    return 0;
  }
  const auto v = *static_cast<dml::RowsView*>(arguments[1]);
  const auto c = *static_cast<dml::RowsChunk*>(arguments[2]);
  if (kernel == reinterpret_cast<void*>(11) || kernel == reinterpret_cast<void*>(12)) {
    const auto set = *static_cast<dml::FunctorSet<Ms, Toy, SupCon>*>(arguments[0]);
    const auto m = *static_cast<dml::LossSet*>(arguments[3]);
    ++set_launches;
    if (kernel == reinterpret_cast<void*>(11))
      CU_LAUNCH((dml::rows_forward_set<Ms, Toy, SupCon>), blocks, threads, shared, nullptr, set, v, c, m);
    else CU_LAUNCH((dml::rows_backward_set<Ms, Toy, SupCon>), blocks, threads, shared, nullptr, set, v, c, m);
    return 0;
  }
  const auto m = *static_cast<dml::RowsLoss*>(arguments[3]);
  if (kernel == reinterpret_cast<void*>(1)) CU_LAUNCH(dml::rows_forward<Toy>, blocks, threads, shared, nullptr, f, v, c, m);
  else if (kernel == reinterpret_cast<void*>(2))
    CU_LAUNCH(dml::rows_backward<Toy>, blocks, threads, shared, nullptr, f, v, c, m);
  else return 400;
  return 0;
}
