// Counts a query's similarities by the interval between its positives they lie in, where positives are many: by a table of cells,
// else by a tree.
#pragma once
#include <cstdint>
#include <cstring>

#include "cpu/neighbours.h"
#include "dml/vector.h"

DML_BEGIN

// How many of a register of thresholds, in descending order, are above s.
DML_FN int64_t above(const float* t, float s) {
#if defined(__AVX512F__)
  return __builtin_ctz(~unsigned(_mm512_cmp_ps_mask(_mm512_loadu_ps(t), _mm512_set1_ps(s), _CMP_GT_OQ)));
#elif defined(__AVX__)
  return __builtin_ctz(~unsigned(_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(t), _mm256_set1_ps(s), _CMP_GT_OQ))));
#elif defined(__SSE2__)
  return __builtin_ctz(~unsigned(_mm_movemask_ps(_mm_cmpgt_ps(_mm_loadu_ps(t), _mm_set1_ps(s)))));
#else
  int64_t n = 0;
  while (n < Native<float>::lanes && t[n] > s) ++n;
  return n;
#endif
}
DML_FN int64_t above(const double* t, double s) {
  int64_t n = 0;
  for (int q = 0; q < Native<double>::lanes; ++q) n += t[q] > s;
  return n;
}

// Adds each listed similarity to its interval: intervals[k] counts t[k] <= s < t[k - 1]. None may lie below all leaves.
template <class T, int Levels>
static void descend(const T* list, int64_t n, const T* const* level, typename CountOf<T>::type* intervals) {
  constexpr int lanes = Native<T>::lanes;
  for (int64_t q = 0; q < n; ++q) {
    int64_t place = 0;
#pragma GCC unroll 4
    for (int l = Levels - 1; l >= 0; --l) place = place * lanes + above(level[l] + place * lanes, list[q]);
    intervals[place] += 1;
  }
}
template <class T>
static void sort_in(const T* list, int64_t n, const T* tree, int64_t leaves, typename CountOf<T>::type* intervals) {
  constexpr int64_t lanes = Native<T>::lanes;
  const T* level[32];
  int levels = 0;
  for (int64_t size = leaves;; size /= lanes) {
    size = (size + lanes - 1) / lanes * lanes;
    level[levels++] = tree;
    tree += size;
    if (size == lanes) break;
  }
  if (levels == 1) return descend<T, 1>(list, n, level, intervals);
  if (levels == 2) return descend<T, 2>(list, n, level, intervals);
  if (levels == 3) return descend<T, 3>(list, n, level, intervals);
  for (int64_t q = 0; q < n; ++q) {
    int64_t place = 0;
    for (int l = levels - 1; l >= 0; --l) place = place * lanes + above(level[l] + place * lanes, list[q]);
    intervals[place] += 1;
  }
}

// Equal cells between a query's lowest and highest positive. A positive in a higher cell than a similarity's is above it, one in
// a lower cell below it, so only those in its own cell are compared with it: a register of them, as a rule. Rounding does not
// matter, since it keeps the order of what is rounded.
constexpr int64_t kCells = 1024;
constexpr int64_t kMostInCell = 64;  // more positives than that are looked up in the tree

template <class T> struct Cells {
  using V = typename Native<T>::V;
  static constexpr int lanes = Native<T>::lanes;
  uint16_t* higher;  // [kCells]: positives in higher cells
  T lowest, scale;
  bool is_used;

  DML_FN int32_t cell(T s) const { return int32_t(min((s - lowest) * scale, T(kCells - 1))); }

  // Positives t[0..length) in descending order.
  void fill(const T* t, int64_t length) {
    lowest = t[length - 1], scale = T(kCells) / (t[0] - lowest);
    is_used = sizeof(T) == 4 && length <= 0xffff && scale <= T(1e30);  // neither equal nor almost so, nor infinite
    if (!is_used) return;
    memset(higher, 0, kCells * sizeof *higher);
    for (int64_t k = 0; k < length; ++k)
      if (const int32_t c = cell(t[k])) higher[c - 1] = uint16_t(k + 1);
    uint16_t above = 0, most = 0;
    for (int64_t c = kCells - 1; c >= 0; --c) {
      const uint16_t with_cell = higher[c] > above ? higher[c] : above;
      most = with_cell - above > most ? uint16_t(with_cell - above) : most;
      above = higher[c] = with_cell;
    }
    is_used = most <= kMostInCell && length - above <= kMostInCell;
  }

  // As sort_in. The list may be read up to a register beyond its end, and so may the positives.
  void sort_in(const T* list, int64_t n, const T* t, typename CountOf<T>::type* intervals) const {
    if constexpr (sizeof(T) == 4) {
      const V top = splat<V>(T(kCells - 1));
      for (int64_t q = 0; q < n; q += lanes) {
        V s;
        memcpy(&s, list + q, sizeof s);
        const auto cells = __builtin_convertvector(min((s - lowest) * scale, top), typename Native<T>::M);
        int32_t cell[lanes];
        memcpy(cell, &cells, sizeof cells);
        const int64_t some = n - q < lanes ? n - q : lanes;
        for (int64_t k = 0; k < some; ++k) {
          int64_t place = higher[cell[k]], in_cell;
          while ((in_cell = above(t + place, list[q + k])) == lanes) place += lanes;
          intervals[place + in_cell] += 1;
        }
      }
    }
  }
};

// Appends the similarities that are not below the lowest positive; returns how many the list has then.
template <class T> static int64_t append(T* list, int64_t n, const T* row, int64_t count, T lowest) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    for (int64_t j = 0; j < count; j += 16) {
      const __m512 s = _mm512_loadu_ps(row + j);
      const __mmask16 mask = _mm512_cmp_ps_mask(s, _mm512_set1_ps(lowest), _CMP_GE_OQ);
      _mm512_storeu_ps(list + n, _mm512_maskz_compress_ps(mask, s));
      n += __builtin_popcount(mask);
    }
    return n;
  }
#endif
  for (int64_t j = 0; j < count; ++j) {
    list[n] = row[j];
    n += row[j] >= lowest;
  }
  return n;
}

DML_END
