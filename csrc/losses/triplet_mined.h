// Triplet margin loss with one negative per positive or per anchor. Schroff, Kalenichenko, Philbin, CVPR 2015 (semi-hard);
// Hermans, Beyer, Leibe, 2017 (batch-hard); Xuan, Stylianou, Pless, WACV 2020 (easy positive). Beside triplet.h, whose functors
// take all negatives: a header takes seconds to compile.
#pragma once
#include "dml/contract.h"

DML_BEGIN

// One triplet's value and derivative.
template <class T> struct TripletTerm {
  T margin, smooth;
  DML_FN T value(T violation) const { return smooth > 0 ? softplus(violation) : max(violation, T(0)); }
  DML_FN T slope(T violation) const { return smooth > 0 ? sigmoid(violation) : violation > 0 ? T(1) : T(0); }
};

// The nearest negative with d_ap < d_an <= d_ap + margin of every positive. Ties share the gradient evenly.
template <class T> struct TripletNearestBeyond : TripletTerm<T> {
  static constexpr int kValues = 1;
  static constexpr bool kSlots = true, kReweighs = true;
  static constexpr const char* kOptions = "margin smooth";
  using TripletTerm<T>::margin;
  DML_FN bool fits() const { return true; }

  template <class V> using Limits = Nothing<V>;
  template <class V> using Sums = Nothing<V>;
  template <class V> struct Slopes { V weight; };
  template <class V> struct SlotLimits { V near, last; };  // after the stream: the chosen distance and its share
  template <class V> struct SlotSums { V nearest, ties; };

  DML_FN Limits<T> open(Positives<T>) const { return {}; }
  DML_FN SlotLimits<T> open_slot(T s) const { return {distance(s), distance(s) + margin}; }
  DML_FN SlotLimits<T> absent_slot() const { return {T(-1), T(-1)}; }
  DML_FN Sums<T> nothing() const { return {}; }
  DML_FN SlotSums<T> nothing_slot() const { return {T(100), T(0)}; }
  template <class V> DML_FN V measure(V s) const { return distance(s); }
  template <class V> DML_FN void collect(V d, const SlotLimits<V>& l, Sums<V>&, SlotSums<V>& k) const {
    d = select((d > l.near) & (d <= l.last), d, splat<V>(200));
    k.ties = select(d < k.nearest, splat<V>(1), k.ties + select(d == k.nearest, splat<V>(1), splat<V>(0)));
    k.nearest = min(d, k.nearest);
  }
  template <class A, class B> DML_FN void merge(const Sums<A>&, Sums<B>&) const {}
  template <class A, class B> DML_FN void merge_slot(const SlotSums<A>& a, SlotSums<B>& b) const {
    if (B(a.nearest) < b.nearest) b.nearest = a.nearest, b.ties = a.ties;
    else if (B(a.nearest) == b.nearest) b.ties += a.ties;
  }
  template <class Slots> DML_FN void close(Positives<T> p, const Limits<T>&, const Sums<T>&, Slots k, T* values,
                                           T* counts) const {
    values[0] = counts[0] = 0;
    for (long long i = 0; i < p.count; ++i) {
      const SlotSums<T> slot = k(i);
      const T value = slot.ties > 0 ? this->value(distance(p[i]) - slot.nearest + margin) : T(0);
      values[0] += value;
      counts[0] += value > 0 ? T(1) : T(0);
    }
  }
  template <class Slots> DML_FN Slopes<T> weigh(Positives<T>, const Limits<T>&, const Sums<T>&, Slots,
                                                const T* cotangents) const {
    return {cotangents[0]};
  }
  DML_FN T slope_of(T s, const SlotSums<T>& k) const {
    return k.ties > 0 ? this->slope(distance(s) - k.nearest + margin) : T(0);
  }
  DML_FN T slope_positive(T s, const Slopes<T>& w, const SlotSums<T>& k) const {
    return w.weight * slope_of(s, k) * distance_slope(s);
  }
  DML_FN SlotLimits<T> reweigh_slot(const SlotLimits<T>&, const SlotSums<T>& k, const Slopes<T>&, T s) const {
    return k.ties > 0 ? SlotLimits<T>{k.nearest, slope_of(s, k) / k.ties} : absent_slot();
  }
  template <class V> DML_FN V tally(V d, const SlotLimits<V>& l) const { return select(d == l.near, l.last, splat<V>(0)); }
  template <class V> DML_FN V finish(V s, V, V tally, const Slopes<V>& w) const {
    return -w.weight * tally * distance_slope(s);
  }
};
template <class T, bool> using TripletSemihardHardest = TripletNearestBeyond<T>;

