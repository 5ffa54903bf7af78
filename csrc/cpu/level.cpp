// One instruction set's kernels: compiled once per level with -DDML_LEVEL and that level's flags. The planner hands in plain
// data (problem.h); forward fills values and counts and leaves sums behind, backward turns cotangents into gradients.
#include <omp.h>
#include <cstring>

#include "cpu/pair_means.h"
#include "cpu/stages.h"
#include "dml_losses.h"                                                // DML_LOSSES(use): the headers of csrc/losses

DML_BEGIN

// The functors of this level. Passes may be running while a plugin's join: what is there never moves.
template <class T> static Table<T>& table() {
  static Table<T> all;
  return all;
}
template <class T> static int functors() { return __atomic_load_n(&table<T>().count, __ATOMIC_ACQUIRE); }

template <class T> static const char* append(const void* entries, int count, int64_t bytes) {
  Table<T>& to = table<T>();
  if (bytes != int64_t(sizeof(Entry<T>))) return "was compiled against other headers than this extension";
  if (count > kMostFunctors - to.count) return "is one too many: there is room for 256 forms of functors";
  const Entry<T>* from = static_cast<const Entry<T>*>(entries);
  for (int k = 0; k < count; ++k)
    for (int f = 0; f < to.count; ++f)
      if (strcmp(from[k].info.name, to.entries[f].info.name) == 0) return "names a functor that there is already";
  memcpy(to.entries + to.count, from, count * sizeof(Entry<T>));
  __atomic_store_n(&to.count, to.count + count, __ATOMIC_RELEASE);
  return nullptr;
}

#define DML_DECLARE(loss) const FunctorModule* loss##_module();  // loss.cpp
#define DML_ADDRESS(loss) loss##_module,
DML_LOSSES(DML_DECLARE)
static const FunctorModule* built_in(int loss) {
  static const FunctorModule* (*const modules[])() = {DML_LOSSES(DML_ADDRESS) nullptr};
  return modules[loss] ? modules[loss]() : nullptr;
}

template <class T, class Work> static void held_to_one(const Problem<T>& p, int thread, Work work) {
  [[maybe_unused]] const Subnormals flushed(false);
  if (p.blas_threads) p.blas_threads(1);
  work(p, thread);
  if (p.blas_threads) p.blas_threads(0);
}

// Runs `work(problem, thread)` on the problem's threads. OpenMP may grant fewer (OMP_DYNAMIC, nested regions): then one thread
// does everything. A lone thread needs no team, but must hold BLAS to one thread itself.
template <class T, class Work> static void in_threads(const Problem<T>& p, Work work) {
  bool granted = p.threads > 1;
  if (granted) {
#pragma omp parallel num_threads(p.threads)
    {
      if (omp_get_num_threads() == p.threads) {
        held_to_one(p, omp_get_thread_num(), work);
      } else {
#pragma omp master
        granted = false;
      }
    }
  }
  if (granted) return;
  Problem<T> alone = p;
  alone.threads = 1;
  held_to_one(alone, 0, work);
}
template <class T> static void forward(const Problem<T>& problem, int stages, T* values, T* counts) {
  const Entry<T>* entries = table<T>().entries;
  in_threads(problem, [&](const Problem<T>& p, int thread) {
    Scratch<T> s = scratch_of(p, entries, thread);
    if (stages & kCollect) start(p, entries, s, thread);
    if (stages & kOpen) choose_semihard(p, s, thread);
    if (stages & kOpen) open_blocks(p, entries, s, thread);
    if (stages & kCollect) collect_tiles(p, entries, s, thread);
    if (stages & kClose) close_blocks(p, entries, s, thread, values, counts);
  });
}

template <class T> static void merge_ranks(const Problem<T>& p, int loss, const T* parts, int ranks, int64_t step, int64_t from,
                                           int64_t count) {
  table<T>().entries[p.losses[loss].functor].merge_ranks(p.losses[loss], p, parts, ranks, step, from, count);
}

template <class T> static void backward(const Problem<T>& problem, int stages, const T* cotangents, T* grad_anchors,
                                        T* grad_references, T* private_grads) {
  const Entry<T>* entries = table<T>().entries;
  in_threads(problem, [&](const Problem<T>& p, int thread) {
    Scratch<T> s = scratch_of(p, entries, thread);
    const Targets<T> to(p, grad_anchors, grad_references, private_grads, thread);
    if (stages & kWeigh) weigh_blocks(p, entries, s, thread, cotangents, to);
    if (stages & kSlope) slope_tiles(p, entries, s, thread, to);
    wait_for_all(p.threads);
    add_copies(p, to, thread);
  });
}

template <class T> static void gather(const T* from, int64_t stride, const int64_t* order, int64_t rows, int64_t width,
                                      bool normalise, T* to, T* norms, bool* broken, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t i = 0; i < rows; ++i) {
    const T* x = from + order[i] * stride;
    if (i + kRowsAhead < rows) ask_for(from + order[i + kRowsAhead] * stride, width);
    norms[i] = factor_of(x, width, normalise, broken[i]);
    scale_row(x, width, norms[i], to + i * width);
  }
}

// The gradient of the raw vectors, in their own order.
template <class T> static void scatter(T* grad, const T* unit, const T* norms, const int64_t* order, int64_t rows,
                                       int64_t width, bool normalise, T* to, int64_t stride, bool adds, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t i = 0; i < rows; ++i)
    put_gradient(grad + i * width, unit + i * width, norms[i], width, normalise, adds, to + order[i] * stride);
}

template <class T> static void multiply(const T* rows_of, int64_t rows, const T* columns_of, int64_t columns, int64_t depth,
                                        T* to, unsigned char* scratch) {
  own_gemm<T>(Form::nt, rows, columns, depth, rows_of, depth, columns_of, depth, false, to, columns, scratch);
}

template <class T> static int64_t scratch_bytes(const Problem<T>& p) { return scratch_bytes(p, table<T>().entries); }
template <class T> static FunctorInfo describe(int functor) { return table<T>().entries[functor].info; }
template <class T> static bool fits(int functor, const double* options, unsigned char* into) {
  return table<T>().entries[functor].fits(options, into);
}
template <class T> static int cells(int functor, const unsigned char* options) {
  return table<T>().entries[functor].cells(options);
}
template <class T> static int step_cells(int functor, const unsigned char* options) {
  return table<T>().entries[functor].step_cells(options);
}
template <class T> static Kernels<T> kernels(const char* name) {
  return {name,       functors<T>,   built_in,           append<T>,         Native<T>::lanes, describe<T>, fits<T>,
          cells<T>,   step_cells<T>, fraction_unit<T>(), cells_above,       scratch_bytes<T>, gather<T>,   scatter<T>,
          forward<T>, backward<T>,   pair_means<T>,      add_pair_means<T>, merge_ranks<T>,   multiply<T>, own_gemm_bytes<T>()};
}

DML_END

#define DML_JOIN_(a, b) a##b
#define DML_JOIN(a, b) DML_JOIN_(a, b)
#define DML_TEXT_(a) #a
#define DML_TEXT(a) DML_TEXT_(a)
namespace dml {
Kernels<float> DML_JOIN(kernels_f32_, DML_LEVEL)() { return kernels<float>(DML_TEXT(DML_LEVEL)); }
Kernels<double> DML_JOIN(kernels_f64_, DML_LEVEL)() { return kernels<double>(DML_TEXT(DML_LEVEL)); }
}  // namespace dml
