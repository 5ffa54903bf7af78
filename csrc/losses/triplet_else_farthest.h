// Triplet margin loss with one negative for every positive: the nearest one beyond it, or the farthest one where none is beyond.
// The semi-hard mining of TensorFlow's library, which Zhang et al., NeurIPS 2020 (spherical embedding), train with.
#pragma once
#include "dml/contract.h"

DML_BEGIN

// Ties share the gradient evenly. every = 1 counts triplets without a value, too.
template <class T, DistanceKind Kind> struct TripletElseFarthest {
  static constexpr int kValues = 1;
  static constexpr bool kSlots = true, kReweighs = true, kOnce = true;
  static constexpr const char* kOptions = "margin every";
  T margin, every;
  DML_FN bool fits() const { return true; }

  template <class V> using Limits = Nothing<V>;
  template <class V> struct Sums { V farthest, ties; };
  template <class V> struct Slopes { V weight, farthest, ties; };
  template <class V> struct SlotLimits { V near, share; };  // after the stream: the chosen distance and its share
  template <class V> struct SlotSums { V nearest, ties; };

  DML_FN Limits<T> open(Positives<T>) const { return {}; }
  DML_FN SlotLimits<T> open_slot(T s) const { return {distance_of<Kind>(s), T(0)}; }
  DML_FN SlotLimits<T> absent_slot() const { return {T(400), T(0)}; }
  DML_FN Sums<T> nothing() const { return {T(-100), T(0)}; }
  DML_FN SlotSums<T> nothing_slot() const { return {T(100), T(0)}; }
  template <class V> DML_FN V measure(V s) const { return distance_of<Kind>(s); }
  template <class V> DML_FN void once(V d, Sums<V>& r) const {
    d = select(d < splat<V>(50), d, splat<V>(-200));  // no pair is as far as 50
    r.ties = select(d > r.farthest, splat<V>(1), r.ties + select(d == r.farthest, splat<V>(1), splat<V>(0)));
    r.farthest = max(d, r.farthest);
  }
  template <class V> DML_FN void collect(V d, const SlotLimits<V>& l, Sums<V>&, SlotSums<V>& k) const {
    d = select((d > l.near) & (d < splat<V>(50)), d, splat<V>(200));
    k.ties = select(d < k.nearest, splat<V>(1), k.ties + select(d == k.nearest, splat<V>(1), splat<V>(0)));
    k.nearest = min(d, k.nearest);
  }
  template <class A, class B> DML_FN void merge(const Sums<A>& a, Sums<B>& b) const {
    if (B(a.farthest) > b.farthest) b.farthest = a.farthest, b.ties = a.ties;
    else if (B(a.farthest) == b.farthest) b.ties += a.ties;
  }
  template <class A, class B> DML_FN void merge_slot(const SlotSums<A>& a, SlotSums<B>& b) const {
    if (B(a.nearest) < b.nearest) b.nearest = a.nearest, b.ties = a.ties;
    else if (B(a.nearest) == b.nearest) b.ties += a.ties;
  }
  DML_FN T violation(T s, T farthest, const SlotSums<T>& k) const {
    return distance_of<Kind>(s) - (k.ties > 0 ? k.nearest : farthest) + margin;
  }
  template <class Slots> DML_FN void close(Positives<T> p, const Limits<T>&, const Sums<T>& r, Slots k, T* values,
                                           T* counts) const {
    values[0] = counts[0] = 0;
    for (long long i = 0; i < p.count && r.ties > 0; ++i) {
      const T value = max(violation(p[i], r.farthest, k(i)), T(0));
      values[0] += value;
      counts[0] += every > 0 || value > 0 ? T(1) : T(0);
    }
  }
  template <class Slots> DML_FN Slopes<T> weigh(Positives<T>, const Limits<T>&, const Sums<T>& r, Slots,
                                                const T* cotangents) const {
    return {r.ties > 0 ? cotangents[0] : T(0), r.farthest, r.ties};
  }
  DML_FN bool is_active(T s, const Slopes<T>& w, const SlotSums<T>& k) const {
    return w.ties > 0 && violation(s, w.farthest, k) > 0;
  }
  DML_FN T slope_positive(T s, const Slopes<T>& w, const SlotSums<T>& k) const {
    return is_active(s, w, k) ? w.weight * distance_slope_of<Kind>(s) : T(0);
  }
  DML_FN SlotLimits<T> reweigh_slot(const SlotLimits<T>&, const SlotSums<T>& k, const Slopes<T>& w, T s) const {
    if (!is_active(s, w, k)) return absent_slot();
    return k.ties > 0 ? SlotLimits<T>{k.nearest, 1 / k.ties} : SlotLimits<T>{w.farthest, 1 / w.ties};
  }
  template <class V> DML_FN V tally(V d, const SlotLimits<V>& l) const { return select(d == l.near, l.share, splat<V>(0)); }
  template <class V> DML_FN V finish(V s, V, V tally, const Slopes<V>& w) const {
    return -w.weight * tally * distance_slope_of<Kind>(s);
  }
};
template <class T, bool> using TripletSemihardElseFarthest = TripletElseFarthest<T, kEuclidean>;
template <class T, bool> using TripletSemihardElseFarthestSquared = TripletElseFarthest<T, kSquaredEuclidean>;

struct triplet_else_farthest_functors {
  template <class Table> static void list(Table& t) {
    t.template add<TripletSemihardElseFarthest>("triplet_semihard_else_farthest");
    t.template add<TripletSemihardElseFarthestSquared>("triplet_semihard_else_farthest_squared");
  }
};

DML_END
