/*
 * The files that C and Python share: the grant and the ledger of one container.
 *
 * The grant says what the container may use; the node side writes it, the container maps it read-only.
 * The ledger says what the container's processes use; every one of them maps it read-write.
 * Fields are fixed-width, padding is explicit, and fields are only ever appended: a reader accepts any
 * minor version of its own major version, and refuses another major version naming both.
 *
 * This header is C11, and also the text that cffi parses: declarations and integer #defines only.
 * The offsets are asserted in abi_check.h.
 */
#ifndef VCUDA_ABI_H
#define VCUDA_ABI_H

#include <stdint.h>

#define VCUDA_ABI_MAJOR 1
#define VCUDA_ABI_MINOR 1

#define VCUDA_GRANT_MAGIC 0x3152474144554356  /* "VCUDAGR1" in little-endian order */
#define VCUDA_LEDGER_MAGIC 0x31474c4144554356 /* "VCUDALG1" */

#define VCUDA_MAX_CARDS 16   /* cards that one grant can name */
#define VCUDA_MAX_SLOTS 4096 /* processes that one ledger can hold */
#define VCUDA_DEFAULT_SLOTS 1024
#define VCUDA_UUID_SIZE 64
#define VCUDA_MAX_BYTES 0xfffffffffff /* 2^44 - 1: what the ledger's word can count */
#define VCUDA_PPM 1000000             /* core shares are parts per million of a card's SM time */

/* What a card's bytes are used for; index into vcuda_slot_card.bytes. */
enum vcuda_kind {
    VCUDA_KIND_LINEAR = 0,  /* cuMemAlloc, cuMemAllocPitch */
    VCUDA_KIND_MANAGED = 1, /* cuMemAllocManaged */
    VCUDA_KIND_ARRAY = 2,   /* arrays and mipmapped arrays */
    VCUDA_KIND_VMM = 3,     /* cuMemCreate */
    VCUDA_KIND_POOL = 4,    /* reserved by stream-ordered pools */
    VCUDA_KIND_GRAPH = 5,   /* reserved for graph memory nodes */
    VCUDA_KIND_CONTEXT = 6, /* contexts */
    VCUDA_KIND_MODULE = 7,  /* modules and libraries */
};
#define VCUDA_KINDS 8

/* vcuda_grant_card.flags */
#define VCUDA_CARD_WHOLE 1 /* the container has the whole card: metered, not limited */

struct vcuda_grant_card {
    char uuid[64];             /* "GPU-..." or "MIG-...", NUL-terminated, zero-padded */
    uint64_t memory_bytes;     /* hard limit */
    uint32_t core_ppm;         /* guaranteed share of SM time; VCUDA_PPM = no limit */
    uint32_t core_max_ppm;     /* ceiling that idle time may be used up to; >= core_ppm */
    int32_t priority;          /* -1 low, 0 normal, 1 high */
    uint32_t flags;            /* VCUDA_CARD_* */
    uint64_t context_bytes;    /* what one context costs on this card and driver; 0 = not calibrated */
    uint64_t page_bytes;       /* granularity of device memory; a power of two, 0 = 2 MiB */
    uint64_t pool_chunk_bytes; /* by which a stream-ordered pool grows; 0 = learned */
    int64_t slice_ppm; /* GPU time truly had per million measured beside neighbours, for as long as slice_ns
                          is recent; 0 = all of it */
    uint32_t rate_ppm; /* the share in force just now, for as long as rate_ns is recent; 0 = core_ppm */
    uint32_t changes;  /* grows with every change of a share; a futex: who waits for time sleeps on it */
    uint64_t rate_ns;  /* CLOCK_MONOTONIC when rate_ppm was last confirmed */
    uint64_t slice_ns; /* the same of slice_ppm */
    uint64_t reserved[14];
};

struct vcuda_grant {
    uint64_t magic;
    uint16_t abi_major;
    uint16_t abi_minor;
    uint32_t header_bytes; /* offset of cards[0] */
    uint64_t file_bytes;
    uint64_t generation; /* even: stable; odd: the writer is at work. Grows with every change */
    uint32_t card_count;
    uint32_t card_bytes; /* stride of cards[] */
    uint32_t flags;
    uint32_t pad0;
    char name[64]; /* whose share: shown by tools; NUL-terminated, zero-padded */
    uint64_t reserved[18];
    struct vcuda_grant_card cards[16];
};

