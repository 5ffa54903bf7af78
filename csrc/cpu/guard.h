// Under AddressSanitizer (-DDML_SANITIZED, tests/test_sanitized.py) arrays packed into one buffer are set apart by bytes that
// nobody may touch; otherwise nothing here costs anything.
#pragma once
#include <cstdint>
#ifdef DML_SANITIZED
#include <sanitizer/asan_interface.h>
#endif

namespace dml {

#ifdef DML_SANITIZED
constexpr int64_t kGuard = 64;
static inline void forbid(const void* at, int64_t bytes) { __asan_poison_memory_region(at, size_t(bytes)); }
static inline void allow(const void* at, int64_t bytes) { __asan_unpoison_memory_region(at, size_t(bytes)); }
#else
constexpr int64_t kGuard = 0;
static inline void forbid(const void*, int64_t) {}
static inline void allow(const void*, int64_t) {}
#endif

}  // namespace dml
