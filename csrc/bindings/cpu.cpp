// Python binding of the CPU kernels: pointers, shapes and names in, nothing else. Checks of tensors are in dmlcore/kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/neighbours.h"
#include "cpu/step.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace {

using Given = std::tuple<uintptr_t, uintptr_t, int64_t, bool>;         // data, labels, rows, normalise

dml::Input input(const Given& given) {
  return {reinterpret_cast<const void*>(std::get<0>(given)), reinterpret_cast<const int64_t*>(std::get<1>(given)), std::get<2>(given), std::get<3>(given)};
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "Fused losses on the CPU. Use dmlcore.kernels instead.";
  py::class_<dml::StepBase>(m, "Step")
      .def(py::init([](bool is_double, const Given& anchors, const std::optional<Given>& references, int64_t width,
                       const std::vector<std::tuple<std::string, std::vector<double>, uintptr_t, uintptr_t>>& losses,
                       const std::array<uintptr_t, 3>& relations_at, int threads, int64_t workspace,
                       int64_t tile_rows, int64_t tile_columns, int64_t slot_bytes, int search, int triangle) {
             std::vector<dml::LossRequest> requests;
             for (const auto& [name, options, given, windows] : losses)
               requests.push_back({name, options, reinterpret_cast<const void*>(given), reinterpret_cast<const void*>(windows)});
             const auto& [own, starts, lists] = relations_at;
             const dml::Relations relations{reinterpret_cast<const int64_t*>(own), reinterpret_cast<const int64_t*>(starts),
                                            reinterpret_cast<const int64_t*>(lists)};
             const dml::PlanRequest plan{threads, workspace, tile_rows, tile_columns, slot_bytes, search, triangle};
             const dml::Input a = input(anchors);
             dml::Input r{};
             if (references) r = input(*references);
             py::gil_scoped_release unlocked;
             return dml::make_step(is_double, a, references ? &r : nullptr, width, requests, relations, plan);
           }),
           "is_double"_a, "anchors"_a, "references"_a, "width"_a, "losses"_a, "relations"_a, "threads"_a, "workspace"_a = -1, "tile_rows"_a = 0,
           "tile_columns"_a = 0, "slot_bytes"_a = 0, "search"_a = -1, "triangle"_a = -1)
      .def_property_readonly("value_count", &dml::StepBase::value_count)
      .def_property_readonly("table_cells", &dml::StepBase::table_cells)
      .def("forward", [](dml::StepBase& s, uintptr_t values, uintptr_t counts, uintptr_t tables) {
        py::gil_scoped_release unlocked;
        s.forward(reinterpret_cast<void*>(values), reinterpret_cast<void*>(counts), reinterpret_cast<void*>(tables));
      })
      .def("backward", [](dml::StepBase& s, uintptr_t cotangents, uintptr_t tables, uintptr_t anchors, uintptr_t references) {
        py::gil_scoped_release unlocked;
        s.backward(reinterpret_cast<const void*>(cotangents), reinterpret_cast<const void*>(tables), reinterpret_cast<void*>(anchors),
                   reinterpret_cast<void*>(references));
      })
      .def("plan", [](const dml::StepBase& s) {
        py::dict out;
        for (const auto& [name, value] : s.plan()) out[py::str(name)] = value;
        return out;
      });
  m.def("functors", [] {
    py::dict out;
    for (const dml::Functor& f : dml::functors()) out[py::str(f.name)] = py::make_tuple(f.options, f.values, f.partners);
    return out;
  });
  m.def("functor_names", [](uintptr_t module) { return dml::functor_names(*reinterpret_cast<const dml::FunctorModule*>(module)); });
  m.def("register_functors", [](uintptr_t module) { dml::register_functors(*reinterpret_cast<const dml::FunctorModule*>(module)); });
  m.def("headers", &dml::headers);
  m.def("flags", &dml::flags);
  m.def("levels", &dml::levels);
  m.def("level", &dml::level);
  m.def("use_level", &dml::use_level);
  m.def("use_blas", [](uintptr_t sgemm, uintptr_t dgemm, uintptr_t set_threads_local) {
    dml::use_blas(reinterpret_cast<void*>(sgemm), reinterpret_cast<void*>(dgemm), reinterpret_cast<void*>(set_threads_local));
  });
  m.def("has_blas", &dml::has_blas);
  m.def("release_workspaces", &dml::release_workspaces);
  m.def("highest_workspace", &dml::highest_workspace);
  dml::add_neighbours(m);
}
