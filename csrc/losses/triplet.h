// Triplet margin loss on distances of unit vectors, every positive with many negatives. Schroff, Kalenichenko, Philbin,
// CVPR 2015. Those that choose one negative are in triplet_mined.h and triplet_else_farthest.h.
#pragma once
#include "dml/contract.h"

DML_BEGIN

// Every positive with every negative (Semihard: with those farther than the positive).
template <class T, bool Semihard, DistanceKind Kind> struct TripletPairs {
  static constexpr int kValues = 1;
  static constexpr bool kSlots = true;
  static constexpr const char* kOptions = "margin";
  T margin;
  DML_FN bool fits() const { return true; }

  template <class V> using Limits = Nothing<V>;
  template <class V> struct Sums { V hinge; };
  template <class V> struct Slopes { V weight; };
  template <class V> struct SlotLimits { V near, far; };  // the positive's distance, and that plus the margin
  template <class V> struct SlotSums { V active; };

  DML_FN Limits<T> open(Positives<T>) const { return {}; }
  DML_FN SlotLimits<T> open_slot(T s) const { return {distance_of<Kind>(s), distance_of<Kind>(s) + margin}; }
  DML_FN SlotLimits<T> absent_slot() const { return {T(0), T(-1)}; }  // rounding takes no distance to -1
  DML_FN Sums<T> nothing() const { return {T(0)}; }
  DML_FN SlotSums<T> nothing_slot() const { return {T(0)}; }
  template <class V> DML_FN V measure(V s) const { return distance_of<Kind>(s); }
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
  DML_FN Interval<T> interval(const SlotLimits<T>& l) const {
    return {Semihard ? next_above(l.near) : Limit<T>::lowest, l.far};
  }
  DML_FN void gather(const SlotLimits<T>& l, double number, double total, Sums<double>& r, SlotSums<T>& k) const {
    r.hinge += number * double(l.far) - total;
    k.active += T(number);
  }
  template <class A, class B> DML_FN void merge(const Sums<A>& a, Sums<B>& b) const { b.hinge += a.hinge; }
  template <class A, class B> DML_FN void merge_slot(const SlotSums<A>& a, SlotSums<B>& b) const { b.active += a.active; }
  template <class Slots> DML_FN void close(Positives<T> p, const Limits<T>&, const Sums<T>& r, Slots k, T* values,
                                           T* counts) const {
    T active = 0;
    for (long long i = 0; i < p.count; ++i) active += k(i).active;
    values[0] = r.hinge;
    counts[0] = active;
  }
  template <class Slots> DML_FN Slopes<T> weigh(Positives<T>, const Limits<T>&, const Sums<T>&, Slots,
                                                const T* cotangents) const {
    return {cotangents[0]};
  }
  DML_FN T slope_positive(T s, const Slopes<T>& w, const SlotSums<T>& k) const {
    return w.weight * k.active * distance_slope_of<Kind>(s);
  }
  template <class V> DML_FN V tally(V d, const SlotLimits<V>& l) const {
    return select(is_active(d, l), splat<V>(1), splat<V>(0));
  }
  template <class V> DML_FN V finish(V s, V, V tally, const Slopes<V>& w) const {
    return -w.weight * tally * distance_slope_of<Kind>(s);
  }
};
template <class T, bool> using TripletAll = TripletPairs<T, false, kEuclidean>;
template <class T, bool> using TripletSemihard = TripletPairs<T, true, kEuclidean>;
template <class T, bool> using TripletAllSquared = TripletPairs<T, false, kSquaredEuclidean>;
template <class T, bool> using TripletSemihardSquared = TripletPairs<T, true, kSquaredEuclidean>;

// softplus instead of the hinge, for every negative or (semihard = 1) for those with d_ap < d_an <= d_ap + margin.
template <class T> struct TripletSoftened {
  static constexpr int kValues = 1;
  static constexpr bool kSlots = true;
  static constexpr const char* kOptions = "margin semihard";
  T margin, semihard;
  DML_FN bool fits() const { return true; }

  template <class V> using Limits = Nothing<V>;
  template <class V> struct Sums { V value, count; };
  template <class V> struct Slopes { V weight; };
  template <class V> struct SlotLimits { V near, last, far; };  // near < d <= last counts; far: the distance plus the margin
  template <class V> struct SlotSums { V slope; };

  DML_FN Limits<T> open(Positives<T>) const { return {}; }
  DML_FN SlotLimits<T> open_slot(T s) const {
    const T near = distance(s), far = near + margin;
    if (semihard > 0) return {near, far, far};
    return {T(-1), T(100), far};  // every pair, none of which is as far as 100
  }
  DML_FN SlotLimits<T> absent_slot() const { return {T(-1), T(-1), T(0)}; }
  DML_FN Sums<T> nothing() const { return {T(0), T(0)}; }
  DML_FN SlotSums<T> nothing_slot() const { return {T(0)}; }
  template <class V> DML_FN V measure(V s) const { return distance(s); }
  template <class V> DML_FN void collect(V d, const SlotLimits<V>& l, Sums<V>& r, SlotSums<V>& k) const {
    auto active = (d > l.near) & (d <= l.last);
    r.value += select(active, softplus(l.far - d), splat<V>(0));
    r.count += select(active, splat<V>(1), splat<V>(0));
    k.slope += tally(d, l);
  }
  template <class A, class B> DML_FN void merge(const Sums<A>& a, Sums<B>& b) const {
    b.value += a.value;
    b.count += a.count;
  }
  template <class A, class B> DML_FN void merge_slot(const SlotSums<A>& a, SlotSums<B>& b) const { b.slope += a.slope; }
  template <class Slots> DML_FN void close(Positives<T>, const Limits<T>&, const Sums<T>& r, Slots, T* values,
                                           T* counts) const {
    values[0] = r.value;
    counts[0] = r.count;
  }
  template <class Slots> DML_FN Slopes<T> weigh(Positives<T>, const Limits<T>&, const Sums<T>&, Slots,
                                                const T* cotangents) const {
    return {cotangents[0]};
  }
  DML_FN T slope_positive(T s, const Slopes<T>& w, const SlotSums<T>& k) const {
    return w.weight * k.slope * distance_slope(s);
  }
  template <class V> DML_FN V tally(V d, const SlotLimits<V>& l) const {
    return select((d > l.near) & (d <= l.last), sigmoid(l.far - d), splat<V>(0));
  }
  template <class V> DML_FN V finish(V s, V, V tally, const Slopes<V>& w) const {
    return -w.weight * tally * distance_slope(s);
  }
};
template <class T, bool> using TripletSmooth = TripletSoftened<T>;

struct triplet_functors {
  template <class Table> static void list(Table& t) {
    t.template add<TripletAll>("triplet_all");
    t.template add<TripletSemihard>("triplet_semihard");
    t.template add<TripletAllSquared>("triplet_all_squared");
    t.template add<TripletSemihardSquared>("triplet_semihard_squared");
    t.template add<TripletSmooth>("triplet_smooth");
  }
};

DML_END
