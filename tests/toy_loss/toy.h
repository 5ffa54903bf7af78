// A toy for tests: (1 - s)^2 over positives plus relu(s - margin)^2 over negatives, summed per anchor.
#pragma once
#include "dml/contract.h"

DML_BEGIN

template <class T> struct ToyPairs {
  static constexpr int kValues = 1;
  static constexpr bool kSlots = false;
  static constexpr const char* kOptions = "margin";
  T margin;
  DML_FN bool fits() const { return true; }

  template <class V> using Limits = Nothing<V>;
  template <class V> struct Sums { V push; };
  template <class V> struct Slopes { V weight; };

  DML_FN Limits<T> open(Positives<T>) const { return {}; }
  DML_FN Sums<T> nothing() const { return {T(0)}; }
  template <class V> DML_FN void collect(V s, const Limits<V>&, Sums<V>& r) const {
    const V hinge = max(s - margin, splat<V>(0));
    r.push += hinge * hinge;
  }
  template <class A, class B> DML_FN void merge(const Sums<A>& a, Sums<B>& b) const { b.push += a.push; }
  DML_FN void close(Positives<T> p, const Limits<T>&, const Sums<T>& r, T* values, T* counts) const {
    T pull = 0;
    for (long long k = 0; k < p.count; ++k) pull += (1 - p[k]) * (1 - p[k]);
    values[0] = pull + r.push, counts[0] = 1;
  }
  DML_FN Slopes<T> weigh(Positives<T>, const Limits<T>&, const Sums<T>&, const T* cotangents) const { return {cotangents[0]}; }
  DML_FN T slope_positive(T s, const Slopes<T>& w) const { return -2 * w.weight * (1 - s); }
  template <class V> DML_FN V slope_negative(V s, const Slopes<V>& w) const { return w.weight * 2 * max(s - margin, splat<V>(0)); }
};

template <class T, bool> using Toy = ToyPairs<T>;

struct toy_functors {
  template <class Table> static void list(Table& t) { t.template add<Toy>("toy"); }
};

DML_END
