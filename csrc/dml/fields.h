// A functor's structs (Limits, Sums, Slopes) as columns of parallel arrays, so that neighbouring anchors lie together, and the
// two shapes of a functor: with one accumulator per anchor, and with one more per positive.
#pragma once
#include "dml/contract.h"

DML_BEGIN

template <class S, class T> DML_FN constexpr int field_count() { return __is_empty(S) ? 0 : int(sizeof(S) / sizeof(T)); }

// A struct of T from one place of arrays of `From`, `stride` apart, and back.
template <class S, class T, class From> DML_FN S gather_fields(const From* at, long long stride) {
  S out;
  if constexpr (!__is_empty(S)) {
    T fields[field_count<S, T>()];
    for (int f = 0; f < field_count<S, T>(); ++f) fields[f] = T(at[f * stride]);
    __builtin_memcpy(&out, fields, sizeof out);
  }
  return out;
}
template <class T, class S, class To> DML_FN void scatter_fields(const S& in, To* at, long long stride) {
  if constexpr (!__is_empty(S)) {
    T fields[field_count<S, T>()];
    __builtin_memcpy(fields, &in, sizeof in);
    for (int f = 0; f < field_count<S, T>(); ++f) at[f * stride] = To(fields[f]);
  }
}
template <class To, class ToNumber, class FromNumber, class From> DML_FN To convert_fields(const From& in) {
  To out;
  if constexpr (!__is_empty(From)) {
    ToNumber to[field_count<From, FromNumber>()];
    scatter_fields<FromNumber>(in, to, 1);
    __builtin_memcpy(&out, to, sizeof out);
  }
  return out;
}

// The optional members of a functor.
template <class...> struct MakeVoid { using type = void; };
template <class F, class = void> struct GivenCount { static constexpr int value = 0; };
template <class F> struct GivenCount<F, typename MakeVoid<decltype(F::kGiven)>::type> {
  static constexpr int value = F::kGiven;
};
template <class F, class = void> struct HasPartners { static constexpr bool value = false; };
template <class F> struct HasPartners<F, typename MakeVoid<decltype(F::kPartners)>::type> {
  static constexpr bool value = F::kPartners;
};
template <class F, class = void> struct HasTable { static constexpr bool value = false; };
template <class F> struct HasTable<F, typename MakeVoid<decltype(F::kTable)>::type> {
  static constexpr bool value = F::kTable;
};
template <class F, class = void> struct HasCentres { static constexpr bool value = false; };
template <class F> struct HasCentres<F, typename MakeVoid<decltype(F::kCentres)>::type> {
  static constexpr bool value = F::kCentres;
};
template <class F, class = void> struct HasMeans { static constexpr bool value = false; };
template <class F> struct HasMeans<F, typename MakeVoid<decltype(F::kMeans)>::type> {
  static constexpr bool value = F::kMeans;
};
template <class F, class = void> struct IsCpuOnly { static constexpr bool value = false; };
template <class F> struct IsCpuOnly<F, typename MakeVoid<decltype(F::kCpuOnly)>::type> {
  static constexpr bool value = F::kCpuOnly;
};
template <class F, class = void> struct SearchedEnds { static constexpr int value = 0; };
template <class F> struct SearchedEnds<F, typename MakeVoid<decltype(F::kSearch)>::type> {
  static constexpr int value = F::kSearch;
};
template <class F, class = void> struct HasSteps { static constexpr bool value = false; };
template <class F> struct HasSteps<F, typename MakeVoid<decltype(F::kSteps)>::type> {
  static constexpr bool value = F::kSteps;
};
template <class F, class = void> struct HasOnce { static constexpr bool value = false; };
template <class F> struct HasOnce<F, typename MakeVoid<decltype(F::kOnce)>::type> { static constexpr bool value = F::kOnce; };
template <class F, class = void> struct SlopesTogether { static constexpr bool value = false; };
template <class F> struct SlopesTogether<F, typename MakeVoid<decltype(F::kSlopesTogether)>::type> {
  static constexpr bool value = F::kSlopesTogether;
};
template <class F, class = void> struct Reweighs { static constexpr bool value = false; };
template <class F> struct Reweighs<F, typename MakeVoid<decltype(F::kReweighs)>::type> {
  static constexpr bool value = F::kReweighs;
};

template <class F, class T, class V, bool Slots = F::kSlots> struct SlotTypes {
  using Limits = Nothing<T>;
  using Sums = Nothing<T>;
  using WideSums = Nothing<T>;
};
template <class F, class T, class V> struct SlotTypes<F, T, V, true> {
  using Limits = typename F::template SlotLimits<T>;
  using Sums = typename F::template SlotSums<T>;
  using WideSums = typename F::template SlotSums<V>;
};

DML_END
