// Triplet margin loss on Euclidean distances of unit vectors. Schroff, Kalenichenko, Philbin, CVPR 2015 (all, semi-hard);
// Hermans, Beyer, Leibe, 2017 (batch-hard).
#pragma once
#include "dml/contract.h"

DML_BEGIN

// Every positive with every negative (Semihard: with those farther than the positive).
template <class T, bool Semihard> struct TripletPairs {
  static constexpr int kValues = 1;
  static constexpr bool kSlots = true;
  static constexpr const char* kOptions = "margin";
  T margin;
  DML_FN bool fits() const { return true; }

  template <class V> using Limits = Nothing<V>;
  template <class V> struct Sums { V hinge; };
  template <class V> struct Slopes { V weight; };
  template <class V> struct SlotLimits { V near, far; };               // the positive's distance, and that plus the margin
  template <class V> struct SlotSums { V active; };

  DML_FN Limits<T> open(Positives<T>) const { return {}; }
  DML_FN SlotLimits<T> open_slot(T s) const { return {distance(s), distance(s) + margin}; }
  DML_FN SlotLimits<T> absent_slot() const { return {T(0), T(0)}; }
  DML_FN Sums<T> nothing() const { return {T(0)}; }
  DML_FN SlotSums<T> nothing_slot() const { return {T(0)}; }
  template <class V> DML_FN V measure(V s) const { return distance(s); }
  template <class V> DML_FN auto is_active(V d, const SlotLimits<V>& l) const {
    if constexpr (Semihard) return (d < l.far) & (d > l.near);
    else return d < l.far;
  }
  template <class V> DML_FN void collect(V d, const SlotLimits<V>& l, Sums<V>& r, SlotSums<V>& k) const {
    auto active = is_active(d, l);
    r.hinge += select(active, l.far - d, splat<V>(0));
    k.active += select(active, splat<V>(1), splat<V>(0));
  }
  // is_active as an interval
  static constexpr int kSearch = Semihard ? 2 : 1;
  DML_FN Interval<T> interval(const SlotLimits<T>& l) const { return {Semihard ? next_above(l.near) : Limit<T>::lowest, l.far}; }
  DML_FN void gather(const SlotLimits<T>& l, double number, double total, Sums<double>& r, SlotSums<T>& k) const {
    r.hinge += number * double(l.far) - total;
    k.active += T(number);
  }
  template <class A, class B> DML_FN void merge(const Sums<A>& a, Sums<B>& b) const { b.hinge += a.hinge; }
  template <class A, class B> DML_FN void merge_slot(const SlotSums<A>& a, SlotSums<B>& b) const { b.active += a.active; }
  template <class Slots> DML_FN void close(Positives<T> p, const Limits<T>&, const Sums<T>& r, Slots k, T* values, T* counts) const {
    T active = 0;
    for (long long i = 0; i < p.count; ++i) active += k(i).active;
    values[0] = r.hinge;
    counts[0] = active;
  }
  template <class Slots> DML_FN Slopes<T> weigh(Positives<T>, const Limits<T>&, const Sums<T>&, Slots, const T* cotangents) const {
    return {cotangents[0]};
  }
  DML_FN T slope_positive(T s, const Slopes<T>& w, const SlotSums<T>& k) const {
    return w.weight * k.active * distance_slope(s);
  }
  template <class V> DML_FN V tally(V d, const SlotLimits<V>& l) const { return select(is_active(d, l), splat<V>(1), splat<V>(0)); }
  template <class V> DML_FN V finish(V s, V, V tally, const Slopes<V>& w) const { return -w.weight * tally * distance_slope(s); }
};
template <class T, bool> using TripletAll = TripletPairs<T, false>;
template <class T, bool> using TripletSemihard = TripletPairs<T, true>;

// The farthest positive with the nearest negative of each anchor. Ties share the gradient evenly.
template <class T> struct TripletExtremes {
  static constexpr int kValues = 1;
  static constexpr bool kSlots = false;
  static constexpr const char* kOptions = "margin";
  T margin;
  DML_FN bool fits() const { return true; }

  template <class V> using Limits = Nothing<V>;
  template <class V> struct Sums { V highest, ties; };
  template <class V> struct Slopes { V highest, negative, lowest, positive; };

  DML_FN Limits<T> open(Positives<T>) const { return {}; }
  DML_FN Sums<T> nothing() const { return {T(no_pair()), T(0)}; }
  template <class V> DML_FN void collect(V s, const Limits<V>&, Sums<V>& r) const {
    r.ties = select(s > r.highest, splat<V>(1), r.ties + select(s == r.highest, splat<V>(1), splat<V>(0)));
    r.highest = max(s, r.highest);
  }
  template <class A, class B> DML_FN void merge(const Sums<A>& a, Sums<B>& b) const {
    if (B(a.highest) > b.highest) b.highest = a.highest, b.ties = a.ties;
    else if (B(a.highest) == b.highest) b.ties += a.ties;
  }
  DML_FN T hinge(Positives<T> p, const Sums<T>& r) const {
    return p.count && is_pair(r.highest) ? distance(p.lowest()) - distance(r.highest) + margin : T(0);
  }
  DML_FN void close(Positives<T> p, const Limits<T>&, const Sums<T>& r, T* values, T* counts) const {
    T h = hinge(p, r);
    values[0] = h > 0 ? h : T(0);
    counts[0] = h > 0 ? T(1) : T(0);
  }
  DML_FN Slopes<T> weigh(Positives<T> p, const Limits<T>&, const Sums<T>& r, const T* cotangents) const {
    Slopes<T> w = {r.highest, T(0), p.lowest(), T(0)};
    if (hinge(p, r) > 0) {
      T same = 0;
      for (long long k = 0; k < p.count; ++k) same += p[k] == w.lowest ? T(1) : T(0);
      w.negative = -cotangents[0] * distance_slope(r.highest) / r.ties;
      w.positive = cotangents[0] * distance_slope(w.lowest) / same;
    }
    return w;
  }
  DML_FN T slope_positive(T s, const Slopes<T>& w) const { return s == w.lowest ? w.positive : T(0); }
  template <class V> DML_FN V slope_negative(V s, const Slopes<V>& w) const {
    return select(s == w.highest, w.negative, splat<V>(0));
  }
};

template <class T, bool> using TripletHard = TripletExtremes<T>;

struct triplet_functors {
  template <class Table> static void list(Table& t) {
    t.template add<TripletAll>("triplet_all");
    t.template add<TripletSemihard>("triplet_semihard");
    t.template add<TripletHard>("triplet_hard");
  }
};

DML_END
