#include "cpu/plan.h"

#include <omp.h>

#include <algorithm>

namespace dml {

namespace {

constexpr double kThreadWork = 1e7;  // multiplications that a further thread is worth its barriers for
constexpr int64_t kSlotBytes = int64_t(32) << 20, kRowSlotBytes = int64_t(2)
                                                                  << 20;  // of a chunk; of a tile, which stays in the cache
constexpr int64_t kMostWhole = 512;  // anchors of a batch with itself whose similarities are one matrix
constexpr int64_t kWorkspace = int64_t(24) << 20, kWorkspaceOfReferences = int64_t(64) << 20;
// Positives that a negative is compared with one by one: with more, searching is faster. It works on rows only, so a batch compared
// with itself first has to lose half as much again in products (measured equal at 31 positives and 128 dimensions).
constexpr int64_t kMostCompared = 12, kMostComparedTwice = 32;
constexpr int64_t kMostSteps =
    14;  // the same of soft ranks: power series were measured equal there, with and without a triangle
constexpr int64_t kNumbersOfCell = 16;
constexpr int64_t kPanelRows = 128, kPanelColumns = 256;  // of the streamed side

class Planner {
 public:
  Planner(const PlanInput& input, const PlanRequest& request) : in_(input), request_(request) {}

  Plan plan() {
    choose_methods();
    choose_tile();
    choose_whole();
    choose_streamed();
    cut_into_chunks();
    keep_own_tiles();
    choose_what_is_stored();
    for (const Chunk& c : out_.chunks)
      out_.slot_cells = std::max(out_.slot_cells, slot_cells(rounded(c.row1 - c.row0, 16) + 16, c.most_positives, totals()));
    return std::move(out_);
  }

 private:
  int64_t workspace() const {
    return request_.workspace >= 0 ? request_.workspace : in_.self ? kWorkspace : kWorkspaceOfReferences;
  }
  int totals() const { return out_.triangle ? in_.threads : 1; }  // a triangle's threads add to the same anchors

  int64_t search_cells(const FunctorState& f, int64_t most) const {
    if (!out_.searches) return 0;
    return f.step_cells ? 1 : f.search ? in_.search_cells(f.search * most) : 0;
  }
  int64_t slot_cells(int64_t rows, int64_t most, int totals) const {
    int64_t cells = 0;
    for (const FunctorState& f : in_.functors)
      cells += (f.slot_limits + f.slot_sums * totals) * most + 2 * search_cells(f, most);
    return cells * rows;
  }
  int64_t most_of(int64_t first, int64_t last) const {
    return *std::max_element(in_.classes.positives.begin() + first, in_.classes.positives.begin() + last);
  }

  // Windows follow from numbers without a derivative, and must find the same bits in a pass of rows.
  bool has_slopes() const {
    return std::any_of(in_.functors.begin(), in_.functors.end(), [](const FunctorState& f) { return f.slopes > 0; });
  }

  // Soft ranks among positives are taken once, with the last tile of the rows.
  bool takes_ranks() const {
    return out_.searches &&
           std::any_of(in_.functors.begin(), in_.functors.end(), [](const FunctorState& f) { return f.step_cells > 0; });
  }

  // Compare or search; rows and columns of a tile at once, or rows alone.
  void choose_methods() {
    const bool slots = std::any_of(in_.functors.begin(), in_.functors.end(), [](const FunctorState& f) { return f.has_slots; });
    out_.most_positives = slots && in_.anchors ? most_of(0, in_.anchors) : 0;
    const bool has_symmetry = in_.classes.is_symmetric && (!in_.has_lists || has_slopes());
    const bool symmetric = in_.self && has_symmetry && !in_.has_windows && (request_.triangle != 0 || request_.ranks > 1);
    const auto is_large = [&](const FunctorState& f) {
      return (f.step_cells && out_.most_positives > kMostSteps) ||
             (f.search && out_.most_positives > (symmetric ? kMostComparedTwice : kMostCompared));
    };
    const bool large = std::any_of(in_.functors.begin(), in_.functors.end(), is_large);
    const bool may_search = out_.most_positives > 0 && (request_.search >= 0 ? request_.search != 0 : large);
    out_.searches = may_search && std::any_of(in_.functors.begin(), in_.functors.end(),
                                              [](const FunctorState& f) { return f.search > 0 || f.step_cells > 0; });
    budget_ = (request_.slot_bytes > 0 ? request_.slot_bytes : kSlotBytes) / in_.number_bytes;
    slots_fit_ = slot_cells(in_.stride, out_.most_positives, in_.threads) <= budget_;
    out_.triangle = symmetric && slots_fit_ && !out_.searches;
  }

