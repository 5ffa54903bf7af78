#include "cpu/divided.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace dml {

namespace {

int64_t anchors_of(const PassBase& pass, int rank) { return pass.outline().bounds[rank + 1] - pass.outline().bounds[rank]; }

template <class T>
void add_rows(const Outline& outline, const T* values, const T* counts, double* sums, double* of_counts, double* active) {
  const int64_t A = outline.A;
  for (int64_t row = 0; row < outline.value_count; ++row)
    for (int64_t i = row * A; i < (row + 1) * A; ++i) sums[row] += values[i], of_counts[row] += counts[i];
  for (const FunctorState& f : outline.functors)
    for (int64_t i = 0; i < A; ++i) {
      bool is_active = false;
      for (int64_t row = f.value_row; row < f.value_row + f.values; ++row) is_active |= values[row * A + i] > 0;
      active[&f - outline.functors.data()] += is_active;
    }
}

}  // namespace

DividedPasses::DividedPasses(bool is_double, const std::vector<PassRequest>& passes, const PlanRequest& request)
    : bytes_(is_double ? sizeof(double) : sizeof(float)), rank_(request.rank), ranks_(request.ranks) {
  add_passes(passes, request);
}

DividedPasses::DividedPasses(bool is_double, std::vector<PassRequest> passes, const PlanRequest& request, const Board& board,
                             const std::vector<int64_t>& counts)
    : bytes_(is_double ? sizeof(double) : sizeof(float)), rank_(request.rank), ranks_(request.ranks), runs_(counts.size()) {
  if (int(counts.size()) != ranks_ || passes.empty()) throw std::invalid_argument("ranks tell one another a batch of all");
  const int64_t width = passes.front().width;
  std::vector<int64_t> labels, places, firsts(1, 0);
  const auto told = [&](int rank) { return board.met(rank, counts[rank] * (int64_t(sizeof(int64_t)) + width * bytes_)); };
  const char* base = told(0);
  const int64_t samples = std::accumulate(counts.begin(), counts.end(), int64_t(0));
  labels.reserve(samples), places.reserve(samples), rows_.reserve(samples);
  for (int rank = 0; rank < ranks_; ++rank) {
    const int64_t count = counts[rank];
    const char* at = told(rank);
    labels.insert(labels.end(), reinterpret_cast<const int64_t*>(at), reinterpret_cast<const int64_t*>(at) + count);
    const int64_t first = (intptr_t(at) - intptr_t(base)) / bytes_ + count * int64_t(sizeof(int64_t)) / bytes_;
    for (int64_t row = 0; row < count; ++row) places.push_back(first + row * width);
    firsts.push_back(firsts.back() + count);
  }
  for (PassRequest& pass : passes) {
    pass.anchors = {base, labels.data(), int64_t(labels.size()), width, pass.anchors.normalise, places.data()};
    pass.width = width;
  }
  add_passes(passes, request);
  const std::vector<int64_t>& order = passes_.front()->outline().anchors->order;  // the same for all: labels are
  int rank = 0;
  for (int64_t i = 0, last = -1; i < int64_t(order.size()); ++i) {
    if (order[i] < firsts[rank]) rank = 0;
    while (order[i] >= firsts[rank + 1]) ++rank;
    rows_.push_back(order[i] - firsts[rank]);
    if (rank == last) ++runs_[rank].back().count;
    else runs_[rank].push_back({i, 1});
    last = rank;
  }
}

void DividedPasses::add_passes(const std::vector<PassRequest>& passes, const PlanRequest& request) {
  if (ranks_ < 2 || rank_ < 0 || rank_ >= ranks_) throw std::invalid_argument("a pass is divided among two ranks or more");
  Orders orders;
  for (const PassRequest& asked : passes) {
    passes_.push_back(make_pass(bytes_ == sizeof(double), asked.anchors, asked.has_references ? &asked.references : nullptr,
                                asked.width, asked.calls, asked.relations, request, orders));
    numbers_ += passes_.back()->outline().value_count * passes_.back()->outline().A;
  }
}

std::vector<int64_t> DividedPasses::sizes(Shared what) const {
  std::vector<int64_t> sizes(ranks_, 0);
  for (int rank = 0; rank < ranks_; ++rank)
    for (const auto& pass : passes_) sizes[rank] += pass->fields(what) * anchors_of(*pass, rank);
  return sizes;
}

