/*
 * System calls whose libc wrappers are younger than glibc 2.17 or depend on the libc's version.
 * Each answers as the kernel does through libc: -1 and errno on failure.
 */
#ifndef VCUDA_SYS_H
#define VCUDA_SYS_H

#ifndef _GNU_SOURCE
#error "compile with -D_GNU_SOURCE"
#endif

#include <fcntl.h>
#include <linux/futex.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef F_OFD_GETLK /* linux/fcntl.h since Linux 3.15 */
#define F_OFD_GETLK 36
#define F_OFD_SETLK 37
#endif

static inline int sys_open(const char *path, int flags) {
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags | O_CLOEXEC, 0666);
}

static inline int sys_fstat(int fd, struct stat *st) {
    return (int)syscall(SYS_fstat, fd, st);
}

static inline int sys_file_lock(int fd, int command, struct flock *lock) {
    return (int)syscall(SYS_fcntl, fd, command, lock);
}

static inline int sys_fallocate(int fd, uint64_t offset, uint64_t bytes) {
    return (int)syscall(SYS_fallocate, fd, 0, offset, bytes);
}

/* Unlike libc's, these are no points at which a thread can be cancelled. */
static inline int sys_close(int fd) {
    return (int)syscall(SYS_close, fd);
}

static inline ssize_t sys_pread(int fd, void *data, size_t bytes, uint64_t offset) {
    return syscall(SYS_pread64, fd, data, bytes, offset);
}

static inline ssize_t sys_pwrite(int fd, const void *data, size_t bytes, uint64_t offset) {
    return syscall(SYS_pwrite64, fd, data, bytes, offset);
}

/* Sleep while *word == expected, at most timeout_ns. The futex is shared between processes. */
static inline long sys_futex_wait(const void *word, uint32_t expected, uint64_t timeout_ns) {
    struct timespec timeout = {(time_t)(timeout_ns / 1000000000), (long)(timeout_ns % 1000000000)};
    return syscall(SYS_futex, word, FUTEX_WAIT, expected, &timeout, NULL, 0);
}

static inline long sys_futex_wake(const void *word, int count) {
    return syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0);
}

/* CLOCK_MONOTONIC, as libc reads it: without a system call where there is a vDSO. */
static inline uint64_t vcuda_clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static inline uint64_t sys_clock_ns(clockid_t clock) {
    struct timespec now;
    syscall(SYS_clock_gettime, clock, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

#endif
