// Kernels of a pass that know no loss: they order, normalise, mark what is no pair, and read tables.
#pragma once
#include "cuda/losses.h"

DML_BEGIN

constexpr int kWarps = 8;              // rows of a block of gather and scatter

struct Gather {
  const float* from;
  const int64_t *order, *labels, *others;   // others: sorted labels of the references
  int rows, width, other_rows;
  bool normalise, is_references;
  float *to, *factors;
  int *first, *last, *own, *broken;    // first is nullptr: no classes are looked for
  const int64_t* own_given;
  const int* places;                   // of references in class order; nullptr: the caller's
};

template <class T> __device__ __forceinline__ T warp_sum(T x) {        // in a fixed order, the same in every lane
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// How many of the sorted labels are below `label` (or equal, too).
__device__ __forceinline__ int labels_below(const int64_t* labels, int count, int64_t label, bool equal) {
  int low = 0, high = count;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (labels[middle] < label || (equal && labels[middle] == label)) low = middle + 1;
    else high = middle;
  }
  return low;
}

// A warp per row: to[i] = from[order[i]] * factors[i], and the anchor's place among the references.
__global__ void gather_kernel(Gather g) {
  const int i = blockIdx.x * kWarps + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (i == 0 && lane == 0 && !g.is_references) *g.broken = 0;
  if (i >= g.rows) return;
  const int64_t at = g.order ? g.order[i] : i;
  const float* x = g.from + size_t(at) * g.width;
  double square = 0;                                                   // double: 1e20 is no infinity
  for (int k = lane; k < g.width; k += kWarp) square += double(x[k]) * double(x[k]);
  square = warp_sum(square);
  const double norm = ::sqrt(square);
  float factor = !g.normalise ? 1.0f : norm > 1e-12 ? float(1 / norm) : 0.0f;   // a zero vector stays zero
  if (!(square < 1e300)) factor = float(square - square);              // NaN marks a row that is not finite
  if (lane == 0) {
    g.factors[i] = factor;
    if (g.is_references && factor != factor) *g.broken = 1;            // every anchor is compared with it
    if (g.own) {
      const int64_t own = g.own_given[at];
      g.own[i] = own < 0 || own >= g.other_rows ? -1 : g.places ? g.places[own] : int(own);
    }
  }
  if (g.first && lane < 2) (lane ? g.last : g.first)[i] = labels_below(g.others, g.other_rows, g.labels[i], lane == 1);
  for (int k = lane; k < g.width; k += kWarp) g.to[size_t(i) * g.width + k] = x[k] * factor;
}

__global__ void place_kernel(const int64_t* order, int count, int* places) {
  const int j = blockIdx.x * blockDim.x + threadIdx.x;
  if (j < count) places[order[j]] = j;
}

__global__ void zero_kernel(unsigned long long* at, int count) {
  const int k = blockIdx.x * blockDim.x + threadIdx.x;
  if (k < count) at[k] = 0;
}

// Listed positives are no negatives.
__global__ void mark_kernel(RowsView v, RowsChunk c, float* products) {
  const int i = c.row0 + blockIdx.x;
  for (long long k = v.starts[i] + threadIdx.x; k < v.starts[i + 1]; k += blockDim.x) {
    const long long at = v.lists[k] - c.column0;
    if (at >= 0 && at < c.columns) products[size_t(blockIdx.x) * c.columns + at] = no_pair();
  }
}

// From pairs and their fractions to soft histograms: a fraction moves on to the next cell.
__global__ void read_table_kernel(const unsigned long long* table, int cells, float* to) {
  const int k = blockIdx.x * blockDim.x + threadIdx.x, half = k / cells, c = k % cells;
  if (k >= 2 * cells) return;
  const unsigned long long* at = table + size_t(half) * 2 * cells + c;
  const double unit = double(1 << 20), part = double(at[cells]) / unit, before = c ? double(at[cells - 1]) / unit : 0.0;
  to[k] = float(double(at[0]) - part + before);
}

// The gradient of the raw vectors, in their own order: normalising removes the radial part and divides by the norm.
__global__ void scatter_kernel(const float* grad, const float* unit, const float* factors, const int64_t* order, int rows,
                               int width, bool normalise, float* to) {
  const int i = blockIdx.x * kWarps + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (i >= rows) return;
  const float *g = grad + size_t(i) * width, *x = unit + size_t(i) * width;
  float radial = 0.0f;
  if (normalise) {
    for (int k = lane; k < width; k += kWarp) radial = fmaf(g[k], x[k], radial);
    radial = warp_sum(radial);
  }
  float* out = to + size_t(order ? order[i] : i) * width;
  for (int k = lane; k < width; k += kWarp) out[k] = (g[k] - radial * x[k]) * factors[i];
}

DML_END
