// Proxy-Anchor loss. Kim, Kim, Cho, Kwak, CVPR 2020, eq. 4. Anchors are the proxies, references the batch.
#pragma once
#include "dml/contract.h"

DML_BEGIN

template <class T, bool Wide> struct ProxyAnchor {
  static constexpr int kValues = 2;                                    // over proxies with a sample in the batch; over all
  static constexpr bool kSlots = false;
  static constexpr const char* kOptions = "margin alpha";
  T margin, alpha;
  DML_FN bool fits() const { return Wide || alpha * (1 + margin) <= 120; }
  DML_FN T shift() const { return shift_beside_one(alpha * (1 + margin)); }

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
    log_sum_add(alpha * (s + margin), shift(), is_pair(s), r.negatives);
  }
  template <class A, class B> DML_FN void merge(const Sums<A>& a, Sums<B>& b) const { log_sum_merge(a.negatives, b.negatives); }
  DML_FN T log_positive(Positives<T> p) const {
    if (p.count == 0) return 0;  // so it is for most of many proxies
    const T a = alpha, m = margin;
    return log_sum(p, T(0), [=](T s) { return -a * (s - m); });
  }
  DML_FN T log_negative(const Sums<T>& r) const { return softplus(log_sum_result(r.negatives, shift())); }
  DML_FN void close(Positives<T> p, const Limits<T>&, const Sums<T>& r, T* values, T* counts) const {
    values[0] = log_positive(p), counts[0] = p.count ? T(1) : T(0);
    values[1] = log_negative(r), counts[1] = 1;
  }
  DML_FN Slopes<T> weigh(Positives<T> p, const Limits<T>&, const Sums<T>& r, const T* cotangents) const {
    Slopes<T> w;
    log_sum_slope(log_negative(r), cotangents[1] * alpha, shift(), w.negatives);
    w.positive = cotangents[0] * alpha;
    w.log_positive = log_positive(p);
    return w;
  }
  DML_FN T slope_positive(T s, const Slopes<T>& w) const { return -w.positive * exp(-alpha * (s - margin) - w.log_positive); }
  template <class V> DML_FN V slope_negative(V s, const Slopes<V>& w) const {
    return log_sum_slope_at(alpha * (s + margin), shift(), w.negatives);
  }
};

struct proxy_anchor_functors {
  template <class Table> static void list(Table& t) { t.template add<ProxyAnchor>("proxy_anchor"); }
};

DML_END
