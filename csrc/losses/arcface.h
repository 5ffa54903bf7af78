// ArcFace: the target's angle is widened by a margin. Deng et al., CVPR 2019, eq. 3. Beyond pi - margin, where cos(angle + margin)
// would rise again, the target's cosine is lowered by a constant instead.
#pragma once
#include "losses/norm_softmax.h"

DML_BEGIN

template <class T> struct AngularMarginTarget {
  static constexpr const char* kOptions = "scale cosine sine drop";    // of the margin; drop = margin * sin(margin)
  T scale, cosine, sine, drop;
  // sin(angle) and its derivative in s; both 0 below the resolution of the cosine, where the derivative has no bound.
  DML_FN static T height(T s) {
    const T q = 1 - s * s;
    return q > 4 * Limit<T>::epsilon ? q * reciprocal_sqrt(q) : T(0);
  }
  DML_FN static T height_slope(T s) {
    const T q = 1 - s * s;
    return q > 4 * Limit<T>::epsilon ? -s * reciprocal_sqrt(q) : T(0);
  }
  DML_FN T entry(T s) const { return scale * (s >= -cosine ? s * cosine - height(s) * sine : s - drop); }
  DML_FN T slope(T s) const { return scale * (s >= -cosine ? cosine - height_slope(s) * sine : T(1)); }
  DML_FN T kept() const { return 1; }
};
template <class T, bool Wide> using ArcFace = SoftmaxOver<T, Wide, AngularMarginTarget<T>>;

struct arcface_functors {
  template <class Table> static void list(Table& t) { t.template add<ArcFace>("arcface"); }
};

DML_END
