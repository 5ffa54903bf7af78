// Sums of sigmoids over many points at once, in place of comparing each with each. The line is cut into cells. The points of a
// cell become sums of powers of their places in it (moments), and a sigmoid between two cells is a polynomial of both places,
// whose coefficients (Transfer) depend on nothing but the distance of the cells. So the sums over all points are a polynomial
// in each cell, and a point costs one look at it. Polynomials are cut where they are below the rounding of T.
#pragma once
#include <cfloat>
#include <cmath>
#include <cstring>

#include "cpu/search.h"

DML_BEGIN

constexpr int kCellTerms = 16;  // numbers of a cell: a register of AVX-512

// Cells in widths of the sigmoid. Wider ones would be fewer and need more terms; a sum varies by e^kCellWidth within one, which
// is what rounding can grow by. Cells farther apart than kCellReach are over to less than the rounding of a rank (e^-32, e^-60).
template <class T> constexpr int kCellWidth = sizeof(T) == 4 ? 2 : 1;
template <class T> constexpr int kTerms = sizeof(T) == 4 ? 12 : 16;  // that are not zero
template <class T> constexpr int kCellReach = sizeof(T) == 4 ? 17 : 61;
constexpr int kMostCells = 1024;  // of a line: a row's moments should stay in the second-level cache

// Cells of the line from -1 to 1, and one behind the last for what is no pair; 0 where they would be too many.
template <class T> static int cells_of_line(T width) {
  const double half = 1 / (double(width) * kCellWidth<T>);
  return half < kMostCells / 2 - 4 ? 2 * (int(half) + 2) + 2 : 0;
}

// Coefficients of the step (or its derivative) at kCellWidth * distance + half a cell * (t - y), of t^a y^b. From two cells above
// on, the step is that less 1: what is left keeps its digits, and the whole ones are counted.
template <class T> struct Transfer {
  static constexpr int reach = kCellReach<T>, terms = kTerms<T>;
  alignas(64) T at[2 * reach + 1][terms][kCellTerms];

  static long double kernel(long double x, bool is_slope, bool above) {
    const long double u = expl(x < 0 ? x : -x);
    if (is_slope) return u / ((1 + u) * (1 + u));
    if (above) return -(x < 0 ? 1 : u) / (1 + u);
    return (x > 0 ? 1 : u) / (1 + u);
  }
  explicit Transfer(bool is_slope) {
    long double cosines[terms][terms], chebyshev[terms][terms] = {};  // of node i: cos(m theta); coefficients of t^a in T_m
    for (int m = 0; m < terms; ++m)
      for (int i = 0; i < terms; ++i) cosines[m][i] = cosl(m * (i + 0.5L) * 3.14159265358979323846L / terms);
    chebyshev[0][0] = chebyshev[1][1] = 1;
    for (int m = 2; m < terms; ++m)
      for (int a = 0; a < terms; ++a) chebyshev[m][a] = (a ? 2 * chebyshev[m - 1][a - 1] : 0) - chebyshev[m - 2][a];
    memset(at, 0, sizeof at);
    for (int distance = -reach; distance <= reach; ++distance) {
      long double values[terms][terms], half[terms][terms], most = 0;
      for (int i = 0; i < terms; ++i)
        for (int l = 0; l < terms; ++l)
          values[i][l] = kernel(kCellWidth<T> * (distance + (cosines[1][i] - cosines[1][l]) / 2), is_slope, distance >= 2);
      transform(cosines, values, half);  // rows become columns each time
      transform(cosines, half, values);
      for (auto& row : values)
        for (long double x : row) most = fabsl(x) > most ? fabsl(x) : most;
      for (auto& row : values)
        for (long double& x : row) x = fabsl(x) < 8 * LDBL_EPSILON * most ? 0 : x;  // rounding, which powers would multiply
      combine(chebyshev, values, half);
      combine(chebyshev, half, values);
      for (int a = 0; a < terms; ++a)
        for (int b = 0; b < terms; ++b) at[distance + reach][a][b] = T(values[a][b]);
    }
  }
  static void transform(const long double (&cosines)[terms][terms], const long double (&from)[terms][terms],
                        long double (&to)[terms][terms]) {
    for (int m = 0; m < terms; ++m)
      for (int l = 0; l < terms; ++l) {
        long double sum = 0;
        for (int i = 0; i < terms; ++i) sum += cosines[m][i] * from[i][l];
        to[l][m] = sum * (m ? 2 : 1) / terms;
      }
  }
  static void combine(const long double (&chebyshev)[terms][terms], const long double (&from)[terms][terms],
                      long double (&to)[terms][terms]) {
    for (int a = 0; a < terms; ++a)
      for (int l = 0; l < terms; ++l) {
        long double sum = 0;
        for (int m = 0; m < terms; ++m) sum += chebyshev[m][a] * from[m][l];
        to[l][a] = sum;
      }
  }
  static const Transfer& steps() {
    static const Transfer table(false);
    return table;
  }
  static const Transfer& slopes() {
    static const Transfer table(true);
    return table;
  }
};

