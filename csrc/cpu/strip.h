// A strip of a tile, and fields of functors as registers: what all inner loops share.
#pragma once
#include "cpu/problem.h"
#include "cpu/search.h"
#include "dml/fields.h"

DML_BEGIN

// A struct of fields at one index of parallel arrays: scalars broadcast to a register, or a register of neighbours.
template <class S, class V, class T> DML_FN S broadcast(const T* at, int64_t stride) {
  S out;
  if constexpr (!__is_empty(S)) {
    V fields[field_count<S, V>()];
    for (int f = 0; f < field_count<S, V>(); ++f) fields[f] = splat<V>(at[f * stride]);
    __builtin_memcpy(&out, fields, sizeof out);
  }
  return out;
}
template <class S, class V, class T> DML_FN S load(const T* at, int64_t stride) {
  S out;
  if constexpr (!__is_empty(S)) {
    V fields[field_count<S, V>()];
    for (int f = 0; f < field_count<S, V>(); ++f) __builtin_memcpy(&fields[f], at + f * stride, sizeof(V));
    __builtin_memcpy(&out, fields, sizeof out);
  }
  return out;
}
template <class V, class S, class T> DML_FN void store(const S& in, T* at, int64_t stride) {
  if constexpr (!__is_empty(S)) {
    V fields[field_count<S, V>()];
    __builtin_memcpy(fields, &in, sizeof in);
    for (int f = 0; f < field_count<S, V>(); ++f) __builtin_memcpy(at + f * stride, &fields[f], sizeof(V));
  }
}
template <class S, class Wide, class V, class T> DML_FN S lane(const Wide& in, int q) {    // one lane of a register struct
  S out;
  if constexpr (!__is_empty(S)) {
    T fields[field_count<S, T>()];
    for (int f = 0; f < field_count<S, T>(); ++f)
      __builtin_memcpy(&fields[f], reinterpret_cast<const char*>(&in) + f * sizeof(V) + q * sizeof(T), sizeof(T));
    __builtin_memcpy(&out, fields, sizeof out);
  }
  return out;
}

// Everything one loss needs to know about the strip it is given.
template <class T> struct Strip {
  const T* s;                       // similarities [rows][ld]; columns is a multiple of the lanes
  T* g;                             // slopes, same shape
  int64_t ld, rows, columns;
  int64_t row, column;              // index of the first row among the anchors, and of the first column among the references
  int64_t local_row, local_column;  // the same within the tile
  int64_t tile_columns;             // stride of the columns' accumulators
  int64_t anchors;                  // stride of per-anchor arrays
  int64_t slot_first, slot_stride;  // the same for slots
  const int64_t* positives;         // [A]
  int64_t most_positives, column_positives;   // slots: stride, and the most any column of the strip has
  const T* table_slopes;
  bool both, first;                 // the columns are anchors too; this loss writes g instead of adding
};

// What a loss has in a thread's scratch memory.
struct Accumulators {
  unsigned char *rows, *columns, *row_slots, *column_slots;
  void* points;  // of one anchor (steps.h)
  int64_t *strip_table, *table;  // packed sums of a strip; [2][2 * cells]: pairs and fractions of positives, then negatives
};

// Similarities outside an anchor's window of negatives become no pair, in a copy of the strip.
template <class T> static void mask_strip(const Strip<T>& strip, const T* lowest, const T* highest, T* to) {
  using V = typename Native<T>::V;
  for (int64_t r = 0; r < strip.rows; ++r) {
    const V low = splat<V>(lowest[strip.row + r]), high = splat<V>(highest[strip.row + r]);
    for (int64_t j = 0; j < strip.columns; j += Native<T>::lanes) {
      V x;
      __builtin_memcpy(&x, strip.s + r * strip.ld + j, sizeof x);
      x = select((x >= low) & (x <= high), x, splat<V>(T(no_pair())));
      __builtin_memcpy(to + r * strip.ld + j, &x, sizeof x);
    }
  }
}

DML_END
