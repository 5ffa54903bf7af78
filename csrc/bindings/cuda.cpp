// Python binding of the CUDA kernels: device pointers, shapes, names and a stream in, nothing else. It needs no CUDA headers
// and imports without a driver. Checks of tensors are in dmlcore/kernels/cuda.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "bindings/cuda_neighbours.h"
#include "cuda/step.h"

#ifndef DML_ARCHS
#define DML_ARCHS ""
#endif

namespace py = pybind11;
using namespace pybind11::literals;

namespace {

using Given = std::tuple<uintptr_t, uintptr_t, int64_t, bool>;  // data, order, rows, normalise
using Requests = std::vector<std::pair<std::string, std::vector<double>>>;

struct NotTaken : std::runtime_error {  // a problem the kernels do not take: the plain loss can
  using std::runtime_error::runtime_error;
};

void check(const char* error) {
  if (error) throw std::runtime_error(std::string("a CUDA kernel of dmlcore failed: ") + error);
}

dml::CudaSide side(const Given& given) {
  return {reinterpret_cast<const float*>(std::get<0>(given)), reinterpret_cast<const int64_t*>(std::get<1>(given)),
          std::get<2>(given), std::get<3>(given)};
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

class Step {
 public:
  Step(const Given& anchors, const std::optional<Given>& references, uintptr_t row_first, uintptr_t row_last, int64_t width,
       const Requests& requests) {
    problem_.anchors = side(anchors);
    problem_.self = !references;
    if (references) problem_.references = side(*references);
    problem_.row_first = reinterpret_cast<const int64_t*>(row_first);
    problem_.row_last = reinterpret_cast<const int64_t*>(row_last);
    problem_.width = width;
    for (const auto& [name, options] : requests) {
      losses_.push_back(loss(name, options));
      value_count_ += dml::cuda_functor(losses_.back().functor).values;
      has_slots_ = has_slots_ || dml::cuda_functor(losses_.back().functor).slots;
    }
  }
  int value_count() const { return value_count_; }
  bool has_slots() const { return has_slots_; }
  std::tuple<int64_t, int64_t, int64_t> plan(int64_t most_positives, int64_t slot_bytes) {
    problem_.most_positives = most_positives;
    dml::CudaBytes bytes{};
    if (const char* error = dml::cuda_workspace(problem_, losses_.data(), int(losses_.size()), slot_bytes, &bytes))
      throw NotTaken(error);
    return {bytes.kept, bytes.forward, bytes.backward};
  }
  void forward(uintptr_t kept, uintptr_t scratch, uintptr_t values, uintptr_t counts, uintptr_t stream) const {
    check(dml::cuda_forward(problem_, losses_.data(), int(losses_.size()), reinterpret_cast<void*>(kept),
                            reinterpret_cast<void*>(scratch), reinterpret_cast<float*>(values),
                            reinterpret_cast<float*>(counts), reinterpret_cast<void*>(stream)));
  }
  void backward(uintptr_t kept, uintptr_t scratch, uintptr_t cotangents, uintptr_t anchors, uintptr_t references,
                uintptr_t stream) const {
    check(dml::cuda_backward(problem_, losses_.data(), int(losses_.size()), reinterpret_cast<const void*>(kept),
                             reinterpret_cast<void*>(scratch), reinterpret_cast<const float*>(cotangents),
                             reinterpret_cast<float*>(anchors), reinterpret_cast<float*>(references),
                             reinterpret_cast<void*>(stream)));
  }

 private:
  dml::CudaProblem problem_{};
  std::vector<dml::CudaLoss> losses_;
  int value_count_ = 0;
  bool has_slots_ = false;
};

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "Fused losses on CUDA devices. Use dmlcore.kernels instead.";
  py::register_exception<NotTaken>(m, "NotTaken", PyExc_RuntimeError);
  py::class_<Step>(m, "Step")
      .def(py::init<const Given&, const std::optional<Given>&, uintptr_t, uintptr_t, int64_t, const Requests&>(), "anchors"_a,
           "references"_a, "row_first"_a, "row_last"_a, "width"_a, "losses"_a)
      .def_property_readonly("value_count", &Step::value_count)
      .def_property_readonly("has_slots", &Step::has_slots)
      .def("plan", &Step::plan, "most_positives"_a, "slot_bytes"_a)
      .def("forward", &Step::forward, "kept"_a, "scratch"_a, "values"_a, "counts"_a, "stream"_a,
           py::call_guard<py::gil_scoped_release>())
      .def("backward", &Step::backward, "kept"_a, "scratch"_a, "cotangents"_a, "grad_anchors"_a, "grad_references"_a,
           "stream"_a, py::call_guard<py::gil_scoped_release>());
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
