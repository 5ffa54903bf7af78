// Losses of soft ranks in large classes: the sums of a functor with kSteps, for one anchor, by power series. Rows only.
#pragma once
#include "cpu/series.h"
#include "cpu/strip.h"

DML_BEGIN

// A thread's memory for one anchor's points, its positives and perhaps itself: their moments, and what the sums are at them.
template <class T> struct Points {
  using V = typename Native<T>::V;
  using M = typename Native<T>::M;
  static constexpr int lanes = Native<T>::lanes, kSeries = 5;

  const Line<T> line;
  T *at, *weights, *results[4], *moments, *series[4];
  int64_t count = 0, room;
  int first = 0, last = -1;  // cells with points

  static int64_t numbers_of(int cells, int64_t most_positives) {
    return 6 * room_of(most_positives) + kSeries * int64_t(cells) * kCellTerms;
  }
  static int64_t room_of(int64_t most_positives) { return (most_positives + 1 + lanes + 15) / 16 * 16; }

  Points(const Line<T>& l, int64_t most_positives, void* scratch) : line(l), room(room_of(most_positives)) {
    T* to = static_cast<T*>(scratch);
    const auto take = [&to](int64_t numbers) { return to += numbers, to - numbers; };
    moments = take(line.numbers());
    for (T*& s : series) s = take(line.numbers());
    at = take(room), weights = take(room);
    for (T*& r : results) r = take(room);
  }
  void add(T s, T weight) { at[count] = s, weights[count++] = weight; }
  void pad() {
    for (int64_t k = count; k < count + lanes; ++k) at[k] = T(no_pair()), weights[k] = 0;
  }
  template <class Visit> void visit(Visit work) const {
    for (int64_t k = 0; k < count; k += lanes) {
      V s, t;
      M cell;
      memcpy(&s, at + k, sizeof s);
      line.place(s, t, cell);
      work(k, t, cell);
    }
  }
  void find_moments() {
    pad();
    first = line.cells, last = -1;
    visit([&](int64_t, V, M cell) {
      for (int q = 0; q < lanes; ++q) {
        const int c = int(cell[q]);
        if (c == line.cells) continue;
        first = c < first ? c : first, last = c > last ? c : last;
      }
    });
    const auto clear = [this](int c, int n) { memset(moments + int64_t(c) * kCellTerms, 0, n * kCellTerms * sizeof(T)); };
    if (last >= first) clear(first, last - first + 1);
    clear(line.cells, 1);
    visit([&](int64_t k, V t, M cell) {
      V weight;
      memcpy(&weight, weights + k, sizeof weight);
      Powers<T>(t, weight, cell).add_to(moments);
    });
  }
  void evaluate(int series_count) const {
    for (int n = 0; n < series_count; ++n) memset(series[n] + int64_t(line.cells) * kCellTerms, 0, kCellTerms * sizeof(T));
    visit([&](int64_t k, V t, M cell) {
      const Powers<T> powers(t, splat<V>(1), cell);
      for (int n = 0; n < series_count; ++n) {
        const V y = powers.of(series[n]);
        memcpy(results[n] + k, &y, sizeof y);
      }
    });
  }
};

