// Scalars and vectors under the same names: a loss written with these runs on one float or on a register of them.
// Vectors are the compiler's own, as wide as the instruction set's registers; wider ones would be split, ten times slower.
#pragma once
#include "dml/platform.h"
#if DML_VECTORS && defined(__SSE2__)
#include <immintrin.h>
#endif
#if !defined(__CUDACC_RTC__)
#include <math.h>
#endif

DML_BEGIN

template <class T> struct Limit;                                       // bounds of a number type
template <> struct Limit<float> {
  static constexpr float epsilon = 1.1920929e-7f;
  static constexpr float lowest = -1e30f;
};
template <> struct Limit<double> {
  static constexpr double epsilon = 2.220446049250313e-16;
  static constexpr double lowest = -1e300;
};

DML_FN float select(bool m, float a, float b) { return m ? a : b; }
DML_FN double select(bool m, double a, double b) { return m ? a : b; }
DML_FN float max(float a, float b) { return a > b ? a : b; }
DML_FN float min(float a, float b) { return a < b ? a : b; }
DML_FN double max(double a, double b) { return a > b ? a : b; }
DML_FN double min(double a, double b) { return a < b ? a : b; }
DML_FN float exp(float x) { return ::expf(x); }
DML_FN double exp(double x) { return ::exp(x); }
DML_FN float log(float x) { return ::logf(x); }
DML_FN double log(double x) { return ::log(x); }
DML_FN float log1p(float x) { return ::log1pf(x); }
DML_FN double log1p(double x) { return ::log1p(x); }
DML_FN float reciprocal_sqrt(float x) { return 1.0f / ::sqrtf(x); }
DML_FN double reciprocal_sqrt(double x) { return 1.0 / ::sqrt(x); }

DML_FN float softplus(float x) { return max(x, 0.0f) + ::log1pf(::expf(x < 0 ? x : -x)); }    // log(1 + e^x), no overflow
DML_FN double softplus(double x) { return max(x, 0.0) + ::log1p(::exp(x < 0 ? x : -x)); }
DML_FN float sigmoid(float x) { return 1 / (1 + ::expf(-x)); }
DML_FN double sigmoid(double x) { return 1 / (1 + ::exp(-x)); }

template <class V> struct Scalar { using type = V; };                  // the number type of a scalar or vector
template <class V> DML_FN V splat(typename Scalar<V>::type x) { return x; }

#if DML_VECTORS
#if defined(__AVX512F__)
#define DML_WIDTH 64
#elif defined(__AVX__)
#define DML_WIDTH 32
#else
#define DML_WIDTH 16
#endif

typedef float VecF __attribute__((vector_size(DML_WIDTH)));
typedef double VecD __attribute__((vector_size(DML_WIDTH)));
typedef decltype(VecF{} < VecF{}) VecI;
typedef decltype(VecD{} < VecD{}) VecL;
template <class T> struct Native;                                      // the vector of a number type
template <> struct Native<float> {
  using V = VecF;
  using M = VecI;
  static constexpr int lanes = DML_WIDTH / 4;
};
template <> struct Native<double> {
  using V = VecD;
  using M = VecL;
  static constexpr int lanes = DML_WIDTH / 8;
};
template <> struct Scalar<VecF> { using type = float; };
template <> struct Scalar<VecD> { using type = double; };
// x - 0 is x to the last bit, so this is a plain broadcast; 0 + x is not (x = -0) and would cost an addition.
template <> DML_FN VecF splat<VecF>(float x) { return x - VecF{}; }
template <> DML_FN VecD splat<VecD>(double x) { return x - VecD{}; }

DML_FN VecF select(VecI m, VecF a, VecF b) { return m ? a : b; }
DML_FN VecD select(VecL m, VecD a, VecD b) { return m ? a : b; }
DML_FN VecF max(VecF a, VecF b) { return a > b ? a : b; }
DML_FN VecF min(VecF a, VecF b) { return a < b ? a : b; }
DML_FN VecD max(VecD a, VecD b) { return a > b ? a : b; }
DML_FN VecD min(VecD a, VecD b) { return a < b ? a : b; }

