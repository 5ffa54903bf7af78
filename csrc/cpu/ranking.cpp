// Plans a ranking: class order, memory, chunks of queries; turns the counts above each positive into values per query.
#include <omp.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "cpu/levels.h"
#include "cpu/memory.h"
#include "cpu/neighbours.h"

namespace dml {

RankingKernels<float> ranking_f32_base();
RankingKernels<double> ranking_f64_base();
#ifdef DML_X86
RankingKernels<float> ranking_f32_avx2();
RankingKernels<double> ranking_f64_avx2();
RankingKernels<float> ranking_f32_avx512();
RankingKernels<double> ranking_f64_avx512();
#endif

namespace {

template <class T> RankingKernels<T> current() {
  const std::string name = level();
#ifdef DML_X86
  if constexpr (std::is_same_v<T, float>) {
    if (name == "avx2") return ranking_f32_avx2();
    if (name == "avx512") return ranking_f32_avx512();
  } else {
    if (name == "avx2") return ranking_f64_avx2();
    if (name == "avx512") return ranking_f64_avx512();
  }
#endif
  if constexpr (std::is_same_v<T, float>) return ranking_f32_base();
  else return ranking_f64_base();
}

constexpr int64_t kMemory = int64_t(64) << 20;                         // for thresholds and counts
constexpr int64_t kFew = 64;                                           // measured: a search is dearer up to here

template <class T> class Ranker {
 public:
  Ranker(const Vectors& queries, const Vectors* references, int64_t depth, Metric metric, int threads, int64_t memory,
         int64_t few)
      : kernels_(current<T>()), width_(kernels_.width), lanes_(kernels_.width / 2), memory_(memory > 0 ? memory : kMemory),
        few_(few > 0 ? few : kFew) {
    p_.D = depth;
    p_.N = references ? references->rows : queries.rows;
    p_.self = !references;
    const double work = double(queries.rows) * double(p_.N) * double(depth);
    p_.threads = omp_in_parallel() ? 1 : std::max(1, std::min({threads, omp_get_thread_limit(), int(work / 1e7) + 1}));

    order_ = in_order(queries);
    std::vector<int64_t> theirs;
    if (references) {
      theirs = in_order(*references);
      const int64_t* labels = references->labels;
      auto present = [&](int64_t i) {
        auto before = [&](int64_t r, int64_t label) { return labels[r] < label; };
        const auto at = std::lower_bound(theirs.begin(), theirs.end(), queries.labels[i], before);
        return at != theirs.end() && labels[*at] == queries.labels[i];
      };
      order_.erase(std::remove_if(order_.begin(), order_.end(), [&](int64_t i) { return !present(i); }), order_.end());
    }
    p_.Q = int64_t(order_.size());
    find_classes(queries, references ? *references : queries, references ? theirs : order_);
    fill(queries, order_, metric, query_panels_, query_halves_);
    if (references) fill(*references, theirs, metric, reference_panels_, reference_halves_);
    p_.queries = query_panels_.data(), p_.query_halves = query_halves_.data();
    p_.references = references ? reference_panels_.data() : p_.queries;
    p_.reference_halves = references ? reference_halves_.data() : p_.query_halves;
  }

  void run(const int64_t* ks, int64_t k_count, double* values, int64_t columns) {
    std::fill(values, values + (5 + k_count) * columns, 0.0);
    const int64_t bytes_per_cell = int64_t(sizeof(T)) * (1 + p_.threads), panels = int64_t(most_.size());
    start_.assign(panels, 0), spread_.assign(panels, 0);
    p_.start = start_.data(), p_.most = most_.data(), p_.spread = spread_.data();
    for (int64_t panel = 0, next; panel < panels; panel = next) {
      p_.cells = 0;
      for (next = panel; next < panels; ++next) {
        spread_[next] = most_[next] > few_ ? tree_size(most_[next]) : 0;
        const int64_t more = (spread_[next] ? spread_[next] : most_[next]) * width_;
        if (next > panel && (p_.cells + more) * bytes_per_cell > memory_) break;
        start_[next] = p_.cells;
        p_.cells += more;
      }
      if (p_.cells == 0) continue;
      p_.q0 = panel * width_, p_.q1 = std::min(next * width_, p_.Q);
      p_.thresholds = thresholds_.resize(p_.cells);
      p_.counts = counts_.resize(p_.cells * p_.threads);
      std::fill(p_.thresholds, p_.thresholds + p_.cells, std::numeric_limits<T>::infinity());
      std::memset(p_.counts, 0, size_t(p_.cells * p_.threads) * sizeof(*p_.counts));
      p_.scratch_bytes = kernels_.scratch_bytes(p_);
      p_.scratch = scratch_.resize(p_.scratch_bytes * p_.threads);
      kernels_.positives(p_);
      sort_thresholds();
      kernels_.count(p_);
      conclude(ks, k_count, values, columns);
    }
  }

 private:
  static std::vector<int64_t> in_order(const Vectors& in) {
    std::vector<int64_t> order(in.rows);
    std::iota(order.begin(), order.end(), int64_t(0));
    if (!std::is_sorted(in.labels, in.labels + in.rows))
      std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return in.labels[a] < in.labels[b]; });
    return order;
  }

