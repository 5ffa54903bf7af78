// The kernels of one functor.
//   open, close, weigh   a block per anchor: its threads compute the similarities to the positives, thread 0 runs the functor.
//                        Lists over kShortList lie in global memory; a few blocks of more threads take those anchors in turn.
//   collect              a block per 64 anchors and split of the references: a tile of similarities in shared memory, then
//                        four threads per anchor, each with partial sums of its own, merged at the end in order of the threads
//                        and, in close, of the splits. With slots the four share the positives; each slot has one writer.
//   gradient             a block per 64 owners (anchors or references) and 128 dimensions: the tile again, turned into slopes
//                        in place, times the other side's vectors. Positives are in the tile too.
#pragma once
#include "dml/fields.h"
#include "cuda/losses.h"

DML_BEGIN

constexpr int kGradientWidth = 128;  // dimensions of a block of `gradient`
constexpr int kGradientCells = kGradientWidth / kLanes;
constexpr int kGradientRows = 16;  // vectors of the other side in shared memory at a time
constexpr int kRowThreads = kThreads / kTile;  // threads that share an anchor of a tile
constexpr int kTilesInFloat = 16;  // a thread adds 256 terms in float32 before they go to a total in double

template <class F> struct Parts {
  using Limits = typename F::template Limits<float>;
  using Sums = typename F::template Sums<float>;
  using Totals = typename F::template Sums<double>;  // what many partial sums are merged in
  using Slopes = typename F::template Slopes<float>;
  using SlotLimits = typename SlotTypes<F, float, float>::Limits;
  using SlotSums = typename SlotTypes<F, float, float>::Sums;
};

template <class S> __device__ __forceinline__ S read_slot(const float* slots, const LossMemory& m, int A, int anchor,
                                                          int positive) {
  return gather_fields<S, float>(slots + size_t(positive) * A + anchor, size_t(m.most_positives) * A);
}
template <class S> __device__ __forceinline__ void write_slot(const S& in, float* slots, const LossMemory& m, int A, int anchor,
                                                              int positive) {
  scatter_fields<float>(in, slots + size_t(positive) * A + anchor, size_t(m.most_positives) * A);
}

// Calls work(anchor, positives) by all threads of the block, for the block's anchors.
template <class Work> __device__ __forceinline__ void visit_anchors(const View& v, float* long_lists, Work work) {
  __shared__ float short_list[kShortList];
  float* list = long_lists ? long_lists + size_t(blockIdx.x) * v.N : short_list;
  for (int i = blockIdx.x; i < v.A; i += gridDim.x) {
    const ClassRange range = class_range(v, i);
    const int count = range.count();
    if ((count > kShortList) != (long_lists != nullptr)) continue;  // the other launch's
    for (int k = threadIdx.x; k < count; k += blockDim.x)
      list[k] = pair_product(v.anchors + size_t(i) * v.D, v.references + size_t(range.reference(k)) * v.D, v.D);
    __syncthreads();
    work(i, Positives<float>{list, count});
    __syncthreads();
  }
}

template <class F> __global__ void open_kernel(F f, View v, LossMemory m, float* long_lists) {
  using P = Parts<F>;
  visit_anchors(v, long_lists, [&](int i, Positives<float> positives) {
    if (threadIdx.x == 0) scatter_fields<float>(f.open(positives), m.limits + i, v.A);
    if constexpr (F::kSlots) {
      for (int k = threadIdx.x; k < positives.count; k += blockDim.x) {
        write_slot<typename P::SlotLimits>(f.open_slot(positives[k]), m.slot_limits, m, v.A, i, k);
        write_slot<typename P::SlotSums>(f.nothing_slot(), m.slot_sums, m, v.A, i, k);
      }
    }
  });
}

template <class F> __global__ void close_kernel(F f, View v, LossMemory m, RowsOut out, float* long_lists) {
  using P = Parts<F>;
  visit_anchors(v, long_lists, [&](int i, Positives<float> positives) {
    if (threadIdx.x != 0) return;
    const auto limits = gather_fields<typename P::Limits, float>(m.limits + i, v.A);
    constexpr int fields = field_count<typename P::Sums, float>();
    auto total = convert_fields<typename P::Totals, double, float>(f.nothing());
    for (int split = 0; split < m.splits; ++split)
      f.merge(gather_fields<typename P::Sums, float>(m.partial + size_t(split) * fields * v.A + i, v.A), total);
    const auto sums = convert_fields<typename P::Sums, float, double>(total);
    scatter_fields<float>(sums, m.sums + i, v.A);
    float values[F::kValues], counts[F::kValues];
    if constexpr (F::kSlots) {
      auto slot = [&](long long k) { return read_slot<typename P::SlotSums>(m.slot_sums, m, v.A, i, int(k)); };
      f.close(positives, limits, sums, slot, values, counts);
    } else {
      f.close(positives, limits, sums, values, counts);
    }
    const float factor = out.factors[i];
    for (int k = 0; k < F::kValues; ++k) {
      out.values[size_t(k) * v.A + out.order[i]] = factor == factor ? values[k] : factor;
      out.counts[size_t(k) * v.A + out.order[i]] = factor == factor ? counts[k] : 1.0f;
    }
  });
}

