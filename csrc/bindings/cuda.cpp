// Python binding of the CUDA kernels: device pointers, shapes, names and a stream in, nothing else. It needs no CUDA headers
// and imports without a driver. Checks of tensors are in dmlcore/kernels/cuda.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <stdexcept>
#include <variant>

#include "bindings/cuda_neighbours.h"
#include "cuda/step.h"

#ifndef DML_ARCHS
#define DML_ARCHS ""
#endif

namespace py = pybind11;
using namespace pybind11::literals;

namespace {

using Side = std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, bool>;   // data, order, labels, unit, factors, normalise
struct External {                      // a functor that was compiled at run time
  std::string name;
  dml::CudaExternal functor;
  dml::CudaLauncher launcher;
};
using Named = std::variant<std::string, External>;
using Requests = std::vector<std::tuple<Named, std::vector<double>, uintptr_t, uintptr_t>>;   // functor, options, given, windows

void check(const char* error) {
  if (error) throw std::runtime_error(std::string("a CUDA kernel of dmlcore failed: ") + error);
}

template <class T> T* at(uintptr_t address) { return reinterpret_cast<T*>(address); }

dml::CudaSide side(const Side& given) {
  return {at<const float>(std::get<0>(given)),   at<const int64_t>(std::get<1>(given)), at<const int64_t>(std::get<2>(given)),
          at<float>(std::get<3>(given)), at<float>(std::get<4>(given)), std::get<5>(given)};
}

dml::CudaLoss loss(const std::string& name, const std::vector<double>& options) {
  dml::CudaLoss found{};
  bool known = false;
  for (found.functor = 0; found.functor < dml::cuda_functors(); ++found.functor) {
    const dml::CudaFunctor functor = dml::cuda_functor(found.functor);
    if (name != functor.name) continue;
    known = true;
    if (options.size() != size_t(functor.bytes) / sizeof(float))
      throw std::invalid_argument("functor '" + name + "' takes the options '" + functor.options + "', got " +
                                  std::to_string(options.size()));
    if (dml::cuda_fits(found.functor, options.data(), found.options)) return found;
  }
  throw std::invalid_argument(known ? "functor '" + name + "' does not take these options"
                                    : "there is no functor '" + name + "'");
}

dml::CudaLoss loss(const External& external, const std::vector<double>& options) {
  dml::CudaLoss found{};
  if (options.size() != size_t(external.functor.bytes) / sizeof(float) || size_t(external.functor.bytes) > sizeof found.options)
    throw std::invalid_argument("functor '" + external.name + "' takes " + std::to_string(external.functor.bytes / sizeof(float)) +
                                " options, got " + std::to_string(options.size()));
  for (size_t k = 0; k < options.size(); ++k) {
    const float value = float(options[k]);
    std::memcpy(found.options + k * sizeof value, &value, sizeof value);
  }
  found.external = &external.functor, found.launcher = external.launcher;
  return found;
}

class Step {
 public:
  Step(int64_t anchors, std::optional<int64_t> references, int64_t width, const Requests& requests, bool own,
       std::optional<int64_t> list_length, int64_t most_positives, int64_t workspace, int64_t rows, int64_t columns)
      : requests_(requests) {                                          // losses point into the requests
    problem_.shape = {anchors, references.value_or(anchors), width,          !references, list_length.has_value(), own,
                      list_length.value_or(0),               most_positives, workspace,   rows,                    columns};
    for (const auto& [named, options, given, windows] : requests_) {
      const auto& numbers = options;
      losses_.push_back(std::visit([&](const auto& functor) { return loss(functor, numbers); }, named));
      losses_.back().given = at<const float>(given), losses_.back().windows = at<const float>(windows);
      losses_.back().has_windows = windows != 0;
      const dml::CudaLoss& last = losses_.back();
      value_count_ += last.external ? last.external->values : dml::cuda_functor(last.functor).values;
    }
    if (const char* error = dml::cuda_plan(problem_.shape, losses_.data(), count(), &problem_.plan)) throw std::invalid_argument(error);
  }
  int value_count() const { return value_count_; }
  int64_t table_cells() const { return problem_.plan.table_cells; }
  py::dict plan() const {
    const dml::CudaPlan& p = problem_.plan;
    return py::dict("rows"_a = p.rows, "columns"_a = p.columns, "whole"_a = p.whole, "kept"_a = p.kept, "forward"_a = p.forward,
                    "backward"_a = p.backward, "long_blocks"_a = p.long_blocks);
  }
  static bool has_slots(const Named& named) {
    if (const External* external = std::get_if<External>(&named)) return external->functor.slots;
    const std::string& name = std::get<std::string>(named);
    for (int k = 0; k < dml::cuda_functors(); ++k)
      if (name == dml::cuda_functor(k).name) return dml::cuda_functor(k).slots;
    return false;
  }
  void prepare(const Side& anchors, const std::optional<Side>& references, uintptr_t own, uintptr_t starts, uintptr_t lists,
               uintptr_t kept, uintptr_t stream) {
    problem_.anchors = side(anchors);
    problem_.references = side(references.value_or(anchors));
    problem_.own = at<const int64_t>(own), problem_.starts = at<const int64_t>(starts), problem_.lists = at<const int64_t>(lists);
    problem_.kept = at<void>(kept);
    check(dml::cuda_prepare(problem_, losses_.data(), count(), at<void>(stream)));
  }
  void forward(uintptr_t products, int64_t row0, int64_t rows, int64_t column0, int64_t columns, uintptr_t scratch,
               uintptr_t values, uintptr_t counts, uintptr_t stream) const {
    check(dml::cuda_forward(problem_, losses_.data(), count(), {at<float>(products), nullptr, row0, rows, column0, columns, true},
                            at<void>(scratch), at<float>(values), at<float>(counts), at<void>(stream)));
  }
  void finish(uintptr_t scratch, uintptr_t values, uintptr_t counts, uintptr_t tables, uintptr_t stream) const {
    check(dml::cuda_finish(problem_, losses_.data(), count(), at<void>(scratch), at<float>(values), at<float>(counts),
                           at<float>(tables), at<void>(stream)));
  }
  void backward(uintptr_t products, uintptr_t slopes, int64_t row0, int64_t rows, int64_t column0, int64_t columns, bool fresh,
                uintptr_t scratch, uintptr_t cotangents, uintptr_t table_cotangents, uintptr_t stream) const {
    check(dml::cuda_backward(problem_, losses_.data(), count(),
                             {at<float>(products), at<float>(slopes), row0, rows, column0, columns, fresh}, at<void>(scratch),
                             at<const float>(cotangents), at<const float>(table_cotangents), at<void>(stream)));
  }
  void scatter(bool references, uintptr_t grad, uintptr_t to, uintptr_t stream) const {
    check(dml::cuda_scatter(problem_, references, at<const float>(grad), at<float>(to), at<void>(stream)));
  }

