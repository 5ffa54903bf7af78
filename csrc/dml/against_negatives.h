// Every positive against all negatives of its anchor: sum over positives of log(1 + sum_n exp(scale (s_n - target(s_p)))). The
// shape of nt_xent, n_pair and tuplet_margin. One log-sum over the negatives serves all positives of an anchor. The tuplet margin
// loss moves the positive by an angle, target(s) = cos(acos(s) - margin).
#pragma once
#include "dml/contract.h"

DML_BEGIN

template <class T, bool Wide> struct PositivesAgainstNegatives {
  static constexpr int kValues = 1;
  static constexpr bool kSlots = false;
  static constexpr const char* kOptions = "scale cosine sine";  // cosine and sine of the angular margin
  T scale, cosine, sine;
  DML_FN bool fits() const { return Wide || scale <= 70; }  // exponents within [-70, 70]: no shift needed
  DML_FN T shift() const { return T(0); }

  template <class V> using Limits = Nothing<V>;
  template <class V> struct Sums { LogSum<V, Wide> negatives; };
  template <class V> struct Slopes {
    LogSumSlope<V, Wide> negatives;
    LogSum<V, Wide> sum;
    V positive;
  };

  // Where the sine of an angle is below its resolution, cos(acos(s) - margin) is taken at the end of the arc, with slope 0:
  // acos has an infinite derivative there.
  DML_FN bool is_inside(T s) const { return (1 - s) * (1 + s) > 4 * Limit<T>::epsilon; }
  DML_FN T target(T s) const {
    if (sine == 0) return s;
    const T square = (1 - s) * (1 + s);
    return cosine * s + (is_inside(s) ? sine * square * reciprocal_sqrt(square) : T(0));
  }
  DML_FN T target_slope(T s) const {
    if (sine == 0) return T(1);
    return is_inside(s) ? cosine - sine * s * reciprocal_sqrt((1 - s) * (1 + s)) : T(0);
  }

  DML_FN Limits<T> open(Positives<T>) const { return {}; }
  DML_FN Sums<T> nothing() const {
    Sums<T> r;
    log_sum_start(r.negatives);
    return r;
  }
  template <class V> DML_FN void collect(V s, const Limits<V>&, Sums<V>& r) const {
    log_sum_add(s * scale, shift(), is_pair(s), r.negatives);
  }
  template <class A, class B> DML_FN void merge(const Sums<A>& a, Sums<B>& b) const { log_sum_merge(a.negatives, b.negatives); }
  DML_FN void close(Positives<T> p, const Limits<T>&, const Sums<T>& r, T* values, T* counts) const {
    T sum = 0;
    for (long long k = 0; k < p.count; ++k) sum += softplus(log_sum_above(r.negatives, shift(), scale * target(p[k])));
    values[0] = sum;
    counts[0] = T(p.count);
  }
  DML_FN Slopes<T> weigh(Positives<T> p, const Limits<T>&, const Sums<T>& r, const T* cotangents) const {
    Slopes<T> w;
    w.sum = r.negatives;
    w.positive = cotangents[0] * scale;
    T share = 0;
    for (long long k = 0; k < p.count; ++k) share += sigmoid(log_sum_above(w.sum, shift(), scale * target(p[k])));
    log_sum_slope_of(w.sum, w.positive * share, w.negatives);
    return w;
  }
  DML_FN T slope_positive(T s, const Slopes<T>& w) const {
    return -w.positive * sigmoid(log_sum_above(w.sum, shift(), scale * target(s))) * target_slope(s);
  }
  template <class V> DML_FN V slope_negative(V s, const Slopes<V>& w) const {
    return log_sum_slope_at(s * scale, shift(), w.negatives);
  }
};

DML_END
