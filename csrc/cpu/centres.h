// The inner loops of losses that fold the centres of a class into one similarity.
#pragma once
#include "cpu/strip.h"

DML_BEGIN

// Classes with several centres: a register holds one centre of as many neighbouring classes as it has lanes. Tiles begin and end
// with a class; beyond the columns there is no pair.
template <class T> static void load_classes(const T* s, int64_t left, int64_t centres, typename Native<T>::V* into) {
  constexpr int lanes = Native<T>::lanes;
  T* to = reinterpret_cast<T*>(into);
  if (left >= lanes * centres) {
    for (int q = 0; q < lanes; ++q)
      for (int64_t k = 0; k < centres; ++k) to[k * lanes + q] = s[q * centres + k];
  } else {
    for (int q = 0; q < lanes; ++q)
      for (int64_t k = 0; k < centres; ++k) to[k * lanes + q] = q * centres + k < left ? s[q * centres + k] : T(no_pair());
  }
}

template <class F, class T> static void collect_centres(const F& f, const FunctorState& loss, const Strip<T>& strip,
                                                        const Accumulators& acc) {
  using V = typename Native<T>::V;
  using Limits = typename F::template Limits<V>;
  using Sums = typename F::template Sums<V>;
  const int64_t centres = int64_t(f.centres), step = centres * Native<T>::lanes;
  const T* limits = static_cast<const T*>(loss.limits_at);
  V s[kMostCentres];
  for (int64_t r = 0; r < strip.rows; ++r) {
    Sums& sums = reinterpret_cast<Sums*>(acc.rows)[strip.local_row + r];
    const Limits row_limits = broadcast<Limits, V>(limits + strip.row + r, strip.anchors);
    for (int64_t j = 0; j < strip.columns; j += step) {
      load_classes(strip.s + r * strip.ld + j, strip.columns - j, centres, s);
      f.collect(f.fold(s, centres).similarity, row_limits, sums);
    }
  }
}

template <class F, class T> static void slope_centres(const F& f, const FunctorState& loss, const Strip<T>& strip) {
  using V = typename Native<T>::V;
  using Slopes = typename F::template Slopes<V>;
  constexpr int lanes = Native<T>::lanes;
  const int64_t centres = int64_t(f.centres), step = centres * lanes;
  const T* slopes = static_cast<const T*>(loss.slopes_at);
  V s[kMostCentres];
  for (int64_t r = 0; r < strip.rows; ++r) {
    const Slopes row = broadcast<Slopes, V>(slopes + strip.row + r, strip.anchors);
    for (int64_t j = 0; j < strip.columns; j += step) {
      const int64_t left = strip.columns - j;
      load_classes(strip.s + r * strip.ld + j, left, centres, s);
      const auto fold = f.fold(s, centres);
      const V slope = f.slope_negative(fold.similarity, row);
      for (int64_t k = 0; k < centres; ++k) s[k] = slope * f.share(s[k], fold);
      const T* from = reinterpret_cast<const T*>(s);
      T* to = strip.g + r * strip.ld + j;
      for (int q = 0; q < lanes; ++q)
        for (int64_t k = 0; k < centres && q * centres + k < left; ++k)
          to[q * centres + k] = from[k * lanes + q] + (strip.first ? T(0) : to[q * centres + k]);
    }
  }
}

DML_END
