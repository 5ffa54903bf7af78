// Neighbourhood components analysis: softmax over -c d^2 to all others, several positives sharing the target.
// Goldberger, Roweis, Hinton, Salakhutdinov, NIPS 2004. With unit vectors exp(-c d^2) = exp(2 c s - 2 c): a scaled softmax.
#pragma once
#include "dml/softmax.h"

DML_BEGIN

struct nca_functors {
  template <class Table> static void list(Table& t) { t.template add<ScaledSoftmax>("nca"); }
};

DML_END
