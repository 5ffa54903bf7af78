// The kernels of the ranking.
//   arrange    a warp per row: class order, unit norm, zeros up to the stride.
//   positives  a block per row tile and share of the tiles of its classes: similarities of the positives.
//   count      a block per row tile and chunk of column tiles. A thread holds kCells x kCells similarities in registers and
//              compares them with the thresholds of its rows and, where the columns are queries of this run too, of its columns:
//              a batch compared with itself needs the tiles on and above the diagonal only.
//   conclude   a warp per query: counts to ranks to averages.
// A similarity is one chain of fused multiply-adds in order of the dimension, in every kernel and at every place of a tile.
// Equal vectors have equal similarities to the last bit, and s(i, j) = s(j, i): ties are exact.
// Counts are whole numbers, so atomic additions in any order give the same result.
#pragma once
#include "cuda/neighbours_product.h"

DML_BEGIN

template <class T>
__global__ void __launch_bounds__(kRowWarps* kRankWarp)
    arrange_kernel(const T* from, const int64_t* order, int rows, int width, int stride, bool normalise, T* to, T* halves) {
  const int lane = threadIdx.x % kRankWarp;
  const int64_t i = int64_t(blockIdx.x) * kRowWarps + threadIdx.x / kRankWarp;
  if (i >= rows) return;
  const T* x = from + order[i] * width;
  double largest = 0;
  for (int k = lane; k < width; k += kRankWarp) largest = ::fmax(largest, ::fabs(double(x[k])));
  for (int step = kRankWarp / 2; step > 0; step /= 2) largest = ::fmax(largest, __shfl_xor_sync(0xffffffffu, largest, step));
  const T scale = normalise && largest > 0 ? T(largest) : T(1);  // so that no square overflows or vanishes
  double square = 0;
  for (int k = lane; k < width; k += kRankWarp) square += double(x[k] / scale) * double(x[k] / scale);
  square = rank_warp_sum(square);
  if (halves && lane == 0) halves[i] = T(square / 2);
  const T factor = normalise && square > 0 ? T(1 / ::sqrt(square)) : T(1);  // a zero vector stays zero
  for (int k = lane; k < stride; k += kRankWarp) to[i * stride + k] = k < width ? x[k] / scale * factor : T(0);
}

template <class T> __device__ __forceinline__ int positives_of(const RankingProblem<T>& p, int i) {
  return int(p.starts[i + 1] - p.starts[i]);
}

template <class T> __global__ void __launch_bounds__(kRankThreads, 1) positives_kernel(RankingProblem<T> p) {
  constexpr int cells = RankShape<T>::cells, tile = RankShape<T>::tile;
  __shared__ RankPanels<T> panels;
  const int i0 = p.q0 + int(blockIdx.x) * tile, i1 = i0 + tile < p.q1 ? i0 + tile : p.q1;
  const int ty = threadIdx.x / kRankLanes, tx = threadIdx.x % kRankLanes;
  const int from = int(p.first[i0]), to = int(p.last[i1 - 1]);  // ranges ascend with the queries
  for (int64_t j0 = from + int64_t(blockIdx.y) * tile; j0 < to; j0 += int64_t(gridDim.y) * tile) {
    T s[cells][cells];
    rank_products(p, i0, i1, int(j0), to, panels, s);
#pragma unroll
    for (int r = 0; r < cells; ++r) {
      const int i = i0 + rank_place(ty, r);
      if (i >= i1) continue;
      const int first = int(p.first[i]), last = int(p.last[i]);
      T* row = p.thresholds + (p.starts[i] - p.starts[p.q0]);
#pragma unroll
      for (int c = 0; c < cells; ++c) {
        const int j = int(j0) + rank_place(tx, c);
        if (j < first || j >= last || (p.self && i == j)) continue;
        row[j - first - (p.self && j > i ? 1 : 0)] = s[r][c];
      }
    }
  }
}

// The column tiles of a run: first the run's own queries (self mode), in step with the row tiles; then what lies before and
// behind them.
struct RankTiles {
  int own_from, own_to, own, before, all, tile, end;

