// Python binding of the CPU kernels: pointers, shapes and names in, nothing else. Checks of tensors are in dmlcore/kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/neighbours.h"
#include "cpu/board.h"
#include "cpu/divided.h"
#include "cpu/gram.h"
#include "cpu/levels.h"
#include "cpu/memory.h"
#include "cpu/passes.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace {

using Rows = std::tuple<uintptr_t, uintptr_t, int64_t, int64_t, bool>;  // data, labels, rows, numbers between rows, normalise
// functor, options, given, windows, margin of semi-hard pairs or a number below 0
using Loss = std::tuple<std::string, std::vector<double>, uintptr_t, uintptr_t, double>;
using Target = std::pair<int, int64_t>;  // tensor of gradients, column
// anchors, references, width, losses, relations, owners, targets of the anchors' and of the references' gradients
using Pass = std::tuple<Rows, std::optional<Rows>, int64_t, std::vector<Loss>, std::array<uintptr_t, 3>, std::vector<int>,
                        Target, Target>;

dml::Input input(const Rows& rows) {
  const auto& [data, labels, count, stride, normalise] = rows;
  return {reinterpret_cast<const void*>(data), reinterpret_cast<const int64_t*>(labels), count, stride, normalise};
}

std::vector<dml::FunctorCall> calls(const std::vector<Loss>& losses) {
  std::vector<dml::FunctorCall> out;
  for (const auto& [name, options, given, windows, semihard] : losses)
    out.push_back({name, options, reinterpret_cast<const void*>(given), reinterpret_cast<const void*>(windows), semihard});
  return out;
}

dml::PassRequest request(const Pass& pass) {
  const auto& [anchors, references, width, losses, relations, owners, anchors_to, references_to] = pass;
  dml::PassRequest out;
  out.anchors = input(anchors), out.has_references = references.has_value(), out.width = width;
  if (references) out.references = input(*references);
  out.calls = calls(losses);
  const auto& [own, starts, lists] = relations;
  out.relations = {reinterpret_cast<const int64_t*>(own), reinterpret_cast<const int64_t*>(starts),
                   reinterpret_cast<const int64_t*>(lists)};
  out.owners = owners;
  out.anchors_to = {anchors_to.first, anchors_to.second}, out.references_to = {references_to.first, references_to.second};
  return out;
}

using Streams = std::vector<std::vector<std::pair<uintptr_t, int64_t>>>;  // addresses and bytes
std::vector<dml::Board::Stream> streams(const Streams& from) {
  std::vector<dml::Board::Stream> out(from.size());
  for (size_t k = 0; k < from.size(); ++k)
    for (const auto& [data, bytes] : from[k]) out[k].push_back({reinterpret_cast<void*>(data), bytes});
  return out;
}

// Passes of a batch with itself, told beforehand but for the batch: on a small one the telling takes as long as the kernels.
struct Prepared {
  std::vector<dml::PassRequest> passes;
  bool is_double;
  int terms;

  std::unique_ptr<dml::Passes> begin(uintptr_t data, uintptr_t labels, int64_t rows, int64_t stride, int64_t width,
                                     int threads) const {
    std::vector<dml::PassRequest> requests(passes);
    for (dml::PassRequest& pass : requests)
      pass.anchors = input({data, labels, rows, stride, pass.anchors.normalise}), pass.width = width;
    dml::PlanRequest plan;
    plan.threads = threads;
    return std::make_unique<dml::Passes>(is_double, requests, terms, plan);
  }

  // The same where ranks divide the passes, of a batch that they have told.
  std::unique_ptr<dml::DividedPasses> divide(const dml::Board& board, int rank, const std::vector<int64_t>& counts,
                                             int64_t width, int threads) const {
    std::vector<dml::PassRequest> requests(passes);
    for (dml::PassRequest& pass : requests) pass.width = width;
    dml::PlanRequest plan;
    plan.threads = threads, plan.rank = rank, plan.ranks = int(counts.size());
    return std::make_unique<dml::DividedPasses>(is_double, std::move(requests), plan, board, counts);
  }
};

py::dict numbers(const std::vector<std::pair<std::string, int64_t>>& named) {
  py::dict out;
  for (const auto& [name, value] : named) out[py::str(name)] = value;
  return out;
}

