// Similarities: of a tile of 64 x 64 pairs by a block of 256 threads, and of one pair by one thread. Both add the products of a
// pair in order of the dimension with one fused multiply-add each, so a pair has the same bits in every kernel: thresholds and
// equalities hold between forward and backward, and between the list of positives and the tiles.
#pragma once
#include <cstdint>

#include "cuda/launch.h"
#include "dml/contract.h"

DML_BEGIN

constexpr int kTile = 64;  // anchors and references of a tile
constexpr int kThreads = 256;  // of a block that works on tiles
constexpr int kLanes = 16;  // thread (y, x) of the 16 x 16 multiplies rows 4 y .. 4 y + 3 by columns x, x + 16, ...
constexpr int kCells = 4;  // rows and columns of a thread
constexpr int kDepth = 16;  // dimensions in shared memory at a time
constexpr int kPad = 4;  // threads of a warp, eight rows by four columns, then fall on different banks

struct View {  // vectors in class order; kernels index with int
  const float *anchors, *references;
  const int64_t *row_first, *row_last;
  int A, N, D;
  bool self;
};

struct TileMemory {
  float rows[kDepth][kTile + kPad], columns[kDepth][kTile + kPad];
  float cells[kTile][kTile + kPad];
};

__device__ __forceinline__ void load_panel(const float* from, int first, int count, int width, int depth,
                                           float (*to)[kTile + kPad]) {
#pragma unroll 1
  for (int cell = threadIdx.x; cell < kTile * kDepth; cell += kThreads) {
    const int row = cell / kDepth, k = cell % kDepth;
    const bool inside = first + row < count && depth + k < width;
    to[k][row] = inside ? from[size_t(first + row) * width + depth + k] : 0.0f;
  }
}

// memory.cells[r][c] = <x[i0 + r], y[j0 + c]>, zero beyond the edges. All threads of the block must come; when it returns, all
// may read and write the cells.
__device__ __forceinline__ void tile_products(const float* x, int i0, int rows, const float* y, int j0, int columns, int width,
                                              TileMemory& memory) {
  const int top = threadIdx.x / kLanes * kCells, left = threadIdx.x % kLanes;
  float s[kCells][kCells];
#pragma unroll
  for (int r = 0; r < kCells; ++r)
#pragma unroll
    for (int c = 0; c < kCells; ++c) s[r][c] = 0.0f;
  for (int depth = 0; depth < width; depth += kDepth) {
    __syncthreads();  // the last panels have been read
    load_panel(x, i0, rows, width, depth, memory.rows);
    load_panel(y, j0, columns, width, depth, memory.columns);
    __syncthreads();
#pragma unroll 4
    for (int k = 0; k < kDepth; ++k) {
      float a[kCells], b[kCells];
#pragma unroll
      for (int r = 0; r < kCells; ++r) a[r] = memory.rows[k][top + r];
#pragma unroll
      for (int c = 0; c < kCells; ++c) b[c] = memory.columns[k][left + c * kLanes];
#pragma unroll
      for (int r = 0; r < kCells; ++r)
#pragma unroll
        for (int c = 0; c < kCells; ++c) s[r][c] = fmaf(a[r], b[c], s[r][c]);
    }
  }
  __syncthreads();  // the last cells have been read, also when width is 0
#pragma unroll
  for (int r = 0; r < kCells; ++r)
#pragma unroll
    for (int c = 0; c < kCells; ++c) memory.cells[top + r][left + c * kLanes] = s[r][c];
  __syncthreads();
}

__device__ __forceinline__ float pair_product(const float* x, const float* y, int width) {
  float s = 0.0f;
  for (int k = 0; k < width; ++k) s = fmaf(x[k], y[k], s);
  return s;
}

// References [first, last) are of the anchor's class; `own` of them is the anchor itself, or lies outside.
struct ClassRange {
  int first, last, own;
  __device__ bool holds(int reference) const { return reference >= first && reference < last; }
  __device__ int count() const { return last - first - (own < last ? 1 : 0); }
  __device__ int reference(int positive) const { return first + positive + (first + positive >= own ? 1 : 0); }
  __device__ int positive(int reference) const { return reference - first - (reference > own ? 1 : 0); }
};
__device__ __forceinline__ ClassRange class_range(const View& v, int anchor) {
  const int first = int(v.row_first[anchor]), last = int(v.row_last[anchor]);
  return {first, last, v.self ? anchor : last};
}

DML_END
