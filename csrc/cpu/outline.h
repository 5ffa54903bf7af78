// All of a pass but its numbers: its order, classes, functors and plan. Made from labels, relations and names of functors, so that
// a plan can be asked for without a vector.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "cpu/plan.h"

namespace dml {

struct FunctorCall {
  std::string functor;
  std::vector<double> options;
  const void* given = nullptr;  // T [K, A] in the caller's order, copied by a pass
  const void* windows = nullptr;  // T [4, A], the same: lowest and highest positive, lowest and highest negative that count
  double semihard = -1;  // margin of the semi-hard pairs, which alone count; below 0: all do
};

struct Rows {  // of one side, in any order
  const int64_t* labels = nullptr;  // not read where positives are listed
  int64_t rows = 0;
};

struct Outline {
  int64_t A = 0, N = 0, D = 0, stride = 0;
  bool self = false, has_windows = false, has_partners = false;
  int threads = 1;
  std::vector<int64_t>
      bounds;  // where ranks divide the pass: the anchors of the classes of rank r are [bounds[r], bounds[r + 1])
  Relations relations;
  std::shared_ptr<const Order> anchors, references;  // the same for a batch with itself
  std::vector<int64_t> own;
  Classes classes;
  std::vector<FunctorState> functors;
  std::vector<double> margins;  // of the choices of semi-hard pairs
  int value_count = 0;
  int64_t table_cells = 0, slope_cells = 0, given_fields = 0, centres = 1;
  Plan plan;

  double work() const { return double(A) * double(N) * double(D); }  // multiplications of one product of all similarities
};

// T is the type of the pass's numbers. Throws std::invalid_argument for functors, options or relations that do not fit.
template <class T>
Outline outline_of(const Rows& anchors, const Rows* references, int64_t width, const std::vector<FunctorCall>& calls,
                   const Relations& relations, const PlanRequest& request, Orders& orders);

// The shape of the pass for the kernels, without any memory.
template <class T> Problem<T> problem_of(const Outline& outline);

// The plan as numbers with names, and the bytes a pass takes: kept from forward to backward, and during each of them.
template <class T> std::vector<std::pair<std::string, int64_t>> summary(const Outline& outline);

// Cells of an anchor's sorted ends, 0 where a functor does not search.
template <class T> int64_t search_cells_of(const FunctorState& state, int64_t most_positives);

// Spans of distance that the semi-hard negatives of an anchor lie in, at most: those of neighbouring positives are one where they
// overlap, so the starts of two are farther apart than the margin.
int64_t most_spans_of(const Outline& outline, double margin);

// Whether threads own anchors in backward, else references; slots force them to own anchors.
bool owns_rows_in_backward(const Outline& outline);

}  // namespace dml
