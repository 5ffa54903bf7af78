// Binding of the ranking: pointers, shapes and options in, nothing else. Checks of tensors are in dmlcore/kernels.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/neighbours.h"

namespace dml {

inline void add_neighbours(pybind11::module_& m) {
  using namespace pybind11::literals;
  using Given = std::tuple<uintptr_t, uintptr_t, int64_t>;             // data, labels, rows
  m.def(
      "rank_positives",
      [](bool is_double, const Given& queries, const std::optional<Given>& references, int64_t width, const std::string& metric,
         const std::vector<int64_t>& ks, uintptr_t values, int threads, int64_t memory, int64_t few) {
        auto vectors = [](const Given& given) {
          return Vectors{reinterpret_cast<const void*>(std::get<0>(given)),
                         reinterpret_cast<const int64_t*>(std::get<1>(given)), std::get<2>(given)};
        };
        if (metric != "cosine" && metric != "dot" && metric != "euclidean")
          throw pybind11::value_error("no metric '" + metric + "'");
        const Metric chosen = metric == "cosine" ? Metric::cosine : metric == "dot" ? Metric::dot : Metric::euclidean;
        const Vectors q = vectors(queries), r = references ? vectors(*references) : Vectors{};
        pybind11::gil_scoped_release unlocked;
        rank_positives(is_double, q, references ? &r : nullptr, width, chosen, ks.data(), int64_t(ks.size()),
                       reinterpret_cast<double*>(values), threads, memory, few);
      },
      "is_double"_a, "queries"_a, "references"_a, "width"_a, "metric"_a, "ks"_a, "values"_a, "threads"_a, "memory"_a = 0,
      "few"_a = 0);
}

}  // namespace dml
