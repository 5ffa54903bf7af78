#include "cpu/pass.h"

#include <algorithm>
#include <cstring>

#include "cpu/batch_means.h"
#include "cpu/choices.h"
#include "cpu/levels.h"
#include "cpu/side.h"

namespace dml {

namespace {

template <class T> class Pass final : public PassBase {
 public:
  Pass(const Input& anchors, const Input* references, int64_t width, const std::vector<FunctorCall>& calls,
       const Relations& relations, const PlanRequest& request, Orders& orders)
      : kernels_(current_kernels<T>()), request_(request),
        outline_(outlined(anchors, references, width, calls, relations, request, orders)),
        normalise_anchors_(anchors.normalise), normalise_references_(references ? references->normalise : anchors.normalise),
        p_(problem_of<T>(outline_)) {
    const Streamed streamed = outline_.plan.streamed;
    anchors_.fill(kernels_, anchors, *outline_.anchors, width, outline_.threads, streamed == Streamed::anchors);
    if (references) {
      references_.fill(kernels_, *references, *outline_.references, width, outline_.threads, streamed == Streamed::references);
      bool* broken = anchors_.broken.data();                           // every anchor is compared with every reference
      if (references_.has_broken(p_.N)) std::fill_n(broken, p_.A, true);
    }
    p_.anchors = anchors_.unit.data();
    p_.references = references ? references_.unit.data() : p_.anchors;
    p_.broken = anchors_.broken.data();
    copy_given(calls);
    if (streamed == Streamed::neither) return;
    const Input& in = streamed == Streamed::anchors ? anchors : *references;
    Side<T>& side = streamed_side();
    p_.streamed = {streamed,
                   static_cast<const T*>(in.data),
                   in.stride,
                   side.order,
                   in.normalise,
                   side.norms.data(),
                   side.broken.data(),
                   nullptr,
                   0,
                   outline_.classes.slopes_at.data()};
  }

  const Outline& outline() const override { return outline_; }
  std::vector<std::pair<std::string, int64_t>> plan() const override { return summary<T>(outline_); }

  void forward(void* values, void* counts, void* tables) override {
    Buffer<T> sorted;
    const int64_t numbers = int64_t(p_.value_count) * p_.A;
    T *v = sorted.resize(2 * numbers), *c = v + numbers;
    allocate(true);
    means_.find(kernels_, p_, outline_.functors, anchors_.broken.data());
    std::memset(p_.table_totals, 0, size_t(2 * p_.table_cells * p_.threads) * sizeof(int64_t));
    for (const Chunk& chunk : outline_.plan.chunks) {
      enter(chunk);
      kernels_.forward(p_, kForward, v, c);
    }
    if (p_.streamed.which == Streamed::references && references_.has_broken(p_.N))
      std::fill_n(anchors_.broken.data(), p_.A, true);
    put_in_order(v, c, static_cast<T*>(values), static_cast<T*>(counts));
    read_tables(static_cast<T*>(tables));
    leave();
  }

  void differentiate(const void* cotangents, const double* shift, const void* table_cotangents, const Gradient& anchors,
                     const Gradient& references) override {
    begin_backward(static_cast<const T*>(cotangents), shift, static_cast<const T*>(table_cotangents), anchors, references);
    run_backward(kBackward);
    means_.add(kernels_, p_, outline_.functors, anchor_grads_.data());
    end_backward();
  }

  void deliver(const Gradient& anchors, const Gradient& references) override {
    const auto put = [&](Buffer<T>& grads, const Side<T>& side, int64_t rows, bool normalise, const Gradient& to) {
      const bool is_streamed = p_.streamed.which != Streamed::neither && &side == &streamed_side();
      if (is_streamed && to.data && !is_written_) put_in_order(grads.data(), side, rows, to);
      else if (!is_streamed && to.data && rows > 0)
        kernels_.scatter(grads.data(), side.unit.data(), side.norms.data(), side.order, rows, p_.D, normalise,
                         static_cast<T*>(to.data), to.stride, to.adds, p_.threads);
      grads.reset();
    };
    put(anchor_grads_, anchors_, p_.A, normalise_anchors_, anchors);
    if (!p_.self) put(reference_grads_, references_, p_.N, normalise_references_, references);
  }

  void open() override {
    allocate(true);
    enter(outline_.plan.chunks.front());                               // without slots there are no others
    kernels_.forward(p_, kOpen, nullptr, nullptr);
  }
  void collect() override { kernels_.forward(p_, kCollect, nullptr, nullptr); }
  void close(void* values, void* counts) override {
    Buffer<T> sorted;
    T *v = zeros(sorted, 2 * int64_t(p_.value_count) * p_.A), *c = v + int64_t(p_.value_count) * p_.A;
    kernels_.forward(p_, kClose, v, c);
    put_in_order(v, c, static_cast<T*>(values), static_cast<T*>(counts));
    leave();
  }
  void weigh(const double* slopes) override {
    begin_backward(nullptr, slopes, nullptr, {}, {});
    run_backward(kWeigh);
  }
  void slope() override {
    run_backward(kSlope);
    end_backward();
  }
  void* gradient() override { return anchor_grads_.data(); }
  void deliver_run(int64_t from, int64_t count, const int64_t* rows, const Gradient& to) override {
    kernels_.scatter(anchor_grads_.data() + from * p_.D, anchors_.unit.data() + from * p_.D, anchors_.norms.data() + from, rows,
                     count, p_.D, normalise_anchors_, static_cast<T*>(to.data), to.stride, to.adds, 1);
  }

  int64_t fields(Shared what) const override {
    int64_t count = 0;
    for (const FunctorState& f : outline_.functors) count += numbers_of(f, what).second;
    return count;
  }
  void take(Shared what, int64_t from, int64_t count, void* to) const override {
    T* at = static_cast<T*>(to);
    for (const FunctorState& f : outline_.functors)
      for (int k = 0; k < numbers_of(f, what).second; ++k, at += count)
        std::copy_n(numbers_of(f, what).first + k * p_.stride + from, count, at);
  }
  void put(Shared what, int64_t from, int64_t count, const void* numbers) override {
    const T* at = static_cast<const T*>(numbers);
    for (const FunctorState& f : outline_.functors)
      for (int k = 0; k < numbers_of(f, what).second; ++k, at += count)
        std::copy_n(at, count, numbers_of(f, what).first + k * p_.stride + from);
  }
  void merge(const void* parts, int64_t step) override {
    const int64_t from = outline_.bounds[request_.rank], count = outline_.bounds[request_.rank + 1] - from;
    const T* at = static_cast<const T*>(parts);
    for (int l = 0; l < p_.loss_count; ++l) {
      kernels_.merge_ranks(p_, l, at, request_.ranks, step, from, count);
      at += outline_.functors[l].sums * count;
    }
  }

 private:
  // Numbers per anchor of a functor and how many fields they have.
  static std::pair<T*, int> numbers_of(const FunctorState& f, Shared what) {
    if (what == Shared::kLimits) return {static_cast<T*>(f.limits_at), f.limits};
    if (what == Shared::kSums) return {static_cast<T*>(f.sums_at), f.sums};
    return {static_cast<T*>(f.slopes_at), f.slopes};
  }

  // Values and counts of the anchors in class order to where the caller has the anchors.
  void put_in_order(const T* values, const T* counts, T* to, T* to_counts) const {
    for (int row = 0; row < p_.value_count; ++row)
      for (int64_t i = 0; i < p_.A; ++i) {
        to[row * p_.A + anchors_.order[i]] = values[row * p_.A + i];
        to_counts[row * p_.A + anchors_.order[i]] = counts[row * p_.A + i];
      }
  }

  void begin_backward(const T* from, const double* shift, const T* table_cotangents, const Gradient& anchors,
                      const Gradient& references) {
    T* w = cotangents_.resize(int64_t(p_.value_count) * p_.A);
    for (int row = 0; row < p_.value_count; ++row)
      for (int64_t i = 0; i < p_.A; ++i)
        w[row * p_.A + i] = T((from ? from[row * p_.A + anchors_.order[i]] : 0) + (shift ? shift[row] : 0));
    const bool streams_anchors = p_.streamed.which == Streamed::anchors, streams = p_.streamed.which != Streamed::neither;
    const Gradient& out = streams_anchors ? anchors : references;
    is_written_ = streams && out.data && !out.adds;
    p_.streamed.gradient = is_written_ ? static_cast<T*>(out.data) : nullptr, p_.streamed.gradient_stride = out.stride;
    // a panel begins with its first product
    if (!streams_anchors) p_.whole ? anchor_grads_.resize(p_.A * p_.D) : zeros(anchor_grads_, p_.A * p_.D);
    else if (!is_written_) anchor_grads_.resize(p_.A * p_.D);
    if (!p_.self && references.data && !(streams && !streams_anchors)) zeros(reference_grads_, p_.N * p_.D);
    else if (!p_.self && references.data && !is_written_) reference_grads_.resize(p_.N * p_.D);
    allocate(outline_.plan.chunks.size() > 1);                         // each chunk is then opened again
    p_.cotangents = w;
    p_.table_slopes = slopes_of_tables(table_cotangents);
    T* slope = zeros(slopes_, outline_.slope_cells);
    for (FunctorState& f : outline_.functors) f.slopes_at = slope, slope += f.slopes * p_.stride;
    reached_ = reached_by(w);
    // Threads own the larger side and add to private copies of the other one.
    const int64_t private_rows = p_.self ? p_.A : p_.row_owner_backward ? p_.N : p_.A;
    if (p_.threads > 1 && !p_.whole) copies_.resize((p_.threads - 1) * private_rows * p_.D);
  }
  void run_backward(int stages) {
    const bool several = outline_.plan.chunks.size() > 1;
    Buffer<T> unused;
    if (several) unused.resize(2 * int64_t(p_.value_count) * p_.A);
    for (const Chunk& chunk : outline_.plan.chunks) {
      enter(chunk);
      const Some seen(*this, reached_);
      if (several)  // its slots again
        kernels_.forward(p_, kForward, unused.data(), unused.data() + int64_t(p_.value_count) * p_.A);
      kernels_.backward(p_, stages, cotangents_.data(), anchor_grads_.data(), reference_grads_.data(), copies_.data());
    }
  }
  void end_backward() {
    cotangents_.reset();
    copies_.reset();
    leave();
  }
  Side<T>& streamed_side() { return p_.streamed.which == Streamed::anchors ? anchors_ : references_; }

  // A gradient that has only to find its places.
  void put_in_order(const T* from, const Side<T>& side, int64_t rows, const Gradient& out) const {
    for (int64_t i = 0; i < rows; ++i, from += p_.D) {
      T* to = static_cast<T*>(out.data) + side.order[i] * out.stride;
      for (int64_t k = 0; k < p_.D; ++k) to[k] = from[k] + (out.adds ? to[k] : T(0));
    }
  }

  // Which functors a cotangent beside zero reaches; all, where none does.
  std::vector<char> reached_by(const T* cotangents) const {
    std::vector<char> reached;
    for (const FunctorState& f : outline_.functors) {
      const T *from = cotangents + f.value_row * p_.A, *to = from + f.values * p_.A;
      reached.push_back(f.cells || std::any_of(from, to, [](T x) { return x != 0; }));
    }
    if (std::find(reached.begin(), reached.end(), 1) == reached.end()) reached.assign(reached.size(), 1);
    return reached;
  }

  // While it lives, the kernels see some functors only: the slopes of the others are zero.
  class Some {
   public:
    Some(Pass& pass, const std::vector<char>& which) : pass_(pass) {
      for (size_t l = 0; l < which.size(); ++l)
        if (which[l]) functors_.push_back(pass.outline_.functors[l]);
      see(functors_);
    }
    ~Some() { see(pass_.outline_.functors); }
    Some(const Some&) = delete;
    Some& operator=(const Some&) = delete;

   private:
    void see(std::vector<FunctorState>& functors) {
      pass_.p_.losses = functors.data(), pass_.p_.loss_count = int(functors.size());
    }
    Pass& pass_;
    std::vector<FunctorState> functors_;
  };

  static Outline outlined(const Input& anchors, const Input* references, int64_t width, const std::vector<FunctorCall>& calls,
                          const Relations& relations, const PlanRequest& request, Orders& orders) {
    const Rows others = references ? rows_of(*references) : Rows{};
    return outline_of<T>(rows_of(anchors), references ? &others : nullptr, width, calls, relations, request, orders);
  }

  template <class Number> static Number* zeros(Buffer<Number>& buffer, int64_t count) {
    Number* at = buffer.resize(count);
    std::fill_n(at, count, Number(0));                                 // of nothing there is no address
    return at;
  }

  // Numbers and windows of the anchors, in class order: the caller's may be gone at backward.
  void copy_given(const std::vector<FunctorCall>& calls) {
    T* at = given_.resize(outline_.given_fields * p_.stride);
    const auto copy = [&](const void* from, int fields) {
      for (int k = 0; from && k < fields; ++k, at += p_.stride)
        for (int64_t i = 0; i < p_.A; ++i) at[i] = static_cast<const T*>(from)[k * p_.A + anchors_.order[i]];
    };
    for (size_t l = 0; l < calls.size(); ++l) {
      FunctorState& f = outline_.functors[l];
      f.given_at = at;
      if (f.has_means) at += f.given_count * p_.stride;                // means_ writes them
      else copy(calls[l].given, f.given_count);
      f.windows_at = calls[l].windows ? at : nullptr;
      copy(calls[l].windows, 4);
    }
  }

  // The whole numbers of all threads, whose sums do not depend on the order, as cells of the soft histograms.
  void read_tables(T* tables) const {
    const double unit = kernels_.fraction_unit;
    for (const FunctorState& f : outline_.functors)
      for (int64_t half = 0; half < 2; ++half) {
        double carried = 0;
        for (int64_t c = 0; c < f.cells; ++c) {
          int64_t pairs = 0, fractions = 0;
          for (int t = 0; t < p_.threads; ++t) {
            const int64_t* at = p_.table_totals + t * 2 * p_.table_cells + 2 * f.table_first + 2 * half * f.cells;
            pairs += at[c], fractions += at[f.cells + c];
          }
          const double part = double(fractions) / unit;
          tables[f.table_first + half * f.cells + c] = T(double(pairs) - part + carried);
          carried = part;
        }
      }
  }

  // The difference of neighbouring cells' cotangents; beyond the last cell nothing moves.
  const T* slopes_of_tables(const T* cotangents) {
    T* slopes = table_slopes_.resize(p_.table_cells + 1);
    for (const FunctorState& f : outline_.functors)
      for (int64_t half = 0; half < 2; ++half)
        for (int64_t c = 0; c < f.cells; ++c) {
          const int64_t at = f.table_first + half * f.cells + c;
          slopes[at] = cotangents && c + 1 < f.cells ? cotangents[at + 1] - cotangents[at] : T(0);
        }
    return slopes;
  }

  // Memory that lives from forward to backward is kept; what one phase needs alone is given back by leave().
  void allocate(bool opens) {
    const Plan& plan = outline_.plan;
    p_.most_positives = plan.most_positives;                           // scratch memory for the largest chunk
    for (FunctorState& f : outline_.functors) f.search_cells = search_cells_of<T>(f, plan.most_positives);
    p_.blocks = outline_.classes.blocks.data(), p_.block_count = int64_t(outline_.classes.blocks.size());
    p_.tiles = plan.tiles.data(), p_.tile_count = int64_t(plan.tiles.size());
    p_.table_totals = table_totals_.resize(2 * p_.table_cells * p_.threads + 1);
    p_.scratch_bytes = kernels_.scratch_bytes(p_);
    p_.scratch = scratch_.resize(p_.scratch_bytes * p_.threads);
    const int totals = p_.triangle ? p_.threads : 1;
    int64_t stat_fields = 0, total_fields = 0;
    for (const FunctorState& f : outline_.functors) stat_fields += f.limits + f.sums, total_fields += f.sums;
    if (!stats_.data()) zeros(stats_, stat_fields * p_.stride);
    if (!stored_.data()) stored_.resize(plan.stored_cells);
    if (!stored_positives_.data()) stored_positives_.resize(outline_.classes.stored_positives);
    if (!slots_.data()) slots_.resize(plan.slot_cells);
    totals_.resize(total_fields * totals * p_.stride);
    p_.stored = stored_.data(), p_.stored_positives = stored_positives_.data();
    T* stat = stats_.data();
    double* total = totals_.data();
    choices_.allocate(outline_, p_, opens);
    for (FunctorState& f : outline_.functors) {
      f.limits_at = stat, stat += f.limits * p_.stride;
      f.sums_at = stat, stat += f.sums * p_.stride;
      f.totals_at = total, total += int64_t(f.sums) * totals * p_.stride;
    }
  }

  void enter(const Chunk& chunk) {
    p_.row0 = chunk.row0, p_.row1 = chunk.row1;
    p_.tiles = outline_.plan.tiles.data() + chunk.tile0, p_.tile_count = chunk.tile1 - chunk.tile0;
    p_.blocks = outline_.classes.blocks.data() + chunk.block0, p_.block_count = chunk.block1 - chunk.block0;
    p_.slot_first = chunk.row0, p_.slot_stride = rounded(chunk.row1 - chunk.row0, 16) + 16,
    p_.most_positives = chunk.most_positives;
    const int64_t field = p_.most_positives * p_.slot_stride;
    T* at = slots_.data();
    for (FunctorState& f : outline_.functors) {
      f.slot_limits_at = at, at += f.slot_limits * field;
      f.slot_sums_at = f.slot_totals_at = at, at += f.slot_sums * field * (p_.triangle ? p_.threads : 1);
      f.search_cells = search_cells_of<T>(f, p_.most_positives);
      f.breaks_at = at, at += f.search_cells * p_.slot_stride;
      f.bins_at = at, at += f.search_cells * p_.slot_stride;
    }
  }

  void leave() {
    scratch_.reset();
    totals_.reset();
    slopes_.reset();
    table_totals_.reset();
    table_slopes_.reset();
    choices_.leave();
  }

  const Kernels<T>& kernels_;
  PlanRequest request_;
  Outline outline_;
  bool normalise_anchors_, normalise_references_, is_written_ = false;  // is_written_: the streamed side's gradient
  Problem<T> p_;
  Side<T> anchors_, references_;
  Buffer<int64_t> table_totals_;
  Buffer<T> anchor_grads_, reference_grads_;                          // from differentiate() to deliver()
  std::vector<char> reached_;                                         // functors, by the running backward pass
  Buffer<T> given_, cotangents_, copies_, table_slopes_, stats_, slopes_, stored_, stored_positives_, slots_;
  Buffer<double> totals_;
  BatchMeans<T> means_;
  Buffer<unsigned char> scratch_;
  Choices<T> choices_;
};

}  // namespace

std::unique_ptr<PassBase> make_pass(bool is_double, const Input& anchors, const Input* references, int64_t width,
                                    const std::vector<FunctorCall>& calls, const Relations& relations,
                                    const PlanRequest& request, Orders& orders) {
  if (is_double) return std::make_unique<Pass<double>>(anchors, references, width, calls, relations, request, orders);
  return std::make_unique<Pass<float>>(anchors, references, width, calls, relations, request, orders);
}

}  // namespace dml
