// Softmax cross-entropy over classes with several centres: the shape of subcenter_arcface and soft_triple.
#pragma once
#include "dml/softmax.h"

DML_BEGIN

// Pool: the first options, and how the similarities of a class's centres become one. Target: see softmax.h; the margin is
// applied to the similarity of the class.
template <class T, bool Wide, class Pool, class Target> struct SoftmaxOverClasses : Pool, Target {
  static constexpr int kValues = 1;
  static constexpr bool kSlots = false;
  static constexpr bool kCentres = true;
  using Target::scale;
  template <class V> using Fold = typename Pool::template Fold<V>;
  DML_FN bool fits() const { return Wide || scale <= 72; }
  DML_FN T shift() const { return max(scale - T(60), T(0)); }

  template <class V> using Limits = Nothing<V>;
  template <class V> struct Sums { LogSum<V, Wide> others; };
  template <class V> struct Slopes {
    LogSumSlope<V, Wide> others;
    V positive;
    Fold<V> own;
  };

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
  DML_FN void close(Positives<T> p, const Limits<T>&, const Sums<T>& r, T* values, T* counts) const {
    values[0] = 0, counts[0] = p.count ? T(1) : T(0);
    if (!p.count) return;
    const T entry = this->entry(this->fold(p.s, p.count).similarity);
    values[0] = softplus(log_sum_above(r.others, shift(), entry));
  }
  DML_FN Slopes<T> weigh(Positives<T> p, const Limits<T>&, const Sums<T>& r, const T* cotangents) const {
    Slopes<T> w;
    w.positive = 0;
    if (!p.count) {
      w.own = {};
      log_sum_slope_of(r.others, T(0), w.others);
      return w;
    }
    w.own = this->fold(p.s, p.count);
    const T missing = sigmoid(log_sum_above(r.others, shift(), this->entry(w.own.similarity)));  // 1 - the target's probability
    w.positive = -cotangents[0] * missing * this->slope(w.own.similarity);
    log_sum_slope_of(r.others, cotangents[0] * scale * missing, w.others);
    return w;
  }
  DML_FN T slope_positive(T s, const Slopes<T>& w) const { return w.positive * this->share(s, w.own); }
  template <class V> DML_FN V slope_negative(V s, const Slopes<V>& w) const {
    return log_sum_slope_at(s * scale, shift(), w.others);
  }
};

DML_END
