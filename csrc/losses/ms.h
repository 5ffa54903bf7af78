// Multi-Similarity loss with its mining. Wang, Han, Huang, Dong, Scott, CVPR 2019, eq. 9 (mining), 13 (weighting), 15 (loss).
#pragma once
#include "dml/contract.h"

DML_BEGIN

template <class T, bool Wide> struct MultiSimilarity {
  static constexpr int kValues = 1;
  static constexpr bool kSlots = false;
  static constexpr const char* kOptions = "alpha beta base epsilon";   // epsilon = infinity: no mining
  T alpha, beta, base, epsilon;
  DML_FN bool fits() const { return Wide || beta * (1 - base) <= 120; }
  DML_FN T shift() const { return shift_beside_one(beta * (1 - base)); }

  template <class V> struct Limits { V floor; };
  template <class V> struct Sums {
    LogSum<V, Wide> harder;
    V highest;
  };
  template <class V> struct Slopes {
    LogSumSlope<V, Wide> harder;
    V floor, highest, positive, log_positive;
  };

  DML_FN bool is_mining() const { return epsilon < T(1e8); }
  DML_FN Limits<T> open(Positives<T> p) const { return {is_mining() ? p.lowest() - epsilon : T(2) * T(no_pair())}; }
  DML_FN Sums<T> nothing() const {
    Sums<T> r;
    log_sum_start(r.harder);
    r.highest = T(no_pair());
    return r;
  }
  template <class V> DML_FN void collect(V s, const Limits<V>& l, Sums<V>& r) const {
    log_sum_add(beta * (s - base), shift(), s > l.floor, r.harder);
    r.highest = max(r.highest, s);
  }
  template <class A, class B> DML_FN void merge(const Sums<A>& a, Sums<B>& b) const {
    log_sum_merge(a.harder, b.harder);
    b.highest = max(b.highest, B(a.highest));
  }
  DML_FN T log_positive(Positives<T> p, T highest) const {
    const T a = alpha, b = base, e = epsilon;
    const bool all = !is_mining();
    return log_sum(p, T(0), [=](T s) { return all || s - e < highest ? -a * (s - b) : Limit<T>::lowest; });
  }
  DML_FN T log_negative(const Sums<T>& r) const {                      // log(1 + sum)
    T x = log_sum_result(r.harder, shift()), m = max(x, T(0));
    return m + log(exp(x - m) + exp(-m));
  }
  DML_FN void close(Positives<T> p, const Limits<T>&, const Sums<T>& r, T* values, T* counts) const {
    values[0] = log_positive(p, r.highest) / alpha + log_negative(r) / beta;
    counts[0] = 1;
  }
  DML_FN Slopes<T> weigh(Positives<T> p, const Limits<T>& l, const Sums<T>& r, const T* cotangents) const {
    Slopes<T> w;
    log_sum_slope(log_negative(r), cotangents[0], shift(), w.harder);
    w.floor = l.floor;
    w.highest = r.highest;
    w.positive = cotangents[0];
    w.log_positive = log_positive(p, r.highest);
    return w;
  }
  DML_FN T slope_positive(T s, const Slopes<T>& w) const {
    return !is_mining() || s - epsilon < w.highest ? -w.positive * exp(-alpha * (s - base) - w.log_positive) : T(0);
  }
  template <class V> DML_FN V slope_negative(V s, const Slopes<V>& w) const {
    return select(s > w.floor, log_sum_slope_at(beta * (s - base), shift(), w.harder), splat<V>(0));
  }
};

struct ms_functors {
  template <class Table> static void list(Table& t) { t.template add<MultiSimilarity>("ms"); }
};

DML_END
