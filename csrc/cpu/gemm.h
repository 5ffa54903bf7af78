// Row-major matrix products: a vendor BLAS where one was found, else the level's own kernel (packed panels, a register tile of
// kRows x 2 vectors). Only what the tiles need: beta is 0 or 1, alpha is 1.
#pragma once
#include "cpu/problem.h"
#include "dml/vector.h"

DML_BEGIN

enum class Form { nt, nn, tn };   // C = A B^T, C = A B, C = A^T B

constexpr int64_t kPanelDepth = 512, kPanelColumns = 256;  // twice as many columns where they are half as deep
#if defined(__AVX512F__)
constexpr int kRows = 12;
#elif defined(__AVX__)
constexpr int kRows = 6;
#else
constexpr int kRows = 4;
#endif
template <class T> struct Lane;  // whole numbers as wide as T
template <> struct Lane<float> { using type = int32_t; };
template <> struct Lane<double> { using type = int64_t; };
template <class T> constexpr int64_t kPanelWidth = 2 * Native<T>::lanes;
template <class T> constexpr int64_t own_gemm_bytes() {
  return int64_t(sizeof(T)) * (kPanelDepth * (kPanelColumns + 2 * kPanelWidth<T> + kRows) + Native<T>::lanes) + 128;
}

// Which lanes of two registers, one after the other, become a register where two halves of length `Half` are exchanged. Tables that
// the compiler knows: it does not find them out of loops over lanes, and would fill an index lane by lane.
template <class Index, int Lanes, int Half> struct Exchanged {
  Index low[Lanes] = {}, high[Lanes] = {};
  constexpr Exchanged() {
    for (int q = 0; q < Lanes; ++q) low[q] = q & Half ? Lanes + q - Half : q, high[q] = q & Half ? Lanes + q : q + Half;
  }
};
template <int Half, class V> static inline __attribute__((always_inline)) void exchange(V* rows) {
  constexpr int lanes = Native<typename Scalar<V>::type>::lanes;
#if defined(__GNUC__) && !defined(__clang__)
  using Index = decltype(V{} < V{});
  alignas(64) static constexpr Exchanged<typename Lane<typename Scalar<V>::type>::type, lanes, Half> order;
  Index low, high;
  __builtin_memcpy(&low, order.low, sizeof low);
  __builtin_memcpy(&high, order.high, sizeof high);
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) {
    if (i & Half) continue;
    const V a = rows[i], b = rows[i + Half];
    rows[i] = __builtin_shuffle(a, b, low);
    rows[i + Half] = __builtin_shuffle(a, b, high);
  }
  if constexpr (Half > 1) exchange<Half / 2>(rows);
#else
  for (int i = 0; i < lanes; ++i)
    for (int j = 0; j < i; ++j) {
      const auto swapped = rows[i][j];
      rows[i][j] = rows[j][i], rows[j][i] = swapped;
    }
#endif
}
// `lanes` registers, seen as a square matrix, transposed in place: halves are exchanged, then quarters, and so on.
template <class V> static inline __attribute__((always_inline)) void transpose(V* rows) {
  exchange<Native<typename Scalar<V>::type>::lanes / 2>(rows);
}

// Below the diagonal of a square matrix, in rows [from, to), what is above it. Whole registers are written: there must be rows up
// to a multiple of 16, as there are columns.
template <class T> static void mirror(T* matrix, int64_t ld, int64_t from, int64_t to) {
  using V = typename Native<T>::V;
  constexpr int64_t lanes = Native<T>::lanes;
  for (int64_t i = from; i < to; i += lanes) {
    for (int64_t j = 0; j < i; j += lanes) {
      V rows[lanes];
#pragma GCC unroll 16
      for (int64_t q = 0; q < lanes; ++q) __builtin_memcpy(&rows[q], matrix + (j + q) * ld + i, sizeof(V));
      transpose(rows);
#pragma GCC unroll 16
      for (int64_t q = 0; q < lanes; ++q) __builtin_memcpy(matrix + (i + q) * ld + j, &rows[q], sizeof(V));
    }
    for (int64_t r = 1; r < lanes; ++r)
      for (int64_t q = 0; q < r; ++q) matrix[(i + r) * ld + i + q] = matrix[(i + q) * ld + i + r];
  }
}

