// One kernel for several losses of a pass, in the place of one for each: a block lists the positives of its row once, and reads
// each similarity once. The losses and their order are types, so the run-time compiler makes these kernels for an ensemble
// (dmlcore/kernels/jit/sets.py). They take functors that look at a negative by itself: no slots, partners, centres or tables, and
// no windows. Sums are added up as in row_kernels.h. Device code only.
#pragma once
#include "cuda/row_kernels.h"

DML_BEGIN

constexpr int kMostOfSet = 16;  // losses: what they are told stays below 4 KB of arguments

struct LossSet { RowsLoss of[kMostOfSet]; };

// The functors one after the other, as the host lays their options out; and a state of each.
template <class... F> struct FunctorSet;
template <class F> struct FunctorSet<F> { F first; };
template <class F, class G, class... Rest> struct FunctorSet<F, G, Rest...> {
  F first;
  FunctorSet<G, Rest...> rest;
};
template <template <class> class State, class... F> struct States;
template <template <class> class State, class F> struct States<State, F> { State<F> first; };
template <template <class> class State, class F, class G, class... Rest> struct States<State, F, G, Rest...> {
  State<F> first;
  States<State, G, Rest...> rest;
};

template <class F> struct Collecting {
  typename RowParts<F>::Limits limits;
  typename RowParts<F>::Sums total, sums;
};
template <class F> struct Sloping { typename RowParts<F>::Slopes slopes; };

// Calls work(functor, state, loss) for each of the set.
template <template <class> class State, class F, class... Rest, class Work>
__device__ __forceinline__ void for_members(const FunctorSet<F, Rest...>& set, States<State, F, Rest...>& states,
                                            const RowsLoss* losses, Work work) {
  work(set.first, states.first, *losses);
  if constexpr (sizeof...(Rest) > 0) for_members<State>(set.rest, states.rest, losses + 1, work);
}

template <class F> DML_FN constexpr bool can_join() {
  return !F::kSlots && !HasPartners<F>::value && !HasCentres<F>::value && !HasTable<F>::value && !IsCpuOnly<F>::value;
}
template <class F, class... Rest> DML_FN constexpr bool all_can_join() {
  if constexpr (sizeof...(Rest) > 0) return can_join<F>() && all_can_join<Rest...>();
  else return can_join<F>();
}
template <class F, class... Rest> DML_FN constexpr int most_merged() {
  if constexpr (sizeof...(Rest) > 0)
    return RowParts<F>::merged > most_merged<Rest...>() ? RowParts<F>::merged : most_merged<Rest...>();
  else return RowParts<F>::merged;
}

// The steps of a member; where row_kernels.h wants the memory of the row, what the first member listed there.
template <class F> __device__ __forceinline__ void begin(const F& f, Collecting<F>& state, const RowsView& v, const RowsLoss& m,
                                                         const Row& row) {
  state.limits = gather_fields<typename RowParts<F>::Limits, float>(m.limits + row.anchor, v.A);
  state.total = f.nothing(), state.sums = f.nothing();
}
template <class F> __device__ __forceinline__ void settle(const F& f, Collecting<F>& state) {
  f.merge(state.sums, state.total);
  state.sums = f.nothing();
}
template <class F>
__device__ __forceinline__ void store(const F& f, Collecting<F>& state, const RowsView& v, const RowsChunk& c,
                                      const RowsLoss& m, const Row& row, float* list, int width, Positives<float> p,
                                      float* shared) {
  using Sums = typename RowParts<F>::Sums;
  const auto merge = [&](const auto& a, auto& b) { f.merge(a, b); };
  const auto sums = merge_block(state.total, shared, merge);
  if (threadIdx.x != 0) return;
  auto total = c.first ? f.nothing() : gather_fields<Sums, float>(m.sums + row.anchor, v.A);
  merge(sums, total);
  scatter_fields<float>(total, m.sums + row.anchor, v.A);
  if (c.last) report_row(f, v, m, row, RowMemory<F>(list, width), p);
}
template <class F>
__device__ __forceinline__ void weigh_member(const F& f, const RowsView& v, const RowsLoss& m, const Row& row, float* list,
                                             int width, Positives<float> p) {
  weigh_row(f, v, m, row, RowMemory<F>(list, width), p);
}
template <class F>
__device__ __forceinline__ void begin(Sloping<F>& state, const RowsView& v, const RowsLoss& m, const Row& row) {
  state.slopes = gather_fields<typename RowParts<F>::Slopes, float>(m.slopes + row.anchor, v.A);
}

