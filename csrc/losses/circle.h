// Circle loss. Sun et al., CVPR 2020, eq. 5-9; the weights [.]+ of the similarities are constants for the gradient.
#pragma once
#include "dml/contract.h"

DML_BEGIN

template <class T, bool Wide> struct Circle {
  static constexpr int kValues = 1;
  static constexpr bool kSlots = false;
  static constexpr const char* kOptions = "m gamma";
  T m, gamma;
  DML_FN bool fits() const { return Wide || gamma <= 140; }            // negative exponents span gamma
  DML_FN T shift() const { return gamma * (1 - m * m) - T(70); }      // so that they lie in [70 - gamma, 70]
  template <class V> DML_FN V weight(V s) const { return gamma * max(s + m, splat<V>(0)); }
  template <class V> DML_FN V exponent(V s) const {  // the weight of no pair is 0: its exponent must not be
    return select(is_pair(s), weight(s) * (s - m), splat<V>(no_pair()));
  }
  DML_FN T positive_weight(T s) const { return gamma * max(1 + m - s, T(0)); }
  DML_FN T positive_exponent(T s) const { return -positive_weight(s) * (s - (1 - m)); }

  template <class V> using Limits = Nothing<V>;
  template <class V> struct Sums { LogSum<V, Wide> negatives; };
  template <class V> struct Slopes {
    LogSumSlope<V, Wide> negatives;
    V positive, log_positive;
  };

  DML_FN Limits<T> open(Positives<T>) const { return {}; }
  DML_FN Sums<T> nothing() const {
    Sums<T> r;
    log_sum_start(r.negatives);
    return r;
  }
  template <class V> DML_FN void collect(V s, const Limits<V>&, Sums<V>& r) const {
    log_sum_add(exponent(s), shift(), is_pair(s), r.negatives);
  }
  template <class A, class B> DML_FN void merge(const Sums<A>& a, Sums<B>& b) const { log_sum_merge(a.negatives, b.negatives); }
  DML_FN T log_positive(Positives<T> p) const {
    return log_sum(p, Limit<T>::lowest, [=](T s) { return positive_exponent(s); });
  }
  DML_FN void close(Positives<T> p, const Limits<T>&, const Sums<T>& r, T* values, T* counts) const {
    T negative = log_sum_result(r.negatives, shift());
    values[0] = 0;
    if (p.count && negative > Limit<T>::lowest) {
      T x = log_positive(p) + negative;
      values[0] = x > 0 ? x + log1p(exp(-x)) : log1p(exp(x));
    }
    counts[0] = values[0] > 0 ? T(1) : T(0);
  }
  DML_FN Slopes<T> weigh(Positives<T> p, const Limits<T>&, const Sums<T>& r, const T* cotangents) const {
    Slopes<T> w;
    T negative = log_sum_result(r.negatives, shift()), outer = 0;
    w.log_positive = 0;
    if (p.count && negative > Limit<T>::lowest) {
      w.log_positive = log_positive(p);
      outer = cotangents[0] / (1 + exp(-(w.log_positive + negative)));
    }
    log_sum_slope(negative, outer, shift(), w.negatives);
    w.positive = outer;
    return w;
  }
  DML_FN T slope_positive(T s, const Slopes<T>& w) const {
    return w.positive == 0 ? T(0) : -w.positive * exp(positive_exponent(s) - w.log_positive) * positive_weight(s);
  }
  template <class V> DML_FN V slope_negative(V s, const Slopes<V>& w) const {
    return log_sum_slope_at(exponent(s), shift(), w.negatives) * weight(s);
  }
};

struct circle_functors {
  template <class Table> static void list(Table& t) { t.template add<Circle>("circle"); }
};

DML_END
