/* What meter.c (measuring) and meter_streams.c (the tables) know of one another. All under the meter's lock.
 */
#ifndef VCUDA_METER_PARTS_H
#define VCUDA_METER_PARTS_H

#include "busy.h"
#include "meter.h"

#define VCUDA_CONTEXTS 32
#define VCUDA_SAMPLES 64       /* of a context at a time */
#define VCUDA_STREAM_SAMPLES 8 /* of a stream */
#define VCUDA_EVENTS (2 * VCUDA_SAMPLES)

enum vcuda_sample_state {
    VCUDA_SAMPLE_FREE = 0,
    VCUDA_SAMPLE_OPEN,    /* its owner is between its two events, without the lock */
    VCUDA_SAMPLE_PENDING, /* both recorded; set with release order */
    VCUDA_SAMPLE_DEAD,    /* nothing will come of it */
};

/* One measured launch, or, without `begin`, the end of what a stream held when it was about to be waited for.
 */
struct vcuda_sample {
    uint32_t state;
    bool busy;       /* the stream was at work when the launch was opened: the first event tells its start */
    bool continuous; /* the stream did not run dry since the sample before, nor did anything but kernels hold
                        it up */
    struct vcuda_stream_meter *meter;
    struct vcuda_cost *cost;
    uint64_t cost_key;
    CUevent begin, end;
    uint64_t expected_ns; /* of the launches since the sample before, but for this one */
    uint64_t unknown;     /* launches of unknown cost among them */
    uint64_t opened_ns;   /* host's clock: before the first event */
    uint64_t slack_ns;    /* and from there to the launch's return */
};

struct vcuda_context_meter {
    CUcontext context; /* NULL = free */
    uint64_t id;       /* tells a context from a later one at the same address; 0 on drivers before 12.0 */
    CUdevice device;
    bool primary;
    int card;
    struct vcuda_stream_meter *streams;
    CUevent base; /* an event that was reached, and its place on this context's clock */
    uint64_t base_ns;
    int64_t lag_ns; /* of that clock behind the host's, as far as is known; 0 = nothing is */
    uint32_t events, samples;
    CUevent event[VCUDA_EVENTS];  /* not in use */
    uint8_t order[VCUDA_SAMPLES]; /* samples in use, oldest first */
    struct vcuda_sample sample[VCUDA_SAMPLES];
    struct vcuda_busy busy;
};

extern vcuda_lock vcuda_meter_lock;
extern struct vcuda_context_meter vcuda_context_meters[VCUDA_CONTEXTS];

/* Nobody waits for the lock on a launch's way: if it is held, the launch is not measured. */
static inline bool vcuda_meter_try(void) {
    return vcuda_lock_try(&vcuda_meter_lock);
}

/* A visit to the driver from within: in some context, with calls that a capture elsewhere does not mind. */
struct vcuda_visit {
    CUstreamCaptureMode mode;
    bool pushed;
};
bool vcuda_visit(struct vcuda_visit *visit, CUcontext context);
void vcuda_leave(const struct vcuda_visit *visit);

/* The meter of a context that is current; made when it is first seen. NULL where there are too many. */
struct vcuda_context_meter *vcuda_context_meter(struct vcuda_share *share, CUcontext context, bool make);
void vcuda_context_forget(struct vcuda_context_meter *context);

/* Take a stream's meter out of the table; it is freed once its samples are read. */
void vcuda_stream_detach(struct vcuda_stream_meter *meter);
void vcuda_stream_free(struct vcuda_stream_meter *meter);

/* There will be something to be read when the process exits. */
void vcuda_meter_read_at_exit(void);
/* Add to the ledger's GPU time. */
void vcuda_meter_account(struct vcuda_share *share, int card, uint64_t gpu_ns);
/* Read the samples that have been reached; asks, never waits. The context is current. */
void vcuda_meter_harvest(struct vcuda_share *share, struct vcuda_context_meter *context);
/* Account what was launched in the stream and is in no sample, as having ended by now. */
void vcuda_meter_settle(struct vcuda_share *share, struct vcuda_stream_meter *meter);
/* A sample for the end of what the stream holds beyond its samples, where it cannot have run dry; else NULL.
 * To be recorded without the lock. */
struct vcuda_sample *vcuda_meter_tail(struct vcuda_stream_meter *meter);
void vcuda_meter_record_tail(struct vcuda_sample *sample);

/* Whether something was launched that is in no sample. */
static inline bool vcuda_meter_holds_more(const struct vcuda_stream_meter *meter) {
    return meter->unknown || __atomic_load_n(&meter->work_ns, __ATOMIC_RELAXED) > meter->settled_ns;
}

/* Expected cost of what was launched and is in no sample. */
static inline uint64_t vcuda_meter_pending(const struct vcuda_stream_meter *meter) {
    uint64_t work = __atomic_load_n(&meter->work_ns, __ATOMIC_RELAXED);
    return (work > meter->settled_ns ? work - meter->settled_ns : 0) + meter->unknown * meter->last_cost_ns;
}

#endif
