/* Preloaded into a process, counts what it asks the system to do to files below one folder, and has
 * one of these calls end badly. Whatever goes through the C library is reached: Python, Arrow,
 * SQLite and Lance's Rust alike.
 *
 * FAULT_FOLDER  the folder; nothing happens without it
 * FAULT_KIND    kill, kill-after, torn, ENOSPC, EIO, EIO-read, EACCES, EMFILE; empty to count alone
 * FAULT_AT      the number of the call, from 1, among those that this kind can strike
 *
 * torn: half of a write is done, then the process is killed. ENOSPC and EMFILE last from that call
 * on, as a full disk does; the others strike once. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, CREATE = 2, WRITE = 4, SYNC = 8, RENAME = 16, UNLINK = 32, MKDIR = 64, TRUNCATE = 128,
       LINK = 256, RMDIR = 512, READ = 1024 };
#define BITS 11
#define ALL 1023 /* but reading */
#define CHANGES (ALL & ~OPEN)

static const struct kind {
    const char *name;
    int calls, error, lasts;
} KINDS[] = {
    {"", ALL | READ, 0, 0},
    {"kill", CHANGES, 0, 0},
    {"kill-after", CHANGES, 0, 0},
    {"torn", WRITE, 0, 0},
    {"ENOSPC", CREATE | WRITE | SYNC | MKDIR | TRUNCATE | LINK, ENOSPC, 1},
    {"EIO", ALL, EIO, 0},
    {"EIO-read", READ, EIO, 0},
    {"EACCES", OPEN | CREATE | RENAME | UNLINK | MKDIR | LINK | RMDIR, EACCES, 0},
    {"EMFILE", OPEN | CREATE, EMFILE, 1},
};

static char folder[4096];
static size_t length;
static const struct kind *kind = &KINDS[0];
static long at;
static atomic_long count, counts[BITS];

/* Arms the shim, for a process that has forked: returns 0, or -1 for a kind that it does not have. */
int fault_arm(const char *new_folder, const char *new_kind, long new_at) {
    length = 0;
    for (size_t i = 0; i < sizeof KINDS / sizeof *KINDS; i++)
        if (!strcmp(new_kind, KINDS[i].name) && strlen(new_folder) < sizeof folder) {
            strcpy(folder, new_folder);
            kind = &KINDS[i];
            at = new_at;
            count = 0;
            length = strlen(folder);
            return 0;
        }
    return -1;
}

/* How many calls there were, while armed with the kind "", that another kind could have struck. */
long fault_count(const char *name) {
    long sum = 0;
    for (size_t i = 0; i < sizeof KINDS / sizeof *KINDS; i++)
        for (int bit = 0; !strcmp(name, KINDS[i].name) && bit < BITS; bit++)
            if (KINDS[i].calls & 1 << bit)
                sum += counts[bit];
    return sum;
}

__attribute__((constructor)) static void from_environment(void) {
    const char *where = getenv("FAULT_FOLDER"), *what = getenv("FAULT_KIND"), *when = getenv("FAULT_AT");
    if (where && *where)
        fault_arm(where, what ? what : "", when ? atol(when) : 0);
}