// `count` rows of `depth` numbers become columns: to[p * stride + r] = from[r * ld + p], zeros for r from count to `wide`, which
// is at most a register. Whole registers are written, in order of p: up to a register behind the last column may be overwritten.
template <class T> static void pack_transposed(const T* from, int64_t ld, int64_t count, int64_t depth, T* to, int64_t stride,
                                               int64_t wide) {
  using V = typename Native<T>::V;
  constexpr int64_t lanes = Native<T>::lanes;
  int64_t p = 0;
  for (; p + lanes <= depth; p += lanes) {
    V rows[lanes];
#pragma GCC unroll 16
    for (int64_t r = 0; r < lanes; ++r) {
      rows[r] = V{};
      if (r < count) __builtin_memcpy(&rows[r], from + r * ld + p, sizeof(V));
    }
    transpose(rows);
#pragma GCC unroll 16
    for (int64_t q = 0; q < lanes; ++q) __builtin_memcpy(to + (p + q) * stride, &rows[q], sizeof(V));
  }
  for (; p < depth; ++p)
    for (int64_t r = 0; r < wide; ++r) to[p * stride + r] = r < count ? from[r * ld + p] : T(0);
}

// Rows of `count` neighbours: to[p * stride + r] = from[p * ld + r], zeros up to `wide`.
template <class T> static void pack_rows(const T* from, int64_t ld, int64_t count, int64_t depth, T* to, int64_t stride,
                                         int64_t wide) {
  for (int64_t p = 0; p < depth; ++p) {
    if (count == wide) {
      for (int64_t r = 0; r < wide; ++r) to[p * stride + r] = from[p * ld + r];
    } else {
      for (int64_t r = 0; r < wide; ++r) to[p * stride + r] = r < count ? from[p * ld + r] : T(0);
    }
  }
}

// Sums over `depth` of kRows rows times a panel [depth][2 registers]. The rows are packed, [depth][kRows], or lie where they are.
template <class T, class V> static inline __attribute__((always_inline)) void multiply_packed(const T* rows, const T* panel,
                                                                                              int64_t depth, V* left,
                                                                                              V* right) {
  constexpr int64_t lanes = Native<T>::lanes;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) left[r] = right[r] = V{};
  for (int64_t p = 0; p < depth; ++p) {
    V x, y;
    __builtin_memcpy(&x, panel + 2 * p * lanes, sizeof x);
    __builtin_memcpy(&y, panel + (2 * p + 1) * lanes, sizeof y);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const V s = splat<V>(rows[p * kRows + r]);
      left[r] += s * x;
      right[r] += s * y;
    }
  }
}
template <class T, class V> static inline __attribute__((always_inline)) void multiply_rows(const T* rows, int64_t ld,
                                                                                            const T* panel, int64_t depth,
                                                                                            V* left, V* right) {
  constexpr int64_t lanes = Native<T>::lanes;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) left[r] = right[r] = V{};
  const T *a = rows, *b = a + 3 * ld, *c = b + 3 * ld, *d = c + 3 * ld;  // an address is a pointer and one or two times ld
  for (int64_t p = 0; p < depth; ++p) {
    V x, y;
    __builtin_memcpy(&x, panel + 2 * p * lanes, sizeof x);
    __builtin_memcpy(&y, panel + (2 * p + 1) * lanes, sizeof y);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const T* three = r < 3 ? a : r < 6 ? b : r < 9 ? c : d;
      const V s = splat<V>(three[r % 3 * ld]);
      left[r] += s * x;
      right[r] += s * y;
    }
    ++a, ++b, ++c, ++d;
  }
}

