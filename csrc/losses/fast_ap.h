// FastAP. Cakir, He, Xia, Kulis, Sclaroff, CVPR 2019, eq. 8-9: average precision from soft histograms of squared distances.
// With x = d^2 / (4 / bins) in [0, bins], the histogram up to cell c is the sum of clamp(c + 1 - x, 0, 1): piecewise linear in x,
// so a pair's slope depends only on the whole part of x. The clamps do not depend on the anchor: rows and columns share them.
#pragma once
#include "dml/contract.h"

DML_BEGIN

template <class T, int Bins> struct SoftHistogramPrecision {
  static constexpr int kValues = 1;
  static constexpr bool kSlots = false;
  static constexpr const char* kOptions = "num_bins";
  T num_bins;
  DML_FN bool fits() const { return num_bins == T(Bins); }

  template <class V> using Limits = Nothing<V>;
  template <class V> struct Sums { V up_to[Bins + 1]; };
  template <class V> struct Slopes { V negative[Bins], positive[Bins]; };  // d value / d s between cells c and c + 1

  template <class V> static DML_FN V place(V s) { return max((splat<V>(1) - s) * T(0.5 * Bins), splat<V>(0)); }
  template <class V> static DML_FN void add(V s, Sums<V>& r) {
    const V x = place(s);
    for (int c = 0; c <= Bins; ++c) r.up_to[c] += min(max(splat<V>(T(c + 1)) - x, splat<V>(0)), splat<V>(1));
  }
  DML_FN Limits<T> open(Positives<T>) const { return {}; }
  DML_FN Sums<T> nothing() const {
    Sums<T> r;
    for (int c = 0; c <= Bins; ++c) r.up_to[c] = 0;
    return r;
  }
  template <class V> DML_FN void collect(V s, const Limits<V>&, Sums<V>& r) const { add(s, r); }
  template <class A, class B> DML_FN void merge(const Sums<A>& a, Sums<B>& b) const {
    for (int c = 0; c <= Bins; ++c) b.up_to[c] += a.up_to[c];
  }
  DML_FN Sums<T> histogram(Positives<T> p) const {
    Sums<T> r = nothing();
    for (long long k = 0; k < p.count; ++k) add(p[k], r);
    return r;
  }
  static DML_FN T share(T part, T whole) { return whole > 0 ? part / whole : T(0); }
  DML_FN void close(Positives<T> p, const Limits<T>&, const Sums<T>& r, T* values, T* counts) const {
    const Sums<T> q = histogram(p);
    T precision = 0;
    for (int c = 0; c <= Bins; ++c)
      precision += (q.up_to[c] - (c ? q.up_to[c - 1] : T(0))) * share(q.up_to[c], q.up_to[c] + r.up_to[c]);
    values[0] = p.count ? 1 - precision / T(p.count) : T(0);
    counts[0] = p.count ? T(1) : T(0);
  }
  DML_FN Slopes<T> weigh(Positives<T> p, const Limits<T>&, const Sums<T>& r, const T* cotangents) const {
    const Sums<T> q = histogram(p);
    const T weight = p.count ? cotangents[0] * T(0.5 * Bins) / T(p.count) : T(0);
    Slopes<T> w;
    for (int c = 0; c < Bins; ++c) {  // x grows: the histogram up to c falls
      const T whole = q.up_to[c] + r.up_to[c], cell = q.up_to[c] - (c ? q.up_to[c - 1] : T(0));
      const T at = share(q.up_to[c], whole), next = share(q.up_to[c + 1], q.up_to[c + 1] + r.up_to[c + 1]);
      w.negative[c] = weight * cell * share(at, whole);
      w.positive[c] = weight * (next - at - cell * share(r.up_to[c], whole * whole));
    }
    return w;
  }
  template <class V> static DML_FN V at_place(V s, const V* slopes) {
    const V x = place(s);
    V y = slopes[0];
    for (int c = 1; c < Bins; ++c) y = select(x < splat<V>(T(c)), y, slopes[c]);
    return select(is_pair(s), y, splat<V>(0));
  }
  DML_FN T slope_positive(T s, const Slopes<T>& w) const { return at_place(s, w.positive); }
  template <class V> DML_FN V slope_negative(V s, const Slopes<V>& w) const { return at_place(s, w.negative); }
};

template <class T, bool> using FastAp = SoftHistogramPrecision<T, 10>;

struct fast_ap_functors {
  template <class Table> static void list(Table& t) { t.template add<FastAp>("fast_ap"); }
};

DML_END
