// A library that is loaded before libc, counts what a process does with the files below one folder, and does one fault at one of
// these operations. It sleeps until `campaign_arm` is called. Which faults there are stands in process.py, under the same numbers.
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>

namespace {

enum Fault { NONE, KILL, FULL, BROKEN, INTERRUPT, INTERRUPT_TWICE, TERMINATE, HANG_UP };

std::atomic<bool> armed{false}, full{false};
std::atomic<long> operations{0};
long point = 0;
int fault = NONE, record = -1;
char root[PATH_MAX];
size_t root_length = 0;
bool is_home_inside = false;
constexpr int HANDLES = 1 << 16;
std::atomic<bool> is_inside[HANDLES];

template <typename Function>
Function next(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}
// The function that would have been called without this library.
#define NEXT(name) \
  static auto real = next<decltype(&name)>(#name)

bool below(const char* path) {
  if (path == nullptr) return false;
  if (path[0] != '/') return is_home_inside;
  return strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == 0);
}
bool below(int folder, const char* path) {
  if (path != nullptr && path[0] != '/' && folder != AT_FDCWD) return folder >= 0 && folder < HANDLES && is_inside[folder];
  return below(path);
}
bool inside(int handle) { return armed && handle >= 0 && handle < HANDLES && is_inside[handle]; }

void send(int signal) { syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), signal); }

// Counts an operation. Returns the error that it must fail with, or 0. `is_torn` asks a write to do half of its work.
int act(const char* name, const char* path, bool takes_space, bool* is_torn = nullptr) {
  const long number = ++operations;
  if (record >= 0) {
    char line[PATH_MAX + 64];
    const int length = snprintf(line, sizeof line, "%ld %s %d %s\n", number, name, int(takes_space), path ? path : "");
    syscall(SYS_write, record, line, length < int(sizeof line) ? length : int(sizeof line) - 1);
  }
  const bool is_here = number == point;
  switch (fault) {
    case KILL:
      if (is_here && is_torn == nullptr) syscall(SYS_kill, getpid(), SIGKILL);
      if (is_here) *is_torn = true;
      return 0;
    case FULL:
      if (full && takes_space) return ENOSPC;
      if (number < point || !takes_space) return 0;
      full = true;
      if (is_torn == nullptr) return ENOSPC;
      *is_torn = true;
      return 0;
    case BROKEN:
      return is_here ? EIO : 0;
    case INTERRUPT:
      if (is_here) send(SIGINT);
      return 0;
    case INTERRUPT_TWICE:  // Python runs the handler of the first one before the next operation
      if (is_here || number == point + 1) send(SIGINT);
      return 0;
    case TERMINATE:
      if (is_here) send(SIGTERM);
      return 0;
    case HANG_UP:
      if (is_here) send(SIGHUP);
      return 0;
  }
  return 0;
}

int fails(const char* name, bool is_counted, const char* path, bool takes_space = false) {
  if (!armed || !is_counted) return 0;
  errno = act(name, path, takes_space);
  return errno;
}

// A write of `size` bytes by `write(size)`: as it is, refused, or only its first half.
template <typename Write>
ssize_t written(const char* name, int handle, size_t size, Write write) {
  if (!inside(handle)) return write(size);
  char path[32];
  snprintf(path, sizeof path, "#%d", handle);
  bool is_torn = false;
  if (const int error = act(name, path, true, &is_torn)) {
    errno = error;
    return -1;
  }
  if (!is_torn) return write(size);
  const ssize_t half = size > 1 ? write(size / 2) : 0;
  if (fault == KILL) syscall(SYS_kill, getpid(), SIGKILL);
  if (half > 0) return half;
  errno = ENOSPC;
  return -1;
}

template <typename Open>
int opened(int folder, const char* path, int flags, Open open) {
  const bool is_below = armed && below(folder, path);
  const bool writes = (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC));
  if (fails(writes ? "open-to-write" : "open", is_below, path, (flags & O_CREAT) != 0)) return -1;
  const int handle = open();
  if (handle >= 0 && handle < HANDLES) is_inside[handle] = is_below;
  return handle;
}

mode_t mode_of(int flags, va_list further) {
  return (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(further, mode_t) : 0;
}

}  // namespace