/* One card's part of a process slot. Written by the slot's process alone, but for `word`, see ledger.h. */
struct vcuda_slot_card {
    uint64_t word;      /* bits 0-43: bytes charged; bits 44-63: fence version */
    uint64_t unsettled; /* of these bytes, those of which it is not known yet whether they are kept */
    uint64_t wakeups;   /* how often a launch that waited for balance looked whether it may go */
    uint64_t active_ns; /* CLOCK_MONOTONIC when work of this process was last let go */
    uint64_t held_ns;   /* of owed_ns, for launches that wait: none of it can run */
    uint64_t pad0[3];
    uint64_t bytes[8]; /* by enum vcuda_kind; their sum follows `word` */
    uint64_t gpu_ns;   /* GPU time consumed */
    uint64_t launches; /* kernels and graphs submitted */
    uint64_t wait_ns;  /* time launches spent waiting for balance */
    uint64_t waits;
    uint64_t refused;       /* allocations refused by the limit */
    uint64_t refused_bytes; /* size of the last one refused */
    uint64_t peak_bytes;    /* highest charge so far */
    uint64_t owed_ns;       /* paid to the bucket for work that has not been accounted in gpu_ns yet */
};

struct vcuda_slot {
    uint64_t generation;  /* grows with every owner */
    uint32_t in_use;      /* for readers; who owns the slot is decided by the file lock on it */
    int32_t pid;          /* in the owner's own pid namespace */
    uint64_t pid_ns;      /* inode of that namespace */
    uint64_t start_ticks; /* field 22 of /proc/PID/stat */
    char comm[16];        /* NUL-terminated */
    uint64_t attach_ns;   /* CLOCK_MONOTONIC */
    uint64_t charged;     /* not 0: its owner has charged something, ever */
    struct vcuda_slot_card cards[16];
};

/* The limiter's bucket: GPU time that came in and that was asked for. Its balance is supply_ns - demand_ns;
 * both only count on, and wrap. See native/shim/bucket.h. */
struct vcuda_bucket {
    uint64_t
        supply_ns; /* refills, and what work turned out to take less (or, taken off, more) than was paid */
    uint64_t demand_ns; /* paid for launches */
    uint64_t refill_ns; /* CLOCK_MONOTONIC up to which supply_ns is */
    uint32_t rate_ppm;  /* since then */
    uint32_t resets;    /* contents that could not be true and were put right */
};

/* In which a process kept the card at work. */
struct vcuda_interval {
    uint64_t from_ns; /* CLOCK_MONOTONIC */
    uint64_t length;  /* bits 0-39: ns; bits 40-63: slot + 1 */
};

/* One card's part of the ledger. */
struct vcuda_ledger_card {
    uint64_t lock; /* lease lock, see ledger.h */
    uint64_t pad0[7];
    struct vcuda_bucket bucket;
    uint64_t active_ns;  /* CLOCK_MONOTONIC when work was last paid for */
    uint64_t starved_ns; /* until when a launch had to wait, last; in the future while one waits */
    struct vcuda_interval recent[8]; /* in which processes of the container were last at work */
    uint64_t recent_next;            /* how many were written ever */
    uint64_t limiter[1];             /* for the limiter */
    uint64_t reclaimed_ns;           /* CLOCK_MONOTONIC of the last slot taken back from a dead process */
    uint64_t reclaimed;              /* how many were */
    uint64_t ended_gpu_ns;           /* totals of the processes that are gone */
    uint64_t ended_launches;
    uint64_t ended_wait_ns;
    uint64_t ended_refused;
    uint64_t pad1[2];
};

struct vcuda_ledger {
    uint64_t magic;
    uint16_t abi_major;
    uint16_t abi_minor;
    uint32_t header_bytes; /* offset of the first slot */
    uint64_t file_bytes;
    uint32_t slot_count;
    uint32_t slot_bytes;     /* stride of the slots */
    uint64_t created_ns;     /* CLOCK_REALTIME */
    uint32_t slots_high;     /* slots below this index have been used at some time */
    uint32_t first_free;     /* hint: where to begin to look for a free slot, and how often one became free */
    uint64_t charged_groups; /* hint: a bit for each group of slots of which an owner has charged something */
    uint64_t
        looked; /* when somebody last looked for dead owners who charged nothing, about a millisecond each */
    uint64_t reserved[8];
    struct vcuda_ledger_card cards[16];
};

#endif
