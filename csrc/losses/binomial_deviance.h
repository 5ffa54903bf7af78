// Binomial deviance: a softplus of every similarity. Yi, Lei, Li, 2014; Ustinova and Lempitsky, NIPS 2016, eq. 7.
#pragma once
#include "dml/contract.h"

DML_BEGIN

template <class T> struct Deviance {
  static constexpr int kValues = 2;                                    // positives and negatives are averaged apart
  static constexpr bool kSlots = false;
  static constexpr const char* kOptions = "positive negative beta";  // sharpness for positives and for negatives, threshold
  T positive, negative, beta;
  DML_FN bool fits() const { return true; }

  template <class V> using Limits = Nothing<V>;
  template <class V> struct Sums { V deviance, count; };
  template <class V> struct Slopes { V positive, negative; };

  DML_FN Limits<T> open(Positives<T>) const { return {}; }
  DML_FN Sums<T> nothing() const { return {T(0), T(0)}; }
  template <class V> DML_FN void collect(V s, const Limits<V>&, Sums<V>& r) const {
    r.deviance += softplus(negative * (s - beta));  // exactly 0 for no pair
    r.count += select(is_pair(s), splat<V>(1), splat<V>(0));
  }
  template <class A, class B> DML_FN void merge(const Sums<A>& a, Sums<B>& b) const {
    b.deviance += a.deviance;
    b.count += a.count;
  }
  DML_FN void close(Positives<T> p, const Limits<T>&, const Sums<T>& r, T* values, T* counts) const {
    T sum = 0;
    for (long long k = 0; k < p.count; ++k) sum += softplus(positive * (beta - p[k]));
    values[0] = sum, counts[0] = T(p.count);
    values[1] = r.deviance, counts[1] = r.count;
  }
  DML_FN Slopes<T> weigh(Positives<T>, const Limits<T>&, const Sums<T>&, const T* cotangents) const {
    return {cotangents[0] * positive, cotangents[1] * negative};
  }
  DML_FN T slope_positive(T s, const Slopes<T>& w) const { return -w.positive * sigmoid(positive * (beta - s)); }
  template <class V> DML_FN V slope_negative(V s, const Slopes<V>& w) const {
    return w.negative * sigmoid(negative * (s - beta));
  }
};

template <class T, bool> using BinomialDeviance = Deviance<T>;  // no sums of exponentials: one form

struct binomial_deviance_functors {
  template <class Table> static void list(Table& t) { t.template add<BinomialDeviance>("binomial_deviance"); }
};

DML_END
