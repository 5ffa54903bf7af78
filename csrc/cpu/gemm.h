// Row-major matrix products: a vendor BLAS where one was found, else the level's own kernel (packed panels, a register tile of
// kRows x 2 vectors). Only what the tiles need: beta is 0 or 1, alpha is 1.
#pragma once
#include "cpu/problem.h"
#include "dml/vector.h"

DML_BEGIN

enum class Form { nt, nn, tn };   // C = A B^T, C = A B, C = A^T B

constexpr int64_t kPanelDepth = 256, kPanelColumns = 256;
#if defined(__AVX512F__)
constexpr int kRows = 12;
#elif defined(__AVX__)
constexpr int kRows = 6;
#else
constexpr int kRows = 4;
#endif
template <class T> constexpr int64_t kPanelWidth = 2 * Native<T>::lanes;
template <class T> constexpr int64_t own_gemm_bytes() {
  return int64_t(sizeof(T)) * kPanelDepth * (kPanelColumns + 2 * kPanelWidth<T> + kRows) + 128;
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
    for (int64_t j0 = 0; j0 < n; j0 += kPanelColumns) {
      const int64_t columns = n - j0 < kPanelColumns ? n - j0 : kPanelColumns;
      for (int64_t j = 0; j < columns; j += width)                     // panels [depth][width], zeros beyond the edge
        for (int64_t p = 0; p < depth; ++p)
          for (int64_t q = 0; q < width; ++q) {
            const int64_t jj = j0 + j + q;
            packed_b[j * depth + p * width + q] =
                jj < n ? (form == Form::nt ? b[jj * ldb + p0 + p] : b[(p0 + p) * ldb + jj]) : T(0);
          }
      for (int64_t i0 = 0; i0 < m; i0 += kRows) {
        const int64_t rows = m - i0 < kRows ? m - i0 : kRows;
        for (int64_t p = 0; p < depth; ++p)
          for (int r = 0; r < kRows; ++r) {
            const int64_t ii = i0 + r;
            packed_a[p * kRows + r] = r < rows ? (form == Form::tn ? a[(p0 + p) * lda + ii] : a[ii * lda + p0 + p]) : T(0);
          }
        for (int64_t j = 0; j < columns; j += width) {
          V left[kRows], right[kRows];
          for (int r = 0; r < kRows; ++r) left[r] = right[r] = V{};
          const T* bp = packed_b + j * depth;
          for (int64_t p = 0; p < depth; ++p) {
            V x, y;
            __builtin_memcpy(&x, bp + p * width, sizeof x);
            __builtin_memcpy(&y, bp + p * width + lanes, sizeof y);
#pragma GCC unroll 16
            for (int r = 0; r < kRows; ++r) {
              const V s = splat<V>(packed_a[p * kRows + r]);
              left[r] += s * x;
              right[r] += s * y;
            }
          }
          for (int64_t r = 0; r < rows; ++r) {
            T line[2 * lanes];
            __builtin_memcpy(line, &left[r], sizeof left[r]);
            __builtin_memcpy(line + lanes, &right[r], sizeof right[r]);
            T* to = c + (i0 + r) * ldc + j0 + j;
            const int64_t last = n - j0 - j < width ? n - j0 - j : width;
            for (int64_t q = 0; q < last; ++q) to[q] = onto ? to[q] + line[q] : line[q];
          }
        }
      }
    }
  }
}

// C [m, n] (+)= the product over k. A is [m, k] (tn: [k, m]), B is [k, n] (nt: [n, k]).
template <class T> static void gemm(const Problem<T>& problem, Form form, int64_t m, int64_t n, int64_t k, const T* a, int64_t lda,
                                    const T* b, int64_t ldb, bool add, T* c, int64_t ldc, unsigned char* scratch) {
  if (m == 0 || n == 0) return;
  if (!problem.gemm) return own_gemm<T>(form, m, n, k, a, lda, b, ldb, add, c, ldc, scratch);
  const int mi = int(m), ni = int(n), ki = int(k), lda_ = int(lda), ldb_ = int(ldb), ldc_ = int(ldc);
  const T one = 1, beta = add ? 1 : 0;                                 // column-major BLAS sees every matrix transposed
  problem.gemm(form == Form::nt ? "T" : "N", form == Form::tn ? "T" : "N", &ni, &mi, &ki, &one, b, &ldb_, a, &lda_, &beta, c, &ldc_);
}

DML_END
