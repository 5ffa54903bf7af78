// One pass of an ensemble over the similarities, planned: ordering by class, tiles, memory, threads. Compiled for any CPU;
// the arithmetic is in level.cpp. Used by the binding; knows neither Python nor PyTorch.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace dml {

struct LossRequest {
  std::string functor;
  std::vector<double> options;
  const void* given = nullptr;         // T [K, A] in the caller's order, copied by the constructor
  const void* windows = nullptr;       // T [4, A], the same: lowest and highest positive, lowest and highest negative that count
};

struct PlanRequest {                   // 0 or -1: the planner decides
  int threads = 1;
  int64_t workspace = -1;              // bytes that similarities may be kept in between forward and backward
  int64_t tile_rows = 0, tile_columns = 0;
  int64_t slot_bytes = 0;              // bytes for the slots of losses that compare positives with negatives
  int search = -1;                     // 0: never look negatives up among a large class's thresholds, 1: always
  int triangle = -1;                   // 0: never use the symmetry of a batch compared with itself
};

struct Input {                         // rows of T (float or double), contiguous, in any order of labels
  const void* data;
  const int64_t* labels;
  int64_t rows;
  bool normalise;
};

struct Relations {                     // besides equal labels
  const int64_t* own = nullptr;        // [A]: the reference that is the anchor itself, or -1: never a pair
  const int64_t *starts = nullptr, *lists = nullptr;   // positives of anchor i: lists[starts[i]..starts[i + 1]), ascending; must outlive
};

class StepBase {
 public:
  virtual ~StepBase() = default;
  virtual int value_count() const = 0;
  virtual int64_t table_cells() const = 0;
  virtual void forward(void* values, void* counts, void* tables) = 0;                        // T [V, A], in the caller's order; T [cells]
  virtual void backward(const void* cotangents, const void* table_cotangents, void* grad_anchors, void* grad_references) = 0;   // references may be nullptr
  virtual std::vector<std::pair<std::string, int64_t>> plan() const = 0;
};

// Throws std::invalid_argument for an unknown functor or a wrong number of options.
std::unique_ptr<StepBase> make_step(bool is_double, const Input& anchors, const Input* references, int64_t width,
                                    const std::vector<LossRequest>& losses, const Relations& relations, const PlanRequest& request);

struct Functor {
  std::string name, options;
  int values;
  bool partners;
};
std::vector<Functor> functors();
struct FunctorModule;
std::vector<std::string> functor_names(const FunctorModule&);
void register_functors(const FunctorModule&);   // of the level in use. Throws std::invalid_argument where they do not fit.
std::string headers();                 // the hash of the headers this was built with
std::string flags(const std::string& level);   // the compiler's
std::vector<std::string> levels();     // those this CPU can run, best last
std::string level();
void use_level(const std::string& name);
void use_blas(void* sgemm, void* dgemm, void* set_threads_local);   // nullptr: the levels' own product
bool has_blas();
void release_workspaces();
int64_t highest_workspace();           // the most bytes in use at a time since the last call

}  // namespace dml
