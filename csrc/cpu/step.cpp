#include "cpu/step.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "cpu/memory.h"
#include "cpu/problem.h"
#if __has_include("dml_build.h")
#include "dml_build.h"
#else                                                                  // no build by setup.py: functors of a run time never fit
#define DML_HEADERS ""
#define DML_FLAGS ""
#define DML_LEVEL_FLAGS {"", ""}
#endif

namespace dml {

Kernels<float> kernels_f32_base();
Kernels<double> kernels_f64_base();
#ifdef DML_X86
Kernels<float> kernels_f32_avx2();
Kernels<double> kernels_f64_avx2();
Kernels<float> kernels_f32_avx512();
Kernels<double> kernels_f64_avx512();
#endif

namespace {

struct Level {
  std::string name;
  Kernels<float> f32;
  Kernels<double> f64;
};

std::vector<Level>& all_levels() {
  static std::vector<Level> found = [] {
    std::vector<Level> out{{"base", kernels_f32_base(), kernels_f64_base()}};
#ifdef DML_X86
    if (__builtin_cpu_supports("x86-64-v3")) out.push_back({"avx2", kernels_f32_avx2(), kernels_f64_avx2()});
    if (__builtin_cpu_supports("x86-64-v4")) out.push_back({"avx512", kernels_f32_avx512(), kernels_f64_avx512()});
#endif
    return out;
  }();
  return found;
}
size_t& chosen_level() {
  static size_t index = all_levels().size() - 1;
  return index;
}

struct Blas {
  BlasGemm<float> sgemm = nullptr;
  BlasGemm<double> dgemm = nullptr;
  void (*threads)(int) = nullptr;
} blas;

template <class T> const Kernels<T>& current();
template <> const Kernels<float>& current<float>() { return all_levels()[chosen_level()].f32; }
template <> const Kernels<double>& current<double>() { return all_levels()[chosen_level()].f64; }
template <class T> BlasGemm<T> current_gemm();
template <> BlasGemm<float> current_gemm<float>() { return blas.sgemm; }
template <> BlasGemm<double> current_gemm<double>() { return blas.dgemm; }

constexpr int64_t kKeptPositives = int64_t(1) << 20;                   // cells of positives kept between the phases
constexpr int64_t kBlockCells = int64_t(1) << 20;                      // cells of one block of a large class
// Positives that a negative is compared with one by one: with more, searching is faster. It works on rows only, so a batch compared
// with itself first has to lose half as much again in products (measured equal at 31 positives and 128 dimensions).
constexpr int64_t kMostCompared = 12, kMostComparedTwice = 32;

int64_t rounded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

constexpr double kThreadWork = 1e7;                                    // multiplications that a further thread is worth its barriers for

std::shared_ptr<const Order> order_of(const Input& in, bool sorted, Orders& known) {
  std::shared_ptr<const Order>& found = known[{in.labels, in.rows, sorted}];
  if (found) return found;
  auto made = std::make_shared<Order>();
  made->order.resize(in.rows);
  std::iota(made->order.begin(), made->order.end(), int64_t(0));
  if (sorted && !std::is_sorted(in.labels, in.labels + in.rows))
    std::stable_sort(made->order.begin(), made->order.end(), [&](int64_t a, int64_t b) { return in.labels[a] < in.labels[b]; });
  made->labels.resize(in.rows);
  for (int64_t i = 0; i < in.rows && sorted; ++i) made->labels[i] = in.labels[made->order[i]];
  return found = made;
}

template <class T> struct Side {                                       // anchors or references in class order
  std::shared_ptr<const Order> by_label;
  Buffer<T> unit, norms;
  Buffer<bool> broken;

  void fill(const Kernels<T>& kernels, const Input& in, int64_t width, int threads, bool sorted, Orders& orders) {
    by_label = order_of(in, sorted, orders);
    unit.resize(in.rows * width);
    norms.resize(in.rows);
    broken.resize(in.rows);
    kernels.gather(static_cast<const T*>(in.data), in.stride, order(), in.rows, width, in.normalise, unit.data(), norms.data(),
                   broken.data(), threads);
  }
  const int64_t* order() const { return by_label->order.data(); }
};

template <class T> class Step final : public StepBase {
 public:
  Step(const Input& anchors, const Input* references, int64_t width, const std::vector<LossRequest>& losses,
       const Relations& relations, const PlanRequest& request, Orders& orders)
      : kernels_(current<T>()), request_(request), normalise_anchors_(anchors.normalise),
        normalise_references_(references ? references->normalise : anchors.normalise) {
    p_.D = width;
    p_.A = anchors.rows;
    p_.N = references ? references->rows : anchors.rows;
    p_.self = !references;
    p_.stride = rounded(p_.A + 16, 16);
    p_.gemm = current_gemm<T>();
    p_.blas_threads = p_.gemm ? blas.threads : nullptr;
    const double worth = request.thread_work > 0 ? double(request.thread_work) : kThreadWork;
    const int busy = int(std::min(work() / worth, 1e6)) + 1;
    p_.threads = omp_in_parallel() ? 1 : std::max(1, std::min({request.threads, omp_get_thread_limit(), busy}));
    p_.starts = relations.starts, p_.lists = relations.lists;
    anchors_.fill(kernels_, anchors, width, p_.threads, !p_.lists, orders);
    if (references) {
      references_.fill(kernels_, *references, width, p_.threads, !p_.lists, orders);
      bool* mine = anchors_.broken.data();                             // every anchor is compared with every reference
      if (std::any_of(references_.broken.data(), references_.broken.data() + p_.N, [](bool b) { return b; })) std::fill(mine, mine + p_.A, true);
    }
    p_.anchors = anchors_.unit.data();
    p_.references = references ? references_.unit.data() : p_.anchors;
    p_.broken = anchors_.broken.data();
    find_own(relations);
    if (p_.lists) find_lists();
    else find_classes();
    find_losses(losses);
    plan_tiles();
  }

  int value_count() const override { return p_.value_count; }
  int64_t anchors() const override { return p_.A; }
  int64_t table_cells() const override { return p_.table_cells; }
  int threads() const override { return p_.threads; }
  double work() const override { return double(p_.A) * double(p_.N) * double(p_.D); }

  void forward(void* values, void* counts, void* tables) override {
    Buffer<T> sorted;
    T* v = sorted.resize(2 * int64_t(p_.value_count) * p_.A);
    T* c = v + int64_t(p_.value_count) * p_.A;
    allocate();
    std::memset(p_.table_totals, 0, size_t(2 * p_.table_cells * p_.threads) * sizeof(int64_t));
    for (size_t k = 0; k < chunks_.size(); ++k) {
      enter(k);
      kernels_.forward(p_, v, c);
    }
    T *to = static_cast<T*>(values), *to_counts = static_cast<T*>(counts);
    for (int row = 0; row < p_.value_count; ++row)
      for (int64_t i = 0; i < p_.A; ++i) {
        to[row * p_.A + anchors_.order()[i]] = v[row * p_.A + i];
        to_counts[row * p_.A + anchors_.order()[i]] = c[row * p_.A + i];
      }
    read_tables(static_cast<T*>(tables));
    leave();
  }

  void differentiate(const void* cotangents, const double* shift, const void* table_cotangents, bool with_references) override {
    Buffer<T> sorted, private_grads, unused;
    T* w = sorted.resize(int64_t(p_.value_count) * p_.A);
    const T* from = static_cast<const T*>(cotangents);
    for (int row = 0; row < p_.value_count; ++row)
      for (int64_t i = 0; i < p_.A; ++i) w[row * p_.A + i] = T((from ? from[row * p_.A + anchors_.order()[i]] : 0) + shift[row]);
    T* ga = anchor_grads_.resize(p_.A * p_.D);
    std::fill_n(ga, p_.A * p_.D, T(0));                                  // of no anchors there is no address
    T* gr = nullptr;
    if (!p_.self && with_references) {
      gr = reference_grads_.resize(p_.N * p_.D);
      std::fill_n(gr, p_.N * p_.D, T(0));
    }
    allocate();
    p_.cotangents = w;
    T* table = table_slopes_.resize(p_.table_cells + 1);
    const T* given = static_cast<const T*>(table_cotangents);
    for (const LossSlot& loss : losses_)
      for (int64_t half = 0; half < 2; ++half)
        for (int64_t c = 0; c < loss.cells; ++c) {                     // beyond the last cell nothing moves
          const int64_t at = loss.table_first + half * loss.cells + c;
          table[at] = given && c + 1 < loss.cells ? given[at + 1] - given[at] : T(0);
        }
    p_.table_slopes = table;
    slopes_.resize(slope_cells_);
    for (size_t l = 0, at = 0; l < losses_.size(); at += losses_[l].slopes * p_.stride, ++l) losses_[l].slopes_at = slopes_.data() + at;
    if (slope_cells_ > 0) std::memset(slopes_.data(), 0, size_t(slope_cells_) * sizeof(T));
    // Threads own the larger side and add to private copies of the other one. Slots force them to own anchors.
    p_.row_owner_backward = p_.lists || p_.A >= p_.N || chunks_.size() > 1 || (p_.self && !p_.triangle);
    const int64_t private_rows = p_.self ? p_.A : (p_.row_owner_backward ? p_.N : p_.A);
    T* mine = p_.threads > 1 ? private_grads.resize((p_.threads - 1) * private_rows * p_.D) : nullptr;
    if (chunks_.size() > 1) unused.resize(2 * int64_t(p_.value_count) * p_.A);
    for (size_t k = 0; k < chunks_.size(); ++k) {
      enter(k);
      if (chunks_.size() > 1) kernels_.forward(p_, unused.data(), unused.data() + int64_t(p_.value_count) * p_.A);
      kernels_.backward(p_, w, ga, gr, mine);
    }
    leave();
  }

  void deliver(const Gradient& anchors, const Gradient& references) override {
    const auto put = [&](Buffer<T>& grads, const Side<T>& side, int64_t rows, bool normalise, const Gradient& to) {
      if (to.data && rows > 0)
        kernels_.scatter(grads.data(), side.unit.data(), side.norms.data(), side.order(), rows, p_.D, normalise, static_cast<T*>(to.data),
                         to.stride, to.adds, p_.threads);
      grads.reset();
    };
    put(anchor_grads_, anchors_, p_.A, normalise_anchors_, anchors);
    if (!p_.self) put(reference_grads_, references_, p_.N, normalise_references_, references);
  }

  std::vector<std::pair<std::string, int64_t>> plan() const override {
    return {{"threads", p_.threads},
            {"triangle", p_.triangle},
            {"tile_rows", p_.tile_rows},
            {"tile_columns", p_.tile_columns},
            {"tiles", int64_t(tiles_.size())},
            {"chunks", int64_t(chunks_.size())},
            {"searches", std::any_of(losses_.begin(), losses_.end(), [](const LossSlot& loss) { return loss.search > 0; })},
            {"cells", tile_cells_},
            {"stored_bytes", stored_cells_ * int64_t(sizeof(T))},
            {"slot_bytes", slot_cells_ * int64_t(sizeof(T))},
            {"kept_bytes", kept_bytes()},
            {"forward_bytes", forward_bytes()},
            {"backward_bytes", backward_bytes()}};
  }

 private:
  // What the buffers of allocate(), forward() and backward() hold, before any is made: kept from one to the other, and by each.
  int64_t kept_bytes() const {
    int64_t fields = 0;
    for (const LossSlot& loss : losses_) fields += loss.limits + loss.sums;
    const int64_t vectors = (p_.A + (p_.self ? 0 : p_.N)) * (p_.D + 1);
    const int64_t numbers = vectors + fields * p_.stride + stored_cells_ + kept_positives_ + slot_cells_ + given_.size();
    const int64_t indices = int64_t(sizeof(int64_t)) * 7 * (p_.A + (p_.self ? 0 : p_.N));
    return numbers * int64_t(sizeof(T)) + indices + int64_t(tiles_.size() * sizeof(Tile) + blocks_.size() * sizeof(Block));
  }
  int64_t scratch_bytes() const {
    Problem<T> p = p_;
    p.most_positives = most_positives_, p.blocks = blocks_.data(), p.block_count = int64_t(blocks_.size());
    int64_t fields = 0;
    for (const LossSlot& loss : losses_) fields += loss.sums;
    return kernels_.scratch_bytes(p) * p_.threads + fields * (p_.triangle ? p_.threads : 1) * p_.stride * int64_t(sizeof(double)) +
           (2 * p_.table_cells * p_.threads + 1) * int64_t(sizeof(int64_t));
  }
  int64_t forward_bytes() const { return scratch_bytes() + 2 * int64_t(p_.value_count) * p_.A * int64_t(sizeof(T)); }
  int64_t backward_bytes() const {                                     // with gradients of the references
    const bool rows_own = p_.lists || p_.A >= p_.N || chunks_.size() > 1 || (p_.self && !p_.triangle);
    const int64_t private_rows = p_.self ? p_.A : (rows_own ? p_.N : p_.A);
    const int64_t gradients = (p_.A + (p_.self ? 0 : p_.N) + (p_.threads - 1) * private_rows) * p_.D;
    const int64_t values = int64_t(p_.value_count) * p_.A * (chunks_.size() > 1 ? 3 : 1);
    return scratch_bytes() + (gradients + values + slope_cells_ + p_.table_cells + 1) * int64_t(sizeof(T));
  }

  struct Chunk {                                                       // anchors handled together, their tiles and blocks
    int64_t row0, row1, tile0, tile1, block0, block1, most_positives;
  };

  void find_own(const Relations& relations) {
    own_.assign(p_.A, -1);
    if (p_.self) {
      std::iota(own_.begin(), own_.end(), int64_t(0));
    } else if (relations.own) {
      std::vector<int64_t> place(p_.N);
      for (int64_t j = 0; j < p_.N; ++j) place[references_.order()[j]] = j;
      for (int64_t i = 0; i < p_.A; ++i) {
        const int64_t given = relations.own[anchors_.order()[i]];
        if (given < -1 || given >= p_.N) throw std::invalid_argument("own must be -1 or the index of a reference, got " + std::to_string(given));
        if (given >= 0) own_[i] = place[given];
      }
    }
    p_.own = own_.data();
  }

  // The whole numbers of all threads, whose sums do not depend on the order, as cells of the soft histograms.
  void read_tables(T* tables) const {
    const double unit = kernels_.fraction_unit;
    for (const LossSlot& loss : losses_)
      for (int64_t half = 0; half < 2; ++half) {
        double carried = 0;
        for (int64_t c = 0; c < loss.cells; ++c) {
          int64_t pairs = 0, fractions = 0;
          for (int t = 0; t < p_.threads; ++t) {
            const int64_t* at = p_.table_totals + t * 2 * p_.table_cells + 2 * loss.table_first + 2 * half * loss.cells;
            pairs += at[c], fractions += at[loss.cells + c];
          }
          const double part = double(fractions) / unit;
          tables[loss.table_first + half * loss.cells + c] = T(double(pairs) - part + carried);
          carried = part;
        }
      }
  }

  void find_lists() {
    row_first_.assign(p_.A, 0), row_last_.assign(p_.A, 0), positives_.assign(p_.stride, 0);
    int64_t kept = 0;
    int owner = 0;
    for (int64_t i = 0; i < p_.A; ++i) {
      positives_[i] = p_.starts[i + 1] - p_.starts[i];
      for (int64_t k = p_.starts[i]; k < p_.starts[i + 1]; ++k)
        if (p_.lists[k] < 0 || p_.lists[k] >= p_.N || p_.lists[k] == own_[i] || (k > p_.starts[i] && p_.lists[k] <= p_.lists[k - 1]))
          throw std::invalid_argument("positives of an anchor must be ascending references other than the anchor itself");
    }
    for (int64_t a = 0; a < p_.A;) {
      int64_t last = a + 1;
      while (last < p_.A && last - a < 128 && p_.starts[last + 1] - p_.starts[a] <= kBlockCells) ++last;
      const int64_t cells = p_.starts[last] - p_.starts[a];
      const bool keep = kept + cells <= kKeptPositives;
      blocks_.push_back({a, last, 0, 0, owner, keep ? kept : -1});
      if (keep) kept += cells;
      owner = (owner + 1) % p_.threads;
      a = last;
    }
    kept_positives_ = kept;
    p_.row_first = row_first_.data(), p_.row_last = row_last_.data(), p_.positives = positives_.data();
  }

  void find_classes() {
    const std::vector<int64_t>&mine = anchors_.by_label->labels, &theirs = (p_.self ? anchors_ : references_).by_label->labels;
    row_first_.resize(p_.A), row_last_.resize(p_.A), positives_.assign(p_.stride, 0);
    int64_t kept = 0;
    int owner = 0;
    for (int64_t a0 = 0, r0 = 0; a0 < p_.A;) {
      const int64_t label = mine[a0];
      const int64_t a1 = std::upper_bound(mine.begin() + a0, mine.end(), label) - mine.begin();
      r0 = std::lower_bound(theirs.begin() + r0, theirs.end(), label) - theirs.begin();
      const int64_t r1 = std::upper_bound(theirs.begin() + r0, theirs.end(), label) - theirs.begin();
      for (int64_t i = a0; i < a1; ++i) row_first_[i] = r0, row_last_[i] = r1, positives_[i] = r1 - r0 - (own_[i] >= r0 && own_[i] < r1 ? 1 : 0);
      const int64_t columns = r1 - r0, step = columns ? std::max<int64_t>(1, std::min<int64_t>(128, kBlockCells / columns)) : a1 - a0;
      for (int64_t a = a0; a < a1; a += step) {
        const int64_t last = std::min(a1, a + step), cells = (last - a) * columns;
        const bool keep = kept + cells <= kKeptPositives;
        blocks_.push_back({a, last, r0, r1, owner, keep ? kept : -1});
        if (keep) kept += cells;
      }
      owner = (owner + 1) % p_.threads;
      a0 = a1;
    }
    kept_positives_ = kept;
    p_.row_first = row_first_.data(), p_.row_last = row_last_.data(), p_.positives = positives_.data();
  }

  void find_losses(const std::vector<LossRequest>& requests) {
    for (const LossRequest& request : requests) {
      LossSlot loss{};
      loss.functor = -1;
      for (int f = 0; f < kernels_.functors() && loss.functor < 0; ++f) {
        const FunctorInfo info = kernels_.describe(f);
        if (request.functor != info.name) continue;
        if (request.options.size() != size_t(info.bytes) / sizeof(T))
          throw std::invalid_argument("functor '" + request.functor + "' takes the options '" + info.options + "', got " +
                                      std::to_string(request.options.size()));
        if (!kernels_.fits(f, request.options.data(), loss.options)) continue;
        loss.functor = f;
        loss.values = info.values, loss.limits = info.limits, loss.sums = info.sums, loss.slopes = info.slopes;
        loss.slot_limits = info.slot_limits, loss.slot_sums = info.slot_sums, loss.slots = info.slots, loss.given = info.given, loss.search = info.search;
        if (info.partners && !p_.self) throw std::invalid_argument("functor '" + request.functor + "' is for a batch against itself");
        has_partners_ = has_partners_ || info.partners;
        if (info.centres) check_centres(request);
      }
      if (loss.functor < 0) throw std::invalid_argument("there is no functor '" + request.functor + "' for these options");
      if (loss.given > 0 && !request.given && p_.A > 0) throw std::invalid_argument("functor '" + request.functor + "' needs numbers per anchor");
      loss.cells = kernels_.cells(loss.functor, loss.options);
      loss.table_first = p_.table_cells;
      p_.table_cells += 2 * loss.cells;
      if (request.windows && kernels_.describe(loss.functor).partners)
        throw std::invalid_argument("functor '" + request.functor + "' couples anchors with all their positives and takes no windows");
      has_windows_ = has_windows_ || request.windows;
      loss.value_row = p_.value_count;
      p_.value_count += loss.values;
      slope_cells_ += loss.slopes * p_.stride;
      has_slots_ = has_slots_ || loss.slots;
      losses_.push_back(loss);
    }
    int64_t given = 0;
    for (size_t l = 0; l < losses_.size(); ++l) given += losses_[l].given + (requests[l].windows ? 4 : 0);
    given_.resize(given * p_.stride);
    T* at = given_.data();
    for (size_t l = 0; l < losses_.size(); ++l) {
      losses_[l].given_at = at;
      const T* from = static_cast<const T*>(requests[l].given);
      for (int k = 0; k < losses_[l].given; ++k, at += p_.stride)
        for (int64_t i = 0; i < p_.A; ++i) at[i] = from[k * p_.A + anchors_.order()[i]];
      losses_[l].windows_at = requests[l].windows ? at : nullptr;
      from = static_cast<const T*>(requests[l].windows);
      for (int k = 0; from && k < 4; ++k, at += p_.stride)
        for (int64_t i = 0; i < p_.A; ++i) at[i] = from[k * p_.A + anchors_.order()[i]];
    }
    p_.losses = losses_.data();
    p_.loss_count = int(losses_.size());
  }

  // A tile of classes with several centres holds whole classes, so all losses of the pass have the same number of them.
  void check_centres(const LossRequest& request) {
    const int64_t centres = int64_t(request.options[0]);
    const auto refuse = [&](const char* why) { throw std::invalid_argument("functor '" + request.functor + "' " + why); };
    if (centres < 1 || centres > kMostCentres) refuse("takes 1 to 64 centres per class");
    if (centres_ > 1 && centres_ != centres) refuse("cannot share a pass with another number of centres");
    if (p_.self || p_.lists || request.windows) refuse("takes references with labels, all of which are compared");
    centres_ = centres;
    const std::vector<int64_t>& labels = references_.by_label->labels;
    for (int64_t j = 0; j < p_.N; ++j)
      if (j / centres * centres + centres > p_.N || labels[j] != labels[j / centres * centres] ||
          (j % centres == 0 && j > 0 && labels[j] == labels[j - 1]))
        refuse("needs the same number of references in every class");
  }

  int64_t search_cells(const LossSlot& loss, int64_t most) const {
    return loss.search ? kernels_.search_cells(loss.search * most) : 0;
  }

  int64_t slot_cells(int64_t rows, int64_t most, int totals) const {
    int64_t cells = 0;
    for (const LossSlot& loss : losses_) cells += (loss.slot_limits + loss.slot_sums * totals) * most + 2 * search_cells(loss, most);
    return cells * rows;
  }

  void plan_tiles() {
    const int64_t budget = (request_.slot_bytes > 0 ? request_.slot_bytes : int64_t(32) << 20) / int64_t(sizeof(T));
    const int64_t most = has_slots_ && p_.A ? *std::max_element(positives_.begin(), positives_.begin() + p_.A) : 0;
    const bool symmetric = p_.self && !p_.lists && !has_windows_ && request_.triangle != 0;
    const bool large = most > (symmetric ? kMostComparedTwice : kMostCompared);
    bool search = false;
    for (LossSlot& loss : losses_) {
      if (most == 0 || (request_.search >= 0 ? request_.search == 0 : !large)) loss.search = 0;
      search = search || loss.search;
    }
    const bool slots_fit = slot_cells(p_.stride, most, p_.threads) <= budget;
    p_.triangle = symmetric && slots_fit && !search;
    // A triangle wants narrow tiles at its diagonal. Against references larger tiles save the products' packing; the columns of
    // a strip should stay in the first-level cache only while more than one loss passes over it.
    p_.tile_rows = request_.tile_rows > 0 ? request_.tile_rows : (!p_.self ? 256 : p_.A >= 1024 ? 128 : 64);
    p_.tile_columns = request_.tile_columns > 0 ? request_.tile_columns : (!p_.self && p_.loss_count == 1 ? 1024 : 512);
    if (!p_.triangle && p_.threads > 1) {                              // every thread should find rows, and columns, to own
      p_.tile_rows = std::min(p_.tile_rows, rounded((p_.A + p_.threads - 1) / p_.threads, 8));
      p_.tile_columns = std::min(p_.tile_columns, rounded((p_.N + p_.threads - 1) / p_.threads, 64));
    }
    int64_t row_bytes = 1;                                             // of a row's slots or bins: those of a tile stay in the cache
    for (const LossSlot& loss : losses_) row_bytes = std::max(row_bytes, loss.search ? 16 * search_cells(loss, most) : loss.slots ? 64 * most : 1);
    p_.tile_rows = std::min(p_.tile_rows, std::max<int64_t>(8, (int64_t(2) << 20) / row_bytes));
    p_.tile_rows = std::max<int64_t>(1, std::min(p_.tile_rows, std::max<int64_t>(p_.A, 1)));
    p_.tile_columns = rounded(std::max<int64_t>(1, std::min(p_.tile_columns, std::max<int64_t>(p_.N, 1))), 16 * centres_);

    // Anchors are taken in chunks only when the slots of all of them would not fit.
    size_t block = 0;
    for (int64_t row = 0; row < p_.A || chunks_.empty();) {
      int64_t last = p_.A, widest = most;
      if (!slots_fit) {
        widest = 0;
        const size_t first = block;
        for (last = row; block < blocks_.size(); ++block) {
          const int64_t wider = std::max(widest, *std::max_element(positives_.begin() + blocks_[block].a0, positives_.begin() + blocks_[block].a1));
          const bool divides = has_partners_ && block > first && blocks_[block].r0 == blocks_[block - 1].r0;   // partners stay together
          if (block > first && !divides && slot_cells(rounded(blocks_[block].a1 - row, 16), wider, 1) > budget) break;
          widest = wider, last = blocks_[block].a1;
        }
      } else {
        block = blocks_.size();
      }
      const int64_t first_block = chunks_.empty() ? 0 : chunks_.back().block1, first_tile = int64_t(tiles_.size());
      for (int64_t i0 = row; i0 < last; i0 += p_.tile_rows) {
        const int64_t i1 = std::min(i0 + p_.tile_rows, last);
        for (int64_t j0 = p_.triangle ? i0 : 0; j0 < p_.N; j0 += p_.tile_columns) {
          const int64_t j1 = std::min(j0 + p_.tile_columns, p_.N);
          const bool same = row_first_[i0] <= j0 && j1 <= row_last_[i0] && row_first_[i1 - 1] <= j0 && j1 <= row_last_[i1 - 1];
          if (p_.triangle ? j1 <= row_last_[i0] : same) continue;      // no negative in it
          tiles_.push_back({i0, i1, j0, j1, -1});
        }
      }
      chunks_.push_back({row, last, first_tile, int64_t(tiles_.size()), first_block, int64_t(block), widest});
      row = last;
      if (p_.A == 0) break;
    }
    const int64_t workspace = request_.workspace >= 0 ? request_.workspace : int64_t(p_.self ? 24 : 64) << 20;
    int64_t cells = 0;
    for (const Tile& t : tiles_) cells += (t.i1 - t.i0) * rounded(t.j1 - t.j0, 16);
    tile_cells_ = cells;
    // A batch with itself keeps all tiles or none (a part would cost its memory and save little); against references every tile
    // that fits is one product less.
    if (chunks_.size() == 1 && (!p_.self || cells * int64_t(sizeof(T)) <= workspace))
      for (Tile& t : tiles_) {
        cells = (t.i1 - t.i0) * rounded(t.j1 - t.j0, 16);
        if ((stored_cells_ + cells) * int64_t(sizeof(T)) > workspace) break;
        t.stored = stored_cells_;
        stored_cells_ += cells;
      }
    most_positives_ = most;
    for (const Chunk& c : chunks_)
      slot_cells_ = std::max(slot_cells_, slot_cells(rounded(c.row1 - c.row0, 16) + 16, c.most_positives, p_.triangle ? p_.threads : 1));
  }

  // Memory that lives from forward to backward is kept; what one phase needs alone is given back by leave().
  void allocate() {
    p_.most_positives = most_positives_;                               // scratch memory for the largest chunk
    for (LossSlot& loss : losses_) loss.search_cells = search_cells(loss, most_positives_);
    p_.blocks = blocks_.data(), p_.block_count = int64_t(blocks_.size());
    p_.tiles = tiles_.data(), p_.tile_count = int64_t(tiles_.size());
    p_.table_totals = table_totals_.resize(2 * p_.table_cells * p_.threads + 1);
    p_.scratch_bytes = kernels_.scratch_bytes(p_);
    p_.scratch = scratch_.resize(p_.scratch_bytes * p_.threads);
    const int totals = p_.triangle ? p_.threads : 1;
    int64_t kept = 0, total_fields = 0;
    for (const LossSlot& loss : losses_) kept += loss.limits + loss.sums, total_fields += loss.sums;
    const bool first = !stats_.data() && kept * p_.stride > 0;
    if (first) stats_.resize(kept * p_.stride);
    if (first) std::memset(stats_.data(), 0, size_t(kept * p_.stride) * sizeof(T));
    if (!stored_.data()) stored_.resize(stored_cells_);
    if (!stored_positives_.data()) stored_positives_.resize(kept_positives_);
    if (!slots_.data()) slots_.resize(slot_cells_);
    totals_.resize(total_fields * totals * p_.stride);
    p_.stored = stored_.data(), p_.stored_positives = stored_positives_.data();
    T* stat = stats_.data();
    double* total = totals_.data();
    for (LossSlot& loss : losses_) {
      loss.limits_at = stat, stat += loss.limits * p_.stride;
      loss.sums_at = stat, stat += loss.sums * p_.stride;
      loss.totals_at = total, total += int64_t(loss.sums) * totals * p_.stride;
    }
  }

  void enter(size_t chunk) {
    const Chunk& c = chunks_[chunk];
    p_.row0 = c.row0, p_.row1 = c.row1;
    p_.tiles = tiles_.data() + c.tile0, p_.tile_count = c.tile1 - c.tile0;
    p_.blocks = blocks_.data() + c.block0, p_.block_count = c.block1 - c.block0;
    p_.slot_first = c.row0, p_.slot_stride = rounded(c.row1 - c.row0, 16) + 16, p_.most_positives = c.most_positives;
    const int64_t field = p_.most_positives * p_.slot_stride;
    T* at = slots_.data();
    for (LossSlot& loss : losses_) {
      loss.slot_limits_at = at, at += loss.slot_limits * field;
      loss.slot_sums_at = loss.slot_totals_at = at, at += loss.slot_sums * field * (p_.triangle ? p_.threads : 1);
      loss.search_cells = search_cells(loss, p_.most_positives);
      loss.breaks_at = at, at += loss.search_cells * p_.slot_stride;
      loss.bins_at = at, at += loss.search_cells * p_.slot_stride;
    }
  }

  void leave() {
    scratch_.reset();
    totals_.reset();
    slopes_.reset();
    table_totals_.reset();
    table_slopes_.reset();
  }

  Kernels<T> kernels_;
  PlanRequest request_;
  bool normalise_anchors_, normalise_references_, has_slots_ = false, has_partners_ = false, has_windows_ = false;
  Problem<T> p_{};
  Side<T> anchors_, references_;
  std::vector<int64_t> row_first_, row_last_, positives_, own_;
  std::vector<Tile> tiles_;
  std::vector<Block> blocks_;
  std::vector<Chunk> chunks_;
  std::vector<LossSlot> losses_;
  Buffer<int64_t> table_totals_;
  Buffer<T> anchor_grads_, reference_grads_;                          // from differentiate() to deliver()
  Buffer<T> given_, table_slopes_, stats_, slopes_, stored_, stored_positives_, slots_;
  Buffer<double> totals_;
  Buffer<unsigned char> scratch_;
  int64_t centres_ = 1;                                                // references per class, where a loss folds them
  int64_t kept_positives_ = 0, stored_cells_ = 0, slope_cells_ = 0, slot_cells_ = 0, most_positives_ = 0, tile_cells_ = 0;
};

}  // namespace

std::unique_ptr<StepBase> make_step(bool is_double, const Input& anchors, const Input* references, int64_t width,
                                    const std::vector<LossRequest>& losses, const Relations& relations, const PlanRequest& request,
                                    Orders& orders) {
  if (is_double) return std::make_unique<Step<double>>(anchors, references, width, losses, relations, request, orders);
  return std::make_unique<Step<float>>(anchors, references, width, losses, relations, request, orders);
}

std::vector<Functor> functors() {
  std::vector<Functor> out;
  const Kernels<float>& k = current<float>();
  for (int f = 0; f < k.functors(); ++f) {
    const FunctorInfo info = k.describe(f);
    if (out.empty() || out.back().name != info.name) out.push_back({info.name, info.options, info.values, info.partners});
  }
  return out;
}

std::vector<std::string> functor_names(const FunctorModule& module) {
  std::vector<std::string> out;
  for (int k = 0; k < module.count; ++k) {                             // an entry begins with its description
    const auto* info = reinterpret_cast<const FunctorInfo*>(static_cast<const char*>(module.f32) + k * module.bytes32);
    if (out.empty() || out.back() != info->name) out.push_back(info->name);
  }
  return out;
}

void register_functors(const FunctorModule& module) {
  const Level& level = all_levels()[chosen_level()];
  const auto check = [](const char* refused) {
    if (refused) throw std::invalid_argument(std::string("this shared object ") + refused);
  };
  if (module.headers != std::string(DML_HEADERS)) check("was compiled against other headers than this extension");
  if (module.level != level.name) check("was compiled for another instruction set than the one in use");
  check(level.f32.append(module.f32, module.count, module.bytes32));
  check(level.f64.append(module.f64, module.count, module.bytes64));
}

std::string headers() { return DML_HEADERS; }
std::string flags(const std::string& level) {
  for (const auto& [name, flags] : std::vector<std::pair<std::string, std::string>>{DML_LEVEL_FLAGS})
    if (name == level) return DML_FLAGS " " + flags;
  throw std::invalid_argument("this build has no level '" + level + "'");
}

std::vector<std::string> levels() {
  std::vector<std::string> out;
  for (const Level& level : all_levels()) out.push_back(level.name);
  return out;
}
std::string level() { return all_levels()[chosen_level()].name; }
void use_level(const std::string& name) {
  for (size_t k = 0; k < all_levels().size(); ++k)
    if (all_levels()[k].name == name) {
      chosen_level() = k;
      return;
    }
  throw std::invalid_argument("this CPU or build has no level '" + name + "'");
}
void use_blas(void* sgemm, void* dgemm, void* set_threads_local) {
  blas.sgemm = reinterpret_cast<BlasGemm<float>>(sgemm);
  blas.dgemm = reinterpret_cast<BlasGemm<double>>(dgemm);
  blas.threads = reinterpret_cast<void (*)(int)>(set_threads_local);
}
bool has_blas() { return blas.sgemm && blas.dgemm; }
void release_workspaces() { Pool::shared().clear(); }
int64_t highest_workspace() { return int64_t(Pool::shared().highest_since_last()); }

}  // namespace dml
