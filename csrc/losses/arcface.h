// ArcFace: the target's angle is widened by a margin. Deng et al., CVPR 2019, eq. 3. Beyond pi - margin, where cos(angle + margin)
// would rise again, the target's cosine is lowered by a constant instead.
#pragma once
#include "dml/softmax.h"

DML_BEGIN

template <class T, bool Wide> using ArcFace = SoftmaxOver<T, Wide, AngularMarginTarget<T>>;

struct arcface_functors {
  template <class Table> static void list(Table& t) { t.template add<ArcFace>("arcface"); }
};

DML_END
