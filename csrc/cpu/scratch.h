// A thread's memory for one pass, laid out by the same code that measures it.
#pragma once
#include <cstring>

#include "cpu/entry.h"
#include "cpu/gemm.h"
#include "cpu/guard.h"

DML_BEGIN

constexpr int64_t kStripRows = 8;
// Where at most one slope of so many is not zero, listing them is faster than multiplying all.
constexpr int64_t kNonzeroShare = 5;

// Slopes that are not zero, by row or by column: entries `first[line]` to `first[line + 1]`, each an index on the other side.
template <class T> struct Listed {
  int32_t *first, *index;
  T* slope;
};

template <class T> struct Scratch {
  T *tile, *slopes, *masked, *panel, *panel_grads, *block_vectors, *block, *block_slopes, *list, *list_slopes, *kept,
      *kept_slopes;
  int64_t* which;
  Listed<T> by_row, by_column;
  unsigned char* gemm;
  Accumulators* losses;
  int64_t bytes;
  int64_t panel_first = -1, panel_last = -1;  // rows of the streamed side

  Scratch(const Problem<T>& p, const Entry<T>* entries, int thread, unsigned char* base) {
    unsigned char* at = base;
    if (base) allow(base, p.scratch_bytes - 64);                       // another chunk may have laid it out otherwise
    auto take = [&](int64_t n) {
      unsigned char* here = at;
      at += (n + 63) / 64 * 64 + kGuard;
      if (base) forbid(here + n, at - here - n);
      return here;
    };
    int64_t block_cells = 0, all_blocks = 0, widest = 0, tallest = 0;
    for (int64_t b = 0; b < p.block_count; ++b) {
      const int64_t rows = p.blocks[b].a1 - p.blocks[b].a0, columns = p.blocks[b].r1 - p.blocks[b].r0;
      const int64_t cells = p.lists ? p.starts[p.blocks[b].a1] - p.starts[p.blocks[b].a0] : rows * columns;
      if (cells > block_cells) block_cells = cells;
      all_blocks += cells;
      if (columns > widest) widest = columns;
      if (columns && rows > tallest) tallest = rows;
      if (p.lists)
        for (int64_t i = p.blocks[b].a0; i < p.blocks[b].a1; ++i)
          if (p.positives[i] > widest) widest = p.positives[i];
    }
    bool windows = false;
    for (int l = 0; l < p.loss_count; ++l) windows = windows || p.losses[l].windows_at || p.losses[l].semihard;
    const int64_t one_list = windows ? widest + 1 : 0;
    tile = reinterpret_cast<T*>(take(p.tile_rows * p.tile_columns * sizeof(T)));
    // one matrix for all threads, which is the first one's
    slopes = reinterpret_cast<T*>(take((p.whole ? p.whole * p.whole : p.tile_rows * p.tile_columns) * sizeof(T)));
    const bool streams = p.streamed.which != Streamed::neither, by_rows = p.streamed.which == Streamed::anchors;
    const int64_t panel_rows = !streams ? 0 : by_rows ? p.tile_rows : p.tile_columns;
    panel = reinterpret_cast<T*>(take(panel_rows * p.D * sizeof(T)));
    panel_grads = reinterpret_cast<T*>(take(panel_rows * p.D * sizeof(T)));
    block_vectors = reinterpret_cast<T*>(take((!streams ? 0 : by_rows ? tallest : widest) * p.D * sizeof(T)));
    block = reinterpret_cast<T*>(take(block_cells * sizeof(T)));
    block_slopes = reinterpret_cast<T*>(take((p.whole || streams ? all_blocks : block_cells) * sizeof(T)));
    list = reinterpret_cast<T*>(take((widest + 1) * sizeof(T)));
    list_slopes = reinterpret_cast<T*>(take((widest + 1) * sizeof(T)));
    masked = reinterpret_cast<T*>(take((windows ? kStripRows * p.tile_columns : 0) * int64_t(sizeof(T))));
    kept = reinterpret_cast<T*>(take(one_list * int64_t(sizeof(T))));
    kept_slopes = reinterpret_cast<T*>(take(one_list * int64_t(sizeof(T))));
    which = reinterpret_cast<int64_t*>(take(one_list * int64_t(sizeof(int64_t))));
    const auto take_list = [&](int64_t lines) {
      const int64_t cells = p.whole ? p.whole * p.whole : p.tile_rows * p.tile_columns;
      const int64_t entries = cells / kNonzeroShare + Native<T>::lanes;  // written by registers
      Listed<T> list;
      list.first = reinterpret_cast<int32_t*>(take((lines + 1) * int64_t(sizeof(int32_t))));
      list.index = reinterpret_cast<int32_t*>(take(entries * int64_t(sizeof(int32_t))));
      list.slope = reinterpret_cast<T*>(take(entries * int64_t(sizeof(T))));
      return list;
    };
    by_row = take_list(p.whole ? p.whole : p.tile_rows), by_column = take_list(p.tile_columns);
    gemm = take(p.gemm && !p.own_similarities ? 0 : own_gemm_bytes<T>());
    losses = reinterpret_cast<Accumulators*>(take(p.loss_count * int64_t(sizeof(Accumulators))));
    for (int l = 0; l < p.loss_count; ++l) {
      const Entry<T>& e = entries[p.losses[l].functor];
      Accumulators acc;
      acc.rows = take(p.tile_rows * e.row_bytes);
      acc.columns = take(p.tile_columns * e.column_fields * int64_t(sizeof(T)));
      const FunctorState& loss = p.losses[l];
      acc.row_slots = take(p.tile_rows * (loss.search       ? loss.search_cells * int64_t(sizeof(Bin))
                                          : loss.step_cells ? loss.step_cells * kCellTerms * int64_t(sizeof(T))
                                                            : p.most_positives * e.row_slot_bytes));
      acc.points = take(loss.step_cells ? Points<T>::numbers_of(loss.step_cells, p.most_positives) * int64_t(sizeof(T)) : 0);
      acc.column_slots =
          p.triangle ? take(p.tile_columns * p.most_positives * e.column_slot_fields * int64_t(sizeof(T))) : nullptr;
      acc.strip_table = reinterpret_cast<int64_t*>(take(p.losses[l].cells * int64_t(sizeof(int64_t))));
      acc.table = p.table_totals + thread * 2 * p.table_cells + 2 * p.losses[l].table_first;
      if (base) losses[l] = acc;
    }
    bytes = at - base;
  }
};

template <class T> static int64_t scratch_bytes(const Problem<T>& p, const Entry<T>* entries) {
  return Scratch<T>(p, entries, 0, nullptr).bytes + 64;
}

template <class T> static Scratch<T> scratch_of(const Problem<T>& p, const Entry<T>* entries, int thread) {
  unsigned char* base = p.scratch + int64_t(thread) * p.scratch_bytes;
  return Scratch<T>(p, entries, thread,
                    reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(base) + 63) & ~uintptr_t(63)));
}

DML_END