void DividedPasses::take(Shared what, int rank, void* to) const {
  char* at = static_cast<char*>(to);
  for (const auto& pass : passes_) {
    pass->take(what, pass->outline().bounds[rank], anchors_of(*pass, rank), at);
    at += pass->fields(what) * anchors_of(*pass, rank) * bytes_;
  }
}

void DividedPasses::put(Shared what, int rank, const void* numbers) {
  const char* at = static_cast<const char*>(numbers);
  for (const auto& pass : passes_) {
    pass->put(what, pass->outline().bounds[rank], anchors_of(*pass, rank), at);
    at += pass->fields(what) * anchors_of(*pass, rank) * bytes_;
  }
}

void DividedPasses::merge(const void* parts) {
  const int64_t step = sizes(Shared::kSums)[rank_];
  const char* at = static_cast<const char*>(parts);
  for (const auto& pass : passes_) {
    pass->merge(at, step);
    at += pass->fields(Shared::kSums) * anchors_of(*pass, rank_) * bytes_;
  }
}

void DividedPasses::tell_all(Shared what, Board& board) {
  const std::vector<int64_t> numbers = sizes(what);
  if (*std::max_element(numbers.begin(), numbers.end()) == 0) return;
  std::vector<std::vector<char>> parts;
  std::vector<Board::Stream> taken;
  for (int64_t count : numbers) parts.emplace_back(count * bytes_);
  for (std::vector<char>& part : parts) taken.push_back({{part.data(), int64_t(part.size())}});
  std::vector<char> own(parts[rank_].size());
  take(what, rank_, own.data());
  board.trade({{{own.data(), int64_t(own.size())}}}, taken, Adds::kNothing);
  for (int rank = 0; rank < ranks_; ++rank) put(what, rank, parts[rank].data());
}

void DividedPasses::merge_all(Board& board) {
  const std::vector<int64_t> numbers = sizes(Shared::kSums);
  if (*std::max_element(numbers.begin(), numbers.end()) == 0) return;
  const int64_t bytes = numbers[rank_] * bytes_;
  std::vector<std::vector<char>> blocks;
  std::vector<char> parts(bytes * ranks_);
  std::vector<Board::Stream> given, taken;
  for (int rank = 0; rank < ranks_; ++rank) {
    blocks.emplace_back(numbers[rank] * bytes_);
    take(Shared::kSums, rank, blocks.back().data());
    taken.push_back({{parts.data() + rank * bytes, bytes}});
  }
  for (std::vector<char>& block : blocks) given.push_back({{block.data(), int64_t(block.size())}});
  board.trade(given, taken, Adds::kNothing);
  merge(parts.data());
}

void DividedPasses::open() {
  for (const auto& pass : passes_) pass->open();
}

void DividedPasses::collect() {
  for (const auto& pass : passes_) pass->collect();
}

void DividedPasses::close(void* values, void* counts) {
  char *at = static_cast<char*>(values), *count = static_cast<char*>(counts);
  for (const auto& pass : passes_) {
    pass->close(at, count);
    const int64_t bytes = pass->outline().value_count * pass->outline().A * bytes_;
    at += bytes, count += bytes;
  }
}

std::vector<double> DividedPasses::sums(const void* values, const void* counts) const {
  int64_t rows = 0, functors = 0;
  for (const auto& pass : passes_) rows += pass->outline().value_count, functors += int64_t(pass->outline().functors.size());
  std::vector<double> all(2 * rows + functors, 0.0);
  double *sums = all.data(), *active = sums + 2 * rows;
  const char *at = static_cast<const char*>(values), *count = static_cast<const char*>(counts);
  for (const auto& pass : passes_) {
    const Outline& outline = pass->outline();
    if (bytes_ == sizeof(double))
      add_rows(outline, reinterpret_cast<const double*>(at), reinterpret_cast<const double*>(count), sums, sums + rows, active);
    else
      add_rows(outline, reinterpret_cast<const float*>(at), reinterpret_cast<const float*>(count), sums, sums + rows, active);
    const int64_t bytes = outline.value_count * outline.A * bytes_;
    at += bytes, count += bytes, sums += outline.value_count, active += outline.functors.size();
  }
  return all;
}

