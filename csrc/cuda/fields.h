// A functor's structs (Limits, Sums, Slopes) as columns of parallel arrays, so that neighbouring anchors lie together.
#pragma once
#include "dml/contract.h"

DML_BEGIN

template <class S, class T> DML_FN constexpr int fields_of() { return __is_empty(S) ? 0 : int(sizeof(S) / sizeof(T)); }
template <class S, class T> DML_FN constexpr int room_for() { return fields_of<S, T>() > 0 ? fields_of<S, T>() : 1; }

template <class S> DML_FN S read_fields(const float* at, size_t stride) {
  S out;
  if constexpr (!__is_empty(S)) {
    float fields[room_for<S, float>()];
    for (int f = 0; f < fields_of<S, float>(); ++f) fields[f] = at[f * stride];
    __builtin_memcpy(&out, fields, sizeof out);
  }
  return out;
}
template <class S> DML_FN void write_fields(const S& in, float* at, size_t stride) {
  if constexpr (!__is_empty(S)) {
    float fields[room_for<S, float>()];
    __builtin_memcpy(fields, &in, sizeof in);
    for (int f = 0; f < fields_of<S, float>(); ++f) at[f * stride] = fields[f];
  }
}
template <class To, class ToNumber, class FromNumber, class From> DML_FN To convert_fields(const From& in) {
  To out;
  if constexpr (!__is_empty(From)) {
    FromNumber from[room_for<From, FromNumber>()];
    ToNumber to[room_for<From, FromNumber>()];
    __builtin_memcpy(from, &in, sizeof in);
    for (int f = 0; f < fields_of<From, FromNumber>(); ++f) to[f] = ToNumber(from[f]);
    __builtin_memcpy(&out, to, sizeof out);
  }
  return out;
}

// The two shapes of a functor: with one accumulator per anchor, and with one more per positive.
template <class F, bool Slots = F::kSlots> struct SlotTypes {
  using Limits = Nothing<float>;
  using Sums = Nothing<float>;
};
template <class F> struct SlotTypes<F, true> {
  using Limits = typename F::template SlotLimits<float>;
  using Sums = typename F::template SlotSums<float>;
};

DML_END
