// The stages of a pass, as each of its threads goes through them. Forward: the positives open every anchor, the tiles are collected,
// the anchors are closed. Backward: the anchors are weighed with their positives, the tiles get their slopes.
#pragma once
#include <cstring>

#include "cpu/nonzero.h"
#include "cpu/semihard.h"

DML_BEGIN

constexpr int64_t kManyPositives = 32;  // slots add that often per column: float32 needs relief every tile

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

static bool is_searched(const FunctorState& loss) { return loss.search || loss.step_cells; }

// Nothing is collected yet. In a triangle each thread adds to totals of its own; elsewhere a barrier must follow.
template <class T> static void start(const Problem<T>& p, const Entry<T>* entries, Scratch<T>& s, int thread) {
  const int totals = p.triangle ? p.threads : 1;  // without a triangle every anchor has one thread
  for (int l = 0; l < p.loss_count; ++l) {
    if (thread < totals) entries[p.losses[l].functor].start(p.losses[l], p, thread);
    memset(s.losses[l].strip_table, 0, size_t(p.losses[l].cells) * sizeof(int64_t));
  }
}

// The positives give every anchor its limits.
template <class T> static void open_blocks(const Problem<T>& p, const Entry<T>* entries, Scratch<T>& s, int thread) {
  if (p.whole) {  // the positives are taken out of the tiles
    for (int64_t k = 0; k < p.tile_count; ++k)
      if (owns(p, k, p.tiles[k], thread, true)) multiply_tile(p, p.tiles[k], s);
    wait_for_all(p.threads);
  }
  for (int64_t k = 0; k < p.block_count; ++k) {
    const Block& b = p.blocks[k];
    if (b.owner % p.threads != thread) continue;
    const T* cells = block_similarities(p, b, s, p.semihard_count == 0);
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
}

// The negatives stream by, and what all threads have collected is merged.
template <class T> static void collect_tiles(const Problem<T>& p, const Entry<T>* entries, Scratch<T>& s, int thread) {
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
    enter_panel(p, t, s, true);
    const T* cells = p.semihard_count && t.stored >= 0 ? p.stored + t.stored : tile_similarities(p, t, s);
    if (p.triangle)
      for (int l = 0; l < p.loss_count; ++l) entries[p.losses[l].functor].begin(p.losses[l], p, s.losses[l], true);
    for_strips(p, t, cells, static_cast<T*>(nullptr), [&](Strip<T>& strip, int64_t, int64_t) {
      for (int l = 0; l < p.loss_count; ++l)
        see(p, p.losses[l], strip, s,
            [&](const Strip<T>& mine) { entries[p.losses[l].functor].collect[p.triangle](p.losses[l], mine, s.losses[l]); });
    });
    if (p.triangle)
      for (int l = 0; l < p.loss_count; ++l)
        entries[p.losses[l].functor].flush_columns(p.losses[l], p, s.losses[l], t.j0, t.j1 - t.j0, thread);
  }
  flush(true);
  wait_for_all(p.threads);
  const int64_t rows = p.row1 - p.row0, from = p.row0 + rows * thread / p.threads,
                to = p.row0 + rows * (thread + 1) / p.threads;
  for (int l = 0; l < p.loss_count; ++l)
    entries[p.losses[l].functor].merge(p.losses[l], p, from, to, p.triangle ? p.threads : 1);
  wait_for_all(p.threads);
}

// Positives and sums together give the values.
template <class T> static void close_blocks(const Problem<T>& p, const Entry<T>* entries, Scratch<T>& s, int thread, T* values,
                                            T* counts) {
  [[maybe_unused]] const Subnormals kept(true);
  bool is_broken = false;  // of a streamed reference this is known only now
  for (int64_t j = 0; p.streamed.which == Streamed::references && j < p.N; ++j) is_broken |= p.streamed.broken[j];
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
          values[(loss.value_row + v) * p.A + i] = is_broken || p.broken[i] ? T(__builtin_nan("")) : value[v];
          counts[(loss.value_row + v) * p.A + i] = is_broken || p.broken[i] ? T(1) : count[v];
        }
      }
    }
  }
}

