// One instruction set's kernels: compiled once per level with -DDML_LEVEL and that level's flags. The planner hands in plain
// data (problem.h); forward fills values and counts and leaves sums behind, backward turns cotangents into gradients.
#include <omp.h>
#include <cstring>

#include "cpu/nonzero.h"
#include "dml_losses.h"                                                // DML_LOSSES(use): the headers of csrc/losses

DML_BEGIN

constexpr int64_t kRowsAhead = 4;  // that are asked for before they are copied
constexpr int64_t kManyPositives = 32;  // slots add that often per column: float32 needs relief every tile

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

// Numbers below 1e-38 count as 0 while this lives: exponentials of classes that are apart end there, and some processors take 150
// cycles for each. With `are_kept` they stay what they are, as where a value above 0 is what counts.
class Subnormals {
#if defined(__SSE2__)
 public:
  explicit Subnormals(bool are_kept) : before_(_mm_getcsr()) { _mm_setcsr(are_kept ? before_ & ~0x8040u : before_ | 0x8040u); }
  ~Subnormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#else
 public:
  explicit Subnormals(bool) {}
#endif
};

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
static void wait_for_all(int threads) {
  if (threads > 1) {
#pragma omp barrier
  }
}

static bool is_searched(const FunctorState& loss) { return loss.search || loss.step_cells; }

template <class T> static void forward(const Problem<T>& problem, T* values, T* counts) {
  const Entry<T>* entries = table<T>().entries;
  in_threads(problem, [&](const Problem<T>& p, int thread) {
    const int totals = p.triangle ? p.threads : 1;  // without a triangle every anchor has one thread
    Scratch<T> s = scratch_of(p, entries, thread);
    for (int l = 0; l < p.loss_count; ++l) {
      if (thread < totals) entries[p.losses[l].functor].start(p.losses[l], p, thread);
      memset(s.losses[l].strip_table, 0, size_t(p.losses[l].cells) * sizeof(int64_t));
    }
    if (p.whole) {  // the positives are taken out of the tiles
      for (int64_t k = 0; k < p.tile_count; ++k)
        if (owns(p, k, p.tiles[k], thread, true)) multiply_tile(p, p.tiles[k], s);
      wait_for_all(p.threads);
    }
    for (int64_t k = 0; k < p.block_count; ++k) {
      const Block& b = p.blocks[k];
      if (b.owner % p.threads != thread) continue;
      const T* cells = block_similarities(p, b, s, true);
      for (int64_t i = b.a0; i < b.a1; ++i) {
        const Positives<T> positives = positives_of(p, b, cells, i, s.list);
        for (int l = 0; l < p.loss_count; ++l) {
          const Positives<T> mine = within(p, p.losses[l], i, positives, s);
          entries[p.losses[l].functor].open(p.losses[l], p, i, mine);
          if (p.losses[l].cells) entries[p.losses[l].functor].tabulate(p.losses[l], s.losses[l], mine);
        }
      }
    }
    wait_for_all(p.threads);
    int64_t rows_of = -1, rows_count = 0;
    auto flush = [&](bool last) {  // bins need no relief before the last tile of their rows
      if (rows_of < 0) return;
      for (int l = 0; l < p.loss_count; ++l)
        if (last || !is_searched(p.losses[l]))
          entries[p.losses[l].functor].flush_rows(p.losses[l], p, s.losses[l], rows_of, rows_count, p.triangle ? thread : 0);
    };
    for (int64_t k = 0; k < p.tile_count; ++k) {
      const Tile& t = p.tiles[k];
      if (!owns(p, k, t, thread, true)) continue;
      if (t.i0 != rows_of || p.most_positives > kManyPositives) {
        const bool other = t.i0 != rows_of;
        flush(other);
        rows_of = t.i0, rows_count = t.i1 - t.i0;
        for (int l = 0; l < p.loss_count; ++l)
          if (other || !is_searched(p.losses[l])) entries[p.losses[l].functor].begin(p.losses[l], p, s.losses[l], false);
      }
      const T* cells = tile_similarities(p, t, s);
      if (p.triangle)
        for (int l = 0; l < p.loss_count; ++l) entries[p.losses[l].functor].begin(p.losses[l], p, s.losses[l], true);
      for_strips(p, t, cells, static_cast<T*>(nullptr), [&](Strip<T>& strip, int64_t, int64_t) {
        for (int l = 0; l < p.loss_count; ++l)
          entries[p.losses[l].functor].collect[p.triangle](p.losses[l], seen(p, p.losses[l], strip, s), s.losses[l]);
      });
      if (p.triangle)
        for (int l = 0; l < p.loss_count; ++l)
          entries[p.losses[l].functor].flush_columns(p.losses[l], p, s.losses[l], t.j0, t.j1 - t.j0, thread);
    }
    flush(true);
    wait_for_all(p.threads);
    const int64_t rows = p.row1 - p.row0, from = p.row0 + rows * thread / p.threads,
                  to = p.row0 + rows * (thread + 1) / p.threads;
    for (int l = 0; l < p.loss_count; ++l) entries[p.losses[l].functor].merge(p.losses[l], p, from, to, totals);
    wait_for_all(p.threads);
    [[maybe_unused]] const Subnormals kept(true);
    for (int64_t k = 0; k < p.block_count; ++k) {
      const Block& b = p.blocks[k];
      if (b.owner % p.threads != thread) continue;
      const T* cells = block_similarities(p, b, s, false);
      for (int64_t i = b.a0; i < b.a1; ++i) {
        const Positives<T> positives = positives_of(p, b, cells, i, s.list);
        for (int l = 0; l < p.loss_count; ++l) {
          const FunctorState& loss = p.losses[l];
          T value[kMostValues], count[kMostValues];
          entries[loss.functor].close(loss, p, i, within(p, loss, i, positives, s), value, count);
          for (int v = 0; v < loss.values; ++v) {
            values[(loss.value_row + v) * p.A + i] = p.broken[i] ? T(__builtin_nan("")) : value[v];
            counts[(loss.value_row + v) * p.A + i] = p.broken[i] ? T(1) : count[v];
          }
        }
      }
    }
  });
}