 private:
  int count() const { return int(losses_.size()); }
  Requests requests_;
  dml::CudaProblem problem_{};
  std::vector<dml::CudaLoss> losses_;
  int value_count_ = 0;
};

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "Fused losses on CUDA devices. Use dmlcore.kernels instead.";
  py::class_<External>(m, "External")
      .def(py::init([](std::string name, const std::vector<int>& layout, uintptr_t forward, uintptr_t close, uintptr_t backward,
                       uintptr_t launcher) {
             if (layout.size() != 10) throw std::invalid_argument("a layout has 10 numbers");
             return External{std::move(name),
                             {at<void>(forward), at<void>(close), at<void>(backward), layout[0], layout[1], layout[2], layout[3],
                              layout[4], layout[5], layout[6], layout[7] != 0, layout[8] != 0, layout[9] != 0},
                             reinterpret_cast<dml::CudaLauncher>(launcher)};
           }),
           "name"_a, "layout"_a, "forward"_a, "close"_a, "backward"_a, "launcher"_a)
      .def_property_readonly("values", [](const External& self) { return self.functor.values; });
  py::class_<Step>(m, "Step")
      .def(py::init<int64_t, std::optional<int64_t>, int64_t, const Requests&, bool, std::optional<int64_t>, int64_t, int64_t, int64_t,
                    int64_t>(),
           "anchors"_a, "references"_a, "width"_a, "losses"_a, py::kw_only(), "own"_a = false, "list_length"_a = py::none(),
           "most_positives"_a = 0, "workspace"_a, "rows"_a = 0, "columns"_a = 0)
      .def_property_readonly("value_count", &Step::value_count)
      .def_property_readonly("table_cells", &Step::table_cells)
      .def_property_readonly("plan", &Step::plan)
      .def("prepare", &Step::prepare, "anchors"_a, "references"_a, "own"_a, "starts"_a, "lists"_a, "kept"_a, "stream"_a)
      .def("forward", &Step::forward, "products"_a, "row0"_a, "rows"_a, "column0"_a, "columns"_a, "scratch"_a, "values"_a,
           "counts"_a, "stream"_a, py::call_guard<py::gil_scoped_release>())
      .def("finish", &Step::finish, "scratch"_a, "values"_a, "counts"_a, "tables"_a, "stream"_a,
           py::call_guard<py::gil_scoped_release>())
      .def("backward", &Step::backward, "products"_a, "slopes"_a, "row0"_a, "rows"_a, "column0"_a, "columns"_a, "fresh"_a,
           "scratch"_a, "cotangents"_a, "table_cotangents"_a, "stream"_a, py::call_guard<py::gil_scoped_release>())
      .def("scatter", &Step::scatter, "references"_a, "grad"_a, "to"_a, "stream"_a);
  m.def("has_slots", &Step::has_slots, "functor"_a);
  m.def("functors", [] {
    py::dict out;
    for (int k = 0; k < dml::cuda_functors(); ++k) {
      const dml::CudaFunctor f = dml::cuda_functor(k);
      out[py::str(f.name)] = py::make_tuple(f.options, f.values);
    }
    return out;
  });
  dml::add_cuda_neighbours(m);
  m.attr("archs") = DML_ARCHS;
  m.attr("runtime_version") = dml::cuda_runtime_version();
}
