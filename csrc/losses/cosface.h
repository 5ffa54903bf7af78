// CosFace: the target's cosine is lowered by a margin. Wang et al., CVPR 2018, eq. 4.
#pragma once
#include "dml/softmax.h"

DML_BEGIN

template <class T, bool Wide> using CosFace = SoftmaxOver<T, Wide, CosineMarginTarget<T>>;

struct cosface_functors {
  template <class Table> static void list(Table& t) { t.template add<CosFace>("cosface"); }
};

DML_END
