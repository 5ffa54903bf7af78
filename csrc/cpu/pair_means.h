// The mean similarities of all positive and of all negative pairs of a batch with itself, in O(N D). With unit vectors u, the sum S of
// all of them and S_c of a class, the positives add up to sum_c |S_c|^2 - sum |u|^2, and the negatives to |S|^2 - sum_c |S_c|^2.
#pragma once
#include <cstring>

#include "cpu/strip.h"

DML_BEGIN

// The sum of the vectors of one class.
template <class T> static void add_up(const Problem<T>& p, int64_t from, int64_t to, double* sum) {
  memset(sum, 0, p.D * sizeof(double));
  for (int64_t i = from; i < to; ++i)
    for (int64_t k = 0; k < p.D; ++k) sum[k] += double(p.anchors[i * p.D + k]);
}

template <class T> static double sum_of_squares(const T* x, int64_t count) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < count; ++k) sum += double(x[k]) * double(x[k]);
  return sum;
}

template <class T> static PairMeans pair_means(const Problem<T>& p, double* total, double* of_class) {
  double same = 0, same_pairs = 0;
  memset(total, 0, p.D * sizeof(double));
  for (int64_t from = 0, to; from < p.A; from = to) {
    to = p.row_last[from];
    add_up(p, from, to, of_class);
    for (int64_t k = 0; k < p.D; ++k) total[k] += of_class[k];
    same += sum_of_squares(of_class, p.D), same_pairs += double(to - from) * double(to - from);
  }
  PairMeans m{};
  m.positive_pairs = same_pairs - double(p.A), m.negative_pairs = double(p.A) * double(p.A) - same_pairs;
  m.positive = (same - sum_of_squares(p.anchors, p.A * p.D)) / (m.positive_pairs > 1 ? m.positive_pairs : 1);
  m.negative = (sum_of_squares(total, p.D) - same) / (m.negative_pairs > 1 ? m.negative_pairs : 1);
  return m;
}

// Adds the gradient of `positive` times the sum of the positives' similarities and `negative` times that of the negatives', each
// pair counted once from both sides.
template <class T> static void add_pair_means(const Problem<T>& p, double positive, double negative, const double* total,
                                              double* of_class, T* grads) {
  for (int64_t from = 0, to; from < p.A; from = to) {
    to = p.row_last[from];
    add_up(p, from, to, of_class);
    for (int64_t k = 0; k < p.D; ++k) of_class[k] = positive * of_class[k] + negative * (total[k] - of_class[k]);
    for (int64_t i = from; i < to; ++i)
      for (int64_t k = 0; k < p.D; ++k) grads[i * p.D + k] += T(of_class[k] - positive * double(p.anchors[i * p.D + k]));
  }
}

DML_END
