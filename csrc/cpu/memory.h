// Buffers for similarities and gradients, kept for the next step: fresh pages cost more than the arithmetic on them.
// Under AddressSanitizer nothing is kept or rounded up, so that it sees every buffer's end and every use after its time.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dml {

// Asks for large pages where the system gives them on request: taking 50 MB page by page costs a tenth of a step.
inline void ask_for_large_pages([[maybe_unused]] void* at, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = uintptr_t(2) << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(at) + page - 1) / page * page,
                  last = reinterpret_cast<uintptr_t>(at) + bytes;
  if (last > first + page) madvise(reinterpret_cast<void*>(first), (last - first) / page * page, MADV_HUGEPAGE);
#endif
}

class Pool {
 public:
  struct Piece {
    void* at;
    size_t bytes;
  };
  Piece take(size_t bytes) {
    std::lock_guard<std::mutex> hold(lock_);
    size_t best = free_.size();
    for (size_t k = 0; k < free_.size(); ++k)
      if (free_[k].bytes >= bytes && free_[k].bytes <= 2 * bytes + 65536 &&
          (best == free_.size() || free_[k].bytes < free_[best].bytes))
        best = k;
    if (best < free_.size()) {
      Piece found = free_[best];
      kept_ -= found.bytes;
      free_.erase(free_.begin() + best);
      return lent(found);
    }
    if (kMost > 0) bytes = (bytes + 4095) / 4096 * 4096;
    void* at = nullptr;
    if (posix_memalign(&at, 64, bytes)) throw std::bad_alloc();
    ask_for_large_pages(at, bytes);
    return lent({at, bytes});
  }
  void give(Piece piece) {
    std::lock_guard<std::mutex> hold(lock_);
    lent_ -= piece.bytes;
    // What the largest step took is kept for the next one, within reason: against 100,000 proxies it is 150 MB. A quarter more,
    // since its phases take pieces of other sizes: without it a step against a large memory lost one of 50 MB each time.
    const size_t enough = highest_ever_ + highest_ever_ / 4;
    const size_t most = kMost == 0 ? 0 : enough < kMost ? kMost : enough < kMostOfAll ? enough : kMostOfAll;
    if (piece.bytes + kept_ > most || free_.size() >= 64) {
      std::free(piece.at);
      return;
    }
    kept_ += piece.bytes;
    free_.push_back(piece);
  }
  void clear() {
    std::lock_guard<std::mutex> hold(lock_);
    for (Piece& piece : free_) std::free(piece.at);
    free_.clear();
    kept_ = 0, highest_ever_ = lent_;
  }
  size_t highest_since_last() {                                        // the most bytes lent out at a time
    std::lock_guard<std::mutex> hold(lock_);
    const size_t found = highest_;
    highest_ = lent_;
    return found;
  }
  static Pool& shared() {
    static Pool* pool = new Pool;                                      // outlives static destructors
    return *pool;
  }

 private:
#ifdef DML_SANITIZED
  static constexpr size_t kMost = 0, kMostOfAll = 0;
#else
  static constexpr size_t kMost = size_t(80) << 20;             // stored tiles against references take up to 64
  static constexpr size_t kMostOfAll = size_t(512) << 20;
#endif
  Piece lent(Piece piece) {
    lent_ += piece.bytes;
    if (lent_ > highest_) highest_ = lent_;
    if (lent_ > highest_ever_) highest_ever_ = lent_;
    return piece;
  }
  std::mutex lock_;
  std::vector<Piece> free_;
  size_t kept_ = 0, lent_ = 0, highest_ = 0, highest_ever_ = 0;
};

template <class T> class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { reset(); }
  void reset() {
    if (piece_.at) Pool::shared().give(piece_);
    piece_ = {nullptr, 0};
    size_ = 0;
  }
  T* resize(int64_t n) {                                               // contents are not kept
    reset();
    size_ = n;
    if (n > 0) piece_ = Pool::shared().take(size_t(n) * sizeof(T));
    return data();
  }
  T* data() const { return static_cast<T*>(piece_.at); }
  int64_t size() const { return size_; }

 private:
  Pool::Piece piece_{nullptr, 0};
  int64_t size_ = 0;
};

inline void release_workspaces() { Pool::shared().clear(); }
inline int64_t highest_workspace() {
  return int64_t(Pool::shared().highest_since_last());
}   // bytes in use at a time since the last call

}  // namespace dml
