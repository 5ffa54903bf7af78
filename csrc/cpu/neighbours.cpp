// One instruction set's kernels of the ranking: packing, the tile's product and its comparison with the positives. Compiled
// once per level with -DDML_LEVEL and that level's flags.
//
// A task is a block of rows; it walks the panels of references. In self mode a tile above the diagonal serves its rows and its
// columns, so only half the products are made. Counts are whole numbers: any order of threads gives the same result.
#include "cpu/neighbours.h"

#include <omp.h>
#include <cstring>

#include "cpu/gemm.h"
#include "cpu/intervals.h"
#include "dml/vector.h"

DML_BEGIN

#if defined(__AVX512F__)
constexpr int kTileRows = 12;                                          // x 2 registers: 24 sums of the 32 registers
#elif defined(__AVX__)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 4;
#endif
constexpr int64_t kMostGroups = 8;                                     // groups of kTileRows in a block of rows
constexpr int64_t kMostGroupsOfMany = 2;                               // where rows have tables of their many positives
constexpr int64_t kBlockBytes = 384 << 10;                             // a block of rows stays in the second-level cache
constexpr int64_t kList = 1024;                                        // similarities of a row that wait for its table

template <class T> using Count = typename CountOf<T>::type;
template <class T> constexpr int64_t kWidth = 2 * Native<T>::lanes;

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most_of(int64_t a, int64_t b) { return a > b ? a : b; }

template <class V> DML_FN V load(const void* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <class V> DML_FN V broadcast(typename Scalar<V>::type x) { return x - V{}; }  // 0 + x would be an addition: -0 + 0 = 0

// count + (s >= t), lane by lane
DML_FN VecI add_if_above(VecI count, VecF s, VecF t) {
#if defined(__AVX512F__)
  return (VecI)_mm512_mask_sub_epi32((__m512i)count, _mm512_cmp_ps_mask((__m512)s, (__m512)t, _CMP_GE_OQ), (__m512i)count,
                                     _mm512_set1_epi32(-1));
#else
  return count - (s >= t);
#endif
}
DML_FN VecL add_if_above(VecL count, VecD s, VecD t) { return count - (s >= t); }

// out [kTileRows][width] = rows [depth][kTileRows] times panel [depth][width]
template <class T> static inline __attribute__((always_inline)) void product(const T* rows, const T* panel, int64_t depth,
                                                                             T* out) {
  using V = typename Native<T>::V;
  constexpr int lanes = Native<T>::lanes;
  V left[kTileRows], right[kTileRows];
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) left[r] = right[r] = V{};
  for (int64_t p = 0; p < depth; ++p) {
    const V x = load<V>(panel), y = load<V>(panel + lanes);
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
      const V s = broadcast<V>(rows[r]);
      left[r] += s * x;
      right[r] += s * y;
    }
    panel += 2 * lanes;
    rows += kTileRows;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
    __builtin_memcpy(out + 2 * lanes * r, &left[r], sizeof(V));
    __builtin_memcpy(out + 2 * lanes * r + lanes, &right[r], sizeof(V));
  }
}

// Whether any query of the run has so many positives that they are looked up.
template <class T> static bool has_many(const Ranking<T>& p) {
  for (int64_t panel = p.q0 / kWidth<T>; panel * kWidth<T> < p.q1; ++panel)
    if (p.spread[panel] > 0) return true;
  return false;
}

template <class T> static int64_t groups_of(const Ranking<T>& p) {
  const int64_t fit = kBlockBytes / int64_t(sizeof(T)) / (kTileRows * most_of(p.D, 1));
  return most_of(1, least(has_many(p) ? kMostGroupsOfMany : kMostGroups, fit));
}

