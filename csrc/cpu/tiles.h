// The similarities of a pass: a block of anchors with the positives of their class, a tile of anchors with references, and which
// thread works on what.
#pragma once
#include "cpu/streamed.h"

DML_BEGIN

template <class T> static void add_scaled(T factor, const T* from, int64_t n, T* to) {
  for (int64_t k = 0; k < n; ++k) to[k] += factor * from[k];
}

// With the bits that the level's own product gives.
template <class T> static T dot_in_order(const T* a, const T* b, int64_t n) {
  T total = 0;
  for (int64_t first = 0; first < n; first += kPanelDepth) {
    const int64_t last = n < first + kPanelDepth ? n : first + kPanelDepth;
    T sum = 0;
    for (int64_t k = first; k < last; ++k) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)  // said outright: in a register of products there would be none
      if constexpr (sizeof(T) == 4) sum = __builtin_fmaf(a[k], b[k], sum);
      else sum = __builtin_fma(a[k], b[k], sum);
#else
      sum += a[k] * b[k];
#endif
    }
    total = first > 0 ? total + sum : sum;
  }
  return total;
}

constexpr int64_t kSmallBlock = 256;  // cells below which a product by BLAS costs more to call

// Walks the pairs of a block's similarities in their order.
template <class T, class Visit> static void for_positives(const Problem<T>& p, const Block& b, Visit visit) {
  for (int64_t i = b.a0; i < b.a1; ++i) {
    if (p.lists)
      for (int64_t k = p.starts[i]; k < p.starts[i + 1]; ++k) visit(i, p.lists[k]);
    else
      for (int64_t j = b.r0; j < b.r1; ++j) visit(i, j);
  }
}

// Similarities of a block's anchors to all references of their class, [a1 - a0, r1 - r0].
template <class T> static const T* block_similarities(const Problem<T>& p, const Block& b, Scratch<T>& s, bool fresh) {
  const int64_t rows = b.a1 - b.a0, columns = b.r1 - b.r0;
  T* at = b.stored >= 0 ? p.stored_positives + b.stored : s.block;
  if (b.stored >= 0 && !fresh) return at;
  if (p.whole) {  // they were multiplied already
    T* cell = at;
    for_positives(p, b, [&](int64_t i, int64_t j) { *cell++ = p.stored[i < j ? i * p.whole + j : j * p.whole + i]; });
    return at;
  }
  if (rows * columns == 0 && !p.lists) return at;
  const T *x = p.anchors + b.a0 * p.D, *y = p.references + b.r0 * p.D;
  if (p.streamed.which != Streamed::neither) {
    const bool by_rows = p.streamed.which == Streamed::anchors;
    take_rows(p, by_rows ? b.a0 : b.r0, by_rows ? b.a1 : b.r1, Norms::compute, s.block_vectors);
    (by_rows ? x : y) = s.block_vectors;
  }
  if (p.lists) {
    T* cell = at;
    for (int64_t i = b.a0; i < b.a1; ++i)
      for (int64_t k = p.starts[i]; k < p.starts[i + 1]; ++k)
        *cell++ = (p.own_similarities ? dot_in_order<T> : dot<T>)(p.anchors + i * p.D, p.references + p.lists[k] * p.D, p.D);
    return at;
  }
  if (rows * columns > kSmallBlock || p.own_similarities)
    gemm(p, Form::nt, rows, columns, p.D, x, p.D, y, p.D, false, at, columns, s.gemm);
  else
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) at[i * columns + j] = dot(x + i * p.D, y + j * p.D, p.D);
  return at;
}

// The positives of anchor i, without the anchor itself.
template <class T> static Positives<T> positives_of(const Problem<T>& p, const Block& b, const T* cells, int64_t i, T* list) {
  if (p.lists) return {cells + (p.starts[i] - p.starts[b.a0]), p.positives[i]};
  const int64_t columns = b.r1 - b.r0;
  const T* row = cells + (i - b.a0) * columns;
  const int64_t own = p.own[i] - b.r0;
  if (own < 0 || own >= columns) return {row, columns};
  memcpy(list, row, own * sizeof(T));
  memcpy(list + own, row + own + 1, (columns - own - 1) * sizeof(T));
  return {list, columns - 1};
}

// The positives that count for one loss, and in s.which their places among all of them.
template <class T> static Positives<T> within(const Problem<T>& p, const FunctorState& loss, int64_t i, Positives<T> all,
                                              Scratch<T>& s) {
  const T* windows = static_cast<const T*>(loss.windows_at);
  int64_t count = 0;
  if (loss.semihard) {
    const Semihard& chosen = p.semihard[loss.semihard - 1];
    const unsigned char* kept = chosen.kept + chosen.starts[i];
    for (int64_t k = 0; k < all.count; ++k)
      if (kept[k]) s.kept[count] = all[k], s.which[count++] = k;
    return {s.kept, count};
  }
  if (!windows) return all;
  const T lowest = windows[i], highest = windows[p.stride + i];
  for (int64_t k = 0; k < all.count; ++k)
    if (all[k] >= lowest && all[k] <= highest) s.kept[count] = all[k], s.which[count++] = k;
  return {s.kept, count};
}

// Whether a loss counts any pair of the strip. Miners leave few, and a strip without any changes nothing.
template <class T> static bool sees_any(const Problem<T>& p, const FunctorState& loss, const Strip<T>& strip) {
  using V = typename Native<T>::V;
  const T* windows = static_cast<const T*>(loss.windows_at);
  if (!windows) return true;
  for (int64_t r = 0; r < strip.rows; ++r) {
    const V low = splat<V>(windows[2 * p.stride + strip.row + r]), high = splat<V>(windows[3 * p.stride + strip.row + r]);
    decltype(low >= high) inside = {};
    for (int64_t j = 0; j < strip.columns; j += Native<T>::lanes) {
      V x;
      memcpy(&x, strip.s + r * strip.ld + j, sizeof x);
      inside |= (x >= low) & (x <= high);
    }
    for (int q = 0; q < Native<T>::lanes; ++q)
      if (inside[q]) return true;
  }
  return false;
}

