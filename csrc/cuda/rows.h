// What the kernels of a loss know of a pass: anchors and references in class order, and one chunk of their products. Plain data,
// passed by value. Device code only: no std:: and no header of the host, so the run-time compiler takes it (with -default-device).
#pragma once
#include "cuda/launch.h"
#include "dml/contract.h"
#include "dml/fields.h"

DML_BEGIN

constexpr int kWarp = 32, kMostWarps = 8, kMostThreads = kWarp * kMostWarps;
constexpr int kShortList = 256;  // positives of an anchor that are listed in shared memory

struct RowsView {  // arrays over the anchors are in class order
  const float *anchors, *references;  // [A, D], [N, D]
  const int *first, *last;  // [A]: references of the anchor's class; nullptr with lists
  const int* own;  // [A]: the reference that is the anchor itself or -1; nullptr: `self` says
  const long long *starts, *lists;  // positives of anchor i: lists[starts[i]..starts[i + 1]); nullptr: the class
  const long long* order;  // [A]: index in the caller's order; nullptr: the same
  const float* factors;  // [A]: NaN for an anchor that is not finite
  const int* broken;  // not 0: some reference is not finite
  int A, N, D;
  bool self;  // the references are the anchors

  __device__ long long caller(int anchor) const { return order ? order[anchor] : anchor; }
};

// Similarities of the anchors [row0, row0 + rows) to the references [column0, column0 + columns), in memory. `whole`: all of
// the references. With lists the listed positives are already marked as no pair.
struct RowsChunk {
  const float* products;  // [rows][columns]
  float* slopes;  // the same shape; backward only
  int row0, rows, column0, columns;
  bool first, last, whole;  // of its rows
};

struct RowsLoss {  // of one loss; fields are [field][A]
  float *limits, *sums, *slopes;
  const float *given, *windows;  // [K][A], [4][A] in the caller's order, or nullptr
  float *values, *counts;  // [values][A] in the caller's order; forward
  const float* cotangents;  // the same; backward
  unsigned long long* table;  // [2][2][cells]: pairs and fractions of positives, then of negatives
  const float* table_cotangents;  // [2][cells]
  bool adds;  // to the slopes of the losses before
  float* memory;  // of long lists: [long_blocks][row_memory<F>() * width]
  int width, long_blocks, short_width;
};

// An anchor of a chunk: its positives are column(0) .. column(all - 1), its negatives what `negative` does not hide.
struct Row {
  int anchor, first, last, own, all;
  long long start;
  const float* s;
  float* g;
  float lowest, highest;  // of the window of negatives

  __device__ bool has_own() const { return own >= first && own < last; }
  __device__ int column(const RowsView& v, int k) const {
    if (v.lists) return int(v.lists[start + k]);
    return first + k + (has_own() && first + k >= own ? 1 : 0);
  }
  __device__ bool holds(int column) const { return column >= first && column < last; }
  __device__ float negative(const RowsChunk& c, int k) const {
    const int j = c.column0 + k;
    const float s_of_pair = s[k];
    return holds(j) || j == own || s_of_pair < lowest || s_of_pair > highest ? no_pair() : s_of_pair;
  }
};
__device__ __forceinline__ Row row_of(const RowsView& v, const RowsChunk& c, const RowsLoss& m, int r) {
  Row row;
  const int i = c.row0 + r;
  row.anchor = i;
  row.own = v.self ? i : v.own ? v.own[i] : -1;
  row.first = v.lists ? 0 : v.first[i], row.last = v.lists ? 0 : v.last[i];
  row.start = v.lists ? v.starts[i] : 0;
  row.all = v.lists ? int(v.starts[i + 1] - row.start) : row.last - row.first - (row.has_own() ? 1 : 0);
  row.s = c.products + size_t(r) * c.columns;
  row.g = c.slopes + size_t(r) * c.columns;
  const long long at = v.caller(i);
  row.lowest = m.windows ? m.windows[2 * size_t(v.A) + at] : -__int_as_float(0x7f800000);
  row.highest = m.windows ? m.windows[3 * size_t(v.A) + at] : __int_as_float(0x7f800000);
  return row;
}

// By all lanes of a warp, in a fixed order: where positives are not read from the products, every kernel finds the same bits.
__device__ __forceinline__ float pair_product(const RowsView& v, int anchor, int reference) {
  const float *x = v.anchors + size_t(anchor) * v.D, *y = v.references + size_t(reference) * v.D;
  float s = 0.0f;
  for (int k = threadIdx.x % kWarp; k < v.D; k += kWarp) s = fmaf(x[k], y[k], s);
  for (int step = kWarp / 2; step > 0; step /= 2) s += __shfl_xor_sync(0xffffffffu, s, step);
  return s;
}