template <class T> struct Workspace {
  static constexpr int64_t list_room = kList + kWidth<T> + Native<T>::lanes;
  T *rows, *block, *lists;  // lists: [row][list_room]
  Count<T>* row_counts;  // [row][positive][register]
  uint16_t* cells;  // [row][kCells]
  int64_t bytes;

  Workspace(const Ranking<T>& p, int64_t widest, unsigned char* base) {
    unsigned char* at = base;
    auto take = [&](int64_t n) {
      unsigned char* here = at;
      at += (n + 63) / 64 * 64;
      return here;
    };
    const int64_t block_rows = groups_of(p) * kTileRows;
    rows = reinterpret_cast<T*>(take(block_rows * p.D * int64_t(sizeof(T))));
    block = reinterpret_cast<T*>(take(block_rows * kWidth<T> * int64_t(sizeof(T))));
    row_counts = reinterpret_cast<Count<T>*>(take(block_rows * widest * DML_WIDTH));
    const int64_t many_rows = has_many(p) ? block_rows : 0;
    lists = reinterpret_cast<T*>(take(many_rows * list_room * int64_t(sizeof(T))));
    cells = reinterpret_cast<uint16_t*>(take(many_rows * kCells * int64_t(sizeof(uint16_t))));
    bytes = at - base;
  }
};

// Positives per query, at most, of those that are compared one by one.
template <class T> static int64_t widest_of(const Ranking<T>& p) {
  int64_t widest = 0;
  for (int64_t panel = p.q0 / kWidth<T>; panel * kWidth<T> < p.q1; ++panel)
    if (p.spread[panel] == 0) widest = most_of(widest, p.most[panel]);
  return widest;
}
template <class T> static int64_t scratch_bytes(const Ranking<T>& p) {
  return Workspace<T>(p, widest_of(p), nullptr).bytes + 64;
}

template <class T> static Workspace<T> workspace_of(const Ranking<T>& p, int64_t widest, int thread) {
  unsigned char* base = p.scratch + int64_t(thread) * p.scratch_bytes;
  return Workspace<T>(p, widest, reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(base) + 63) & ~uintptr_t(63)));
}

// Queries [i0, i1) from panels into groups [depth][kTileRows], zeros beyond the edge. A group lies in one panel or two.
template <class T> static void pack_rows(const Ranking<T>& p, int64_t i0, int64_t i1, T* to) {
  for (int64_t g0 = i0; g0 < i1; g0 += kTileRows, to += p.D * kTileRows) {
    const int64_t count = least(kTileRows, i1 - g0), place = g0 % kWidth<T>, first = least(count, kWidth<T> - place);
    const T* from = p.queries + (g0 - place) * p.D + place;
    if (first == kTileRows) {
      for (int64_t d = 0; d < p.D; ++d) __builtin_memcpy(to + d * kTileRows, from + d * kWidth<T>, kTileRows * sizeof(T));
      continue;
    }
    const T* next = p.queries + (g0 - place + kWidth<T>)*p.D;
    for (int64_t d = 0; d < p.D; ++d)
      for (int64_t r = 0; r < kTileRows; ++r)
        to[d * kTileRows + r] = r < first ? from[d * kWidth<T> + r] : r < count ? next[d * kWidth<T> + r - first] : T(0);
  }
}

// Similarities of one group of rows from g0 on to the panel of references from j0 on.
template <class T>
static inline __attribute__((always_inline)) void similarities(const Ranking<T>& p, const T* group, int64_t g0, int64_t g1,
                                                               int64_t j0, T* out) {
  product<T>(group, p.references + j0 * p.D, p.D, out);
  if (!p.query_halves) return;
  const int64_t columns = least(kWidth<T>, p.N - j0);
  for (int64_t i = g0; i < g1; ++i)
    for (int64_t j = 0; j < columns; ++j) out[(i - g0) * kWidth<T> + j] -= p.query_halves[i] + p.reference_halves[j0 + j];
}

template <class T, class Work> static void for_blocks(const Ranking<T>& p, Work work) {
  const int64_t step = groups_of(p) * kTileRows, blocks = (p.q1 - p.q0 + step - 1) / step, widest = widest_of(p);
#pragma omp parallel num_threads(p.threads) if (p.threads > 1)
  {
    const int thread = omp_get_thread_num();
    const Workspace<T> w = workspace_of(p, widest, thread);
#pragma omp for schedule(dynamic, 1)
    for (int64_t b = 0; b < blocks; ++b) {  // a triangle's long rows come first
      const int64_t i0 = p.q0 + b * step, i1 = least(i0 + step, p.q1);
      pack_rows(p, i0, i1, w.rows);
      work(w, thread, i0, i1);
    }
  }
}

