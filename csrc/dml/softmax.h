// Softmax cross-entropy with one logit per proxy, where the entry of the target may be changed by a margin: the shape of
// norm_softmax, nca, proxy_nca, cosface, arcface and cross_entropy. A header of csrc/losses never includes another one, so that
// editing it compiles one loss; what several share lies here.
//
// A Target holds the options, the first of them the scale, and says what the target's logit is: entry(s) and its derivative
// slope(s); kept() is 1 - label smoothing. The smoothed part, smoothing * mean of all logits, is linear in the proxies' mean and
// is subtracted outside.
#pragma once
#include "dml/contract.h"

DML_BEGIN

template <class T, bool Wide, class Target> struct SoftmaxOver : Target {
  static constexpr int kValues = 1;
  static constexpr bool kSlots = false;
  using Target::scale;
  // Logits lie in [-scale, scale]. Up to 60 they need no shift: a million of e^60 and one of e^-60 are ordinary floats.
  DML_FN bool fits() const { return Wide || scale <= 72; }
  DML_FN T shift() const { return max(scale - T(60), T(0)); }

  template <class V> using Limits = Nothing<V>;
  template <class V> struct Sums { LogSum<V, Wide> others; };
  template <class V> struct Slopes {
    LogSumSlope<V, Wide> others;
    V positive, share;
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
  DML_FN T target(Positives<T> p) const {  // several positives share the target: log of their sum
    return log_sum(p, Limit<T>::lowest, [this](T s) { return this->entry(s); });
  }
  DML_FN void close(Positives<T> p, const Limits<T>&, const Sums<T>& r, T* values, T* counts) const {
    values[0] = 0, counts[0] = p.count ? T(1) : T(0);
    if (!p.count) return;
    const T t = target(p);
    values[0] = softplus(log_sum_above(r.others, shift(), t)) + (1 - this->kept()) * t;
  }
  DML_FN Slopes<T> weigh(Positives<T> p, const Limits<T>&, const Sums<T>& r, const T* cotangents) const {
    Slopes<T> w;
    const T weight = p.count ? cotangents[0] : T(0);
    w.share = p.count ? target(p) : T(0);
    const T missing = sigmoid(log_sum_above(r.others, shift(), w.share));  // 1 - the target's probability, to its last digit
    w.positive = weight * ((1 - this->kept()) - missing);
    log_sum_slope_of(r.others, weight * scale * missing, w.others);
    return w;
  }
  DML_FN T slope_positive(T s, const Slopes<T>& w) const { return w.positive * exp(this->entry(s) - w.share) * this->slope(s); }
  template <class V> DML_FN V slope_negative(V s, const Slopes<V>& w) const {
    return log_sum_slope_at(s * scale, shift(), w.others);
  }
};

template <class T> struct ScaledTarget {
  static constexpr const char* kOptions = "scale smoothing";
  T scale, smoothing;
  DML_FN T entry(T s) const { return s * scale; }
  DML_FN T slope(T) const { return scale; }
  DML_FN T kept() const { return 1 - smoothing; }
};
template <class T, bool Wide> using ScaledSoftmax = SoftmaxOver<T, Wide, ScaledTarget<T>>;

template <class T> struct CosineMarginTarget {
  static constexpr const char* kOptions = "scale margin";
  T scale, margin;
  DML_FN T entry(T s) const { return (s - margin) * scale; }
  DML_FN T slope(T) const { return scale; }
  DML_FN T kept() const { return 1; }
};

template <class T> struct AngularMarginTarget {
  static constexpr const char* kOptions = "scale cosine sine drop";  // of the margin; drop = margin * sin(margin)
  T scale, cosine, sine, drop;
  // sin(angle) and its derivative in s; both 0 below the resolution of the cosine, where the derivative has no bound.
  DML_FN static T height(T s) {
    const T q = 1 - s * s;
    return q > 4 * Limit<T>::epsilon ? q * reciprocal_sqrt(q) : T(0);
  }
  DML_FN static T height_slope(T s) {
    const T q = 1 - s * s;
    return q > 4 * Limit<T>::epsilon ? -s * reciprocal_sqrt(q) : T(0);
  }
  DML_FN T entry(T s) const { return scale * (s >= -cosine ? s * cosine - height(s) * sine : s - drop); }
  DML_FN T slope(T s) const { return scale * (s >= -cosine ? cosine - height_slope(s) * sine : T(1)); }
  DML_FN T kept() const { return 1; }
};

DML_END