  template <class T> DML_FN static RankTiles of(const RankingProblem<T>& p) {
    const int tile = RankShape<T>::tile, from = p.self ? p.q0 : 0, to = p.self ? p.q1 : 0;
    const int own = (to - from + tile - 1) / tile, before = (from + tile - 1) / tile,
              behind = int((int64_t(p.N) - to + tile - 1) / tile);
    return {from, to, own, before, own + before + behind, tile, p.N};
  }
  DML_FN int begin_of(int t) const {
    return t < own ? own_from + t * tile : t < own + before ? (t - own) * tile : own_to + (t - own - before) * tile;
  }
  DML_FN int end_of(int t) const {
    const int edge = t < own ? own_to : t < own + before ? own_from : end, begin = begin_of(t);
    return edge - begin > tile ? begin + tile : edge;
  }
};

// What the queries of a tile's rows or columns are compared with.
template <class T> struct RankSide {
  T thresholds[kMostFew][RankShape<T>::tile];  // infinity beyond a query's positives
  T lowest[RankShape<T>::tile];  // of a query whose positives are searched, else infinity
  int most;  // thresholds of any query
};

template <class T> __device__ __forceinline__ void load_rank_side(const RankingProblem<T>& p, int from, int to,
                                                                  RankSide<T>& side) {
  constexpr int tile = RankShape<T>::tile;
  const T infinity = T(__int_as_float(0x7f800000));
  if (threadIdx.x == 0) side.most = 0;
  __syncthreads();
  int most = 0;
  for (int cell = threadIdx.x; cell < kMostFew * tile; cell += kRankThreads) {
    const int k = cell / tile, i = from + cell % tile, count = i < to ? positives_of(p, i) : 0;
    const bool compared = count <= p.few && k < count;
    side.thresholds[k][cell % tile] = compared ? p.thresholds[p.starts[i] - p.starts[p.q0] + k] : infinity;
    if (k == 0) side.lowest[cell % tile] = count > p.few ? p.thresholds[p.starts[i + 1] - p.starts[p.q0] - 1] : infinity;
    if (compared && k >= most) most = k + 1;
  }
  if (most > 0) atomicMax(&side.most, most);
}

// Adds a similarity that is not below all of a query's many thresholds to its interval: counts[k] counts t[k] <= s < t[k - 1].
template <class T> __device__ __forceinline__ void search_rank(const RankingProblem<T>& p, int i, T s) {
  const int64_t at = p.starts[i] - p.starts[p.q0];
  int from = 0, to = positives_of(p, i) - 1;  // the answer is the first k with t[k] <= s
  while (from < to) {
    const int middle = (from + to) / 2;
    if (p.thresholds[at + middle] <= s) to = middle;
    else from = middle + 1;
  }
  atomicAdd(p.counts + at + from, 1);
}

// Four counts of at most 128 share a number.
template <int Cells> __device__ __forceinline__ void pack_counts(const int (&n)[Cells], unsigned (&packed)[Cells / 4]) {
#pragma unroll
  for (int g = 0; g < Cells / 4; ++g)
    packed[g] = unsigned(n[4 * g]) | unsigned(n[4 * g + 1]) << 8 | unsigned(n[4 * g + 2]) << 16 | unsigned(n[4 * g + 3]) << 24;
}

template <class T> struct RankCountMemory {
  RankPanels<T> panels;
  RankSide<T> rows, columns;
  int row_counts[kMostFew][RankShape<T>::tile];
  unsigned column_counts[kMostFew][RankShape<T>::tile / 4];  // packed, of one tile
};
// Where the searching kernel's threads put a row of their similarities each, so that the search is compiled once and not per
// register; a thread reads only what it wrote.
template <class T> struct RankSearchMemory : RankCountMemory<T> { T own[kRankThreads][RankShape<T>::cells + 1]; };
template <class T, bool Searches> struct RankMemory { using type = RankCountMemory<T>; };
template <class T> struct RankMemory<T, true> { using type = RankSearchMemory<T>; };