template <class T> static void positives(const Ranking<T>& p) {
  for_blocks(p, [&](const Workspace<T>& w, int, int64_t i0, int64_t i1) {
    for (int64_t g0 = i0; g0 < i1; g0 += kTileRows) {
      const int64_t g1 = least(g0 + kTileRows, i1);
      const T* group = w.rows + (g0 - i0) * p.D;
      for (int64_t j0 = p.first[g0] / kWidth<T> * kWidth<T>; j0 < p.last[g1 - 1]; j0 += kWidth<T>) {
        similarities(p, group, g0, g1, j0, w.block);
        for (int64_t i = g0; i < g1; ++i) {
          const int64_t to = least(p.last[i], j0 + kWidth<T>);
          for (int64_t j = most_of(p.first[i], j0); j < to; ++j) {
            if (p.self && i == j) continue;
            p.thresholds[p.at(i, p.held[i] + j - p.first[i] - (p.self && j > i), kWidth<T>)] =
                w.block[(i - g0) * kWidth<T> + j - j0];
          }
        }
      }
    }
  });
}

// Rows of few positives: each similarity is compared with each positive.
template <class T> static void count_row(const Ranking<T>& p, const Workspace<T>& w, int64_t local, int64_t i, int64_t widest) {
  using V = typename Native<T>::V;
  using M = typename Native<T>::M;
  constexpr int lanes = Native<T>::lanes;
  const T* row = w.block + local * kWidth<T>;
  const int64_t place = p.at(i, 0, kWidth<T>);
  const V left = load<V>(row), right = load<V>(row + lanes);
  Count<T>* sums = w.row_counts + local * widest * lanes;
  for (int64_t k = 0; k < p.length[i]; ++k) {
    const V t = broadcast<V>(p.thresholds[place + k * kWidth<T>]);
    const M sum = add_if_above(add_if_above(load<M>(sums + k * lanes), left, t), right, t);
    __builtin_memcpy(sums + k * lanes, &sum, sizeof sum);
  }
}

template <class T> static void count_columns(const Ranking<T>& p, const Workspace<T>& w, int64_t rows, int64_t j0,
                                             Count<T>* counts) {
  using V = typename Native<T>::V;
  using M = typename Native<T>::M;
  constexpr int lanes = Native<T>::lanes;
  const int64_t panel = j0 / kWidth<T>;
  for (int64_t k = 0; k < p.most[panel]; ++k) {
    const T* t = p.thresholds + p.start[panel] + k * kWidth<T>;
    Count<T>* to = counts + p.start[panel] + k * kWidth<T>;
    const V t_left = load<V>(t), t_right = load<V>(t + lanes);
    M left = load<M>(to), right = load<M>(to + lanes);
    for (int64_t r = 0; r < rows; ++r) {
      left = add_if_above(left, load<V>(w.block + r * kWidth<T>), t_left);
      right = add_if_above(right, load<V>(w.block + r * kWidth<T> + lanes), t_right);
    }
    __builtin_memcpy(to, &left, sizeof left);
    __builtin_memcpy(to + lanes, &right, sizeof right);
  }
}

