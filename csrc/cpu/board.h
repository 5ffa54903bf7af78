// Memory that the processes of one machine share, through which ranks exchange numbers. A rank writes what it gives into memory of
// its own, tells so by a counter that lies there too, and reads what the others have written. One that waits sleeps in the kernel.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

namespace dml {

enum class Adds { kNothing, kFloats, kDoubles };  // whether bytes that are taken replace what is there, or are added as numbers

class Board {
 public:
  static constexpr int64_t kHalf = 4 << 20;  // bytes a rank gives in a round; two halves, as some may still read the last round
  static constexpr int64_t kBytes = 2 * kHalf + 8192;  // of the memory of a rank, which begins as zeros
  static constexpr int kMost = 256;  // ranks
  static constexpr int kWords = 8;  // of a meeting
  static bool is_supported();

  // Args: this rank; the memory of every rank; sockets to the other ranks, which tell when one has ended; how long one waits; what
  // is called about four times a second meanwhile, and may throw.
  Board(int rank, const std::vector<void*>& memories, const std::vector<int>& lines, double seconds,
        std::function<void()> waits);

  // Tell the other ranks that this one has left what they do together, where it failed between two exchanges.
  void leave();

  // Give one stream of bytes to all ranks, or one to each, and fill `taken` by what the ranks give this one. All ranks call it, in
  // the same way and with lengths that fit. Throws std::runtime_error where another rank has ended, does not answer,
  // or gives other lengths. A board that has thrown refuses further exchanges, and the other ranks learn that it has left.
  struct Piece {
    void* data;
    int64_t bytes;
  };
  using Stream = std::vector<Piece>;  // one piece behind the other
  void trade(const std::vector<Stream>& given, const std::vector<Stream>& taken, Adds adds);

  // The same where nobody knows yet how much the others give: at most kWords words of every rank, which it returns as kWords each.
  // Rows that are no more than kHalf bytes come with them: those of each rank stay at `met` until the next exchange.
  std::vector<int64_t> meet(const std::vector<int64_t>& words, const Stream& rows);
  const char* met(int rank, int64_t bytes) const;  // which throws where another rank has brought another number of bytes
  void copy_met(const std::vector<Stream>& taken) const;  // the rows of every rank, of which the caller knows the lengths

 private:
  template <class Work> void whole(Work work);
  void run(const std::vector<Stream>& given, const std::vector<Stream>& taken, Adds adds);
  void post(const std::vector<Stream>& given, int64_t done, int64_t share, bool has_more);
  void wait_for(int rank) const;
  void wake(int rank) const;  // those that sleep until this rank has written

  int rank_, ranks_;
  uint32_t round_ = 0;
  bool is_broken_ = false;
  std::vector<char*> memories_;
  std::vector<int> lines_;
  double seconds_;
  std::function<void()> waits_;
};

}  // namespace dml
