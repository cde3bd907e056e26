/*
 * For every file of the simulated driver: what it takes of glibc it takes as glibc 2.17 has it, so that the
 * libraries run in any container, as a real driver's do, though they are built on a newer machine.
 *
 * What newer versions have moved from libpthread into libc is bound to its old name (both still have that);
 * what was no function of its own then is called as the system call that it is.
 */
#ifndef SIM_OLD_LIBC_H
#define SIM_OLD_LIBC_H

#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define SIM_OLD(name, version) __asm__(".symver " #name "," #name "@GLIBC_" version)
SIM_OLD(pthread_condattr_setclock, "2.3.3");
SIM_OLD(pthread_create, "2.2.5");
SIM_OLD(pthread_detach, "2.2.5");
SIM_OLD(pthread_getspecific, "2.2.5");
SIM_OLD(pthread_join, "2.2.5");
SIM_OLD(pthread_key_create, "2.2.5");
SIM_OLD(pthread_mutex_consistent, "2.12");
SIM_OLD(pthread_mutex_trylock, "2.2.5");
SIM_OLD(pthread_mutexattr_destroy, "2.2.5");
SIM_OLD(pthread_mutexattr_init, "2.2.5");
SIM_OLD(pthread_mutexattr_setpshared, "2.2.5");
SIM_OLD(pthread_mutexattr_setrobust, "2.12");
SIM_OLD(pthread_mutexattr_settype, "2.2.5");
SIM_OLD(pthread_once, "2.2.5");
SIM_OLD(pthread_setspecific, "2.2.5");
SIM_OLD(pthread_sigmask, "2.2.5");
#undef SIM_OLD
#endif

static inline int sim_fstat(int descriptor, struct stat *status) {
    return (int)syscall(SYS_fstat, descriptor, status);
}
static inline int sim_memfd_create(const char *name, unsigned int flags) {
    return (int)syscall(SYS_memfd_create, name, flags);
}
#define fstat sim_fstat
#define memfd_create sim_memfd_create

#endif
