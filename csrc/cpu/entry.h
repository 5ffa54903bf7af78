// A functor as the driver sees it: its parts outside the inner loops, and its inner loops, behind plain function pointers. The
// drivers of level.cpp know nothing else of a loss, so a table may grow at run time (functors.h).
#pragma once
#include "cpu/parts.h"

DML_BEGIN

template <class T> using Accumulate = void (*)(const FunctorState&, const Strip<T>&, const Accumulators&);
template <class T> using Slope = void (*)(const FunctorState&, const Strip<T>&, const Accumulators&);

template <class T> struct Entry {
  FunctorInfo info;
  bool (*fits)(const double* options, unsigned char* into);
  void (*start)(const FunctorState&, const Problem<T>&, int thread);
  void (*open)(const FunctorState&, const Problem<T>&, int64_t anchor, Positives<T>);
  void (*begin)(const FunctorState&, const Problem<T>&, const Accumulators&, bool columns);
  void (*flush_rows)(const FunctorState&, const Problem<T>&, const Accumulators&, int64_t i0, int64_t rows, int thread);
  void (*flush_columns)(const FunctorState&, const Problem<T>&, const Accumulators&, int64_t j0, int64_t columns, int thread);
  void (*merge)(const FunctorState&, const Problem<T>&, int64_t from, int64_t to, int totals);
  void (*merge_ranks)(const FunctorState&, const Problem<T>&, const T* parts, int ranks, int64_t step, int64_t from,
                      int64_t count);
  void (*close)(const FunctorState&, const Problem<T>&, int64_t anchor, Positives<T>, T* values, T* counts);
  void (*weigh)(const FunctorState&, const Problem<T>&, const Accumulators&, int64_t anchor, Positives<T>, const T* cotangents,
                T* slopes);
  void (*prepare)(const FunctorState&, const Problem<T>&, const Accumulators&, int64_t i0, int64_t rows);   // rows of slopes
  void (*tabulate)(const FunctorState&, const Accumulators&, Positives<T>);   // tables only: the positives
  int (*cells)(const unsigned char* options);
  int (*step_cells)(const unsigned char* options);
  Accumulate<T> collect[2];
  Slope<T> slope[2];
  int64_t row_bytes, column_fields, row_slot_bytes, column_slot_fields;
};

// The same parts for a table: nothing per anchor.
template <class F, class T> struct TableParts {
  static void start(const FunctorState&, const Problem<T>&, int) {}
  static void open(const FunctorState&, const Problem<T>&, int64_t, Positives<T>) {}
  static void begin(const FunctorState&, const Problem<T>&, const Accumulators&, bool) {}
  static void flush_rows(const FunctorState&, const Problem<T>&, const Accumulators&, int64_t, int64_t, int) {}
  static void flush_columns(const FunctorState&, const Problem<T>&, const Accumulators&, int64_t, int64_t, int) {}
  static void merge(const FunctorState&, const Problem<T>&, int64_t, int64_t, int) {}
  static void close(const FunctorState&, const Problem<T>&, int64_t, Positives<T>, T*, T*) {}
  static T place(const F& f, T s) { return min(max(f.place(s), T(0)), T(f.cells() - 1)); }
  static void tabulate(const FunctorState& loss, const Accumulators& acc, Positives<T> positives) {
    const F f = options_of<F>(loss);
    for (int64_t k = 0; k < positives.count; ++k) {
      const T x = place(f, positives[k]);
      const int64_t below = int64_t(x);
      acc.table[below] += 1, acc.table[loss.cells + below] += int64_t((x - T(below)) * T(fraction_unit<T>()));
    }
    if (sizeof(T) == 8) carry(loss.cells, acc.table, acc.table + loss.cells);
  }
  static void prepare(const FunctorState&, const Problem<T>&, const Accumulators&, int64_t, int64_t) {}
  static void weigh(const FunctorState& loss, const Problem<T>& p, const Accumulators&, int64_t, Positives<T> positives,
                    const T*, T* slopes) {
    const F f = options_of<F>(loss);
    const T* table = p.table_slopes + loss.table_first;                // of positives
    for (int64_t k = 0; k < positives.count; ++k)
      slopes[k] += table[int64_t(place(f, positives[k]))] * f.place_slope(positives[k]);
  }
  static int cells(const unsigned char* options) {
    F f;
    memcpy(&f, options, sizeof f);
    return f.cells();
  }
};

