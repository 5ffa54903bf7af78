// N-pair loss on raw dot products, whose exponents have no bounds: only the form with running maxima.
// Sohn, NIPS 2016, section 3.2.
#pragma once
#include "dml/against_negatives.h"

DML_BEGIN

template <class T, bool> using NPair = PositivesAgainstNegatives<T, true>;

struct n_pair_functors {
  template <class Table> static void list(Table& t) { t.template add<NPair>("n_pair"); }
};

DML_END