// The second product of a small batch with itself: the slopes of its positives join those above the diagonal, these are mirrored,
// and the threads multiply their rows.
template <class T> static void multiply_whole(const Problem<T>& p, Scratch<T>& s, T* slopes, bool is_finite, int thread,
                                              T* grads) {
  for (int64_t k = 0; k < p.block_count; ++k) {
    const Block& b = p.blocks[k];
    if (b.owner % p.threads != thread) continue;
    const T* slope = s.block_slopes + b.stored;
    for (int64_t i = b.a0; i < b.a1; ++i)
      for (int64_t j = b.r0; j < b.r1; ++j) slopes[i < j ? i * p.whole + j : j * p.whole + i] += *slope++;
  }
  wait_for_all(p.threads);
  const int64_t lines = p.whole / 16, from = 16 * (lines * thread / p.threads),
                to = least(p.N, 16 * (lines * (thread + 1) / p.threads));
  if (from >= to) return;
  mirror(slopes, p.whole, from, to);
  const T* mine = slopes + from * p.whole;
  T* out = grads + from * p.D;
  const int64_t nonzero = count_nonzero(mine, p.whole, to - from, p.whole);
  if (is_finite && has_few(nonzero, (to - from) * p.N)) {
    memset(out, 0, (to - from) * p.D * sizeof(T));
    list_rows<false>(mine, p.whole, to - from, p.N, s.by_row);
    add_listed(s.by_row, to - from, p.references, p.D, out);
  } else {
    gemm(p, Form::nn, to - from, p.D, p.N, mine, p.whole, p.references, p.D, false, out, p.D, s.gemm);
  }
}

