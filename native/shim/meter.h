/*
 * GPU time, by events around some launches: a pair for about every VCUDA_BURST_NS of work in a stream, and
 * one for each kind of launch that was never seen, as long as there are not too many. Nothing here waits for
 * the GPU, and nothing touches a stream that captures.
 *
 * The common launch pays for finding its stream's record and its expected cost, and for two additions. No
 * clock is read: the expected cost is the clock, for measuring and for what must be paid to the limiter. What
 * else happens is out of line, in meter.c.
 */
#ifndef VCUDA_METER_H
#define VCUDA_METER_H

#include "cost.h"
#include "lock.h"
#include "share.h"

#define VCUDA_BURST_NS 5000000     /* between two measured launches of a stream, on average */
#define VCUDA_EVENT_NS 1000000     /* of GPU time for each event that is recorded; the first 128 are free */
#define VCUDA_COARSE 32            /* times less is measured where nothing is limited */
#define VCUDA_UNLIMITED UINT64_MAX /* as what a stream has paid for */
#define VCUDA_STREAMS 512          /* streams that are metered at a time */
#define VCUDA_STREAM_ENTRIES 1024  /* powers of two */
#define VCUDA_PROBES 8
#define VCUDA_MAGNITUDE 127 /* the bits of a kind that hold the magnitude of its grid */

struct vcuda_context_meter;

/* One stream. The first fields are the launch path's; the others are used with the meter's lock held. */
struct vcuda_stream_meter {
    uint64_t work_ns; /* expected cost of its launches so far; threads that race on a stream may lose some */
    uint64_t due_ns;  /* a launch that brings work_ns here is measured, or must be paid for: the earlier */
    struct vcuda_slot_card *use; /* where its launches are counted */
    int card;                    /* -1: not a granted one */
    bool interrupted;            /* something but kernels entered the stream since the last measured launch */
    bool held_up;                /* by that, its outstanding samples may be */

    uint64_t measure_ns;    /* a launch that brings work_ns here is measured */
    uint64_t paid_ns;       /* up to here work_ns may grow for what was paid; VCUDA_UNLIMITED */
    uint64_t charged_ns;    /* paid, for what is in no sample */
    int64_t moved_ns;       /* by how much its work ended later than expected, all in all */
    uint64_t guessed_ns;    /* paid for launches of unknown cost, and not yet earned by */
    uint32_t guesses;       /* launches of unknown cost paid for since something of it was measured */
    uint64_t settled_ns;    /* the part of work_ns that is accounted, or in a sample */
    uint64_t unknown;       /* launches of unknown cost beside that */
    uint64_t last_end_ns;   /* the latest known end of its work, on the context's clock; 0 = none */
    uint64_t sample_end_ns; /* the same of what was in its last sample */
    uint64_t key;           /* of the entry that leads here; 0 = the stream is gone, its samples are not */
    struct vcuda_context_meter *context;
    struct vcuda_stream_meter *next; /* of the context, or free */
    CUstream stream;                 /* a handle, CU_STREAM_LEGACY or CU_STREAM_PER_THREAD */
    const void *thread;              /* whose, for the last */
    uint32_t outstanding;            /* samples that have not been read */
    uint64_t sequence;               /* samples that were taken, ever */
    uint32_t interruptions;          /* vcuda_interruptions at its last sample */
    uint64_t proven_ns;     /* host's clock: until then it is known to have been at work without a pause */
    uint64_t carried_ns;    /* what it held when that began */
    uint64_t empty_ns;      /* host's clock: when it was last seen empty */
    uint64_t earned_ns;     /* its work up to here has earned events */
    uint64_t alone_from_ns; /* host's clock: when its last measured launch was made */
    uint64_t alone_ns;      /* what its last measured launch took by itself in an empty stream; 0 = that is
                               not the last that is known of */
    uint32_t last_cost_ns;  /* of its last measured launch, for launches of unknown cost */
    uint16_t skip;          /* launches of unknown cost to let pass: too many samples are outstanding */
    uint16_t varies;        /* of 256: how much measured launches differ from what was expected of them */
    uint8_t force;          /* launches to measure because a wait was longer than expected */
    uint8_t postponed;      /* times that a launch of it was not measured because others were at work */
    uint8_t blocked;        /* an older sample of it has not been reached: for one pass of the harvest */
    vcuda_lock recording;   /* an event is being recorded in it by a thread that did not launch: stay alive */
} __attribute__((aligned(64)));

struct vcuda_stream_entry {
    uint64_t key; /* 0 = free; stored last, with release order */
    struct vcuda_stream_meter *meter;
};

/* The calling thread's default streams in its current context, while `epoch` is the global one. */
struct vcuda_here {
    uint32_t epoch;
    struct vcuda_stream_meter *legacy, *per_thread;
};

struct vcuda_sample;
struct vcuda_ticket {
    struct vcuda_stream_meter *meter; /* NULL: counted nowhere */
    struct vcuda_cost *cost;
    struct vcuda_sample *sample; /* NULL: not measured */
    uint64_t expected_ns;
};

extern struct vcuda_stream_entry vcuda_stream_entries[VCUDA_STREAM_ENTRIES];
extern __thread struct vcuda_here vcuda_here;
extern uint32_t vcuda_epoch;            /* changes when a default stream's meter goes; never 0 */
extern uint32_t vcuda_captures;         /* streams of this process that capture; never too low */
extern int32_t vcuda_graphics_captures; /* while there is one, nothing is measured */
extern uint32_t vcuda_interruptions;    /* what holds up all streams of a context: counted for all contexts */