// The farthest positive with the nearest negative of each anchor. Ties share the gradient evenly.
template <class T> struct TripletExtremes : TripletTerm<T> {
  static constexpr int kValues = 1;
  static constexpr bool kSlots = false;
  static constexpr const char* kOptions = "margin smooth";
  using TripletTerm<T>::margin;
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
  DML_FN bool has_triplet(Positives<T> p, const Sums<T>& r) const { return p.count && is_pair(r.highest); }
  DML_FN T violation(Positives<T> p, const Sums<T>& r) const { return distance(p.lowest()) - distance(r.highest) + margin; }
  DML_FN void close(Positives<T> p, const Limits<T>&, const Sums<T>& r, T* values, T* counts) const {
    values[0] = has_triplet(p, r) ? this->value(violation(p, r)) : T(0);
    counts[0] = values[0] > 0 ? T(1) : T(0);
  }
  DML_FN Slopes<T> weigh(Positives<T> p, const Limits<T>&, const Sums<T>& r, const T* cotangents) const {
    Slopes<T> w = {r.highest, T(0), p.lowest(), T(0)};
    if (has_triplet(p, r)) {
      const T weight = cotangents[0] * this->slope(violation(p, r));
      T same = 0;
      for (long long k = 0; k < p.count; ++k) same += p[k] == w.lowest ? T(1) : T(0);
      w.negative = -weight * distance_slope(r.highest) / r.ties;
      w.positive = weight * distance_slope(w.lowest) / same;
    }
    return w;
  }
  DML_FN T slope_positive(T s, const Slopes<T>& w) const { return s == w.lowest ? w.positive : T(0); }
  template <class V> DML_FN V slope_negative(V s, const Slopes<V>& w) const {
    return select(s == w.highest, w.negative, splat<V>(0));
  }
};
template <class T, bool> using TripletHard = TripletExtremes<T>;

// The nearest positive with the nearest negative beyond it of each anchor. Ties share the gradient evenly.
template <class T> struct TripletEasyPositive : TripletTerm<T> {
  static constexpr int kValues = 1;
  static constexpr bool kSlots = false;
  static constexpr const char* kOptions = "margin smooth";
  using TripletTerm<T>::margin;
  DML_FN bool fits() const { return true; }

  template <class V> struct Limits { V positive; };  // the nearest positive's distance
  template <class V> struct Sums { V nearest, ties; };
  template <class V> struct Slopes { V nearest, negative, easiest, positive; };

  DML_FN Limits<T> open(Positives<T> p) const {
    T nearest = 200;  // no positive: no negative lies beyond
    for (long long k = 0; k < p.count; ++k) nearest = min(nearest, distance(p[k]));
    return {nearest};
  }
  DML_FN Sums<T> nothing() const { return {T(100), T(0)}; }
  template <class V> DML_FN void collect(V s, const Limits<V>& l, Sums<V>& r) const {
    V d = distance(s);
    d = select(d > l.positive, d, splat<V>(200));
    r.ties = select(d < r.nearest, splat<V>(1), r.ties + select(d == r.nearest, splat<V>(1), splat<V>(0)));
    r.nearest = min(d, r.nearest);
  }
  template <class A, class B> DML_FN void merge(const Sums<A>& a, Sums<B>& b) const {
    if (B(a.nearest) < b.nearest) b.nearest = a.nearest, b.ties = a.ties;
    else if (B(a.nearest) == b.nearest) b.ties += a.ties;
  }
  DML_FN void close(Positives<T>, const Limits<T>& l, const Sums<T>& r, T* values, T* counts) const {
    values[0] = r.ties > 0 ? this->value(l.positive - r.nearest + margin) : T(0);
    counts[0] = values[0] > 0 ? T(1) : T(0);
  }
  DML_FN Slopes<T> weigh(Positives<T> p, const Limits<T>& l, const Sums<T>& r, const T* cotangents) const {
    Slopes<T> w = {r.nearest, T(0), l.positive, T(0)};
    if (r.ties > 0) {
      const T weight = cotangents[0] * this->slope(l.positive - r.nearest + margin);
      T same = 0;
      for (long long k = 0; k < p.count; ++k) same += distance(p[k]) == l.positive ? T(1) : T(0);
      w.negative = -weight / r.ties;
      w.positive = weight / same;
    }
    return w;
  }
  DML_FN T slope_positive(T s, const Slopes<T>& w) const {
    return distance(s) == w.easiest ? w.positive * distance_slope(s) : T(0);
  }
  template <class V> DML_FN V slope_negative(V s, const Slopes<V>& w) const {
    return select(distance(s) == w.nearest, w.negative * distance_slope(s), splat<V>(0));
  }
};
template <class T, bool> using TripletEasyPositiveSemihard = TripletEasyPositive<T>;

struct triplet_mined_functors {
  template <class Table> static void list(Table& t) {
    t.template add<TripletSemihardHardest>("triplet_semihard_hardest");
    t.template add<TripletHard>("triplet_hard");
    t.template add<TripletEasyPositiveSemihard>("triplet_easy_positive_semihard");
  }
};

DML_END
