#include "cpu/gram.h"

#include <cstring>

#include "cpu/levels.h"

namespace dml {

namespace {

constexpr int kLanes = 32;                                             // sums side by side, to fill registers of any width

// What comes of the lanes after `whole` numbers, with the rest of both rows.
inline __attribute__((always_inline)) double finish(double* sums, const float* a, const float* b, int64_t whole, int64_t size) {
  for (int q = 0; whole < size; ++whole, ++q) sums[q] += double(a[whole]) * double(b[whole]);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int q = 0; q < half; ++q) sums[q] += sums[q + half];
  return sums[0];
}

// A product of two floats is exact in double, so a fused multiplication gives the same bits as two operations.
inline __attribute__((always_inline)) double dot(const float* a, const float* b, int64_t size) {
  double sums[kLanes] = {};
  int64_t k = 0;
  for (; k + kLanes <= size; k += kLanes)
    for (int q = 0; q < kLanes; ++q) sums[q] += double(a[k + q]) * double(b[k + q]);
  return finish(sums, a, b, k, size);
}

inline __attribute__((always_inline)) void fill(const float* rows, int64_t count, int64_t size, double* products) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = i; j < count; ++j)
      products[i * count + j] = products[j * count + i] = dot(rows + i * size, rows + j * size, size);
}

// Under a factor of its own each number is rounded once or twice, as the processor's multiplication is fused or not.
inline __attribute__((always_inline)) void add_up(const float* rows, int64_t count, int64_t size, const double* factors,
                                                  float* sum) {
  bool is_first = true;
  for (int64_t i = 0; i < count; ++i) {
    const float factor = float(factors[i]), *row = rows + i * size;
    if (factors[i] == 0) continue;
    for (int64_t k = 0; k < size; ++k) sum[k] = is_first ? row[k] * factor : sum[k] + row[k] * factor;
    is_first = false;
  }
  if (is_first) memset(sum, 0, size * sizeof(float));
}

#ifdef DML_X86
#define DML_AVX2 __attribute__((target("arch=x86-64-v3")))
#define DML_AVX512 __attribute__((target("arch=x86-64-v4,prefer-vector-width=512")))

// The same sums for all pairs of three rows at once, each of whose numbers is widened once.
DML_AVX512 void fill_three(const float* rows, int64_t size, double* products) {
  using Wide = double __attribute__((vector_size(64)));
  using Narrow = float __attribute__((vector_size(32)));
  constexpr int kRegisters = kLanes / 8;
  Wide sums[6][kRegisters] = {};
  int64_t k = 0;
  for (; k + kLanes <= size; k += kLanes)
    for (int q = 0; q < kRegisters; ++q) {
      Narrow x[3];
      for (int i = 0; i < 3; ++i) memcpy(&x[i], rows + i * size + k + 8 * q, sizeof(Narrow));
      const Wide a = __builtin_convertvector(x[0], Wide), b = __builtin_convertvector(x[1], Wide),
                 c = __builtin_convertvector(x[2], Wide);
      sums[0][q] += a * a, sums[1][q] += a * b, sums[2][q] += a * c;
      sums[3][q] += b * b, sums[4][q] += b * c, sums[5][q] += c * c;
    }
  int pair = 0;
  for (int i = 0; i < 3; ++i)
    for (int j = i; j < 3; ++j, ++pair) {
      double lanes[kLanes];
      memcpy(lanes, sums[pair], sizeof lanes);
      products[3 * i + j] = products[3 * j + i] = finish(lanes, rows + i * size, rows + j * size, k, size);
    }
}

DML_AVX2 void fill_avx2(const float* rows, int64_t count, int64_t size, double* products) { fill(rows, count, size, products); }
DML_AVX512 void fill_avx512(const float* rows, int64_t count, int64_t size, double* products) {
  count == 3 ? fill_three(rows, size, products) : fill(rows, count, size, products);
}
DML_AVX2 void add_up_avx2(const float* rows, int64_t count, int64_t size, const double* factors, float* sum) {
  add_up(rows, count, size, factors, sum);
}
DML_AVX512 void add_up_avx512(const float* rows, int64_t count, int64_t size, const double* factors, float* sum) {
  add_up(rows, count, size, factors, sum);
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

void weighted_sum(const float* rows, int64_t count, int64_t size, const double* factors, float* sum) {
#ifdef DML_X86
  if (level() == "avx512") return add_up_avx512(rows, count, size, factors, sum);
  if (level() == "avx2") return add_up_avx2(rows, count, size, factors, sum);
#endif
  add_up(rows, count, size, factors, sum);
}

}  // namespace dml
