#include "cpu/outline.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "cpu/levels.h"

namespace dml {

namespace {

[[noreturn]] void refuse(const FunctorCall& call, const std::string& why) {
  throw std::invalid_argument("functor '" + call.functor + "' " + why);
}

// A tile of classes with several centres holds whole classes, so all functors of the pass have the same number of them.
void check_centres(const FunctorCall& call, Outline& out) {
  const int64_t centres = int64_t(call.options[0]);
  if (centres < 1 || centres > kMostCentres) refuse(call, "takes 1 to 64 centres per class");
  if (out.centres > 1 && out.centres != centres) refuse(call, "cannot share a pass with another number of centres");
  if (out.self || out.relations.lists || call.windows || call.semihard >= 0)
    refuse(call, "takes references with labels, all of which are compared");
  out.centres = centres;
  const std::vector<int64_t>& labels = out.references->labels;
  for (int64_t j = 0; j < out.N; ++j)
    if (j / centres * centres + centres > out.N || labels[j] != labels[j / centres * centres] ||
        (j % centres == 0 && j > 0 && labels[j] == labels[j - 1]))
      refuse(call, "needs the same number of references in every class");
}

// Whether a functor folds classes of references, all of which it then needs together.
template <class T> bool fold_classes(const std::vector<FunctorCall>& calls) {
  const Kernels<T>& kernels = current_kernels<T>();
  for (int f = 0; f < kernels.functors(); ++f) {
    const FunctorInfo& info = kernels.describe(f);
    for (const FunctorCall& call : calls)
      if (info.centres && call.functor == info.name) return true;
  }
  return false;
}

// The narrowest form of the functor that takes the options.
template <class T> FunctorState functor_of(const FunctorCall& call, Outline& out) {
  const Kernels<T>& kernels = current_kernels<T>();
  FunctorState state{};
  state.functor = -1;
  for (int f = 0; f < kernels.functors() && state.functor < 0; ++f) {
    const FunctorInfo& info = kernels.describe(f);
    if (call.functor != info.name) continue;
    if (call.options.size() != size_t(info.bytes) / sizeof(T))
      refuse(call, std::string("takes the options '") + info.options + "', got " + std::to_string(call.options.size()));
    if (!kernels.fits(f, call.options.data(), state.options)) continue;
    state.functor = f;
    state.values = info.values, state.limits = info.limits, state.sums = info.sums, state.slopes = info.slopes;
    state.slot_limits = info.slot_limits, state.slot_sums = info.slot_sums, state.given_count = info.given_count;
    state.has_slots = info.has_slots, state.has_means = info.means, state.search = info.search;
    if (info.partners && !out.self) refuse(call, "is for a batch against itself");
    out.has_partners = out.has_partners || info.partners;
    if (info.centres) check_centres(call, out);
    if (info.partners && (call.windows || call.semihard >= 0))
      refuse(call, "couples anchors with all their positives and takes no windows");
    if (info.means && (!out.self || out.relations.lists || call.windows || call.semihard >= 0))
      refuse(call, "is for all pairs of a batch with itself");
  }
  if (state.functor < 0) throw std::invalid_argument("there is no functor '" + call.functor + "' for these options");
  if (state.given_count > 0 && !state.has_means && !call.given && out.A > 0) refuse(call, "needs numbers per anchor");
  state.cells = kernels.cells(state.functor, state.options);
  state.step_cells = kernels.step_cells(state.functor, state.options);
  return state;
}

template <class T> void add_functors(const std::vector<FunctorCall>& calls, Outline& out) {
  out.functors.reserve(calls.size());
  for (const FunctorCall& call : calls) {
    FunctorState state = functor_of<T>(call, out);
    state.table_first = out.table_cells;
    state.value_row = out.value_count;
    out.table_cells += 2 * state.cells;
    out.value_count += state.values;
    out.slope_cells += state.slopes * out.stride;
    out.given_fields += state.given_count + (call.windows ? 4 : 0);
    out.has_windows = out.has_windows || call.windows || call.semihard >= 0;
    if (call.semihard >= 0) {
      const auto same = std::find(out.margins.begin(), out.margins.end(), call.semihard);
      state.semihard = int(same - out.margins.begin()) + 1;
      if (same == out.margins.end()) out.margins.push_back(call.semihard);
    }
    out.functors.push_back(state);
  }
}

// Keeps what is one rank's.
template <class T> void divide(const PlanRequest& request, Outline& out) {
  bool may = out.self && !out.relations.lists && !out.has_windows;
  for (const FunctorState& f : out.functors) may = may && merges(current_kernels<T>().describe(f.functor));
  if (!may) throw std::invalid_argument("ranks divide a batch with itself, by functors of sums alone");
  out.bounds = keep_own_blocks(out.classes, request.rank, request.ranks);
}

}  // namespace

template <class T> int64_t search_cells_of(const FunctorState& state, int64_t most_positives) {
  if (state.step_cells) return 1;
  return state.search ? current_kernels<T>().search_cells(state.search * most_positives) : 0;
}

template <class T>
Outline outline_of(const Rows& anchors, const Rows* references, int64_t width, const std::vector<FunctorCall>& calls,
                   const Relations& relations, const PlanRequest& request, Orders& orders) {
  Outline out;
  out.D = width, out.A = anchors.rows, out.N = references ? references->rows : anchors.rows;
  out.self = !references, out.relations = relations;
  out.stride = rounded(out.A + 16, 16);                                // a register behind the last anchor may be read
  out.threads = threads_for(out.work() / request.ranks, request);
  const bool by_label = !relations.lists;
  out.anchors = order_of(anchors.labels, anchors.rows, by_label, orders);
  out.references = out.anchors;
  if (references && by_label && !fold_classes<T>(calls))
    out.references = order_of_references(references->labels, references->rows, *out.anchors);
  else if (references) out.references = order_of(references->labels, references->rows, by_label, orders);
  out.own = own_of(relations, *out.anchors, references ? out.references.get() : nullptr);
  out.classes = by_label ? classes_of(*out.anchors, *out.references, out.own, out.stride, out.threads)
                         : classes_of_lists(relations, out.own, out.N, out.stride, out.threads);
  add_functors<T>(calls, out);
  if (request.ranks > 1) divide<T>(request, out);
  const PlanInput input{out.A,
                        out.N,
                        out.stride,
                        out.self,
                        !by_label,
                        out.has_windows,
                        out.has_partners,
                        out.threads,
                        sizeof(T),
                        out.centres,
                        out.classes,
                        out.functors,
                        current_kernels<T>().search_cells};
  PlanRequest wanted = request;
  if (!out.margins.empty()) wanted.stream = 0;                         // pairs are chosen before the stream
  out.plan = make_plan(input, wanted);
  if (!by_label && out.plan.triangle)  // the tiles end at the diagonal
    std::iota(out.classes.row_last.begin(), out.classes.row_last.end(), int64_t(1));
  for (FunctorState& state : out.functors) {
    if (!out.plan.searches) state.search = state.step_cells = 0;       // the kernels then compare
    state.search_cells = search_cells_of<T>(state, out.plan.most_positives);
  }
  return out;
}

bool owns_rows_in_backward(const Outline& o) {
  return o.relations.lists || o.A >= o.N || o.plan.chunks.size() > 1 || (o.self && !o.plan.triangle);
}

template <class T> Problem<T> problem_of(const Outline& o) {
  Problem<T> p{};
  p.A = o.A, p.N = o.N, p.D = o.D, p.stride = o.stride, p.self = o.self, p.triangle = o.plan.triangle;
  p.row_first = o.classes.row_first.data(), p.row_last = o.classes.row_last.data(), p.positives = o.classes.positives.data();
  p.own = o.own.data(), p.starts = o.relations.starts, p.lists = o.relations.lists;
  p.tiles = o.plan.tiles.data(), p.tile_count = int64_t(o.plan.tiles.size());
  p.tile_rows = o.plan.tile_rows, p.tile_columns = o.plan.tile_columns, p.whole = o.plan.whole;
  p.blocks = o.classes.blocks.data(), p.block_count = int64_t(o.classes.blocks.size());
  p.most_positives = o.plan.most_positives;
  p.losses = const_cast<FunctorState*>(o.functors.data()), p.loss_count = int(o.functors.size());
  p.value_count = o.value_count, p.table_cells = o.table_cells;
  p.threads = o.threads;
  p.row_owner_backward = owns_rows_in_backward(o);
  p.gemm = current_gemm<T>();
  p.blas_threads = p.gemm ? current_blas_threads() : nullptr;
  p.streamed.which = o.plan.streamed;
  // Windows are ends that another pass has found, in tiles of another shape.
  const auto is_trained = [](const FunctorState& f) { return f.slopes > 0 || f.cells > 0; };
  p.own_similarities = o.has_windows || std::none_of(o.functors.begin(), o.functors.end(), is_trained);
  return p;
}

int64_t most_spans_of(const Outline& o, double margin) {
  const auto most = std::max_element(o.classes.positives.begin(), o.classes.positives.begin() + o.A);
  const int64_t positives = o.A ? *most : 0;
  return margin > 0 && 2.1 / margin < double(positives) ? int64_t(2.1 / margin) + 3 : positives;
}

template <class T> std::vector<std::pair<std::string, int64_t>> summary(const Outline& o) {
  const Plan& plan = o.plan;
  const int64_t number = sizeof(T), others = o.self ? 0 : o.N;
  int64_t limits = 0, sums = 0;
  for (const FunctorState& f : o.functors) limits += f.limits, sums += f.sums;
  const int64_t streamed = plan.streamed == Streamed::anchors ? o.A : plan.streamed == Streamed::references ? o.N : 0;
  const int64_t vectors = (o.A + others) * (o.D + 1) - streamed * o.D;
  const int64_t numbers = vectors + (limits + sums) * o.stride + plan.stored_cells + o.classes.stored_positives +
                          plan.slot_cells + o.given_fields * o.stride;
  int64_t positives = 0, spans = 0;
  for (int64_t i = 0; i < o.A; ++i) positives += o.classes.positives[i];
  for (double margin : o.margins) spans += most_spans_of(o, margin);
  const int64_t chosen = int64_t(o.margins.size()) * (positives + 4 * o.A) + 2 * spans * o.A * number;
  const int64_t choosing = int64_t(o.margins.size()) * (positives * (number + 4) + 4 * o.A);
  const int64_t kept = chosen + numbers * number + int64_t(sizeof(int64_t)) * 7 * (o.A + others) +
                       int64_t(plan.tiles.size() * sizeof(Tile) + o.classes.blocks.size() * sizeof(Block));
  const int64_t scratch = current_kernels<T>().scratch_bytes(problem_of<T>(o)) * o.threads +
                          sums * (plan.triangle ? o.threads : 1) * o.stride * int64_t(sizeof(double)) +
                          (2 * o.table_cells * o.threads + 1) * int64_t(sizeof(int64_t));
  const int64_t values = int64_t(o.value_count) * o.A;
  const int64_t private_rows = o.self ? o.A : owns_rows_in_backward(o) ? o.N : o.A;
  const int64_t copies = plan.whole ? 0 : o.threads - 1;
  const int64_t gradients = (o.A + others - streamed + copies * private_rows) * o.D;  // a streamed side's goes to the caller
  const int64_t backward = gradients + values * (plan.chunks.size() > 1 ? 3 : 1) + o.slope_cells + o.table_cells + 1;
  return {{"threads", o.threads},
          {"triangle", plan.triangle},
          {"tile_rows", plan.tile_rows},
          {"tile_columns", plan.tile_columns},
          {"tiles", int64_t(plan.tiles.size())},
          {"chunks", int64_t(plan.chunks.size())},
          {"searches", plan.searches},
          {"streamed", plan.streamed != Streamed::neither},
          {"cells", plan.tile_cells},
          {"stored_bytes", plan.stored_cells * number},
          {"slot_bytes", plan.slot_cells * number},
          {"kept_bytes", kept},
          {"forward_bytes", scratch + choosing + 2 * values * number},
          {"backward_bytes", scratch + (plan.chunks.size() > 1 ? choosing : 0) + backward * number}};
}

template Outline outline_of<float>(const Rows&, const Rows*, int64_t, const std::vector<FunctorCall>&, const Relations&,
                                   const PlanRequest&, Orders&);
template Outline outline_of<double>(const Rows&, const Rows*, int64_t, const std::vector<FunctorCall>&, const Relations&,
                                    const PlanRequest&, Orders&);
template int64_t search_cells_of<float>(const FunctorState&, int64_t);
template int64_t search_cells_of<double>(const FunctorState&, int64_t);
template Problem<float> problem_of<float>(const Outline&);
template Problem<double> problem_of<double>(const Outline&);
template std::vector<std::pair<std::string, int64_t>> summary<float>(const Outline&);
template std::vector<std::pair<std::string, int64_t>> summary<double>(const Outline&);

}  // namespace dml
