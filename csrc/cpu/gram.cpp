#include "cpu/gram.h"

#include "cpu/levels.h"

namespace dml {

namespace {

constexpr int kLanes = 32;                                             // sums side by side, to fill registers of any width

// A product of two floats is exact in double, so a fused multiplication gives the same bits as two operations.
inline __attribute__((always_inline)) double dot(const float* a, const float* b, int64_t size) {
  double sums[kLanes] = {};
  int64_t k = 0;
  for (; k + kLanes <= size; k += kLanes)
    for (int q = 0; q < kLanes; ++q) sums[q] += double(a[k + q]) * double(b[k + q]);
  for (int q = 0; k < size; ++k, ++q) sums[q] += double(a[k]) * double(b[k]);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int q = 0; q < half; ++q) sums[q] += sums[q + half];
  return sums[0];
}

inline __attribute__((always_inline)) void fill(const float* rows, int64_t count, int64_t size, double* products) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = i; j < count; ++j)
      products[i * count + j] = products[j * count + i] = dot(rows + i * size, rows + j * size, size);
}

#ifdef DML_X86
__attribute__((target("arch=x86-64-v3"))) void fill_avx2(const float* rows, int64_t count, int64_t size, double* products) {
  fill(rows, count, size, products);
}
__attribute__((target("arch=x86-64-v4,prefer-vector-width=512"))) void fill_avx512(const float* rows, int64_t count,
                                                                                   int64_t size, double* products) {
  fill(rows, count, size, products);
}
#endif

}  // namespace

void gram(const float* rows, int64_t count, int64_t size, double* products) {
#ifdef DML_X86
  if (level() == "avx512") return fill_avx512(rows, count, size, products);
  if (level() == "avx2") return fill_avx2(rows, count, size, products);
#endif
  fill(rows, count, size, products);
}

}  // namespace dml
