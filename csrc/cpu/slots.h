// The inner loops of losses with slots: every positive of an anchor with every negative, compared one by one or searched.
#pragma once
#include "cpu/strip.h"

DML_BEGIN

template <class F, class T, class V, bool Both>
static void collect_slots(const F& f, const FunctorState& loss, const Strip<T>& strip, const Accumulators& acc) {
  using Sums = typename F::template Sums<V>;
  using SlotLimits = typename F::template SlotLimits<V>;
  using SlotSums = typename F::template SlotSums<V>;
  constexpr int lanes = Native<T>::lanes;
  const T* limits = static_cast<const T*>(loss.slot_limits_at);
  const int64_t step = strip.slot_stride, field = strip.most_positives * strip.slot_stride;  // [field][positive][slot_stride]
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
      for (int64_t k = 0; k < count; ++k)
        f.collect(m, broadcast<SlotLimits, V>(limits + k * step + i - strip.slot_first, field), row, slots[k]);
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

// By search: every measured value is added to the bin between its neighbouring ends. Rows only.
template <class F, class T, class V> static void collect_bins(const F& f, const FunctorState& loss, const Strip<T>& strip,
                                                              const Accumulators& acc) {
  constexpr int lanes = Native<T>::lanes;
  for (int64_t r = 0; r < strip.rows; ++r) {
    const int64_t i = strip.row + r, ends = strip.positives[i] * loss.search;
    if (ends == 0) continue;
    const T* breaks = static_cast<const T*>(loss.breaks_at) + (i - strip.slot_first) * loss.search_cells;
    Bin* bins = reinterpret_cast<Bin*>(acc.row_slots) + (strip.local_row + r) * loss.search_cells;
    const Search<T> search(breaks, cells_above(ends));
    const V last = splat<V>(breaks[ends - 1]);
    for (int64_t j = 0; j < strip.columns;) {
      Searched<T> some;
      for (; j < strip.columns && some.registers < kSearchedTogether; j += lanes) {
        V s;
        __builtin_memcpy(&s, strip.s + r * strip.ld + j, sizeof(V));
        const V m = f.measure(s);
        if (any(m < last)) some.add(search, m, j);
      }
      some.find(search);
      some.add_to_bins(bins);
    }
  }
}

template <class F, class T, class V, bool Both> static void slope_slots(const F& f, const FunctorState& loss,
                                                                        const Strip<T>& strip) {
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
      for (int64_t k = 0; k < count; ++k)
        y += f.tally(m, broadcast<SlotLimits, V>(limits + k * step + i - strip.slot_first, field));
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

template <class F, class T, class V> static void slope_bins(const F& f, const FunctorState& loss, const Strip<T>& strip) {
  using Slopes = typename F::template Slopes<V>;
  constexpr int lanes = Native<T>::lanes;
  const T* slopes = static_cast<const T*>(loss.slopes_at);
  for (int64_t r = 0; r < strip.rows; ++r) {
    const int64_t i = strip.row + r, ends = strip.positives[i] * loss.search, at = (i - strip.slot_first) * loss.search_cells;
    const T *breaks = static_cast<const T*>(loss.breaks_at) + at, *tallies = static_cast<const T*>(loss.bins_at) + at;
    const Slopes row = broadcast<Slopes, V>(slopes + i, strip.anchors);
    const Search<T> search(breaks, cells_above(ends));
    const V last = splat<V>(ends ? breaks[ends - 1] : Limit<T>::lowest);
    auto put = [&](int64_t j, V y) {
      T* to = strip.g + r * strip.ld + j;
      if (!strip.first) {
        V old;
        __builtin_memcpy(&old, to, sizeof(V));
        y += old;
      }
      __builtin_memcpy(to, &y, sizeof(V));
    };
    for (int64_t j = 0; j < strip.columns;) {
      Searched<T> some;
      for (; j < strip.columns && some.registers < kSearchedTogether; j += lanes) {
        V s;
        __builtin_memcpy(&s, strip.s + r * strip.ld + j, sizeof(V));
        const V m = f.measure(s);
        if (any(m < last)) some.add(search, m, j);
        else put(j, V{});
      }
      some.find(search);
      T tally[kSearchedTogether * lanes];
      for (int64_t k = 0; k < some.registers * lanes; ++k) tally[k] = tallies[some.at[k]];
      for (int n = 0; n < some.registers; ++n) {
        V s, m, number;
        __builtin_memcpy(&s, strip.s + r * strip.ld + some.column[n], sizeof(V));
        __builtin_memcpy(&m, some.value + n * lanes, sizeof(V));
        __builtin_memcpy(&number, tally + n * lanes, sizeof(V));
        put(some.column[n], f.finish(s, m, number, row));
      }
    }
  }
}

DML_END
