// Slots by search: each anchor's interval ends are sorted once, and a negative is looked up among them, O(log P), instead of being
// compared with every positive. The negatives themselves are never sorted nor kept.
#pragma once
#include <cstdint>

#include "dml/vector.h"

DML_BEGIN

template <class T> struct Bits;  // a number's bits
template <> struct Bits<float> {
  using U = uint32_t;
  using I = int32_t;
};
template <> struct Bits<double> {
  using U = uint64_t;
  using I = int64_t;
};
typedef double Bin __attribute__((vector_size(16)));  // number and sum of the values in it: one addition

constexpr int kPivots = 32;  // looked up in registers where there are such: gathers are slow

// Cells of an anchor's breaks: a power of two above `ends`, one less than which are searched.
DML_FN int64_t cells_above(int64_t ends) {
  int64_t cells = kPivots;
  while (cells <= ends) cells *= 2;
  return cells;
}

// How many of an anchor's sorted breaks are <= m (Below: < m), lane by lane. A NaN lies beyond all of them.
template <class T> struct Search {
  using V = typename Native<T>::V;
  using M = typename Native<T>::M;
  using Index = typename Bits<T>::I;
  const T* breaks;
  Index step;  // breaks from one pivot to the next
  alignas(64) T pivots[kPivots];

  DML_FN Search(const T* sorted, int64_t cells) : breaks(sorted), step(Index(cells / kPivots)) {
    pivots[0] = 0;  // not looked up
    for (int k = 1; k < kPivots; ++k) pivots[k] = sorted[k * step - 1];
  }
  DML_FN V pivot(M index) const {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
      return (V)_mm512_permutex2var_ps(_mm512_load_ps(pivots), (__m512i)index, _mm512_load_ps(pivots + 16));
    else
#endif
      return gather(pivots, index);
  }
  template <bool Below> static DML_FN M passed(V b, V m, Index by) {
    if constexpr (Below) return (b < m) & by;
    else return ~(m < b) & by;
  }
  // The first of the `step` breaks between two pivots.
  template <bool Below> DML_FN M segment(V m) const {
    M at = {};
#pragma GCC unroll 5
    for (Index half = kPivots / 2; half; half >>= 1) at += passed<Below>(pivot(at + half), m, half);
    return at * step;
  }
  // A register of a segment's breaks at once takes less time than halving by gathers.
#if defined(__AVX2__)
  static constexpr bool kBySegments = sizeof(T) == 4;
#else
  static constexpr bool kBySegments = false;
#endif
  // Bits of a register of breaks that are not passed.
  template <bool Below> static DML_FN unsigned beyond(const T* from, T m) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
      return _mm512_cmp_ps_mask(_mm512_loadu_ps(from), _mm512_set1_ps(m), Below ? _CMP_GE_OQ : _CMP_GT_OQ);
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4)
      return unsigned(
          _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(from), _mm256_set1_ps(m), Below ? _CMP_GE_OQ : _CMP_GT_OQ)));
#endif
    return 0;
  }
  // How many of a segment's breaks are passed, all but the pivot at its end. Up to a register beyond it may be read.
  template <bool Below> DML_FN Index passed_in(const T* from, T m) const {
    constexpr Index lanes = Native<T>::lanes;
    for (Index k = 0; k + lanes < step; k += lanes)
      if (const unsigned bits = beyond<Below>(from + k, m)) return k + __builtin_ctz(bits);
    const Index last = (step - 1) / lanes * lanes;
    return last + __builtin_ctz(beyond<Below>(from + last, m) | 1u << (step - 1 - last));
  }
  // Numbers' segments become how many breaks are passed; count is a multiple of the lanes.
  template <bool Below = false> DML_FN void find_places(const T* value, Index* at, int64_t count) const {
    constexpr int lanes = Native<T>::lanes;
    if constexpr (kBySegments) {
      if (step <= lanes) {
        const unsigned end = 1u << (step - 1);
#pragma GCC unroll 4
        for (int64_t k = 0; k < count; ++k) at[k] += __builtin_ctz(beyond<Below>(breaks + at[k], value[k]) | end);
      } else {
        for (int64_t k = 0; k < count; ++k) at[k] += passed_in<Below>(breaks + at[k], value[k]);
      }
    } else {
      for (int64_t k = 0; k < count; k += lanes) {
        V m;
        M first;
        __builtin_memcpy(&m, value + k, sizeof m);
        __builtin_memcpy(&first, at + k, sizeof first);
        for (Index half = step / 2; half; half >>= 1) first += passed<Below>(gather(breaks + half - 1, first), m, half);
        __builtin_memcpy(at + k, &first, sizeof first);
      }
    }
  }
  template <bool Below = false> DML_FN void places(V m, Index* to) const {
    const M first = segment<Below>(m);
    T value[Native<T>::lanes];
    __builtin_memcpy(value, &m, sizeof m);
    __builtin_memcpy(to, &first, sizeof first);
    find_places<Below>(value, to, Native<T>::lanes);
  }
};

