// Lifted structure loss: a positive pair against the negatives of both its points, which are known only when both have seen
// theirs. Song, Xiang, Jegelka, Savarese, CVPR 2016, eq. 4.
#pragma once
#include "dml/contract.h"

DML_BEGIN

template <class T> struct LiftedPairs {
  static constexpr int kValues = 1;
  static constexpr bool kSlots = false;
  static constexpr bool kPartners = true;
  static constexpr const char* kOptions = "neg_margin pos_margin";
  T neg_margin, pos_margin;
  DML_FN bool fits() const { return true; }                            // distances lie in [0, 2]: the exponents span 2
  DML_FN T shift() const { return neg_margin; }

  template <class V> using Limits = Nothing<V>;
  template <class V> struct Sums { LogSum<V, false> negatives; };
  template <class V> struct Slopes {
    LogSumSlope<V, false> negatives;
    V sum, positive;
  };

  DML_FN Limits<T> open(Positives<T>) const { return {}; }
  DML_FN Sums<T> nothing() const {
    Sums<T> r;
    log_sum_start(r.negatives);
    return r;
  }
  template <class V> DML_FN void collect(V s, const Limits<V>&, Sums<V>& r) const {
    log_sum_add(neg_margin - distance(s), shift(), is_pair(s), r.negatives);
  }
  template <class A, class B> DML_FN void merge(const Sums<A>& a, Sums<B>& b) const { log_sum_merge(a.negatives, b.negatives); }
  // `sum` is that of the negatives of both points: of one shift, they add up, and a pair takes one logarithm.
  DML_FN T hinge(T s, T sum) const { return sum > 0 ? max(shift() + log(sum) + distance(s) - pos_margin, T(0)) : T(0); }
  template <class Partner> DML_FN void close(Positives<T> p, const Limits<T>&, const Sums<T>& r, Partner partner, T* values,
                                             T* counts) const {
    T sum = 0;
    for (long long k = 0; k < p.count; ++k) {
      const T h = hinge(p[k], r.negatives.sum + partner(k).negatives.sum);
      sum += h * h / 2;
    }
    values[0] = sum;
    counts[0] = T(p.count);
  }
  // This anchor's log-sum stands in the values of its own pairs and in those of its positives as anchors.
  template <class Partner, class Others>
  DML_FN Slopes<T> weigh(Positives<T> p, const Limits<T>&, const Sums<T>& r, Partner partner, const T* cotangents,
                         Others others) const {
    Slopes<T> w;
    w.sum = r.negatives.sum;
    w.positive = cotangents[0];
    T weight = 0;
    for (long long k = 0; k < p.count; ++k) {
      const T both = w.sum + partner(k).negatives.sum;
      if (both > 0) weight += (cotangents[0] + others(k)[0]) * hinge(p[k], both) * (w.sum / both);
    }
    log_sum_slope_of(r.negatives, weight, w.negatives);
    return w;
  }
  DML_FN T slope_positive(T s, const Slopes<T>& w, const Sums<T>& partner) const {
    return w.positive * hinge(s, w.sum + partner.negatives.sum) * distance_slope(s);
  }
  template <class V> DML_FN V slope_negative(V s, const Slopes<V>& w) const {
    return -log_sum_slope_at(neg_margin - distance(s), shift(), w.negatives) * distance_slope(s);
  }
};

template <class T, bool> using LiftedStructure = LiftedPairs<T>;

struct lifted_structure_functors {
  template <class Table> static void list(Table& t) { t.template add<LiftedStructure>("lifted_structure"); }
};

DML_END