std::vector<double> DividedPasses::reduce(const std::vector<double>& totals, const std::vector<Reduction>& reductions,
                                          void* terms) {
  const size_t rows = (totals.size() - reductions.size()) / 2;
  const double samples = double(std::max<int64_t>(passes_.front()->outline().A, 1));
  size_t index = 0;
  factors_.clear();
  for (const auto& pass : passes_)
    for (const FunctorState& f : pass->outline().functors) {
      const Reduction reduction = reductions.at(index);
      double term = 0;
      for (int value = 0; value < f.values; ++value) {
        const size_t row = factors_.size();
        const double by = reduction == Reduction::kDefault ? std::max(totals.at(rows + row), 1.0)
                          : reduction == Reduction::kMean  ? samples
                                                           : 1.0;
        factors_.push_back(1 / by);
        term += totals[row] * factors_.back();
      }
      if (bytes_ == sizeof(double)) static_cast<double*>(terms)[index] = term;
      else static_cast<float*>(terms)[index] = float(term);
      ++index;
    }
  std::vector<double> shares(totals.begin() + 2 * rows, totals.end());
  for (double& share : shares) share /= samples;
  return shares;
}

void DividedPasses::weigh(const void* cotangents, double factor) {
  std::vector<double> slopes;
  int64_t term = 0;
  for (const auto& pass : passes_)
    for (const FunctorState& f : pass->outline().functors) {
      const double cotangent = bytes_ == sizeof(double) ? static_cast<const double*>(cotangents)[term]
                                                        : double(static_cast<const float*>(cotangents)[term]);
      for (int value = 0; value < f.values; ++value) slopes.push_back(cotangent * factor * factors_.at(slopes.size()));
      ++term;
    }
  const double* at = slopes.data();
  for (const auto& pass : passes_) {
    pass->weigh(at);
    at += pass->outline().value_count;
  }
}

void DividedPasses::slope(const std::vector<void*>& gradients) {
  for (size_t k = 0; k < passes_.size(); ++k) {
    passes_[k]->slope();
    passes_[k]->deliver({gradients.at(k), passes_[k]->outline().D, false}, {});
  }
}

std::vector<double> DividedPasses::forward(Board& board) try {
  open();
  tell_all(Shared::kLimits, board);
  collect();
  merge_all(board);
  std::vector<char> values(2 * numbers_ * bytes_);
  char* counts = values.data() + numbers_ * bytes_;
  close(values.data(), counts);
  std::vector<double> own = sums(values.data(), counts), all(own.size() * ranks_), total(own.size(), 0.0);
  const int64_t length = int64_t(own.size() * sizeof(double));
  std::vector<Board::Stream> taken;
  for (int rank = 0; rank < ranks_; ++rank) taken.push_back({{all.data() + rank * own.size(), length}});
  board.trade({{{own.data(), length}}}, taken, Adds::kNothing);
  for (size_t k = 0; k < all.size(); ++k) total[k % own.size()] += all[k];  // in the order of the ranks: the same bits on each
  return total;
} catch (...) {  // the others would wait
  board.leave();
  throw;
}

void DividedPasses::backward(const void* cotangents, double factor, void* gradient, Board& board) try {
  weigh(cotangents, factor);
  tell_all(Shared::kSlopes, board);
  std::vector<Board::Stream> given(ranks_), taken(ranks_);
  for (const auto& pass : passes_) {
    pass->slope();
    const int64_t row = pass->outline().D * bytes_;
    char* at = static_cast<char*>(pass->gradient());
    for (int rank = 0; rank < ranks_; ++rank) {
      if (rank == rank_) continue;
      for (const Run& run : runs_[rank]) given[rank].push_back({at + run.from * row, run.count * row});
      for (const Run& run : runs_[rank_]) taken[rank].push_back({at + run.from * row, run.count * row});
    }
  }
  board.trade(given, taken, bytes_ == sizeof(double) ? Adds::kDoubles : Adds::kFloats);
  for (const auto& pass : passes_) {
    for (const Run& run : runs_[rank_])
      pass->deliver_run(run.from, run.count, rows_.data() + run.from, {gradient, pass->outline().D, pass != passes_.front()});
    pass->deliver({}, {});
  }
} catch (...) {
  board.leave();
  throw;
}

}  // namespace dml
