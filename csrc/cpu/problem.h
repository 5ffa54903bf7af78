// Plain data shared by what plans a pass (compiled for any CPU) and the kernels of each instruction set (level.cpp, loss.cpp):
// no std:: type may pass, since the linker would be free to keep one level's copy of a template for all.
#pragma once
#include <cstdint>

namespace dml {

// Row-major products by a vendor BLAS or by the level's own kernel. The Fortran interface of `gemm`.
template <class T> using BlasGemm = void (*)(const char*, const char*, const int*, const int*, const int*, const T*, const T*,
                                             const int*, const T*, const int*, const T*, T*, const int*);

struct Tile {                     // rows [i0, i1) of the anchors against columns [j0, j1) of the references
  int64_t i0, i1, j0, j1;
  int64_t stored;                 // where its similarities are kept from forward to backward; -1: computed again
};

struct Block {                    // anchors [a0, a1) of one class and all references [r0, r1) of it, which may be none
  int64_t a0, a1, r0, r1;
  int owner;                      // the thread that works on the class, the same for all its blocks
  int64_t stored;                 // where the positives' similarities are kept; -1: computed again
};

// A functor in a pass: its number in the level's table, its options, and where its per-anchor arrays lie: fields are arrays over
// the anchors, `stride` long each. A slot is what a functor keeps per anchor and positive.
struct FunctorState {
  int functor;
  alignas(16) unsigned char options[128];
  int values, limits, sums, slopes, slot_limits, slot_sums, given_count;   // numbers of fields
  bool has_slots, has_means;
  int search;  // finite ends of a slot's interval; 0: slots are compared
  int64_t search_cells;  // a power of two above the number of ends of any anchor
  int step_cells;  // of the line on which soft ranks are taken by power series (series.h); 0: slots are compared
  int cells;  // of each of a table's two histograms, or 0
  int64_t table_first;  // where the table lies among the tables of all losses
  const void* windows_at;  // T [4][stride] or nullptr: pairs that count for this loss
  int semihard;  // which of the problem's choices of pairs counts for this loss, from 1 on; 0: none
  int value_row;  // first row of this loss in values [V, A]
  void* given_at;  // T, the caller's numbers per anchor
  void *limits_at, *sums_at, *slopes_at, *slot_limits_at, *slot_sums_at;  // T; slots are [field][positive][slot_stride]
  void* totals_at;  // double [threads][field][anchor]
  void* slot_totals_at;  // T [threads][field][positive][anchor]; the first are the sums
  void *breaks_at, *bins_at;  // T [anchor][search_cells]: sorted ends, the tally between them; or first and last cell
};

// The pairs of all triplets of an anchor with d_p < d_n <= d_p + margin, d the Euclidean distance: positives p that have such a
// negative n, and negatives that have such a positive. Chosen inside the pass (semihard.h).
struct Semihard {
  double margin;
  const int64_t* starts;  // [A + 1]: where an anchor's positives lie among those of all
  unsigned char* kept;  // of all positives
  int64_t most_spans;
  int32_t* spans;  // [A]: how many spans of distance the negatives lie in
  void* spans_at;  // T [A][most_spans][2]: above the first and up to the last distance of each
  void* near;  // T, while choosing: the distances of all positives, of each anchor first those that have no negative yet
  int32_t* which;  // the same order as places among the anchor's positives
  int32_t* left;  // [A]: how many have no negative yet
};

enum class Streamed { neither, anchors, references };

// The side that is not copied, as each of its vectors is needed by one panel of tiles only: a panel is scaled to unit norm when its
// first tile comes, and its gradient is written when the last one goes.
template <class T> struct StreamedSide {
  Streamed which;
  const T* vectors;  // the caller's rows, `stride` numbers apart, which must not change before backward
  int64_t stride;
  const int64_t* order;  // their places in class order
  bool normalise;
  T* norms;  // factors to unit norm, written in forward, as `broken` is
  bool* broken;
  T* gradient;  // the caller's rows, `gradient_stride` apart; nullptr: backward's own, in class order
  int64_t gradient_stride;
  const int64_t* slopes_at;  // [A]: where the slopes of an anchor's positives lie among those of all
};

template <class T> struct Problem {
  const T *anchors, *references;  // [A, D], [N, D], in class order; nullptr for the streamed side
  int64_t A, N, D;
  int64_t stride;  // of per-anchor arrays: A and room for one register more
  int64_t row0, row1;  // the anchors of this run; tiles and blocks are theirs
  bool self;  // references are the anchors
  bool triangle;  // tiles above the diagonal serve rows and columns
  const int64_t *row_first, *row_last;  // [A]: the references of the anchor's class
  const int64_t* positives;  // [A]: how many positives
  const int64_t* own;  // [A]: the reference that is the anchor itself, or -1
  const int64_t *starts, *lists;  // explicit positives of the anchors, or nullptr: by label
  const bool* broken;  // [A]: anchor with a value that is not finite
  const Tile* tiles;
  int64_t tile_count, tile_rows, tile_columns;
  int64_t whole;  // > 0: the tiles are parts of one matrix with rows of so many numbers, and so are their slopes
  const Block* blocks;
  int64_t block_count, most_positives;
  int64_t slot_first, slot_stride;  // anchors the slots are kept for, from the first on
  FunctorState* losses;
  const T* cotangents;  // [V, A] of the running backward pass
  int loss_count, value_count;
  int64_t table_cells;  // of all tables, both histograms
  int64_t* table_totals;  // [threads][2][cells]: pairs, and their fractions
  const T* table_slopes;  // [cells]: difference of the cotangents of neighbours
  int threads;
  bool row_owner_backward;  // threads own anchors, else references
  T* stored;  // similarities of tiles
  T* stored_positives;
  unsigned char* scratch;  // `threads` pieces
  int64_t scratch_bytes;  // of one piece
  BlasGemm<T> gemm;  // nullptr: the level's own
  void (*blas_threads)(int);  // sets this thread's BLAS threads, or nullptr
  StreamedSide<T> streamed;
  const Semihard* semihard;
  int semihard_count;
  bool own_similarities;  // by the level's own product, whose bits do not depend on the shape of a tile
};

// What a run of the kernels does: all stages at once, or single ones, where ranks that divide a pass tell one another between them
// what they found.
enum Stage { kOpen = 1, kCollect = 2, kClose = 4, kForward = 7, kWeigh = 1, kSlope = 2, kBackward = 3 };

constexpr int kMostCentres = 64;  // of a class, for losses that fold them

struct FunctorInfo {
  const char *name, *options;
  int values, limits, sums, slopes, slot_limits, slot_sums, bytes, given_count;
  bool has_slots, partners, table, centres, means;
  int search;
};

struct PairMeans {  // of a batch with itself: mean similarities, and how many pairs they are of
  double positive, negative, positive_pairs, negative_pairs;
};

struct FunctorModule {  // what a loss's header becomes (functors.h)
  const char *headers, *level;  // the hash of the headers, and the instruction set
  const void *f32, *f64;  // entries
  int count;  // of each
  int64_t bytes32, bytes64;  // of one
};

template <class T> struct Kernels {  // what one instruction set offers for one number type
  const char* level;
  int (*functors)();
  const FunctorModule* (*built_in)(int loss);  // of csrc/losses, in order; nullptr behind the last
  const char* (*append)(const void* entries, int count, int64_t bytes);  // to the functors; why not, or nullptr
  int lanes;
  FunctorInfo (*describe)(int functor);
  bool (*fits)(int functor, const double* options, unsigned char* into);
  int (*cells)(int functor, const unsigned char* options);
  int (*step_cells)(int functor, const unsigned char* options);
  double fraction_unit;  // of the fractions of a table
  int64_t (*search_cells)(int64_t ends);
  int64_t (*scratch_bytes)(const Problem<T>&);
  void (*gather)(const T* from, int64_t stride, const int64_t* order, int64_t rows, int64_t width, bool normalise, T* to,
                 T* norms, bool* broken, int threads);
  void (*scatter)(T* grad, const T* unit, const T* norms, const int64_t* order, int64_t rows, int64_t width, bool normalise,
                  T* to, int64_t stride, bool adds, int threads);
  void (*forward)(const Problem<T>&, int stages, T* values, T* counts);  // [V, A] in class order
  void (*backward)(const Problem<T>&, int stages, const T* cotangents, T* grad_anchors, T* grad_references,
                   T* private_grads);  // adds
  // The means of a functor that takes them, and their gradient. `total`, [D], is kept between both, `of_class` is as long.
  PairMeans (*pair_means)(const Problem<T>&, double* total, double* of_class);
  void (*add_pair_means)(const Problem<T>&, double positive, double negative, const double* total, double* of_class, T* grads);
  // Sums of the anchors [from, from + count) out of those that several ranks have of them, [rank][field][count]: of the functor's
  // first field in the first rank, and `step` numbers from rank to rank.
  void (*merge_ranks)(const Problem<T>&, int loss, const T* parts, int ranks, int64_t step, int64_t from, int64_t count);
  // to [rows, columns] = the products of rows [rows, depth] and columns [columns, depth], by the level's own kernel.
  void (*multiply)(const T* rows_of, int64_t rows, const T* columns_of, int64_t columns, int64_t depth, T* to,
                   unsigned char* scratch);
  int64_t multiply_bytes;  // of its scratch memory
};

}  // namespace dml
