/*
 * The ledger: how the processes of one container account for a card together.
 *
 * Promises, for any process killed or stopped at any instruction (docs/decisions/0001-ledger.md):
 *   - the sum of the charges never exceeds the limit that was passed to reserve;
 *   - a charge that fits is not refused because of a race;
 *   - a dead process's charges vanish, and nobody waits for it, nor for a stopped one, more than the lease.
 *
 * A slot belongs to the process that holds the open-file-description lock on its byte of the file. The lock
 * lives as long as the mapping made from the same open file does: until exit or exec, not a moment longer,
 * and not in a forked child, which does not inherit the mapping. The kernel is thus the judge of who is
 * alive, in any pid namespace.
 *
 * Nothing here allocates memory, prints, or knows of CUDA. Compiled into the shim and into the Python
 * binding. A map is used by any number of threads, but opened and closed by one at a time.
 */
#ifndef VCUDA_LEDGER_H
#define VCUDA_LEDGER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vcuda/abi.h"

#define VCUDA_LEASE_NS 5000000 /* a holder that has not released a card's lock by then has lost it */

enum vcuda_ledger_status {
    VCUDA_LEDGER_OK = 0,
    VCUDA_LEDGER_MISSING,   /* cannot be opened; errno says why */
    VCUDA_LEDGER_READ_ONLY, /* opens for reading alone */
    VCUDA_LEDGER_TRUNCATED, /* shorter than its header says, or than a header */
    VCUDA_LEDGER_GARBAGE,   /* not a ledger, or fields that contradict each other */
    VCUDA_LEDGER_VERSION,   /* of another ABI version */
    VCUDA_LEDGER_FULL,      /* every slot has a living owner */
    VCUDA_LEDGER_NO_SPACE,  /* the file system is full */
    VCUDA_LEDGER_NO_LOCKS,  /* the kernel has no open-file-description locks */
};

/* A mapped ledger. `slot` is -1 for a reader. */
struct vcuda_ledger_map {
    struct vcuda_ledger *header;
    size_t map_bytes;
    char *slots; /* the geometry is copied once, when it was checked: users can write to the file */
    uint32_t slot_count, slot_bytes;
    int slot;
    int kept_fd; /* -1, but where a mapping alone does not keep a lock */
    bool writable;
    uint64_t generation;               /* of the slot when it was taken */
    uint64_t device, inode;            /* of the file that is mapped */
    uint16_t other_major, other_minor; /* for VCUDA_LEDGER_VERSION */
    char path[256];
};

/* Make an empty ledger file at `path`, complete or not at all. slot_count 0 = VCUDA_DEFAULT_SLOTS. */
enum vcuda_ledger_status vcuda_ledger_create(const char *path, uint32_t slot_count);

/* Map a ledger; `writable` maps for writing but takes no slot yet. Survives any content of the file. */
enum vcuda_ledger_status vcuda_ledger_open(struct vcuda_ledger_map *map, const char *path, bool writable);
void vcuda_ledger_close(struct vcuda_ledger_map *map);

/* Map and take a slot for the calling process. */
enum vcuda_ledger_status vcuda_ledger_attach(struct vcuda_ledger_map *map, const char *path);

/* Enter into one's slot what takes time to find out, pid_ns and start_ticks; 0 until then. Done with the
 * first charge, too. */
void vcuda_ledger_identify(const struct vcuda_ledger_map *map);

/* The slot at `index`, or NULL beyond the table. */
struct vcuda_slot *vcuda_ledger_slot(const struct vcuda_ledger_map *map, uint32_t index);

/* The inode of the caller's pid namespace, as in a slot's pid_ns; 0 where it cannot be read. */
uint64_t vcuda_own_pid_namespace(void);

/* Whether a living process owns slot `index`. One system call. */
bool vcuda_ledger_alive(const struct vcuda_ledger_map *map, uint32_t index);

/* Empty the slots whose owners are gone; returns how many. The owner of the map need not have a slot. */
uint32_t vcuda_ledger_reclaim(const struct vcuda_ledger_map *map);

/* Charge `bytes` on `card` if the card's charges then stay within `limit`; else count a refusal. */
bool vcuda_ledger_reserve(const struct vcuda_ledger_map *map, uint32_t card, enum vcuda_kind kind,
                          uint64_t bytes, uint64_t limit);
/* As reserve, without counting a refusal. */
bool vcuda_ledger_try_reserve(const struct vcuda_ledger_map *map, uint32_t card, enum vcuda_kind kind,
                              uint64_t bytes, uint64_t limit);
/* As try_reserve, which is how == 0. An unsettled charge is one of which it is not known yet how much will be
 * kept: nobody is refused for its sake without having waited for it to be settled, for some 40 ms at most. */
#define VCUDA_UNSETTLED 1u /* what is not kept is released, then the whole settled */
#define VCUDA_AT_ONCE 2u   /* rather be refused than wait */
bool vcuda_ledger_reserve_as(const struct vcuda_ledger_map *map, uint32_t card, enum vcuda_kind kind,
                             uint64_t bytes, uint64_t limit, unsigned int how);
void vcuda_ledger_settle(const struct vcuda_ledger_map *map, uint32_t card, uint64_t bytes);
/* Charge whatever the limit says: for what the driver has already taken. */
void vcuda_ledger_charge(const struct vcuda_ledger_map *map, uint32_t card, enum vcuda_kind kind,
                         uint64_t bytes);
/* Give back a charge of this process. */
void vcuda_ledger_release(const struct vcuda_ledger_map *map, uint32_t card, enum vcuda_kind kind,
                          uint64_t bytes);
void vcuda_ledger_count_refusal(const struct vcuda_ledger_map *map, uint32_t card, uint64_t bytes);

/* The sum of all charges on `card`, in bytes; exact when nobody is writing. What the dead held is in it until
 * somebody needs it, starts, or reclaims. */
uint64_t vcuda_ledger_used(const struct vcuda_ledger_map *map, uint32_t card);

/* Bytes that one slot has charged on `card`. */
uint64_t vcuda_slot_used(const struct vcuda_slot *slot, uint32_t card);

#endif
