// Generalised lifted structure loss: a log-sum over positives and one over negatives. Hermans, Beyer, Leibe, 2017, eq. 8.
#pragma once
#include "dml/contract.h"

DML_BEGIN

template <class T> struct GeneralizedLifted {
  static constexpr int kValues = 1;
  static constexpr bool kSlots = false;
  static constexpr const char* kOptions = "neg_margin pos_margin";
  T neg_margin, pos_margin;
  DML_FN bool fits() const { return true; }                            // distances lie in [0, 2]: the exponents span 2
  DML_FN T shift() const { return neg_margin; }

  template <class V> using Limits = Nothing<V>;
  template <class V> struct Sums { LogSum<V, false> negatives; };
  template <class V> struct Slopes {
    LogSumSlope<V, false> negatives;
    V positive, log_positive;
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
  DML_FN T log_positive(Positives<T> p) const {
    const T margin = pos_margin;
    return p.count ? log_sum(p, Limit<T>::lowest, [=](T s) { return distance(s) - margin; }) : T(0);
  }
  DML_FN T sum(Positives<T> p, const Sums<T>& r) const {               // an empty side adds 0
    const T negative = log_sum_result(r.negatives, shift());
    return log_positive(p) + (negative <= Limit<T>::lowest ? T(0) : negative);
  }
  DML_FN void close(Positives<T> p, const Limits<T>&, const Sums<T>& r, T* values, T* counts) const {
    values[0] = max(sum(p, r), T(0));
    counts[0] = 1;
  }
  DML_FN Slopes<T> weigh(Positives<T> p, const Limits<T>&, const Sums<T>& r, const T* cotangents) const {
    Slopes<T> w;
    w.positive = sum(p, r) > 0 ? cotangents[0] : T(0);
    w.log_positive = log_positive(p);
    log_sum_slope(log_sum_result(r.negatives, shift()), w.positive, shift(), w.negatives);
    return w;
  }
  DML_FN T slope_positive(T s, const Slopes<T>& w) const {
    return w.positive * exp(distance(s) - pos_margin - w.log_positive) * distance_slope(s);
  }
  template <class V> DML_FN V slope_negative(V s, const Slopes<V>& w) const {
    return -log_sum_slope_at(neg_margin - distance(s), shift(), w.negatives) * distance_slope(s);
  }
};

template <class T, bool> using GeneralizedLiftedStructure = GeneralizedLifted<T>;

struct generalized_lifted_structure_functors {
  template <class Table> static void list(Table& t) {
    t.template add<GeneralizedLiftedStructure>("generalized_lifted_structure");
  }
};

DML_END
