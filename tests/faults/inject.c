/* Fails one call that changes files below a folder, or ends the process before or after it.
 *
 * Loaded by LD_PRELOAD, so that calls of C++ are met too. `inject_arm` counts from then on; the
 * calls are logged, one per line, as "number operation path".
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, ENOSPC_ONCE, EIO_ONCE, KILL_BEFORE, KILL_AFTER, FULL_FROM };

static char root[PATH_MAX];
static long point, calls;
static int mode, log_descriptor = -1;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

void inject_arm(const char *folder, long number, int what, int descriptor) {
  snprintf(root, sizeof root, "%s/", folder);
  point = number, mode = what, log_descriptor = descriptor, calls = 0;
}

static int below(int folder, const char *path, char *whole) {
  char link[64], place[PATH_MAX];
  if (!root[0]) return 0;
  if (path && path[0] == '/') {
    snprintf(whole, PATH_MAX, "%s", path);
  } else {
    if (folder == AT_FDCWD) {
      if (!getcwd(place, sizeof place)) return 0;
    } else {
      snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
      ssize_t size = readlink(link, place, sizeof place - 1);
      if (size < 0) return 0;
      place[size] = 0;
    }
    if (path) snprintf(whole, PATH_MAX, "%.2000s/%.2000s", place, path);
    else snprintf(whole, PATH_MAX, "%s", place);
  }
  return !strncmp(whole, root, strlen(root));
}

/* Whether this call, by its place in the count, fails (-1), comes just before the end (1), or
 * neither (0). */
static int met(const char *operation, int folder, const char *path) {
  char whole[PATH_MAX], line[PATH_MAX + 64];
  int saved = errno, outcome = 0;
  if (below(folder, path, whole)) {
    pthread_mutex_lock(&mutex);
    long number = ++calls;
    int now = number == point || (mode == FULL_FROM && number >= point);
    int frees = !strcmp(operation, "unlink");
    if (mode == COUNT || now) {
      int size = snprintf(line, sizeof line, "%ld %s %s\n", number, operation, whole + strlen(root));
      ssize_t (*log)(int, const void *, size_t) = real("write");
      if (log(log_descriptor, line, size) < 0) _exit(99);
    }
    if (now && mode == KILL_BEFORE && strcmp(operation, "write")) kill(getpid(), SIGKILL);
    if (now && (mode == KILL_BEFORE || mode == KILL_AFTER)) outcome = 1;
    if (now && (mode == ENOSPC_ONCE || mode == EIO_ONCE || (mode == FULL_FROM && !frees))) {
      outcome = -1;
      saved = mode == EIO_ONCE ? EIO : ENOSPC;
    }
    pthread_mutex_unlock(&mutex);
  }
  errno = saved;
  return outcome;
}

/* Calls the next definition, unless the call is to fail. */
#define MEET(operation, folder, path, call)            \
  int outcome = met(operation, folder, path);          \
  if (outcome < 0) return -1;                          \
  __typeof__(call) result = call;                      \
  if (outcome > 0) kill(getpid(), SIGKILL), pause();   \
  return result;

#define CALL(name, ...) ((__typeof__(&name))real(#name))(__VA_ARGS__)

int rename(const char *from, const char *to) { MEET("rename", AT_FDCWD, to, CALL(rename, from, to)) }
int renameat(int a, const char *from, int b, const char *to) {
  MEET("rename", b, to, CALL(renameat, a, from, b, to))
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
  MEET("rename", b, to, CALL(renameat2, a, from, b, to, flags))
}
int unlink(const char *path) { MEET("unlink", AT_FDCWD, path, CALL(unlink, path)) }
int rmdir(const char *path) { MEET("unlink", AT_FDCWD, path, CALL(rmdir, path)) }
int unlinkat(int folder, const char *path, int flags) {
  MEET("unlink", folder, path, CALL(unlinkat, folder, path, flags))
}
int mkdir(const char *path, mode_t bits) { MEET("mkdir", AT_FDCWD, path, CALL(mkdir, path, bits)) }
int mkdirat(int folder, const char *path, mode_t bits) {
  MEET("mkdir", folder, path, CALL(mkdirat, folder, path, bits))
}
int fsync(int file) { MEET("fsync", file, NULL, CALL(fsync, file)) }
int fdatasync(int file) { MEET("fsync", file, NULL, CALL(fdatasync, file)) }
int ftruncate(int file, off_t size) { MEET("write", file, NULL, CALL(ftruncate, file, size)) }
int ftruncate64(int file, off64_t size) { MEET("write", file, NULL, CALL(ftruncate64, file, size)) }

/* A process killed before a write has written half of it. */
#define SIZE(size) (outcome > 0 && mode == KILL_BEFORE ? (size) / 2 : (size))
ssize_t write(int file, const void *data, size_t size) {
  MEET("write", file, NULL, CALL(write, file, data, SIZE(size)))
}
ssize_t pwrite(int file, const void *data, size_t size, off_t at) {
  MEET("write", file, NULL, CALL(pwrite, file, data, SIZE(size), at))
}
ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) {
  MEET("write", file, NULL, CALL(pwrite64, file, data, SIZE(size), at))
}
ssize_t writev(int file, const struct iovec *parts, int count) {
  MEET("write", file, NULL, CALL(writev, file, parts, SIZE(count)))
}
ssize_t pwritev(int file, const struct iovec *parts, int count, off_t at) {
  MEET("write", file, NULL, CALL(pwritev, file, parts, SIZE(count), at))
}

#define OPEN(name, folder, path, ...)                                                     \
  va_list list;                                                                           \
  va_start(list, flags);                                                                  \
  mode_t bits = flags & (O_CREAT | __O_TMPFILE) ? va_arg(list, mode_t) : 0;               \
  va_end(list);                                                                           \
  if (!(flags & (O_WRONLY | O_RDWR | O_CREAT))) return CALL(name, __VA_ARGS__, flags, bits); \
  MEET("open", folder, path, CALL(name, __VA_ARGS__, flags, bits))

int open(const char *path, int flags, ...) { OPEN(open, AT_FDCWD, path, path) }
int open64(const char *path, int flags, ...) { OPEN(open64, AT_FDCWD, path, path) }
int openat(int folder, const char *path, int flags, ...) {
  OPEN(openat, folder, path, folder, path)
}
int openat64(int folder, const char *path, int flags, ...) {
  OPEN(openat64, folder, path, folder, path)
}
