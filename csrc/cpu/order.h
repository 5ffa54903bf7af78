// The rows of a pass in class order: which references are of an anchor's class, and blocks of anchors that share their positives.
// Functions of labels and lists alone.
#pragma once
#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "cpu/problem.h"

namespace dml {

struct Order {  // the rows of an input by label
  std::vector<int64_t> order, labels;
};
using Orders = std::map<std::tuple<const int64_t*, int64_t, bool>, std::shared_ptr<const Order>>;  // of the passes of one step

struct Relations {  // besides equal labels
  const int64_t* own = nullptr;  // [A]: the reference that is the anchor itself, or -1: never a pair
  const int64_t *starts = nullptr,
                *lists = nullptr;  // positives of anchor i: lists[starts[i]..starts[i + 1]), ascending; must outlive
};

struct Classes {  // per anchor, in class order
  std::vector<int64_t> row_first, row_last, positives;
  std::vector<int64_t> slopes_at;  // by label: an anchor's first place among the similarities of all positives
  std::vector<Block> blocks;
  bool is_symmetric = true;  // whether each positive of a batch with itself has the anchor among its own
  int64_t stored_positives = 0;  // similarities of positives that are kept from forward to backward
};

// By label, or as they are. What was ordered before is not ordered again.
std::shared_ptr<const Order> order_of(const int64_t* labels, int64_t rows, bool by_label, Orders& orders);

// References so that those of each anchor's class lie together: these by label, then all others as they are, which is faster to
// read. Where they are sorted already they stay.
std::shared_ptr<const Order> order_of_references(const int64_t* labels, int64_t rows, const Order& anchors);

// Which reference an anchor is itself, by their places. Throws std::invalid_argument for one that does not exist.
std::vector<int64_t> own_of(const Relations& relations, const Order& anchors, const Order* references);

// Which of `ranks` works on the next of some things with a `cost` each, after those that cost `before`. Each rank's follow one
// another and cost about the same.
inline int owner_of(int64_t before, int64_t cost, int64_t total, int ranks) {
  return int(std::min<double>((double(before) + double(cost) / 2) / double(total) * ranks, ranks - 1));
}

// Keeps the blocks of one of several ranks, whole classes that follow one another with about as many pairs of one class for each,
// and returns where the anchors of each rank begin, and after them where the last one's end.
std::vector<int64_t> keep_own_blocks(Classes& classes, int rank, int ranks);

// `stride` is the length of per-anchor arrays. Lists throw std::invalid_argument where they are not ascending.
Classes classes_of(const Order& anchors, const Order& references, const std::vector<int64_t>& own, int64_t stride, int threads);
Classes classes_of_lists(const Relations& relations, const std::vector<int64_t>& own, int64_t references, int64_t stride,
                         int threads);

}  // namespace dml
