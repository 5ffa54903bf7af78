// All passes of one step: heads side by side, pairs and proxies. One call forward, one call backward; small passes are spread over
// the threads, large ones use all threads one after the other. Used by the binding; knows neither Python nor PyTorch.
#pragma once
#include <algorithm>
#include <memory>
#include <mutex>

#include "cpu/pass.h"

namespace dml {

struct Target {  // where the gradients of an input are added up: columns [column, column + width) of a tensor
  int tensor = -1;
  int64_t column = 0;
};

struct PassRequest {
  Input anchors, references;
  bool has_references = false;  // else the anchors themselves
  int64_t width = 0;
  std::vector<FunctorCall> calls;
  Relations relations;
  std::vector<int> owners;  // per value the term its average is added to, -1: none
  Target anchors_to, references_to;
};

struct GradientTensor {  // [rows, width] of T, contiguous; nullptr: nobody wants it
  void* data;
  int64_t rows, width;
};

struct
    TermGradients {  // [terms.size(), rows, width] of T, contiguous: of each of these terms by itself; nullptr: nobody wants it
  void* data;
  int64_t rows, width;
  std::vector<int> terms;
};

class Passes {
 public:
  // Throws std::invalid_argument as make_pass does, and for owners that are not one per value.
  Passes(bool is_double, const std::vector<PassRequest>& passes, int terms, const PlanRequest& request);

  // Into T: the values and counts of pass after pass, [V, A] each, both nullptr where nobody wants them; the tables of pass after
  // pass; and per term the sum over its values of sum(values) / max(sum(counts), 1), added up in double.
  void forward(void* values, void* counts, void* tables, void* terms);

  // Gradients of the tensors under T cotangents of the terms, values and tables, nullptr where they are 0. A pass that none of
  // them reaches takes no time and adds nothing, where there are several.
  void backward(const void* terms, const void* values, const void* tables, const std::vector<GradientTensor>& to);

  // The gradients of every term by itself, as backward() gives them under a cotangent of 1 for it alone.
  void backward_by_term(const std::vector<TermGradients>& to);

  std::vector<std::pair<std::string, int64_t>> plan(int pass) const { return parts_.at(pass).pass->plan(); }
  std::pair<int64_t, int64_t> sizes() const {
    return {numbers_, cells_};
  }  // values of all passes and anchors, cells of all tables
  int team() const { return int(dealt_.size()); }
  bool streams() const {  // whether backward reads the vectors of an input
    return std::any_of(parts_.begin(), parts_.end(),
                       [](const Part& part) { return part.pass->outline().plan.streamed != Streamed::neither; });
  }

 private:
  struct Part {  // a pass, and where its values and gradients go
    std::unique_ptr<PassBase> pass;
    std::vector<int> owners;
    Target anchors_to, references_to;
    int64_t width = 0, first_value = 0, first_cell = 0;
    bool is_dealt = false;
    std::vector<double> factors;  // d term / d value, per value
  };
  template <class T> void forward_of(T* values, T* counts, T* tables, T* terms);
  template <class T> void backward_of(const T* terms, const T* values, const T* tables, const std::vector<GradientTensor>& to);
  template <class T> bool is_reached(const Part& part, const std::vector<double>& shift, const T* values,
                                     const T* tables) const;
  template <class Work> void spread(Work work);
  void deal(const PlanRequest& request);

  std::mutex lock_;  // two threads may differentiate one graph
  bool is_double_;
  int terms_;
  int64_t numbers_ = 0, cells_ = 0;
  std::vector<Part> parts_;
  std::vector<std::vector<int>> dealt_;  // small passes by thread; the others come one after the other
};

}  // namespace dml
