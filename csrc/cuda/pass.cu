// Plans chunks and memory of a pass, and launches its phases (pass.h). The kernels of the losses are behind the table of losses.h.
#include "cuda/pass.h"

#include <cstdio>
#include <cstring>

#include "cuda/pass_kernels.h"
#include "cuda/set_kernels.h"

DML_BEGIN

constexpr int kLeastRows = 32;  // of a chunk of whole rows, however long they are
constexpr int64_t kWholeColumns = 65536;  // references beyond which rows come in parts, if all losses can
constexpr int64_t kPartRows = 1024;
constexpr int64_t kLongBytes = int64_t(32) << 20;  // of memory for rows with long lists, unless one row takes more
constexpr int64_t kMostLongBlocks = 264;
constexpr int64_t kAlign = 64;  // floats

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static int blocks_for(int64_t count, int each) { return int((count + each - 1) / each); }

// Hands out one piece of memory after the other; with a null base it measures.
struct Cursor {
  float* base;
  int64_t used = 0;
  float* take(int64_t count) {
    float* at = base ? base + used : nullptr;
    used += (count + kAlign - 1) / kAlign * kAlign;
    return at;
  }
  int* take_ints(int64_t count) { return reinterpret_cast<int*>(take(count)); }
};

// Functors that were compiled at run time, launched through the driver. An error is told by the next launch_problem().
static thread_local int external_error = 0;
// The driver launches in the context of the calling thread. The thread of a backward pass may have none yet, where no kernel of the
// runtime came before; the runtime then binds that of its device.
static void bind_context() {
  int device;
  if (cudaGetDevice(&device) == cudaSuccess) cudaSetDevice(device);
}
static void launch_by_driver(CudaLauncher launcher, void* kernel, int blocks, int threads, size_t shared, cudaStream_t stream,
                             const void* options, const RowsView& v, const RowsChunk& c, const void* losses) {
  void* arguments[] = {const_cast<void*>(options), const_cast<RowsView*>(&v), const_cast<RowsChunk*>(&c),
                       const_cast<void*>(losses)};
  bind_context();
  const int error =
      launcher(kernel, unsigned(blocks), 1, 1, unsigned(threads), 1, 1, unsigned(shared), stream, arguments, nullptr);
  if (error && !external_error) external_error = error;
}
static void launch_external(void* kernel, const CudaLoss& loss, int blocks, int threads, const RowsView& v, const RowsChunk& c,
                            const RowsLoss& m, cudaStream_t stream) {
  launch_by_driver(loss.launcher, kernel, blocks, threads, shared_for(loss.external->memory, m), stream, loss.options, v, c,
                   &m);
}
static const char* launch_problem() {
  static thread_local char text[64];
  const int error = external_error;
  external_error = 0;
  if (!error) return launch_error();
  std::snprintf(text, sizeof text, "error %d of the driver in a functor compiled at run time", error);
  return text;
}
static int no_cells(const unsigned char*) { return 0; }
static CudaEntry entry_of(const CudaLoss& loss) {
  if (!loss.external) return cuda_entry(loss.functor);
  const CudaExternal& x = *loss.external;
  CudaEntry e{};
  e.functor = {"", "", x.values, x.bytes, x.given, x.slots, x.partners, x.centres, false};
  e.limits = x.limits, e.sums = x.sums, e.slopes = x.slopes, e.memory = x.memory, e.cells = no_cells;
  e.forward = [](const CudaLoss& l, const RowsView& v, const RowsChunk& c, const RowsLoss& m, cudaStream_t stream) {
    launch_external(l.external->forward, l, c.rows, threads_for(c.columns), v, c, m, stream);
  };
  if (x.partners)
    e.close = [](const CudaLoss& l, const RowsView& v, const RowsChunk& c, const RowsLoss& m, cudaStream_t stream) {
      launch_external(l.external->close, l, c.rows, kWarp, v, c, m, stream);
    };
  e.backward = [](const CudaLoss& l, const RowsView& v, const RowsChunk& c, const RowsLoss& m, cudaStream_t stream) {
    launch_external(l.external->backward, l, c.rows, threads_for(c.columns), v, c, m, stream);
  };
  return e;
}

