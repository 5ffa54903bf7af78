#include "cpu/order.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>

namespace dml {

namespace {

constexpr int64_t kStoredPositives = int64_t(1) << 20;                 // cells of positives kept between the phases
constexpr int64_t kBlockCells = int64_t(1) << 20;                      // cells of one block of a large class
constexpr int64_t kBlockRows = 128, kEmptyRows = 1024;
constexpr int64_t kTableOfLabels = int64_t(1) << 20;  // labels between the anchors' lowest and highest that a table is worth

// A block's similarities are kept as long as there is room: the first ones, so that it does not depend on the threads.
void add_block(Classes& classes, int64_t a0, int64_t a1, int64_t r0, int64_t r1, int owner, int64_t cells) {
  const bool fits = classes.stored_positives + cells <= kStoredPositives;
  classes.blocks.push_back({a0, a1, r0, r1, owner, fits ? classes.stored_positives : -1});
  if (fits) classes.stored_positives += cells;
}

// The rows of the smallest label first, equal ones as they were. Labels that are dense, as those of classes are, are counted.
void sort_by_label(const int64_t* labels, int64_t rows, std::vector<int64_t>& order) {
  const auto [lowest, highest] = std::minmax_element(labels, labels + rows);
  const uint64_t least = uint64_t(*lowest), range = uint64_t(*highest) - least;  // no overflow: labels are any int64
  if (range > uint64_t(2 * rows)) {
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return labels[a] < labels[b]; });
    return;
  }
  std::vector<int64_t> next(range + 2, 0);
  for (int64_t i = 0; i < rows; ++i) ++next[uint64_t(labels[i]) - least + 1];
  for (uint64_t c = 1; c <= range; ++c) next[c] += next[c - 1];
  for (int64_t i = 0; i < rows; ++i) order[next[uint64_t(labels[i]) - least]++] = i;
}

}  // namespace

std::shared_ptr<const Order> order_of(const int64_t* labels, int64_t rows, bool by_label, Orders& orders) {
  std::shared_ptr<const Order>& entry = orders[{labels, rows, by_label}];
  if (entry) return entry;
  auto order = std::make_shared<Order>();
  order->order.resize(rows);
  std::iota(order->order.begin(), order->order.end(), int64_t(0));
  if (by_label && !std::is_sorted(labels, labels + rows)) sort_by_label(labels, rows, order->order);
  order->labels.resize(rows);
  for (int64_t i = 0; i < rows && by_label; ++i) order->labels[i] = labels[order->order[i]];
  return entry = order;
}

std::shared_ptr<const Order> order_of_references(const int64_t* labels, int64_t rows, const Order& anchors) {
  auto out = std::make_shared<Order>();
  out->order.resize(rows), out->labels.resize(rows);
  std::vector<int64_t> classes(anchors.labels);
  classes.erase(std::unique(classes.begin(), classes.end()), classes.end());
  if (std::is_sorted(labels, labels + rows) || classes.empty()) {
    std::iota(out->order.begin(), out->order.end(), int64_t(0));
    std::copy_n(labels, rows, out->labels.begin());
    return out;
  }
  const int64_t count = int64_t(classes.size()), lowest = classes.front(), highest = classes.back();
  const uint64_t range = uint64_t(highest) - uint64_t(lowest);  // no overflow: labels are any int64
  std::vector<int64_t> place_of(range < uint64_t(kTableOfLabels) ? range + 1 : 0, count);  // of a label among the classes
  for (int64_t c = 0; c < count && !place_of.empty(); ++c) place_of[uint64_t(classes[c]) - uint64_t(lowest)] = c;
  const auto class_of = [&](int64_t label) {
    if (label < lowest || label > highest) return count;
    if (!place_of.empty()) return place_of[uint64_t(label) - uint64_t(lowest)];
    const int64_t c = std::lower_bound(classes.begin(), classes.end(), label) - classes.begin();
    return classes[c] == label ? c : count;
  };
  std::vector<int64_t> next(count + 2, 0);
  for (int64_t j = 0; j < rows; ++j) ++next[class_of(labels[j]) + 1];
  for (int64_t c = 1; c <= count; ++c) next[c] += next[c - 1];
  for (int64_t j = 0; j < rows; ++j) {
    const int64_t to = next[class_of(labels[j])]++;
    out->order[to] = j, out->labels[to] = labels[j];
  }
  return out;
}

std::vector<int64_t> own_of(const Relations& relations, const Order& anchors, const Order* references) {
  const int64_t rows = int64_t(anchors.order.size());
  std::vector<int64_t> own(rows, -1);
  if (!references) {
    std::iota(own.begin(), own.end(), int64_t(0));
  } else if (relations.own) {
    const int64_t count = int64_t(references->order.size());
    std::vector<int64_t> place(count);
    for (int64_t j = 0; j < count; ++j) place[references->order[j]] = j;
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t reference = relations.own[anchors.order[i]];
      if (reference < -1 || reference >= count)
        throw std::invalid_argument("own must be -1 or the index of a reference, got " + std::to_string(reference));
      if (reference >= 0) own[i] = place[reference];
    }
  }
  return own;
}

