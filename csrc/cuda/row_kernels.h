// The kernels of one functor over a chunk of products, one block per row of it. The threads share the row's negatives; what
// concerns the anchor as a whole (open, close, weigh) is thread 0's. A thread adds up its part, a block merges the parts in a
// fixed order: the same inputs give the same bits. Device code only, as rows.h: the run-time compiler takes it.
//   rows_forward         lists the positives, opens, collects; with the last chunk of a row closes
//   rows_close           closes functors with partners, when all rows are collected
//   rows_backward        weighs with the first chunk of a row; turns similarities into slopes
// Every kernel compiles for every functor; those that do not concern it are empty.
// A loss that compares every positive with every negative needs whole rows. Its slots lie in the block's memory and are found
// again in backward, so that none are kept per anchor.
#pragma once
#include "cuda/rows.h"

DML_BEGIN

constexpr int kBlocksOfOne = 2;  // per multiprocessor at least: up to 128 registers a thread; left alone, ptxas spills at 48
constexpr int kRun = 256;  // terms a thread adds one by one before they go to a total
constexpr int kSlotsAtOnce = 4;  // positives compared with a negative that was read once

template <class F> struct RowParts {
  using Limits = typename F::template Limits<float>;
  using Sums = typename F::template Sums<float>;
  using Slopes = typename F::template Slopes<float>;
  using Slot = SlotTypes<F, float, float>;
  static constexpr int sums = field_count<Sums, float>(), slot_sums = field_count<typename Slot::Sums, float>();
  static constexpr int merged = kMostWarps * (sums > slot_sums ? sums
                                              : slot_sums > 0  ? slot_sums
                                                               : 1);  // shared memory of merge_block
  static constexpr int values = F::kValues > 0 ? F::kValues : 1;
};

template <class S> __device__ __forceinline__ S from_lane_below(const S& in, int step) {
  if constexpr (__is_empty(S)) return in;
  else {
    float fields[field_count<S, float>()];
    scatter_fields<float>(in, fields, 1);
#pragma unroll
    for (int f = 0; f < field_count<S, float>(); ++f) fields[f] = __shfl_down_sync(0xffffffffu, fields[f], step);
    return gather_fields<S, float>(fields, 1);
  }
}
// All threads' parts in one; only thread 0 gets the result. `shared`: kMostWarps per field.
template <class S, class Merge> __device__ __forceinline__ S merge_block(S mine, float* shared, Merge merge) {
  if constexpr (!__is_empty(S)) {
#pragma unroll 1
    for (int step = kWarp / 2; step > 0; step /= 2) merge(from_lane_below(mine, step), mine);
    if (blockDim.x > kWarp) {
      if (threadIdx.x % kWarp == 0) scatter_fields<float>(mine, shared + threadIdx.x / kWarp, kMostWarps);
      __syncthreads();
      if (threadIdx.x == 0)
        for (int w = 1; w < int(blockDim.x / kWarp); ++w) merge(gather_fields<S, float>(shared + w, kMostWarps), mine);
      __syncthreads();
    }
  }
  return mine;
}

// A positive of the anchor as an anchor.
template <class F> struct Partners {
  const RowsView& v;
  const RowsLoss& m;
  const Row& row;
  struct Cotangents {
    const float* at;
    size_t stride;
    __device__ float operator[](int value) const { return at[value * stride]; }
  };
  __device__ typename RowParts<F>::Sums operator()(long long k) const {
    return gather_fields<typename RowParts<F>::Sums, float>(m.sums + row.column(v, int(k)), v.A);
  }
  __device__ Cotangents cotangents(long long k) const { return {m.cotangents + v.caller(row.column(v, int(k))), size_t(v.A)}; }
};

template <class F>
__device__ __forceinline__ void open_row(const F& f, const RowsView& v, const RowsLoss& m, const Row& row, Positives<float> p) {
  typename RowParts<F>::Limits limits;
  if constexpr (GivenCount<F>::value > 0) {
    float given[GivenCount<F>::value];
    for (int k = 0; k < GivenCount<F>::value; ++k) given[k] = m.given[size_t(k) * v.A + v.caller(row.anchor)];
    limits = f.open(p, given);
  } else {
    limits = f.open(p);
  }
  scatter_fields<float>(limits, m.limits + row.anchor, v.A);
}

