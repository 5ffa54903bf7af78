#include "cpu/board.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>

#ifdef __linux__
#include <linux/futex.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#endif

namespace dml {

namespace {

enum Round : int64_t { kLast, kOneOfSeveral, kMeeting };
struct Half {
  int64_t kind;                 // whether this rank needs another round
  int64_t lengths[Board::kMost];  // bytes for each rank in this round
  int64_t words[Board::kWords];   // of a meeting
};
struct Head {
  std::atomic<uint32_t> round, waiting;  // rounds that are written; ranks that sleep until it changes
  std::atomic<uint32_t> is_broken;       // whether this rank has left an exchange before its end, and writes no more rounds
  Half halves[2];
};
static_assert(sizeof(Head) <= 8192 && std::atomic<uint32_t>::is_always_lock_free);

Head& head_of(char* memory) { return *reinterpret_cast<Head*>(memory); }
char* half_of(char* memory, uint32_t round) { return memory + 8192 + (round % 2) * Board::kHalf; }

template <class T>
void add(void* to, const void* from, int64_t bytes) {
  T* sums = static_cast<T*>(to);
  const T* numbers = static_cast<const T*>(from);
  for (int64_t k = 0; k < bytes / int64_t(sizeof(T)); ++k) sums[k] += numbers[k];
}

void put(void* to, const void* from, int64_t bytes, Adds adds) {
  if (bytes <= 0) return;
  if (adds == Adds::kFloats) add<float>(to, from, bytes);
  else if (adds == Adds::kDoubles) add<double>(to, from, bytes);
  else std::memcpy(to, from, size_t(bytes));
}

int64_t length_of(const Board::Stream& stream) {
  int64_t bytes = 0;
  for (const Board::Piece& piece : stream) bytes += piece.bytes;
  return bytes;
}

// Calls `move` for the parts of pieces that `length` bytes of a stream are, with the place of each among these bytes.
template <class Move>
void over(const Board::Stream& stream, int64_t first, int64_t length, Move move) {
  int64_t begin = 0;
  for (const Board::Piece& piece : stream) {
    const int64_t from = std::max(begin, first), to = std::min(begin + piece.bytes, first + length);
    if (from < to) move(static_cast<char*>(piece.data) + (from - begin), from - first, to - from);
    begin += piece.bytes;
  }
}

}  // namespace

Board::Board(int rank, const std::vector<void*>& memories, const std::vector<int>& lines, double seconds,
             std::function<void()> waits)
    : rank_(rank), ranks_(int(memories.size())), lines_(lines), seconds_(seconds), waits_(std::move(waits)) {
  if (!is_supported() || ranks_ < 2 || ranks_ > kMost || rank < 0 || rank >= ranks_ || lines.size() != memories.size())
    throw std::invalid_argument("a board is for two to 256 ranks on Linux");
  for (void* memory : memories) memories_.push_back(static_cast<char*>(memory));
}

// Runs an exchange to its end, or tells the others that this rank has left it.
template <class Work> void Board::whole(Work work) {
  if (is_broken_) throw std::runtime_error("Connection closed: an earlier exchange was broken off");
  try {
    work();
  } catch (...) {  // ranks are at different rounds now, so a further exchange would take what belongs to another one
    leave();
    throw;
  }
}

void Board::leave() {
  is_broken_ = true;
  head_of(memories_[rank_]).is_broken.store(1);
  wake(rank_);
}

std::vector<int64_t> Board::meet(const std::vector<int64_t>& words, const Stream& rows) {
  if (words.size() > size_t(kWords)) throw std::invalid_argument("a rank tells at most 8 words");
  std::vector<int64_t> told;
  whole([&] {
    ++round_;
    Head& head = head_of(memories_[rank_]);
    Half& half = head.halves[round_ % 2];
    half.kind = kMeeting;
    std::fill(std::copy(words.begin(), words.end(), half.words), half.words + kWords, 0);
    half.lengths[0] = length_of(rows);
    if (length_of(rows) <= kHalf)
      over(rows, 0, kHalf, [to = half_of(memories_[rank_], round_)](const char* from, int64_t at, int64_t bytes) {
        put(to + at, from, bytes, Adds::kNothing);
      });
    head.round.store(round_);
    wake(rank_);
    for (int rank = 0; rank < ranks_; ++rank) {
      if (rank != rank_) wait_for(rank);
      const Half& theirs = head_of(memories_[rank]).halves[round_ % 2];
      if (theirs.kind != kMeeting) throw std::runtime_error("another process exchanges something else than this one");
      told.insert(told.end(), theirs.words, theirs.words + kWords);
    }
  });
  return told;
}

const char* Board::met(int rank, int64_t bytes) const {
  if (bytes > kHalf) throw std::invalid_argument("so many rows were not told");
  if (head_of(memories_[rank]).halves[round_ % 2].lengths[0] != bytes)
    throw std::runtime_error("another process exchanges something else than this one");
  return half_of(memories_[rank], round_);
}

void Board::copy_met(const std::vector<Stream>& taken) const {
  if (int(taken.size()) != ranks_) throw std::invalid_argument("a stream for each rank");
  for (int rank = 0; rank < ranks_; ++rank) {
    over(taken[rank], 0, kHalf, [from = met(rank, length_of(taken[rank]))](char* to, int64_t at, int64_t bytes) {
      put(to, from + at, bytes, Adds::kNothing);
    });
  }
}

void Board::trade(const std::vector<Stream>& given, const std::vector<Stream>& taken, Adds adds) {
  const bool is_one = given.size() == 1;
  if (!(is_one || int(given.size()) == ranks_) || int(taken.size()) != ranks_)
    throw std::invalid_argument("a stream for each rank");
  const Stream& own = given[is_one ? 0 : rank_];
  if (length_of(own) != length_of(taken[rank_])) throw std::invalid_argument("a rank takes from itself what it gives");
  over(taken[rank_], 0, length_of(own), [&](char* to, int64_t at, int64_t bytes) {
    over(own, at, bytes, [&](const char* from, int64_t part, int64_t count) { put(to + part, from, count, Adds::kNothing); });
  });
  whole([&] { run(given, taken, adds); });
}

void Board::run(const std::vector<Stream>& given, const std::vector<Stream>& taken, Adds adds) {
  const bool is_one = given.size() == 1;
  const int64_t share = is_one ? kHalf : kHalf / ranks_ / 64 * 64;  // of a half, for a stream
  int64_t most = 0;
  for (const Stream& stream : given) most = std::max(most, length_of(stream));
  bool is_ready = false;
  for (int64_t done = 0; !is_ready; done += share) {
    ++round_;
    is_ready = most <= done + share;
    post(given, done, share, !is_ready);
    for (int rank = 0; rank < ranks_; ++rank) {
      if (rank == rank_) continue;
      wait_for(rank);
      const Half& half = head_of(memories_[rank]).halves[round_ % 2];
      const int64_t length = std::clamp(length_of(taken[rank]) - done, int64_t(0), share);
      if (half.kind == kMeeting || half.lengths[rank_] != length)
        throw std::runtime_error("another process exchanges something else than this one");
      is_ready = is_ready && half.kind == kLast;
      const char* from = half_of(memories_[rank], round_) + (is_one ? 0 : rank_ * share);
      over(taken[rank], done, length, [&](char* to, int64_t at, int64_t bytes) { put(to, from + at, bytes, adds); });
    }
  }
}

void Board::post(const std::vector<Stream>& given, int64_t done, int64_t share, bool has_more) {
  Head& head = head_of(memories_[rank_]);
  Half& half = head.halves[round_ % 2];
  const bool is_one = given.size() == 1;
  half.kind = has_more ? kOneOfSeveral : kLast;
  for (int rank = 0; rank < ranks_; ++rank) {
    const Stream& stream = given[is_one ? 0 : rank];
    const int64_t length = half.lengths[rank] = std::clamp(length_of(stream) - done, int64_t(0), share);
    char* to = half_of(memories_[rank_], round_) + (is_one ? 0 : rank * share);
    if (is_one ? rank == 0 : rank != rank_)
      over(stream, done, length,
           [&](const char* from, int64_t at, int64_t bytes) { put(to + at, from, bytes, Adds::kNothing); });
  }
  head.round.store(round_);  // before it looks who sleeps: one that will sleep counts itself before it looks at the round
  wake(rank_);
}

#ifdef __linux__

void Board::wake(int rank) const {
  Head& head = head_of(memories_[rank]);
  if (head.waiting.load()) syscall(SYS_futex, &head.round, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

bool Board::is_supported() { return true; }

void Board::wait_for(int rank) const {
  Head& head = head_of(memories_[rank]);
  timespec began{}, now{};
  const timespec slice{0, 250000000};
  for (uint32_t at; int32_t((at = head.round.load()) - round_) < 0;) {
    if (head.is_broken.load() && head.round.load() == at)
      throw std::runtime_error("Connection closed: another process has left an exchange");
    if (!began.tv_sec) clock_gettime(CLOCK_MONOTONIC, &began);
    ++head.waiting;
    long outcome = 0;
    int reason = 0;
    if (head.round.load() == at) {
      outcome = syscall(SYS_futex, &head.round, FUTEX_WAIT, at, &slice, nullptr, 0);
      reason = errno;
    }
    --head.waiting;
    if (outcome == 0 || reason == EAGAIN) continue;
    waits_();
    char byte;
    const ssize_t length = recv(lines_[rank], &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if ((length == 0 || (length < 0 && errno != EAGAIN && errno != EINTR)) && head.round.load() == at)
      throw std::runtime_error("Connection closed by another process");
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (double(now.tv_sec - began.tv_sec) + 1e-9 * double(now.tv_nsec - began.tv_nsec) > seconds_)
      throw std::runtime_error("timed out: another process does not answer");
  }
}

#else

bool Board::is_supported() { return false; }
void Board::wait_for(int) const {}
void Board::wake(int) const {}

#endif

}  // namespace dml