template <class F> __global__ void weigh_kernel(F f, View v, LossMemory m, const int64_t* order, const float* from,
                                                float* long_lists) {
  using P = Parts<F>;
  visit_anchors(v, long_lists, [&](int i, Positives<float> positives) {
    if (threadIdx.x != 0) return;
    const auto limits = gather_fields<typename P::Limits, float>(m.limits + i, v.A);
    const auto sums = gather_fields<typename P::Sums, float>(m.sums + i, v.A);
    float cotangents[F::kValues];
    for (int k = 0; k < F::kValues; ++k) cotangents[k] = from[size_t(k) * v.A + order[i]];
    if constexpr (F::kSlots) {
      auto slot = [&](long long k) { return read_slot<typename P::SlotSums>(m.slot_sums, m, v.A, i, int(k)); };
      const auto slopes = f.weigh(positives, limits, sums, slot, cotangents);
      scatter_fields<float>(slopes, m.slopes + i, v.A);
      if constexpr (Reweighs<F>::value)
        for (int k = 0; k < positives.count; ++k)
          write_slot(f.reweigh_slot(f.open_slot(positives[k]), slot(k), slopes, positives[k]), m.slot_limits, m, v.A, i, k);
    } else {
      scatter_fields<float>(f.weigh(positives, limits, sums, cotangents), m.slopes + i, v.A);
    }
  });
}

// The references [first, last) of this block's split, in whole tiles.
struct Columns {
  int first, last;
};
__device__ __forceinline__ Columns columns_of_split(int N, int split, int splits) {
  const int tiles = (N + kTile - 1) / kTile;
  const int first = int(int64_t(tiles) * split / splits) * kTile, last = int(int64_t(tiles) * (split + 1) / splits) * kTile;
  return {first, last < N ? last : N};
}

template <class F> __global__ void __launch_bounds__(kThreads) collect_kernel(F f, View v, LossMemory m) {
  using P = Parts<F>;
  using Sums = typename P::Sums;
  constexpr int fields = field_count<Sums, float>();
  constexpr int flush = F::kSlots ? 1 : kTilesInFloat;
  __shared__ TileMemory memory;
  __shared__ float parts[kTile][(field_count<Sums, float>() > 0 ? field_count<Sums, float>() : 1) * kRowThreads + 1];
  const int i0 = blockIdx.x * kTile, row = threadIdx.x / kRowThreads, part = threadIdx.x % kRowThreads;
  const int i = i0 + row < v.A ? i0 + row : v.A - 1;  // rows beyond the last repeat it and are not written
  const ClassRange range = class_range(v, i);
  const auto limits = gather_fields<typename P::Limits, float>(m.limits + i, v.A);
  const Columns columns = columns_of_split(v.N, blockIdx.y, gridDim.y);
  auto total = convert_fields<typename P::Totals, double, float>(f.nothing());
  Sums sums = f.nothing();
  int waiting = 0;
  for (int j0 = columns.first; j0 < columns.last; j0 += kTile) {
    tile_products(v.anchors, i0, v.A, v.references, j0, v.N, v.D, memory);
    if constexpr (F::kSlots) {
      float* cells = memory.cells[row];
      for (int c = part; c < kTile; c += kRowThreads)
        cells[c] = f.measure(j0 + c >= v.N || range.holds(j0 + c) ? no_pair() : cells[c]);
      __syncthreads();
      for (int k = part; k < (i0 + row < v.A ? range.count() : 0); k += kRowThreads) {
        const auto near = read_slot<typename P::SlotLimits>(m.slot_limits, m, v.A, i, k);
        auto slot = read_slot<typename P::SlotSums>(m.slot_sums, m, v.A, i, k);
#pragma unroll 4
        for (int c = 0; c < kTile; ++c) f.collect(cells[c], near, sums, slot);
        write_slot(slot, m.slot_sums, m, v.A, i, k);
      }
    } else {
#pragma unroll 4
      for (int c = part; c < kTile; c += kRowThreads)
        f.collect(j0 + c >= v.N || range.holds(j0 + c) ? no_pair() : memory.cells[row][c], limits, sums);
    }
    if (++waiting == flush) {
      f.merge(sums, total);
      sums = f.nothing();
      waiting = 0;
    }
  }
  f.merge(sums, total);
  scatter_fields<float>(convert_fields<Sums, float, double>(total), &parts[row][part], kRowThreads);
  __syncthreads();
  if (part == 0 && i0 + row < v.A) {
    auto all = convert_fields<typename P::Totals, double, float>(f.nothing());
    for (int k = 0; k < kRowThreads; ++k) f.merge(gather_fields<Sums, float>(&parts[row][k], kRowThreads), all);
    scatter_fields<float>(convert_fields<Sums, float, double>(all), m.partial + size_t(blockIdx.y) * fields * v.A + i, v.A);
  }
}

