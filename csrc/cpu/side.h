// The vectors of one side of a pass in class order, scaled to unit norm.
#pragma once
#include <algorithm>

#include "cpu/memory.h"
#include "cpu/pass.h"

namespace dml {

inline Rows rows_of(const Input& in) { return {in.labels, in.rows}; }

template <class T> struct Side {                                       // anchors or references in class order
  const int64_t* order = nullptr;
  Buffer<T> unit, norms;
  Buffer<bool> broken;

  void fill(const Kernels<T>& kernels, const Input& in, const Order& by_label, int64_t width, int threads, bool streams) {
    order = by_label.order.data();
    norms.resize(in.rows);
    broken.resize(in.rows);
    if (streams) {  // the kernels take the vectors where they are
      std::fill_n(broken.data(), in.rows, false);
      return;
    }
    unit.resize(in.rows * width);
    std::vector<int64_t> places;
    if (in.places) places.reserve(in.rows);
    if (in.places)
      for (int64_t i = 0; i < in.rows; ++i) places.push_back(in.places[order[i]]);
    kernels.gather(static_cast<const T*>(in.data), in.places ? 1 : in.stride, in.places ? places.data() : order, in.rows, width,
                   in.normalise, unit.data(), norms.data(), broken.data(), threads);
  }
  bool has_broken(int64_t rows) const {
    return std::any_of(broken.data(), broken.data() + rows, [](bool b) { return b; });
  }
};

}  // namespace dml
