// The inner loops: a strip of a tile (a few rows, up to 512 columns, so that it stays in the first-level cache while every loss
// of the ensemble passes over it) feeds the rows' accumulators, and the columns' too when the tile serves both.
#pragma once
#include "cpu/problem.h"
#include "cpu/search.h"
#include "dml/fields.h"

DML_BEGIN

// A struct of fields at one index of parallel arrays: scalars broadcast to a register, or a register of neighbours.
template <class S, class V, class T> DML_FN S broadcast(const T* at, int64_t stride) {
  S out;
  if constexpr (!__is_empty(S)) {
    V fields[field_count<S, V>()];
    for (int f = 0; f < field_count<S, V>(); ++f) fields[f] = splat<V>(at[f * stride]);
    __builtin_memcpy(&out, fields, sizeof out);
  }
  return out;
}
template <class S, class V, class T> DML_FN S load(const T* at, int64_t stride) {
  S out;
  if constexpr (!__is_empty(S)) {
    V fields[field_count<S, V>()];
    for (int f = 0; f < field_count<S, V>(); ++f) __builtin_memcpy(&fields[f], at + f * stride, sizeof(V));
    __builtin_memcpy(&out, fields, sizeof out);
  }
  return out;
}
template <class V, class S, class T> DML_FN void store(const S& in, T* at, int64_t stride) {
  if constexpr (!__is_empty(S)) {
    V fields[field_count<S, V>()];
    __builtin_memcpy(fields, &in, sizeof in);
    for (int f = 0; f < field_count<S, V>(); ++f) __builtin_memcpy(at + f * stride, &fields[f], sizeof(V));
  }
}
template <class S, class Wide, class V, class T> DML_FN S lane(const Wide& in, int q) {    // one lane of a register struct
  S out;
  if constexpr (!__is_empty(S)) {
    T fields[field_count<S, T>()];
    for (int f = 0; f < field_count<S, T>(); ++f) __builtin_memcpy(&fields[f], reinterpret_cast<const char*>(&in) + f * sizeof(V) + q * sizeof(T), sizeof(T));
    __builtin_memcpy(&out, fields, sizeof out);
  }
  return out;
}
// Everything one loss needs to know about the strip it is given.
template <class T> struct Strip {
  const T* s;                       // similarities [rows][ld]; columns is a multiple of the lanes
  T* g;                             // slopes, same shape
  int64_t ld, rows, columns;
  int64_t row, column;              // index of the first row among the anchors, and of the first column among the references
  int64_t local_row, local_column;  // the same within the tile
  int64_t tile_columns;             // stride of the columns' accumulators
  int64_t anchors;                  // stride of per-anchor arrays
  int64_t slot_first, slot_stride;  // the same for slots
  const int64_t* positives;         // [A]
  int64_t most_positives, column_positives;   // slots: stride, and the most any column of the strip has
  const T* table_slopes;
  bool both, first;                 // the columns are anchors too; this loss writes g instead of adding
};

// What a loss has in a thread's scratch memory.
struct Accumulators {
  unsigned char *rows, *columns, *row_slots, *column_slots;
  int64_t *strip_table, *table;     // packed sums of a strip; [2][2 * cells]: pairs and fractions of positives, then negatives
};

// Similarities outside an anchor's window of negatives become no pair, in a copy of the strip.
template <class T> static void mask_strip(const Strip<T>& strip, const T* lowest, const T* highest, T* to) {
  using V = typename Native<T>::V;
  for (int64_t r = 0; r < strip.rows; ++r) {
    const V low = splat<V>(lowest[strip.row + r]), high = splat<V>(highest[strip.row + r]);
    for (int64_t j = 0; j < strip.columns; j += Native<T>::lanes) {
      V x;
      __builtin_memcpy(&x, strip.s + r * strip.ld + j, sizeof x);
      x = select((x >= low) & (x <= high), x, splat<V>(T(no_pair())));
      __builtin_memcpy(to + r * strip.ld + j, &x, sizeof x);
    }
  }
}

// Soft histograms. A pair at position x adds 1 - f to cell floor(x) and f to the next, f = x - floor(x): kept as whole numbers,
// the pairs of a cell and the sum of their fractions in units, so that the sums do not depend on any order.
template <class T> DML_FN constexpr double fraction_unit() { return sizeof(T) == 4 ? double(1 << 20) : double(int64_t(1) << 40); }

