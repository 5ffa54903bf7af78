// Tuplet margin loss: every positive, moved towards its anchor's opposite by an angle, against all negatives of the anchor.
// Yu and Tao, ICCV 2019.
#pragma once
#include "dml/against_negatives.h"

DML_BEGIN

struct tuplet_margin_functors {
  template <class Table> static void list(Table& t) { t.template add<PositivesAgainstNegatives>("tuplet_margin"); }
};

DML_END