Classes classes_of_lists(const Relations& relations, const std::vector<int64_t>& own, int64_t references, int64_t stride,
                         int threads) {
  const int64_t rows = int64_t(own.size()), *starts = relations.starts, *lists = relations.lists;
  Classes out;
  out.row_first.assign(rows, 0), out.row_last.assign(rows, 0), out.positives.assign(stride, 0);
  for (int64_t i = 0; i < rows; ++i) {
    out.positives[i] = starts[i + 1] - starts[i];
    for (int64_t k = starts[i]; k < starts[i + 1]; ++k)
      if (lists[k] < 0 || lists[k] >= references || lists[k] == own[i] || (k > starts[i] && lists[k] <= lists[k - 1]))
        throw std::invalid_argument("positives of an anchor must be ascending references other than the anchor itself");
  }
  // Anchors come in order, so each finds itself at the next place of its positives' lists.
  std::vector<int64_t> next(starts, starts + rows);
  for (int64_t i = 0; i < rows && out.is_symmetric; ++i)
    for (int64_t k = starts[i]; k < starts[i + 1] && out.is_symmetric; ++k) {
      const int64_t j = lists[k];
      out.is_symmetric = j < rows && next[j] < starts[j + 1] && lists[next[j]++] == i;
    }
  int owner = 0;
  for (int64_t a = 0; a < rows;) {
    int64_t last = a + 1;
    while (last < rows && last - a < kBlockRows && starts[last + 1] - starts[a] <= kBlockCells) ++last;
    add_block(out, a, last, 0, 0, owner, starts[last] - starts[a]);
    owner = (owner + 1) % threads;
    a = last;
  }
  return out;
}

Classes classes_of(const Order& anchors, const Order& references, const std::vector<int64_t>& own, int64_t stride,
                   int threads) {
  const std::vector<int64_t>&labels = anchors.labels, &theirs = references.labels;
  const int64_t rows = int64_t(labels.size());
  Classes out;
  out.row_first.resize(rows), out.row_last.resize(rows), out.positives.assign(stride, 0), out.slopes_at.resize(rows);
  int owner = 0;
  const int64_t count = int64_t(theirs.size());
  for (int64_t a0 = 0, r0 = 0, cells = 0; a0 < rows;) {
    const int64_t label = labels[a0];
    int64_t a1 = a0 + 1;  // one look at each label: halving costs more where there are as many classes as rows
    while (a1 < rows && labels[a1] == label) ++a1;
    while (r0 < count && theirs[r0] < label) ++r0;
    int64_t r1 = r0;
    while (r1 < count && theirs[r1] == label) ++r1;
    const int64_t columns = r1 - r0;
    if (!columns)  // neighbours without a reference of their class are one block
      while (a1 < rows && a1 - a0 < kEmptyRows && (r0 == count || labels[a1] < theirs[r0])) ++a1;
    for (int64_t i = a0; i < a1; ++i) {
      out.row_first[i] = r0, out.row_last[i] = r1;
      out.positives[i] = columns - (own[i] >= r0 && own[i] < r1 ? 1 : 0);
      out.slopes_at[i] = cells, cells += columns;
    }
    const int64_t step = columns ? std::max<int64_t>(1, std::min(kBlockRows, kBlockCells / columns)) : a1 - a0;
    for (int64_t a = a0; a < a1; a += step) {
      const int64_t last = std::min(a1, a + step);
      add_block(out, a, last, r0, r1, owner, (last - a) * columns);
    }
    owner = (owner + 1) % threads;
    a0 = a1;
  }
  return out;
}

std::vector<int64_t> keep_own_blocks(Classes& classes, int rank, int ranks) {
  const auto cells_of = [](const Block& b) { return (b.a1 - b.a0) * (b.r1 - b.r0); };
  int64_t total = 0, before = 0;
  for (const Block& b : classes.blocks) total += cells_of(b);
  std::vector<Block> all;
  all.swap(classes.blocks);
  classes.stored_positives = 0;
  std::vector<int64_t> bounds(1, 0);
  int owner = 0;
  for (size_t k = 0; k < all.size(); ++k) {
    const Block& b = all[k];
    const int64_t positives = b.r1 - b.r0;
    if (k == 0 || b.r0 != all[k - 1].r0) owner = owner_of(before, positives * positives, total, ranks);  // of the whole class
    bounds.resize(owner + 1, b.a0);
    if (owner == rank) add_block(classes, b.a0, b.a1, b.r0, b.r1, b.owner, cells_of(b));
    before += cells_of(b);
  }
  bounds.resize(ranks + 1, int64_t(classes.row_first.size()));
  return bounds;
}

}  // namespace dml