// e^x = 2^n 2^f with |f| <= 1/2; the polynomial is the degree-5 minimax of 2^f (relative error 8e-8). Below 2^-127 it is 0.
// Adding 1.5 * 2^23 rounds to a whole number. AVX-512 scales by 2^n in one instruction, down to 0 and without a special case.
#if defined(__AVX512F__)
DML_FN VecF exp(VecF x) {
  const VecF magic = splat<VecF>(12582912.0f), lowest = splat<VecF>(-150.0f), highest = splat<VecF>(88.722f);
  x = lowest > x ? lowest : x;                                         // in this order, a NaN stays one
  x = highest < x ? highest : x;
  const VecF n = (x * 1.44269504f + magic) - magic, f = x * 1.44269504f - n;
  VecF p = f * 0.00132764725f + 0.00967554096f;
  p = p * f + 0.0555071309f;
  p = p * f + 0.240221202f;
  p = p * f + 0.693146944f;
  p = p * f + 1.00000012f;
  return (VecF)_mm512_scalef_ps((__m512)p, (__m512)n);
}
#else
DML_FN VecF exp(VecF x) {
  VecF t = min(max(x * 1.44269504f, splat<VecF>(-127.0f)), splat<VecF>(127.999f));
  const VecF magic = splat<VecF>(12582912.0f);
  VecF n = (t + magic) - magic;
  VecF f = x * 1.44269504f - n;                                        // one rounding less than t - n where there is FMA
  f = select(x * 1.44269504f < -127.0f, splat<VecF>(0.0f), f);         // not `t > -127`: a NaN must stay one
  VecF p = f * 0.00132764725f + 0.00967554096f;
  p = p * f + 0.0555071309f;
  p = p * f + 0.240221202f;
  p = p * f + 0.693146944f;
  p = p * f + 1.00000012f;
  VecI e = (__builtin_convertvector(n, VecI) + 127) << 23;
  return p * (VecF)e;
}
#endif
DML_FN VecD exp(VecD x) {                                              // double serves proofs, not speed
  VecD y;
  for (int k = 0; k < Native<double>::lanes; ++k) y[k] = __builtin_exp(x[k]);
  return y;
}

// log(1 + u) for u = e^-|x| in [0, 1] is 2 atanh(z), z = u / (2 + u): relatively exact (1e-8) down to the smallest u.
DML_FN VecF softplus(VecF x) {
  VecF u = exp(min(x, -x));
  VecF z = u / (u + 2.0f), w = z * z;
  VecF p = w * 0.281915456f + 0.279576659f;
  p = p * w + 0.40025113f;
  p = p * w + 0.66666311f;
  p = p * w + 2.0f;
  return max(x, splat<VecF>(0.0f)) + z * p;
}
DML_FN VecD softplus(VecD x) {
  VecD y;
  for (int k = 0; k < Native<double>::lanes; ++k)
    y[k] = (x[k] > 0 ? x[k] : 0) + __builtin_log1p(__builtin_exp(x[k] < 0 ? x[k] : -x[k]));
  return y;
}

DML_FN VecF gather(const float* at, VecI index) {                      // at[index], lane by lane
#if defined(__AVX512F__)
  return (VecF)_mm512_i32gather_ps((__m512i)index, at, 4);
#elif defined(__AVX2__)
  return (VecF)_mm256_i32gather_ps(at, (__m256i)index, 4);
#else
  VecF y;
  for (int k = 0; k < Native<float>::lanes; ++k) y[k] = at[index[k]];
  return y;
#endif
}
DML_FN VecD gather(const double* at, VecL index) {
  VecD y;
  for (int k = 0; k < Native<double>::lanes; ++k) y[k] = at[index[k]];
  return y;
}
DML_FN bool any(VecI m) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)m, (__m512i)m);
#elif defined(__AVX__)
  return _mm256_movemask_ps((__m256)m);
#elif defined(__SSE2__)
  return _mm_movemask_ps((__m128)m);
#else
  bool found = false;
  for (int k = 0; k < Native<float>::lanes; ++k) found = found || m[k];
  return found;
#endif
}
DML_FN bool any(VecL m) {
  bool found = false;
  for (int k = 0; k < Native<double>::lanes; ++k) found = found || m[k];
  return found;
}
// The same for whole numbers kept as floats, as every lane type has them.
DML_FN VecF gather(const float* at, VecF index) { return gather(at, __builtin_convertvector(index, VecI)); }
DML_FN VecD gather(const double* at, VecD index) { return gather(at, __builtin_convertvector(index, VecL)); }

// An estimate and one Newton step: error below 2e-7. The bits of an estimate depend on who made the processor, so the plainest
// level, whose results are the same everywhere, divides.
DML_FN VecF reciprocal_sqrt(VecF x) {
#if defined(__AVX512F__)
  VecF y = (VecF)_mm512_rsqrt14_ps((__m512)x);
  return y * (1.5f - 0.5f * x * y * y);
#elif defined(__AVX__)
  VecF y = (VecF)_mm256_rsqrt_ps((__m256)x);
  return y * (1.5f - 0.5f * x * y * y);
#else
  VecF y;
  for (int k = 0; k < Native<float>::lanes; ++k) y[k] = 1.0f / __builtin_sqrtf(x[k]);
  return y;
#endif
}
DML_FN VecD reciprocal_sqrt(VecD x) {
  VecD y;
  for (int k = 0; k < Native<double>::lanes; ++k) y[k] = 1.0 / __builtin_sqrt(x[k]);
  return y;
}
#endif

// 1 / (1 + e^-x), the slope of softplus; e^-|x| cannot overflow, and far below zero the result is exactly 0.
template <class V> DML_FN V sigmoid(V x) {
  using T = typename Scalar<V>::type;
  V e = exp(min(x, -x));
  return select(x > splat<V>(0), splat<V>(1), e) / (e + T(1));
}

DML_END