// Whole pairs out of the fractions of float64, which would fill 64 bits after 2^23 pairs: they move on to the next cell.
static void carry(int64_t cells, int64_t* pairs, int64_t* fractions) {
  for (int64_t c = 0; c + 1 < cells; ++c) {
    const int64_t whole = fractions[c] >> 40;
    pairs[c] -= whole, pairs[c + 1] += whole, fractions[c] -= whole << 40;
  }
}
template <class V, class F> DML_FN V place_of(const F& f, V s) {       // clamped: a cosine may be 1 + epsilon
  return min(max(f.place(s), splat<V>(0)), splat<V>(typename Scalar<V>::type(f.cells() - 1)));
}
DML_FN VecF floor_of(VecF x) { return __builtin_convertvector(__builtin_convertvector(x, VecI), VecF); }   // x >= 0
DML_FN VecD floor_of(VecD x) { return __builtin_convertvector(__builtin_convertvector(x, VecL), VecD); }

template <class F, class T> static void collect_table(const F& f, const LossSlot& loss, const Strip<T>& strip, const Accumulators& acc) {
  using V = typename Native<T>::V;
  constexpr int lanes = Native<T>::lanes;
  const int64_t cells = loss.cells;
  int64_t *pairs = acc.table + 2 * cells, *fractions = pairs + cells;
  int64_t* packed = acc.strip_table;                                   // float: pairs in the upper half, fractions in the lower
  int64_t held = 0;
  auto flush = [&] {
    for (int64_t c = 0; c < cells; ++c) {
      pairs[c] += packed[c] >> 32, fractions[c] += packed[c] & 0xffffffff;
      packed[c] = 0;
    }
    held = 0;
  };
  for (int64_t r = 0; r < strip.rows; ++r)
    for (int64_t j = 0; j < strip.columns; j += lanes) {
      V s;
      __builtin_memcpy(&s, strip.s + r * strip.ld + j, sizeof s);
      const V x = place_of(f, s), below = floor_of(x);
      const V fraction = (x - below) * T(fraction_unit<T>());
      const auto keep = is_pair(s);
      if constexpr (sizeof(T) == 4) {
        const auto index = __builtin_convertvector(below, VecI), part = __builtin_convertvector(fraction, VecI);
        const VecI counts = keep & 1, parts = keep & part;
        for (int q = 0; q < lanes; ++q) packed[index[q]] += (int64_t(counts[q]) << 32) | parts[q];
        held += lanes;
        if (held > 4096 - lanes) flush();                              // 2^12 fractions below 2^20 fill 32 bits
      } else {
        for (int q = 0; q < lanes; ++q)
          if (keep[q]) pairs[int64_t(below[q])] += 1, fractions[int64_t(below[q])] += int64_t(fraction[q]);
      }
    }
  if (sizeof(T) == 4 && held) flush();
  if (sizeof(T) == 8) carry(cells, pairs, fractions);
}

template <class F, class T> static void slope_table(const F& f, const LossSlot& loss, const Strip<T>& strip, const T* slopes) {
  using V = typename Native<T>::V;
  const T* table = slopes + loss.table_first + loss.cells;             // of negatives
  for (int64_t r = 0; r < strip.rows; ++r)
    for (int64_t j = 0; j < strip.columns; j += Native<T>::lanes) {
      V s, y = V{};
      __builtin_memcpy(&s, strip.s + r * strip.ld + j, sizeof s);
      T* at = strip.g + r * strip.ld + j;
      if (!strip.first) __builtin_memcpy(&y, at, sizeof y);
      y += select(is_pair(s), gather(table, __builtin_convertvector(place_of(f, s), typename Native<T>::M)) * f.place_slope(s), splat<V>(0));
      __builtin_memcpy(at, &y, sizeof y);
    }
}

template <class F, class T, class V, bool Both, int R>
DML_FN void collect_rows(const F& f, const LossSlot& loss, const Strip<T>& strip, const Accumulators& acc, int64_t r0) {
  using Limits = typename F::template Limits<V>;
  using Sums = typename F::template Sums<V>;
  constexpr int lanes = Native<T>::lanes;
  const T* limits = static_cast<const T*>(loss.limits_at);
  Sums* row_sums = reinterpret_cast<Sums*>(acc.rows) + strip.local_row + r0;
  T* column_sums = reinterpret_cast<T*>(acc.columns) + strip.local_column;
  const T* s = strip.s + r0 * strip.ld;
  Limits row_limits[R];
  Sums rows[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    row_limits[r] = broadcast<Limits, V>(limits + strip.row + r0 + r, strip.anchors);
    rows[r] = row_sums[r];
  }
  for (int64_t j = 0; j < strip.columns; j += lanes) {
    V x[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) __builtin_memcpy(&x[r], s + r * strip.ld + j, sizeof(V));
    if constexpr (Both) {
      const Limits column_limits = load<Limits, V>(limits + strip.column + j, strip.anchors);
      Sums column = load<Sums, V>(column_sums + j, strip.tile_columns);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        f.collect(x[r], row_limits[r], rows[r]);
        f.collect(x[r], column_limits, column);
      }
      store<V>(column, column_sums + j, strip.tile_columns);
    } else {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) f.collect(x[r], row_limits[r], rows[r]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) row_sums[r] = rows[r];
}

