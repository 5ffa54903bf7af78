#include "cpu/passes.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <stdexcept>

namespace dml {

namespace {

constexpr double kTeamWork = 2e6;                                      // multiplications of whole passes that a further thread is worth

// Adding to zeros where passes share columns in part, or leave some out; else the first one at its columns writes them.
bool tiles_exactly(const std::vector<std::pair<int64_t, int64_t>>& columns, int64_t width) {
  std::vector<std::pair<int64_t, int64_t>> sorted(columns);
  std::sort(sorted.begin(), sorted.end());
  sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
  int64_t at = 0;
  for (const auto& [first, last] : sorted) {
    if (first != at) return false;
    at = last;
  }
  return at == width;
}

}  // namespace

Passes::Passes(bool is_double, const std::vector<PassRequest>& passes, int terms, const PlanRequest& request)
    : is_double_(is_double), terms_(terms) {
  Orders orders;                                                       // heads of one batch are ordered once
  for (const PassRequest& wanted : passes) {
    Pass pass;
    pass.step = make_step(is_double, wanted.anchors, wanted.has_references ? &wanted.references : nullptr, wanted.width, wanted.losses,
                          wanted.relations, request, orders);
    pass.owners = wanted.owners;
    if (pass.owners.size() != size_t(pass.step->value_count())) throw std::invalid_argument("owners must be one per value");
    for (int owner : pass.owners)
      if (owner < -1 || owner >= terms) throw std::invalid_argument("owners must be terms, or -1");
    pass.anchors_to = wanted.anchors_to, pass.references_to = wanted.references_to;
    pass.width = wanted.width, pass.first_value = numbers_, pass.first_cell = cells_;
    pass.factors.assign(pass.owners.size(), 0.0);
    numbers_ += int64_t(pass.owners.size()) * pass.step->anchors();
    cells_ += pass.step->table_cells();
    passes_.push_back(std::move(pass));
  }
  deal(request);
}

// Small passes, longest first, each to the thread with the least to do; everything else is large.
void Passes::deal(const PlanRequest& request) {
  std::vector<int> small;
  double work = 0;
  for (int k = 0; k < int(passes_.size()); ++k)
    if (passes_[k].step->threads() == 1) small.push_back(k), work += passes_[k].step->work();
  const double worth = request.thread_work > 0 ? double(request.thread_work) / 5 : kTeamWork;
  const int busy = int(std::min(work / worth, 1e6)) + 1;
  const int team = omp_in_parallel() ? 1 : std::min({request.threads, omp_get_thread_limit(), busy, int(small.size())});
  if (team > 1) {
    std::stable_sort(small.begin(), small.end(), [&](int a, int b) { return passes_[a].step->work() > passes_[b].step->work(); });
    dealt_.resize(team);
    std::vector<double> load(team, 0.0);
    for (int k : small) {
      const auto least = std::min_element(load.begin(), load.end()) - load.begin();
      dealt_[least].push_back(k), load[least] += passes_[k].step->work() + 1;
    }
    small.clear();
  }
  for (Pass& pass : passes_) pass.is_dealt = team > 1 && pass.step->threads() == 1;
}

// Runs work(k) for the passes that are dealt out. OpenMP may grant fewer threads than asked for: then one does everything.
template <class Work> void Passes::spread(Work work) {
  const int team = int(dealt_.size());
  if (team == 0) return;
  bool granted = true;
  std::vector<std::exception_ptr> failed(team);
  const auto run = [&](int thread) {                                   // no exception may leave a parallel region
    try {
      for (int k : dealt_[thread]) work(k);
    } catch (...) {
      failed[thread] = std::current_exception();
    }
  };
#pragma omp parallel num_threads(team)
  {
    if (omp_get_num_threads() == team) {
      run(omp_get_thread_num());
    } else {
#pragma omp master
      granted = false;
    }
  }
  for (int t = 0; !granted && t < team; ++t) run(t);
  for (const std::exception_ptr& one : failed)
    if (one) std::rethrow_exception(one);
}

template <class T> void Passes::forward_of(T* values, T* counts, T* tables, T* terms) {
  const auto run = [&](int k) {
    Pass& pass = passes_[k];
    pass.step->forward(values + pass.first_value, counts + pass.first_value, tables + pass.first_cell);
  };
  spread(run);
  for (int k = 0; k < int(passes_.size()); ++k)
    if (!passes_[k].is_dealt) run(k);
  std::vector<double> total(terms_, 0.0);
  for (Pass& pass : passes_) {
    const int64_t anchors = pass.step->anchors();
    for (size_t v = 0; v < pass.owners.size(); ++v) {
      if (pass.owners[v] < 0) continue;
      const T *value = values + pass.first_value + int64_t(v) * anchors, *count = counts + pass.first_value + int64_t(v) * anchors;
      double sum = 0, number = 0;
      for (int64_t i = 0; i < anchors; ++i) sum += double(value[i]), number += double(count[i]);
      pass.factors[v] = 1 / std::max(number, 1.0);
      total[pass.owners[v]] += sum / std::max(number, 1.0);
    }
  }
  for (int t = 0; t < terms_; ++t) terms[t] = T(total[t]);
}

template <class T>
bool Passes::is_reached(const Pass& pass, const std::vector<double>& shift, const T* values, const T* tables) const {
  const auto counts = [](auto x) { return x != 0; };                   // NaN does
  const int64_t cells = pass.step->table_cells(), numbers = int64_t(pass.owners.size()) * pass.step->anchors();
  return passes_.size() == 1 || std::any_of(shift.begin(), shift.end(), counts) ||
         (values && std::any_of(values + pass.first_value, values + pass.first_value + numbers, counts)) ||
         (tables && std::any_of(tables + pass.first_cell, tables + pass.first_cell + cells, counts));
}

template <class T>
void Passes::backward_of(const T* terms, const T* values, const T* tables, const std::vector<GradientTensor>& to) {
  const auto wants = [&](const Target& target) { return target.tensor >= 0 && to.at(target.tensor).data; };
  std::vector<std::vector<double>> shifts;                             // the cotangent of every anchor's value, from that of its term
  std::vector<char> reached;
  std::vector<std::vector<std::pair<int64_t, int64_t>>> columns(to.size());
  for (const Pass& pass : passes_) {
    std::vector<double> shift(pass.owners.size(), 0.0);
    for (size_t v = 0; terms && v < shift.size(); ++v)
      if (pass.owners[v] >= 0) shift[v] = double(terms[pass.owners[v]]) * pass.factors[v];
    shifts.push_back(shift);
    reached.push_back(is_reached(pass, shift, values, tables));
    for (const Target* target : {&pass.anchors_to, &pass.references_to})
      if (reached.back() && target->tensor >= 0) columns.at(target->tensor).push_back({target->column, target->column + pass.width});
  }
  std::vector<char> adds(to.size(), 0);
  for (size_t t = 0; t < to.size(); ++t) {
    adds[t] = !tiles_exactly(columns[t], to[t].width);
    if (adds[t] && to[t].data) std::fill_n(static_cast<T*>(to[t].data), to[t].rows * to[t].width, T(0));
    columns[t].clear();
  }
  const auto place = [&](const Target& target, int64_t width) {
    Gradient out;
    if (!wants(target)) return out;
    const GradientTensor& tensor = to[target.tensor];
    const std::pair<int64_t, int64_t> here{target.column, target.column + width};
    std::vector<std::pair<int64_t, int64_t>>& written = columns[target.tensor];
    out.data = static_cast<T*>(tensor.data) + target.column, out.stride = tensor.width;
    out.adds = adds[target.tensor] || std::find(written.begin(), written.end(), here) != written.end();
    written.push_back(here);
    return out;
  };
  const auto differentiate = [&](int k) {
    Pass& pass = passes_[k];
    if (reached[k])
      pass.step->differentiate(values ? values + pass.first_value : nullptr, shifts[k].data(), tables ? tables + pass.first_cell : nullptr,
                               wants(pass.references_to));
  };
  spread(differentiate);
  for (int k = 0; k < int(passes_.size()); ++k) {                      // in this order, whoever computed: the same bits every time
    if (!passes_[k].is_dealt) differentiate(k);
    if (!reached[k]) continue;
    const Gradient anchors = place(passes_[k].anchors_to, passes_[k].width);
    passes_[k].step->deliver(anchors, place(passes_[k].references_to, passes_[k].width));
  }
}

void Passes::forward(void* values, void* counts, void* tables, void* terms) {
  std::lock_guard<std::mutex> alone(lock_);
  if (is_double_) forward_of(static_cast<double*>(values), static_cast<double*>(counts), static_cast<double*>(tables), static_cast<double*>(terms));
  else forward_of(static_cast<float*>(values), static_cast<float*>(counts), static_cast<float*>(tables), static_cast<float*>(terms));
}

void Passes::backward(const void* terms, const void* values, const void* tables, const std::vector<GradientTensor>& to) {
  std::lock_guard<std::mutex> alone(lock_);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    backward_of(static_cast<const T*>(terms), static_cast<const T*>(values), static_cast<const T*>(tables), to);
  };
  is_double_ ? run(0.0) : run(0.0f);
}

}  // namespace dml
