// Angular loss. Wang et al., ICCV 2017, eq. 8: log(1 + sum_n exp(s_n)), where an anchor is a pair of one class written as one
// vector whose product with a negative is the whole exponent. Positives take no part. `most` bounds the size of the exponents.
#pragma once
#include "dml/contract.h"

DML_BEGIN

template <class T, bool Wide> struct PairAgainstNegatives {
  static constexpr int kValues = 1;
  static constexpr bool kSlots = false;
  static constexpr const char* kOptions = "most";
  T most;
  DML_FN bool fits() const { return Wide || most <= 70; }              // exponents within [-70, 70]: no shift needed
  DML_FN T shift() const { return T(0); }

  template <class V> using Limits = Nothing<V>;
  template <class V> struct Sums { LogSum<V, Wide> negatives; };
  template <class V> struct Slopes { LogSumSlope<V, Wide> negatives; };

  DML_FN Limits<T> open(Positives<T>) const { return {}; }
  DML_FN Sums<T> nothing() const {
    Sums<T> r;
    log_sum_start(r.negatives);
    return r;
  }
  template <class V> DML_FN void collect(V s, const Limits<V>&, Sums<V>& r) const {
    log_sum_add(s, shift(), is_pair(s), r.negatives);
  }
  template <class A, class B> DML_FN void merge(const Sums<A>& a, Sums<B>& b) const { log_sum_merge(a.negatives, b.negatives); }
  DML_FN T value(const Sums<T>& r) const { return softplus(log_sum_result(r.negatives, shift())); }
  DML_FN void close(Positives<T>, const Limits<T>&, const Sums<T>& r, T* values, T* counts) const {
    values[0] = value(r);
    counts[0] = T(1);
  }
  DML_FN Slopes<T> weigh(Positives<T>, const Limits<T>&, const Sums<T>& r, const T* cotangents) const {
    Slopes<T> w;
    log_sum_slope(value(r), cotangents[0], shift(), w.negatives);
    return w;
  }
  DML_FN T slope_positive(T, const Slopes<T>&) const { return T(0); }
  template <class V> DML_FN V slope_negative(V s, const Slopes<V>& w) const {
    return log_sum_slope_at(s, shift(), w.negatives);
  }
};

struct angular_functors {
  template <class Table> static void list(Table& t) { t.template add<PairAgainstNegatives>("angular"); }
};

DML_END
