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

  // Logits reach scale * |x|, where float holds no fraction. So maxima are kept in units of similarity and only differences are
  // scaled: the highest entry has exactly exp(0), whatever the compiler fuses.
  template <class V> struct Exponentials {  // sum * exp(scale * highest) in all
    V sum, highest;
  };
  template <class V> struct Limits { V norm; };
  template <class V> using Sums = Exponentials<V>;
  template <class V> struct Slopes {
    V factor, highest;  // of negatives: factor * exp(scale * (s - highest))
    V positive, share, target_share, target_highest, norm;
  };

  struct Entry {  // the target's logit / scale, and the derivatives of the logit
    T entry, by_similarity, by_norm;
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
    const V above = (s - r.highest) * scale, e = exp(min(above, -above));  // one of the two is the maximum: one exponential
    const auto keep = is_pair(s), grows = above > splat<V>(0);
    r.sum = select(keep, select(grows, r.sum * e + splat<V>(1), r.sum + e), r.sum);
    r.highest = select(keep & grows, s, r.highest);
  }
  template <class A, class B> DML_FN void merge(const Exponentials<A>& a, Exponentials<B>& b) const {
    if (!(a.sum > 0)) return;
    const B m = max(B(a.highest), b.highest);
    b.sum = (b.sum > 0 ? b.sum * exp((b.highest - m) * B(scale)) : b.sum) + B(a.sum) * exp((B(a.highest) - m) * B(scale));
    b.highest = m;
  }
  DML_FN Exponentials<T> with_targets(Exponentials<T> r, Positives<T> p, T norm) const {
    T m = r.highest;
    for (long long k = 0; k < p.count; ++k) m = max(m, entry(p[k], norm).entry);
    r.sum = r.sum > 0 ? r.sum * exp((r.highest - m) * scale) : T(0);
    r.highest = m;
    for (long long k = 0; k < p.count; ++k) r.sum += exp((entry(p[k], norm).entry - m) * scale);
    return r;
  }
  DML_FN void close(Positives<T> p, const Limits<T>& l, const Sums<T>& r, T* values, T* counts) const {
    values[0] = values[1] = 0;
    counts[0] = counts[1] = p.count ? T(1) : T(0);
    if (!p.count) return;
    const Exponentials<T> all = with_targets(r, p, l.norm), target = with_targets(nothing(), p, l.norm);
    values[0] = (all.highest - target.highest) * scale + (log(all.sum) - log(target.sum));
    for (long long k = 0; k < p.count; ++k) {
      const Entry e = entry(p[k], l.norm);
      const T of_all = exp((e.entry - all.highest) * scale) / all.sum;
      values[1] += (of_all - exp((e.entry - target.highest) * scale) / target.sum) * e.by_norm;
    }
  }
  DML_FN Slopes<T> weigh(Positives<T> p, const Limits<T>& l, const Sums<T>& r, const T* cotangents) const {
    const Exponentials<T> all = with_targets(r, p, l.norm), target = with_targets(nothing(), p, l.norm);
    Slopes<T> w;
    w.positive = p.count ? cotangents[0] : T(0);  // the second value is a constant for the caller
    w.share = all.sum > 0 ? 1 / all.sum : T(0), w.highest = all.highest;
    w.target_share = p.count ? 1 / target.sum : T(0), w.target_highest = target.highest;
    w.factor = w.positive * scale * w.share;
    w.norm = l.norm;
    return w;
  }
  DML_FN T slope_positive(T s, const Slopes<T>& w) const {
    const Entry e = entry(s, w.norm);
    const T of_all = exp((e.entry - w.highest) * scale) * w.share;
    return w.positive * (of_all - exp((e.entry - w.target_highest) * scale) * w.target_share) * e.by_similarity;
  }
  template <class V> DML_FN V slope_negative(V s, const Slopes<V>& w) const { return exp((s - w.highest) * scale) * w.factor; }
};

template <class T, bool> using SphereFace = SphereFaceSoftmax<T>;

struct sphereface_functors {
  template <class Table> static void list(Table& t) { t.template add<SphereFace>("sphereface"); }
};

DML_END
