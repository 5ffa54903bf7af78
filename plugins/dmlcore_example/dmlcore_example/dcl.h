// Decoupled contrastive loss. Yeh, Hong, Hsu, Liu, Chen, LeCun, ECCV 2022, L_DC: no positive in the denominator.
#pragma once
#include "dml/contract.h"

DML_BEGIN

template <class T, bool Wide> struct Dcl {
  static constexpr int kValues = 1;
  static constexpr bool kSlots = false;
  static constexpr const char* kOptions = "temperature";
  T temperature;
  DML_FN bool fits() const { return Wide || temperature >= T(0.03); }  // exponents within 67 of each other
  DML_FN T shift() const { return 1 / temperature; }

  template <class V> using Limits = Nothing<V>;
  template <class V> struct Sums { LogSum<V, Wide> negatives; };
  template <class V> struct Slopes { LogSumSlope<V, Wide> negatives; V positive; };

  DML_FN Limits<T> open(Positives<T>) const { return {}; }
  DML_FN Sums<T> nothing() const {
    Sums<T> r;
    log_sum_start(r.negatives);
    return r;
  }
  template <class V> DML_FN void collect(V s, const Limits<V>&, Sums<V>& r) const {
    log_sum_add(s * (1 / temperature), shift(), is_pair(s), r.negatives);
  }
  template <class A, class B> DML_FN void merge(const Sums<A>& a, Sums<B>& b) const { log_sum_merge(a.negatives, b.negatives); }
  // log of the sum over negatives; Limit::lowest where the anchor does not count
  DML_FN T push(Positives<T> p, const Sums<T>& r) const {
    return p.count ? log_sum_result(r.negatives, shift()) : Limit<T>::lowest;
  }
  DML_FN void close(Positives<T> p, const Limits<T>&, const Sums<T>& r, T* values, T* counts) const {
    const T all = push(p, r);
    values[0] = counts[0] = 0;
    if (all <= Limit<T>::lowest) return;
    T pull = 0;
    for (long long k = 0; k < p.count; ++k) pull += p[k] / temperature;
    counts[0] = T(p.count);
    values[0] = counts[0] * all - pull;
  }
  DML_FN Slopes<T> weigh(Positives<T> p, const Limits<T>&, const Sums<T>& r, const T* cotangents) const {
    const T all = push(p, r), weight = all <= Limit<T>::lowest ? T(0) : cotangents[0] / temperature;
    Slopes<T> w;
    log_sum_slope(all, weight * T(p.count), shift(), w.negatives);
    w.positive = weight;
    return w;
  }
  DML_FN T slope_positive(T, const Slopes<T>& w) const { return -w.positive; }
  template <class V> DML_FN V slope_negative(V s, const Slopes<V>& w) const {
    return log_sum_slope_at(s * (1 / temperature), shift(), w.negatives);
  }
};

struct dcl_functors {
  template <class Table> static void list(Table& t) { t.template add<Dcl>("dcl"); }
};

DML_END
