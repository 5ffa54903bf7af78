// Intra-pair variance: squares of what lies below a threshold among positives and above one among negatives. Yu and Tao,
// ICCV 2019. The thresholds come from the means of all pairs. In one form they are given; the third and fourth value are then the
// derivatives of the first two with respect to them, of which the caller makes the means' part of the gradient. In the other form,
// for a batch with itself, the driver finds the means and that part too.
#pragma once
#include "dml/contract.h"

DML_BEGIN

template <class T> struct PairVariance {
  static constexpr int kValues = 4;
  static constexpr bool kSlots = false;
  static constexpr int kGiven = 2;  // the mean similarities of positives and of negatives
  static constexpr const char* kOptions = "pos_eps neg_eps";
  T pos_eps, neg_eps;
  DML_FN bool fits() const { return true; }

  template <class V> struct Limits { V positive, negative; };  // thresholds
  template <class V> struct Sums { V square, excess, count; };
  template <class V> struct Slopes { V positive, negative, positive_threshold, negative_threshold; };

  DML_FN Limits<T> open(Positives<T>, const T* given) const { return {(1 - pos_eps) * given[0], (1 + neg_eps) * given[1]}; }
  DML_FN Sums<T> nothing() const { return {T(0), T(0), T(0)}; }
  template <class V> DML_FN void collect(V s, const Limits<V>& l, Sums<V>& r) const {
    V excess = max(s - l.negative, splat<V>(0));  // 0 for no pair
    r.square += excess * excess;
    r.excess += excess;
    r.count += select(is_pair(s), splat<V>(1), splat<V>(0));
  }
  template <class A, class B> DML_FN void merge(const Sums<A>& a, Sums<B>& b) const {
    b.square += a.square;
    b.excess += a.excess;
    b.count += a.count;
  }
  DML_FN void close(Positives<T> p, const Limits<T>& l, const Sums<T>& r, T* values, T* counts) const {
    T square = 0, shortfall = 0;
    for (long long k = 0; k < p.count; ++k) {
      const T h = max(l.positive - p[k], T(0));
      square += h * h, shortfall += h;
    }
    values[0] = square, counts[0] = T(p.count);
    values[1] = r.square, counts[1] = r.count;
    values[2] = 2 * (1 - pos_eps) * shortfall, counts[2] = 0;
    values[3] = -2 * (1 + neg_eps) * r.excess, counts[3] = 0;
  }
  DML_FN Slopes<T> weigh(Positives<T>, const Limits<T>& l, const Sums<T>&, const T* cotangents) const {
    return {2 * cotangents[0], 2 * cotangents[1], l.positive, l.negative};
  }
  DML_FN T slope_positive(T s, const Slopes<T>& w) const { return -w.positive * max(w.positive_threshold - s, T(0)); }
  template <class V> DML_FN V slope_negative(V s, const Slopes<V>& w) const {
    return w.negative * max(s - w.negative_threshold, splat<V>(0));
  }
};

template <class T> struct PairVarianceOfBatch : PairVariance<T> {
  using Base = PairVariance<T>;
  static constexpr int kValues = 2;
  static constexpr bool kMeans = true, kCpuOnly = true;
  template <class V> using Limits = typename Base::template Limits<V>;
  template <class V> using Sums = typename Base::template Sums<V>;
  template <class V> struct Slopes {
    V positive, negative, positive_threshold, negative_threshold, positive_mean, negative_mean;
  };

  DML_FN void close(Positives<T> p, const Limits<T>& l, const Sums<T>& r, T* values, T* counts) const {
    T of_base[Base::kValues], counts_of_base[Base::kValues];
    Base::close(p, l, r, of_base, counts_of_base);
    for (int v = 0; v < kValues; ++v) values[v] = of_base[v], counts[v] = counts_of_base[v];
  }
  DML_FN Slopes<T> weigh(Positives<T> p, const Limits<T>& l, const Sums<T>& r, const T* cotangents) const {
    T of_base[Base::kValues], counts[Base::kValues];
    Base::close(p, l, r, of_base, counts);
    return {2 * cotangents[0], 2 * cotangents[1],          l.positive,
            l.negative,        cotangents[0] * of_base[2], cotangents[1] * of_base[3]};
  }
  DML_FN T slope_positive(T s, const Slopes<T>& w) const { return -w.positive * max(w.positive_threshold - s, T(0)); }
  template <class V> DML_FN V slope_negative(V s, const Slopes<V>& w) const {
    return w.negative * max(s - w.negative_threshold, splat<V>(0));
  }
};

template <class T, bool> using IntraPairVariance = PairVariance<T>;  // no exponentials: one form
template <class T, bool> using IntraPairVarianceOfBatch = PairVarianceOfBatch<T>;

struct intra_pair_variance_functors {
  template <class Table> static void list(Table& t) {
    t.template add<IntraPairVariance>("intra_pair_variance");
    t.template add<IntraPairVarianceOfBatch>("intra_pair_variance_of_batch");
  }
};

DML_END