template <class F>
__device__ __forceinline__ void close_row(const F& f, const RowsView& v, const RowsLoss& m, const Row& row,
                                          const RowMemory<F>& memory, Positives<float> p, float* values, float* counts) {
  using P = RowParts<F>;
  const auto limits = gather_fields<typename P::Limits, float>(m.limits + row.anchor, v.A);
  const auto sums = gather_fields<typename P::Sums, float>(m.sums + row.anchor, v.A);
  if constexpr (F::kSlots) f.close(p, limits, sums, memory, values, counts);
  else if constexpr (HasPartners<F>::value) f.close(p, limits, sums, Partners<F>{v, m, row}, values, counts);
  else f.close(p, limits, sums, values, counts);
}
template <class F>
__device__ __forceinline__ void report_row(const F& f, const RowsView& v, const RowsLoss& m, const Row& row,
                                           const RowMemory<F>& memory, Positives<float> p) {
  float values[RowParts<F>::values], counts[RowParts<F>::values];
  close_row(f, v, m, row, memory, p, values, counts);
  float factor = v.factors[row.anchor];
  if (*v.broken) factor = __int_as_float(0x7fc00000);
  const long long at = v.caller(row.anchor);
  for (int k = 0; k < F::kValues; ++k) {
    m.values[size_t(k) * v.A + at] = factor == factor ? values[k] : factor;
    m.counts[size_t(k) * v.A + at] = factor == factor ? counts[k] : 1.0f;
  }
}

// One thread's part of a row's negatives.
template <class F>
__device__ __forceinline__ typename RowParts<F>::Sums collect_row(const F& f, const RowsView& v, const RowsChunk& c,
                                                                  const RowsLoss& m, const Row& row) {
  using P = RowParts<F>;
  const auto limits = gather_fields<typename P::Limits, float>(m.limits + row.anchor, v.A);
  typename P::Sums total = f.nothing(), sums = f.nothing();
  int step = 1;
  if constexpr (HasCentres<F>::value) step = int(f.centres);
  int waiting = 0;
  for (int k = threadIdx.x * step; k < c.columns; k += blockDim.x * step) {
    if constexpr (HasCentres<F>::value) {
      if (!row.holds(c.column0 + k)) f.collect(f.fold(row.s + k, (long long)step).similarity, limits, sums);
    } else {
      f.collect(row.negative(c, k), limits, sums);
    }
    if (++waiting == kRun) {
      f.merge(sums, total);
      sums = f.nothing(), waiting = 0;
    }
  }
  f.merge(sums, total);
  return total;
}

// The same for slots: opens those of all positives, and leaves their sums in the block's memory.
template <class F>
__device__ __forceinline__ typename RowParts<F>::Sums collect_slots(const F& f, const RowsChunk& c, const Row& row,
                                                                    const RowMemory<F>& memory, Positives<float> p,
                                                                    float* shared) {
  using P = RowParts<F>;
  for (int k = threadIdx.x; k < int(p.count); k += blockDim.x) memory.put_near(k, f.open_slot(p[k]));
  __syncthreads();
  typename P::Sums total = f.nothing();
  if constexpr (HasOnce<F>::value)
    for (int k = threadIdx.x; k < c.columns; k += blockDim.x) f.once(f.measure(row.negative(c, k)), total);
#pragma unroll 1
  for (int q0 = 0; q0 < int(p.count); q0 += kSlotsAtOnce) {
    typename P::Slot::Limits near[kSlotsAtOnce];
    typename P::Slot::Sums slots[kSlotsAtOnce];
    typename P::Sums sums = f.nothing();
#pragma unroll
    for (int q = 0; q < kSlotsAtOnce; ++q) {
      near[q] = q0 + q < int(p.count) ? memory.near(q0 + q) : f.absent_slot();
      slots[q] = f.nothing_slot();
    }
#pragma unroll 1
    for (int k = threadIdx.x; k < c.columns; k += blockDim.x) {
      const float measured = f.measure(row.negative(c, k));
#pragma unroll
      for (int q = 0; q < kSlotsAtOnce; ++q) {
        if (q0 + q < int(p.count)) f.collect(measured, near[q], sums, slots[q]);
      }
    }
    f.merge(sums, total);
#pragma unroll
    for (int q = 0; q < kSlotsAtOnce; ++q) {
      if (q0 + q >= int(p.count)) break;
      const auto slot = merge_block(slots[q], shared, [&](const auto& a, auto& b) { f.merge_slot(a, b); });
      if (threadIdx.x == 0) memory.put(q0 + q, slot);
    }
  }
  __syncthreads();
  return total;
}