// The losses of a pass that share a kernel, and its launch.
struct Together {
  alignas(16) unsigned char options[kMostOfSet * sizeof(CudaLoss::options)];
  size_t bytes = 0;
  LossSet losses{};
  int count = 0, memory = 0;

  void add(const CudaEntry& e, const CudaLoss& loss, const RowsLoss& m) {
    std::memcpy(options + bytes, loss.options, size_t(e.functor.bytes));
    bytes += size_t(e.functor.bytes);
    losses.of[count++] = m, memory = e.memory;
  }
  void launch(const CudaSet& set, void* kernel, const RowsView& v, const RowsChunk& c, cudaStream_t stream) const {
    if (count)
      launch_by_driver(set.launcher, kernel, c.rows, threads_for(c.columns), shared_for(memory, losses.of[0]), stream, options,
                       v, c, &losses);
  }
};

struct Kept {
  int *first, *last, *own, *places, *broken;
  unsigned long long* tables;
};

struct Layout {
  const CudaShape& s;
  const CudaPlan& plan;

  Kept kept(Cursor& at) const {
    Kept k{};
    if (!s.lists) k.first = at.take_ints(s.A), k.last = at.take_ints(s.A);
    if (s.own) k.own = at.take_ints(s.A);
    if (s.own && !s.lists) k.places = at.take_ints(s.N);
    k.broken = at.take_ints(1);
    k.tables = reinterpret_cast<unsigned long long*>(at.take(4 * plan.table_cells));  // two numbers of 8 bytes per cell
    return k;
  }
  RowsLoss loss(const CudaEntry& e, Cursor& at) const {
    RowsLoss m{};
    m.limits = at.take(e.limits * s.A), m.sums = at.take(e.sums * s.A);
    return m;
  }
  int64_t width() const {  // of the longest list there may be
    int64_t width = s.N;
    if (s.lists) width = least(width, s.list_length);
    if (s.most_positives > 0) width = least(width, s.most_positives);
    return width;
  }
  void lists(RowsLoss& m, Cursor& at, int memory) const {
    m.width = int(width()), m.short_width = int(least(m.width, kShortList)), m.long_blocks = int(plan.long_blocks);
    m.memory = at.take(plan.long_blocks * memory * width());
  }
};

static int highest_memory(const CudaLoss* losses, int count) {
  int memory = 0;
  for (int l = 0; l < count; ++l) memory = int(most(memory, entry_of(losses[l]).memory));
  return memory;
}

static RowsView view_of(const CudaProblem& p, const Kept& k) {
  RowsView v{};
  v.anchors = p.anchors.unit, v.references = p.shape.self ? p.anchors.unit : p.references.unit;
  v.first = k.first, v.last = k.last, v.own = k.own;
  v.starts = reinterpret_cast<const long long*>(p.starts), v.lists = reinterpret_cast<const long long*>(p.lists);
  v.order = reinterpret_cast<const long long*>(p.anchors.order);
  v.factors = p.anchors.factors, v.broken = k.broken;
  v.A = int(p.shape.A), v.N = int(p.shape.N), v.D = int(p.shape.D), v.self = p.shape.self;
  return v;
}
static RowsChunk chunk_of(const CudaProblem& p, const CudaChunk& c) {
  RowsChunk r{};
  r.products = c.products, r.slopes = c.slopes ? c.slopes : c.products;
  r.row0 = int(c.row0), r.rows = int(c.rows), r.column0 = int(c.column0), r.columns = int(c.columns);
  r.first = c.column0 == 0, r.last = c.column0 + c.columns >= p.shape.N, r.whole = p.plan.whole;
  return r;
}

