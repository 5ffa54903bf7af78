// Host functions that launch a functor's kernels, and the table of a header's functors.
#pragma once
#include <cstring>

#include "cuda/losses.h"
#include "cuda/table_kernels.h"

DML_BEGIN

constexpr int kTableBlocks = 264;      // that count a table: two for each multiprocessor of a large GPU
constexpr int kSharedBytes = 48 << 10;

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
  static int cells(const unsigned char* options) {
    if constexpr (HasTable<F>::value) return functor(options).cells();
    else return 0;
  }
  static constexpr int memory() {
    if constexpr (HasTable<F>::value) return 0;
    else return row_memory<F>();
  }

  static void forward(const CudaLoss& loss, const RowsView& v, const RowsChunk& c, const RowsLoss& m, cudaStream_t stream) {
    if constexpr (HasTable<F>::value) {
      const int all = 2 * cells(loss.options), blocks = c.rows < kTableBlocks ? c.rows : kTableBlocks;
      const bool fit = all * int(sizeof(unsigned long long)) <= kSharedBytes;
      CU_LAUNCH((rows_tabulate<F>), blocks, threads_for(c.columns), fit ? all * sizeof(unsigned long long) : 0, stream,
                functor(loss.options), v, c, m, fit ? all : 0);
    } else {
      CU_LAUNCH((rows_forward<F>), c.rows, threads_for(c.columns), shared_for(memory(), m), stream, functor(loss.options), v, c,
                m);
    }
  }
  static void close(const CudaLoss& loss, const RowsView& v, const RowsChunk& c, const RowsLoss& m, cudaStream_t stream) {
    CU_LAUNCH((rows_close<F>), c.rows, kWarp, shared_for(memory(), m), stream, functor(loss.options), v, c, m);
  }
  static void backward(const CudaLoss& loss, const RowsView& v, const RowsChunk& c, const RowsLoss& m, cudaStream_t stream) {
    if constexpr (HasTable<F>::value)
      CU_LAUNCH((rows_table_slopes<F>), c.rows, threads_for(c.columns), 0, stream, functor(loss.options), v, c, m);
    else
      CU_LAUNCH((rows_backward<F>), c.rows, threads_for(c.columns), shared_for(memory(), m), stream, functor(loss.options), v,
                c, m);
  }
};

constexpr int kMostOfHeader = 16;
struct CudaTable {
  CudaEntry entries[kMostOfHeader];
  int count = 0;

  template <class F> void add_form(const char* name) {
    using P = RowParts<F>;
    using L = Launches<F>;
    static_assert(sizeof(F) <= sizeof(CudaLoss::options) && sizeof(F) % sizeof(float) == 0, "options are numbers");
    static_assert(L::memory() * kShortList * int(sizeof(float)) <= kSharedBytes / 2, "short lists fit beside what is merged");
    CudaEntry& e = entries[count++];
    e = {{name, F::kOptions, F::kValues, int(sizeof(F)), GivenCount<F>::value, F::kSlots, HasPartners<F>::value,
          HasCentres<F>::value, HasTable<F>::value},
         field_count<typename P::Limits, float>(),
         P::sums,
         field_count<typename P::Slopes, float>(),
         L::memory(),
         L::fits,
         L::cells,
         L::forward,
         nullptr,
         L::backward};
    if constexpr (HasPartners<F>::value) e.close = L::close;
  }
  template <class A, class B> struct Same { static constexpr bool value = false; };
  template <class A> struct Same<A, A> { static constexpr bool value = true; };
  template <template <class, bool> class F> void add(const char* name) {
    if constexpr (!IsCpuOnly<F<float, false>>::value) {
      add_form<F<float, false>>(name);
      if constexpr (!Same<F<float, false>, F<float, true>>::value) add_form<F<float, true>>(name);
    }
  }
};

DML_END