template <class F> __global__ void __launch_bounds__(kMostThreads, kBlocksOfOne)
    rows_forward(F f, RowsView v, RowsChunk c, RowsLoss m) {
  using P = RowParts<F>;
  __shared__ float shared[P::merged];
  if constexpr (!HasTable<F>::value)
    visit_rows<F>(v, c, m, [&](const Row& row, const RowMemory<F>& memory) {
      const bool closes = c.last && !HasPartners<F>::value;
      Positives<float> p{memory.list, c.first || closes ? list_positives<F>(v, c, m, row, memory) : 0};
      if (c.first) {
        if (threadIdx.x == 0) open_row(f, v, m, row, p);
        __syncthreads();
      }
      typename P::Sums part;
      if constexpr (F::kSlots) part = collect_slots(f, c, row, memory, p, shared);
      else part = collect_row(f, v, c, m, row);
      auto merge = [&](const auto& a, auto& b) { f.merge(a, b); };
      const auto sums = merge_block(part, shared, merge);
      if (threadIdx.x != 0) return;
      auto total = c.first ? f.nothing() : gather_fields<typename P::Sums, float>(m.sums + row.anchor, v.A);
      merge(sums, total);
      scatter_fields<float>(total, m.sums + row.anchor, v.A);
      if (closes) report_row(f, v, m, row, memory, p);
    });
}

template <class F> __global__ void __launch_bounds__(kMostThreads, kBlocksOfOne)
    rows_close(F f, RowsView v, RowsChunk c, RowsLoss m) {
  if constexpr (!HasTable<F>::value)
    visit_rows<F>(v, c, m, [&](const Row& row, const RowMemory<F>& memory) {
      const Positives<float> p{memory.list, list_positives<F>(v, c, m, row, memory)};
      if (threadIdx.x == 0) report_row(f, v, m, row, memory, p);
    });
}

template <class F>
__device__ __forceinline__ void weigh_row(const F& f, const RowsView& v, const RowsLoss& m, const Row& row,
                                          const RowMemory<F>& memory, Positives<float> p) {
  using P = RowParts<F>;
  const auto limits = gather_fields<typename P::Limits, float>(m.limits + row.anchor, v.A);
  const auto sums = gather_fields<typename P::Sums, float>(m.sums + row.anchor, v.A);
  float cotangents[P::values];
  for (int k = 0; k < F::kValues; ++k) cotangents[k] = m.cotangents[size_t(k) * v.A + v.caller(row.anchor)];
  typename P::Slopes w;
  if constexpr (F::kSlots) {
    if constexpr (SlopesTogether<F>::value) {  // what close leaves in the slots
      float values[P::values], counts[P::values];
      close_row(f, v, m, row, memory, p, values, counts);
    }
    w = f.weigh(p, limits, sums, memory, cotangents);
    if constexpr (SlopesTogether<F>::value) {
      for (int k = 0; k < int(p.count); ++k) memory.to[k] = 0.0f;
      f.slopes_positive(p, limits, sums, w, memory, memory.to);
    }
  } else if constexpr (HasPartners<F>::value) {
    const Partners<F> partners{v, m, row};
    w = f.weigh(p, limits, sums, partners, cotangents, [&](long long k) { return partners.cotangents(k); });
  } else {
    w = f.weigh(p, limits, sums, cotangents);
  }
  scatter_fields<float>(w, m.slopes + row.anchor, v.A);
}