template <class T> static void backward(const Problem<T>& problem, const T* cotangents, T* grad_anchors, T* grad_references,
                                        T* private_grads) {
  const Entry<T>* entries = table<T>().entries;
  in_threads(problem, [&](const Problem<T>& p, int thread) {
    const bool rows_own = !p.triangle && p.row_owner_backward;
    const int64_t private_rows = p.self ? p.A : (rows_own ? p.N : p.A);  // the side whose gradient every thread adds to
    Scratch<T> s = scratch_of(p, entries, thread);
    T* all_slopes = p.whole ? scratch_of(p, entries, 0).slopes : nullptr;
    T* mine = thread == 0 || p.whole ? nullptr : private_grads + (thread - 1) * private_rows * p.D;
    if (mine) memset(mine, 0, private_rows * p.D * sizeof(T));
    T* to_anchors = mine && (p.self || !rows_own) ? mine : grad_anchors;
    T* to_references = p.self ? to_anchors : grad_references;
    if (!p.self && rows_own && mine && grad_references) to_references = mine;

    for (int64_t k = 0; k < p.block_count; ++k) {
      const Block& b = p.blocks[k];
      if (b.owner % p.threads != thread) continue;
      const int64_t rows = b.a1 - b.a0, columns = b.r1 - b.r0;
      const T* cells = block_similarities(p, b, s, false);
      if (b.stored < 0) cells = s.block;
      for (int64_t i = b.a0; i < b.a1; ++i) {
        const Positives<T> positives = positives_of(p, b, cells, i, s.list);
        memset(s.list_slopes, 0, (positives.count + 1) * sizeof(T));
        for (int l = 0; l < p.loss_count; ++l) {
          const FunctorState& loss = p.losses[l];
          T cotangent[kMostValues];
          for (int v = 0; v < loss.values; ++v) cotangent[v] = cotangents[(loss.value_row + v) * p.A + i];
          const Positives<T> mine = within(p, loss, i, positives, s);
          if (!loss.windows_at) {
            entries[loss.functor].weigh(loss, p, s.losses[l], i, mine, cotangent, s.list_slopes);
          } else {
            memset(s.kept_slopes, 0, (mine.count + 1) * sizeof(T));
            entries[loss.functor].weigh(loss, p, s.losses[l], i, mine, cotangent, s.kept_slopes);
            for (int64_t k = 0; k < mine.count; ++k) s.list_slopes[s.which[k]] += s.kept_slopes[k];
          }
        }
        if (p.lists) {
          for (int64_t k = 0; k < positives.count; ++k) {
            const int64_t j = p.lists[p.starts[i] + k];
            add_scaled(s.list_slopes[k], p.references + j * p.D, p.D, to_anchors + i * p.D);
            if (to_references) add_scaled(s.list_slopes[k], p.anchors + i * p.D, p.D, to_references + j * p.D);
          }
          continue;
        }
        T* row = s.block_slopes + (p.whole ? b.stored : 0) + (i - b.a0) * columns;
        const int64_t own = p.own[i] - b.r0;
        if (own >= 0 && own < columns) {
          memcpy(row, s.list_slopes, own * sizeof(T));
          row[own] = 0;
          memcpy(row + own + 1, s.list_slopes + own, (columns - own - 1) * sizeof(T));
        } else {
          memcpy(row, s.list_slopes, columns * sizeof(T));
        }
      }
      if (p.lists || p.whole) continue;
      const T *x = p.anchors + b.a0 * p.D, *y = p.references + b.r0 * p.D;
      T *gx = to_anchors + b.a0 * p.D, *gy = to_references ? to_references + b.r0 * p.D : nullptr;
      if (rows * columns > kSmallBlock) {
        gemm(p, Form::nn, rows, p.D, columns, s.block_slopes, columns, y, p.D, true, gx, p.D, s.gemm);
        if (gy) gemm(p, Form::tn, columns, p.D, rows, s.block_slopes, columns, x, p.D, true, gy, p.D, s.gemm);
      } else {
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < columns; ++j) {
            const T g = s.block_slopes[i * columns + j];
            if (g == 0) continue;
            add_scaled(g, y + j * p.D, p.D, gx + i * p.D);
            if (gy) add_scaled(g, x + i * p.D, p.D, gy + j * p.D);
          }
      }
    }
    wait_for_all(p.threads);
    bool is_finite = true;  // zero times a vector that is not finite is not zero
    for (int64_t i = 0; i < p.A; ++i) is_finite = is_finite && !p.broken[i];
    int64_t rows_of = -1;
    for (int64_t k = 0; k < p.tile_count; ++k) {
      const Tile& t = p.tiles[k];
      if (!owns(p, k, t, thread, rows_own)) continue;
      for (int l = 0; l < p.loss_count && t.i0 != rows_of; ++l)
        entries[p.losses[l].functor].prepare(p.losses[l], p, s.losses[l], t.i0, t.i1 - t.i0);
      rows_of = t.i0;
      const int64_t rows = t.i1 - t.i0, columns = t.j1 - t.j0, ld = distance_of_rows(p, t);
      const T* cells = t.stored >= 0 ? p.stored + t.stored : tile_similarities(p, t, s);
      T* slopes = p.whole ? all_slopes + t.stored : s.slopes;
      int64_t nonzero = 0;
      for_strips(p, t, cells, slopes, [&](Strip<T>& strip, int64_t r, int64_t skip) {
        for (int64_t q = 0; skip && q < strip.rows; ++q) memset(slopes + (r + q) * ld, 0, skip * sizeof(T));
        if (strip.columns == 0) return;
        for (int l = 0; l < p.loss_count; ++l) {
          strip.first = l == 0;
          entries[p.losses[l].functor].slope[p.triangle](p.losses[l], seen(p, p.losses[l], strip, s), s.losses[l]);
        }
        if (!p.whole) nonzero += count_nonzero(strip.g, ld, strip.rows, strip.columns);
      });
      if (p.whole) continue;
      if (is_finite && has_few(nonzero, rows * columns)) {
        add_nonzero(p, t, s, nonzero, to_anchors, to_references);
        continue;
      }
      gemm(p, Form::nn, rows, p.D, columns, s.slopes, ld, p.references + t.j0 * p.D, p.D, true, to_anchors + t.i0 * p.D, p.D,
           s.gemm);
      if (to_references)
        gemm(p, Form::tn, columns, p.D, rows, s.slopes, ld, p.anchors + t.i0 * p.D, p.D, true, to_references + t.j0 * p.D, p.D,
             s.gemm);
    }
    wait_for_all(p.threads);
    if (p.whole) return multiply_whole(p, s, all_slopes, is_finite, thread, grad_anchors);
    if (p.threads > 1 && private_grads) {  // in the threads' order: the same bits every time
      T* total = p.self || !rows_own ? grad_anchors : grad_references;
      const int64_t cells = private_rows * p.D, from = cells * thread / p.threads, to = cells * (thread + 1) / p.threads;
      if (total)
        for (int t = 1; t < p.threads; ++t)
          for (int64_t c = from; c < to; ++c) total[c] += private_grads[(t - 1) * cells + c];
    }
  });
}

