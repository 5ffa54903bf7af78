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
#include "cpu/search.h"

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
constexpr int64_t kFew = 48;                                           // measured: looking up is dearer up to here

std::vector<int64_t> in_order(const Vectors& in) {
  std::vector<int64_t> order(in.rows);
  std::iota(order.begin(), order.end(), int64_t(0));
  if (!std::is_sorted(in.labels, in.labels + in.rows))
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return in.labels[a] < in.labels[b]; });
  return order;
}

// References of each query's class, without the query itself.
std::vector<int64_t> lengths_of(const Vectors& queries, const Vectors* references) {
  const Vectors& theirs = references ? *references : queries;
  std::vector<int64_t> sorted(theirs.labels, theirs.labels + theirs.rows), lengths(queries.rows);
  if (!std::is_sorted(sorted.begin(), sorted.end())) std::sort(sorted.begin(), sorted.end());
  for (int64_t i = 0; i < queries.rows; ++i) {
    if (i > 0 && queries.labels[i] == queries.labels[i - 1]) {
      lengths[i] = lengths[i - 1];
      continue;
    }
    const auto range = std::equal_range(sorted.begin(), sorted.end(), queries.labels[i]);
    lengths[i] = range.second - range.first - (references ? 0 : 1);
  }
  return lengths;
}

// By the two bytes of the cell, of 2^16 equal ones between the highest and the lowest, and then by insertion, which finds almost
// all in their places. Where numbers crowd in few cells, by all their bytes. `spare` and `keys` have room for n.
template <class T> void sort_descending(T* at, int64_t n, T* spare, uint16_t* keys) {
  T lowest = at[0], highest = at[0];
  for (int64_t k = 0; k < n; ++k) lowest = std::min(lowest, at[k]), highest = std::max(highest, at[k]);
  const T last = T(65535), scale = last / (highest - lowest);
  int64_t moves = scale > 0 && scale <= T(1e30) ? 8 * n : -1;  // neither infinite nor, almost, all equal
  if (moves >= 0) {
    const auto key = [&](T s) {
      const T c = (highest - s) * scale;
      return uint16_t(int32_t(c < last ? c : last));  // what is no number comes last
    };
    int32_t low[256] = {}, high[256] = {};
    for (int64_t k = 0; k < n; ++k) keys[k] = key(at[k]);
    for (int64_t k = 0; k < n; ++k) ++low[keys[k] & 255], ++high[keys[k] >> 8];
    for (int32_t q = 0, low_sum = 0, high_sum = 0; q < 256; ++q) {
      const int32_t low_count = low[q], high_count = high[q];
      low[q] = low_sum, high[q] = high_sum;
      low_sum += low_count, high_sum += high_count;
    }
    for (int64_t k = 0; k < n; ++k) spare[low[keys[k] & 255]++] = at[k];
    for (int64_t k = 0; k < n; ++k) at[high[key(spare[k]) >> 8]++] = spare[k];
    for (int64_t k = 1; k < n && moves >= 0; ++k) {
      const T x = at[k];
      int64_t j = k;
      for (; j > 0 && at[j - 1] < x; --j) at[j] = at[j - 1];
      at[j] = x;
      moves -= k - j;
    }
  }
  if (moves >= 0) return;
  sort_numbers(at, n, spare);
  std::reverse(at, at + n);
}

