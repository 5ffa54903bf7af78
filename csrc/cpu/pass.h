// One pass: one sweep over the similarities of anchors and references by several functors, forward and backward. It orders, keeps
// memory and calls the kernels of the instruction set in use. Compiled for any CPU; the arithmetic is in stages.h.
#pragma once
#include <memory>

#include "cpu/outline.h"

namespace dml {

struct Input {  // rows of T (float or double), `stride` numbers apart, in any order of labels
  const void* data = nullptr;
  const int64_t* labels = nullptr;
  int64_t rows = 0, stride = 0;
  bool normalise = false;
  const int64_t* places = nullptr;  // where each row begins, in numbers from `data`; nullptr: `stride` after the one before
};

struct Gradient {  // where the gradient of an input goes: rows of T, `stride` numbers apart
  void* data = nullptr;  // nullptr: nobody wants it
  int64_t stride = 0;
  bool adds = false;  // to what is there
};

enum class Shared { kLimits, kSums, kSlopes };  // numbers per anchor that ranks which divide a pass tell one another

class PassBase {
 public:
  virtual ~PassBase() = default;
  virtual const Outline& outline() const = 0;
  virtual void forward(void* values, void* counts, void* tables) = 0;  // T [V, A], in the caller's order; T [cells]
  // The gradients under T [V, A] cotangents (nullptr: 0) plus `shift` [V] for all anchors, kept until deliver(). That of a side
  // whose vectors are not copied is written at once, where it adds to nothing.
  virtual void differentiate(const void* cotangents, const double* shift, const void* table_cotangents, const Gradient& anchors,
                             const Gradient& references) = 0;
  virtual void deliver(const Gradient& anchors, const Gradient& references) = 0;
  virtual std::vector<std::pair<std::string, int64_t>> plan() const = 0;

  // The same stage by stage, where ranks divide the pass (divided.h). Values are 0 but for the anchors of this rank's classes, and
  // gradients are its part of them. After slope() comes deliver().
  virtual void open() = 0;
  virtual void collect() = 0;
  virtual void close(void* values, void* counts) = 0;
  virtual void weigh(const double* slopes) = 0;  // [V]: of the values of all anchors
  virtual void slope() = 0;
  virtual void* gradient() = 0;  // T [A, D] in class order, of unit vectors, until deliver()
  // That of the raw vectors of some anchors in class order, each to a row of its own. deliver() still follows.
  virtual void deliver_run(int64_t from, int64_t count, const int64_t* rows, const Gradient& anchors) = 0;
  virtual int64_t fields(Shared what) const = 0;
  virtual void take(Shared what, int64_t from, int64_t count, void* to) const = 0;  // T [fields, count] of these anchors
  virtual void put(Shared what, int64_t from, int64_t count, const void* numbers) = 0;
  // The sums that each rank has of this rank's anchors, T [fields, count] of each, `step` numbers apart.
  virtual void merge(const void* parts, int64_t step) = 0;
};

// Throws std::invalid_argument as outline_of does. Not for two threads at a time.
std::unique_ptr<PassBase> make_pass(bool is_double, const Input& anchors, const Input* references, int64_t width,
                                    const std::vector<FunctorCall>& calls, const Relations& relations,
                                    const PlanRequest& request, Orders& orders);

}  // namespace dml