dml::PlanRequest plan_request(const py::kwargs& named) {
  dml::PlanRequest plan;
  const auto set = [&](const char* name, auto& value) {
    if (named.contains(name)) value = named[name].cast<std::decay_t<decltype(value)>>();
    return named.contains(name) ? 1 : 0;
  };
  const size_t read = set("threads", plan.threads) + set("thread_work", plan.thread_work) + set("workspace", plan.workspace) +
                      set("tile_rows", plan.tile_rows) + set("tile_columns", plan.tile_columns) +
                      set("slot_bytes", plan.slot_bytes) + set("search", plan.search) + set("triangle", plan.triangle) +
                      set("stream", plan.stream) + set("rank", plan.rank) + set("ranks", plan.ranks) +
                      size_t(named.contains("one_launch"));  // which is for CUDA
  if (read != named.size()) throw py::type_error("a plan was asked for with an unknown argument");
  return plan;
}

std::vector<dml::Reduction> reductions_of(const std::vector<int>& numbers) {
  std::vector<dml::Reduction> out;
  for (int number : numbers) out.push_back(dml::Reduction(number));
  return out;
}

// What goes between ranks, by its name in Python.
dml::Shared shared(const std::string& what) {
  if (what == "limits") return dml::Shared::kLimits;
  return what == "sums" ? dml::Shared::kSums : dml::Shared::kSlopes;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "Fused losses on the CPU. Use dmlcore.kernels instead.";
  py::class_<dml::Passes>(m, "Passes", py::module_local())  // the tests load other builds beside this one
      .def(py::init([](bool is_double, const std::vector<Pass>& passes, int terms, int threads, int64_t thread_work,
                       int64_t workspace, int64_t tile_rows, int64_t tile_columns, int64_t slot_bytes, int search, int triangle,
                       int stream) {
             std::vector<dml::PassRequest> requests;
             for (const Pass& pass : passes) requests.push_back(request(pass));
             const dml::PlanRequest plan{threads,    thread_work, workspace, tile_rows, tile_columns,
                                         slot_bytes, search,      triangle,  stream};
             py::gil_scoped_release unlocked;
             return std::make_unique<dml::Passes>(is_double, requests, terms, plan);
           }),
           "is_double"_a, "passes"_a, "terms"_a, "threads"_a, "thread_work"_a = 0, "workspace"_a = -1, "tile_rows"_a = 0,
           "tile_columns"_a = 0, "slot_bytes"_a = 0, "search"_a = -1, "triangle"_a = -1, "stream"_a = -1)
      .def("forward",
           [](dml::Passes& s, uintptr_t values, uintptr_t counts, uintptr_t tables, uintptr_t terms) {
             py::gil_scoped_release unlocked;
             s.forward(reinterpret_cast<void*>(values), reinterpret_cast<void*>(counts), reinterpret_cast<void*>(tables),
                       reinterpret_cast<void*>(terms));
           })
      .def("backward",
           [](dml::Passes& s, uintptr_t terms, uintptr_t values, uintptr_t tables,
              const std::vector<std::tuple<uintptr_t, int64_t, int64_t>>& to) {
             std::vector<dml::GradientTensor> tensors;
             for (const auto& [data, rows, width] : to) tensors.push_back({reinterpret_cast<void*>(data), rows, width});
             py::gil_scoped_release unlocked;
             s.backward(reinterpret_cast<const void*>(terms), reinterpret_cast<const void*>(values),
                        reinterpret_cast<const void*>(tables), tensors);
           })
      .def("backward_by_term",
           [](dml::Passes& s, const std::vector<std::tuple<uintptr_t, int64_t, int64_t, std::vector<int>>>& to) {
             std::vector<dml::TermGradients> tensors;
             for (const auto& [data, rows, width, terms] : to)
               tensors.push_back({reinterpret_cast<void*>(data), rows, width, terms});
             py::gil_scoped_release unlocked;
             s.backward_by_term(tensors);
           })
      .def("plan", [](const dml::Passes& s, int pass) { return numbers(s.plan(pass)); })
      .def_property_readonly("sizes", &dml::Passes::sizes)
      .def_property_readonly("team", &dml::Passes::team)
      .def_property_readonly("streams", &dml::Passes::streams);
  py::class_<Prepared>(m, "Prepared", py::module_local())
      .def(py::init(
               [](bool is_double, const std::vector<std::tuple<std::vector<Loss>, bool, std::vector<int>>>& passes, int terms) {
                 Prepared out{{}, is_double, terms};
                 for (const auto& [losses, normalise, owners] : passes) {
                   dml::PassRequest pass;
                   pass.anchors.normalise = normalise, pass.calls = calls(losses), pass.owners = owners;
                   pass.anchors_to.tensor = 0;
                   out.passes.push_back(std::move(pass));
                 }
                 return out;
               }),
           "is_double"_a, "passes"_a, "terms"_a)
      .def("begin", &Prepared::begin, py::call_guard<py::gil_scoped_release>(), "data"_a, "labels"_a, "rows"_a, "stride"_a,
           "width"_a, "threads"_a)
      .def("divide", &Prepared::divide, py::call_guard<py::gil_scoped_release>(), "board"_a, "rank"_a, "counts"_a, "width"_a,
           "threads"_a);
  py::class_<dml::Board>(m, "Board", py::module_local())
      .def(py::init([](int rank, const std::vector<uintptr_t>& memories, const std::vector<int>& lines, double seconds) {
             std::vector<void*> at;
             for (uintptr_t memory : memories) at.push_back(reinterpret_cast<void*>(memory));
             return std::make_unique<dml::Board>(rank, at, lines, seconds, [] {
               py::gil_scoped_acquire locked;
               if (PyErr_CheckSignals()) throw py::error_already_set();
             });
           }),
           "rank"_a, "memories"_a, "lines"_a, "seconds"_a)
      .def("trade",
           [](dml::Board& board, const Streams& given, const Streams& taken, int adds) {
             py::gil_scoped_release unlocked;
             board.trade(streams(given), streams(taken),
                         adds == 8   ? dml::Adds::kDoubles
                         : adds == 4 ? dml::Adds::kFloats
                                     : dml::Adds::kNothing);
           })
      .def("meet",
           [](dml::Board& board, const std::vector<int64_t>& words, const Streams::value_type& rows) {
             py::gil_scoped_release unlocked;
             return board.meet(words, streams({rows}).front());
           })
      .def("leave", &dml::Board::leave)
      .def("copy_met",
           [](const dml::Board& board, const Streams& taken) {
             py::gil_scoped_release unlocked;
             board.copy_met(streams(taken));
           })
      .def_property_readonly_static("words", [](const py::object&) { return dml::Board::kWords; })
      .def_property_readonly_static("half", [](const py::object&) { return dml::Board::kHalf; })
      .def_property_readonly_static("bytes", [](const py::object&) { return dml::Board::kBytes; })
      .def_property_readonly_static("most",
                                    [](const py::object&) { return dml::Board::is_supported() ? dml::Board::kMost : 0; });
  py::class_<dml::DividedPasses>(m, "DividedPasses", py::module_local())
      .def(py::init([](bool is_double, const std::vector<Pass>& passes, const py::kwargs& named) {
             std::vector<dml::PassRequest> requests;
             for (const Pass& pass : passes) requests.push_back(request(pass));
             const dml::PlanRequest plan = plan_request(named);
             py::gil_scoped_release unlocked;
             return std::make_unique<dml::DividedPasses>(is_double, requests, plan);
           }),
           "is_double"_a, "passes"_a)
      .def("sizes", [](const dml::DividedPasses& s, const std::string& what) { return s.sizes(shared(what)); })
      .def("take", [](const dml::DividedPasses& s, const std::string& what, int rank,
                      uintptr_t to) { s.take(shared(what), rank, reinterpret_cast<void*>(to)); })
      .def("put", [](dml::DividedPasses& s, const std::string& what, int rank,
                     uintptr_t numbers) { s.put(shared(what), rank, reinterpret_cast<const void*>(numbers)); })
      .def("merge", [](dml::DividedPasses& s, uintptr_t parts) { s.merge(reinterpret_cast<const void*>(parts)); })
      .def("open", &dml::DividedPasses::open, py::call_guard<py::gil_scoped_release>())
      .def("collect", &dml::DividedPasses::collect, py::call_guard<py::gil_scoped_release>())
      .def("close",
           [](dml::DividedPasses& s, uintptr_t values, uintptr_t counts) {
             py::gil_scoped_release unlocked;
             s.close(reinterpret_cast<void*>(values), reinterpret_cast<void*>(counts));
           })
      .def("sums",
           [](const dml::DividedPasses& s, uintptr_t values, uintptr_t counts) {
             return s.sums(reinterpret_cast<const void*>(values), reinterpret_cast<const void*>(counts));
           })
      .def("tell_all",
           [](dml::DividedPasses& s, const std::string& what, dml::Board& board) {
             py::gil_scoped_release unlocked;
             s.tell_all(shared(what), board);
           })
      .def("merge_all", &dml::DividedPasses::merge_all, py::call_guard<py::gil_scoped_release>())
      .def("reduce",
           [](dml::DividedPasses& s, const std::vector<double>& totals, const std::vector<int>& reductions, uintptr_t terms) {
             return s.reduce(totals, reductions_of(reductions), reinterpret_cast<void*>(terms));
           })
      .def("weigh",
           [](dml::DividedPasses& s, uintptr_t cotangents, double factor) {
             py::gil_scoped_release unlocked;
             s.weigh(reinterpret_cast<const void*>(cotangents), factor);
           })
      .def("slope",
           [](dml::DividedPasses& s, const std::vector<uintptr_t>& gradients) {
             std::vector<void*> to;
             for (uintptr_t gradient : gradients) to.push_back(reinterpret_cast<void*>(gradient));
             py::gil_scoped_release unlocked;
             s.slope(to);
           })
      .def("forward",
           [](dml::DividedPasses& s, dml::Board& board, const std::vector<int>& reductions, uintptr_t terms) {
             py::gil_scoped_release unlocked;
             return s.reduce(s.forward(board), reductions_of(reductions), reinterpret_cast<void*>(terms));
           })
      .def("backward",
           [](dml::DividedPasses& s, dml::Board& board, uintptr_t cotangents, double factor, uintptr_t gradient) {
             py::gil_scoped_release unlocked;
             s.backward(reinterpret_cast<const void*>(cotangents), factor, reinterpret_cast<void*>(gradient), board);
           })
      .def("plan", [](const dml::DividedPasses& s, int pass) { return numbers(s.plan(pass)); })
      .def_property_readonly("numbers", &dml::DividedPasses::numbers);
  m.def(
      "plan",
      [](bool is_double, const std::vector<int64_t>& anchor_labels, const std::optional<std::vector<int64_t>>& reference_labels,
         int64_t width, const std::vector<std::pair<std::string, std::vector<double>>>& calls, const py::kwargs& named) {
        std::vector<dml::FunctorCall> functors;
        const double present = 0;  // an address: numbers per anchor are not read
        for (const auto& [name, options] : calls) functors.push_back({name, options, &present, nullptr});
        const dml::Rows anchors{anchor_labels.data(), int64_t(anchor_labels.size())};
        dml::Rows references;
        if (reference_labels) references = {reference_labels->data(), int64_t(reference_labels->size())};
        const dml::Rows* others = reference_labels ? &references : nullptr;
        const dml::PlanRequest request = plan_request(named);
        dml::Orders orders;
        return is_double
                   ? numbers(
                         dml::summary<double>(dml::outline_of<double>(anchors, others, width, functors, {}, request, orders)))
                   : numbers(
                         dml::summary<float>(dml::outline_of<float>(anchors, others, width, functors, {}, request, orders)));
      },
      "The plan of a pass over such labels, without any vector. The rest by the names of `PlanRequest`.", "is_double"_a,
      "anchor_labels"_a, "reference_labels"_a, "width"_a, "functors"_a);
  m.def("functors", [] {
    py::dict out;
    for (const dml::Functor& f : dml::functors())
      out[py::str(f.name)] = py::make_tuple(f.options, f.values, f.partners, f.merges);
    return out;
  });
  m.def("functor_names",
        [](uintptr_t module) { return dml::functor_names(*reinterpret_cast<const dml::FunctorModule*>(module)); });
  m.def("register_functors",
        [](uintptr_t module) { dml::register_functors(*reinterpret_cast<const dml::FunctorModule*>(module)); });
  m.def("headers", &dml::headers);
  m.def("flags", &dml::flags);
  m.def("levels", &dml::levels);
  m.def("level", &dml::level);
  m.def("use_level", &dml::use_level);
  m.def("use_blas", [](uintptr_t sgemm, uintptr_t dgemm, uintptr_t set_threads_local) {
    dml::use_blas(reinterpret_cast<void*>(sgemm), reinterpret_cast<void*>(dgemm), reinterpret_cast<void*>(set_threads_local));
  });
  m.def("gram", [](uintptr_t rows, int64_t count, int64_t size, uintptr_t products) {
    py::gil_scoped_release unlocked;
    dml::gram(reinterpret_cast<const float*>(rows), count, size, reinterpret_cast<double*>(products));
  });
  m.def("multiply", [](uintptr_t rows_of, int64_t rows, uintptr_t columns_of, int64_t columns, int64_t depth, uintptr_t to) {
    py::gil_scoped_release unlocked;
    dml::multiply(reinterpret_cast<const float*>(rows_of), rows, reinterpret_cast<const float*>(columns_of), columns, depth,
                  reinterpret_cast<float*>(to));
  });
  m.def("weighted_sum", [](uintptr_t rows, int64_t count, int64_t size, const std::vector<double>& factors, uintptr_t sum) {
    if (int64_t(factors.size()) != count) throw py::value_error("there must be a factor for each row");
    py::gil_scoped_release unlocked;
    dml::weighted_sum(reinterpret_cast<const float*>(rows), count, size, factors.data(), reinterpret_cast<float*>(sum));
  });
  m.def("has_blas", &dml::has_blas);
  m.def("release_workspaces", &dml::release_workspaces);
  m.def("highest_workspace", &dml::highest_workspace);
  dml::add_neighbours(m);
}
