// Passes of a batch with itself that several ranks divide: each tile and each class is one rank's. A rank goes through the stages
// with its own part, and between them all ranks tell one another what they found of the anchors. The caller carries the numbers.
//   open      the classes of this rank give their anchors limits           -> limits of all anchors from the ranks they are of
//   collect   the tiles of this rank add to rows and columns               -> sums of this rank's anchors from all ranks, merged
//   close     the values of this rank's anchors
//   weigh     the gradient of its positives, and slopes of its anchors     -> slopes of all anchors from the ranks they are of
//   slope     the gradient of its tiles. The sum over the ranks is the gradient.
// Not for two threads at a time.
#pragma once
#include <memory>
#include <vector>

#include "cpu/board.h"
#include "cpu/passes.h"

namespace dml {

enum class Reduction { kDefault, kSum, kMean };  // of values: sum(values) / sum(counts), their sum, or their mean over anchors

class DividedPasses {
 public:
  // Throws std::invalid_argument as make_pass does, and for passes that cannot be divided. `request` says the rank.
  DividedPasses(bool is_double, const std::vector<PassRequest>& passes, const PlanRequest& request);
  // Of one batch that the ranks have told one another by Board::meet: each its labels, and behind them its vectors. `counts` are
  // the samples of each rank. The passes say the width, and how vectors are compared.
  DividedPasses(bool is_double, std::vector<PassRequest> passes, const PlanRequest& request, const Board& board,
                const std::vector<int64_t>& counts);

  // How many numbers there are of each rank's anchors. `take` writes them, pass after pass, and `put` sets them.
  std::vector<int64_t> sizes(Shared what) const;
  void take(Shared what, int rank, void* to) const;
  void put(Shared what, int rank, const void* numbers);
  void merge(const void* parts);  // the sums of this rank's anchors that each rank took, one rank's behind another's
  void tell_all(Shared what, Board& board);  // the same through memory that the ranks share: limits or slopes
  void merge_all(Board& board);  // sums

  void open();
  void collect();
  void close(void* values, void* counts);  // [V, A] of pass after pass
  // What the anchors of this rank add to: values [V] of pass after pass, counts [V], and anchors with a value above 0 [L].
  std::vector<double> sums(const void* values, const void* counts) const;
  // Makes of these, added up over all ranks, the term of each functor, T [L], by how its values are reduced. Returns the shares
  // of anchors with a value above 0.
  std::vector<double> reduce(const std::vector<double>& totals, const std::vector<Reduction>& reductions, void* terms);
  void weigh(const void* cotangents, double factor);  // T [L] of the terms, times a factor
  void slope(const std::vector<void*>& gradients);  // [A, D] of each pass, nullptr: nobody wants it

  // All stages forward, with what ranks tell one another, of a batch that they have told: `sums` over the anchors of all ranks.
  std::vector<double> forward(Board& board);
  // And backward: the gradient of the samples of this rank, [counts[rank], D] of T, over the pairs of all ranks.
  void backward(const void* cotangents, double factor, void* gradient, Board& board);

  std::vector<std::pair<std::string, int64_t>> plan(int pass) const { return passes_.at(pass)->plan(); }
  int64_t numbers() const { return numbers_; }  // values of all passes and anchors

 private:
  struct Run {  // anchors in class order that follow one another and are samples of one rank
    int64_t from, count;
  };
  void add_passes(const std::vector<PassRequest>& passes, const PlanRequest& request);

  int64_t bytes_;  // of a number
  int rank_, ranks_;
  int64_t numbers_ = 0;
  std::vector<std::unique_ptr<PassBase>> passes_;
  std::vector<double> factors_;  // d term / d value, of pass after pass, from reduce()
  std::vector<std::vector<Run>> runs_;  // of each rank, where the ranks have told the batch
  std::vector<int64_t> rows_;  // of the anchors in class order, among the samples of their rank
};

}  // namespace dml
