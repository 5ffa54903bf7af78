// The second product where most slopes are zero: hinges far apart, triplets that are satisfied, mined pairs. The non-zero slopes of
// a tile are listed by row and by column, and only their vectors are added up. Every sum has the terms and the order of the level's
// own product (gemm.h) without its zeros, so both give the same bits.
#pragma once
#include "cpu/tiles.h"

DML_BEGIN

constexpr int64_t kLeastCells = 16384;  // of a tile: smaller ones take no time, and stay with the product

// A bit for each lane that is not zero; NaN is not.
DML_FN unsigned nonzero_lanes(VecF x) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)x, _mm512_setzero_ps(), _CMP_NEQ_UQ);
#elif defined(__AVX__)
  return unsigned(_mm256_movemask_ps((__m256)(x != VecF{})));
#elif defined(__SSE2__)
  return unsigned(_mm_movemask_ps((__m128)(x != VecF{})));
#else
  unsigned bits = 0;
  for (int q = 0; q < Native<float>::lanes; ++q) bits |= unsigned(x[q] != 0) << q;
  return bits;
#endif
}
DML_FN unsigned nonzero_lanes(VecD x) {
  unsigned bits = 0;
  for (int q = 0; q < Native<double>::lanes; ++q) bits |= unsigned(x[q] != 0) << q;
  return bits;
}

template <class T> static int64_t count_nonzero(const T* at, int64_t ld, int64_t rows, int64_t columns) {
  using V = typename Native<T>::V;
  int64_t count = 0;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < columns; j += Native<T>::lanes) {
      V x;
      __builtin_memcpy(&x, at + r * ld + j, sizeof x);
      count += __builtin_popcount(nonzero_lanes(x));
    }
  return count;
}

// Writes the lanes of `bits` one after the other, and what is behind them too: up to a register more.
template <class T, class V> DML_FN void append_lanes(V x, unsigned bits, int64_t column, int32_t* index, T* slope) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i columns = _mm512_add_epi32(lanes, _mm512_set1_epi32(int(column)));
    _mm512_storeu_si512(index, _mm512_maskz_compress_epi32(__mmask16(bits), columns));  // into memory it is slow on some
    _mm512_storeu_ps(slope, _mm512_maskz_compress_ps(__mmask16(bits), (__m512)x));
    return;
  }
#endif
  for (int k = 0; bits; bits &= bits - 1, ++k) {
    const int lane = __builtin_ctz(bits);
    index[k] = int32_t(column + lane), slope[k] = x[lane];
  }
}

// SkipsEmpty: registers without entries are left by a branch, which is foreseen only where most of them are empty.
template <bool SkipsEmpty, class T>
static void list_rows(const T* slopes, int64_t ld, int64_t rows, int64_t columns, const Listed<T>& to) {
  using V = typename Native<T>::V;
  constexpr int64_t lanes = Native<T>::lanes;
  int32_t count = 0;
  for (int64_t r = 0; r < rows; ++r) {
    to.first[r] = count;
    for (int64_t j = 0; j < columns; j += lanes) {
      V x;
      __builtin_memcpy(&x, slopes + r * ld + j, sizeof x);
      unsigned bits = nonzero_lanes(x);
      if (SkipsEmpty && bits == 0) continue;
      if (columns - j < lanes) bits &= (1u << (columns - j)) - 1;  // padding
      append_lanes(x, bits, j, to.index + count, to.slope + count);
      count += __builtin_popcount(bits);
    }
  }
  to.first[rows] = count;
}

// The same entries by column, each column's in the order of rows.
template <class T> static void list_columns(const Listed<T>& from, int64_t rows, int64_t columns, const Listed<T>& to) {
  for (int64_t j = 0; j <= columns; ++j) to.first[j] = 0;
  for (int32_t k = 0; k < from.first[rows]; ++k) ++to.first[from.index[k] + 1];
  for (int64_t j = 0; j < columns; ++j) to.first[j + 1] += to.first[j];
  for (int64_t r = 0; r < rows; ++r)
    for (int32_t k = from.first[r]; k < from.first[r + 1]; ++k) {
      const int32_t place = to.first[from.index[k]]++;  // ends as the first of the next column
      to.index[place] = int32_t(r), to.slope[place] = from.slope[k];
    }
  for (int64_t j = columns; j > 0; --j) to.first[j] = to.first[j - 1];
  to.first[0] = 0;
}

// Adds slope * vector over entries [k, last) to `Registers` registers of `to`.
template <class T, int Registers>
DML_FN void add_entries(const Listed<T>& list, int32_t k, int32_t last, const T* vectors, int64_t width, T* to) {
  using V = typename Native<T>::V;
  constexpr int lanes = Native<T>::lanes;
  V sum[Registers];
#pragma GCC unroll 8
  for (int q = 0; q < Registers; ++q) sum[q] = V{};
  for (; k < last; ++k) {
    const V slope = splat<V>(list.slope[k]);
    const T* from = vectors + int64_t(list.index[k]) * width;
#pragma GCC unroll 8
    for (int q = 0; q < Registers; ++q) {
      V x;
      __builtin_memcpy(&x, from + q * lanes, sizeof x);
      sum[q] += slope * x;
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < Registers; ++q) {
    V x;
    __builtin_memcpy(&x, to + q * lanes, sizeof x);
    x += sum[q];
    __builtin_memcpy(to + q * lanes, &x, sizeof x);
  }
}

// to [lines, width] += the lists times vectors [.., width], in panels as deep as those of the level's own product.
template <class T> static void add_listed(const Listed<T>& list, int64_t lines, const T* vectors, int64_t width, T* to) {
  constexpr int lanes = Native<T>::lanes;
  for (int64_t line = 0; line < lines; ++line)
    for (int32_t k = list.first[line], all = list.first[line + 1]; k < all;) {
      const int64_t end = (list.index[k] / kPanelDepth + 1) * kPanelDepth;
      int32_t last = k;
      while (last < all && list.index[last] < end) ++last;
      T* sum = to + line * width;
      int64_t c = 0;
      for (; c + 8 * lanes <= width; c += 8 * lanes) add_entries<T, 8>(list, k, last, vectors + c, width, sum + c);
      for (; c + lanes <= width; c += lanes) add_entries<T, 1>(list, k, last, vectors + c, width, sum + c);
      for (; c < width; ++c) {
        T total = 0;
        for (int32_t e = k; e < last; ++e) total += list.slope[e] * vectors[list.index[e] * width + c];
        sum[c] += total;
      }
      k = last;
    }
}

static bool has_few(int64_t nonzero, int64_t cells) { return cells >= kLeastCells && nonzero * kNonzeroShare <= cells; }

// The second product of a tile of which `nonzero` slopes are not zero, added to the gradients of its vectors; `to_references` may be
// missing.
template <class T>
static void add_nonzero(const Problem<T>& p, const Tile& t, const Scratch<T>& s, int64_t nonzero, T* to_anchors,
                        T* to_references) {
  const int64_t rows = t.i1 - t.i0, columns = t.j1 - t.j0, ld = rounded(columns);
  if (nonzero == 0) return;
  if (nonzero * 64 < rows * columns) list_rows<true>(s.slopes, ld, rows, columns, s.by_row);
  else list_rows<false>(s.slopes, ld, rows, columns, s.by_row);
  add_listed(s.by_row, rows, references_of(p, t, s), p.D, to_anchors);
  if (!to_references) return;
  list_columns(s.by_row, rows, columns, s.by_column);
  add_listed(s.by_column, columns, anchors_of(p, t, s), p.D, to_references);
}

DML_END