template <class T, bool Searches> __global__ void __launch_bounds__(kRankThreads, 1)
    count_kernel(RankingProblem<T> p, int row_tiles, int chunk) {
  constexpr int cells = RankShape<T>::cells, tile = RankShape<T>::tile;
  using Memory = typename RankMemory<T, Searches>::type;
  CU_DYN_SMEM(Memory, memory);
  Memory& m = *memory;
  const T nothing = -T(__int_as_float(0x7f800000));  // below every threshold
  const RankTiles tiles = RankTiles::of(p);
  // neighbouring blocks take the same columns, which then come from the second-level cache
  const int row_tile = int(blockIdx.x % unsigned(row_tiles));
  const int64_t t0 = int64_t(blockIdx.x / unsigned(row_tiles)) * chunk;
  const int t1 = int(t0 + chunk < tiles.all ? t0 + chunk : tiles.all);
  int t = int(t0);
  if (t < tiles.own && t < row_tile) t = row_tile;  // the diagonal's other side has served
  if (t >= t1) return;
  const int i0 = p.q0 + row_tile * tile, i1 = i0 + tile < p.q1 ? i0 + tile : p.q1;
  const int ty = threadIdx.x / kRankLanes, tx = threadIdx.x % kRankLanes;
  // all pairs within [class_from, class_to) are positives, none outside [any_from, any_to) is
  const int any_from = int(p.first[i0]), any_to = int(p.last[i1 - 1]), class_from = int(p.first[i1 - 1]),
            class_to = int(p.last[i0]);
  load_rank_side(p, i0, i1, m.rows);
  for (int cell = threadIdx.x; cell < kMostFew * tile; cell += kRankThreads) m.row_counts[cell / tile][cell % tile] = 0;
  __syncthreads();
  const int row_most = m.rows.most;

  for (; t < t1; ++t) {
    const int j0 = tiles.begin_of(t), j1 = tiles.end_of(t);
    if (j0 >= class_from && j1 <= class_to) continue;
    const bool both = t < tiles.own && t > row_tile;
    if (both) {
      __syncthreads();  // the last tile's columns have been read
      for (int cell = threadIdx.x; cell < kMostFew * tile / 4; cell += kRankThreads)
        m.column_counts[cell / (tile / 4)][cell % (tile / 4)] = 0;
      load_rank_side(p, j0, j1, m.columns);
    }
    T s[cells][cells];
    rank_products(p, i0, i1, j0, j1, m.panels, s);  // its barriers also show the columns' side to all
    const int column_most = both ? m.columns.most : 0;
    if (j1 - j0 < tile || i1 - i0 < tile || (j0 < any_to && j1 > any_from)) {
#pragma unroll
      for (int r = 0; r < cells; ++r) {
        const int i = i0 + rank_place(ty, r);
        const int first = i < i1 ? int(p.first[i]) : 0, last = i < i1 ? int(p.last[i]) : p.N;
#pragma unroll
        for (int c = 0; c < cells; ++c) {
          const int j = j0 + rank_place(tx, c);
          if (j >= j1 || (j >= first && j < last)) s[r][c] = nothing;
        }
      }
    }
    for (int k = 0; k < row_most; ++k) {
      int n[cells];
      unsigned packed[cells / 4];
#pragma unroll
      for (int r = 0; r < cells; ++r) {
        const T threshold = m.rows.thresholds[k][rank_place(ty, r)];
        n[r] = 0;
#pragma unroll
        for (int c = 0; c < cells; ++c) n[r] += s[r][c] >= threshold ? 1 : 0;
      }
      pack_counts(n, packed);
#pragma unroll
      for (int g = 0; g < cells / 4; ++g) {
        for (int step = kRankLanes / 2; step > 0; step /= 2) packed[g] += __shfl_xor_sync(0xffffffffu, packed[g], step);
        // 16 threads hold the sum of their rows; four of them add it up, and nobody else touches these rows
        if (tx < 4) m.row_counts[k][4 * ty + tx + 64 * g] += int(packed[g] >> 8 * tx & 255u);
      }
    }
    for (int k = 0; k < column_most; ++k) {
      int n[cells];
      unsigned packed[cells / 4];
#pragma unroll
      for (int c = 0; c < cells; ++c) {
        const T threshold = m.columns.thresholds[k][rank_place(tx, c)];
        n[c] = 0;
#pragma unroll
        for (int r = 0; r < cells; ++r) n[c] += s[r][c] >= threshold ? 1 : 0;
      }
      pack_counts(n, packed);
#pragma unroll
      for (int g = 0; g < cells / 4; ++g) {
        packed[g] += __shfl_xor_sync(0xffffffffu, packed[g], kRankLanes);
        if (threadIdx.x % kRankWarp < kRankLanes && packed[g] != 0) atomicAdd(&m.column_counts[k][tx + 16 * g], packed[g]);
      }
    }
    if constexpr (Searches) {
      T* own = m.own[threadIdx.x];
#pragma unroll
      for (int r = 0; r < cells; ++r) {
        const T row_lowest = m.rows.lowest[rank_place(ty, r)];
#pragma unroll
        for (int c = 0; c < cells; ++c) own[c] = s[r][c];
#pragma unroll 1
        for (int c = 0; c < cells; ++c) {
          if (own[c] >= row_lowest) search_rank(p, i0 + rank_place(ty, r), own[c]);
          if (both && own[c] >= m.columns.lowest[rank_place(tx, c)]) search_rank(p, j0 + rank_place(tx, c), own[c]);
        }
      }
    }
    if (both) {
      __syncthreads();
      for (int cell = threadIdx.x; cell < column_most * tile; cell += kRankThreads) {
        const int k = cell / tile, column = cell % tile, j = j0 + column;
        // column 4 x + q + 64 g is byte q of number x + 16 g
        const int n = int(m.column_counts[k][column % 64 / 4 + 16 * (column / 64)] >> 8 * (column % 4) & 255u);
        if (n > 0 && j < j1 && k < positives_of(p, j)) atomicAdd(p.counts + (p.starts[j] - p.starts[p.q0]) + k, n);
      }
    }
  }
  __syncthreads();
  for (int cell = threadIdx.x; cell < row_most * tile; cell += kRankThreads) {
    const int k = cell / tile, i = i0 + cell % tile, n = m.row_counts[k][cell % tile];
    if (n > 0 && i < i1 && k < positives_of(p, i)) atomicAdd(p.counts + (p.starts[i] - p.starts[p.q0]) + k, n);
  }
}

