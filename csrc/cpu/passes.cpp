#include "cpu/passes.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <stdexcept>

#include "cpu/memory.h"

namespace dml {

namespace {

constexpr double kTeamWork = 2e6;  // multiplications of whole passes that a further thread is worth

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
  Orders orders;  // heads of one batch are ordered once
  for (const PassRequest& asked : passes) {
    Part part;
    part.pass = make_pass(is_double, asked.anchors, asked.has_references ? &asked.references : nullptr, asked.width,
                          asked.calls, asked.relations, request, orders);
    part.owners = asked.owners;
    if (part.owners.size() != size_t(part.pass->outline().value_count))
      throw std::invalid_argument("owners must be one per value");
    for (int owner : part.owners)
      if (owner < -1 || owner >= terms) throw std::invalid_argument("owners must be terms, or -1");
    part.anchors_to = asked.anchors_to, part.references_to = asked.references_to;
    part.width = asked.width, part.first_value = numbers_, part.first_cell = cells_;
    part.factors.assign(part.owners.size(), 0.0);
    numbers_ += int64_t(part.owners.size()) * part.pass->outline().A;
    cells_ += part.pass->outline().table_cells;
    parts_.push_back(std::move(part));
  }
  deal(request);
}

// Small passes, longest first, each to the thread with the least to do; everything else is large.
void Passes::deal(const PlanRequest& request) {
  std::vector<int> small;
  double work = 0;
  for (int k = 0; k < int(parts_.size()); ++k)
    if (parts_[k].pass->outline().threads == 1) small.push_back(k), work += parts_[k].pass->outline().work();
  const double worth = request.thread_work > 0 ? double(request.thread_work) / 5 : kTeamWork;
  const int busy = int(std::min(work / worth, 1e6)) + 1;
  const int team = omp_in_parallel() ? 1 : std::min({request.threads, omp_get_thread_limit(), busy, int(small.size())});
  if (team > 1) {
    std::stable_sort(small.begin(), small.end(),
                     [&](int a, int b) { return parts_[a].pass->outline().work() > parts_[b].pass->outline().work(); });
    dealt_.resize(team);
    std::vector<double> load(team, 0.0);
    for (int k : small) {
      const auto least = std::min_element(load.begin(), load.end()) - load.begin();
      dealt_[least].push_back(k), load[least] += parts_[k].pass->outline().work() + 1;
    }
    small.clear();
  }
  for (Part& part : parts_) part.is_dealt = team > 1 && part.pass->outline().threads == 1;
}

// Runs work(k) for the passes that are dealt out. OpenMP may grant fewer threads than asked for: then one does everything.
template <class Work> void Passes::spread(Work work) {
  const int team = int(dealt_.size());
  if (team == 0) return;
  bool granted = true;
  std::vector<std::exception_ptr> failed(team);
  const auto run = [&](int thread) {  // no exception may leave a parallel region
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
  for (const std::exception_ptr& error : failed)
    if (error) std::rethrow_exception(error);
}

template <class T> void Passes::forward_of(T* values, T* counts, T* tables, T* terms) {
  Buffer<T> unwanted;
  if (!values) values = unwanted.resize(2 * numbers_), counts = values + numbers_;
  const auto run = [&](int k) {
    Part& part = parts_[k];
    part.pass->forward(values + part.first_value, counts + part.first_value, tables + part.first_cell);
  };
  spread(run);
  for (int k = 0; k < int(parts_.size()); ++k)
    if (!parts_[k].is_dealt) run(k);
  std::vector<double> total(terms_, 0.0);
  for (Part& part : parts_) {
    const int64_t anchors = part.pass->outline().A;
    for (size_t v = 0; v < part.owners.size(); ++v) {
      if (part.owners[v] < 0) continue;
      const T *value = values + part.first_value + int64_t(v) * anchors,
              *count = counts + part.first_value + int64_t(v) * anchors;
      double sum = 0, number = 0;
      for (int64_t i = 0; i < anchors; ++i) sum += double(value[i]), number += double(count[i]);
      part.factors[v] = 1 / std::max(number, 1.0);
      total[part.owners[v]] += sum / std::max(number, 1.0);
    }
  }
  for (int t = 0; t < terms_; ++t) terms[t] = T(total[t]);
}

template <class T>
bool Passes::is_reached(const Part& part, const std::vector<double>& shift, const T* values, const T* tables) const {
  const auto counts = [](auto x) { return x != 0; };  // NaN does
  const int64_t cells = part.pass->outline().table_cells, numbers = int64_t(part.owners.size()) * part.pass->outline().A;
  return parts_.size() == 1 || std::any_of(shift.begin(), shift.end(), counts) ||
         (values && std::any_of(values + part.first_value, values + part.first_value + numbers, counts)) ||
         (tables && std::any_of(tables + part.first_cell, tables + part.first_cell + cells, counts));
}

template <class T>
void Passes::backward_of(const T* terms, const T* values, const T* tables, const std::vector<GradientTensor>& to) {
  const auto wants = [&](const Target& target) { return target.tensor >= 0 && to.at(target.tensor).data; };
  std::vector<std::vector<double>> shifts;  // the cotangent of every anchor's value, from that of its term
  std::vector<char> reached;
  std::vector<std::vector<std::pair<int64_t, int64_t>>> columns(to.size());
  for (const Part& part : parts_) {
    std::vector<double> shift(part.owners.size(), 0.0);
    for (size_t v = 0; terms && v < shift.size(); ++v)
      if (part.owners[v] >= 0) shift[v] = double(terms[part.owners[v]]) * part.factors[v];
    shifts.push_back(shift);
    reached.push_back(is_reached(part, shift, values, tables));
    for (const Target* target : {&part.anchors_to, &part.references_to})
      if (reached.back() && target->tensor >= 0)
        columns.at(target->tensor).push_back({target->column, target->column + part.width});
  }
  std::vector<char> adds(to.size(), 0);
  for (size_t t = 0; t < to.size(); ++t) {
    adds[t] = !tiles_exactly(columns[t], to[t].width);
    if (to[t].data) ask_for_large_pages(to[t].data, size_t(to[t].rows * to[t].width) * sizeof(T));
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
  std::vector<std::pair<Gradient, Gradient>> places(parts_.size());  // the first pass at some columns writes, the next ones add
  for (size_t k = 0; k < parts_.size(); ++k) {
    if (!reached[k]) continue;
    places[k].first = place(parts_[k].anchors_to, parts_[k].width);
    places[k].second = place(parts_[k].references_to, parts_[k].width);
  }
  const auto differentiate = [&](int k) {
    Part& part = parts_[k];
    if (reached[k])
      part.pass->differentiate(values ? values + part.first_value : nullptr, shifts[k].data(),
                               tables ? tables + part.first_cell : nullptr, places[k].first, places[k].second);
  };
  spread(differentiate);
  for (int k = 0; k < int(parts_.size()); ++k) {  // in this order, whoever computed: the same bits every time
    if (!parts_[k].is_dealt) differentiate(k);
    if (!reached[k]) continue;
    parts_[k].pass->deliver(places[k].first, places[k].second);
  }
}

void Passes::forward(void* values, void* counts, void* tables, void* terms) {
  std::lock_guard<std::mutex> alone(lock_);
  if (is_double_)
    forward_of(static_cast<double*>(values), static_cast<double*>(counts), static_cast<double*>(tables),
               static_cast<double*>(terms));
  else
    forward_of(static_cast<float*>(values), static_cast<float*>(counts), static_cast<float*>(tables),
               static_cast<float*>(terms));
}

void Passes::backward(const void* terms, const void* values, const void* tables, const std::vector<GradientTensor>& to) {
  std::lock_guard<std::mutex> alone(lock_);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    backward_of(static_cast<const T*>(terms), static_cast<const T*>(values), static_cast<const T*>(tables), to);
  };
  is_double_ ? run(0.0) : run(0.0f);
}

void Passes::backward_by_term(const std::vector<TermGradients>& to) {
  std::lock_guard<std::mutex> alone(lock_);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    for (int term = 0; term < terms_; ++term) {
      std::vector<GradientTensor> of_term;
      bool is_wanted = false;
      for (const TermGradients& source : to) {
        const auto place = std::find(source.terms.begin(), source.terms.end(), term);
        const bool has = source.data && place != source.terms.end();
        const int64_t before = (place - source.terms.begin()) * source.rows * source.width;
        of_term.push_back({has ? static_cast<T*>(source.data) + before : nullptr, source.rows, source.width});
        is_wanted = is_wanted || has;
      }
      std::vector<T> cotangents(terms_, zero);
      cotangents[term] = 1;
      if (is_wanted) backward_of(cotangents.data(), static_cast<const T*>(nullptr), static_cast<const T*>(nullptr), of_term);
    }
  };
  is_double_ ? run(0.0) : run(0.0f);
}

}  // namespace dml