template <class F, class T, class V, bool Both>
static void collect_slots(const F& f, const LossSlot& loss, const Strip<T>& strip, const Accumulators& acc) {
  using Sums = typename F::template Sums<V>;
  using SlotLimits = typename F::template SlotLimits<V>;
  using SlotSums = typename F::template SlotSums<V>;
  constexpr int lanes = Native<T>::lanes;
  const T* limits = static_cast<const T*>(loss.slot_limits_at);
  const int64_t step = strip.slot_stride, field = strip.most_positives * strip.slot_stride;   // [field][positive][slot_stride]
  T* column_sums = reinterpret_cast<T*>(acc.columns) + strip.local_column;
  T* column_slots = reinterpret_cast<T*>(acc.column_slots) + strip.local_column;
  const int64_t column_field = strip.most_positives * strip.tile_columns;
  for (int64_t r = 0; r < strip.rows; ++r) {
    const int64_t i = strip.row + r, count = strip.positives[i];
    Sums& into = reinterpret_cast<Sums*>(acc.rows)[strip.local_row + r];
    SlotSums* slots = reinterpret_cast<SlotSums*>(acc.row_slots) + (strip.local_row + r) * strip.most_positives;
    Sums row = into;
    for (int64_t j = 0; j < strip.columns; j += lanes) {
      V s;
      __builtin_memcpy(&s, strip.s + r * strip.ld + j, sizeof(V));
      const V m = f.measure(s);
      if constexpr (HasOnce<F>::value) f.once(m, row);
      for (int64_t k = 0; k < count; ++k) f.collect(m, broadcast<SlotLimits, V>(limits + k * step + i - strip.slot_first, field), row, slots[k]);
      if constexpr (Both) {
        Sums column = load<Sums, V>(column_sums + j, strip.tile_columns);
        if constexpr (HasOnce<F>::value) f.once(m, column);
        for (int64_t k = 0; k < strip.column_positives; ++k) {
          T* at = column_slots + k * strip.tile_columns + j;
          SlotSums slot = load<SlotSums, V>(at, column_field);
          f.collect(m, load<SlotLimits, V>(limits + k * step + strip.column + j, field), column, slot);
          store<V>(slot, at, column_field);
        }
        store<V>(column, column_sums + j, strip.tile_columns);
      }
    }
    into = row;
  }
}

// Classes with several centres: a register holds one centre of as many neighbouring classes as it has lanes. Tiles begin and end
// with a class; beyond the columns there is no pair.
template <class T> static void load_classes(const T* s, int64_t left, int64_t centres, typename Native<T>::V* into) {
  constexpr int lanes = Native<T>::lanes;
  T* to = reinterpret_cast<T*>(into);
  if (left >= lanes * centres) {
    for (int q = 0; q < lanes; ++q)
      for (int64_t k = 0; k < centres; ++k) to[k * lanes + q] = s[q * centres + k];
  } else {
    for (int q = 0; q < lanes; ++q)
      for (int64_t k = 0; k < centres; ++k) to[k * lanes + q] = q * centres + k < left ? s[q * centres + k] : T(no_pair());
  }
}

template <class F, class T> static void collect_centres(const F& f, const LossSlot& loss, const Strip<T>& strip, const Accumulators& acc) {
  using V = typename Native<T>::V;
  using Limits = typename F::template Limits<V>;
  using Sums = typename F::template Sums<V>;
  const int64_t centres = int64_t(f.centres), step = centres * Native<T>::lanes;
  const T* limits = static_cast<const T*>(loss.limits_at);
  V s[kMostCentres];
  for (int64_t r = 0; r < strip.rows; ++r) {
    Sums& sums = reinterpret_cast<Sums*>(acc.rows)[strip.local_row + r];
    const Limits row_limits = broadcast<Limits, V>(limits + strip.row + r, strip.anchors);
    for (int64_t j = 0; j < strip.columns; j += step) {
      load_classes(strip.s + r * strip.ld + j, strip.columns - j, centres, s);
      f.collect(f.fold(s, centres).similarity, row_limits, sums);
    }
  }
}