// The second product of a small batch with itself: the slopes of its positives join those above the diagonal, these are mirrored,
// and the threads multiply their rows.
template <class T> static void multiply_whole(const Problem<T>& p, Scratch<T>& s, T* slopes, bool is_finite, int thread,
                                              T* grads) {
  for (int64_t k = 0; k < p.block_count; ++k) {
    const Block& b = p.blocks[k];
    if (b.owner % p.threads != thread) continue;
    const T* slope = s.block_slopes + b.stored;
    for_positives(p, b, [&](int64_t i, int64_t j) { slopes[i < j ? i * p.whole + j : j * p.whole + i] += *slope++; });
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

// Where one thread adds up gradients. Threads own rows of one side; of the other, `shared`, each but the first has a private copy.
template <class T> struct Targets {
  T *anchors, *references, *shared, *copies, *copy;
  int64_t rows;  // of a copy
  bool rows_own;

  Targets(const Problem<T>& p, T* grad_anchors, T* grad_references, T* private_grads, int thread)
      : anchors(grad_anchors), references(p.self ? grad_anchors : grad_references),
        copies(p.threads > 1 && !p.whole ? private_grads : nullptr), rows_own(!p.triangle && p.row_owner_backward) {
    const bool is_anchors = p.self || !rows_own;
    shared = is_anchors ? grad_anchors : grad_references;
    rows = is_anchors ? p.A : p.N;
    copy = copies && thread > 0 ? copies + (thread - 1) * rows * p.D : nullptr;
    if (!copy) return;
    memset(copy, 0, rows * p.D * sizeof(T));
    if (is_anchors) anchors = copy;
    if (p.self || (!is_anchors && grad_references)) references = copy;
  }
};

// Those of all blocks where one side is streamed, or of the thread's block.
template <class T> static T* slopes_of_positives(const Problem<T>& p, const Entry<T>* entries, Scratch<T>& s) {
  return p.streamed.which != Streamed::neither ? scratch_of(p, entries, 0).block_slopes : s.block_slopes;
}

// The slopes of the positives with their gradients, and what the slopes of the negatives need.
template <class T> static void weigh_blocks(const Problem<T>& p, const Entry<T>* entries, Scratch<T>& s, int thread,
                                            const T* cotangents, const Targets<T>& to) {
  const bool streams = p.streamed.which != Streamed::neither;
  T* positive_slopes = slopes_of_positives(p, entries, s);
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
        if (!loss.windows_at && !loss.semihard) {
          entries[loss.functor].weigh(loss, p, s.losses[l], i, mine, cotangent, s.list_slopes);
        } else {
          memset(s.kept_slopes, 0, (mine.count + 1) * sizeof(T));
          entries[loss.functor].weigh(loss, p, s.losses[l], i, mine, cotangent, s.kept_slopes);
          for (int64_t k = 0; k < mine.count; ++k) s.list_slopes[s.which[k]] += s.kept_slopes[k];
        }
      }
      if (p.lists && p.whole) {
        memcpy(positive_slopes + b.stored + p.starts[i] - p.starts[b.a0], s.list_slopes, positives.count * sizeof(T));
        continue;
      }
      if (p.lists) {
        for (int64_t k = 0; k < positives.count; ++k) {
          const int64_t j = p.lists[p.starts[i] + k];
          add_scaled(s.list_slopes[k], p.references + j * p.D, p.D, to.anchors + i * p.D);
          if (to.references) add_scaled(s.list_slopes[k], p.anchors + i * p.D, p.D, to.references + j * p.D);
        }
        continue;
      }
      T* row = positive_slopes + (p.whole || streams ? b.stored : 0) + (i - b.a0) * columns;
      const int64_t own = p.own[i] - b.r0;
      if (own >= 0 && own < columns) {
        memcpy(row, s.list_slopes, own * sizeof(T));
        row[own] = 0;
        memcpy(row + own + 1, s.list_slopes + own, (columns - own - 1) * sizeof(T));
      } else {
        memcpy(row, s.list_slopes, columns * sizeof(T));
      }
    }
    if (p.lists || p.whole || streams) continue;
    const T *x = p.anchors + b.a0 * p.D, *y = p.references + b.r0 * p.D;
    T *gx = to.anchors + b.a0 * p.D, *gy = to.references ? to.references + b.r0 * p.D : nullptr;
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
}

