// SoftTriple: the similarity of a class is the mean of its centres' weighted by their softmax. Qian et al., ICCV 2019, eq. 5-7.
#pragma once
#include "dml/centres.h"

DML_BEGIN

template <class T> struct SoftCentres {
  T centres, gamma;
  template <class V> struct Fold { V similarity, highest, factor; };  // the weight of s is exp((s - highest) / gamma) * factor
  template <class V> DML_FN Fold<V> fold(const V* s, long long count) const {
    V highest = s[0], sum = splat<V>(0), weighted = splat<V>(0);
    for (long long k = 1; k < count; ++k) highest = max(s[k], highest);
    for (long long k = 0; k < count; ++k) {
      const V weight = exp((s[k] - highest) * (1 / gamma));
      sum += weight, weighted += weight * s[k];
    }
    const V factor = splat<V>(1) / sum;
    return {weighted * factor, highest, factor};
  }
  template <class V> DML_FN V share(V s, const Fold<V>& f) const {
    return exp((s - f.highest) * (1 / gamma)) * f.factor * (splat<V>(1) + (s - f.similarity) * (1 / gamma));
  }
};

template <class T, bool Wide> struct SoftTriple : SoftmaxOverClasses<T, Wide, SoftCentres<T>, CosineMarginTarget<T>> {
  static constexpr const char* kOptions = "centres gamma scale margin";
};

struct soft_triple_functors {
  template <class Table> static void list(Table& t) { t.template add<SoftTriple>("soft_triple"); }
};

DML_END