// The rows of a block with many positives. Their similarities wait in lists, so that a row's positives come into the nearest cache
// once for a thousand of them. They meet every reference: as a column, a query would have a hundred similarities at a time.
template <class T> struct RowsOfMany {
  const Ranking<T>& p;
  const Workspace<T>& w;
  Count<T>* counts;
  int64_t size = 0;
  int64_t query[kMostGroupsOfMany * kTileRows], place[kMostGroupsOfMany * kTileRows], listed[kMostGroupsOfMany * kTileRows];
  Cells<T> cells[kMostGroupsOfMany * kTileRows];
  int64_t first_row;

  RowsOfMany(const Ranking<T>& p, const Workspace<T>& w, Count<T>* counts, int64_t i0, int64_t i1)
      : p(p), w(w), counts(counts), first_row(i0) {
    for (int64_t i = i0; i < i1; ++i) {
      if (p.spread[i / kWidth<T>] == 0 || p.length[i] <= 0) continue;
      query[size] = i, place[size] = p.at(i, 0, kWidth<T>), listed[size] = 0;
      cells[size].higher = w.cells + size * kCells;
      cells[size].fill(p.thresholds + place[size], p.length[i]);
      ++size;
    }
  }
  T* list(int64_t k) const { return w.lists + k * Workspace<T>::list_room; }
  void take() {
    for (int64_t k = 0; k < size; ++k) {
      const T* row = w.block + (query[k] - first_row) * kWidth<T>;
      listed[k] = append(list(k), listed[k], row, kWidth<T>, cells[k].lowest);
      if (listed[k] > kList) sort_list(k);
    }
  }
  void sort_list(int64_t k) {
    const T* t = p.thresholds + place[k];
    if (cells[k].is_used) cells[k].sort_in(list(k), listed[k], t, counts + place[k]);
    else sort_in(list(k), listed[k], t, p.most[query[k] / kWidth<T>], counts + place[k]);
    listed[k] = 0;
  }
  void end() {
    for (int64_t k = 0; k < size; ++k) sort_list(k);
  }
};

template <class T> static void count(const Ranking<T>& p) {
  constexpr int lanes = Native<T>::lanes;
  const T nothing = -T(__builtin_inf());  // below every threshold
  const int64_t widest = widest_of(p);
  for_blocks(p, [&](const Workspace<T>& w, int thread, int64_t i0, int64_t i1) {
    Count<T>* counts = p.counts + thread * p.cells;
    memset(w.row_counts, 0, (i1 - i0) * widest * DML_WIDTH);
    RowsOfMany<T> many(p, w, counts, i0, i1);
    const bool is_one_class = p.first[i0] == p.first[i1 - 1];
    for (int64_t j0 = 0; j0 < p.N; j0 += kWidth<T>) {
      const int64_t j1 = j0 + kWidth<T>;
      const bool both = p.self && j0 >= p.q0 && j0 < p.q1;  // the columns are queries of this run too
      const bool is_served = both && j1 <= p.last[i0];  // by earlier rows, where positives are few
      if (is_one_class && j0 >= p.first[i0] && j1 <= p.last[i0]) continue;
      if (is_served && many.size == 0) continue;
      for (int64_t g0 = i0; g0 < i1; g0 += kTileRows) {
        const int64_t g1 = least(g0 + kTileRows, i1);
        T* out = w.block + (g0 - i0) * kWidth<T>;
        similarities(p, w.rows + (g0 - i0) * p.D, g0, g1, j0, out);
        if (j0 < p.last[g1 - 1] && p.first[g0] < j1)
          for (int64_t i = g0; i < g1; ++i)
            for (int64_t j = most_of(j0, p.first[i]); j < least(p.last[i], j1); ++j)
              out[(i - g0) * kWidth<T> + j - j0] = nothing;
        if (p.N < j1)
          for (int64_t i = g0; i < g1; ++i)
            for (int64_t j = p.N - j0; j < kWidth<T>; ++j) out[(i - g0) * kWidth<T> + j] = nothing;
      }
      many.take();
      if (is_served) continue;
      if (both && j0 < p.first[i1 - 1])
        for (int64_t i = i0; i < i1; ++i)
          for (int64_t j = j0; j < least(p.first[i], j1); ++j) w.block[(i - i0) * kWidth<T> + j - j0] = nothing;
      for (int64_t i = i0; i < i1; ++i)
        if (p.spread[i / kWidth<T>] == 0) count_row(p, w, i - i0, i, widest);
      if (both && p.spread[j0 / kWidth<T>] == 0) count_columns(p, w, i1 - i0, j0, counts);
    }
    many.end();
    for (int64_t i = i0; i < i1; ++i) {
      if (p.spread[i / kWidth<T>] > 0) continue;
      for (int64_t k = 0; k < p.length[i]; ++k) {
        const Count<T>* sums = w.row_counts + ((i - i0) * widest + k) * lanes;
        Count<T> total = 0;
        for (int q = 0; q < lanes; ++q) total += sums[q];
        counts[p.at(i, k, kWidth<T>)] += total;
      }
    }
  });
}

