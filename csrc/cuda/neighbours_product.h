// The matrix product of the ranking: a thread's similarities of a tile, in registers.
#pragma once
#include "cuda/launch.h"
#include "cuda/neighbours.h"
#include "dml/platform.h"

DML_BEGIN

constexpr int kRankThreads = 256;  // 16 x 16
constexpr int kRankLanes = 16;
constexpr int kRankDepth = 16;     // dimensions in shared memory at a time
constexpr int kRankPad = 4;        // whole groups of four stay aligned
constexpr int kRankWarp = 32;
constexpr int kRowWarps = 8;       // warps of a block that works on rows

template <class T> struct RankShape;                                   // rows of a tile = 16 x cells of a thread
template <> struct RankShape<float> { static constexpr int cells = 8, tile = 128; };
template <> struct RankShape<double> { static constexpr int cells = 4, tile = 64; };

__device__ __forceinline__ float multiply_add(float a, float b, float c) { return ::fmaf(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return ::fma(a, b, c); }

template <class T> struct alignas(16) Four { T v[4]; };

// Cell r of thread t is row (or column) 4 t + r % 4 + 64 (r / 4): four neighbours are one load.
__device__ __forceinline__ int rank_place(int thread, int cell) { return 4 * thread + (cell & 3) + (cell >> 2) * 64; }

template <class T> struct RankPanels {
  alignas(16) T rows[kRankDepth][RankShape<T>::tile + kRankPad];
  alignas(16) T columns[kRankDepth][RankShape<T>::tile + kRankPad];
};

// A thread's share of the rows [first, first + tile) at some depth, the last row again beyond `end`: those cells are masked.
template <class T> struct RankShare {
  static constexpr int quads = kRankDepth / 4, steps = RankShape<T>::tile * quads / kRankThreads;
  Four<T> x[steps];

  __device__ __forceinline__ void fetch(const T* from, int first, int end, int stride, int depth) {
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      const int cell = step * kRankThreads + int(threadIdx.x), row = cell / quads, k = cell % quads * 4;
      const int at = first + row < end ? first + row : end - 1;
      x[step] = *reinterpret_cast<const Four<T>*>(from + size_t(at) * stride + depth + k);
    }
  }
  __device__ __forceinline__ void put(T (*to)[RankShape<T>::tile + kRankPad]) const {
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      const int cell = step * kRankThreads + int(threadIdx.x), row = cell / quads, k = cell % quads * 4;
#pragma unroll
      for (int q = 0; q < 4; ++q) to[k + q][row] = x[step].v[q];
    }
  }
};

// s[r][c] = <queries[i0 + place(r)], references[j0 + place(c)]>. All threads must come.
template <class T>
__device__ __forceinline__ void rank_products(const RankingProblem<T>& p, int i0, int i1, int j0, int j1, RankPanels<T>& panels,
                                              T (&s)[RankShape<T>::cells][RankShape<T>::cells]) {
  constexpr int cells = RankShape<T>::cells;
  const int ty = threadIdx.x / kRankLanes, tx = threadIdx.x % kRankLanes;
#pragma unroll
  for (int r = 0; r < cells; ++r)
#pragma unroll
    for (int c = 0; c < cells; ++c) s[r][c] = T(0);
  RankShare<T> rows, columns;
  rows.fetch(p.queries, i0, i1, p.stride, 0);
  columns.fetch(p.references, j0, j1, p.stride, 0);
  for (int depth = 0; depth < p.stride; depth += kRankDepth) {
    __syncthreads();  // the last panels have been read
    rows.put(panels.rows);
    columns.put(panels.columns);
    __syncthreads();
    if (depth + kRankDepth < p.stride) {                               // on their way while these are multiplied
      rows.fetch(p.queries, i0, i1, p.stride, depth + kRankDepth);
      columns.fetch(p.references, j0, j1, p.stride, depth + kRankDepth);
    }
#pragma unroll 2
    for (int k = 0; k < kRankDepth; ++k) {
      T a[cells], b[cells];
#pragma unroll
      for (int q = 0; q < cells; q += 4) {
        *reinterpret_cast<Four<T>*>(a + q) = *reinterpret_cast<const Four<T>*>(&panels.rows[k][rank_place(ty, q)]);
        *reinterpret_cast<Four<T>*>(b + q) = *reinterpret_cast<const Four<T>*>(&panels.columns[k][rank_place(tx, q)]);
      }
#pragma unroll
      for (int r = 0; r < cells; ++r)
#pragma unroll
        for (int c = 0; c < cells; ++c) s[r][c] = multiply_add(a[r], b[c], s[r][c]);
    }
  }
  if (p.query_halves) {
#pragma unroll
    for (int r = 0; r < cells; ++r) {
      const int i = i0 + rank_place(ty, r);
      const T half = p.query_halves[i < i1 ? i : i1 - 1];
#pragma unroll
      for (int c = 0; c < cells; ++c) {
        const int j = j0 + rank_place(tx, c);
        s[r][c] -= half + p.reference_halves[j < j1 ? j : j1 - 1];
      }
    }
  }
}

__device__ __forceinline__ double rank_warp_sum(double x) {            // in a fixed order, the same in every lane
  for (int step = kRankWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

DML_END