// The line of one functor: where a similarity lies.
template <class T> struct Line {
  using V = typename Native<T>::V;
  using M = typename Native<T>::M;
  static constexpr int lanes = Native<T>::lanes;
  T scale;  // cells per unit
  int middle;  // the cell of 0
  int cells;  // and the place of what is no pair, the last

  Line(T width, int all) : scale(T(1 / (double(width) * kCellWidth<T>))), middle(all / 2 - 1), cells(all - 1) {}
  int64_t numbers() const { return int64_t(cells + 1) * kCellTerms; }

  // The cells of a register of similarities, and the places within from -1 to 1. No pair is at 0 of the last one, and NaN is NaN.
  void place(V s, V& t, M& cell) const {
    const V magic = splat<V>(sizeof(T) == 4 ? T(12582912.0) : T(6755399441055744.0)), last = splat<V>(T(middle) + T(0.5));
    const V x = s * scale;
    const M inside = (x < last) & (x > -last);
    const V whole = (x + magic) - magic;
    t = select(inside, T(2) * (s * scale - whole), x * T(0));
    cell = __builtin_convertvector(select(inside, whole + splat<V>(T(middle)), splat<V>(T(cells))), M);
  }
};

// A register of places as powers, from weight to weight * t^15, each a row of four times a column of four.
template <class T> struct Powers {
  using V = typename Native<T>::V;
  using M = typename Native<T>::M;
  typedef T Quad __attribute__((vector_size(4 * sizeof(T)), aligned(4 * sizeof(T)), may_alias));
  static constexpr int lanes = Native<T>::lanes;
  static constexpr bool is_wide = sizeof(V) == 16 * sizeof(T);  // a cell is one register
  alignas(64) T low[lanes][4];  // weight * (1, t, t^2, t^3); entry e is of lane_of(e)
  alignas(64) T high[lanes][4];  // 1, t^4, t^8, t^12
  alignas(64) typename Bits<T>::I cell[lanes];

  static int lane_of(int entry) { return is_wide ? (entry & 3) * 4 + (entry >> 2) : entry; }
#if defined(__AVX512F__)
  static void transposed(VecF a, VecF b, VecF c, VecF d, float* to) {
    const __m512 ab = _mm512_unpacklo_ps((__m512)a, (__m512)b), cd = _mm512_unpacklo_ps((__m512)c, (__m512)d);
    const __m512 ef = _mm512_unpackhi_ps((__m512)a, (__m512)b), gh = _mm512_unpackhi_ps((__m512)c, (__m512)d);
    _mm512_store_ps(to, _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
    _mm512_store_ps(to + 16, _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
    _mm512_store_ps(to + 32, _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ef), _mm512_castps_pd(gh))));
    _mm512_store_ps(to + 48, _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ef), _mm512_castps_pd(gh))));
  }
  __m512 product(int e) const {
    const __m512i each = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    const __m512 column = _mm512_permutexvar_ps(each, _mm512_castps128_ps512(_mm_load_ps(high[e])));
    return _mm512_mul_ps(_mm512_broadcast_f32x4(_mm_load_ps(low[e])), column);
  }
  static __m512 halves(__m512 a, __m512 b) {  // sums of neighbours, of a and b in turn
    return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
#endif
  Powers(V t, V weight, M cells) {
    memcpy(cell, &cells, sizeof cells);
    const V t2 = t * t, t4 = t2 * t2, t8 = t4 * t4;
#if defined(__AVX512F__)
    if constexpr (is_wide) {
      transposed(weight, weight * t, weight * t2, weight * (t2 * t), low[0]);
      transposed(splat<V>(1), t4, t8, t8 * t4, high[0]);
      return;
    }
#endif
    for (int e = 0; e < lanes; ++e) {
      low[e][0] = weight[e], low[e][1] = weight[e] * t[e], low[e][2] = weight[e] * t2[e],
      low[e][3] = weight[e] * (t2[e] * t[e]);
      high[e][0] = 1, high[e][1] = t4[e], high[e][2] = t8[e], high[e][3] = t8[e] * t4[e];
    }
  }
  void add_to(T* moments) const {
#pragma GCC unroll 16
    for (int e = 0; e < lanes; ++e) {
      T* at = moments + int64_t(cell[lane_of(e)]) * kCellTerms;
#if defined(__AVX512F__)
      if constexpr (is_wide) {
        _mm512_store_ps(at, _mm512_add_ps(_mm512_load_ps(at), product(e)));
        continue;
      }
#endif
      for (int a = 0; a < 4; ++a) reinterpret_cast<Quad*>(at)[a] += *reinterpret_cast<const Quad*>(low[e]) * high[e][a];
    }
  }
  // The polynomials of the cells, lane by lane.
  V of(const T* series) const {
#if defined(__AVX512F__)
    if constexpr (is_wide) {
      __m512 quarter[4];
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) {  // lanes 4 q to 4 q + 3 are the entries q, q + 4, q + 8, q + 12
        __m512 term[4];
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k)
          term[k] = _mm512_mul_ps(_mm512_load_ps(series + int64_t(cell[4 * q + k]) * kCellTerms), product(4 * k + q));
        const __m512 a = halves(term[0], term[1]), b = halves(term[2], term[3]);
        quarter[q] = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
      }
      const __m512 a =
          _mm512_add_ps(_mm512_shuffle_f32x4(quarter[0], quarter[1], 0x44), _mm512_shuffle_f32x4(quarter[0], quarter[1], 0xee));
      const __m512 b =
          _mm512_add_ps(_mm512_shuffle_f32x4(quarter[2], quarter[3], 0x44), _mm512_shuffle_f32x4(quarter[2], quarter[3], 0xee));
      return (V)_mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }
