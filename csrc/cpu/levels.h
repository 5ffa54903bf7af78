// What this machine offers: instruction sets with their kernels and functors, and the vendor's matrix products.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cpu/problem.h"

namespace dml {

struct Functor {
  std::string name, options;
  int values;
  bool partners, merges;  // merges: what ranks have collected of an anchor can be merged
};
// Whether all that is known of an anchor are sums over its negatives. A slot stands for one positive, a table for no anchor, and a
// centre takes part by its class.
bool merges(const FunctorInfo&);
std::vector<Functor> functors();       // of the level in use
std::vector<std::string> functor_names(const FunctorModule&);
void register_functors(const FunctorModule&);   // of the level in use. Throws std::invalid_argument where they do not fit.
std::string headers();                 // the hash of the headers this was built with
std::string flags(const std::string& level);   // the compiler's
std::vector<std::string> levels();     // those this CPU can run, best last
std::string level();
void use_level(const std::string& name);
void use_blas(void* sgemm, void* dgemm, void* set_threads_local);   // nullptr: the levels' own product
bool has_blas();

// to [rows, columns] = the products of rows [rows, depth] and columns [columns, depth], by the level's own product, one thread.
void multiply(const float* rows_of, int64_t rows, const float* columns_of, int64_t columns, int64_t depth, float* to);

template <class T> const Kernels<T>& current_kernels();                // of the level in use; they stay where they are
template <class T> BlasGemm<T> current_gemm();
using BlasThreads = void (*)(int);
BlasThreads current_blas_threads();

}  // namespace dml