extern "C" {

// From here on operations on files below `folder` are counted, and `at` is where the fault happens. `log` is a handle that
// receives a line per operation, or -1.
void campaign_arm(const char* folder, int kind, long at, int log) {
  char home[PATH_MAX];
  strncpy(root, folder, sizeof root - 1);
  root_length = strlen(root);
  is_home_inside = getcwd(home, sizeof home) != nullptr && below(home);
  fault = kind, point = at, record = log, operations = 0, full = false;
  armed = true;
}
void campaign_disarm() { armed = false; }
long campaign_operations() { return operations; }

#define OPEN(name)                                                           \
  int name(const char* path, int flags, ...) {                               \
    NEXT(name);                                                              \
    va_list further;                                                         \
    va_start(further, flags);                                                \
    const mode_t mode = mode_of(flags, further);                             \
    va_end(further);                                                         \
    return opened(AT_FDCWD, path, flags, [&] { return real(path, flags, mode); }); \
  }
OPEN(open)
OPEN(open64)

#define OPEN_AT(name)                                                        \
  int name(int folder, const char* path, int flags, ...) {                   \
    NEXT(name);                                                              \
    va_list further;                                                         \
    va_start(further, flags);                                                \
    const mode_t mode = mode_of(flags, further);                             \
    va_end(further);                                                         \
    return opened(folder, path, flags, [&] { return real(folder, path, flags, mode); }); \
  }
OPEN_AT(openat)
OPEN_AT(openat64)

int creat(const char* path, mode_t mode) { return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

#define FOPEN(name)                                                                                  \
  FILE* name(const char* path, const char* how) {                                                    \
    NEXT(name);                                                                                      \
    const bool is_below = armed && below(path);                                                      \
    const bool writes = strpbrk(how, "wa+") != nullptr;                                              \
    if (fails(writes ? "open-to-write" : "open", is_below, path, writes)) return nullptr;            \
    FILE* file = real(path, how);                                                                    \
    if (file != nullptr && fileno(file) < HANDLES) is_inside[fileno(file)] = is_below;               \
    return file;                                                                                     \
  }
FOPEN(fopen)
FOPEN(fopen64)

size_t fwrite(const void* data, size_t size, size_t count, FILE* file) {
  NEXT(fwrite);
  if (!inside(fileno(file))) return real(data, size, count, file);
  const ssize_t done = written("write", fileno(file), size * count, [&](size_t n) { return ssize_t(real(data, 1, n, file)); });
  return done < 0 || size == 0 ? 0 : size_t(done) / size;
}

ssize_t write(int handle, const void* data, size_t size) {
  NEXT(write);
  return written("write", handle, size, [&](size_t n) { return real(handle, data, n); });
}
ssize_t pwrite(int handle, const void* data, size_t size, off_t at) {
  NEXT(pwrite);
  return written("write", handle, size, [&](size_t n) { return real(handle, data, n, at); });
}
ssize_t pwrite64(int handle, const void* data, size_t size, off64_t at) {
  NEXT(pwrite64);
  return written("write", handle, size, [&](size_t n) { return real(handle, data, n, at); });
}
ssize_t writev(int handle, const struct iovec* pieces, int count) {
  NEXT(writev);
  return written("write", handle, 2, [&](size_t n) { return real(handle, pieces, n == 2 ? count : (count + 1) / 2); });
}
ssize_t sendfile(int to, int from, off_t* at, size_t size) {
  NEXT(sendfile);
  return written("write", to, size, [&](size_t n) { return real(to, from, at, n); });
}
ssize_t sendfile64(int to, int from, off64_t* at, size_t size) {
  NEXT(sendfile64);
  return written("write", to, size, [&](size_t n) { return real(to, from, at, n); });
}
ssize_t copy_file_range(int from, off64_t* start, int to, off64_t* at, size_t size, unsigned flags) {
  NEXT(copy_file_range);
  return written("write", to, size, [&](size_t n) { return real(from, start, to, at, n, flags); });
}

#define ON_HANDLE(name, ...)                                  \
  NEXT(name);                                                 \
  char path[32];                                              \
  snprintf(path, sizeof path, "#%d", handle);                 \
  return fails(#name, inside(handle), path) ? -1 : real(handle __VA_OPT__(, ) __VA_ARGS__)
int fsync(int handle) { ON_HANDLE(fsync); }
int fdatasync(int handle) { ON_HANDLE(fdatasync); }
int ftruncate(int handle, off_t size) { ON_HANDLE(ftruncate, size); }
int ftruncate64(int handle, off64_t size) { ON_HANDLE(ftruncate64, size); }
int flock(int handle, int operation) { ON_HANDLE(flock, operation); }
int close(int handle) {
  NEXT(close);
  if (handle >= 0 && handle < HANDLES) is_inside[handle] = false;
  return real(handle);
}

int truncate(const char* path, off_t size) {
  NEXT(truncate);
  return fails("truncate", below(path), path) ? -1 : real(path, size);
}
int mkdir(const char* path, mode_t mode) {
  NEXT(mkdir);
  return fails("mkdir", below(path), path, true) ? -1 : real(path, mode);
}
int mkdirat(int folder, const char* path, mode_t mode) {
  NEXT(mkdirat);
  return fails("mkdir", below(folder, path), path, true) ? -1 : real(folder, path, mode);
}
int rmdir(const char* path) {
  NEXT(rmdir);
  return fails("rmdir", below(path), path) ? -1 : real(path);
}
int unlink(const char* path) {
  NEXT(unlink);
  return fails("unlink", below(path), path) ? -1 : real(path);
}
int unlinkat(int folder, const char* path, int flags) {
  NEXT(unlinkat);
  return fails("unlink", below(folder, path), path) ? -1 : real(folder, path, flags);
}
int rename(const char* from, const char* to) {
  NEXT(rename);
  return fails("rename", below(from) || below(to), to) ? -1 : real(from, to);
}
int renameat(int from_folder, const char* from, int folder, const char* to) {
  NEXT(renameat);
  return fails("rename", below(from_folder, from) || below(folder, to), to) ? -1 : real(from_folder, from, folder, to);
}
int renameat2(int from_folder, const char* from, int folder, const char* to, unsigned flags) {
  NEXT(renameat2);
  const bool is_below = below(from_folder, from) || below(folder, to);
  return fails("rename", is_below, to) ? -1 : real(from_folder, from, folder, to, flags);
}
int link(const char* from, const char* to) {
  NEXT(link);
  return fails("link", below(to), to, true) ? -1 : real(from, to);
}
int symlink(const char* from, const char* to) {
  NEXT(symlink);
  return fails("symlink", below(to), to, true) ? -1 : real(from, to);
}

}  // extern "C"
