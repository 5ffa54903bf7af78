// Ranks of every query's positives among all references on a GPU, by counting as csrc/cpu/neighbours.h does: no N x N memory, no
// top-k. Raw device pointers, plain data and a stream in, error text out (nullptr: none); nothing allocates or waits.
//
// The caller orders rows by class, cuts the queries into runs whose positives fit its memory, and sorts each query's positives
// between `positives` and `count` (dmlcore/kernels/cuda_neighbours.py).
#pragma once
#include <cstdint>

namespace dml {

template <class T> struct RankingProblem {
  const T *queries, *references;  // arranged rows [.][stride] in class order; the same pointer in self mode
  const T *query_halves, *reference_halves;  // half the squared norms (euclidean), else nullptr
  int Q, N, stride;
  bool self;  // leave one out: no pair of a query with itself
  const int64_t *first, *last;  // [Q]: the references of the query's class
  const int64_t* starts;  // [Q + 1]: where a query's positives lie among those of all queries
  int q0, q1;  // queries of this run
  T* thresholds;  // similarities of the run's positives, at starts[i] - starts[q0]
  int* counts;  // alike: negatives at least as similar, or in that interval (is_searched)
  int few;  // up to so many positives each is compared, more are searched; at most kMostFew
  bool searches;  // some query has more than `few`
};

constexpr int kMostFew = 16;  // thresholds per row in shared memory

int64_t ranking_stride(int64_t width);  // of arranged rows: zeros fill the last step of a product

// to[i] = from[order[i]], in the metric's form, and half its squared norm where `halves` is given.
template <class T>
const char* ranking_arrange(const T* from, const int64_t* order, int64_t rows, int64_t width, bool normalise, T* to, T* halves,
                            void* stream);
template <class T> const char* ranking_positives(const RankingProblem<T>&, void* stream);
template <class T> const char* ranking_count(const RankingProblem<T>&, void* stream);  // counts must be zero

// Per query: see dmlcore/evaluation/plain.py. values is [5 + k_count, columns], zero where a query has no positive.
template <class T>
const char* ranking_conclude(const RankingProblem<T>&, const int64_t* order, const int64_t* ks, int k_count, int64_t columns,
                             double* values, void* stream);

}  // namespace dml
