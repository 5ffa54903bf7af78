// Inner products of a few long rows: of the gradients of an ensemble's losses.
#pragma once
#include <cstdint>

namespace dml {

// Into `products` [count, count], summed in double in an order that depends on nothing but `size`.
void gram(const float* rows, int64_t count, int64_t size, double* products);

}  // namespace dml