  // A triangle wants narrow tiles at its diagonal. Against references larger tiles save the products' packing; the columns of a
  // strip should stay in the first-level cache only while more than one loss passes over it.
  void choose_tile() {
    const int64_t most_rows = std::max<int64_t>(in_.anchors, 1), most_columns = std::max<int64_t>(in_.references, 1);
    int64_t rows = request_.tile_rows > 0 ? request_.tile_rows : (!in_.self ? 256 : in_.anchors >= 1024 ? 128 : 64);
    int64_t columns = request_.tile_columns > 0 ? request_.tile_columns : (!in_.self && in_.functors.size() == 1 ? 1024 : 512);
    if (!out_.triangle && in_.threads > 1) {  // every thread should find rows, and columns, to own
      rows = std::min(rows, rounded((in_.anchors + in_.threads - 1) / in_.threads, 8));
      columns = std::min(columns, rounded((in_.references + in_.threads - 1) / in_.threads, 64));
    }
    int64_t row_bytes = 1;  // of a row's slots or bins: those of a tile stay in the cache
    for (const FunctorState& f : in_.functors) {
      const bool searched = out_.searches && f.search, stepped = out_.searches && f.step_cells;
      row_bytes = std::max(row_bytes, searched      ? 16 * search_cells(f, out_.most_positives)
                                      : stepped     ? kNumbersOfCell * f.step_cells * in_.number_bytes
                                      : f.has_slots ? 64 * out_.most_positives
                                                    : 1);
    }
    rows = std::min(rows, std::max<int64_t>(8, kRowSlotBytes / row_bytes));
    out_.tile_rows = std::max<int64_t>(1, std::min(rows, most_rows));
    out_.tile_columns = rounded(std::max<int64_t>(1, std::min(columns, most_columns)), 16 * in_.centres);
  }

  // The slopes of a small batch with itself are mirrored into one matrix, so that one product takes the place of two for each
  // tile, and takes the positives too. Larger matrices would not stay in the cache. Numbers without a derivative gain nothing.
  void choose_whole() {
    if (!has_slopes()) return;
    const int64_t width = rounded(in_.anchors, 16);
    const bool is_cut_well = out_.tile_rows % 16 == 0 || out_.tile_rows >= in_.anchors;
    if (out_.triangle && request_.ranks == 1 && in_.anchors > 0 && in_.anchors <= kMostWhole &&
        out_.tile_columns >= in_.anchors && is_cut_well && width * width * in_.number_bytes <= workspace())
      out_.whole = width;
  }

  // The larger side is streamed where its panels are needed once, and all slopes of positives are kept for its tiles. Sums of rows
  // stay with a thread, so against streamed references it has one row of tiles. Where ranks are taken there is one in all: OpenMP
  // may grant a single thread, which would come back to each row with every panel. The vectors of a tile, their gradients,
  // similarities and slopes should stay in the second-level cache.
  void choose_streamed() {
    const std::vector<Block>& blocks = in_.classes.blocks;
    const bool are_kept = std::all_of(blocks.begin(), blocks.end(), [](const Block& b) { return b.stored >= 0; });
    if (request_.stream == 0 || in_.self || in_.has_lists || !slots_fit_ || !are_kept || !in_.anchors || !in_.references)
      return;
    if (in_.anchors >= in_.references) {
      out_.streamed = Streamed::anchors;
      if (request_.tile_rows <= 0) out_.tile_rows = std::min(out_.tile_rows, kPanelRows);
    } else if (in_.anchors <= out_.tile_rows * (takes_ranks() ? 1 : in_.threads)) {
      out_.streamed = Streamed::references;
      if (request_.tile_columns <= 0) out_.tile_columns = std::min(out_.tile_columns, rounded(kPanelColumns, 16 * in_.centres));
    }
  }

  // Anchors are taken in chunks only when the slots of all of them would not fit. A chunk ends with a block, and where anchors
  // are coupled with their positives with a class.
  void cut_into_chunks() {
    const std::vector<Block>& blocks = in_.classes.blocks;
    size_t block = 0;
    for (int64_t row = 0; row < in_.anchors || out_.chunks.empty();) {
      int64_t last = in_.anchors, widest = out_.most_positives;
      if (slots_fit_) {
        block = blocks.size();
      } else {
        widest = 0;
        const size_t first = block;
        for (last = row; block < blocks.size(); ++block) {
          const int64_t wider = std::max(widest, most_of(blocks[block].a0, blocks[block].a1));
          const bool divides = in_.has_partners && block > first && blocks[block].r0 == blocks[block - 1].r0;
          if (block > first && !divides && slot_cells(rounded(blocks[block].a1 - row, 16), wider, 1) > budget_) break;
          widest = wider, last = blocks[block].a1;
        }
      }
      const int64_t first_block = out_.chunks.empty() ? 0 : out_.chunks.back().block1, first_tile = int64_t(out_.tiles.size());
      add_tiles(row, last);
      out_.chunks.push_back({row, last, first_tile, int64_t(out_.tiles.size()), first_block, int64_t(block), widest});
      row = last;
      if (in_.anchors == 0) break;
    }
  }