constexpr int kSearchedTogether = 16;  // registers: their numbers are read one by one, long after they were written

// Some numbers of a row on their way to their places.
template <class T> struct Searched {
  static constexpr int lanes = Native<T>::lanes;
  alignas(64) T value[kSearchedTogether * lanes];
  alignas(64) typename Bits<T>::I at[kSearchedTogether * lanes];
  int64_t column[kSearchedTogether];  // of each register
  int registers = 0;

  DML_FN void add(const Search<T>& search, typename Native<T>::V m, int64_t j) {
    const auto first = search.template segment<false>(m);
    __builtin_memcpy(value + registers * lanes, &m, sizeof m);
    __builtin_memcpy(at + registers * lanes, &first, sizeof first);
    column[registers++] = j;
  }
  DML_FN void find(const Search<T>& search) { search.find_places(value, at, registers * lanes); }
  DML_FN void add_to_bins(Bin* bins) {
    for (int64_t k = 0; k < registers * lanes; ++k) bins[at[k]] += Bin{1, double(value[k])};
  }
};

// Ascending; `spare` has room for n. By insertion when there are few, else by the bytes of the numbers, lowest first.
template <class T> static void sort_numbers(T* at, int64_t n, T* spare) {
  if (n <= 40) {
    for (int64_t k = 1; k < n; ++k) {
      const T x = at[k];
      int64_t j = k;
      for (; j > 0 && at[j - 1] > x; --j) at[j] = at[j - 1];
      at[j] = x;
    }
    return;
  }
  using U = typename Bits<T>::U;
  constexpr int bits = 8 * sizeof(T);
  const U sign = U(1) << (bits - 1);
  for (int64_t k = 0; k < n; ++k) {  // the order of the bits becomes the order of the numbers
    U u;
    __builtin_memcpy(&u, at + k, sizeof u);
    u ^= u & sign ? ~U(0) : sign;
    __builtin_memcpy(at + k, &u, sizeof u);
  }
  T *from = at, *to = spare;
  for (int shift = 0; shift < bits; shift += 8) {
    int64_t first[256] = {};
    for (int64_t k = 0; k < n; ++k) {
      U u;
      __builtin_memcpy(&u, from + k, sizeof u);
      ++first[u >> shift & 255];
    }
    int64_t sum = 0;
    for (int64_t& f : first) {
      const int64_t count = f;
      f = sum, sum += count;
    }
    for (int64_t k = 0; k < n; ++k) {
      U u;
      __builtin_memcpy(&u, from + k, sizeof u);
      __builtin_memcpy(to + first[u >> shift & 255]++, &u, sizeof u);
    }
    T* other = from;
    from = to, to = other;
  }
  for (int64_t k = 0; k < n; ++k) {  // an even number of passes: the result is where it was
    U u;
    __builtin_memcpy(&u, at + k, sizeof u);
    u ^= u & sign ? sign : ~U(0);
    __builtin_memcpy(at + k, &u, sizeof u);
  }
}

DML_END
