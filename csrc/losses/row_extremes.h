// The lowest and highest similarity of each anchor's positives and negatives: what miners derive their windows from. No loss:
// its values take part in a choice of pairs and have no derivative.
#pragma once
#include "dml/contract.h"

DML_BEGIN

template <class T> struct Extremes {
  static constexpr int kValues = 4;                                    // counts say whether there is such a pair
  static constexpr bool kSlots = false;
  static constexpr const char* kOptions = "absent";                    // the value where there is no such pair
  T absent;
  DML_FN bool fits() const { return true; }

  template <class V> using Limits = Nothing<V>;
  template <class V> struct Sums { V lowest, highest; };
  template <class V> using Slopes = Nothing<V>;

  DML_FN Limits<T> open(Positives<T>) const { return {}; }
  DML_FN Sums<T> nothing() const { return {-T(no_pair()), T(no_pair())}; }
  template <class V> DML_FN void collect(V s, const Limits<V>&, Sums<V>& r) const {
    r.lowest = min(r.lowest, select(is_pair(s), s, splat<V>(-T(no_pair()))));
    r.highest = max(r.highest, s);
  }
  template <class A, class B> DML_FN void merge(const Sums<A>& a, Sums<B>& b) const {
    b.lowest = min(b.lowest, B(a.lowest));
    b.highest = max(b.highest, B(a.highest));
  }
  DML_FN void close(Positives<T> p, const Limits<T>&, const Sums<T>& r, T* values, T* counts) const {
    const bool some = is_pair(r.highest);
    for (int k = 0; k < 4; ++k) counts[k] = k < 2 ? T(p.count > 0) : T(some);
    values[0] = p.count ? p.lowest() : absent, values[1] = p.count ? p.highest() : absent;
    values[2] = some ? r.lowest : absent, values[3] = some ? r.highest : absent;
  }
  DML_FN Slopes<T> weigh(Positives<T>, const Limits<T>&, const Sums<T>&, const T*) const { return {}; }
  DML_FN T slope_positive(T, const Slopes<T>&) const { return T(0); }
  template <class V> DML_FN V slope_negative(V, const Slopes<V>&) const { return splat<V>(0); }
};

template <class T, bool> using RowExtremes = Extremes<T>;

struct row_extremes_functors {
  template <class Table> static void list(Table& t) { t.template add<RowExtremes>("row_extremes"); }
};

DML_END