template <class T> struct Scaling {  // of a row: x / scale * factor
  T scale, factor;
};

// Also half of the row's square, if it is asked for.
template <class T> static Scaling<T> scaling_of(const T* x, int64_t depth, bool normalise, T* half) {
  using V = typename Native<T>::V;
  constexpr int64_t lanes = Native<T>::lanes;
  V several = V{};
  int64_t d = 0;
  for (; d + lanes <= depth; d += lanes) {
    const V v = load<V>(x + d);
    several = max(several, max(v, -v));
  }
  T largest = 0;
  for (int64_t q = 0; q < lanes; ++q) largest = max(largest, several[q]);
  for (; d < depth; ++d) largest = max(largest, x[d] < 0 ? -x[d] : x[d]);
  const T scale = normalise && largest > 0 ? largest : T(1);  // so that no square overflows or vanishes
  double square = 0;
#pragma omp simd reduction(+ : square)
  for (int64_t k = 0; k < depth; ++k) square += double(x[k] / scale) * double(x[k] / scale);
  if (half) *half = T(square / 2);
  return {scale, normalise && square > 0 ? T(1 / __builtin_sqrt(square)) : T(1)};  // a zero vector stays zero
}

template <class T> static void pack(const T* from, const int64_t* order, int64_t rows, int64_t depth, bool normalise, T* panels,
                                    T* halves, int threads) {
  using V = typename Native<T>::V;
  constexpr int64_t lanes = Native<T>::lanes;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t j0 = 0; j0 < (rows + kWidth<T> - 1) / kWidth<T> * kWidth<T>; j0 += lanes) {
    T* to = panels + j0 / kWidth<T> * kWidth<T> * depth + j0 % kWidth<T>;
    const int64_t count = most_of(0, least(lanes, rows - j0));  // zeros beyond the edge
    const T* x[lanes];
    Scaling<T> of[lanes];
    for (int64_t q = 0; q < count; ++q) {
      x[q] = from + order[j0 + q] * depth;
      of[q] = scaling_of(x[q], depth, normalise, halves ? halves + j0 + q : nullptr);
    }
    int64_t d = 0;
    for (; d + lanes <= depth; d += lanes) {
      V square[lanes];
      for (int64_t q = 0; q < lanes; ++q) square[q] = q < count ? load<V>(x[q] + d) / of[q].scale * of[q].factor : V{};
      transpose(square);
      for (int64_t q = 0; q < lanes; ++q) __builtin_memcpy(to + (d + q) * kWidth<T>, &square[q], sizeof(V));
    }
    for (; d < depth; ++d)
      for (int64_t q = 0; q < lanes; ++q) to[d * kWidth<T> + q] = q < count ? x[q][d] / of[q].scale * of[q].factor : T(0);
  }
}

template <class T> static RankingKernels<T> kernels(const char* name) {
  return {name, kWidth<T>, pack<T>, scratch_bytes<T>, positives<T>, count<T>};
}

DML_END

#define DML_JOIN_(a, b) a##b
#define DML_JOIN(a, b) DML_JOIN_(a, b)
#define DML_TEXT_(a) #a
#define DML_TEXT(a) DML_TEXT_(a)
namespace dml {
RankingKernels<float> DML_JOIN(ranking_f32_, DML_LEVEL)() { return kernels<float>(DML_TEXT(DML_LEVEL)); }
RankingKernels<double> DML_JOIN(ranking_f64_, DML_LEVEL)() { return kernels<double>(DML_TEXT(DML_LEVEL)); }
}  // namespace dml