// What a block keeps of the row it works on: in shared memory, or in global memory where the list is long.
template <class F> DML_FN constexpr int row_memory() {  // floats per positive
  using S = SlotTypes<F, float, float>;
  return 2 + field_count<typename S::Limits, float>() + field_count<typename S::Sums, float>() +
         (SlopesTogether<F>::value ? 1 : 0);
}
template <class F> struct RowMemory {
  using S = SlotTypes<F, float, float>;
  float* list;  // similarities of the positives that count
  int* which;  // their places among all; only with windows
  float *slot_limits, *slot_sums, *to;
  int width;

  __device__ RowMemory(float* at, int room) : list(at), which(reinterpret_cast<int*>(at + room)), width(room) {
    slot_limits = at + 2 * size_t(room);
    slot_sums = slot_limits + size_t(field_count<typename S::Limits, float>()) * room;
    to = slot_sums + size_t(field_count<typename S::Sums, float>()) * room;
  }
  __device__ typename S::Limits near(int k) const { return gather_fields<typename S::Limits, float>(slot_limits + k, width); }
  __device__ void put_near(int k, const typename S::Limits& in) const { scatter_fields<float>(in, slot_limits + k, width); }
  // as a functor sees them
  __device__ typename S::Sums operator()(long long k) const {
    return gather_fields<typename S::Sums, float>(slot_sums + k, width);
  }
  __device__ void put(long long k, const typename S::Sums& in) const { scatter_fields<float>(in, slot_sums + k, width); }
};

// Whether a functor's positives are read from the products. A functor with partners closes when all chunks are gone.
template <class F> __device__ __forceinline__ bool reads_products(const RowsView& v, const RowsChunk& c) {
  return c.whole && !v.lists && !HasPartners<F>::value;
}

// Lists the positives of a row that count for the loss; by all threads of the block. Returns their number.
template <class F>
__device__ __forceinline__ int list_positives(const RowsView& v, const RowsChunk& c, const RowsLoss& m, const Row& row,
                                              const RowMemory<F>& memory) {
  __shared__ int kept;
  const int lane = threadIdx.x % kWarp;
  if (reads_products<F>(v, c)) {
    for (int k = threadIdx.x; k < row.all; k += blockDim.x) memory.list[k] = row.s[row.column(v, k) - c.column0];
  } else {
    for (int k = threadIdx.x / kWarp; k < row.all; k += blockDim.x / kWarp) {
      const float s = pair_product(v, row.anchor, row.column(v, k));
      if (lane == 0) memory.list[k] = s;
    }
  }
  __syncthreads();
  if (!m.windows) return row.all;
  if (threadIdx.x < kWarp) {  // in place: what is written has been read
    const long long at = v.caller(row.anchor);
    const float lowest = m.windows[at], highest = m.windows[v.A + at];
    int count = 0;
    for (int base = 0; base < row.all; base += kWarp) {
      const float s = base + lane < row.all ? memory.list[base + lane] : 0.0f;
      const bool keep = base + lane < row.all && s >= lowest && s <= highest;
      const unsigned all = __ballot_sync(0xffffffffu, keep);
      const int place = count + __popc(all & ((1u << lane) - 1));
      if (keep) memory.list[place] = s, memory.which[place] = base + lane;
      count += __popc(all);
    }
    if (lane == 0) kept = count;
  }
  __syncthreads();
  return kept;
}

// Calls work(row, memory) by all threads of the block for the block's rows: first those with short lists, a row per block, then
// the first blocks take the long ones in turn.
template <class F, class Work>
__device__ __forceinline__ void visit_rows(const RowsView& v, const RowsChunk& c, const RowsLoss& m, Work work) {
  CU_DYN_SMEM(float, shared);
  bool are_long = false;
  for (int r = blockIdx.x;;) {
    if (r < c.rows) {
      const Row row = row_of(v, c, m, r);
      if ((row.all > m.short_width) == are_long) {
        work(row, are_long ? RowMemory<F>(m.memory + size_t(blockIdx.x) * row_memory<F>() * m.width, m.width)
                           : RowMemory<F>(shared, m.short_width));
        __syncthreads();
      }
      r += are_long ? m.long_blocks : gridDim.x;
    } else if (!are_long && int(blockIdx.x) < m.long_blocks) {
      are_long = true, r = blockIdx.x;
    } else {
      return;
    }
  }
}

DML_END
