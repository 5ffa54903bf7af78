// The inner loops: a strip of a tile (a few rows, up to 512 columns, so that it stays in the first-level cache while every loss
// of the ensemble passes over it) feeds the rows' accumulators, and the columns' too when the tile serves both.
#pragma once
#include "cpu/centres.h"
#include "cpu/slots.h"
#include "cpu/steps.h"
#include "cpu/tables.h"

DML_BEGIN

// Rows that share the loads of a column. Doubles serve proofs, not speed, and would take half of the compiler's time.
template <class T> constexpr int kRowsTogether = sizeof(T) == 4 ? 4 : 1;

template <class F, class T, class V, bool Both, int R>
DML_FN void collect_rows(const F& f, const FunctorState& loss, const Strip<T>& strip, const Accumulators& acc, int64_t r0) {
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

template <class F, class T, class V, bool Both> static void collect(const FunctorState& loss, const Strip<T>& strip,
                                                                    const Accumulators& acc) {
  F f;
  __builtin_memcpy(&f, loss.options, sizeof f);
  if constexpr (HasTable<F>::value) {
    collect_table(f, loss, strip, acc);
  } else if constexpr (HasCentres<F>::value) {
    collect_centres(f, loss, strip, acc);
  } else if constexpr (F::kSlots) {
    if constexpr (SearchedEnds<F>::value > 0 && !Both)
      if (loss.search) return collect_bins<F, T, V>(f, loss, strip, acc);
    if constexpr (HasSteps<F>::value && !Both)
      if (loss.step_cells) return Steps<F, T>::collect(f, loss, strip, acc);
    collect_slots<F, T, V, Both>(f, loss, strip, acc);
  } else {
    int64_t r = 0;
    if constexpr (kRowsTogether<T> > 1 &&
                  field_count<typename F::template Sums<V>, V>() <= 8)  // more would not stay in registers
      for (; r + 4 <= strip.rows; r += 4) collect_rows<F, T, V, Both, 4>(f, loss, strip, acc, r);
    for (; r < strip.rows; ++r) collect_rows<F, T, V, Both, 1>(f, loss, strip, acc, r);
  }
}

template <class F, class T, class V, bool Both, bool First, int R>
DML_FN void slope_rows(const F& f, const FunctorState& loss, const Strip<T>& strip, int64_t r0) {
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

template <class F, class T, class V, bool Both, bool First> DML_FN void slope_all(const F& f, const FunctorState& loss,
                                                                                  const Strip<T>& strip) {
  int64_t r = 0;
  if constexpr (kRowsTogether<T> > 1)
    for (; r + 4 <= strip.rows; r += 4) slope_rows<F, T, V, Both, First, 4>(f, loss, strip, r);
  for (; r < strip.rows; ++r) slope_rows<F, T, V, Both, First, 1>(f, loss, strip, r);
}

template <class F, class T, class V, bool Both> static void slope(const FunctorState& loss, const Strip<T>& strip,
                                                                  [[maybe_unused]] const Accumulators& acc) {
  F f;
  __builtin_memcpy(&f, loss.options, sizeof f);
  if constexpr (HasTable<F>::value) {
    slope_table(f, loss, strip, strip.table_slopes);
  } else if constexpr (HasCentres<F>::value) {
    slope_centres(f, loss, strip);
  } else if constexpr (F::kSlots) {
    if constexpr (SearchedEnds<F>::value > 0 && !Both)
      if (loss.search) return slope_bins<F, T, V>(f, loss, strip);
    if constexpr (HasSteps<F>::value && !Both)
      if (loss.step_cells) return Steps<F, T>::slope(f, loss, strip, acc);
    slope_slots<F, T, V, Both>(f, loss, strip);
  } else {
    strip.first ? slope_all<F, T, V, Both, true>(f, loss, strip) : slope_all<F, T, V, Both, false>(f, loss, strip);
  }
}

DML_END