/* CU_STREAM_LEGACY or CU_STREAM_PER_THREAD where a handle means one of them, else the handle. */
static inline CUstream vcuda_stream_of(CUstream stream, bool ptsz) {
    return stream ? stream : ptsz ? CU_STREAM_PER_THREAD : CU_STREAM_LEGACY;
}

/* The meter of a stream that has one, in two loads where no two streams share a place. */
static inline struct vcuda_stream_meter *vcuda_meter_find(CUstream stream, bool ptsz) {
    uint64_t key = (uint64_t)(uintptr_t)stream;
    if (key <= 2) {
        if (vcuda_here.epoch != __atomic_load_n(&vcuda_epoch, __ATOMIC_RELAXED))
            return NULL;
        return key == 2 || (key == 0 && ptsz) ? vcuda_here.per_thread : vcuda_here.legacy;
    }
    const struct vcuda_stream_entry *entry = &vcuda_stream_entries[vcuda_mix(key) % VCUDA_STREAM_ENTRIES];
    return __atomic_load_n(&entry->key, __ATOMIC_ACQUIRE) == key ? entry->meter : NULL;
}

/* The thread's current context is another one now. */
static inline void vcuda_meter_elsewhere(void) {
    vcuda_here.epoch = 0;
}

/* ---- slow paths ---- */

/* The stream's meter, made if it has none; NULL where there is no context. */
struct vcuda_stream_meter *vcuda_meter_get(struct vcuda_share *share, CUstream stream, bool ptsz);
/* The same of a stream that was created, if it has one. */
struct vcuda_stream_meter *vcuda_meter_known(CUstream stream);

/* UNKNOWN: the legacy stream while another one captures, work for a graphics queue, or an invalid handle. */
enum vcuda_capturing { VCUDA_CAPTURES_NOT, VCUDA_CAPTURES, VCUDA_CAPTURES_UNKNOWN };
enum vcuda_capturing vcuda_meter_captures(CUstream stream, bool ptsz);

/* Have a launch paid for, and let time pass until it may go. `magnitude`: its grid has less than 2^magnitude
 * blocks; 0 = a graph. */
void vcuda_admit(struct vcuda_share *share, struct vcuda_ticket *ticket, uint32_t magnitude);
/* A launch that is measured is not counted in its stream's work, but uses up what was paid: how much of it.
 */
uint64_t vcuda_credit_use(const struct vcuda_ticket *ticket);
void vcuda_credit_return(const struct vcuda_ticket *ticket, uint64_t used_ns);

/* A launch is about to go: where its stream has nothing else, its work begins now. */
void vcuda_meter_begins(struct vcuda_stream_meter *meter);

/* Around a launch that is to be measured: an event before it and one behind it. */
void vcuda_meter_open(struct vcuda_share *share, struct vcuda_ticket *ticket);
void vcuda_meter_close(struct vcuda_ticket *ticket, CUresult result);

/* Around a call that waits for a stream, or for everything in a context. */
struct vcuda_wait {
    CUstream stream;   /* NULL: for everything */
    CUcontext context; /* NULL: the stream's, or the current one */
    uint64_t since_ns;
    bool one;           /* nothing but one measured launch */
    bool active, exact; /* there is something to be learnt; some of it is measured */
};
void vcuda_meter_wait(struct vcuda_share *share, struct vcuda_wait *wait);
void vcuda_meter_waited(struct vcuda_share *share, const struct vcuda_wait *wait, CUresult result);
/* Around a wait for an event: a stream that holds the same work after it was at work all the while. */
#define VCUDA_WATCHED 8
struct vcuda_watch {
    uint64_t since_ns;
    int count;
    bool sole; /* no other stream of the context had work */
    struct {
        struct vcuda_stream_meter *meter;
        uint64_t work_ns, unknown, sequence;
    } stream[VCUDA_WATCHED];
};
void vcuda_meter_watch(struct vcuda_share *share, struct vcuda_watch *watch);
void vcuda_meter_watched(struct vcuda_share *share, const struct vcuda_watch *watch);

/* The stream is known to be empty: as if it had been waited for. */
void vcuda_meter_idle(struct vcuda_share *share, CUstream stream, bool ptsz);
/* Some work is known to have ended: read what has been measured in the current context; with `all`, also ask
 * which of its streams are empty. */
void vcuda_meter_look(struct vcuda_share *share, bool all);

/* Something but a kernel enters a stream; with CU_STREAM_LEGACY, all streams may be held up. */
void vcuda_meter_interrupt(CUstream stream, bool ptsz);

/* A stream is about to be destroyed. */
void vcuda_meter_stream_ends(struct vcuda_share *share, CUstream stream);
/* A context, or a device's primary one, is about to be destroyed; and has been, or not. */
void vcuda_meter_context_ends(struct vcuda_share *share, CUcontext context);
void vcuda_meter_forget_context(struct vcuda_share *share, CUcontext context);
void vcuda_meter_primary_ends(struct vcuda_share *share, CUdevice device);
void vcuda_meter_forget_primary(struct vcuda_share *share, CUdevice device);
/* A forked child has none of its parent's work. */
void vcuda_meter_forget_process(void);

#endif
