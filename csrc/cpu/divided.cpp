#include "cpu/divided.h"

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
  if (ranks_ < 2 || rank_ < 0 || rank_ >= ranks_) throw std::invalid_argument("a pass is divided among two ranks or more");
  Orders orders;
  for (const PassRequest& asked : passes) {
    passes_.push_back(make_pass(is_double, asked.anchors, asked.has_references ? &asked.references : nullptr, asked.width,
                                asked.calls, asked.relations, request, orders));
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

void DividedPasses::weigh(const std::vector<double>& slopes) {
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

}  // namespace dml
