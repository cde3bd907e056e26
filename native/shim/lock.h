/*
 * A mutex between the threads of one process: one word, no allocation, no dependence on the libc's version.
 * Zero is unlocked. Not for shared memory: a killed holder would keep it (see ledger.c for that).
 */
#ifndef VCUDA_LOCK_H
#define VCUDA_LOCK_H

#include <stdbool.h>

#include "sys.h"

typedef struct {
    uint32_t state; /* 0 free, 1 held, 2 held and somebody sleeps */
} vcuda_lock;

__attribute__((noinline, unused)) static void vcuda_lock_wait(vcuda_lock *lock) {
    while (__atomic_exchange_n(&lock->state, 2, __ATOMIC_ACQUIRE) != 0)
        syscall(SYS_futex, &lock->state, FUTEX_WAIT_PRIVATE, 2, NULL, NULL, 0);
}

static inline bool vcuda_lock_try(vcuda_lock *lock) {
    uint32_t expected = 0;
    return __atomic_compare_exchange_n(&lock->state, &expected, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

static inline void vcuda_lock_take(vcuda_lock *lock) {
    uint32_t expected = 0;
    if (__builtin_expect(!__atomic_compare_exchange_n(&lock->state, &expected, 1, false, __ATOMIC_ACQUIRE,
                                                      __ATOMIC_RELAXED),
                         0))
        vcuda_lock_wait(lock);
}

static inline void vcuda_lock_give(vcuda_lock *lock) {
    if (__builtin_expect(__atomic_exchange_n(&lock->state, 0, __ATOMIC_RELEASE) == 2, 0))
        syscall(SYS_futex, &lock->state, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

#endif