static int is_below(const char *path) {
    return !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

static int names_below(int at_folder, const char *path) {
    char whole[8192], link[64];
    ssize_t size;
    if (!length || !path)
        return 0;
    if (path[0] == '/')
        return is_below(path);
    if (at_folder == AT_FDCWD) {
        if (!getcwd(whole, sizeof whole))
            return 0;
        size = strlen(whole);
    } else {
        strcpy(link, "/proc/self/fd/");
        int digits = 1, place = strlen(link);
        for (int rest = at_folder; rest >= 10; rest /= 10)
            digits++;
        for (int i = digits - 1, rest = at_folder; i >= 0; i--, rest /= 10)
            link[place + i] = '0' + rest % 10;
        link[place + digits] = 0;
        size = readlink(link, whole, 4096);
        if (size < 0)
            return 0;
    }
    if (*path) {
        if (size + 1 + strlen(path) >= sizeof whole)
            return 0;
        whole[size] = '/';
        strcpy(whole + size + 1, path);
    } else
        whole[size] = 0;
    return is_below(whole);
}

static int file_is_below(int file) { return file > 2 && names_below(file, ""); }

static void die(void) {
    kill(getpid(), SIGKILL);
    _exit(137);
}

/* What happens to a call: 0 nothing, 1 it fails with errno, 2 die after it, 3 do half of it and die. */
static int strike(int call) {
    if (!(kind->calls & call))
        return 0;
    if (!at) {
        counts[__builtin_ctz(call)]++;
        return 0;
    }
    long number = ++count;
    if (number < at || (number > at && !kind->lasts))
        return 0;
    if (kind->error) {
        errno = kind->error;
        return 1;
    }
    if (!strcmp(kind->name, "kill"))
        die();
    return !strcmp(kind->name, "torn") ? 3 : 2;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define GUARD(below, call, actual) \
    int saved = errno; \
    int blow = (below) ? strike(call) : 0; \
    if (blow == 1) return -1; \
    errno = saved; \
    __typeof__(actual) result = (actual); \
    if (blow >= 2) die(); \
    return result;

#define OPENS(flags) ((flags) & O_CREAT ? CREATE : OPEN)
#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

int open(const char *path, int flags, ...) {
    REAL(open);
    MODE(flags)
    GUARD(names_below(AT_FDCWD, path), OPENS(flags), real(path, flags, mode))
}
int open64(const char *path, int flags, ...) {
    REAL(open64);
    MODE(flags)
    GUARD(names_below(AT_FDCWD, path), OPENS(flags), real(path, flags, mode))
}
int openat(int where, const char *path, int flags, ...) {
    REAL(openat);
    MODE(flags)
    GUARD(names_below(where, path), OPENS(flags), real(where, path, flags, mode))
}
int openat64(int where, const char *path, int flags, ...) {
    REAL(openat64);
    MODE(flags)
    GUARD(names_below(where, path), OPENS(flags), real(where, path, flags, mode))
}

/* A write: with `torn`, its first half. */
#define WRITES(half, whole) \
    int saved = errno; \
    int blow = file_is_below(file) ? strike(WRITE) : 0; \
    if (blow == 1) return -1; \
    errno = saved; \
    if (blow == 3) { (void)!(half); die(); } \
    ssize_t result = (whole); \
    if (blow == 2) die(); \
    return result;

ssize_t write(int file, const void *data, size_t size) {
    REAL(write);
    WRITES(real(file, data, size / 2), real(file, data, size))
}
ssize_t pwrite(int file, const void *data, size_t size, off_t place) {
    REAL(pwrite);
    WRITES(real(file, data, size / 2, place), real(file, data, size, place))
}
ssize_t pwrite64(int file, const void *data, size_t size, off64_t place) {
    REAL(pwrite64);
    WRITES(real(file, data, size / 2, place), real(file, data, size, place))
}
ssize_t writev(int file, const struct iovec *parts, int n) {
    REAL(writev);
    WRITES(real(file, parts, n / 2), real(file, parts, n))
}

ssize_t read(int file, void *data, size_t size) {
    REAL(read);
    GUARD(file_is_below(file), READ, real(file, data, size))
}
ssize_t pread(int file, void *data, size_t size, off_t place) {
    REAL(pread);
    GUARD(file_is_below(file), READ, real(file, data, size, place))
}
ssize_t pread64(int file, void *data, size_t size, off64_t place) {
    REAL(pread64);
    GUARD(file_is_below(file), READ, real(file, data, size, place))
}
ssize_t readv(int file, const struct iovec *parts, int n) {
    REAL(readv);
    GUARD(file_is_below(file), READ, real(file, parts, n))
}

int fsync(int file) { REAL(fsync); GUARD(file_is_below(file), SYNC, real(file)) }
int fdatasync(int file) { REAL(fdatasync); GUARD(file_is_below(file), SYNC, real(file)) }
int ftruncate(int file, off_t size) { REAL(ftruncate); GUARD(file_is_below(file), TRUNCATE, real(file, size)) }
int ftruncate64(int file, off64_t size) {
    REAL(ftruncate64);
    GUARD(file_is_below(file), TRUNCATE, real(file, size))
}
int rename(const char *from, const char *to) {
    REAL(rename);
    GUARD(names_below(AT_FDCWD, to), RENAME, real(from, to))
}
int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    REAL(renameat);
    GUARD(names_below(to_folder, to), RENAME, real(from_folder, from, to_folder, to))
}
int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    REAL(renameat2);
    GUARD(names_below(to_folder, to), RENAME, real(from_folder, from, to_folder, to, flags))
}
int link(const char *from, const char *to) { REAL(link); GUARD(names_below(AT_FDCWD, to), LINK, real(from, to)) }
int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    REAL(linkat);
    GUARD(names_below(to_folder, to), LINK, real(from_folder, from, to_folder, to, flags))
}
int symlink(const char *from, const char *to) {
    REAL(symlink);
    GUARD(names_below(AT_FDCWD, to), LINK, real(from, to))
}
int unlink(const char *path) { REAL(unlink); GUARD(names_below(AT_FDCWD, path), UNLINK, real(path)) }
int unlinkat(int where, const char *path, int flags) {
    REAL(unlinkat);
    GUARD(names_below(where, path), flags & AT_REMOVEDIR ? RMDIR : UNLINK, real(where, path, flags))
}
int rmdir(const char *path) { REAL(rmdir); GUARD(names_below(AT_FDCWD, path), RMDIR, real(path)) }
int mkdir(const char *path, mode_t mode) { REAL(mkdir); GUARD(names_below(AT_FDCWD, path), MKDIR, real(path, mode)) }
int mkdirat(int where, const char *path, mode_t mode) {
    REAL(mkdirat);
    GUARD(names_below(where, path), MKDIR, real(where, path, mode))
}
