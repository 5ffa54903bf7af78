// The inner loops of losses with a table: two soft histograms of the whole batch.
#pragma once
#include "cpu/strip.h"

DML_BEGIN

// Soft histograms. A pair at position x adds 1 - f to cell floor(x) and f to the next, f = x - floor(x): kept as whole numbers,
// the pairs of a cell and the sum of their fractions in units, so that the sums do not depend on any order.
template <class T> DML_FN constexpr double fraction_unit() {
  return sizeof(T) == 4 ? double(1 << 20) : double(int64_t(1) << 40);
}

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

template <class F, class T> static void collect_table(const F& f, const FunctorState& loss, const Strip<T>& strip,
                                                      const Accumulators& acc) {
  using V = typename Native<T>::V;
  constexpr int lanes = Native<T>::lanes;
  const int64_t cells = loss.cells;
  int64_t *pairs = acc.table + 2 * cells, *fractions = pairs + cells;
  int64_t* packed = acc.strip_table;  // float: pairs in the upper half, fractions in the lower
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
        if (held > 4096 - lanes) flush();  // 2^12 fractions below 2^20 fill 32 bits
      } else {
        for (int q = 0; q < lanes; ++q)
          if (keep[q]) pairs[int64_t(below[q])] += 1, fractions[int64_t(below[q])] += int64_t(fraction[q]);
      }
    }
  if (sizeof(T) == 4 && held) flush();
  if (sizeof(T) == 8) carry(cells, pairs, fractions);
}

template <class F, class T> static void slope_table(const F& f, const FunctorState& loss, const Strip<T>& strip,
                                                    const T* slopes) {
  using V = typename Native<T>::V;
  const T* table = slopes + loss.table_first + loss.cells;  // of negatives
  for (int64_t r = 0; r < strip.rows; ++r)
    for (int64_t j = 0; j < strip.columns; j += Native<T>::lanes) {
      V s, y = V{};
      __builtin_memcpy(&s, strip.s + r * strip.ld + j, sizeof s);
      T* at = strip.g + r * strip.ld + j;
      if (!strip.first) __builtin_memcpy(&y, at, sizeof y);
      y += select(is_pair(s), gather(table, __builtin_convertvector(place_of(f, s), typename Native<T>::M)) * f.place_slope(s),
                  splat<V>(0));
      __builtin_memcpy(at, &y, sizeof y);
    }
}

DML_END
