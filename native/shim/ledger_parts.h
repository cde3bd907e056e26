/*
 * What the ledger's own files know of one another: ledger_file.c maps it, ledger_slots.c judges who owns a
 * slot, ledger.c charges.
 *
 * All atomics are sequentially consistent unless named relaxed: the proof (docs/decisions/0001-ledger.md)
 * leans on one total order, and on x86-64 the read-modify-writes cost the same either way.
 */
#ifndef VCUDA_LEDGER_PARTS_H
#define VCUDA_LEDGER_PARTS_H

#include "ledger.h"

/* Marked instants at which tests kill or stop the process. */
#ifdef VCUDA_LEDGER_POINTS
void vcuda_ledger_point(const char *name);
#define POINT(name) vcuda_ledger_point(name)
#else
#define POINT(name) ((void)0)
#endif

#define BYTES_MASK ((uint64_t)VCUDA_MAX_BYTES)
#define FENCE_ONE ((uint64_t)1 << 44)
#define EVERY_CARD VCUDA_MAX_CARDS

static inline uint64_t load(const uint64_t *word) {
    return __atomic_load_n(word, __ATOMIC_SEQ_CST);
}
static inline uint64_t load_relaxed(const uint64_t *word) {
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}
static inline void store_relaxed(uint64_t *word, uint64_t value) {
    __atomic_store_n(word, value, __ATOMIC_RELAXED);
}
static inline void add_relaxed(uint64_t *word, uint64_t amount) {
    __atomic_fetch_add(word, amount, __ATOMIC_RELAXED);
}
/* On failure *expected is what was found. */
static inline bool swap_if(uint64_t *word, uint64_t *expected, uint64_t desired) {
    return __atomic_compare_exchange_n(word, expected, desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
static inline uint64_t fence_of(uint64_t word) {
    return word & ~BYTES_MASK;
}

/* How many slots there are to look at. Never fewer than reach one's own, whatever somebody scribbled there.
 */
static inline uint32_t slots_high(const struct vcuda_ledger_map *map) {
    uint32_t high = __atomic_load_n(&map->header->slots_high, __ATOMIC_SEQ_CST);
    if (high > map->slot_count)
        high = map->slot_count;
    return (int64_t)high > map->slot ? high : (uint32_t)map->slot + 1;
}

/*
 * Where to look, in the header's first line, so that whoever starts need not look at every slot. Hints: wrong
 * ones cost time, or let a newcomer see the dead's bytes until it needs them.
 */
/* No slot below is free: its index in the low bits; above, how often one became free. */
#define FREE_BITS 13
_Static_assert(VCUDA_MAX_SLOTS < 1 << FREE_BITS, "the index of a slot is too long");
static inline uint32_t *first_free(const struct vcuda_ledger_map *map) {
    return &map->header->first_free;
}
/* Bit i: among the slots i, i + 64, i + 128 ... there may be one whose owner has charged something. */
#define GROUPS 64
static inline uint64_t *charged_groups(const struct vcuda_ledger_map *map) {
    return &map->header->charged_groups;
}
/* When somebody last looked for the dead among those who have charged nothing, in units of 2^20 ns. Stays
 * below 2^56: the last byte is always 0, see touch. */
static inline uint64_t *looked(const struct vcuda_ledger_map *map) {
    return &map->header->looked;
}

/* Opens, checks and maps; on success *fd stays open for the caller, and the map's file is that of *fd. */
enum vcuda_ledger_status vcuda_ledger_map_file(struct vcuda_ledger_map *map, const char *path, bool writable,
                                               int *fd);

/* Have the file system allocate `count` pieces of `bytes` each, `stride` apart: a hole would fault on a full
 * one. False: it is full. */
bool vcuda_ledger_allocate(int fd, uint64_t offset, uint64_t bytes, uint64_t stride, uint32_t count);

/* Empty what the dead hold on `card` (or EVERY_CARD); returns how many slots were emptied. */
uint32_t vcuda_ledger_reclaim_card(const struct vcuda_ledger_map *map, uint32_t card);

#endif