  void find_classes(const Vectors& queries, const Vectors& references, const std::vector<int64_t>& theirs) {
    first_.resize(p_.Q), last_.resize(p_.Q);
    most_.assign((p_.Q + width_ - 1) / width_, 0);
    int64_t first = 0, last = 0;
    for (int64_t i = 0; i < p_.Q; ++i) {
      const int64_t label = queries.labels[order_[i]];
      if (i == 0 || label != queries.labels[order_[i - 1]]) {
        for (first = last; references.labels[theirs[first]] < label;) ++first;
        for (last = first; last < p_.N && references.labels[theirs[last]] == label;) ++last;
      }
      first_[i] = first, last_[i] = last;
      most_[i / width_] = std::max(most_[i / width_], last - first - p_.self);
    }
    p_.first = first_.data(), p_.last = last_.data();
  }

  void fill(const Vectors& in, const std::vector<int64_t>& order, Metric metric, Buffer<T>& panels, Buffer<T>& halves) {
    const int64_t rows = int64_t(order.size());
    panels.resize((rows + width_ - 1) / width_ * width_ * p_.D);
    if (metric == Metric::euclidean) halves.resize(rows);
    kernels_.pack(static_cast<const T*>(in.data), order.data(), rows, p_.D, metric == Metric::cosine, panels.data(),
                  halves.data(), p_.threads);
  }

  int64_t positives_of(int64_t i) const { return last_[i] - first_[i] - p_.self; }
  int64_t stride_of(int64_t i) const { return spread_[i / width_] == 0 ? width_ : 1; }

  int64_t tree_size(int64_t leaves) const {
    int64_t cells = 0;
    for (int64_t size = leaves; size > 1; size /= lanes_) cells += size = (size + lanes_ - 1) / lanes_ * lanes_;
    return cells;
  }
  void grow_tree(T* tree, int64_t leaves, int64_t length) const {
    std::fill(tree + length, tree + tree_size(leaves), -std::numeric_limits<T>::infinity());
    for (int64_t size = (leaves + lanes_ - 1) / lanes_ * lanes_; size > lanes_;) {
      T* up = tree + size;
      size /= lanes_;
      for (int64_t k = 0; k < size; ++k) up[k] = tree[(k + 1) * lanes_ - 1];
      tree = up;
      size = (size + lanes_ - 1) / lanes_ * lanes_;
    }
  }

  void sort_thresholds() {
#pragma omp parallel num_threads(p_.threads) if (p_.threads > 1)
    {
      std::vector<T> list;
#pragma omp for schedule(dynamic, 64)
      for (int64_t i = p_.q0; i < p_.q1; ++i) {
        const int64_t n = positives_of(i), stride = stride_of(i);
        if (n == 0) continue;
        T* at = p_.thresholds + p_.at(i, 0, width_);
        if (stride == 1) {
          std::sort(at, at + n, std::greater<T>());
          grow_tree(at, most_[i / width_], n);
          continue;
        }
        list.resize(n);
        for (int64_t k = 0; k < n; ++k) list[k] = at[k * stride];
        std::sort(list.begin(), list.end(), std::greater<T>());
        for (int64_t k = 0; k < n; ++k) at[k * stride] = list[k];
      }
    }
  }

  void conclude(const int64_t* ks, int64_t k_count, double* values, int64_t columns) {
#pragma omp parallel for num_threads(p_.threads) schedule(static) if (p_.threads > 1)
    for (int64_t i = p_.q0; i < p_.q1; ++i) {
      const int64_t n = positives_of(i), stride = stride_of(i), at = n > 0 ? p_.at(i, 0, width_) : 0;
      if (n <= 0) continue;
      double* to = values + order_[i];
      int64_t above = 0, within = 0, first = 0;
      double cut = 0, average = 0;
      for (int64_t k = 0; k < n; ++k) {
        int64_t count = 0;
        for (int t = 0; t < p_.threads; ++t) count += p_.counts[t * p_.cells + at + k * stride];
        above = stride == 1 ? above + count : count;                   // counts of intervals add up
        const int64_t rank = k + 1 + above;
        const double precision = double(k + 1) / double(rank);
        if (k == 0) first = rank;
        if (rank <= n) within += 1, cut += precision;
        average += precision;
        for (int64_t q = 0; q < k_count; ++q) to[(5 + q) * columns] += rank <= ks[q];
      }
      to[0] = double(n), to[columns] = double(first), to[2 * columns] = double(within) / double(n);
      to[3 * columns] = cut / double(n), to[4 * columns] = average / double(n);
    }
  }

  RankingKernels<T> kernels_;
  int64_t width_, lanes_, memory_, few_;
  Ranking<T> p_{};
  std::vector<int64_t> order_, first_, last_, most_, start_, spread_;
  Buffer<T> query_panels_, reference_panels_, query_halves_, reference_halves_, thresholds_;
  Buffer<typename CountOf<T>::type> counts_;
  Buffer<unsigned char> scratch_;
};

}  // namespace

void rank_positives(bool is_double, const Vectors& queries, const Vectors* references, int64_t width, Metric metric,
                    const int64_t* ks, int64_t k_count, double* values, int threads, int64_t memory, int64_t few) {
  if (is_double)
    Ranker<double>(queries, references, width, metric, threads, memory, few).run(ks, k_count, values, queries.rows);
  else Ranker<float>(queries, references, width, metric, threads, memory, few).run(ks, k_count, values, queries.rows);
}

}  // namespace dml
