// Normalised softmax: scaled cosines without a margin. Wang et al., NormFace, ACM MM 2017; Zhai and Wu, BMVC 2019;
// scale = 1 / temperature.
#pragma once
#include "dml/softmax.h"

DML_BEGIN

struct norm_softmax_functors {
  template <class Table> static void list(Table& t) { t.template add<ScaledSoftmax>("norm_softmax"); }
};

DML_END
