/* What the ledger's tests share: a ledger file of one's own, and processes that take slots in it. */
#ifndef VCUDA_TESTS_LEDGER_COMMON_H
#define VCUDA_TESTS_LEDGER_COMMON_H

#include <sched.h>
#include <stddef.h>
#include <sys/mman.h>
#include <time.h>

#include "check.h"
#include "ledger.h"

#define CARD 0
#define MIB ((uint64_t)1 << 20)

static char ledger_path[200];
static pid_t ledger_maker;

static inline void remove_ledger(void) {
    if (getpid() == ledger_maker)
        unlink(ledger_path);
}

/* In $TMPDIR, which the test's caller sets; gone when this process exits. */
static inline const char *new_ledger(uint32_t slots) {
    const char *directory = getenv("TMPDIR");
    snprintf(ledger_path, sizeof ledger_path, "%s/ledger-%d", directory ? directory : "/tmp", (int)getpid());
    CHECK_EQUAL(vcuda_ledger_create(ledger_path, slots), VCUDA_LEDGER_OK);
    ledger_maker = getpid();
    atexit(remove_ledger);
    return ledger_path;
}

static inline void *shared_memory(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    return memory;
}

static inline void sleep_ms(long ms) {
    struct timespec pause = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&pause, NULL);
}

static inline uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* xorshift64*: the same on every machine. */
static inline uint64_t random_of(uint64_t *state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1d;
}

static inline bool reserve(const struct vcuda_ledger_map *map, uint64_t bytes, uint64_t limit) {
    return vcuda_ledger_reserve(map, CARD, VCUDA_KIND_LINEAR, bytes, limit);
}

static inline void release(const struct vcuda_ledger_map *map, uint64_t bytes) {
    vcuda_ledger_release(map, CARD, VCUDA_KIND_LINEAR, bytes);
}

static inline uint64_t used(const struct vcuda_ledger_map *map) {
    return vcuda_ledger_used(map, CARD);
}

static inline struct vcuda_ledger_map attached(const char *path) {
    struct vcuda_ledger_map map;
    CHECK_EQUAL(vcuda_ledger_attach(&map, path), VCUDA_LEDGER_OK);
    return map;
}

#endif