constexpr int words_in(const char* text) {
  int words = 0;
  for (bool inside = false; *text; ++text) words += *text != ' ' && !inside, inside = *text != ' ';
  return words;
}
template <class S, class T> constexpr bool is_fields_of() { return __is_empty(S) || sizeof(S) % sizeof(T) == 0; }

constexpr int kMostFunctors = 256, kMostValues = 8;
template <class T> struct Table {
  Entry<T> entries[kMostFunctors];
  int count = 0;
  template <class F> void add_form(const char* name) {
    using P = Parts<F, T>;
    using V = typename Native<T>::V;
    static_assert(sizeof(F) <= sizeof(FunctorState::options) && sizeof(F) % sizeof(T) == 0, "options are numbers of type T");
    static_assert(words_in(F::kOptions) * sizeof(T) == sizeof(F), "kOptions names every option, in the order of the members");
    static_assert(!HasMeans<F>::value || (GivenCount<F>::value == 2 && IsCpuOnly<F>::value), "means are two, of the CPU");
    static_assert(F::kValues >= 0 && F::kValues <= kMostValues, "a functor has at most 8 values per anchor");
    static_assert(
        is_fields_of<typename P::Limits, T>() && is_fields_of<typename P::Sums, T>() && is_fields_of<typename P::Slopes, T>(),
        "the members of Limits, Sums and Slopes are of type V");
    if (count == kMostFunctors) __builtin_trap();
    Entry<T>& e = entries[count++];
    e.info = {name,
              F::kOptions,
              F::kValues,
              field_count<typename P::Limits, T>(),
              P::sums,
              field_count<typename P::Slopes, T>(),
              field_count<typename P::Slot::Limits, T>(),
              P::slot_sums,
              int(sizeof(F)),
              GivenCount<F>::value,
              F::kSlots,
              HasPartners<F>::value,
              HasTable<F>::value,
              HasCentres<F>::value,
              HasMeans<F>::value,
              SearchedEnds<F>::value};
    e.fits = P::fits;
    if constexpr (!HasTable<F>::value) {
      e.start = P::start, e.open = P::open, e.begin = P::begin, e.flush_rows = P::flush_rows;
      e.flush_columns = P::flush_columns, e.merge = P::merge, e.close = P::close, e.weigh = P::weigh;
      e.prepare = P::prepare, e.merge_ranks = P::merge_ranks;
    }
    e.collect[0] = collect<F, T, V, false>, e.collect[1] = collect<F, T, V, true>;
    e.slope[0] = slope<F, T, V, false>, e.slope[1] = slope<F, T, V, true>;
    e.tabulate = nullptr, e.cells = e.step_cells = [](const unsigned char*) { return 0; };
    if constexpr (HasSteps<F>::value) e.step_cells = P::step_cells;
    if constexpr (HasTable<F>::value) {
      using Q = TableParts<F, T>;
      e.start = Q::start, e.open = Q::open, e.begin = Q::begin, e.flush_rows = Q::flush_rows,
      e.flush_columns = Q::flush_columns;
      e.merge_ranks = nullptr;  // a table is no pass that ranks divide
      e.merge = Q::merge, e.close = Q::close, e.weigh = Q::weigh, e.prepare = Q::prepare, e.tabulate = Q::tabulate,
      e.cells = Q::cells;
    }
    e.row_bytes = P::sums * sizeof(V), e.column_fields = P::sums;
    e.row_slot_bytes = P::slot_sums * sizeof(V), e.column_slot_fields = P::slot_sums;
  }
  template <template <class, bool> class F> void add(const char* name) {
    add_form<F<T, false>>(name);
    if constexpr (!__is_same(F<T, false>, F<T, true>)) add_form<F<T, true>>(name);
  }
};

DML_END