// cotangent * d value / d similarity of the negatives of a row; 0 where there is none.
template <class F>
__device__ __forceinline__ void slope_negatives(const F& f, const RowsChunk& c, const RowsLoss& m, const Row& row,
                                                const RowMemory<F>& memory, int count, const typename RowParts<F>::Slopes& w) {
  auto put = [&](int k, float slope) { row.g[k] = m.adds ? row.g[k] + slope : slope; };
  if constexpr (HasCentres<F>::value) {
    const int centres = int(f.centres);
    for (int k = threadIdx.x * centres; k < c.columns; k += blockDim.x * centres) {
      const bool counts = !row.holds(c.column0 + k);
      const auto fold = f.fold(row.s + k, (long long)centres);
      const float slope = counts ? f.slope_negative(fold.similarity, w) : 0.0f;
      for (int q = 0; q < centres; ++q) put(k + q, counts ? slope * f.share(row.s[k + q], fold) : 0.0f);
    }
  } else {
#pragma unroll 1
    for (int k = threadIdx.x; k < c.columns; k += blockDim.x) {
      const float s = row.negative(c, k);
      if constexpr (F::kSlots) {
        const float measured = f.measure(s);
        float tally = 0.0f;
#pragma unroll 2
        for (int q = 0; q < count; ++q) tally += f.tally(measured, memory.near(q));
        put(k, f.finish(s, measured, tally, w));
      } else {
        put(k, f.slope_negative(s, w));
      }
    }
  }
}

template <class F>
__device__ __forceinline__ float slope_of_positive(const F& f, const RowsView& v, const RowsLoss& m, const Row& row,
                                                   const RowMemory<F>& memory, int q, const typename RowParts<F>::Slopes& w) {
  if constexpr (SlopesTogether<F>::value) return memory.to[q];
  else if constexpr (F::kSlots) return f.slope_positive(memory.list[q], w, memory(q));
  else if constexpr (HasPartners<F>::value) return f.slope_positive(memory.list[q], w, Partners<F>{v, m, row}(q));
  else return f.slope_positive(memory.list[q], w);
}

template <class F> __global__ void __launch_bounds__(kMostThreads, kBlocksOfOne)
    rows_backward(F f, RowsView v, RowsChunk c, RowsLoss m) {
  using P = RowParts<F>;
  __shared__ float shared[P::merged];
  if constexpr (!HasTable<F>::value)
    visit_rows<F>(v, c, m, [&](const Row& row, const RowMemory<F>& memory) {
      const bool meets = v.lists || (row.first < c.column0 + c.columns && row.last > c.column0);
      const Positives<float> p{memory.list, c.first || meets ? list_positives<F>(v, c, m, row, memory) : 0};
      if constexpr (F::kSlots) collect_slots(f, c, row, memory, p, shared);
      if (c.first) {
        if (threadIdx.x == 0) weigh_row(f, v, m, row, memory, p);
        __syncthreads();
      }
      const auto w = gather_fields<typename P::Slopes, float>(m.slopes + row.anchor, v.A);
      if constexpr (Reweighs<F>::value) {
        for (int k = threadIdx.x; k < int(p.count); k += blockDim.x)
          memory.put_near(k, f.reweigh_slot(memory.near(k), memory(k), w, p[k]));
        __syncthreads();
      }
      slope_negatives(f, c, m, row, memory, int(p.count), w);
      if (!meets) return;
      __syncthreads();
      for (int q = threadIdx.x; q < int(p.count); q += blockDim.x) {
        const int k = row.column(v, m.windows ? memory.which[q] : q) - c.column0;
        if (k >= 0 && k < c.columns) row.g[k] += slope_of_positive(f, v, m, row, memory, q, w);
      }
    });
}

DML_END
