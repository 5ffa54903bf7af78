// Smooth-AP. Brown, Xie, Kalogeiton, Zisserman, ECCV 2020, eq. 5-8: the rank of a positive is a sum of sigmoids of similarity
// differences. Per anchor: 1 - mean over positives k of a_k / (a_k + n_k), a_k the rank among positives, n_k the negatives above it.
// In a batch compared with itself the anchor is its own nearest positive, of similarity 1 (given[0] = 1).
#pragma once
#include "dml/contract.h"

DML_BEGIN

template <class T> struct SmoothAveragePrecision {
  static constexpr int kValues = 1, kGiven = 1;
  static constexpr bool kSlots = true, kReweighs = true, kOnce = true, kSlopesTogether = true, kSteps = true;
  static constexpr const char* kOptions = "temperature";
  T temperature;
  DML_FN bool fits() const { return true; }

  template <class V> struct Limits { V own; };
  template <class V> struct Sums {
    V above_own, rank_own;
  };  // of the anchor itself: negatives above, rank where that is settled
  template <class V> struct Slopes { V weight, own; };
  template <class V> struct SlotLimits { V s, weight; };
  template <class V> struct SlotSums { V above, slope, rank; };  // negatives above, d above / d x, the rank among positives

  // e^-|x| gives sigmoid and derivative without overflow, and exactly 0 for no pair
  template <class V> DML_FN V scaled(V difference) const { return difference * (1 / temperature); }
  template <class V> static DML_FN V decay(V x) { return exp(min(x, -x)); }
  template <class V> static DML_FN V step(V x, V u) { return select(x > splat<V>(0), splat<V>(1), u) / (splat<V>(1) + u); }
  template <class V> static DML_FN V step_slope(V u) { return u / ((splat<V>(1) + u) * (splat<V>(1) + u)); }
  // Beyond this a step is 0 or 1 to less than the rounding of a rank, which is 1 at least: e^-32 = 1e-14, e^-60 = 9e-27.
  static constexpr T far = sizeof(T) == 4 ? T(32) : T(60);
  // Classes that are apart keep all lanes there, and need no exponential.
  template <class V> static DML_FN bool is_near(V x) {
    if constexpr (sizeof(V) == sizeof(T)) return !(max(x, -x) >= far);  // NaN is near
    else return any((max(x, -x) >= splat<V>(far)) == 0);
  }
  DML_FN T step_at(T difference) const { return step(scaled(difference), decay(scaled(difference))); }
  DML_FN T step_slope_at(T difference) const { return step_slope(decay(scaled(difference))); }

  DML_FN Limits<T> open(Positives<T>, const T* given) const { return {given[0]}; }
  DML_FN SlotLimits<T> open_slot(T s) const { return {s, T(0)}; }
  DML_FN SlotLimits<T> absent_slot() const { return {T(1e9), T(0)}; }
  DML_FN Sums<T> nothing() const { return {T(0), T(0)}; }
  DML_FN SlotSums<T> nothing_slot() const { return {T(0), T(0), T(0)}; }
  template <class V> DML_FN V measure(V s) const { return s; }
  template <class V> DML_FN void once(V s, Sums<V>& r) const {
    const V x = scaled(s - splat<V>(1));
    r.above_own += is_near(x) ? step(x, decay(x)) : select(x > splat<V>(0), splat<V>(1), splat<V>(0));
  }
  template <class V> DML_FN void collect(V s, const SlotLimits<V>& l, Sums<V>&, SlotSums<V>& k) const {
    V x = scaled(s - l.s);
    if (!is_near(x)) {
      k.above += select(x > splat<V>(0), splat<V>(1), splat<V>(0));
      return;
    }
    V u = decay(x), share = splat<V>(1) / (splat<V>(1) + u);
    k.above += select(x > splat<V>(0), splat<V>(1), u) * share;
    k.slope += u * share * share;
  }
  template <class A, class B> DML_FN void merge(const Sums<A>& a, Sums<B>& b) const {
    b.above_own += a.above_own;
    b.rank_own += a.rank_own;
  }
  template <class A, class B> DML_FN void merge_slot(const SlotSums<A>& a, SlotSums<B>& b) const {
    b.above += a.above;
    b.slope += a.slope;
    b.rank += a.rank;
  }
  DML_FN T own_rank(Positives<T> p) const {
    T rank = 1;
    for (long long k = 0; k < p.count; ++k) rank += step_at(p[k] - 1);
    return rank;
  }
  template <class Slots> DML_FN void close(Positives<T> p, const Limits<T>& l, const Sums<T>& r, Slots slots, T* values,
                                           T* counts) const {
    for (long long k = 0; k < p.count; ++k) {
      auto slot = slots(k);
      slot.rank = 1 + (l.own > 0 ? step_at(1 - p[k]) : T(0));
      for (long long q = 0; q < p.count; ++q) slot.rank += q == k ? T(0) : step_at(p[q] - p[k]);
      slots.put(k, slot);
    }
    close_settled(p, l, {r.above_own, l.own > 0 ? own_rank(p) : T(0)}, slots, values, counts);
  }
  template <class Slots> DML_FN void close_settled(Positives<T> p, const Limits<T>& l, const Sums<T>& r, Slots slots, T* values,
                                                   T* counts) const {
    T precision = l.own > 0 ? r.rank_own / (r.rank_own + r.above_own) : T(0);
    for (long long k = 0; k < p.count; ++k) {
      const auto slot = slots(k);
      precision += slot.rank / (slot.rank + slot.above);
    }
    values[0] = p.count ? 1 - precision / (T(p.count) + l.own) : T(0);
    counts[0] = p.count ? T(1) : T(0);
  }
  // Derivatives of -a / (a + n), times the number of positives
  static DML_FN T by_above(T rank, T above) { return rank / ((rank + above) * (rank + above)); }
  static DML_FN T by_rank(T rank, T above) { return -above / ((rank + above) * (rank + above)); }
  template <class Slots> DML_FN Slopes<T> weigh(Positives<T> p, const Limits<T>& l, const Sums<T>& r, Slots,
                                                const T* cotangents) const {
    return weigh_settled(p, l, {r.above_own, l.own > 0 ? own_rank(p) : T(0)}, cotangents);
  }
  DML_FN Slopes<T> weigh_settled(Positives<T> p, const Limits<T>& l, const Sums<T>& r, const T* cotangents) const {
    if (p.count == 0) return {T(0), T(0)};
    return {cotangents[0] / ((T(p.count) + l.own) * temperature), l.own > 0 ? by_above(r.rank_own, r.above_own) : T(0)};
  }
  template <class Slots>
  DML_FN void slopes_positive(Positives<T> p, const Limits<T>& l, const Sums<T>& r, const Slopes<T>& w, Slots slots,
                              T* to) const {
    const T own = l.own > 0 ? by_rank(own_rank(p), r.above_own) : T(0);
    for (long long k = 0; k < p.count; ++k) {
      const auto slot = slots(k);
      const T by = by_rank(slot.rank, slot.above);
      T slope = -by_above(slot.rank, slot.above) * slot.slope;
      if (l.own > 0) slope += (own - by) * step_slope_at(1 - p[k]);
      for (long long q = 0; q < p.count; ++q) {  // k above q, and q above k: the derivatives are alike
        if (q == k) continue;
        const T both = by * step_slope_at(p[k] - p[q]);
        to[q] += w.weight * both;
        slope -= both;
      }
      to[k] += w.weight * slope;
    }
  }

  // Settled: `slope` is then the whole slope of -a / (a + n) by the positive itself, in units of by_above.
  DML_FN T width() const { return temperature; }
  DML_FN bool has_own(const Limits<T>& l) const { return l.own > 0; }
  DML_FN SlotSums<T> settle(T above, T slope, T rank, T rank_slope) const {
    return {above, slope - above / rank * rank_slope, rank};
  }
  template <class S> DML_FN void settle_own(T above, T rank, S& r) const { r.above_own = above, r.rank_own = rank; }
  DML_FN T rank_weight(const SlotSums<T>& k) const { return by_rank(k.rank, k.above); }
  DML_FN T rank_weight_own(const Sums<T>& r) const { return by_rank(r.rank_own, r.above_own); }
  DML_FN T own_weight(const Slopes<T>& w) const { return w.own; }
  DML_FN T slope_settled(const SlotSums<T>& k, T among, const Slopes<T>& w) const {
    return w.weight * (among - by_above(k.rank, k.above) * k.slope);
  }
  template <class V> DML_FN V finish_settled(V tally, const Slopes<V>& w) const { return w.weight * tally; }

  DML_FN SlotLimits<T> reweigh_slot(const SlotLimits<T>& l, const SlotSums<T>& k, const Slopes<T>&, T) const {
    return {l.s, by_above(k.rank, k.above)};
  }
  template <class V> DML_FN V tally(V s, const SlotLimits<V>& l) const {
    const V x = scaled(s - l.s);
    return is_near(x) ? l.weight * step_slope(decay(x)) : splat<V>(0);
  }
  template <class V> DML_FN V finish(V s, V, V tally, const Slopes<V>& w) const {
    const V x = scaled(s - splat<V>(1));
    return w.weight * (is_near(x) ? tally + w.own * step_slope(decay(x)) : tally);
  }
};

template <class T, bool> using SmoothAp = SmoothAveragePrecision<T>;

struct smooth_ap_functors {
  template <class Table> static void list(Table& t) { t.template add<SmoothAp>("smooth_ap"); }
};

DML_END
