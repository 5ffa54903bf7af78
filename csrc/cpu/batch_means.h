// The means of all pairs of a batch with itself, for functors that take them, and their part of the gradient. The arithmetic is in
// pair_means.h.
#pragma once
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "cpu/levels.h"
#include "cpu/memory.h"

namespace dml {

template <class T> class BatchMeans {
 public:
  // Before the first stage. A mean that is not finite leaves no anchor a value.
  void find(const Kernels<T>& kernels, const Problem<T>& p, const std::vector<FunctorState>& functors, bool* broken) {
    for (const FunctorState& f : functors) {
      if (!f.has_means || p.A == 0) continue;
      double* total = sums_.resize(2 * p.D);
      means_ = kernels.pair_means(p, total, total + p.D);
      std::fill_n(static_cast<T*>(f.given_at), p.stride, T(means_.positive));
      std::fill_n(static_cast<T*>(f.given_at) + p.stride, p.stride, T(means_.negative));
      if (!std::isfinite(means_.positive + means_.negative)) std::fill_n(broken, p.A, true);
    }
  }

  // After the last stage, from the last two slopes of all anchors.
  void add(const Kernels<T>& kernels, const Problem<T>& p, const std::vector<FunctorState>& functors, T* grads) {
    double* total = sums_.data();
    for (const FunctorState& f : functors) {
      if (!f.has_means || p.A == 0) continue;
      const T *positive = static_cast<T*>(f.slopes_at) + (f.slopes - 2) * p.stride, *negative = positive + p.stride;
      const double by_positive = 2 * std::accumulate(positive, positive + p.A, 0.0) / std::max(means_.positive_pairs, 1.0),
                   by_negative = 2 * std::accumulate(negative, negative + p.A, 0.0) / std::max(means_.negative_pairs, 1.0);
      kernels.add_pair_means(p, by_positive, by_negative, total, total + p.D, grads);
    }
  }

 private:
  Buffer<double> sums_;  // of all vectors, and of those of a class
  PairMeans means_{};
};

}  // namespace dml
