// Rows that are scaled to unit norm on their way to the kernels, and the way back of their gradients: of a whole side, or of a
// panel of the streamed side (problem.h), which stays in the cache as long as its tiles take.
#pragma once
#include "cpu/scratch.h"

DML_BEGIN

constexpr int64_t kRowsAhead = 4;  // that are asked for before they are read: those of a memory lie anywhere

template <class T> static T dot(const T* a, const T* b, int64_t n) {
  using V = typename Native<T>::V;
  constexpr int lanes = Native<T>::lanes;
  V sum = V{};
  int64_t k = 0;
  for (; k + lanes <= n; k += lanes) {
    V x, y;
    memcpy(&x, a + k, sizeof x);
    memcpy(&y, b + k, sizeof y);
    sum += x * y;
  }
  T total = 0;
  for (int q = 0; q < lanes; ++q) total += sum[q];
  for (; k < n; ++k) total += a[k] * b[k];
  return total;
}

template <class T> static void ask_for(const T* row, int64_t width) {
  for (int64_t k = 0; k < width; k += 64 / int64_t(sizeof(T))) __builtin_prefetch(row + k);
}

// The factor that scales a row to unit norm: a zero vector stays zero.
template <class T> static T factor_of(const T* x, int64_t width, bool normalise, bool& is_broken) {
  double square = 0;  // double: 1e20 is no infinity
#pragma omp simd reduction(+ : square)
  for (int64_t k = 0; k < width; ++k) square += double(x[k]) * double(x[k]);
  is_broken = !(square < __builtin_inf());
  const double norm = __builtin_sqrt(square);
  return !normalise ? T(1) : norm > 1e-12 ? T(1 / norm) : T(0);
}
template <class T> static void scale_row(const T* x, int64_t width, T factor, T* to) {
  for (int64_t k = 0; k < width; ++k) to[k] = x[k] * factor;
}

// The gradient of a raw vector: normalising removes the radial part and divides by the norm. `to` may be the gradient itself.
template <class T> static void put_gradient(const T* grad, const T* unit, T factor, int64_t width, bool normalise, bool adds,
                                            T* to) {
  const T radial = normalise ? dot(grad, unit, width) : T(0);
  if (adds)
    for (int64_t k = 0; k < width; ++k) to[k] += (grad[k] - radial * unit[k]) * factor;
  else
    for (int64_t k = 0; k < width; ++k) to[k] = (grad[k] - radial * unit[k]) * factor;
}

enum class Norms { compute, write, read };  // of the rows: computed, and kept too, or those that were kept

// Rows [from, to) of the streamed side as unit vectors.
template <class T> static void take_rows(const Problem<T>& p, int64_t from, int64_t to, Norms norms, T* unit) {
  const StreamedSide<T>& side = p.streamed;
  for (int64_t k = from; k < to; ++k, unit += p.D) {
    const T* x = side.vectors + side.order[k] * side.stride;
    if (k + kRowsAhead < to) ask_for(side.vectors + side.order[k + kRowsAhead] * side.stride, p.D);
    T factor;
    if (norms == Norms::read) {
      factor = side.norms[k];
    } else {
      bool is_broken;
      factor = factor_of(x, p.D, side.normalise, is_broken);
      if (norms == Norms::write) side.norms[k] = factor, side.broken[k] = side.broken[k] || is_broken;
    }
    scale_row(x, p.D, factor, unit);
  }
}

template <class T> static int64_t first_of_panel(const Problem<T>& p, const Tile& t) {
  return p.streamed.which == Streamed::anchors ? t.i0 : t.j0;
}

// Makes the panel of a tile the one at hand. In forward one thread writes the norms, though all need the vectors.
template <class T> static void enter_panel(const Problem<T>& p, const Tile& t, Scratch<T>& s, bool is_forward) {
  const bool by_rows = p.streamed.which == Streamed::anchors;
  const int64_t first = by_rows ? t.i0 : t.j0;
  if (p.streamed.which == Streamed::neither || first == s.panel_first) return;
  s.panel_first = first, s.panel_last = by_rows ? t.i1 : t.j1;
  take_rows(p, first, s.panel_last, !is_forward ? Norms::read : by_rows || t.i0 == 0 ? Norms::write : Norms::compute, s.panel);
}

// Where the gradient of the panel at hand is added up: `grads` is that of the whole side.
template <class T> static T* panel_gradient(const Problem<T>& p, const Scratch<T>& s, T* grads) {
  return p.streamed.gradient ? s.panel_grads : grads + s.panel_first * p.D;
}

// The gradient of the panel at hand is complete.
template <class T> static void leave_panel(const Problem<T>& p, Scratch<T>& s, T* grads) {
  const StreamedSide<T>& side = p.streamed;
  if (side.which == Streamed::neither || s.panel_first < 0 || !(grads || side.gradient)) return;
  T* from = panel_gradient(p, s, grads);
  for (int64_t k = s.panel_first; k < s.panel_last; ++k, from += p.D)
    put_gradient(from, s.panel + (k - s.panel_first) * p.D, side.norms[k], p.D, side.normalise, false,
                 side.gradient ? side.gradient + side.order[k] * side.gradient_stride : from);
}

// The slopes of positives join those of their tile, rows [r, r + rows).
template <class T> static void place_positives(const Problem<T>& p, const Tile& t, int64_t r, int64_t rows, int64_t ld,
                                               const T* positives, T* slopes) {
  for (const int64_t last = r + rows; r < last; ++r) {
    const int64_t i = t.i0 + r, from = p.row_first[i] > t.j0 ? p.row_first[i] : t.j0,
                  to = p.row_last[i] < t.j1 ? p.row_last[i] : t.j1;
    if (from < to)
      memcpy(slopes + r * ld + from - t.j0, positives + p.streamed.slopes_at[i] + from - p.row_first[i],
             (to - from) * sizeof(T));
  }
}

DML_END