// cotangent * d value / d similarity of one pair of anchor and reference.
template <class F>
__device__ __forceinline__ float pair_slope(const F& f, const View& v, const LossMemory& m,
                                            const typename Parts<F>::Slopes& slopes, const ClassRange& range, int anchor,
                                            int reference, float s) {
  using P = Parts<F>;
  if (range.holds(reference)) {
    if (reference == range.own) return 0.0f;
    if constexpr (F::kSlots)
      return f.slope_positive(s, slopes,
                              read_slot<typename P::SlotSums>(m.slot_sums, m, v.A, anchor, range.positive(reference)));
    else return f.slope_positive(s, slopes);
  }
  if constexpr (F::kSlots) {
    const float measured = f.measure(s);
    float tally = 0.0f;
    for (int k = 0; k < range.count(); ++k)
      tally += f.tally(measured, read_slot<typename P::SlotLimits>(m.slot_limits, m, v.A, anchor, k));
    return f.finish(s, measured, tally, slopes);
  } else {
    return f.slope_negative(s, slopes);
  }
}

template <class F> __global__ void __launch_bounds__(kThreads) gradient_kernel(F f, View v, LossMemory m, Owners o) {
  using Slopes = typename Parts<F>::Slopes;
  __shared__ TileMemory memory;
  __shared__ float vectors[kGradientRows][kGradientWidth];
  const int i0 = blockIdx.x * kTile, d0 = blockIdx.y * kGradientWidth;
  const int row = threadIdx.x / kRowThreads, part = threadIdx.x % kRowThreads, i = i0 + row;
  const int top = threadIdx.x / kLanes * kCells, left = threadIdx.x % kLanes;
  Slopes own{};
  ClassRange own_range{};
  if (o.by_owner && i < o.count) own = gather_fields<Slopes, float>(m.slopes + i, v.A), own_range = class_range(v, i);
  float grad[kCells][kGradientCells];
#pragma unroll
  for (int r = 0; r < kCells; ++r)
#pragma unroll
    for (int q = 0; q < kGradientCells; ++q) grad[r][q] = 0.0f;

  for (int j0 = 0; j0 < o.other_count; j0 += kTile) {
    tile_products(o.vectors, i0, o.count, o.others, j0, o.other_count, v.D, memory);
#pragma unroll 1
    for (int c = part; c < kTile; c += kRowThreads) {  // similarities become slopes in place
      const int j = j0 + c;
      const float s = memory.cells[row][c];
      float slope = 0.0f;
      if (i < o.count && j < o.other_count) {
        if (o.by_owner) slope = pair_slope(f, v, m, own, own_range, i, j, s);
        if (o.by_other) slope += pair_slope(f, v, m, gather_fields<Slopes, float>(m.slopes + j, v.A), class_range(v, j), j, i, s);
      }
      memory.cells[row][c] = slope;
    }
    for (int c0 = 0; c0 < kTile && j0 + c0 < o.other_count; c0 += kGradientRows) {
      __syncthreads();  // the slopes are written, the last vectors have been read
      for (int cell = threadIdx.x; cell < kGradientRows * kGradientWidth; cell += kThreads) {
        const int j = j0 + c0 + cell / kGradientWidth, d = d0 + cell % kGradientWidth;
        vectors[cell / kGradientWidth][cell % kGradientWidth] =
            j < o.other_count && d < v.D ? o.others[size_t(j) * v.D + d] : 0.0f;
      }
      __syncthreads();
#pragma unroll 2
      for (int c = 0; c < kGradientRows; ++c)
#pragma unroll
        for (int r = 0; r < kCells; ++r) {
          const float slope = memory.cells[top + r][c0 + c];
#pragma unroll
          for (int q = 0; q < kGradientCells; ++q) grad[r][q] = fmaf(slope, vectors[c][left + q * kLanes], grad[r][q]);
        }
    }
  }
#pragma unroll
  for (int r = 0; r < kCells; ++r)
#pragma unroll
    for (int q = 0; q < kGradientCells; ++q) {
      const int owner = i0 + top + r, d = d0 + left + q * kLanes;
      if (owner >= o.count || d >= v.D) continue;
      float* at = o.grad + size_t(owner) * v.D + d;
      *at = o.add ? *at + grad[r][q] : grad[r][q];
    }
}

DML_END
