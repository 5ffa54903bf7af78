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
    V top, result, positive, share;
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
  // Log of the sum over negatives and positives, less the exponent of the positive `top`: exponents near 1 / temperature cancel
  // before they round. Limit::lowest if there are no negatives or no positives.
  DML_FN T denominator(Positives<T> p, T top, const Sums<T>& r) const {
    const T t = temperature, negatives = log_sum_above(r.others, shift(), top / t);
    if (p.count == 0 || negatives <= Limit<T>::lowest) return Limit<T>::lowest;
    const T m = max(negatives, T(0));  // of the top one, which is 0, and the negatives: the sum is e^m (1 + rest)
    T rest = exp(min(negatives, -negatives));
    bool is_top_left = true;
    for (long long k = 0; k < p.count; ++k) {
      if (is_top_left && p[k] == top) is_top_left = false;
      else rest += exp((p[k] - top) / t - m);
    }
    return m + log1p(rest);
  }
  DML_FN void close(Positives<T> p, const Limits<T>&, const Sums<T>& r, T* values, T* counts) const {
    const T top = p.highest(), all = denominator(p, top, r);
    T mean = 0;
    for (long long k = 0; k < p.count; ++k) mean += (p[k] - top) / temperature;
    values[0] = all <= Limit<T>::lowest ? T(0) : all - mean / T(p.count);
    counts[0] = all <= Limit<T>::lowest ? T(0) : T(1);
  }
  DML_FN Slopes<T> weigh(Positives<T> p, const Limits<T>&, const Sums<T>& r, const T* cotangents) const {
    Slopes<T> w;
    w.top = p.highest();
    w.result = denominator(p, w.top, r);
    const T weight = w.result <= Limit<T>::lowest ? T(0) : cotangents[0] / temperature;
    log_sum_slope_of(r.others,
                     weight == 0 ? T(0) : weight * exp(log_sum_above(r.others, shift(), w.top / temperature) - w.result),
                     w.others);
    w.positive = weight;
    w.share = p.count ? weight / T(p.count) : T(0);
    return w;
  }
  DML_FN T slope_positive(T s, const Slopes<T>& w) const {
    return w.positive == 0 ? T(0) : w.positive * exp((s - w.top) / temperature - w.result) - w.share;
  }
  template <class V> DML_FN V slope_negative(V s, const Slopes<V>& w) const {
    return log_sum_slope_at(s * (1 / temperature), shift(), w.others);
  }
};

struct sup_con_functors {
  template <class Table> static void list(Table& t) { t.template add<SupCon>("sup_con"); }
};

DML_END