// The strip as one loss sees it.
template <class T> static Strip<T> seen(const Problem<T>& p, const FunctorState& loss, const Strip<T>& strip, Scratch<T>& s) {
  const T* windows = static_cast<const T*>(loss.windows_at);
  if (!windows) return strip;
  Strip<T> mine = strip;
  mask_strip(strip, windows + 2 * p.stride, windows + 3 * p.stride, s.masked);
  mine.s = s.masked;
  return mine;
}

static int64_t rounded(int64_t n) { return (n + 15) / 16 * 16; }  // columns of a tile in memory: whole registers
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Numbers from one row of a tile to the next.
template <class T> static int64_t distance_of_rows(const Problem<T>& p, const Tile& t) {
  return p.whole ? p.whole : rounded(t.j1 - t.j0);
}

// The vectors of a tile. Those of the streamed side are the panel at hand.
template <class T> static const T* anchors_of(const Problem<T>& p, const Tile& t, const Scratch<T>& s) {
  return p.streamed.which == Streamed::anchors ? s.panel : p.anchors + t.i0 * p.D;
}
template <class T> static const T* references_of(const Problem<T>& p, const Tile& t, const Scratch<T>& s) {
  return p.streamed.which == Streamed::references ? s.panel : p.references + t.j0 * p.D;
}

template <class T> static T* multiply_tile(const Problem<T>& p, const Tile& t, Scratch<T>& s) {
  T* at = t.stored >= 0 ? p.stored + t.stored : s.tile;
  gemm(p, Form::nt, t.i1 - t.i0, t.j1 - t.j0, p.D, anchors_of(p, t, s), p.D, references_of(p, t, s), p.D, false, at,
       distance_of_rows(p, t), s.gemm);
  return at;
}

// The similarities of a tile, with everything that is not a pair of anchor and negative marked.
template <class T> static T* tile_similarities(const Problem<T>& p, const Tile& t, Scratch<T>& s) {
  const int64_t rows = t.i1 - t.i0, columns = t.j1 - t.j0, ld = distance_of_rows(p, t), width = rounded(columns);
  T* at = p.whole ? p.stored + t.stored : multiply_tile(p, t, s);
  for (int64_t r = 0; r < rows; ++r) {
    T* row = at + r * ld;
    const int64_t from = p.triangle ? t.j0 : most(t.j0, p.row_first[t.i0 + r]), to = least(t.j1, p.row_last[t.i0 + r]);
    for (int64_t j = from; j < to; ++j) row[j - t.j0] = T(no_pair());
    if ((p.lists || !p.self) && p.own[t.i0 + r] >= t.j0 && p.own[t.i0 + r] < t.j1) row[p.own[t.i0 + r] - t.j0] = T(no_pair());
    if (p.lists) {
      int64_t k = p.starts[t.i0 + r], last = p.starts[t.i0 + r + 1];
      while (k < last) {  // the first positive of the tile, by halving
        const int64_t middle = k + (last - k) / 2;
        if (p.lists[middle] < t.j0) k = middle + 1;
        else last = middle;
      }
      for (; k < p.starts[t.i0 + r + 1] && p.lists[k] < t.j1; ++k) row[p.lists[k] - t.j0] = T(no_pair());
    }
    for (int64_t j = columns; j < width; ++j) row[j] = T(no_pair());
  }
  return at;
}

// Walks a tile in strips; `visit` gets each strip and the columns before it that hold no pair.
template <class T, class Visit> static void for_strips(const Problem<T>& p, const Tile& t, const T* s, T* g, Visit visit) {
  const int64_t ld = distance_of_rows(p, t), width = rounded(t.j1 - t.j0);
  int64_t column_positives = 0;
  if (p.triangle && p.most_positives)
    for (int64_t j = t.j0; j < t.j1; ++j) column_positives = most(column_positives, p.positives[j]);
  for (int64_t r = 0; r < t.i1 - t.i0; r += kStripRows) {
    const int64_t rows = least(kStripRows, t.i1 - t.i0 - r);
    int64_t skip = 0;
    if (p.triangle) skip = least(width, most(0, p.row_last[t.i0 + r] - t.j0) / 16 * 16);
    Strip<T> strip{};
    strip.s = s + r * ld + skip, strip.g = g ? g + r * ld + skip : nullptr;
    strip.ld = ld, strip.rows = rows, strip.columns = width - skip;
    strip.row = t.i0 + r, strip.column = t.j0 + skip, strip.local_row = r, strip.local_column = skip;
    strip.tile_columns = p.tile_columns, strip.anchors = p.stride, strip.slot_first = p.slot_first,
    strip.slot_stride = p.slot_stride, strip.positives = p.positives;
    strip.most_positives = p.most_positives, strip.column_positives = column_positives;
    strip.both = p.triangle, strip.table_slopes = p.table_slopes;
    visit(strip, r, skip);
  }
}

static void wait_for_all(int threads) {
  if (threads > 1) {
#pragma omp barrier
  }
}

// Which thread works on a tile. A triangle's tiles are dealt in turn; otherwise threads own rows, or columns.
template <class T> static bool owns(const Problem<T>& p, int64_t index, const Tile& t, int thread, bool rows) {
  if (p.threads == 1) return true;
  if (p.triangle) return index % p.threads == thread;
  return (rows ? t.i0 / p.tile_rows : t.j0 / p.tile_columns) % p.threads == thread;
}

DML_END