template <class T> class Ranker final : public PartedRanking {
 public:
  Ranker(const Vectors& queries, const int64_t* lengths, bool with_itself, int64_t rows, int64_t depth, Metric metric,
         int threads, int64_t memory, int64_t few)
      : kernels_(current<T>()), metric_(metric), width_(kernels_.width), lanes_(kernels_.width / 2),
        memory_(memory > 0 ? memory : kMemory), few_(few > 0 ? few : kFew), columns_(queries.rows), order_(in_order(queries)) {
    p_.D = depth;
    const double work = double(queries.rows) * double(rows) * double(depth);
    p_.threads = omp_in_parallel() ? 1 : std::max(1, std::min({threads, omp_get_thread_limit(), int(work / 1e7) + 1}));
    if (!with_itself)
      order_.erase(std::remove_if(order_.begin(), order_.end(), [&](int64_t i) { return lengths[i] == 0; }), order_.end());
    p_.Q = int64_t(order_.size());
    for (int64_t i : order_) labels_.push_back(queries.labels[i]), length_.push_back(lengths[i]);
    first_.resize(p_.Q), last_.resize(p_.Q), held_.resize(p_.Q);
    p_.first = first_.data(), p_.last = last_.data(), p_.length = length_.data(), p_.held = held_.data();
    fill(queries, order_, query_panels_, query_halves_);
    p_.queries = query_panels_.data(), p_.query_halves = query_halves_.data();
    plan();
  }

  int64_t runs() const override { return int64_t(runs_.size()); }

  void begin(int64_t run) override {
    const Run& of = runs_.at(run);
    p_.cells = of.cells, p_.q0 = of.panel * width_, p_.q1 = std::min(of.end * width_, p_.Q);
    p_.thresholds = thresholds_.resize(p_.cells + width_);  // read up to a register beyond the end
    p_.counts = counts_.resize(p_.cells * p_.threads);
    std::fill(p_.thresholds, p_.thresholds + p_.cells, std::numeric_limits<T>::infinity());
    std::memset(p_.counts, 0, size_t(p_.cells * p_.threads) * sizeof(*p_.counts));
    std::fill(held_.begin(), held_.end(), int64_t(0));
    is_sorted_ = false;
    p_.scratch_bytes = kernels_.scratch_bytes(p_);
    p_.scratch = scratch_.resize(p_.scratch_bytes * p_.threads);
  }

  void enter(const Vectors* part) override {
    p_.self = !part;
    p_.N = part ? part->rows : p_.Q;
    if (part) {
      const std::vector<int64_t> order = in_order(*part);
      find_classes([&](int64_t j) { return part->labels[order[j]]; });
      fill(*part, order, part_panels_, part_halves_);
    } else {
      find_classes([&](int64_t j) { return labels_[j]; });
    }
    p_.references = part ? part_panels_.data() : p_.queries;
    p_.reference_halves = part ? part_halves_.data() : p_.query_halves;
  }

  void positives() override {
    kernels_.positives(p_);
    for (int64_t i = p_.q0; i < p_.q1; ++i) held_[i] += last_[i] - first_[i] - p_.self;
  }

  void count() override {
    if (!is_sorted_) sort_thresholds();
    is_sorted_ = true;
    kernels_.count(p_);
  }

  void conclude(const int64_t* ks, int64_t k_count, double* values) override {
    const int64_t largest = k_count > 0 ? *std::max_element(ks, ks + k_count) : 0;
#pragma omp parallel for num_threads(p_.threads) schedule(static) if (p_.threads > 1)
    for (int64_t i = p_.q0; i < p_.q1; ++i) {
      const int64_t n = length_[i], stride = stride_of(i), at = n > 0 ? p_.at(i, 0, width_) : 0;
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
        if (rank > largest) continue;
        for (int64_t q = 0; q < k_count; ++q) to[(5 + q) * columns_] += rank <= ks[q];
      }
      to[0] = double(n), to[columns_] = double(first), to[2 * columns_] = double(within) / double(n);
      to[3 * columns_] = cut / double(n), to[4 * columns_] = average / double(n);
    }
  }

 private:
  struct Run {  // of queries whose positives are in memory together
    int64_t panel, end, cells;
  };

  void plan() {
    const int64_t bytes_per_cell = int64_t(sizeof(T)) * (1 + p_.threads), panels = (p_.Q + width_ - 1) / width_;
    most_.assign(panels, 0), start_.assign(panels, 0), spread_.assign(panels, 0);
    for (int64_t i = 0; i < p_.Q; ++i) most_[i / width_] = std::max(most_[i / width_], length_[i]);
    p_.start = start_.data(), p_.most = most_.data(), p_.spread = spread_.data();
    for (int64_t panel = 0, next; panel < panels; panel = next) {
      int64_t cells = 0;
      for (next = panel; next < panels; ++next) {
        spread_[next] = most_[next] > few_ ? tree_size(most_[next]) : 0;
        const int64_t more = (spread_[next] ? spread_[next] : most_[next]) * width_;
        if (next > panel && (cells + more) * bytes_per_cell > memory_) break;
        start_[next] = cells;
        cells += more;
      }
      if (cells > 0) runs_.push_back({panel, next, cells});
    }
  }

  // Where the class of each query lies among the references, whose labels are in order.
  template <class LabelOf> void find_classes(LabelOf label_of) {
    int64_t first = 0, last = 0;
    for (int64_t i = 0; i < p_.Q; ++i) {
      if (i == 0 || labels_[i] != labels_[i - 1]) {
        for (first = last; first < p_.N && label_of(first) < labels_[i];) ++first;
        for (last = first; last < p_.N && label_of(last) == labels_[i];) ++last;
      }
      first_[i] = first, last_[i] = last;
    }
  }

  void fill(const Vectors& in, const std::vector<int64_t>& order, Buffer<T>& panels, Buffer<T>& halves) {
    const int64_t rows = int64_t(order.size());
    panels.resize((rows + width_ - 1) / width_ * width_ * p_.D);
    if (metric_ == Metric::euclidean) halves.resize(rows);
    kernels_.pack(static_cast<const T*>(in.data), order.data(), rows, p_.D, metric_ == Metric::cosine, panels.data(),
                  halves.data(), p_.threads);
  }

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
      std::vector<uint16_t> keys;
