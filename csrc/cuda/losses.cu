// Every functor of csrc/losses with its kernels, in a table of host functions.
#include "cuda/losses.h"

#include <cstring>

#include "cuda/loss_kernels.h"
#include "dml_losses.h"

DML_BEGIN

template <class F> struct Launches {
  static F functor(const unsigned char* options) {
    F f;
    std::memcpy(&f, options, sizeof f);
    return f;
  }
  static bool fits(const double* options, unsigned char* into) {
    float values[sizeof(F) / sizeof(float)];
    for (size_t k = 0; k < sizeof(F) / sizeof(float); ++k) values[k] = float(options[k]);
    std::memcpy(into, values, sizeof values);
    return functor(into).fits();
  }
  static void open(const unsigned char* options, const View& v, const LossMemory& m, cudaStream_t stream) {
    CU_LAUNCH((open_kernel<F>), v.A, 32, 0, stream, functor(options), v, m, static_cast<float*>(nullptr));
    if (m.long_lists) CU_LAUNCH((open_kernel<F>), m.long_blocks, kThreads, 0, stream, functor(options), v, m, m.long_lists);
  }
  static void collect(const unsigned char* options, const View& v, const LossMemory& m, cudaStream_t stream) {
    const dim3 grid((v.A + kTile - 1) / kTile, m.splits);
    CU_LAUNCH((collect_kernel<F>), grid, kThreads, 0, stream, functor(options), v, m);
  }
  static void close(const unsigned char* options, const View& v, const LossMemory& m, const RowsOut& out, cudaStream_t stream) {
    CU_LAUNCH((close_kernel<F>), v.A, 32, 0, stream, functor(options), v, m, out, static_cast<float*>(nullptr));
    if (m.long_lists)
      CU_LAUNCH((close_kernel<F>), m.long_blocks, kThreads, 0, stream, functor(options), v, m, out, m.long_lists);
  }
  static void weigh(const unsigned char* options, const View& v, const LossMemory& m, const int64_t* order,
                    const float* cotangents, cudaStream_t stream) {
    CU_LAUNCH((weigh_kernel<F>), v.A, 32, 0, stream, functor(options), v, m, order, cotangents, static_cast<float*>(nullptr));
    if (m.long_lists)
      CU_LAUNCH((weigh_kernel<F>), m.long_blocks, kThreads, 0, stream, functor(options), v, m, order, cotangents, m.long_lists);
  }
  static void gradient(const unsigned char* options, const View& v, const LossMemory& m, const Owners& o, cudaStream_t stream) {
    const dim3 grid((o.count + kTile - 1) / kTile, (v.D + kGradientWidth - 1) / kGradientWidth);
    CU_LAUNCH((gradient_kernel<F>), grid, kThreads, 0, stream, functor(options), v, m, o);
  }
};

constexpr int kMostFunctors = 128;
struct Table {
  CudaEntry entries[kMostFunctors];
  int count = 0;

  template <class F> void add_form(const char* name) {
    using P = Parts<F>;
    using L = Launches<F>;
    static_assert(sizeof(F) <= sizeof(CudaLoss::options) && sizeof(F) % sizeof(float) == 0, "options are numbers");
    entries[count++] = {{name, F::kOptions, F::kValues, int(sizeof(F)), F::kSlots},
                        field_count<typename P::Limits, float>(),
                        field_count<typename P::Sums, float>(),
                        field_count<typename P::Slopes, float>(),
                        field_count<typename P::SlotLimits, float>(),
                        field_count<typename P::SlotSums, float>(),
                        L::fits,
                        L::open,
                        L::collect,
                        L::close,
                        L::weigh,
                        L::gradient};
  }
  template <class A, class B> struct Same {
    static constexpr bool value = false;
  };
  template <class A> struct Same<A, A> {
    static constexpr bool value = true;
  };
  template <template <class, bool> class F> void add(const char* name) {
    if constexpr (!IsCpuOnly<F<float, false>>::value) {
      add_form<F<float, false>>(name);
      if constexpr (!Same<F<float, false>, F<float, true>>::value) add_form<F<float, true>>(name);
    }
  }
};
static const Table& table() {
  static const Table made = [] {
    Table t;
    list_losses(t);
    return t;
  }();
  return made;
}

int cuda_entries() { return table().count; }
const CudaEntry& cuda_entry(int index) { return table().entries[index]; }

DML_END
