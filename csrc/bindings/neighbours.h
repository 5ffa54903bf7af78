// Binding of the ranking: pointers, shapes and options in, nothing else. Checks of tensors are in dmlcore/kernels.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/neighbours.h"

namespace dml {

using Located = std::tuple<uintptr_t, uintptr_t, int64_t>;                // data, labels, rows

inline Vectors vectors_of(const Located& rows) {
  return {reinterpret_cast<const void*>(std::get<0>(rows)), reinterpret_cast<const int64_t*>(std::get<1>(rows)),
          std::get<2>(rows)};
}

inline Metric metric_of(const std::string& name) {
  if (name != "cosine" && name != "dot" && name != "euclidean") throw pybind11::value_error("no metric '" + name + "'");
  return name == "cosine" ? Metric::cosine : name == "dot" ? Metric::dot : Metric::euclidean;
}

inline void add_neighbours(pybind11::module_& m) {
  using namespace pybind11::literals;
  m.def(
      "rank_positives",
      [](bool is_double, const Located& queries, const std::optional<Located>& references, int64_t width,
         const std::string& metric, const std::vector<int64_t>& ks, uintptr_t values, int threads, int64_t memory,
         int64_t few) {
        const Metric by = metric_of(metric);
        const Vectors q = vectors_of(queries), r = references ? vectors_of(*references) : Vectors{};
        pybind11::gil_scoped_release unlocked;
        rank_positives(is_double, q, references ? &r : nullptr, width, by, ks.data(), int64_t(ks.size()),
                       reinterpret_cast<double*>(values), threads, memory, few);
      },
      "is_double"_a, "queries"_a, "references"_a, "width"_a, "metric"_a, "ks"_a, "values"_a, "threads"_a, "memory"_a = 0,
      "few"_a = 0);
  const auto unlocked = pybind11::call_guard<pybind11::gil_scoped_release>();
  pybind11::class_<PartedRanking>(m, "PartedRanking", pybind11::module_local())
      .def(pybind11::init([](bool is_double, const Located& queries, uintptr_t lengths, bool with_itself, int64_t rows,
                             int64_t width, const std::string& metric, int threads, int64_t memory, int64_t few) {
             return rank_in_parts(is_double, vectors_of(queries), reinterpret_cast<const int64_t*>(lengths), with_itself, rows,
                                  width, metric_of(metric), threads, memory, few);
           }),
           "is_double"_a, "queries"_a, "lengths"_a, "with_itself"_a, "rows"_a, "width"_a, "metric"_a, "threads"_a,
           "memory"_a = 0, "few"_a = 0)
      .def_property_readonly("runs", &PartedRanking::runs)
      .def("begin", &PartedRanking::begin, "run"_a)
      .def(
          "enter",
          [](PartedRanking& ranking, const std::optional<Located>& part) {
            const Vectors vectors = part ? vectors_of(*part) : Vectors{};
            ranking.enter(part ? &vectors : nullptr);
          },
          "part"_a, unlocked)
      .def("positives", &PartedRanking::positives, unlocked)
      .def("count", &PartedRanking::count, unlocked)
      .def(
          "conclude",
          [](PartedRanking& ranking, const std::vector<int64_t>& ks, uintptr_t values) {
            ranking.conclude(ks.data(), int64_t(ks.size()), reinterpret_cast<double*>(values));
          },
          "ks"_a, "values"_a, unlocked);
}

}  // namespace dml