#pragma omp for schedule(dynamic, 64)
      for (int64_t i = p_.q0; i < p_.q1; ++i) {
        const int64_t n = length_[i], stride = stride_of(i);
        if (n == 0) continue;
        T* at = p_.thresholds + p_.at(i, 0, width_);
        if (stride == 1) {
          list.resize(n);
          keys.resize(n);
          sort_descending(at, n, list.data(), keys.data());
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

  RankingKernels<T> kernels_;
  Metric metric_;
  int64_t width_, lanes_, memory_, few_, columns_;
  bool is_sorted_ = false;
  Ranking<T> p_{};
  std::vector<int64_t> order_, labels_, length_, held_, first_, last_, most_, start_, spread_;
  std::vector<Run> runs_;
  Buffer<T> query_panels_, part_panels_, query_halves_, part_halves_, thresholds_;
  Buffer<typename CountOf<T>::type> counts_;
  Buffer<unsigned char> scratch_;
};

}  // namespace

std::unique_ptr<PartedRanking> rank_in_parts(bool is_double, const Vectors& queries, const int64_t* lengths, bool with_itself,
                                             int64_t rows, int64_t width, Metric metric, int threads, int64_t memory,
                                             int64_t few) {
  if (is_double)
    return std::make_unique<Ranker<double>>(queries, lengths, with_itself, rows, width, metric, threads, memory, few);
  return std::make_unique<Ranker<float>>(queries, lengths, with_itself, rows, width, metric, threads, memory, few);
}

void rank_positives(bool is_double, const Vectors& queries, const Vectors* references, int64_t width, Metric metric,
                    const int64_t* ks, int64_t k_count, double* values, int threads, int64_t memory, int64_t few) {
  std::fill(values, values + (5 + k_count) * queries.rows, 0.0);
  const std::vector<int64_t> lengths = lengths_of(queries, references);
  const auto ranking = rank_in_parts(is_double, queries, lengths.data(), !references,
                                     references ? references->rows : queries.rows, width, metric, threads, memory, few);
  ranking->enter(references);
  for (int64_t run = 0; run < ranking->runs(); ++run) {
    ranking->begin(run);
    ranking->positives();
    ranking->count();
    ranking->conclude(ks, k_count, values);
  }
}

}  // namespace dml
