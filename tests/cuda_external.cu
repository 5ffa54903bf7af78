// A functor that the extension does not know, with a launcher like the driver's: how one that was compiled at run time joins a
// pass. Built for the emulator by cuda_emulation.py.
#include "cuda/row_kernels.h"

DML_BEGIN

template <class T> struct SquaredHinge {                               // sum of squares of max(0, s - margin) over the negatives
  static constexpr int kValues = 1;
  static constexpr bool kSlots = false;
  static constexpr const char* kOptions = "margin";
  T margin;
  template <class V> using Limits = Nothing<V>;
  template <class V> struct Sums { V square; };
  template <class V> struct Slopes { V weight; };
  DML_FN bool fits() const { return true; }
  DML_FN Limits<T> open(Positives<T>) const { return {}; }
  DML_FN Sums<T> nothing() const { return {T(0)}; }
  template <class V> DML_FN void collect(V s, const Limits<V>&, Sums<V>& r) const {
    const V excess = max(s - margin, splat<V>(0));
    r.square += excess * excess;
  }
  template <class A, class B> DML_FN void merge(const Sums<A>& a, Sums<B>& b) const { b.square += a.square; }
  DML_FN void close(Positives<T>, const Limits<T>&, const Sums<T>& r, T* values, T* counts) const { values[0] = r.square, counts[0] = 1; }
  DML_FN Slopes<T> weigh(Positives<T>, const Limits<T>&, const Sums<T>&, const T* cotangents) const { return {2 * cotangents[0]}; }
  DML_FN T slope_positive(T, const Slopes<T>&) const { return T(0); }
  template <class V> DML_FN V slope_negative(V s, const Slopes<V>& w) const { return w.weight * max(s - margin, splat<V>(0)); }
};

DML_END

#define SHOWN extern "C" __attribute__((visibility("default")))
using Toy = dml::SquaredHinge<float>;
SHOWN void external_layout(int* to) {
  CU_LAUNCH(dml::rows_layout<Toy>, 1, 1, 0, nullptr, to);
}
// The handles of its kernels are 1 and 2; another is an error.
SHOWN int external_launch(void* kernel, unsigned blocks, unsigned, unsigned, unsigned threads, unsigned, unsigned, unsigned shared, void*,
                          void** arguments, void**) {
  const Toy f = *static_cast<Toy*>(arguments[0]);
  const auto v = *static_cast<dml::RowsView*>(arguments[1]);
  const auto c = *static_cast<dml::RowsChunk*>(arguments[2]);
  const auto m = *static_cast<dml::RowsLoss*>(arguments[3]);
  if (kernel == reinterpret_cast<void*>(1)) CU_LAUNCH(dml::rows_forward<Toy>, blocks, threads, shared, nullptr, f, v, c, m);
  else if (kernel == reinterpret_cast<void*>(2)) CU_LAUNCH(dml::rows_backward<Toy>, blocks, threads, shared, nullptr, f, v, c, m);
  else return 400;
  return 0;
}
