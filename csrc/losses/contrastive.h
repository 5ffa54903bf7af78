// Contrastive loss. Hadsell, Chopra, LeCun, CVPR 2006; hinges not squared, as usual in metric learning libraries.
// One functor per distance.
#pragma once
#include "dml/contract.h"

DML_BEGIN

template <class T, DistanceKind Kind> struct ContrastivePairs {
  static constexpr int kValues = 2;                                    // positives and negatives are averaged apart
  static constexpr bool kSlots = false;
  static constexpr const char* kOptions = "positive_margin negative_margin";
  T positive_margin, negative_margin;
  DML_FN bool fits() const { return true; }

  template <class V> using Limits = Nothing<V>;
  template <class V> struct Sums { V hinge, active; };
  template <class V> struct Slopes { V negative, positive; };

  DML_FN Limits<T> open(Positives<T>) const { return {}; }
  DML_FN Sums<T> nothing() const { return {T(0), T(0)}; }
  template <class V> DML_FN void collect(V s, const Limits<V>&, Sums<V>& r) const {
    V hinge = negative_margin - distance_of<Kind>(s);
    auto active = hinge > splat<V>(0);
    r.hinge += select(active, hinge, splat<V>(0));
    r.active += select(active, splat<V>(1), splat<V>(0));
  }
  template <class A, class B> DML_FN void merge(const Sums<A>& a, Sums<B>& b) const {
    b.hinge += a.hinge;
    b.active += a.active;
  }
  DML_FN void close(Positives<T> p, const Limits<T>&, const Sums<T>& r, T* values, T* counts) const {
    T hinge = 0, active = 0;
    for (long long k = 0; k < p.count; ++k) {
      T h = distance_of<Kind>(p[k]) - positive_margin;
      if (h > 0) hinge += h, active += 1;
    }
    values[0] = hinge, counts[0] = active;
    values[1] = r.hinge, counts[1] = r.active;
  }
  DML_FN Slopes<T> weigh(Positives<T>, const Limits<T>&, const Sums<T>&, const T* cotangents) const {
    return {cotangents[1], cotangents[0]};
  }
  DML_FN T slope_positive(T s, const Slopes<T>& w) const {
    return distance_of<Kind>(s) > positive_margin ? w.positive * distance_slope_of<Kind>(s) : T(0);
  }
  template <class V> DML_FN V slope_negative(V s, const Slopes<V>& w) const {
    return select(distance_of<Kind>(s) < splat<V>(negative_margin), -w.negative * distance_slope_of<Kind>(s), splat<V>(0));
  }
};

// No exponentials: one form.
template <class T, bool> using Contrastive = ContrastivePairs<T, kEuclidean>;
template <class T, bool> using ContrastiveSquaredEuclidean = ContrastivePairs<T, kSquaredEuclidean>;
template <class T, bool> using ContrastiveCosine = ContrastivePairs<T, kCosineDistance>;
template <class T, bool> using ContrastiveDot = ContrastivePairs<T, kDotDistance>;

struct contrastive_functors {
  template <class Table> static void list(Table& t) {
    t.template add<Contrastive>("contrastive");
    t.template add<ContrastiveSquaredEuclidean>("contrastive_squared_euclidean");
    t.template add<ContrastiveCosine>("contrastive_cosine");
    t.template add<ContrastiveDot>("contrastive_dot");
  }
};

DML_END
