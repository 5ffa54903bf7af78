// Ranked list loss: averages of hinges of the distance, weighted by exponentials of them. Wang et al., CVPR 2019, eq. 5-10.
#pragma once
#include "dml/contract.h"

DML_BEGIN

template <class T> struct RankedLists {
  static constexpr int kValues = 1;
  static constexpr bool kSlots = false;
  // negatives cost nothing beyond alpha, positives nothing below boundary = alpha - margin
  static constexpr const char* kOptions = "alpha boundary imbalance Tp Tn";
  T alpha, boundary, imbalance, Tp, Tn;
  DML_FN bool fits() const { return true; }
  DML_FN T shift() const { return max(Tn * alpha - T(60), T(0)); }     // Tn * alpha <= 120: exponents within [-60, 60]

  template <class V> using Limits = Nothing<V>;
  template <class V> struct Sums { V weighted, weight, count; };
  template <class V> struct Slopes { V negative, negative_mean, positive, positive_mean, positive_shift; };
  struct Average { T mean, divisor, shift; };                          // over the positives

  DML_FN Limits<T> open(Positives<T>) const { return {}; }
  DML_FN Sums<T> nothing() const { return {T(0), T(0), T(0)}; }
  template <class V> DML_FN void collect(V s, const Limits<V>&, Sums<V>& r) const {
    V hinge = alpha - distance(s);
    V weight = select(hinge > splat<V>(0), exp(Tn * hinge - shift()), splat<V>(0));
    r.weight += weight;
    r.weighted += select(hinge > splat<V>(0), weight * hinge, splat<V>(0));
    r.count += select(is_pair(s), splat<V>(1), splat<V>(0));
  }
  template <class A, class B> DML_FN void merge(const Sums<A>& a, Sums<B>& b) const {
    b.weighted += a.weighted;
    b.weight += a.weight;
    b.count += a.count;
  }
  DML_FN T guard(Positives<T> p, const Sums<T>& r) const { return T(1e-5) * (1 + T(p.count) + r.count); }  // of the divisors
  DML_FN T divisor(Positives<T> p, const Sums<T>& r) const { return r.weight + guard(p, r) * exp(-shift()); }
  DML_FN Average positives(Positives<T> p, const Sums<T>& r) const {
    T highest = 0, weighted = 0, weight = 0;
    for (long long k = 0; k < p.count; ++k) highest = max(highest, distance(p[k]) - boundary);
    const T shift = max(Tp * highest - T(60), T(0));
    for (long long k = 0; k < p.count; ++k) {
      const T hinge = distance(p[k]) - boundary;
      if (hinge > 0) weight += exp(Tp * hinge - shift), weighted += exp(Tp * hinge - shift) * hinge;
    }
    const T all = weight + guard(p, r) * exp(-shift);
    return {weighted / all, all, shift};
  }
  DML_FN void close(Positives<T> p, const Limits<T>&, const Sums<T>& r, T* values, T* counts) const {
    values[0] = (1 - imbalance) * positives(p, r).mean + imbalance * r.weighted / divisor(p, r);
    counts[0] = 1;
  }
  DML_FN Slopes<T> weigh(Positives<T> p, const Limits<T>&, const Sums<T>& r, const T* cotangents) const {
    const Average a = positives(p, r);
    Slopes<T> w;
    w.negative = cotangents[0] * imbalance / divisor(p, r);
    w.negative_mean = r.weighted / divisor(p, r);
    w.positive = cotangents[0] * (1 - imbalance) / a.divisor;
    w.positive_mean = a.mean;
    w.positive_shift = a.shift;
    return w;
  }
  // the weights depend on the hinges too: d(sum w h / sum w) / d h = w (1 + T (h - mean)) / sum w
  DML_FN T slope_positive(T s, const Slopes<T>& w) const {
    const T hinge = distance(s) - boundary;
    if (!(hinge > 0)) return T(0);
    return w.positive * exp(Tp * hinge - w.positive_shift) * (1 + Tp * (hinge - w.positive_mean)) * distance_slope(s);
  }
  template <class V> DML_FN V slope_negative(V s, const Slopes<V>& w) const {
    V hinge = alpha - distance(s);
    V slope = -w.negative * exp(Tn * hinge - shift()) * (Tn * (hinge - w.negative_mean) + T(1)) * distance_slope(s);
    return select(hinge > splat<V>(0), slope, splat<V>(0));
  }
};

template <class T, bool> using RankedList = RankedLists<T>;  // the exponents' range is bounded: one form

struct ranked_list_functors {
  template <class Table> static void list(Table& t) { t.template add<RankedList>("ranked_list"); }
};

DML_END