template <class F, class T> static void slope_centres(const F& f, const LossSlot& loss, const Strip<T>& strip) {
  using V = typename Native<T>::V;
  using Slopes = typename F::template Slopes<V>;
  constexpr int lanes = Native<T>::lanes;
  const int64_t centres = int64_t(f.centres), step = centres * lanes;
  const T* slopes = static_cast<const T*>(loss.slopes_at);
  V s[kMostCentres];
  for (int64_t r = 0; r < strip.rows; ++r) {
    const Slopes row = broadcast<Slopes, V>(slopes + strip.row + r, strip.anchors);
    for (int64_t j = 0; j < strip.columns; j += step) {
      const int64_t left = strip.columns - j;
      load_classes(strip.s + r * strip.ld + j, left, centres, s);
      const auto fold = f.fold(s, centres);
      const V slope = f.slope_negative(fold.similarity, row);
      for (int64_t k = 0; k < centres; ++k) s[k] = slope * f.share(s[k], fold);
      const T* from = reinterpret_cast<const T*>(s);
      T* to = strip.g + r * strip.ld + j;
      for (int q = 0; q < lanes; ++q)
        for (int64_t k = 0; k < centres && q * centres + k < left; ++k)
          to[q * centres + k] = from[k * lanes + q] + (strip.first ? T(0) : to[q * centres + k]);
    }
  }
}

// The same by search: every measured value is added to the bin between its neighbouring ends. Rows only.
template <class F, class T, class V> static void collect_bins(const F& f, const LossSlot& loss, const Strip<T>& strip, const Accumulators& acc) {
  constexpr int lanes = Native<T>::lanes;
  for (int64_t r = 0; r < strip.rows; ++r) {
    const int64_t i = strip.row + r, ends = strip.positives[i] * loss.search;
    if (ends == 0) continue;
    const T* breaks = static_cast<const T*>(loss.breaks_at) + (i - strip.slot_first) * loss.search_cells;
    Bin* bins = reinterpret_cast<Bin*>(acc.row_slots) + (strip.local_row + r) * loss.search_cells;
    const Search<T> search(breaks, cells_above(ends));
    const V last = splat<V>(breaks[ends - 1]);
    for (int64_t j = 0; j < strip.columns; j += lanes) {
      V s;
      __builtin_memcpy(&s, strip.s + r * strip.ld + j, sizeof(V));
      const V m = f.measure(s);
      if (!any(m < last)) continue;
      add_to_bins<T>(bins, search.find(m), m);
    }
  }
}

template <class F, class T, class V, bool Both> static void collect(const LossSlot& loss, const Strip<T>& strip, const Accumulators& acc) {
  F f;
  __builtin_memcpy(&f, loss.options, sizeof f);
  if constexpr (HasTable<F>::value) {
    collect_table(f, loss, strip, acc);
  } else if constexpr (HasCentres<F>::value) {
    collect_centres(f, loss, strip, acc);
  } else if constexpr (F::kSlots) {
    if constexpr (SearchedEnds<F>::value > 0 && !Both)
      if (loss.search) return collect_bins<F, T, V>(f, loss, strip, acc);
    collect_slots<F, T, V, Both>(f, loss, strip, acc);
  } else {
    int64_t r = 0;
    if constexpr (field_count<typename F::template Sums<V>, V>() <= 8)   // more than that would not stay in registers
      for (; r + 4 <= strip.rows; r += 4) collect_rows<F, T, V, Both, 4>(f, loss, strip, acc, r);
    for (; r < strip.rows; ++r) collect_rows<F, T, V, Both, 1>(f, loss, strip, acc, r);
  }
}

template <class F, class T, class V, bool Both, bool First, int R>
DML_FN void slope_rows(const F& f, const LossSlot& loss, const Strip<T>& strip, int64_t r0) {
  using Slopes = typename F::template Slopes<V>;
  constexpr int lanes = Native<T>::lanes;
  const T* slopes = static_cast<const T*>(loss.slopes_at);
  const T* s = strip.s + r0 * strip.ld;
  T* g = strip.g + r0 * strip.ld;
  Slopes rows[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) rows[r] = broadcast<Slopes, V>(slopes + strip.row + r0 + r, strip.anchors);
  for (int64_t j = 0; j < strip.columns; j += lanes) {
    Slopes column;
    if constexpr (Both) column = load<Slopes, V>(slopes + strip.column + j, strip.anchors);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      V x, y;
      __builtin_memcpy(&x, s + r * strip.ld + j, sizeof(V));
      y = f.slope_negative(x, rows[r]);
      if constexpr (Both) y += f.slope_negative(x, column);
      if constexpr (!First) {
        V old;
        __builtin_memcpy(&old, g + r * strip.ld + j, sizeof(V));
        y += old;
      }
      __builtin_memcpy(g + r * strip.ld + j, &y, sizeof(V));
    }
  }
}

