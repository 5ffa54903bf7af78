// Proxy-NCA with the positive in the denominator, as libraries define it. Movshovitz-Attias et al., ICCV 2017, eq. 7.
// With unit vectors exp(-c d^2) = exp(2 c s - 2 c), so it is the scaled softmax with scale 2 c.
#pragma once
#include "dml/softmax.h"

DML_BEGIN

struct proxy_nca_functors {
  template <class Table> static void list(Table& t) { t.template add<ScaledSoftmax>("proxy_nca"); }
};

DML_END
