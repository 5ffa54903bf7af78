// Launches of the ranking: how many blocks, and what a launch may not exceed.
#include "cuda/neighbours.h"

#include "cuda/neighbours_kernels.h"

DML_BEGIN

constexpr int kMostPositiveShares = 64;  // blocks that share the tiles of a row tile's classes
constexpr int kChunkTiles = 16;          // column tiles of a block, at least
constexpr int64_t kMostBlocks = (int64_t(1) << 31) - 1;  // of a grid's first dimension

constexpr int64_t tiles_of(int64_t count, int64_t tile) { return (count + tile - 1) / tile; }

// Column tiles of a block, so that the grid has a dimension's blocks at most.
constexpr int64_t chunk_of(int64_t row_tiles, int64_t column_tiles) {
  int64_t chunk = kChunkTiles;
  while (row_tiles * tiles_of(column_tiles, chunk) > kMostBlocks) chunk *= 2;
  return chunk;
}
constexpr int64_t kMostRankRows = int64_t(1) << 30;  // the caller's limit; every launch fits up to there
static_assert(chunk_of(kMostRankRows / 64, kMostRankRows / 64) < kMostRankRows / 64, "blocks of a count");
static_assert(tiles_of(kMostRankRows, kRowWarps) <= kMostBlocks && kMostPositiveShares <= 65535, "blocks of the others");
static_assert(sizeof(RankSearchMemory<float>) <= 99 << 10 && sizeof(RankSearchMemory<double>) <= 99 << 10,
              "shared memory of sm_86");

template <class T, bool Searches>
static const char* launch_count(const RankingProblem<T>& p, int row_tiles, int chunk, int64_t blocks, cudaStream_t stream) {
  constexpr int bytes = int(sizeof(typename RankMemory<T, Searches>::type));
  const cudaError_t allowed =
      cudaFuncSetAttribute(count_kernel<T, Searches>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (allowed != cudaSuccess) return cudaGetErrorString(allowed);
  CU_LAUNCH((count_kernel<T, Searches>), unsigned(blocks), kRankThreads, bytes, stream, p, row_tiles, chunk);
  return launch_error();
}

DML_END

namespace dml {

int64_t ranking_stride(int64_t width) { return tiles_of(width > 0 ? width : 1, kRankDepth) * kRankDepth; }

template <class T>
const char* ranking_arrange(const T* from, const int64_t* order, int64_t rows, int64_t width, bool normalise, T* to, T* halves,
                            void* stream) {
  if (rows == 0) return nullptr;
  CU_LAUNCH((arrange_kernel<T>), unsigned(tiles_of(rows, kRowWarps)), kRowWarps * kRankWarp, 0,
            static_cast<cudaStream_t>(stream), from, order, int(rows), int(width), int(ranking_stride(width)), normalise, to,
            halves);
  return launch_error();
}

template <class T> const char* ranking_positives(const RankingProblem<T>& p, void* stream) {
  const int64_t row_tiles = tiles_of(p.q1 - p.q0, RankShape<T>::tile);
  if (row_tiles == 0) return nullptr;
  const dim3 grid{unsigned(row_tiles), unsigned(p.searches ? kMostPositiveShares : 1)};
  CU_LAUNCH((positives_kernel<T>), grid, kRankThreads, 0, static_cast<cudaStream_t>(stream), p);
  return launch_error();
}

template <class T> const char* ranking_count(const RankingProblem<T>& p, void* stream_) {
  const auto stream = static_cast<cudaStream_t>(stream_);
  const int64_t row_tiles = tiles_of(p.q1 - p.q0, RankShape<T>::tile);
  const RankTiles tiles = RankTiles::of(p);
  if (row_tiles == 0 || tiles.all == 0) return nullptr;
  const int64_t chunk = chunk_of(row_tiles, tiles.all), blocks = row_tiles * tiles_of(tiles.all, chunk);
  return p.searches ? launch_count<T, true>(p, int(row_tiles), int(chunk), blocks, stream)
                    : launch_count<T, false>(p, int(row_tiles), int(chunk), blocks, stream);
}

template <class T>
const char* ranking_conclude(const RankingProblem<T>& p, const int64_t* order, const int64_t* ks, int k_count, int64_t columns,
                             double* values, void* stream) {
  const int64_t rows = p.q1 - p.q0;
  if (rows == 0) return nullptr;
  CU_LAUNCH((conclude_kernel<T>), unsigned(tiles_of(rows, kRowWarps)), kRowWarps * kRankWarp, 0,
            static_cast<cudaStream_t>(stream), p, order, ks, k_count, columns, values);
  return launch_error();
}

#define DML_RANKING(T)                                                                                                      \
  template const char* ranking_arrange<T>(const T*, const int64_t*, int64_t, int64_t, bool, T*, T*, void*);                 \
  template const char* ranking_positives<T>(const RankingProblem<T>&, void*);                                               \
  template const char* ranking_count<T>(const RankingProblem<T>&, void*);                                                   \
  template const char* ranking_conclude<T>(const RankingProblem<T>&, const int64_t*, const int64_t*, int, int64_t, double*, \
                                           void*);
DML_RANKING(float)
DML_RANKING(double)
#undef DML_RANKING

}  // namespace dml
