// The kernels of a functor with a table of the whole batch; device code only, as row_kernels.h, and empty for other functors.
//   rows_tabulate        counts positives and negatives of a chunk's rows
//   rows_table_slopes    turns similarities into slopes
#pragma once
#include "cuda/row_kernels.h"

DML_BEGIN

constexpr int kFractionBits = 20;      // of a table's fractions
constexpr int kPairShift = 42;         // pairs and fractions of a block's table in one number: up to 2^22 pairs at a time
constexpr int kMostPairs = 1 << 21;

// A table. Pairs of a row: work(k, s, half), half 0 for positives and 1 for negatives.
template <class F> __device__ __forceinline__ float place_in(const F& f, float s) {
  return min(max(f.place(s), 0.0f), float(f.cells() - 1));
}
__device__ __forceinline__ bool in_window(const RowsView& v, const RowsLoss& m, const Row& row, float s, int half) {
  if (!m.windows) return true;
  const float* at = m.windows + size_t(2 * half) * v.A + v.caller(row.anchor);
  return s >= at[0] && s <= at[v.A];
}
template <class Work>
__device__ __forceinline__ void visit_pairs(const RowsView& v, const RowsChunk& c, const RowsLoss& m, const Row& row, int from,
                                            int to, Work work) {
  for (int k = from + threadIdx.x; k < to; k += blockDim.x) {
    const int half = row.holds(c.column0 + k) ? 0 : 1;
    const float s = row.s[k];
    if (c.column0 + k != row.own && is_pair(s) && in_window(v, m, row, s, half)) work(k, s, half);
  }
  if (!v.lists) return;
  for (int q = threadIdx.x / kWarp; q < row.all; q += blockDim.x / kWarp) {
    const int k = row.column(v, q) - c.column0;
    if (k < from || k >= to) continue;
    const float s = pair_product(v, row.anchor, row.column(v, q));
    if (threadIdx.x % kWarp == 0 && in_window(v, m, row, s, 0)) work(k, s, 0);
  }
}

// A block counts in shared memory where its table fits there (`shared_cells`), else at once in global memory. Whole numbers: no
// order of the additions changes the sums.
template <class F>
__global__ void __launch_bounds__(kMostThreads, kBlocksOfOne)
    rows_tabulate(F f, RowsView v, RowsChunk c, RowsLoss m, int shared_cells) {
  if constexpr (HasTable<F>::value) {
    CU_DYN_SMEM(unsigned long long, counted);
    const int cells = f.cells();
    for (int k = threadIdx.x; k < shared_cells; k += blockDim.x) counted[k] = 0;
    __syncthreads();
    auto hand_over = [&] {
      __syncthreads();
      for (int k = threadIdx.x; k < shared_cells; k += blockDim.x) {
        const unsigned long long both = counted[k];
        counted[k] = 0;
        if (!both) continue;
        unsigned long long* at = m.table + size_t(k / cells) * 2 * cells + k % cells;
        atomicAdd(at, both >> kPairShift);
        atomicAdd(at + cells, both & ((1ull << kPairShift) - 1));
      }
      __syncthreads();
    };
    int held = 0;
    for (int r = blockIdx.x; r < c.rows; r += gridDim.x) {
      const Row row = row_of(v, c, m, r);
      for (int from = 0; from < c.columns; from += kMostPairs) {
        const int to = c.columns - from > kMostPairs ? from + kMostPairs : c.columns;
        if (shared_cells && held + (to - from) > kMostPairs) {
          hand_over();
          held = 0;
        }
        held += to - from;
        visit_pairs(v, c, m, row, from, to, [&](int, float s, int half) {
          const float x = place_in(f, s);
          const int below = int(x);
          const unsigned long long fraction = (unsigned long long)((x - float(below)) * float(1 << kFractionBits));
          if (shared_cells) {
            atomicAdd(counted + half * cells + below, (1ull << kPairShift) | fraction);
          } else {
            unsigned long long* at = m.table + size_t(half) * 2 * cells + below;
            atomicAdd(at, 1ull);
            atomicAdd(at + cells, fraction);
          }
        });
      }
    }
    if (shared_cells) hand_over();
  }
}

template <class F>
__global__ void __launch_bounds__(kMostThreads, kBlocksOfOne) rows_table_slopes(F f, RowsView v, RowsChunk c, RowsLoss m) {
  if constexpr (HasTable<F>::value) {
    const int cells = f.cells();
    for (int r = blockIdx.x; r < c.rows; r += gridDim.x) {
      const Row row = row_of(v, c, m, r);
      if (!m.adds) {
        for (int k = threadIdx.x; k < c.columns; k += blockDim.x) row.g[k] = 0.0f;
        __syncthreads();
      }
      visit_pairs(v, c, m, row, 0, c.columns, [&](int k, float s, int half) {
        const int below = int(place_in(f, s));
        const float* at = m.table_cotangents + size_t(half) * cells + below;
        if (below + 1 < cells) row.g[k] += (at[1] - at[0]) * f.place_slope(s);
      });
    }
  }
}

DML_END
