// CosFace: the target's cosine is lowered by a margin. Wang et al., CVPR 2018, eq. 4.
#pragma once
#include "losses/norm_softmax.h"

DML_BEGIN

template <class T> struct CosineMarginTarget {
  static constexpr const char* kOptions = "scale margin";
  T scale, margin;
  DML_FN T entry(T s) const { return (s - margin) * scale; }
  DML_FN T slope(T) const { return scale; }
  DML_FN T kept() const { return 1; }
};
template <class T, bool Wide> using CosFace = SoftmaxOver<T, Wide, CosineMarginTarget<T>>;

struct cosface_functors {
  template <class Table> static void list(Table& t) { t.template add<CosFace>("cosface"); }
};

DML_END
