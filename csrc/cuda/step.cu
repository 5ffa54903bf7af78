// Plans the memory of a step and runs its phases: vectors into class order and to unit norm; per loss open, collect, close; in
// backward per loss weigh and the gradients; then through the normalisation back to the caller's order.
#include "cuda/step.h"

#include <cstdio>

#include "cuda/losses.h"

DML_BEGIN

constexpr int kWarp = 32, kWarps = 8;
constexpr int kBlocksWanted = 264;     // two for each multiprocessor of a large GPU: rows of tiles are split to get there
constexpr int kMostSplits = 64;        // partial sums stay O(A)
constexpr int64_t kLongBytes = int64_t(32) << 20;                      // for lists of positives over kShortList
constexpr int kMostLongBlocks = 128;
constexpr int64_t kAlign = 64;         // floats

template <class T> __device__ __forceinline__ T warp_sum(T x) {        // in a fixed order, the same in every lane
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// A warp per row: to[i] = from[order[i]] * factors[i].
__global__ void gather_kernel(const float* from, const int64_t* order, int rows, int width, bool normalise, float* to,
                              float* factors) {
  const int i = blockIdx.x * kWarps + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (i >= rows) return;
  const float* x = from + size_t(order[i]) * width;
  double square = 0;                                                   // double: 1e20 is no infinity
  for (int k = lane; k < width; k += kWarp) square += double(x[k]) * double(x[k]);
  square = warp_sum(square);
  const double norm = ::sqrt(square);
  float factor = !normalise ? 1.0f : norm > 1e-12 ? float(1 / norm) : 0.0f;   // a zero vector stays zero
  if (!(square < 1e300)) factor = float(square - square);              // NaN marks a row that is not finite
  if (lane == 0) factors[i] = factor;
  for (int k = lane; k < width; k += kWarp) to[size_t(i) * width + k] = x[k] * factor;
}

// The gradient of the raw vectors, in their own order: normalising removes the radial part and divides by the norm.
__global__ void scatter_kernel(const float* grad, const float* unit, const float* factors, const int64_t* order, int rows,
                               int width, bool normalise, float* to) {
  const int i = blockIdx.x * kWarps + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (i >= rows) return;
  const float *g = grad + size_t(i) * width, *x = unit + size_t(i) * width;
  float radial = 0.0f;
  if (normalise) {
    for (int k = lane; k < width; k += kWarp) radial = fmaf(g[k], x[k], radial);
    radial = warp_sum(radial);
  }
  float* out = to + size_t(order[i]) * width;
  for (int k = lane; k < width; k += kWarp) out[k] = (g[k] - radial * x[k]) * factors[i];
}

static int splits_of(const CudaProblem& p, int64_t N, bool slots) {
  if (slots) return 1;                                                 // a slot has one writer
  const int64_t rows = (p.anchors.rows + kTile - 1) / kTile, columns = (N + kTile - 1) / kTile;
  int64_t splits = rows ? (kBlocksWanted + rows - 1) / rows : 1;
  if (splits > columns) splits = columns;
  if (splits > kMostSplits) splits = kMostSplits;
  return splits < 1 ? 1 : int(splits);
}

// Hands out one piece of memory after the other; with a null base it measures.
struct Cursor {
  float* base;
  int64_t used = 0;
  float* take(int64_t count) {
    float* at = base ? base + used : nullptr;
    used += (count + kAlign - 1) / kAlign * kAlign;
    return at;
  }
};

struct Kept {
  float *anchors, *anchor_factors, *references, *reference_factors;
};

struct Layout {
  const CudaProblem& p;
  bool self;
  int64_t A, N, D;

  explicit Layout(const CudaProblem& problem)
      : p(problem), self(problem.self), A(problem.anchors.rows), N(self ? A : problem.references.rows), D(problem.width) {}

  Kept kept(Cursor& at) const {
    Kept k{};
    k.anchors = at.take(A * D), k.anchor_factors = at.take(A);
    k.references = k.anchors, k.reference_factors = k.anchor_factors;
    if (!self) k.references = at.take(N * D), k.reference_factors = at.take(N);
    return k;
  }
  LossMemory loss(const CudaLoss& loss, Cursor& at) const {
    const CudaEntry& e = cuda_entry(loss.functor);
    LossMemory m{};
    m.most_positives = p.most_positives;
    m.splits = splits_of(p, N, e.functor.slots);
    m.limits = at.take(e.limits * A), m.sums = at.take(e.sums * A);
    if (e.functor.slots) {
      m.slot_limits = at.take(e.slot_limits * p.most_positives * A);
      m.slot_sums = at.take(e.slot_sums * p.most_positives * A);
    }
    return m;
  }
  int long_blocks() const {
    if (N <= kShortList) return 0;
    const int64_t fit = kLongBytes / (int64_t(sizeof(float)) * N), most = fit > kMostLongBlocks ? kMostLongBlocks : fit;
    return int(most < 1 ? 1 : most);
  }
  float* long_lists(Cursor& at) const { return long_blocks() ? at.take(long_blocks() * N) : nullptr; }
  float* partial(const CudaLoss* losses, int count, Cursor& at) const {
    int64_t most = 0;
    for (int l = 0; l < count; ++l) {
      const CudaEntry& e = cuda_entry(losses[l].functor);
      const int64_t cells = int64_t(e.sums) * splits_of(p, N, e.functor.slots) * A;
      if (cells > most) most = cells;
    }
    return at.take(most);
  }
  float* slopes(const CudaLoss* losses, int count, Cursor& at) const {
    int64_t most = 0;
    for (int l = 0; l < count; ++l)
      if (cuda_entry(losses[l].functor).slopes > most) most = cuda_entry(losses[l].functor).slopes;
    return at.take(most * A);
  }
  View view(const Kept& k) const { return {k.anchors, k.references, p.row_first, p.row_last, int(A), int(N), int(D), self}; }
};

static void gather(const CudaSide& side, int64_t width, float* to, float* factors, cudaStream_t stream) {
  if (side.rows == 0) return;
  CU_LAUNCH(gather_kernel, int((side.rows + kWarps - 1) / kWarps), kWarps * kWarp, 0, stream, side.data, side.order,
            int(side.rows), int(width), side.normalise, to, factors);
}
static void scatter(const CudaSide& side, int64_t width, const float* grad, const float* unit, const float* factors, float* to,
                    cudaStream_t stream) {
  if (side.rows == 0) return;
  CU_LAUNCH(scatter_kernel, int((side.rows + kWarps - 1) / kWarps), kWarps * kWarp, 0, stream, grad, unit, factors, side.order,
            int(side.rows), int(width), side.normalise, to);
}

DML_END

namespace dml {

int cuda_functors() { return cuda_entries(); }
CudaFunctor cuda_functor(int index) { return cuda_entry(index).functor; }
bool cuda_fits(int functor, const double* options, unsigned char* into) { return cuda_entry(functor).fits(options, into); }
int cuda_runtime_version() { return CUDART_VERSION; }

const char* cuda_workspace(const CudaProblem& p, const CudaLoss* losses, int count, int64_t slot_bytes, CudaBytes* bytes) {
  const Layout layout(p);
  constexpr int64_t most = int64_t(1) << 30;
  if (layout.A > most || layout.N > most || layout.D > 65535 * 128) return "more than 2^30 rows, or too wide a vector";
  int64_t slots = 0;
  for (int l = 0; l < count; ++l) {
    const CudaEntry& e = cuda_entry(losses[l].functor);
    slots += int64_t(sizeof(float)) * (e.slot_limits + e.slot_sums) * p.most_positives * layout.A;
  }
  static thread_local char text[160];
  if (slots > slot_bytes) {
    std::snprintf(
        text, sizeof text,
        "comparing every positive with every negative would need %lld MiB for up to %lld positives per anchor, limit %lld MiB",
        static_cast<long long>(slots >> 20), static_cast<long long>(p.most_positives),
        static_cast<long long>(slot_bytes >> 20));
    return text;
  }
  Cursor kept{nullptr}, forward{nullptr}, backward{nullptr};
  layout.kept(kept);
  for (int l = 0; l < count; ++l) layout.loss(losses[l], kept);
  layout.partial(losses, count, forward), layout.long_lists(forward);
  layout.slopes(losses, count, backward), layout.long_lists(backward);
  backward.take(layout.A * layout.D), backward.take(layout.self ? 0 : layout.N * layout.D);
  const int64_t size = sizeof(float);
  *bytes = {kept.used * size, forward.used * size, backward.used * size};
  return nullptr;
}

const char* cuda_forward(const CudaProblem& p, const CudaLoss* losses, int count, void* kept_memory, void* scratch,
                         float* values, float* counts, void* stream_) {
  const Layout layout(p);
  if (layout.A == 0) return nullptr;
  const auto stream = static_cast<cudaStream_t>(stream_);
  Cursor at{static_cast<float*>(kept_memory)}, temporary{static_cast<float*>(scratch)};
  const Kept kept = layout.kept(at);
  float* partial = layout.partial(losses, count, temporary);
  float* lists = layout.long_lists(temporary);
  const View view = layout.view(kept);
  gather(p.anchors, p.width, kept.anchors, kept.anchor_factors, stream);
  if (!layout.self) gather(p.references, p.width, kept.references, kept.reference_factors, stream);
  int64_t row = 0;
  for (int l = 0; l < count; ++l) {
    const CudaEntry& e = cuda_entry(losses[l].functor);
    LossMemory memory = layout.loss(losses[l], at);
    memory.partial = partial, memory.long_lists = lists, memory.long_blocks = layout.long_blocks();
    e.open(losses[l].options, view, memory, stream);
    e.collect(losses[l].options, view, memory, stream);
    e.close(losses[l].options, view, memory,
            {p.anchors.order, kept.anchor_factors, values + row * layout.A, counts + row * layout.A}, stream);
    row += e.functor.values;
  }
  return launch_error();
}

const char* cuda_backward(const CudaProblem& p, const CudaLoss* losses, int count, const void* kept_memory, void* scratch,
                          const float* cotangents, float* grad_anchors, float* grad_references, void* stream_) {
  const Layout layout(p);
  const auto stream = static_cast<cudaStream_t>(stream_);
  Cursor at{static_cast<float*>(const_cast<void*>(kept_memory))}, temporary{static_cast<float*>(scratch)};
  const Kept kept = layout.kept(at);
  float* slopes = layout.slopes(losses, count, temporary);
  float* lists = layout.long_lists(temporary);
  float *to_anchors = temporary.take(layout.A * layout.D),
        *to_references = temporary.take(layout.self ? 0 : layout.N * layout.D);
  const View view = layout.view(kept);
  if (layout.self) grad_references = nullptr;
  int64_t row = 0;
  for (int l = 0; l < count; ++l) {
    const CudaEntry& e = cuda_entry(losses[l].functor);
    LossMemory memory = layout.loss(losses[l], at);
    memory.slopes = slopes, memory.long_lists = lists, memory.long_blocks = layout.long_blocks();
    if (view.A > 0) e.weigh(losses[l].options, view, memory, p.anchors.order, cotangents + row * layout.A, stream);
    if (grad_anchors && view.A > 0 && view.D > 0)
      e.gradient(losses[l].options, view, memory,
                 {view.anchors, view.references, view.A, view.N, true, view.self, to_anchors, l > 0}, stream);
    if (grad_references && view.N > 0 && view.D > 0)
      e.gradient(losses[l].options, view, memory,
                 {view.references, view.anchors, view.N, view.A, false, true, to_references, l > 0}, stream);
    row += e.functor.values;
  }
  if (grad_anchors) scatter(p.anchors, p.width, to_anchors, kept.anchors, kept.anchor_factors, grad_anchors, stream);
  if (grad_references)
    scatter(p.references, p.width, to_references, kept.references, kept.reference_factors, grad_references, stream);
  return launch_error();
}

}  // namespace dml