// The slopes of the negatives with their gradients.
template <class T> static void slope_tiles(const Problem<T>& p, const Entry<T>* entries, Scratch<T>& s, int thread,
                                           const Targets<T>& to) {
  T* all_slopes = p.whole ? scratch_of(p, entries, 0).slopes : nullptr;
  bool is_finite = true;  // zero times a vector that is not finite is not zero
  for (int64_t i = 0; i < p.A; ++i) is_finite = is_finite && !p.broken[i];
  int64_t rows_of = -1;
  const bool streams = p.streamed.which != Streamed::neither, by_rows = p.streamed.which == Streamed::anchors;
  const T* positive_slopes = slopes_of_positives(p, entries, s);
  T* streamed_grads = by_rows ? to.anchors : to.references;
  const bool wants_references = to.references || (streams && !by_rows && p.streamed.gradient);
  for (int64_t k = 0; k < p.tile_count; ++k) {
    const Tile& t = p.tiles[k];
    if (!owns(p, k, t, thread, to.rows_own)) continue;
    const bool opens = streams && first_of_panel(p, t) != s.panel_first;
    if (opens) leave_panel(p, s, streamed_grads);
    enter_panel(p, t, s, false);
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
      strip.first = true;
      for (int l = 0; l < p.loss_count; ++l)
        see(p, p.losses[l], strip, s, [&](const Strip<T>& mine) {
          entries[p.losses[l].functor].slope[p.triangle](p.losses[l], mine, s.losses[l]);
          strip.first = false;
        });
      if (strip.first) {  // no loss wrote
        for (int64_t q = 0; q < strip.rows; ++q) memset(strip.g + q * ld, 0, strip.columns * sizeof(T));
        if (!streams) return;
      }
      if (streams) place_positives(p, t, r, strip.rows, ld, positive_slopes, slopes);
      if (!p.whole) nonzero += count_nonzero(strip.g, ld, strip.rows, strip.columns);
    });
    if (p.whole) continue;
    T* gx = by_rows ? panel_gradient(p, s, to.anchors) : to.anchors + t.i0 * p.D;
    T* gy = !wants_references     ? nullptr
            : streams && !by_rows ? panel_gradient(p, s, to.references)
                                  : to.references + t.j0 * p.D;
    if (is_finite && has_few(nonzero, rows * columns)) {
      if (T* fresh = opens ? by_rows ? gx : gy : nullptr) memset(fresh, 0, (s.panel_last - s.panel_first) * p.D * sizeof(T));
      add_nonzero(p, t, s, nonzero, gx, gy);
      continue;
    }
    const bool adds_rows = !(opens && by_rows), adds_columns = !(opens && !by_rows);
    gemm(p, Form::nn, rows, p.D, columns, s.slopes, ld, references_of(p, t, s), p.D, adds_rows, gx, p.D, s.gemm);
    if (gy) gemm(p, Form::tn, columns, p.D, rows, s.slopes, ld, anchors_of(p, t, s), p.D, adds_columns, gy, p.D, s.gemm);
  }
  leave_panel(p, s, streamed_grads);
  if (!p.whole) return;
  wait_for_all(p.threads);
  multiply_whole(p, s, all_slopes, is_finite, thread, to.anchors);
}

// The private copies into what all threads share, in the threads' order: the same bits every time.
template <class T> static void add_copies(const Problem<T>& p, const Targets<T>& to, int thread) {
  if (!to.copies || !to.shared) return;
  const int64_t cells = to.rows * p.D, first = cells * thread / p.threads, last = cells * (thread + 1) / p.threads;
  for (int t = 1; t < p.threads; ++t)
    for (int64_t c = first; c < last; ++c) to.shared[c] += to.copies[(t - 1) * cells + c];
}

DML_END
