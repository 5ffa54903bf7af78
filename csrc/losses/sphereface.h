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

  // Logits have no bound, and differ by less than one rounding of `scale * s` where they are large. So all exponents are taken
  // relative to the highest logit, as scale * (s - highest): the difference of two near numbers is exact, and no result of a
  // product is subtracted, which the compiler may or may not round (FMA). The sum stays beside its highest for the same reason.
  template <class V> struct Limits { V norm; };
  template <class V> struct Sums { V sum, highest; };  // of exp(scale * (s - highest)) over the negatives
  template <class V> struct Slopes { V factor, highest, positive, share, share_highest, norm; };

  struct Entry {  // the target's logit in units of the scale, and the logit's derivatives
    T logit, by_similarity, by_norm;
  };
  DML_FN Entry entry(T s, T norm) const {
    if (!(norm > T(1e-12))) return {s, scale, T(0)};  // a zero vector has no angle to widen
    const T c = min(max(s / norm, T(-1)), T(1));
    T below = 1, here = c, slope_below = 0, slope = 1;  // cos(n a) as a polynomial of cos(a), and its derivative
    for (T n = 1; n < margin; n += 1) {
      const T next = 2 * c * here - below, slope_next = 2 * here + 2 * c * slope - slope_below;
      below = here, here = next, slope_below = slope, slope = slope_next;
    }
    T k = T(int(margin * arc_cosine(c) * T(0.3183098861837907)));
    const T sign = int(k) % 2 ? T(-1) : T(1);
    const T psi = sign * here - 2 * k;
    return {norm * psi, scale * sign * slope, scale * (psi - c * sign * slope)};
  }
  DML_FN Limits<T> open(Positives<T>, const T* given) const { return {given[0]}; }
  DML_FN Sums<T> nothing() const { return {T(0), Limit<T>::lowest}; }
  template <class V> DML_FN void collect(V s, const Limits<V>&, Sums<V>& r) const {
    const V above = (s - r.highest) * scale, e = exp(min(above, -above));  // one of the two exponents is the maximum
    const auto keep = is_pair(s), grows = above > splat<V>(0);
    r.sum = select(keep, select(grows, r.sum * e + splat<V>(1), r.sum + e), r.sum);
    r.highest = select(keep & grows, s, r.highest);
  }
  template <class A, class B> DML_FN void merge(const Sums<A>& a, Sums<B>& b) const { add(a.sum, a.highest, b); }
  template <class A, class B> DML_FN void add(A sum, A highest, Sums<B>& b) const {
    if (!(sum > 0) && sum == sum) return;  // a NaN stays one
    const B m = max(B(highest), b.highest);
    b.sum = (b.sum > 0 ? b.sum * exp((b.highest - m) * B(scale)) : b.sum) + B(sum) * exp((B(highest) - m) * B(scale));
    b.highest = m;
  }
  DML_FN Sums<T> target(Positives<T> p, T norm) const {  // several positives share the target
    Sums<T> r = nothing();
    for (long long k = 0; k < p.count; ++k) add(T(1), entry(p[k], norm).logit, r);
    return r;
  }
  DML_FN T portion(T logit, const Sums<T>& of) const { return exp((logit - of.highest) * scale) / of.sum; }
  DML_FN void close(Positives<T> p, const Limits<T>& l, const Sums<T>& r, T* values, T* counts) const {
    values[0] = values[1] = 0;
    counts[0] = counts[1] = p.count ? T(1) : T(0);
    if (!p.count) return;
    const Sums<T> own = target(p, l.norm);
    Sums<T> all = r;
    merge(own, all);
    values[0] = (all.highest - own.highest) * scale + (log(all.sum) - log(own.sum));
    for (long long k = 0; k < p.count; ++k) {
      const Entry e = entry(p[k], l.norm);
      values[1] += (portion(e.logit, all) - portion(e.logit, own)) * e.by_norm;
    }
  }
  DML_FN Slopes<T> weigh(Positives<T> p, const Limits<T>& l, const Sums<T>& r, const T* cotangents) const {
    if (!p.count) return {T(0), -Limit<T>::lowest, T(0), T(1), T(0), l.norm};  // exponentials are then 0, not infinity times 0
    const Sums<T> own = target(p, l.norm);
    Sums<T> all = r;
    merge(own, all);
    const T positive = cotangents[0];  // the second value is a constant for the caller
    return {positive * scale / all.sum, all.highest, positive / all.sum, positive / own.sum, own.highest, l.norm};
  }
  DML_FN T slope_positive(T s, const Slopes<T>& w) const {
    const Entry e = entry(s, w.norm);
    const T of_all = exp((e.logit - w.highest) * scale), of_target = exp((e.logit - w.share_highest) * scale);
    return (w.positive * of_all - w.share * of_target) * e.by_similarity;
  }
  template <class V> DML_FN V slope_negative(V s, const Slopes<V>& w) const {
    return exp((s - w.highest) * scale) * w.factor;
  }
};

template <class T, bool> using SphereFace = SphereFaceSoftmax<T>;

struct sphereface_functors {
  template <class Table> static void list(Table& t) { t.template add<SphereFace>("sphereface"); }
};

DML_END
