#include "cpu/divided.h"

#include <stdexcept>

namespace dml {

namespace {

int64_t anchors_of(const PassBase& pass, int rank) { return pass.outline().bounds[rank + 1] - pass.outline().bounds[rank]; }

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

void DividedPasses::weigh(const void* cotangents) {
  const char* at = static_cast<const char*>(cotangents);
  for (const auto& pass : passes_) {
    pass->weigh(at);
    at += pass->outline().value_count * pass->outline().A * bytes_;
  }
}

void DividedPasses::slope(const std::vector<void*>& gradients) {
  for (size_t k = 0; k < passes_.size(); ++k) {
    passes_[k]->slope();
    passes_[k]->deliver({gradients.at(k), passes_[k]->outline().D, false}, {});
  }
}

}  // namespace dml
