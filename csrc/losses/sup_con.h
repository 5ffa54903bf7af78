// Supervised contrastive loss. Khosla et al., NeurIPS 2020, eq. 2 (the sum over positives outside the logarithm).
#pragma once
#include "dml/contract.h"

DML_BEGIN

template <class T, bool Wide> struct SupCon {
  static constexpr int kValues = 1;
  static constexpr bool kSlots = false;
  static constexpr const char* kOptions = "temperature";
  T temperature;
  DML_FN bool fits() const { return Wide || temperature >= T(0.03); }  // exponents within 67 of each other
  DML_FN T shift() const { return 1 / temperature; }

  template <class V> using Limits = Nothing<V>;
  template <class V> struct Sums { LogSum<V, Wide> others; };
  template <class V> struct Slopes {
    LogSumSlope<V, Wide> others;
    V result, positive, share;
  };

  DML_FN Limits<T> open(Positives<T>) const { return {}; }
  DML_FN Sums<T> nothing() const {
    Sums<T> r;
    log_sum_start(r.others);
    return r;
  }
  template <class V> DML_FN void collect(V s, const Limits<V>&, Sums<V>& r) const {
    log_sum_add(s * (1 / temperature), shift(), is_pair(s), r.others);
  }
  template <class A, class B> DML_FN void merge(const Sums<A>& a, Sums<B>& b) const { log_sum_merge(a.others, b.others); }
  // log of the sum over negatives and positives; Limit::lowest if there are no negatives or no positives
  DML_FN T denominator(Positives<T> p, const Sums<T>& r) const {
    const T negatives = log_sum_result(r.others, shift()), t = temperature;
    if (p.count == 0 || negatives <= Limit<T>::lowest) return Limit<T>::lowest;
    return log_sum(p, negatives, [=](T s) { return s / t; });
  }
  DML_FN void close(Positives<T> p, const Limits<T>&, const Sums<T>& r, T* values, T* counts) const {
    T all = denominator(p, r), mean = 0;
    for (long long k = 0; k < p.count; ++k) mean += p[k] / temperature;
    values[0] = all <= Limit<T>::lowest ? T(0) : all - mean / T(p.count);
    counts[0] = values[0] > 0 ? T(1) : T(0);
  }
  DML_FN Slopes<T> weigh(Positives<T> p, const Limits<T>&, const Sums<T>& r, const T* cotangents) const {
    Slopes<T> w;
    T all = denominator(p, r), weight = all <= Limit<T>::lowest ? T(0) : cotangents[0] / temperature;
    log_sum_slope(all, weight, shift(), w.others);
    w.result = all;
    w.positive = weight;
    w.share = p.count ? weight / T(p.count) : T(0);
    return w;
  }
  DML_FN T slope_positive(T s, const Slopes<T>& w) const {
    return w.positive == 0 ? T(0) : w.positive * exp(s / temperature - w.result) - w.share;
  }
  template <class V> DML_FN V slope_negative(V s, const Slopes<V>& w) const {
    return log_sum_slope_at(s * (1 / temperature), shift(), w.others);
  }
};

struct sup_con_functors {
  template <class Table> static void list(Table& t) { t.template add<SupCon>("sup_con"); }
};

DML_END