// Calls work(entry, loss, memory, first row of its values, first cell of its table) for every loss.
template <class Work>
static void for_losses(const CudaProblem& p, const CudaLoss* losses, int count, Cursor& kept, const Kept& k, Work work) {
  const Layout layout{p.shape, p.plan};
  int64_t row = 0, cell = 0;
  for (int l = 0; l < count; ++l) {
    const CudaEntry e = entry_of(losses[l]);
    RowsLoss m = layout.loss(e, kept);
    m.given = losses[l].given, m.windows = losses[l].windows;
    m.table = k.tables + 2 * cell;
    work(e, losses[l], m, row, cell);
    row += e.functor.values, cell += 2 * e.cells(losses[l].options);
  }
}

DML_END

namespace dml {

int cuda_functors() { return cuda_entries(); }
CudaFunctor cuda_functor(int index) { return cuda_entry(index).functor; }
bool cuda_fits(int functor, const double* options, unsigned char* into) { return cuda_entry(functor).fits(options, into); }
bool cuda_joins(const CudaLoss& loss) {
  const CudaFunctor f = entry_of(loss).functor;
  return !f.slots && !f.partners && !f.centres && !f.table && !loss.has_windows;
}
int cuda_runtime_version() { return CUDART_VERSION; }

const char* cuda_plan(const CudaShape& s, const CudaLoss* losses, int count, CudaPlan* plan) {
  constexpr int64_t limit = int64_t(1) << 30;
  if (s.A > limit || s.N > limit || s.D > limit) return "more than 2^30 rows, or as wide vectors";
  *plan = {};
  bool slots = false;
  int together = 0;
  int64_t step = 1, sums = 0, slopes = 0, highest_slopes = 0;
  for (int l = 0; l < count; ++l) {
    const CudaEntry e = entry_of(losses[l]);
    if (e.functor.given > 0 && !losses[l].given && s.A > 0) return "a functor lacks its numbers per anchor";
    if (e.functor.partners && (!s.self || losses[l].has_windows))
      return "losses with partners are for all pairs of a batch with itself";
    if (e.functor.centres) {
      float centres;
      __builtin_memcpy(&centres, losses[l].options, sizeof centres);
      if (!(centres >= 1 && centres <= 64)) return "a class has 1 to 64 centres";
      if (s.self || s.lists || losses[l].has_windows)
        return "losses with centres take references with labels, all of which are compared";
      if (s.N % int64_t(centres)) return "every class has the same number of centres";
      int64_t a = step, b = int64_t(centres);
      while (b) {
        const int64_t rest = a % b;
        a = b, b = rest;
      }
      step *= int64_t(centres) / a;  // a chunk holds whole classes
    }
    if (losses[l].in_set && (++together > kMostOfSet || !cuda_joins(losses[l]))) return "these losses do not share a kernel";
    slots = slots || e.functor.slots;
    plan->table_cells += 2 * e.cells(losses[l].options);
    sums += e.limits + e.sums, slopes += e.slopes, highest_slopes = most(highest_slopes, e.slopes);
  }
  const int64_t floats = most(s.workspace / int64_t(sizeof(float)), 1);
  plan->columns = s.N;
  if (!slots && s.N > kWholeColumns) plan->columns = most(floats / least(most(s.A, 1), kPartRows), 4096);
  if (s.columns > 0 && !slots) plan->columns = s.columns;
  if (plan->columns < s.N) plan->columns = most(plan->columns / step * step, step);
  plan->columns = least(plan->columns, s.N);
  plan->whole = plan->columns == s.N;
  plan->rows = s.rows > 0 ? s.rows : most(floats / most(plan->columns, 1), kLeastRows);
  if (plan->rows > 128 && !s.rows) plan->rows = plan->rows / 128 * 128;
  plan->rows = least(plan->rows, s.A);
  const Layout layout{s, *plan};
  const int64_t memory = highest_memory(losses, count);
  if (layout.width() > kShortList && memory > 0)
    plan->long_blocks =
        most(least(least(kLongBytes / (memory * layout.width() * int64_t(sizeof(float))), kMostLongBlocks), plan->rows), 1);
  Cursor kept{nullptr}, forward{nullptr}, backward{nullptr};
  layout.kept(kept);
  for (int l = 0; l < count; ++l) layout.loss(entry_of(losses[l]), kept);
  RowsLoss m{};
  layout.lists(m, forward, int(memory)), layout.lists(m, backward, int(memory));
  Cursor alone = backward;
  if (plan->whole) alone.take(highest_slopes * s.A);
  for (int l = 0; l < count; ++l)
    if (!plan->whole || losses[l].in_set) backward.take(entry_of(losses[l]).slopes * s.A);
  backward.used = most(backward.used, alone.used);
  const int64_t size = sizeof(float);
  plan->kept = kept.used * size, plan->forward = forward.used * size, plan->backward = backward.used * size;
  return nullptr;
}

const char* cuda_prepare(const CudaProblem& p, const CudaLoss*, int, void* stream_) {
  const auto stream = static_cast<cudaStream_t>(stream_);
  const CudaShape& s = p.shape;
  Cursor at{static_cast<float*>(p.kept)};
  const Kept k = Layout{s, p.plan}.kept(at);
  if (k.places && s.N)
    CU_LAUNCH(place_kernel, blocks_for(s.N, kMostThreads), kMostThreads, 0, stream, p.references.order, int(s.N), k.places);
  if (p.plan.table_cells)
    CU_LAUNCH(zero_kernel, blocks_for(2 * p.plan.table_cells, kMostThreads), kMostThreads, 0, stream, k.tables,
              int(2 * p.plan.table_cells));
  const auto launch = [&](const CudaSide& side, int64_t rows, bool is_references) {
    Gather g{};
    g.from = side.data, g.order = side.order, g.labels = side.labels;
    g.others = s.self ? p.anchors.labels : p.references.labels;
    g.rows = int(rows), g.width = int(s.D), g.other_rows = int(s.N);
    g.normalise = side.normalise, g.is_references = is_references;
    g.to = side.unit, g.factors = side.factors, g.broken = k.broken;
    if (!is_references) g.first = k.first, g.last = k.last, g.own = k.own, g.own_given = p.own, g.places = k.places;
    CU_LAUNCH(gather_kernel, int(most(blocks_for(rows, kWarps), 1)), kWarps * kWarp, 0, stream, g);
  };
  launch(p.anchors, s.A, false);
  if (!s.self && s.N) launch(p.references, s.N, true);
  return launch_problem();
}

const char* cuda_forward(const CudaProblem& p, const CudaLoss* losses, int count, const CudaChunk& chunk, void* scratch,
                         float* values, float* counts, void* stream_) {
  const auto stream = static_cast<cudaStream_t>(stream_);
  if (chunk.rows == 0) return nullptr;
  const Layout layout{p.shape, p.plan};
  Cursor at{static_cast<float*>(p.kept)};
  const Kept k = layout.kept(at);
  const RowsView v = view_of(p, k);
  const RowsChunk c = chunk_of(p, chunk);
  if (p.shape.lists && chunk.fresh) CU_LAUNCH(mark_kernel, c.rows, kWarp, 0, stream, v, c, chunk.products);
  Together together;
  for_losses(p, losses, count, at, k, [&](const CudaEntry& e, const CudaLoss& loss, RowsLoss m, int64_t row, int64_t) {
    Cursor temporary{static_cast<float*>(scratch)};
    layout.lists(m, temporary, highest_memory(losses, count));
    m.values = values + row * p.shape.A, m.counts = counts + row * p.shape.A;
    if (loss.in_set) together.add(e, loss, m);
    else e.forward(loss, v, c, m, stream);
  });
  together.launch(p.set, p.set.forward, v, c, stream);
  return launch_problem();
}

const char* cuda_finish(const CudaProblem& p, const CudaLoss* losses, int count, void* scratch, float* values, float* counts,
                        float* tables, void* stream_) {
  const auto stream = static_cast<cudaStream_t>(stream_);
  const Layout layout{p.shape, p.plan};
  Cursor at{static_cast<float*>(p.kept)};
  const Kept k = layout.kept(at);
  const RowsView v = view_of(p, k);
  for_losses(p, losses, count, at, k, [&](const CudaEntry& e, const CudaLoss& loss, RowsLoss m, int64_t row, int64_t cell) {
    if (const int cells = e.cells(loss.options))
      CU_LAUNCH(read_table_kernel, blocks_for(2 * cells, kMostThreads), kMostThreads, 0, stream,
                static_cast<const unsigned long long*>(m.table), cells, tables + cell);
    if (!e.close || p.shape.A == 0) return;
    Cursor temporary{static_cast<float*>(scratch)};
    layout.lists(m, temporary, highest_memory(losses, count));
    m.values = values + row * p.shape.A, m.counts = counts + row * p.shape.A;
    RowsChunk all{};
    all.rows = v.A, all.columns = 0, all.first = all.last = true;
    e.close(loss, v, all, m, stream);
  });
  return launch_problem();
}

const char* cuda_backward(const CudaProblem& p, const CudaLoss* losses, int count, const CudaChunk& chunk, void* scratch,
                          const float* cotangents, const float* table_cotangents, void* stream_) {
  const auto stream = static_cast<cudaStream_t>(stream_);
  if (chunk.rows == 0) return nullptr;
  const Layout layout{p.shape, p.plan};
  Cursor at{static_cast<float*>(p.kept)}, temporary{static_cast<float*>(scratch)};
  const Kept k = layout.kept(at);
  const RowsView v = view_of(p, k);
  const RowsChunk c = chunk_of(p, chunk);
  if (p.shape.lists && chunk.fresh) CU_LAUNCH(mark_kernel, c.rows, kWarp, 0, stream, v, c, chunk.products);
  RowsLoss lists{};
  layout.lists(lists, temporary, highest_memory(losses, count));
  float* slopes = temporary.take(0);  // of whole rows: a launch reads what the one before has left; a set is the last launch
  Together together;
  bool adds = false;
  for_losses(p, losses, count, at, k, [&](const CudaEntry& e, const CudaLoss& loss, RowsLoss m, int64_t row, int64_t cell) {
    m.memory = lists.memory, m.width = lists.width, m.short_width = lists.short_width, m.long_blocks = lists.long_blocks;
    m.slopes = p.plan.whole && !loss.in_set ? slopes : temporary.take(e.slopes * p.shape.A);
    m.cotangents = cotangents + row * p.shape.A, m.table_cotangents = table_cotangents + cell;
    if (loss.in_set) return together.add(e, loss, m);
    m.adds = adds;
    e.backward(loss, v, c, m, stream);
    adds = true;
  });
  together.losses.of[0].adds = adds;
  together.launch(p.set, p.set.backward, v, c, stream);
  return launch_problem();
}

const char* cuda_scatter(const CudaProblem& p, bool references, const float* grad, float* to, void* stream_) {
  const CudaSide& side = references ? p.references : p.anchors;
  const int64_t rows = references ? p.shape.N : p.shape.A;
  if (rows)
    CU_LAUNCH(scatter_kernel, blocks_for(rows, kWarps), kWarps * kWarp, 0, static_cast<cudaStream_t>(stream_), grad,
              static_cast<const float*>(side.unit), static_cast<const float*>(side.factors), side.order, int(rows),
              int(p.shape.D), side.normalise, to);
  return launch_problem();
}

}  // namespace dml
