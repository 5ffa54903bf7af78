// The plan of a pass: tiles, chunks of anchors, and how much memory each takes. A pure function of sizes, classes and functors,
// which reads no vector; tests print it.
#pragma once
#include <vector>

#include "cpu/order.h"

namespace dml {

struct PlanRequest {  // 0 or -1: the planner decides
  int threads = 1;  // at most
  int64_t thread_work = 0;  // multiplications from which on a further thread is worth its barriers
  int64_t workspace = -1;  // bytes that similarities may be kept in between forward and backward
  int64_t tile_rows = 0, tile_columns = 0;
  int64_t slot_bytes = 0;  // bytes for the slots of losses that compare positives with negatives
  int search = -1;  // 0: never look negatives up among a large class's thresholds, 1: always
  int triangle = -1;  // 0: never use the symmetry of a batch compared with itself
  int stream = -1;  // 0: copy both sides
  int rank = 0, ranks = 1;  // that divide the tiles of a triangle and the classes among them, and which of them this one is
};

struct PlanInput {  // what the plan depends on
  int64_t anchors, references, stride;  // stride: of per-anchor arrays
  bool self, has_lists, has_windows, has_partners;
  int threads;
  int64_t number_bytes;  // of a float or a double
  int64_t centres;  // references per class, where a loss folds them; else 1
  const Classes& classes;
  const std::vector<FunctorState>& functors;
  int64_t (*search_cells)(int64_t ends);
};

struct Chunk {  // anchors handled together, their tiles and blocks
  int64_t row0, row1, tile0, tile1, block0, block1, most_positives;
};

struct Plan {
  bool triangle = false, searches = false;  // searches: else functors compare every negative with every positive
  int64_t tile_rows = 0, tile_columns = 0;
  Streamed streamed = Streamed::neither;  // its tiles follow each other, panel after panel
  int64_t whole = 0;  // > 0: a triangle's tiles lie in one matrix with rows of so many numbers
  std::vector<Tile> tiles;
  std::vector<Chunk> chunks;  // at least one, so that a pass without anchors has one too
  int64_t most_positives = 0;  // of any anchor, where slots are kept
  int64_t tile_cells = 0, stored_cells = 0,
          slot_cells = 0;  // numbers: of all tiles, of those that are kept, of a chunk's slots
};

Plan make_plan(const PlanInput& input, const PlanRequest& request);

// Threads that work on a product of so many multiplications.
int threads_for(double work, const PlanRequest& request);

inline int64_t rounded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace dml
