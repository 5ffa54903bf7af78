// A linear classifier: softmax cross-entropy over raw dot products, which have no bound, so only the wide form exists.
#pragma once
#include "dml/softmax.h"

DML_BEGIN

template <class T, bool> using LinearSoftmax = SoftmaxOver<T, true, ScaledTarget<T>>;

struct cross_entropy_functors {
  template <class Table> static void list(Table& t) { t.template add<LinearSoftmax>("cross_entropy"); }
};

DML_END
