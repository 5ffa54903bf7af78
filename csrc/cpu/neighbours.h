// Ranks of every query's positives among all references, by counting: no sort of similarities, no top-k, no N x N memory.
// Order: by descending similarity; a negative that is exactly as similar as a positive comes before it.
// Plain data shared by the planner (ranking.cpp, any CPU) and the kernels of each instruction set (neighbours.cpp).
#pragma once
#include <cstdint>
#include <memory>

#include "dml/platform.h"

namespace dml {

template <class T> struct CountOf;                                     // as wide as the number, so that masks can be added
template <> struct CountOf<float> { using type = int32_t; };
template <> struct CountOf<double> { using type = int64_t; };

// Vectors lie in panels [panel][D][width], in class order. Every product is one chain of additions over D, whatever its place,
// so equal vectors have equal similarities to the last bit, and s(i, j) = s(j, i): ties are exact.
template <class T> struct Ranking {
  const T *queries, *references;                                       // panels; the same in self mode
  const T *query_halves, *reference_halves;                            // half the squared norms (euclidean), else nullptr
  int64_t Q, N, D;
  bool self;                                                           // leave one out: no pair of a query with itself
  const int64_t *first, *last;                                         // [Q]: the references of the query's class
  const int64_t *length, *held;                                        // [Q]: positives in all parts, and in earlier ones
  int64_t q0, q1;                                                      // queries of this run; q0 begins a panel
  const int64_t* start;  // [panels of queries]: where the thresholds of a panel lie
  const int64_t* most;  // [panels of queries]: positives per query, at most
  const int64_t* spread;  // [panels of queries]: cells of a query's tree; 0: few positives
  T* thresholds;  // similarities of positives; see at()
  typename CountOf<T>::type* counts;  // [threads][cells]
  int64_t cells;
  int threads;
  unsigned char* scratch;  // `threads` pieces
  int64_t scratch_bytes;  // of one piece

  // Few positives: [positive][query], compared a register of queries at a time. Many: a tree per query, whose leaves are its
  // positives in descending order; behind them the lowest of every register of leaves, and so on up to one register. See intervals.h.
  DML_FN int64_t at(int64_t query, int64_t positive, int64_t width) const {
    const int64_t panel = query / width, place = query % width;
    return start[panel] + (spread[panel] == 0 ? positive * width + place : place * spread[panel] + positive);
  }
};

template <class T> struct RankingKernels {
  const char* level;
  int64_t width;  // of a panel
  void (*pack)(const T* from, const int64_t* order, int64_t rows, int64_t depth, bool normalise, T* panels, T* halves,
               int threads);
  int64_t (*scratch_bytes)(const Ranking<T>&);
  void (*positives)(const Ranking<T>&);  // fills the thresholds, unsorted
  void (*count)(const Ranking<T>&);  // adds to the counts; in a tree per interval between leaves
};

struct Vectors {  // rows of T, contiguous, in any order of labels
  const void* data;
  const int64_t* labels;
  int64_t rows;
};

enum class Metric { cosine, dot, euclidean };

// Per query: number of positives, rank of the first one, share of positives among the R first (R: their number), average
// precision cut at R, average precision, then for every k the positives among the k first. values is double [5 + ks, queries];
// a query without a positive has zeros. `memory` bounds thresholds and counts in bytes; up to `few` positives each is compared;
// 0: the planner decides.
void rank_positives(bool is_double, const Vectors& queries, const Vectors* references, int64_t width, Metric metric,
                    const int64_t* ks, int64_t k_count, double* values, int threads, int64_t memory, int64_t few);

// The same where the references come in parts, which need not be in memory together. For every run of queries: begin(), then
// enter() and positives() for every part, then enter() and count() for every part, then conclude().
class PartedRanking {
 public:
  virtual ~PartedRanking() = default;
  virtual int64_t runs() const = 0;
  virtual void begin(int64_t run) = 0;
  virtual void enter(const Vectors* part) = 0;  // nullptr: the queries themselves, none of which finds itself
  virtual void positives() = 0;
  virtual void count() = 0;
  virtual void conclude(const int64_t* ks, int64_t k_count, double* values) = 0;  // double [5 + ks, queries], zeros at first
};

// lengths: [queries] positives in all parts; with_itself: the queries are a part; rows: of all parts.
std::unique_ptr<PartedRanking> rank_in_parts(bool is_double, const Vectors& queries, const int64_t* lengths, bool with_itself,
                                             int64_t rows, int64_t width, Metric metric, int threads, int64_t memory,
                                             int64_t few);

}  // namespace dml