#endif
    V y;
    for (int e = 0; e < lanes; ++e) {
      const Quad* at = reinterpret_cast<const Quad*>(series + int64_t(cell[e]) * kCellTerms);
      Quad sum = at[0] * high[e][0];
      for (int a = 1; a < 4; ++a) sum += at[a] * high[e][a];
      sum *= *reinterpret_cast<const Quad*>(low[e]);
      y[e] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
    return y;
  }
};

// The sums over the cells first to last as the polynomial of one cell, and of the same sums' derivative by -t where asked for.
template <class T> static void transfer(const Transfer<T>& table, const T* moments, int first, int last, int cell, T* to) {
  using V = typename Native<T>::V;
  constexpr int lanes = Native<T>::lanes, registers = kCellTerms / lanes;
  V sums[registers] = {}, others[registers] = {};
  const int from = cell - Transfer<T>::reach > first ? cell - Transfer<T>::reach : first;
  const int until = cell + Transfer<T>::reach < last ? cell + Transfer<T>::reach : last;
  for (int c = from; c <= until; ++c) {
    const T* m = moments + int64_t(c) * kCellTerms;
    if (m[0] == 0) continue;
    const T(&rows)[Transfer<T>::terms][kCellTerms] = table.at[c - cell + Transfer<T>::reach];
#pragma GCC unroll 8
    for (int a = 0; a < Transfer<T>::terms; a += 2)
#pragma GCC unroll 8
      for (int q = 0; q < registers; ++q) {
        V x, y;
        memcpy(&x, rows[a] + q * lanes, sizeof x);
        memcpy(&y, rows[a + 1] + q * lanes, sizeof y);
        sums[q] += m[a] * x;
        others[q] += m[a + 1] * y;
      }
  }
  for (int q = 0; q < registers; ++q) {
    sums[q] += others[q];
    memcpy(to + q * lanes, &sums[q], sizeof(V));
  }
}

DML_END
