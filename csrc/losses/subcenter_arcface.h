// Sub-centre ArcFace: the nearest centre of a class counts, then the target's angle is widened. Deng et al., ECCV 2020, section 3.
#pragma once
#include "dml/centres.h"

DML_BEGIN

template <class T> struct NearestCentre {
  T centres;
  template <class V> struct Fold { V similarity, share; };  // exact ties of the nearest share the gradient
  template <class V> DML_FN Fold<V> fold(const V* s, long long count) const {
    V highest = s[0], ties = splat<V>(1);
    for (long long k = 1; k < count; ++k) {
      ties = select(s[k] > highest, splat<V>(1), ties + select(s[k] == highest, splat<V>(1), splat<V>(0)));
      highest = max(s[k], highest);
    }
    return {highest, splat<V>(1) / ties};
  }
  template <class V> DML_FN V share(V s, const Fold<V>& f) const { return select(s == f.similarity, f.share, splat<V>(0)); }
};

template <class T, bool Wide> struct SubCenterArcFace : SoftmaxOverClasses<T, Wide, NearestCentre<T>, AngularMarginTarget<T>> {
  static constexpr const char* kOptions = "centres scale cosine sine drop";
};

struct subcenter_arcface_functors {
  template <class Table> static void list(Table& t) { t.template add<SubCenterArcFace>("subcenter_arcface"); }
};

DML_END
