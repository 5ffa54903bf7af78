// What a functor does outside the inner loops, for one anchor or one tile: opening, merging, closing, weighing. Scalar code.
#pragma once
#include <cstring>

#include "cpu/strips.h"

DML_BEGIN

template <class T> struct Cotangents {                                 // of one anchor, one per value
  const T* at;
  int64_t stride;
  T operator[](int v) const { return at[v * stride]; }
};

template <class F> static F options_of(const FunctorState& loss) {
  F f;
  memcpy(&f, loss.options, sizeof f);
  return f;
}

template <class F, class T> struct Parts {
  using V = typename Native<T>::V;
  using Limits = typename F::template Limits<T>;
  using Sums = typename F::template Sums<T>;
  using Totals = typename F::template Sums<double>;
  using WideSums = typename F::template Sums<V>;
  using Slopes = typename F::template Slopes<T>;
  using Slot = SlotTypes<F, T, V>;
  static constexpr int lanes = Native<T>::lanes;
  static constexpr int sums = field_count<Sums, T>(), slot_sums = field_count<typename Slot::Sums, T>();

  static T* limits_at(const FunctorState& l, int64_t i) { return static_cast<T*>(l.limits_at) + i; }
  static T* sums_at(const FunctorState& l, int64_t i) { return static_cast<T*>(l.sums_at) + i; }
  // Within a field: neighbouring anchors lie together for registers of them; searched slots are only walked anchor by anchor.
  static int64_t slot_at(const FunctorState& l, const Problem<T>& p, int64_t i, int64_t k) {
    if constexpr (SearchedEnds<F>::value > 0)
      if (l.search) return (i - p.slot_first) * p.most_positives + k;
    if constexpr (HasSteps<F>::value)
      if (l.step_cells) return (i - p.slot_first) * p.most_positives + k;
    return k * p.slot_stride + i - p.slot_first;
  }
  static T* slot_limits_at(const FunctorState& l, const Problem<T>& p, int64_t i, int64_t k) {
    return static_cast<T*>(l.slot_limits_at) + slot_at(l, p, i, k);
  }
  static T* slot_sums_at(const FunctorState& l, const Problem<T>& p, int64_t i, int64_t k) {
    return static_cast<T*>(l.slot_sums_at) + slot_at(l, p, i, k);
  }
  static int64_t slot_field(const Problem<T>& p) { return p.most_positives * p.slot_stride; }
  static double* totals_at(const FunctorState& l, const Problem<T>& p, int thread, int64_t i) {
    return static_cast<double*>(l.totals_at) + int64_t(thread) * sums * p.stride + i;
  }
  static T* slot_totals_at(const FunctorState& l, const Problem<T>& p, int thread, int64_t i, int64_t k) {
    return static_cast<T*>(l.slot_totals_at) + int64_t(thread) * slot_sums * slot_field(p) + slot_at(l, p, i, k);
  }

  static bool fits(const double* options, unsigned char* into) {
    T values[sizeof(F) / sizeof(T)];
    for (size_t k = 0; k < sizeof(F) / sizeof(T); ++k) values[k] = T(options[k]);
    memcpy(into, values, sizeof values);
    F f;
    memcpy(&f, values, sizeof f);
    return f.fits();
  }
  static void start(const FunctorState& loss, const Problem<T>& p, int thread) {
    const F f = options_of<F>(loss);
    const Sums nothing = f.nothing();
    for (int64_t i = 0; i < p.stride; ++i) scatter_fields<T>(nothing, totals_at(loss, p, thread, i), p.stride);
    if constexpr (F::kSlots)
      for (int64_t k = 0; k < p.most_positives; ++k)
        for (int64_t i = 0; i < p.slot_stride; ++i)
          scatter_fields<T>(f.nothing_slot(), slot_totals_at(loss, p, thread, p.slot_first + i, k), slot_field(p));
  }
  static void open(const FunctorState& loss, const Problem<T>& p, int64_t i, Positives<T> positives) {
    const F f = options_of<F>(loss);
    if constexpr (GivenCount<F>::value > 0) {
      T given[GivenCount<F>::value];
      for (int k = 0; k < GivenCount<F>::value; ++k) given[k] = static_cast<const T*>(loss.given_at)[k * p.stride + i];
      scatter_fields<T>(f.open(positives, given), limits_at(loss, i), p.stride);
    } else {
      scatter_fields<T>(f.open(positives), limits_at(loss, i), p.stride);
    }
    if constexpr (F::kSlots)
      for (int64_t k = 0, slots = loss.search || loss.step_cells ? p.positives[i] : p.most_positives; k < slots; ++k)
        scatter_fields<T>(k < positives.count ? f.open_slot(positives[k]) : f.absent_slot(), slot_limits_at(loss, p, i, k),
                          slot_field(p));
    if constexpr (SearchedEnds<F>::value > 0)
      if (loss.search) sort_ends(f, loss, p, i, p.positives[i]);
  }

  // Soft ranks by power series.
  static int step_cells(const unsigned char* options) {
    F f;
    memcpy(&f, options, sizeof f);
    return cells_of_line(f.width());
  }
  static Points<T> points_of(const F& f, const FunctorState& loss, const Problem<T>& p, const Accumulators& acc) {
    return Points<T>(Steps<F, T>::line_of(f, loss), p.most_positives, acc.points);
  }
  static T* range_of(const FunctorState& loss, const Problem<T>& p, int64_t i) {
    return static_cast<T*>(loss.breaks_at) + i - p.slot_first;
  }
  static void settle_steps(const F& f, const FunctorState& loss, const Problem<T>& p, const Accumulators& acc, int64_t row,
                           int64_t i, Totals& total, int thread) {
    Points<T> points = points_of(f, loss, p, acc);
    for (int64_t k = 0; k < p.positives[i]; ++k) points.add(*slot_limits_at(loss, p, i, k), T(1));
    const bool has_own = f.has_own(gather_fields<Limits, T>(limits_at(loss, i), p.stride));
    if (has_own) points.add(T(1), T(1));
    Steps<F, T>::settle(f, loss, points, Steps<F, T>::row_of(acc, loss, row), has_own, range_of(loss, p, i), p.slot_stride,
                        total, [&](int64_t k, const typename Slot::Sums& sums) {
                          scatter_fields<T>(sums, slot_totals_at(loss, p, thread, i, k), slot_field(p));
                        });
  }
  static Slopes weigh_steps(const F& f, const FunctorState& loss, const Problem<T>& p, const Accumulators& acc, int64_t i,
                            Positives<T> positives, const Limits& limits, const Sums& sums, const T* cotangents, T* slopes) {
    const Slots slots{loss, p, i};
    const Slopes w = f.weigh_settled(positives, limits, sums, cotangents);
    Points<T> points = points_of(f, loss, p, acc);
    for (int64_t k = 0; k < positives.count; ++k) points.add(positives[k], f.rank_weight(slots(k)));
    if (f.has_own(limits)) points.add(T(1), f.rank_weight_own(sums));
    Steps<F, T>::slopes_among(points);
    for (int64_t k = 0; k < positives.count; ++k) slopes[k] += f.slope_settled(slots(k), points.results[0][k], w);
    return w;
  }
  // Before the slopes of these rows.
  static void prepare(const FunctorState& loss, const Problem<T>& p, const Accumulators& acc, int64_t i0, int64_t rows) {
    if constexpr (HasSteps<F>::value) {
      const F f = options_of<F>(loss);
      for (int64_t r = 0; r < rows && loss.step_cells; ++r) {
        const int64_t i = i0 + r;
        Points<T> points = points_of(f, loss, p, acc);
        for (int64_t k = 0; k < p.positives[i]; ++k)
          points.add(*slot_limits_at(loss, p, i, k), slot_limits_at(loss, p, i, k)[slot_field(p)]);
        if (f.has_own(gather_fields<Limits, T>(limits_at(loss, i), p.stride)))
          points.add(T(1), f.own_weight(gather_fields<Slopes, T>(static_cast<const T*>(loss.slopes_at) + i, p.stride)));
        Steps<F, T>::prepare(points, range_of(loss, p, i), p.slot_stride, Steps<F, T>::row_of(acc, loss, r));
      }
    }
  }

  // Slots by search. Sorted ends of the anchor's intervals, then what cannot be reached up to a power of two less one.
  static T* breaks_at(const FunctorState& l, const Problem<T>& p, int64_t i) {
    return static_cast<T*>(l.breaks_at) + (i - p.slot_first) * l.search_cells;
  }
  static T* tallies_at(const FunctorState& l, const Problem<T>& p, int64_t i) {
    return static_cast<T*>(l.bins_at) + (i - p.slot_first) * l.search_cells;
  }
  static void sort_ends(const F& f, const FunctorState& loss, const Problem<T>& p, int64_t i, int64_t count) {
    T* breaks = breaks_at(loss, p, i);
    int64_t ends = 0;
    for (int64_t k = 0; k < count; ++k) {
      const Interval<T> range = interval_of(f, loss, p, i, k);
      if constexpr (SearchedEnds<F>::value == 2) breaks[ends++] = range.from;
      breaks[ends++] = range.to;
    }
    sort_numbers(breaks, ends, tallies_at(loss, p, i));                // the tallies come later: room to sort in
    for (const int64_t all = cells_above(ends) - 1; ends < all; ++ends) breaks[ends] = -Limit<T>::lowest;
  }
  static Interval<T> interval_of(const F& f, const FunctorState& loss, const Problem<T>& p, int64_t i, int64_t k) {
    return f.interval(gather_fields<typename Slot::Limits, T>(slot_limits_at(loss, p, i, k), slot_field(p)));
  }
  // From the bins of one anchor what comparing would have found, and how many intervals hold each bin.
  static void settle(const F& f, const FunctorState& loss, const Problem<T>& p, Bin* bins, int64_t i, Totals& total,
                     int thread) {
    const int64_t count = p.positives[i], ends = count * loss.search;
    const Search<T> search(breaks_at(loss, p, i), cells_above(ends));
    T* tallies = tallies_at(loss, p, i);
    for (int64_t b = 0; b <= ends; ++b) tallies[b] = 0;
    for (int64_t b = 1; b <= ends; ++b) bins[b] += bins[b - 1];        // now what is below break b
    for (int64_t k0 = 0; k0 < count; k0 += lanes) {
      const int64_t some = count - k0 < lanes ? count - k0 : lanes;
      V from = {}, to = {};
      for (int64_t q = 0; q < some; ++q) {
        const Interval<T> range = interval_of(f, loss, p, i, k0 + q);
        from[q] = range.from, to[q] = range.to;
      }
      typename Bits<T>::I first[lanes], last[lanes], above[lanes];
      search.template places<true>(from, first);
      search.template places<true>(to, last);
      search.places(from, above);
      for (int64_t q = 0; q < some; ++q) {
        Bin inside = {};
        if (from[q] < to[q]) {
          inside = bins[last[q]];
          if constexpr (SearchedEnds<F>::value == 2) inside -= bins[first[q]];
          tallies[above[q]] += 1;  // the first bin inside; after the last one it is taken away
          if (last[q] < ends) tallies[last[q] + 1] -= 1;
        }
        T* slot = slot_totals_at(loss, p, thread, i, k0 + q);
        auto sum = gather_fields<typename Slot::Sums, T>(slot, slot_field(p));
        f.gather(gather_fields<typename Slot::Limits, T>(slot_limits_at(loss, p, i, k0 + q), slot_field(p)), inside[0],
                 inside[1], total, sum);
        scatter_fields<T>(sum, slot, slot_field(p));
      }
    }
    for (int64_t b = 1; b <= ends; ++b) tallies[b] += tallies[b - 1];
  }
  static void begin(const FunctorState& loss, const Problem<T>& p, const Accumulators& acc, bool columns) {
    const F f = options_of<F>(loss);
    const Sums nothing = f.nothing();
    if (!columns) {
      T one[sums > 0 ? sums : 1];
      memcpy(one, &nothing, sums * sizeof(T));
      V wide[sums > 0 ? sums : 1];
      for (int k = 0; k < sums; ++k) wide[k] = splat<V>(one[k]);
      for (int64_t r = 0; r < p.tile_rows; ++r) memcpy(acc.rows + r * sums * sizeof(V), wide, sums * sizeof(V));
    } else {
      T* at = reinterpret_cast<T*>(acc.columns);
      for (int64_t j = 0; j < p.tile_columns; ++j) scatter_fields<T>(nothing, at + j, p.tile_columns);
    }
    if constexpr (F::kSlots) {
      if (loss.search) {
        memset(acc.row_slots, 0, p.tile_rows * loss.search_cells * sizeof(Bin));
        return;
      }
      if (loss.step_cells) {
        memset(acc.row_slots, 0, p.tile_rows * loss.step_cells * kCellTerms * sizeof(T));
        return;
      }
      const typename Slot::Sums none = f.nothing_slot();
      T one[slot_sums];
      memcpy(one, &none, sizeof one);
      if (!columns) {
        V* at = reinterpret_cast<V*>(acc.row_slots);
        for (int64_t k = 0; k < p.tile_rows * p.most_positives; ++k)
          for (int c = 0; c < slot_sums; ++c) at[k * slot_sums + c] = splat<V>(one[c]);
      } else {
        T* at = reinterpret_cast<T*>(acc.column_slots);
        for (int c = 0; c < slot_sums; ++c)
          for (int64_t k = 0; k < p.most_positives * p.tile_columns; ++k)
            at[c * p.most_positives * p.tile_columns + k] = one[c];
      }
    }
  }
  static void add_total(const F& f, const FunctorState& loss, const Problem<T>& p, const Sums& part, int64_t i, int thread) {
    double* at = totals_at(loss, p, thread, i);
    Totals total = gather_fields<Totals, double>(at, p.stride);
    f.merge(part, total);
    scatter_fields<double>(total, at, p.stride);
  }
  static void flush_rows(const FunctorState& loss, const Problem<T>& p, const Accumulators& acc, int64_t i0, int64_t rows,
                         int thread) {
    const F f = options_of<F>(loss);
    const WideSums* at = reinterpret_cast<const WideSums*>(acc.rows);
    for (int64_t r = 0; r < rows; ++r) {
      double* to = totals_at(loss, p, thread, i0 + r);
      Totals total = gather_fields<Totals, double>(to, p.stride);
      for (int q = 0; q < lanes; ++q) f.merge(lane<Sums, WideSums, V, T>(at[r], q), total);
      if constexpr (SearchedEnds<F>::value > 0)
        if (loss.search)
          settle(f, loss, p, reinterpret_cast<Bin*>(acc.row_slots) + r * loss.search_cells, i0 + r, total, thread);
      if constexpr (HasSteps<F>::value)
        if (loss.step_cells) settle_steps(f, loss, p, acc, r, i0 + r, total, thread);
      scatter_fields<double>(total, to, p.stride);
      if constexpr (F::kSlots) {
        if (loss.search || loss.step_cells) continue;
        const auto* slots = reinterpret_cast<const typename Slot::WideSums*>(acc.row_slots) + r * p.most_positives;
        for (int64_t k = 0; k < p.positives[i0 + r]; ++k) {
          T* slot = slot_totals_at(loss, p, thread, i0 + r, k);
          auto sum = gather_fields<typename Slot::Sums, T>(slot, slot_field(p));
          for (int q = 0; q < lanes; ++q)
            f.merge_slot(lane<typename Slot::Sums, typename Slot::WideSums, V, T>(slots[k], q), sum);
          scatter_fields<T>(sum, slot, slot_field(p));
        }
      }
    }
  }
  static void flush_columns(const FunctorState& loss, const Problem<T>& p, const Accumulators& acc, int64_t j0, int64_t columns,
                            int thread) {
    const F f = options_of<F>(loss);
    const T* at = reinterpret_cast<const T*>(acc.columns);
    for (int64_t j = 0; j < columns; ++j) add_total(f, loss, p, gather_fields<Sums, T>(at + j, p.tile_columns), j0 + j, thread);
    if constexpr (F::kSlots) {
      const T* slots = reinterpret_cast<const T*>(acc.column_slots);
      for (int64_t j = 0; j < columns; ++j)
        for (int64_t k = 0; k < p.positives[j0 + j]; ++k) {
          T* slot = slot_totals_at(loss, p, thread, j0 + j, k);
          auto sum = gather_fields<typename Slot::Sums, T>(slot, slot_field(p));
          f.merge_slot(gather_fields<typename Slot::Sums, T>(slots + k * p.tile_columns + j, p.most_positives * p.tile_columns),
                       sum);
          scatter_fields<T>(sum, slot, slot_field(p));
        }
    }
  }
  static void merge(const FunctorState& loss, const Problem<T>& p, int64_t from, int64_t to, int totals) {
    const F f = options_of<F>(loss);
    for (int64_t i = from; i < to; ++i) {
      Totals total = gather_fields<Totals, double>(totals_at(loss, p, 0, i), p.stride);
      for (int t = 1; t < totals; ++t) f.merge(gather_fields<Totals, double>(totals_at(loss, p, t, i), p.stride), total);
      scatter_fields<double>(total, sums_at(loss, i), p.stride);
      if constexpr (F::kSlots)
        for (int64_t k = 0; k < p.positives[i]; ++k) {
          auto sum = gather_fields<typename Slot::Sums, T>(slot_totals_at(loss, p, 0, i, k), slot_field(p));
          for (int t = 1; t < totals; ++t)
            f.merge_slot(gather_fields<typename Slot::Sums, T>(slot_totals_at(loss, p, t, i, k), slot_field(p)), sum);
          scatter_fields<T>(sum, slot_sums_at(loss, p, i, k), slot_field(p));
        }
    }
  }
  // The same of ranks, in their order: the sums that each has of the anchors [from, from + count), whose first field is at `parts`.
  static void merge_ranks(const FunctorState& loss, const Problem<T>& p, const T* parts, int ranks, int64_t step, int64_t from,
                          int64_t count) {
    const F f = options_of<F>(loss);
    for (int64_t i = 0; i < count; ++i) {
      auto total = convert_fields<Totals, double, T>(f.nothing());
      for (int r = 0; r < ranks; ++r) f.merge(gather_fields<Sums, T>(parts + r * step + i, count), total);
      scatter_fields<double>(total, sums_at(loss, from + i), p.stride);
    }
  }
  // Positive k of anchor i as an anchor: references and anchors are the same rows.
  static int64_t partner_index(const Problem<T>& p, int64_t i, int64_t k) {
    if (p.lists) return p.lists[p.starts[i] + k];
    const int64_t j = p.row_first[i] + k;
    return j >= i ? j + 1 : j;
  }
  static auto partner_of(const FunctorState& loss, const Problem<T>& p, int64_t i) {
    return [&loss, &p, i](int64_t k) { return gather_fields<Sums, T>(sums_at(loss, partner_index(p, i, k)), p.stride); };
  }
  struct Slots {  // the slots of one anchor, as a functor sees them
    const FunctorState& loss;
    const Problem<T>& p;
    int64_t i;
    auto operator()(int64_t k) const {
      return gather_fields<typename Slot::Sums, T>(slot_sums_at(loss, p, i, k), slot_field(p));
    }
    void put(int64_t k, const typename Slot::Sums& sums) const {
      scatter_fields<T>(sums, slot_sums_at(loss, p, i, k), slot_field(p));
    }
  };
  static void close(const FunctorState& loss, const Problem<T>& p, int64_t i, Positives<T> positives, T* values, T* counts) {
    const F f = options_of<F>(loss);
    const Limits limits = gather_fields<Limits, T>(limits_at(loss, i), p.stride);
    const Sums sums = gather_fields<Sums, T>(sums_at(loss, i), p.stride);
    if constexpr (HasSteps<F>::value)
      if (loss.step_cells) return f.close_settled(positives, limits, sums, Slots{loss, p, i}, values, counts);
    if constexpr (F::kSlots) {
      f.close(positives, limits, sums, Slots{loss, p, i}, values, counts);
    } else if constexpr (HasPartners<F>::value) {
      f.close(positives, limits, sums, partner_of(loss, p, i), values, counts);
    } else {
      f.close(positives, limits, sums, values, counts);
    }
  }
  // Also adds the slopes of the positives to `slopes`, one per positive.
  static void weigh(const FunctorState& loss, const Problem<T>& p, [[maybe_unused]] const Accumulators& acc, int64_t i,
                    Positives<T> positives, const T* cotangents, T* slopes) {
    const F f = options_of<F>(loss);
    const Limits limits = gather_fields<Limits, T>(limits_at(loss, i), p.stride);
    const Sums sums = gather_fields<Sums, T>(sums_at(loss, i), p.stride);
    Slopes w;
    if constexpr (F::kSlots) {
      const Slots slots{loss, p, i};
      bool settled = false;
      if constexpr (HasSteps<F>::value) {
        settled = loss.step_cells > 0;
        if (settled) w = weigh_steps(f, loss, p, acc, i, positives, limits, sums, cotangents, slopes);
      }
      if (!settled) {
        w = f.weigh(positives, limits, sums, slots, cotangents);
        if constexpr (SlopesTogether<F>::value) f.slopes_positive(positives, limits, sums, w, slots, slopes);
        else
          for (int64_t k = 0; k < positives.count; ++k) slopes[k] += f.slope_positive(positives[k], w, slots(k));
      }
      if constexpr (Reweighs<F>::value)
        for (int64_t k = 0; k < positives.count; ++k)  // from open_slot again: backward may run twice
          scatter_fields<T>(f.reweigh_slot(f.open_slot(positives[k]), slots(k), w, positives[k]), slot_limits_at(loss, p, i, k),
                            slot_field(p));
    } else if constexpr (HasPartners<F>::value) {
      auto theirs = [&](int64_t k) { return Cotangents<T>{p.cotangents + loss.value_row * p.A + partner_index(p, i, k), p.A}; };
      auto partner = partner_of(loss, p, i);
      w = f.weigh(positives, limits, sums, partner, cotangents, theirs);
      for (int64_t k = 0; k < positives.count; ++k) slopes[k] += f.slope_positive(positives[k], w, partner(k));
    } else {
      w = f.weigh(positives, limits, sums, cotangents);
      for (int64_t k = 0; k < positives.count; ++k) slopes[k] += f.slope_positive(positives[k], w);
    }
    scatter_fields<T>(w, static_cast<T*>(loss.slopes_at) + i, p.stride);
  }
};

DML_END
