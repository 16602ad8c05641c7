/* A disk that fails, and a process that dies, at the N-th call: loaded before the C library (LD_PRELOAD).
 *
 * Calls that change files below one folder are counted: open for writing, write, fsync, truncate, rename, mkdir, unlink,
 * rmdir. file_faults_arm(folder, at, kind) makes the at-th of them fail in one of these ways. test_faults_files.py uses it.
 *
 * Not under test itself: a test that fails nothing would not notice, so each says how many calls it met. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    NONE = 0,
    FULL = 1,        /* from here on: no space left, for all that needs some */
    BROKEN = 2,      /* this call alone: an input/output error */
    SHORT = 3,       /* a write takes half, then the disk is full */
    INTERRUPTED = 4, /* this call is interrupted by a signal once */
    KILLED = 5,      /* the process dies before this call ... */
    TORN = 6         /* ... or, if it is a write, in the middle of it */
};

static char folder[4096];
static long at, seen;
static int kind;
static unsigned char watched[4096]; /* descriptors of files in the folder */

/* What a call needs of the disk. */
enum { SPACE = 1, CAN_INTERRUPT = 2, DATA = 4, NAMES = 8 };

/* A letter for each call: w where data is written, n where a name is made, changed or removed, else x. */
static char trace[1 << 16];

__attribute__((visibility("default"))) void file_faults_arm(const char *below, long number, int how) {
    snprintf(folder, sizeof folder, "%s", below);
    at = number;
    kind = how;
    seen = 0;
    memset(trace, 0, sizeof trace);
}

__attribute__((visibility("default"))) const char *file_faults_trace(void) { return trace; }

static int inside(const char *path) {
    return folder[0] != 0 && path != NULL && strncmp(path, folder, strlen(folder)) == 0;
}

static int watches(int descriptor) {
    return folder[0] != 0 && descriptor >= 0 && descriptor < (int)sizeof watched && watched[descriptor];
}

/* 0: go on. -1: the call fails, errno says how. 1: half of a write, and no more. */
static int fault(int needs) {
    long now = __atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST);
    if (now < (long)sizeof trace) trace[now - 1] = needs & DATA ? 'w' : needs & NAMES ? 'n' : 'x';
    if (at == 0 || now < at) return 0;
    if (now > at) {
        if ((kind == FULL || kind == SHORT) && needs & SPACE) {
            errno = ENOSPC;
            return -1;
        }
        return 0;
    }
    switch (kind) {
    case FULL:
        if (!(needs & SPACE)) return 0;
        errno = ENOSPC;
        return -1;
    case BROKEN: errno = EIO; return -1;
    case SHORT: return needs & DATA ? 1 : 0;
    case INTERRUPTED:
        if (!(needs & CAN_INTERRUPT)) return 0;
        errno = EINTR;
        return -1;
    case KILLED: kill(getpid(), SIGKILL); for (;;) pause();
    case TORN: if (needs & DATA) return 1; kill(getpid(), SIGKILL); for (;;) pause();
    default: return 0;
    }
}

static void died_if_torn(void) {
    if (kind == TORN) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int opened(const char *path, int flags, int descriptor) {
    if (descriptor >= 0 && descriptor < (int)sizeof watched)
        watched[descriptor] = inside(path) && (flags & O_ACCMODE) != O_RDONLY;
    return descriptor;
}

#define OPENS(name, ...) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | __O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    } \
    if (inside(path) && (flags & O_ACCMODE) != O_RDONLY && fault((flags & O_CREAT ? SPACE : 0) | CAN_INTERRUPT) != 0) return -1; \
    return opened(path, flags, NEXT(name)(__VA_ARGS__, mode))

int open(const char *path, int flags, ...) { OPENS(open, path, flags); }
int open64(const char *path, int flags, ...) { OPENS(open64, path, flags); }
int openat(int at_folder, const char *path, int flags, ...) { OPENS(openat, at_folder, path, flags); }
int openat64(int at_folder, const char *path, int flags, ...) { OPENS(openat64, at_folder, path, flags); }

int close(int descriptor) {
    if (descriptor >= 0 && descriptor < (int)sizeof watched) watched[descriptor] = 0;
    return NEXT(close)(descriptor);
}

#define WRITES(whole, half) \
    int found = watches(descriptor) ? fault(SPACE | DATA | CAN_INTERRUPT) : 0; \
    ssize_t written; \
    if (found < 0) return -1; \
    if (found == 0) return whole; \
    written = half; \
    died_if_torn(); \
    return written

ssize_t write(int descriptor, const void *bytes, size_t count) {
    WRITES(NEXT(write)(descriptor, bytes, count), NEXT(write)(descriptor, bytes, (count + 1) / 2));
}
ssize_t pwrite(int descriptor, const void *bytes, size_t count, off_t place) {
    WRITES(NEXT(pwrite)(descriptor, bytes, count, place), NEXT(pwrite)(descriptor, bytes, (count + 1) / 2, place));
}
ssize_t pwrite64(int descriptor, const void *bytes, size_t count, off64_t place) {
    WRITES(NEXT(pwrite64)(descriptor, bytes, count, place), NEXT(pwrite64)(descriptor, bytes, (count + 1) / 2, place));
}

#define FAILS(condition, needs, call) \
    if ((condition) && fault(needs) != 0) return -1; \
    return call

int fsync(int descriptor) { FAILS(watches(descriptor), CAN_INTERRUPT, NEXT(fsync)(descriptor)); }
int fdatasync(int descriptor) { FAILS(watches(descriptor), CAN_INTERRUPT, NEXT(fdatasync)(descriptor)); }
int ftruncate(int descriptor, off_t size) { FAILS(watches(descriptor), CAN_INTERRUPT, NEXT(ftruncate)(descriptor, size)); }
int ftruncate64(int descriptor, off64_t size) { FAILS(watches(descriptor), CAN_INTERRUPT, NEXT(ftruncate64)(descriptor, size)); }
int rename(const char *from, const char *to) { FAILS(inside(to), SPACE | NAMES, NEXT(rename)(from, to)); }
int renameat(int f, const char *from, int t, const char *to) { FAILS(inside(to), SPACE | NAMES, NEXT(renameat)(f, from, t, to)); }
int mkdir(const char *path, mode_t mode) { FAILS(inside(path), SPACE | NAMES, NEXT(mkdir)(path, mode)); }
int unlink(const char *path) { FAILS(inside(path), NAMES, NEXT(unlink)(path)); }
int unlinkat(int f, const char *path, int flags) { FAILS(inside(path), NAMES, NEXT(unlinkat)(f, path, flags)); }
int rmdir(const char *path) { FAILS(inside(path), NAMES, NEXT(rmdir)(path)); }
