// SphereFace: the target's angle times a whole number. Liu et al., CVPR 2017, eq. 7. Similarities are |x| cos(angle): proxies
// are unit vectors, anchors are not, and |x| is handed in for the target's entry |x| psi(cos), psi(cos a) = (-1)^k cos(m a) - 2k
// with k = floor(m a / pi). The second value is d value / d |x|, the part of the gradient that the caller adds.
#pragma once
#include "dml/contract.h"

DML_BEGIN

DML_FN float arc_cosine(float x) { return ::acosf(x); }
DML_FN double arc_cosine(double x) { return ::acos(x); }

template <class T> struct SphereFaceSoftmax {
  static constexpr int kValues = 2;
  static constexpr bool kSlots = false;
  static constexpr int kGiven = 1;
  static constexpr const char* kOptions = "scale margin";
  T scale, margin;
  DML_FN bool fits() const { return true; }  // norms have no bound: always running maxima

  template <class V> struct Limits { V norm; };
  template <class V> struct Sums { LogSum<V, true> others; };
  template <class V> struct Slopes {
    LogSumSlope<V, true> others;
    V result, positive, share, norm;
  };

  struct Entry {  // the target's logit and its derivatives
    T logit, by_similarity, by_norm;
  };
  DML_FN Entry entry(T s, T norm) const {
    if (!(norm > T(1e-12))) return {scale * s, scale, T(0)};  // a zero vector has no angle to widen
    const T c = min(max(s / norm, T(-1)), T(1));
    T below = 1, here = c, slope_below = 0, slope = 1;  // cos(n a) as a polynomial of cos(a), and its derivative
    for (T n = 1; n < margin; n += 1) {
      const T next = 2 * c * here - below, slope_next = 2 * here + 2 * c * slope - slope_below;
      below = here, here = next, slope_below = slope, slope = slope_next;
    }
    T k = T(int(margin * arc_cosine(c) * T(0.3183098861837907)));
    const T sign = int(k) % 2 ? T(-1) : T(1);
    const T psi = sign * here - 2 * k;
    return {scale * norm * psi, scale * sign * slope, scale * (psi - c * sign * slope)};
  }
  DML_FN Limits<T> open(Positives<T>, const T* given) const { return {given[0]}; }
  DML_FN Sums<T> nothing() const {
    Sums<T> r;
    log_sum_start(r.others);
    return r;
  }
  template <class V> DML_FN void collect(V s, const Limits<V>&, Sums<V>& r) const {
    log_sum_add(s * scale, T(0), is_pair(s), r.others);
  }
  template <class A, class B> DML_FN void merge(const Sums<A>& a, Sums<B>& b) const { log_sum_merge(a.others, b.others); }
  DML_FN T all(Positives<T> p, T norm, const Sums<T>& r) const {
    return log_sum(p, log_sum_result(r.others, T(0)), [=](T s) { return entry(s, norm).logit; });
  }
  DML_FN T target(Positives<T> p, T norm) const {
    return log_sum(p, Limit<T>::lowest, [=](T s) { return entry(s, norm).logit; });
  }
  DML_FN void close(Positives<T> p, const Limits<T>& l, const Sums<T>& r, T* values, T* counts) const {
    values[0] = values[1] = 0;
    counts[0] = counts[1] = p.count ? T(1) : T(0);
    if (!p.count) return;
    const T sum = all(p, l.norm, r), share = target(p, l.norm);
    values[0] = sum - share;
    for (long long k = 0; k < p.count; ++k) {
      const Entry e = entry(p[k], l.norm);
      values[1] += (exp(e.logit - sum) - exp(e.logit - share)) * e.by_norm;
    }
  }
  DML_FN Slopes<T> weigh(Positives<T> p, const Limits<T>& l, const Sums<T>& r, const T* cotangents) const {
    Slopes<T> w;
    w.positive = p.count ? cotangents[0] : T(0);  // the second value is a constant for the caller
    w.result = all(p, l.norm, r);
    w.share = p.count ? target(p, l.norm) : T(0);
    w.norm = l.norm;
    log_sum_slope(w.result, w.positive * scale, T(0), w.others);
    return w;
  }
  DML_FN T slope_positive(T s, const Slopes<T>& w) const {
    const Entry e = entry(s, w.norm);
    return w.positive * (exp(e.logit - w.result) - exp(e.logit - w.share)) * e.by_similarity;
  }
  template <class V> DML_FN V slope_negative(V s, const Slopes<V>& w) const {
    return log_sum_slope_at(s * scale, T(0), w.others);
  }
};

template <class T, bool> using SphereFace = SphereFaceSoftmax<T>;

struct sphereface_functors {
  template <class Table> static void list(Table& t) { t.template add<SphereFace>("sphereface"); }
};

DML_END