template <class F, class T, class V, bool Both> static void slope_slots(const F& f, const LossSlot& loss, const Strip<T>& strip) {
  using Slopes = typename F::template Slopes<V>;
  using SlotLimits = typename F::template SlotLimits<V>;
  constexpr int lanes = Native<T>::lanes;
  const T* slopes = static_cast<const T*>(loss.slopes_at);
  const T* limits = static_cast<const T*>(loss.slot_limits_at);
  const int64_t step = strip.slot_stride, field = strip.most_positives * strip.slot_stride;
  for (int64_t r = 0; r < strip.rows; ++r) {
    const int64_t i = strip.row + r, count = strip.positives[i];
    const Slopes row = broadcast<Slopes, V>(slopes + i, strip.anchors);
    for (int64_t j = 0; j < strip.columns; j += lanes) {
      V s, y = V{};
      __builtin_memcpy(&s, strip.s + r * strip.ld + j, sizeof(V));
      const V m = f.measure(s);
      for (int64_t k = 0; k < count; ++k) y += f.tally(m, broadcast<SlotLimits, V>(limits + k * step + i - strip.slot_first, field));
      y = f.finish(s, m, y, row);
      if constexpr (Both) {
        V other = V{};
        for (int64_t k = 0; k < strip.column_positives; ++k)
          other += f.tally(m, load<SlotLimits, V>(limits + k * step + strip.column + j, field));
        y += f.finish(s, m, other, load<Slopes, V>(slopes + strip.column + j, strip.anchors));
      }
      T* at = strip.g + r * strip.ld + j;
      if (!strip.first) {
        V old;
        __builtin_memcpy(&old, at, sizeof(V));
        y += old;
      }
      __builtin_memcpy(at, &y, sizeof(V));
    }
  }
}

template <class F, class T, class V> static void slope_bins(const F& f, const LossSlot& loss, const Strip<T>& strip) {
  using Slopes = typename F::template Slopes<V>;
  constexpr int lanes = Native<T>::lanes;
  const T* slopes = static_cast<const T*>(loss.slopes_at);
  for (int64_t r = 0; r < strip.rows; ++r) {
    const int64_t i = strip.row + r, ends = strip.positives[i] * loss.search, at = (i - strip.slot_first) * loss.search_cells;
    const T *breaks = static_cast<const T*>(loss.breaks_at) + at, *tallies = static_cast<const T*>(loss.bins_at) + at;
    const Slopes row = broadcast<Slopes, V>(slopes + i, strip.anchors);
    const Search<T> search(breaks, cells_above(ends));
    const V last = splat<V>(ends ? breaks[ends - 1] : Limit<T>::lowest);
    for (int64_t j = 0; j < strip.columns; j += lanes) {
      V s, y = V{};
      __builtin_memcpy(&s, strip.s + r * strip.ld + j, sizeof(V));
      const V m = f.measure(s);
      if (any(m < last)) y = f.finish(s, m, gather(tallies, search.find(m)), row);
      T* to = strip.g + r * strip.ld + j;
      if (!strip.first) {
        V old;
        __builtin_memcpy(&old, to, sizeof(V));
        y += old;
      }
      __builtin_memcpy(to, &y, sizeof(V));
    }
  }
}

template <class F, class T, class V, bool Both> static void slope(const LossSlot& loss, const Strip<T>& strip) {
  F f;
  __builtin_memcpy(&f, loss.options, sizeof f);
  if constexpr (HasTable<F>::value) {
    slope_table(f, loss, strip, strip.table_slopes);
  } else if constexpr (HasCentres<F>::value) {
    slope_centres(f, loss, strip);
  } else if constexpr (F::kSlots) {
    if constexpr (SearchedEnds<F>::value > 0 && !Both)
      if (loss.search) return slope_bins<F, T, V>(f, loss, strip);
    slope_slots<F, T, V, Both>(f, loss, strip);
  } else {
    int64_t r = 0;
    if (strip.first) {
      for (; r + 4 <= strip.rows; r += 4) slope_rows<F, T, V, Both, true, 4>(f, loss, strip, r);
      for (; r < strip.rows; ++r) slope_rows<F, T, V, Both, true, 1>(f, loss, strip, r);
    } else {
      for (; r + 4 <= strip.rows; r += 4) slope_rows<F, T, V, Both, false, 4>(f, loss, strip, r);
      for (; r < strip.rows; ++r) slope_rows<F, T, V, Both, false, 1>(f, loss, strip, r);
    }
  }
}

DML_END
