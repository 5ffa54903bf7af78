// NT-Xent: every positive against all negatives, with the similarity itself as target and scale 1 / temperature.
// Sohn, NIPS 2016; Chen et al., SimCLR, ICML 2020, eq. 1.
#pragma once
#include "dml/against_negatives.h"

DML_BEGIN

struct nt_xent_functors {
  template <class Table> static void list(Table& t) { t.template add<PositivesAgainstNegatives>("nt_xent"); }
};

DML_END