template <class T> static void gather(const T* from, int64_t stride, const int64_t* order, int64_t rows, int64_t width,
                                      bool normalise, T* to, T* norms, bool* broken, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t i = 0; i < rows; ++i) {
    const T* x = from + order[i] * stride;
    if (i + kRowsAhead < rows)  // the rows of a memory lie anywhere
      for (int64_t k = 0; k < width; k += 64 / int64_t(sizeof(T)))
        __builtin_prefetch(from + order[i + kRowsAhead] * stride + k);
    double square = 0;  // double: 1e20 is no infinity
#pragma omp simd reduction(+ : square)
    for (int64_t k = 0; k < width; ++k) square += double(x[k]) * double(x[k]);
    broken[i] = !(square < __builtin_inf());
    const double norm = __builtin_sqrt(square);
    const T factor = !normalise ? T(1) : norm > 1e-12 ? T(1 / norm) : T(0);  // a zero vector stays zero
    norms[i] = factor;
    for (int64_t k = 0; k < width; ++k) to[i * width + k] = x[k] * factor;
  }
}

// The gradient of the raw vectors, in their own order: normalising removes the radial part and divides by the norm.
template <class T> static void scatter(T* grad, const T* unit, const T* norms, const int64_t* order, int64_t rows,
                                       int64_t width, bool normalise, T* to, int64_t stride, bool adds, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t i = 0; i < rows; ++i) {
    const T *g = grad + i * width, *x = unit + i * width;
    T* out = to + order[i] * stride;
    const T radial = normalise ? dot(g, x, width) : T(0), factor = norms[i];
    if (adds)
      for (int64_t k = 0; k < width; ++k) out[k] += (g[k] - radial * x[k]) * factor;
    else
      for (int64_t k = 0; k < width; ++k) out[k] = (g[k] - radial * x[k]) * factor;
  }
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
  return {name,      functors<T>, built_in,      append<T>,          Native<T>::lanes, describe<T>,
          fits<T>,   cells<T>,    step_cells<T>, fraction_unit<T>(), cells_above,      scratch_bytes<T>,
          gather<T>, scatter<T>,  forward<T>,    backward<T>};
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
