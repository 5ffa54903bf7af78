#include "cpu/levels.h"

#include <stdexcept>
#include <utility>
#if __has_include("dml_build.h")
#include "dml_build.h"
#else  // no build by setup.py: functors of a run time never fit
#define DML_HEADERS ""
#define DML_FLAGS ""
#define DML_LEVEL_FLAGS {"", ""}
#endif

namespace dml {

bool merges(const FunctorInfo& info) { return !(info.has_slots || info.table || info.centres || info.means); }

Kernels<float> kernels_f32_base();
Kernels<double> kernels_f64_base();
#ifdef DML_X86
Kernels<float> kernels_f32_avx2();
Kernels<double> kernels_f64_avx2();
Kernels<float> kernels_f32_avx512();
Kernels<double> kernels_f64_avx512();
#endif

namespace {

struct Level {
  std::string name;
  Kernels<float> f32;
  Kernels<double> f64;
};

// One path for the losses of csrc/losses and for plugins' headers.
void join(const Level& level, const FunctorModule& module, const std::string& whose) {
  const auto check = [&](const char* why_not) {
    if (why_not) throw std::invalid_argument(whose + " " + why_not);
  };
  if (module.headers != std::string(DML_HEADERS)) check("was compiled against other headers than this extension");
  if (module.level != level.name) check("was compiled for another instruction set than the one in use");
  check(level.f32.append(module.f32, module.count, module.bytes32));
  check(level.f64.append(module.f64, module.count, module.bytes64));
}

std::vector<Level>& all_levels() {
  static std::vector<Level> levels = [] {
    std::vector<Level> out{{"base", kernels_f32_base(), kernels_f64_base()}};
#ifdef DML_X86
    if (__builtin_cpu_supports("x86-64-v3")) out.push_back({"avx2", kernels_f32_avx2(), kernels_f64_avx2()});
    if (__builtin_cpu_supports("x86-64-v4")) out.push_back({"avx512", kernels_f32_avx512(), kernels_f64_avx512()});
#endif
    for (const Level& level : out)
      for (int k = 0; const FunctorModule* module = level.f32.built_in(k); ++k) {
        const std::vector<std::string> names = functor_names(*module);
        join(level, *module, "the header of the built-in functor '" + (names.empty() ? "" : names[0]) + "'");
      }
    return out;
  }();
  return levels;
}
size_t& level_in_use() {
  static size_t index = all_levels().size() - 1;
  return index;
}

struct Blas {
  BlasGemm<float> sgemm = nullptr;
  BlasGemm<double> dgemm = nullptr;
  BlasThreads threads = nullptr;
} blas;

}  // namespace

template <> const Kernels<float>& current_kernels<float>() { return all_levels()[level_in_use()].f32; }
template <> const Kernels<double>& current_kernels<double>() { return all_levels()[level_in_use()].f64; }
template <> BlasGemm<float> current_gemm<float>() { return blas.sgemm; }
template <> BlasGemm<double> current_gemm<double>() { return blas.dgemm; }
BlasThreads current_blas_threads() { return blas.threads; }

std::vector<Functor> functors() {
  std::vector<Functor> out;
  const Kernels<float>& k = current_kernels<float>();
  for (int f = 0; f < k.functors(); ++f) {
    const FunctorInfo info = k.describe(f);
    if (out.empty() || out.back().name != info.name)
      out.push_back({info.name, info.options, info.values, info.partners, merges(info)});
  }
  return out;
}

std::vector<std::string> functor_names(const FunctorModule& module) {
  std::vector<std::string> out;
  for (int k = 0; k < module.count; ++k) {  // an entry begins with its description
    const auto* info = reinterpret_cast<const FunctorInfo*>(static_cast<const char*>(module.f32) + k * module.bytes32);
    if (out.empty() || out.back() != info->name) out.push_back(info->name);
  }
  return out;
}

void register_functors(const FunctorModule& module) { join(all_levels()[level_in_use()], module, "this shared object"); }

std::string headers() { return DML_HEADERS; }
std::string flags(const std::string& level) {
  for (const auto& [name, flags] : std::vector<std::pair<std::string, std::string>>{DML_LEVEL_FLAGS})
    if (name == level) return DML_FLAGS " " + flags;
  throw std::invalid_argument("this build has no level '" + level + "'");
}

std::vector<std::string> levels() {
  std::vector<std::string> out;
  for (const Level& level : all_levels()) out.push_back(level.name);
  return out;
}
std::string level() { return all_levels()[level_in_use()].name; }
void use_level(const std::string& name) {
  for (size_t k = 0; k < all_levels().size(); ++k)
    if (all_levels()[k].name == name) {
      level_in_use() = k;
      return;
    }
  throw std::invalid_argument("this CPU or build has no level '" + name + "'");
}
void use_blas(void* sgemm, void* dgemm, void* set_threads_local) {
  blas.sgemm = reinterpret_cast<BlasGemm<float>>(sgemm);
  blas.dgemm = reinterpret_cast<BlasGemm<double>>(dgemm);
  blas.threads = reinterpret_cast<BlasThreads>(set_threads_local);
}
void multiply(const float* rows_of, int64_t rows, const float* columns_of, int64_t columns, int64_t depth, float* to) {
  const Kernels<float>& kernels = current_kernels<float>();
  std::vector<unsigned char> scratch(kernels.multiply_bytes);
  kernels.multiply(rows_of, rows, columns_of, columns, depth, to, scratch.data());
}
bool has_blas() { return blas.sgemm && blas.dgemm; }

}  // namespace dml
