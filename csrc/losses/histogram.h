// Histogram loss. Ustinova, Lempitsky, NeurIPS 2016, eq. 1-5: the two soft histograms of similarities; the rest is PyTorch's work.
#pragma once
#include "dml/contract.h"

DML_BEGIN

template <class T> struct HistogramPairs {
  static constexpr int kValues = 0;
  static constexpr bool kSlots = false, kTable = true;
  static constexpr const char* kOptions = "bins";
  T bins;
  DML_FN bool fits() const { return true; }

  template <class V> using Limits = Nothing<V>;
  template <class V> using Sums = Nothing<V>;
  template <class V> using Slopes = Nothing<V>;

  DML_FN int cells() const { return int(bins); }
  template <class V> DML_FN V place(V s) const { return (s + splat<V>(1)) * ((bins - 1) / 2); }
  template <class V> DML_FN V place_slope(V) const { return splat<V>((bins - 1) / 2); }
  template <class V> DML_FN void collect(V, const Limits<V>&, Sums<V>&) const {}
  template <class V> DML_FN V slope_negative(V, const Slopes<V>&) const { return splat<V>(0); }
};

template <class T, bool> using Histogram = HistogramPairs<T>;

struct histogram_functors {
  template <class Table> static void list(Table& t) { t.template add<Histogram>("histogram"); }
};

DML_END
