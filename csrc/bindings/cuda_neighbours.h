// Binding of the ranking on a GPU: pointers, shapes and options in, nothing else. Checks of tensors are in dmlcore/kernels.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "cuda/neighbours.h"

namespace dml {

template <class T> class CudaRanking {
 public:
  CudaRanking(uintptr_t queries, uintptr_t query_halves, int64_t query_rows, uintptr_t references, uintptr_t reference_halves,
              int64_t reference_rows, int64_t width, uintptr_t first, uintptr_t last, uintptr_t starts, int few,
              bool searches) {
    p_.queries = pointer<const T>(queries), p_.query_halves = pointer<const T>(query_halves);
    p_.references = pointer<const T>(references), p_.reference_halves = pointer<const T>(reference_halves);
    p_.self = queries == references;
    p_.Q = int(query_rows), p_.N = int(reference_rows), p_.stride = int(ranking_stride(width));
    p_.first = pointer<const int64_t>(first), p_.last = pointer<const int64_t>(last),
    p_.starts = pointer<const int64_t>(starts);
    p_.few = few < kMostFew ? few : kMostFew, p_.searches = searches;
  }
  static void arrange(uintptr_t from, uintptr_t order, int64_t rows, int64_t width, bool normalise, uintptr_t to,
                      uintptr_t halves, uintptr_t stream) {
    check(ranking_arrange<T>(pointer<const T>(from), pointer<const int64_t>(order), rows, width, normalise, pointer<T>(to),
                             pointer<T>(halves), pointer<void>(stream)));
  }
  // The queries [q0, q1), whose positives' similarities and counts lie there.
  void take(int64_t q0, int64_t q1, uintptr_t thresholds, uintptr_t counts) {
    p_.q0 = int(q0), p_.q1 = int(q1), p_.thresholds = pointer<T>(thresholds), p_.counts = pointer<int>(counts);
  }
  void positives(uintptr_t stream) const { check(ranking_positives<T>(p_, pointer<void>(stream))); }
  void count(uintptr_t stream) const { check(ranking_count<T>(p_, pointer<void>(stream))); }
  void conclude(uintptr_t order, uintptr_t ks, int k_count, int64_t columns, uintptr_t values, uintptr_t stream) const {
    check(ranking_conclude<T>(p_, pointer<const int64_t>(order), pointer<const int64_t>(ks), k_count, columns,
                              pointer<double>(values), pointer<void>(stream)));
  }

 private:
  template <class P> static P* pointer(uintptr_t address) { return reinterpret_cast<P*>(address); }
  static void check(const char* error) {
    if (error) throw std::runtime_error(std::string("a CUDA kernel of dmlcore failed: ") + error);
  }
  RankingProblem<T> p_{};
};

template <class T> void add_cuda_ranking(pybind11::module_& m, const char* name) {
  using namespace pybind11::literals;
  using R = CudaRanking<T>;
  const auto unlocked = pybind11::call_guard<pybind11::gil_scoped_release>();
  pybind11::class_<R>(m, name, pybind11::module_local())  // the tests load the emulated kernels beside these
      .def(pybind11::init<uintptr_t, uintptr_t, int64_t, uintptr_t, uintptr_t, int64_t, int64_t, uintptr_t, uintptr_t,
                          uintptr_t, int, bool>(),
           "queries"_a, "query_halves"_a, "query_rows"_a, "references"_a, "reference_halves"_a, "reference_rows"_a, "width"_a,
           "first"_a, "last"_a, "starts"_a, "few"_a, "searches"_a)
      .def_static("arrange", &R::arrange, "vectors"_a, "order"_a, "rows"_a, "width"_a, "normalise"_a, "to"_a, "halves"_a,
                  "stream"_a, unlocked)
      .def("take", &R::take, "q0"_a, "q1"_a, "thresholds"_a, "counts"_a)
      .def("positives", &R::positives, "stream"_a, unlocked)
      .def("count", &R::count, "stream"_a, unlocked)
      .def("conclude", &R::conclude, "order"_a, "ks"_a, "k_count"_a, "columns"_a, "values"_a, "stream"_a, unlocked);
}

inline void add_cuda_neighbours(pybind11::module_& m) {
  using namespace pybind11::literals;
  add_cuda_ranking<float>(m, "Ranking32");
  add_cuda_ranking<double>(m, "Ranking64");
  m.def("ranking_stride", &ranking_stride, "width"_a);
  m.attr("most_compared") = kMostFew;
}

}  // namespace dml
