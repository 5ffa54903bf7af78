// The memory of pairs that are chosen inside a pass (semihard.h).
#pragma once
#include <numeric>
#include <vector>

#include "cpu/memory.h"
#include "cpu/outline.h"

namespace dml {

template <class T> class Choices {
 public:
  // For a run of the kernels. What was chosen is kept for the next one; chooses: this one chooses, which takes more.
  void allocate(const Outline& outline, Problem<T>& p, bool chooses) {
    const int64_t count = int64_t(outline.margins.size());
    if (count == 0) return;
    int64_t spans = 0;
    for (double margin : outline.margins) spans += most_spans_of(outline, margin);
    if (list_.empty()) {
      starts_.assign(p.A + 1, 0);
      std::partial_sum(outline.classes.positives.begin(), outline.classes.positives.begin() + p.A, starts_.begin() + 1);
      kept_.resize(count * starts_[p.A] + 1);
      span_counts_.resize(count * p.A + 1);
      spans_.resize(2 * spans * p.A + 1);
    }
    const int64_t positives = starts_[p.A];
    if (chooses) near_.resize(count * positives + 1), which_.resize(count * positives + 1), left_.resize(count * p.A + 1);
    T* span = spans_.data();
    list_.clear();
    for (int64_t k = 0; k < count; ++k) {
      const int64_t most = most_spans_of(outline, outline.margins[k]);
      list_.push_back({outline.margins[k], starts_.data(), kept_.data() + k * positives, most, span_counts_.data() + k * p.A,
                       span, nullptr, nullptr, nullptr});
      Semihard& last = list_.back();
      if (chooses)
        last.near = near_.data() + k * positives, last.which = which_.data() + k * positives,
        last.left = left_.data() + k * p.A;
      span += 2 * most * p.A;
    }
    p.semihard = list_.data(), p.semihard_count = int(count);
  }
  void leave() {
    near_.reset();
    which_.reset();
    left_.reset();
  }

 private:
  std::vector<Semihard> list_;
  std::vector<int64_t> starts_;
  Buffer<unsigned char> kept_;
  Buffer<int32_t> span_counts_, which_, left_;
  Buffer<T> spans_, near_;
};

}  // namespace dml