template <class T> static void own_gemm(Form form, int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b,
                                        int64_t ldb, bool add, T* c, int64_t ldc, unsigned char* scratch) {
  using V = typename Native<T>::V;
  constexpr int64_t lanes = Native<T>::lanes, width = kPanelWidth<T>;
  T* packed_b = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(scratch) + 63) & ~uintptr_t(63));
  T* packed_a = packed_b + kPanelDepth * (kPanelColumns + width);
  for (int64_t p0 = 0; p0 < k; p0 += kPanelDepth) {
    const int64_t depth = k - p0 < kPanelDepth ? k - p0 : kPanelDepth;
    const bool onto = add || p0 > 0;
    const int64_t most_columns = 2 * depth <= kPanelDepth ? 2 * kPanelColumns : kPanelColumns;
    for (int64_t j0 = 0; j0 < n; j0 += most_columns) {
      const int64_t columns = n - j0 < most_columns ? n - j0 : most_columns;
      for (int64_t j = 0; j < columns; j += width) {                   // panels [depth][width], zeros beyond the edge
        const int64_t left = columns - j < width ? columns - j : width;
        if (form == Form::nt) {
          pack_transposed(b + (j0 + j) * ldb + p0, ldb, left < lanes ? left : lanes, depth, packed_b + j * depth, width, lanes);
          pack_transposed(b + (j0 + j + lanes) * ldb + p0, ldb, left < lanes ? 0 : left - lanes, depth,
                          packed_b + j * depth + lanes, width, lanes);
        } else {
          pack_rows(b + p0 * ldb + j0 + j, ldb, left, depth, packed_b + j * depth, width, width);
        }
      }
      for (int64_t i0 = 0; i0 < m; i0 += kRows) {
        const int64_t rows = m - i0 < kRows ? m - i0 : kRows;
        const bool is_direct = form != Form::tn && rows == kRows;
        if (is_direct) {
        } else if (form == Form::tn) pack_rows<T>(a + p0 * lda + i0, lda, rows, depth, packed_a, kRows, kRows);
        else if constexpr (kRows <= lanes) pack_transposed<T>(a + i0 * lda + p0, lda, rows, depth, packed_a, kRows, kRows);
        else                                                           // float64: a panel is wider than a register
          for (int64_t p = 0; p < depth; ++p)
            for (int r = 0; r < kRows; ++r) packed_a[p * kRows + r] = r < rows ? a[(i0 + r) * lda + p0 + p] : T(0);
        for (int64_t j = 0; j < columns; j += width) {
          V left[kRows], right[kRows];
          if (is_direct) multiply_rows(a + i0 * lda + p0, lda, packed_b + j * depth, depth, left, right);
          else multiply_packed(packed_a, packed_b + j * depth, depth, left, right);
          T* to = c + i0 * ldc + j0 + j;
          if (rows == kRows && columns - j >= width) {
#pragma GCC unroll 16
            for (int r = 0; r < kRows; ++r) {
              V x = V{}, y = V{};
              if (onto) __builtin_memcpy(&x, to + r * ldc, sizeof x), __builtin_memcpy(&y, to + r * ldc + lanes, sizeof y);
              x += left[r], y += right[r];
              __builtin_memcpy(to + r * ldc, &x, sizeof x);
              __builtin_memcpy(to + r * ldc + lanes, &y, sizeof y);
            }
            continue;
          }
          T lines[kRows * width];
#pragma GCC unroll 16
          for (int r = 0; r < kRows; ++r) {
            __builtin_memcpy(lines + r * width, &left[r], sizeof(V));
            __builtin_memcpy(lines + r * width + lanes, &right[r], sizeof(V));
          }
          const int64_t last = columns - j < width ? columns - j : width;
          for (int64_t r = 0; r < rows; ++r)
            for (int64_t q = 0; q < last; ++q)
              to[r * ldc + q] = onto ? to[r * ldc + q] + lines[r * width + q] : lines[r * width + q];
        }
      }
    }
  }
}

// C [m, n] (+)= the product over k. A is [m, k] (tn: [k, m]), B is [k, n] (nt: [n, k]).
template <class T> static void gemm(const Problem<T>& problem, Form form, int64_t m, int64_t n, int64_t k, const T* a,
                                    int64_t lda, const T* b, int64_t ldb, bool add, T* c, int64_t ldc, unsigned char* scratch) {
  if (m == 0 || n == 0) return;
  if (!problem.gemm || (problem.own_similarities && form == Form::nt))
    return own_gemm<T>(form, m, n, k, a, lda, b, ldb, add, c, ldc, scratch);
  const int mi = int(m), ni = int(n), ki = int(k), lda_ = int(lda), ldb_ = int(ldb), ldc_ = int(ldc);
  const T one = 1, beta = add ? 1 : 0;                                 // column-major BLAS sees every matrix transposed
  problem.gemm(form == Form::nt ? "T" : "N", form == Form::tn ? "T" : "N", &ni, &mi, &ki, &one, b, &ldb_, a, &lda_, &beta, c,
               &ldc_);
}

DML_END