  void add_tiles(int64_t row, int64_t last) {
    const std::vector<int64_t>&first_of = in_.classes.row_first, &last_of = in_.classes.row_last;
    if (out_.streamed != Streamed::neither) return add_streamed_tiles();
    for (int64_t i0 = row; i0 < last; i0 += out_.tile_rows) {
      const int64_t i1 = std::min(i0 + out_.tile_rows, last);
      for (int64_t j0 = out_.triangle ? i0 : 0; j0 < in_.references; j0 += out_.tile_columns) {
        const int64_t j1 = std::min(j0 + out_.tile_columns, in_.references);
        const bool same = first_of[i0] <= j0 && j1 <= last_of[i0] && first_of[i1 - 1] <= j0 && j1 <= last_of[i1 - 1];
        if (out_.triangle ? !out_.whole && j1 <= last_of[i0] : same) continue;  // no negative in it
        out_.tiles.push_back({i0, i1, j0, j1, -1});
      }
      if ((out_.tiles.empty() || out_.tiles.back().i0 != i0) && in_.references > 0 &&
          takes_ranks())  // there must be a last tile
        out_.tiles.push_back({i0, i1, 0, std::min(out_.tile_columns, in_.references), -1});
    }
  }

  static int64_t cells_of(const Tile& t) { return (t.i1 - t.i0) * rounded(t.j1 - t.j0, 16); }

  // Of the tiles in their order each rank takes a run, so that rows of tiles are begun and flushed by one rank but for the ends.
  void keep_own_tiles() {
    if (request_.ranks == 1) return;
    int64_t total = 0, before = 0;
    for (const Tile& t : out_.tiles) total += cells_of(t);
    std::vector<Tile> own;
    for (const Tile& t : out_.tiles) {
      if (owner_of(before, cells_of(t), total, request_.ranks) == request_.rank) own.push_back(t);
      before += cells_of(t);
    }
    out_.tiles.swap(own);
    out_.chunks.back().tile1 = int64_t(out_.tiles.size());             // without slots there is one chunk
  }

  // Tiles of positives only are needed too: the slopes of positives are theirs.
  void add_streamed_tiles() {
    const bool by_rows = out_.streamed == Streamed::anchors;
    const int64_t outer = by_rows ? in_.anchors : in_.references, inner = by_rows ? in_.references : in_.anchors;
    const int64_t outer_step = by_rows ? out_.tile_rows : out_.tile_columns;
    const int64_t inner_step = by_rows ? out_.tile_columns : out_.tile_rows;
    for (int64_t o = 0; o < outer; o += outer_step)
      for (int64_t i = 0; i < inner; i += inner_step) {
        const int64_t o1 = std::min(o + outer_step, outer), i1 = std::min(i + inner_step, inner);
        if (by_rows) out_.tiles.push_back({o, o1, i, i1, -1});
        else out_.tiles.push_back({i, i1, o, o1, -1});
      }
  }

  // A batch with itself keeps all tiles or none (a part would cost its memory and save little); against references every tile
  // that fits is one product less.
  void choose_what_is_stored() {
    for (const Tile& t : out_.tiles) out_.tile_cells += cells_of(t);
    if (out_.whole) {
      for (Tile& t : out_.tiles) t.stored = t.i0 * out_.whole + t.j0;
      out_.stored_cells = in_.anchors * out_.whole;
      return;
    }
    if (out_.chunks.size() > 1 || (in_.self && out_.tile_cells * in_.number_bytes > workspace())) return;
    for (Tile& t : out_.tiles) {
      if ((out_.stored_cells + cells_of(t)) * in_.number_bytes > workspace()) break;
      t.stored = out_.stored_cells;
      out_.stored_cells += cells_of(t);
    }
  }

  const PlanInput& in_;
  const PlanRequest& request_;
  Plan out_;
  int64_t budget_ = 0;  // numbers that a chunk's slots may be
  bool slots_fit_ = true;
};

}  // namespace

Plan make_plan(const PlanInput& input, const PlanRequest& request) { return Planner(input, request).plan(); }

int threads_for(double work, const PlanRequest& request) {
  const double worth = request.thread_work > 0 ? double(request.thread_work) : kThreadWork;
  const int busy = int(std::min(work / worth, 1e6)) + 1;
  return omp_in_parallel() ? 1 : std::max(1, std::min({request.threads, omp_get_thread_limit(), busy}));
}

}  // namespace dml