template <class First, class... Rest> __global__ void __launch_bounds__(kMostThreads, kBlocksOfOne)
    rows_forward_set(FunctorSet<First, Rest...> set, RowsView v, RowsChunk c, LossSet m) {
  static_assert(all_can_join<First, Rest...>() && sizeof...(Rest) < kMostOfSet, "these losses do not share a kernel");
  [[maybe_unused]] __shared__ float shared[most_merged<First, Rest...>()];
  visit_rows<First>(v, c, m.of[0], [&](const Row& row, const RowMemory<First>& memory) {
    const Positives<float> p{memory.list, c.first || c.last ? list_positives<First>(v, c, m.of[0], row, memory) : 0};
    States<Collecting, First, Rest...> states;
    if (c.first) {
      if (threadIdx.x == 0)
        for_members<Collecting>(set, states, m.of,
                                [&](const auto& f, auto&, const RowsLoss& of) { open_row(f, v, of, row, p); });
      __syncthreads();
    }
    for_members<Collecting>(set, states, m.of,
                            [&](const auto& f, auto& state, const RowsLoss& of) { begin(f, state, v, of, row); });
    const auto settle_all = [&] {
      for_members<Collecting>(set, states, m.of, [](const auto& f, auto& state, const RowsLoss&) { settle(f, state); });
    };
    int waiting = 0;
    for (int k = threadIdx.x; k < c.columns; k += blockDim.x) {
      const float s = row.negative(c, k);
      for_members<Collecting>(set, states, m.of,
                              [&](const auto& f, auto& state, const RowsLoss&) { f.collect(s, state.limits, state.sums); });
      if (++waiting == kRun) settle_all(), waiting = 0;
    }
    settle_all();
    for_members<Collecting>(set, states, m.of, [&](const auto& f, auto& state, const RowsLoss& of) {
      store(f, state, v, c, of, row, memory.list, memory.width, p, shared);
    });
  });
}

template <class First, class... Rest> __global__ void __launch_bounds__(kMostThreads, kBlocksOfOne)
    rows_backward_set(FunctorSet<First, Rest...> set, RowsView v, RowsChunk c, LossSet m) {
  visit_rows<First>(v, c, m.of[0], [&](const Row& row, const RowMemory<First>& memory) {
    const bool meets = v.lists || (row.first < c.column0 + c.columns && row.last > c.column0);
    const Positives<float> p{memory.list, c.first || meets ? list_positives<First>(v, c, m.of[0], row, memory) : 0};
    States<Sloping, First, Rest...> states;
    if (c.first) {
      if (threadIdx.x == 0)
        for_members<Sloping>(set, states, m.of, [&](const auto& f, auto&, const RowsLoss& of) {
          weigh_member(f, v, of, row, memory.list, memory.width, p);
        });
      __syncthreads();
    }
    for_members<Sloping>(set, states, m.of, [&](const auto&, auto& state, const RowsLoss& of) { begin(state, v, of, row); });
    for (int k = threadIdx.x; k < c.columns; k += blockDim.x) {
      const float s = row.negative(c, k);
      float slope = m.of[0].adds ? row.g[k] : 0.0f;
      for_members<Sloping>(set, states, m.of,
                           [&](const auto& f, auto& state, const RowsLoss&) { slope += f.slope_negative(s, state.slopes); });
      row.g[k] = slope;
    }
    if (!meets) return;
    __syncthreads();
    for (int q = threadIdx.x; q < int(p.count); q += blockDim.x) {
      const int k = row.column(v, q) - c.column0;
      if (k < 0 || k >= c.columns) continue;
      float slope = row.g[k];
      for_members<Sloping>(set, states, m.of,
                           [&](const auto& f, auto& state, const RowsLoss&) { slope += f.slope_positive(p[q], state.slopes); });
      row.g[k] = slope;
    }
  });
}

DML_END
