// One pass of an ensemble over the similarities, planned: ordering by class, tiles, memory, threads. Compiled for any CPU;
// the arithmetic is in level.cpp. Used by the binding; knows neither Python nor PyTorch.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>
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
  int threads = 1;                     // at most
  int64_t thread_work = 0;             // multiplications from which on a further thread is worth its barriers
  int64_t workspace = -1;              // bytes that similarities may be kept in between forward and backward
  int64_t tile_rows = 0, tile_columns = 0;
  int64_t slot_bytes = 0;              // bytes for the slots of losses that compare positives with negatives
  int search = -1;                     // 0: never look negatives up among a large class's thresholds, 1: always
  int triangle = -1;                   // 0: never use the symmetry of a batch compared with itself
};

struct Input {                         // rows of T (float or double), `stride` numbers apart, in any order of labels
  const void* data = nullptr;
  const int64_t* labels = nullptr;
  int64_t rows = 0, stride = 0;
  bool normalise = false;
};

struct Gradient {                      // where the gradient of an input goes: rows of T, `stride` numbers apart
  void* data = nullptr;                // nullptr: nobody wants it
  int64_t stride = 0;
  bool adds = false;                   // to what is there
};

struct Order {                         // the rows of an input by label
  std::vector<int64_t> order, labels;
};
using Orders = std::map<std::tuple<const int64_t*, int64_t, bool>, std::shared_ptr<const Order>>;   // of the passes of one step

struct Relations {                     // besides equal labels
  const int64_t* own = nullptr;        // [A]: the reference that is the anchor itself, or -1: never a pair
  const int64_t *starts = nullptr, *lists = nullptr;   // positives of anchor i: lists[starts[i]..starts[i + 1]), ascending; must outlive
};

class StepBase {
 public:
  virtual ~StepBase() = default;
  virtual int value_count() const = 0;
  virtual int64_t anchors() const = 0;
  virtual int64_t table_cells() const = 0;
  virtual int threads() const = 0;
  virtual double work() const = 0;                                     // multiplications of one product of all similarities
  virtual void forward(void* values, void* counts, void* tables) = 0;   // T [V, A], in the caller's order; T [cells]
  // The gradients under T [V, A] cotangents (nullptr: 0) plus `shift` [V] for all anchors, kept until deliver().
  virtual void differentiate(const void* cotangents, const double* shift, const void* table_cotangents, bool with_references) = 0;
  virtual void deliver(const Gradient& anchors, const Gradient& references) = 0;
  virtual std::vector<std::pair<std::string, int64_t>> plan() const = 0;
};

// Throws std::invalid_argument for an unknown functor or a wrong number of options. Not for two threads at a time.
std::unique_ptr<StepBase> make_step(bool is_double, const Input& anchors, const Input* references, int64_t width,
                                    const std::vector<LossRequest>& losses, const Relations& relations, const PlanRequest& request,
                                    Orders& orders);

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
