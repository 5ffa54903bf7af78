// Softmax cross-entropy over scaled cosines to one proxy per class: normalised softmax (Wang et al., NormFace, ACM MM 2017;
// Zhai and Wu, BMVC 2019) with scale 1 / temperature, and Proxy-NCA (see proxy_nca.h) with scale 2 * softmax_scale.
#pragma once
#include "dml/contract.h"

DML_BEGIN

template <class T, bool Wide> struct ScaledSoftmax {
  static constexpr int kValues = 1;
  static constexpr bool kSlots = false;
  static constexpr const char* kOptions = "scale";
  T scale;
  DML_FN bool fits() const { return Wide || scale <= 34; }             // exponents within 68 of each other
  DML_FN T shift() const { return scale; }

  template <class V> using Limits = Nothing<V>;
  template <class V> struct Sums { LogSum<V, Wide> others; };
  template <class V> struct Slopes { LogSumSlope<V, Wide> others; V result, positive, share; };

  DML_FN Limits<T> open(Positives<T>) const { return {}; }
  DML_FN Sums<T> nothing() const {
    Sums<T> r;
    log_sum_start(r.others);
    return r;
  }
  template <class V> DML_FN void collect(V s, const Limits<V>&, Sums<V>& r) const {
    log_sum_add(s * scale, shift(), is_pair(s), r.others);
  }
  template <class A, class B> DML_FN void merge(const Sums<A>& a, Sums<B>& b) const { log_sum_merge(a.others, b.others); }
  DML_FN T all(Positives<T> p, const Sums<T>& r) const {
    const T c = scale;
    return log_sum(p, log_sum_result(r.others, shift()), [=](T s) { return s * c; });
  }
  DML_FN T target(Positives<T> p) const {                              // several positives share the target: log of their sum
    const T c = scale;
    return log_sum(p, Limit<T>::lowest, [=](T s) { return s * c; });
  }
  DML_FN void close(Positives<T> p, const Limits<T>&, const Sums<T>& r, T* values, T* counts) const {
    values[0] = p.count ? all(p, r) - target(p) : T(0);
    counts[0] = p.count ? T(1) : T(0);
  }
  DML_FN Slopes<T> weigh(Positives<T> p, const Limits<T>&, const Sums<T>& r, const T* cotangents) const {
    Slopes<T> w;
    T weight = p.count ? cotangents[0] * scale : T(0);
    w.result = all(p, r);
    log_sum_slope(w.result, weight, shift(), w.others);
    w.positive = weight;
    w.share = p.count ? target(p) : T(0);
    return w;
  }
  DML_FN T slope_positive(T s, const Slopes<T>& w) const { return w.positive * (exp(s * scale - w.result) - exp(s * scale - w.share)); }
  template <class V> DML_FN V slope_negative(V s, const Slopes<V>& w) const {
    return log_sum_slope_at(s * scale, shift(), w.others);
  }
};

struct norm_softmax_functors {
  template <class Table> static void list(Table& t) { t.template add<ScaledSoftmax>("norm_softmax"); }
};

DML_END