template <class F, class T> struct Steps {
  using V = typename Native<T>::V;
  using M = typename Native<T>::M;
  static constexpr int lanes = Native<T>::lanes;

  static Line<T> line_of(const F& f, const FunctorState& loss) { return {f.width(), loss.step_cells}; }
  static T* row_of(const Accumulators& acc, const FunctorState& loss, int64_t row) {
    return reinterpret_cast<T*>(acc.row_slots) + row * loss.step_cells * kCellTerms;
  }
  template <class Each> static void for_cells(const Line<T>& line, const T* row, int64_t columns, Each each) {
    for (int64_t j = 0; j < columns; j += lanes) {
      V s, t;
      M cell;
      memcpy(&s, row + j, sizeof s);
      line.place(s, t, cell);
      each(j, Powers<T>(t, splat<V>(1), cell));
    }
  }
  static void collect(const F& f, const FunctorState& loss, const Strip<T>& strip, const Accumulators& acc) {
    const Line<T> line = line_of(f, loss);
    for (int64_t r = 0; r < strip.rows; ++r) {
      T* moments = row_of(acc, loss, strip.local_row + r);
      for_cells(line, strip.s + r * strip.ld, strip.columns, [&](int64_t, const Powers<T>& p) { p.add_to(moments); });
    }
  }

  // Sums over moments in the cells first to last as polynomials of the cell, and their derivatives: series 2 n and 2 n + 1.
  static void steps_at(const Points<T>& points, const T* moments, int first, int last, int n) {
    const Transfer<T>& table = Transfer<T>::steps();
    int above = last + 1;
    T whole = 0;
    for (int cell = points.last; cell >= points.first; --cell) {
      while (above - 1 >= cell + 2 && above > first) whole += moments[int64_t(--above) * kCellTerms];
      if (points.moments[int64_t(cell) * kCellTerms] == 0) continue;
      T *to = points.series[2 * n] + int64_t(cell) * kCellTerms, *slope = points.series[2 * n + 1] + int64_t(cell) * kCellTerms;
      transfer(table, moments, first, last, cell, to);
      for (int a = 0; a + 1 < kCellTerms; ++a) slope[a] = to[a + 1] * (T(a + 1) * T(-2) / kCellWidth<T>);
      slope[kCellTerms - 1] = 0;
      to[0] += whole;
    }
  }
  // The negatives of one anchor are all collected: what comparing would have found of its points.
  template <class Totals, class Put>
  static void settle(const F& f, const FunctorState& loss, Points<T>& points, const T* moments, bool has_own, T* range,
                     int64_t range_stride, Totals& total, Put put) {
    const Line<T>& line = points.line;
    int first = 0, last = line.cells - 1;
    while (first <= last && moments[int64_t(first) * kCellTerms] == 0) ++first;
    while (last >= first && moments[int64_t(last) * kCellTerms] == 0) --last;
    range[0] = T(first), range[range_stride] = T(last);
    points.find_moments();
    steps_at(points, moments, first, last, 0);
    steps_at(points, points.moments, points.first, points.last, 1);
    points.evaluate(4);
    const T broken = moments[int64_t(line.cells) * kCellTerms + 1] * T(0);   // NaN where a similarity was
    const int64_t slots = points.count - has_own;
    for (int64_t k = 0; k < slots; ++k)
      put(k, f.settle(points.results[0][k] + broken, points.results[1][k], points.results[2][k] + T(0.5),
                      points.results[3][k] - T(0.25)));
    if (has_own) f.settle_own(points.results[0][slots] + broken, points.results[2][slots] + T(0.5), total);
  }
  // Sums of weighted derivatives at the points themselves, without their own.
  static void slopes_among(Points<T>& points) {
    points.find_moments();
    for (int cell = points.first; cell <= points.last; ++cell)
      transfer(Transfer<T>::slopes(), points.moments, points.first, points.last, cell,
               points.series[0] + int64_t(cell) * kCellTerms);
    points.evaluate(1);
    for (int64_t k = 0; k < points.count; ++k) points.results[0][k] -= points.weights[k] * T(0.25);
  }
  // The tally of an anchor as polynomials, in the cells where it has negatives.
  static void prepare(Points<T>& points, const T* range, int64_t range_stride, T* to) {
    points.find_moments();
    memset(to, 0, points.line.numbers() * sizeof(T));
    for (int cell = int(range[0]); cell <= int(range[range_stride]); ++cell)
      transfer(Transfer<T>::slopes(), points.moments, points.first, points.last, cell, to + int64_t(cell) * kCellTerms);
  }
  static void slope(const F& f, const FunctorState& loss, const Strip<T>& strip, const Accumulators& acc) {
    using Slopes = typename F::template Slopes<V>;
    const Line<T> line = line_of(f, loss);
    const T* slopes = static_cast<const T*>(loss.slopes_at);
    for (int64_t r = 0; r < strip.rows; ++r) {
      const T* series = row_of(acc, loss, strip.local_row + r);
      const Slopes row = broadcast<Slopes, V>(slopes + strip.row + r, strip.anchors);
      T* g = strip.g + r * strip.ld;
      for_cells(line, strip.s + r * strip.ld, strip.columns, [&](int64_t j, const Powers<T>& p) {
        V y = f.finish_settled(p.of(series), row);
        if (!strip.first) {
          V old;
          memcpy(&old, g + j, sizeof old);
          y += old;
        }
        memcpy(g + j, &y, sizeof y);
      });
    }
  }
};

DML_END
