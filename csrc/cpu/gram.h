// A few long rows, the gradients of an ensemble's losses: their inner products, and weighted sums of them.
#pragma once
#include <cstdint>

namespace dml {

// Into `products` [count, count], summed in double in an order that depends on nothing but `size`.
void gram(const float* rows, int64_t count, int64_t size, double* products);

// Into `sum` [size]: the rows, each times its factor, in their order. Rows with a factor of 0 are left out, whatever they hold.
void weighted_sum(const float* rows, int64_t count, int64_t size, const double* factors, float* sum);

}  // namespace dml