template <class T>
__global__ void __launch_bounds__(kRowWarps* kRankWarp)
    conclude_kernel(RankingProblem<T> p, const int64_t* order, const int64_t* ks, int k_count, int64_t columns,
                    double* values) {
  const int lane = threadIdx.x % kRankWarp;
  const int64_t i = p.q0 + int64_t(blockIdx.x) * kRowWarps + threadIdx.x / kRankWarp;
  if (i >= p.q1) return;
  const int n = positives_of(p, int(i));
  if (n == 0) return;
  const int* counts = p.counts + (p.starts[i] - p.starts[p.q0]);
  double* to = values + order[i];
  const bool searched = n > p.few;
  int below = 0;  // negatives of the intervals before these
  long long within = 0;
  double cut = 0, average = 0;
  for (int k0 = 0; k0 < n; k0 += kRankWarp) {
    const int k = k0 + lane;
    int above = k < n ? counts[k] : 0;
    if (searched) {  // counts of intervals add up
      for (int step = 1; step < kRankWarp; step *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, above, step);
        above += lane >= step ? other : 0;
      }
      above += below;
      below = __shfl_sync(0xffffffffu, above, kRankWarp - 1);
    }
    const int64_t rank = int64_t(k) + 1 + above;
    if (k < n) {
      const double precision = double(k + 1) / double(rank);
      average += precision;
      if (rank <= n) within += 1, cut += precision;
      if (k == 0) to[columns] = double(rank);
    }
    for (int q = 0; q < k_count; ++q) {
      const int hits = __popc(__ballot_sync(0xffffffffu, k < n && rank <= ks[q]));
      if (lane == 0 && hits > 0) to[(5 + q) * columns] += double(hits);
    }
  }
  const double all_within = rank_warp_sum(double(within));
  cut = rank_warp_sum(cut), average = rank_warp_sum(average);
  if (lane == 0) to[0] = double(n), to[2 * columns] = all_within / n, to[3 * columns] = cut / n, to[4 * columns] = average / n;
}

DML_END
