// Margin-based loss over all triplets, whose two hinges separate: every positive counts once per negative of its anchor and
// every negative once per positive. Wu, Manmatha, Smola, Krahenbuhl, ICCV 2017, section 4. The boundary beta is given per anchor;
// a hinge moves with it by 1, so the counts are the derivative, and the caller makes its gradient of them.
#pragma once
#include "dml/contract.h"

DML_BEGIN

template <class T> struct MarginHinges {
  static constexpr int kValues = 3;  // positives, negatives, and the number of triplets
  static constexpr bool kSlots = false;
  static constexpr int kGiven = 1;  // beta
  static constexpr const char* kOptions = "margin";
  T margin;
  DML_FN bool fits() const { return true; }

  template <class V> struct Limits { V beta; };
  template <class V> struct Sums { V hinge, active, count; };
  template <class V> struct Slopes { V positive, negative, beta; };

  DML_FN Limits<T> open(Positives<T>, const T* given) const { return {given[0]}; }
  DML_FN Sums<T> nothing() const { return {T(0), T(0), T(0)}; }
  template <class V> DML_FN void collect(V s, const Limits<V>& l, Sums<V>& r) const {
    V hinge = l.beta - distance(s) + margin;
    auto active = hinge > splat<V>(0);
    r.hinge += select(active, hinge, splat<V>(0));
    r.active += select(active, splat<V>(1), splat<V>(0));
    r.count += select(is_pair(s), splat<V>(1), splat<V>(0));
  }
  template <class A, class B> DML_FN void merge(const Sums<A>& a, Sums<B>& b) const {
    b.hinge += a.hinge;
    b.active += a.active;
    b.count += a.count;
  }
  DML_FN void close(Positives<T> p, const Limits<T>& l, const Sums<T>& r, T* values, T* counts) const {
    T hinge = 0, active = 0;
    for (long long k = 0; k < p.count; ++k) {
      T h = distance(p[k]) - l.beta + margin;
      if (h > 0) hinge += h, active += 1;
    }
    values[0] = r.count * hinge, counts[0] = r.count * active;
    values[1] = T(p.count) * r.hinge, counts[1] = T(p.count) * r.active;
    values[2] = T(p.count) * r.count, counts[2] = 0;
  }
  DML_FN Slopes<T> weigh(Positives<T> p, const Limits<T>& l, const Sums<T>& r, const T* cotangents) const {
    return {r.count * cotangents[0], T(p.count) * cotangents[1], l.beta};
  }
  DML_FN T slope_positive(T s, const Slopes<T>& w) const {
    return distance(s) - w.beta + margin > 0 ? w.positive * distance_slope(s) : T(0);
  }
  template <class V> DML_FN V slope_negative(V s, const Slopes<V>& w) const {
    return select(w.beta - distance(s) + margin > splat<V>(0), -w.negative * distance_slope(s), splat<V>(0));
  }
};

template <class T, bool> using MarginBased = MarginHinges<T>;  // no exponentials: one form

struct margin_functors {
  template <class Table> static void list(Table& t) { t.template add<MarginBased>("margin"); }
};

DML_END
