/* What the files of metering know of one another. All under the meter's lock.
 */
#ifndef VCUDA_METER_PARTS_H
#define VCUDA_METER_PARTS_H

#include "busy.h"
#include "meter.h"
#include "plan.h"

#define VCUDA_CONTEXTS 32
#define VCUDA_SAMPLES 64       /* of a context at a time */
#define VCUDA_STREAM_SAMPLES 8 /* of a stream */
#define VCUDA_EVENTS (2 * VCUDA_SAMPLES)
#define VCUDA_VARIES 64 /* of 256: by how much launches differ where time that passed is believed instead */
#define VCUDA_CHAIN_NS 50000  /* between two looks, for a stream not to have run dry in between */
#define VCUDA_EVENTS_FREE 128 /* events that may be recorded before GPU time is earned for them */

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
    bool clean;      /* nothing but kernels held the stream up since the sample before */
    bool continuous; /* the stream did not run dry since the sample before, nor did anything but kernels hold
                        it up */
    struct vcuda_stream_meter *meter;
    struct vcuda_cost *cost;
    uint64_t cost_key;
    CUevent begin, end;
    uint32_t beside;      /* streams at work when it was opened, beside which its launch does not fit */
    uint64_t chain_ns;    /* on the context's clock: until then it was known to be at work, and went on; 0 =
                             until the end of the sample before */
    uint64_t expected_ns; /* GPU time of the launches since the sample before, but for this one */
    uint64_t unknown;     /* launches of unknown cost among them */
    uint64_t charged_ns;  /* what was paid for all of these */
    uint64_t late_ns;     /* of that, since it should have been reached */
    uint64_t ahead_ns;    /* what the context's streams were expected to hold when it was opened */
    uint64_t planned_ns;  /* when the plan has its stream's work end; 0 = nothing is planned */
    uint64_t until_ns;    /* when it should have been reached at the latest; 0 = not known */
    int64_t moved_ns;     /* of its stream, when that was expected */
    uint64_t opened_ns;   /* host's clock: before the first event */
    uint64_t begun_ns;    /* in the middle of recording it */
    uint64_t launched_ns; /* before the launch */
    uint64_t slack_ns;    /* from opened_ns to the launch's return */
    uint64_t delay_ns;    /* from begun_ns to the middle of the launch */
};

struct vcuda_context_meter {
    CUcontext context; /* NULL = free */
    uint64_t id;       /* tells a context from a later one at the same address; 0 on drivers before 12.0 */
    CUdevice device;
    bool primary;
    bool lag_tied;    /* lag_ns comes from an event in an empty stream, not from an end that was noticed, */
    uint64_t tied_ns; /* and did so last at this time, by the host's clock */
    int card;
    struct vcuda_stream_meter *streams;
    CUevent base; /* an event that was reached, and its place on this context's clock */
    uint64_t base_ns;
    int64_t lag_ns;       /* of that clock behind the host's; 0 = not known */
    int64_t lag_least_ns; /* what was learned of it since base_ns, at least; 0 = nothing */
    int64_t notice_ns;    /* what it usually takes to notice that a wait is over */
    int64_t spread_ns;    /* how far it usually is from that */
    uint64_t earned_ns;   /* GPU time towards the next event */
    uint64_t crowded_ns;  /* host's clock: when streams last had work that does not fit on the card at once */
    int64_t surplus_ns;   /* then: what was surely busy, less what was expected of the launches told of */
    uint64_t late_to_ns;  /* host's clock: up to here, work that was late has been paid for */
    uint32_t events_left; /* that may be recorded */
    uint32_t sms;
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
/* Add to the ledger's GPU time, and square it with what was paid. */
void vcuda_meter_account(struct vcuda_share *share, int card, uint64_t gpu_ns, uint64_t paid_ns);
/* Give back what the stream has paid for and will not use. */
void vcuda_meter_refund(struct vcuda_share *share, struct vcuda_stream_meter *meter);
/* Read what has been measured in a stream's context, mark the end of what the stream holds, and answer for
 * how long measured work has been running that should have ended. */
uint64_t vcuda_meter_late(struct vcuda_share *share, struct vcuda_stream_meter *meter);
/* For how long at most to wait until a launch of unknown cost, in the stream's context, has been measured; 0
 * = none is under way, or it takes so long that it may be waiting for something itself. */
uint64_t vcuda_meter_unmeasured_ns(struct vcuda_share *share, struct vcuda_stream_meter *meter);
/* Read the samples that have been reached; asks, never waits. The context is current. */
void vcuda_meter_harvest(struct vcuda_share *share, struct vcuda_context_meter *context);
/* What a wait tells of the work that it waited for: it began about from_ns (host's clock) and took length_ns,
 * give or take doubt_ns. */
struct vcuda_guess {
    uint64_t from_ns;   /* 0 = not known */
    uint64_t length_ns; /* 0 = not known */
    uint64_t doubt_ns;
};
#define VCUDA_NOTHING ((struct vcuda_guess){0})
/* Account what was launched in the stream and is in no sample, as having ended by now, and taken what is
 * expected unless the guess says that this cannot be. */
void vcuda_meter_settle(struct vcuda_share *share, struct vcuda_stream_meter *meter,
                        struct vcuda_guess guess);
/* The stream was at work from since_ns to now_ns (host's clock), and is empty now, or goes on. */
void vcuda_meter_prove(struct vcuda_share *share, struct vcuda_stream_meter *meter, uint64_t since_ns,
                       uint64_t now_ns, bool empty);
/* A sample for the end of what the stream holds beyond its samples, where it cannot have run dry; else NULL.
 * To be recorded without the lock. */
struct vcuda_sample *vcuda_meter_tail(struct vcuda_stream_meter *meter);
void vcuda_meter_record_tail(struct vcuda_sample *sample);

static inline void vcuda_meter_set_due(struct vcuda_stream_meter *meter) {
    uint64_t measure = __atomic_load_n(&meter->measure_ns, __ATOMIC_RELAXED);
    uint64_t paid = __atomic_load_n(&meter->paid_ns, __ATOMIC_RELAXED);
    __atomic_store_n(&meter->due_ns, measure < paid ? measure : paid, __ATOMIC_RELAXED);
}

/* Whether something was launched that is in no sample. */
static inline bool vcuda_meter_holds_more(const struct vcuda_stream_meter *meter) {
    return meter->unknown || __atomic_load_n(&meter->work_ns, __ATOMIC_RELAXED) > meter->settled_ns;
}

/* Expected cost of what was launched and is in no sample. */
static inline uint64_t vcuda_meter_pending(const struct vcuda_stream_meter *meter) {
    uint64_t work = __atomic_load_n(&meter->work_ns, __ATOMIC_RELAXED);
    return (work > meter->settled_ns ? work - meter->settled_ns : 0) + meter->unknown * meter->last_cost_ns;
}

/* ---- for all parts ---- */

/* Fewer events are recorded where nothing is limited. */
static inline uint64_t vcuda_coarse(const struct vcuda_stream_meter *meter) {
    return meter->paid_ns == VCUDA_UNLIMITED ? VCUDA_COARSE : 1;
}

/* Whether it is this thread's to record in, to ask about or to wait for. */
static inline bool vcuda_is_ours(const struct vcuda_stream_meter *meter) {
    return !meter->thread || meter->thread == &vcuda_here;
}

/* Whether something but kernels entered it since its last sample. */
static inline bool vcuda_is_held_up(const struct vcuda_stream_meter *meter) {
    return __atomic_load_n(&meter->interrupted, __ATOMIC_RELAXED) ||
           meter->interruptions != __atomic_load_n(&vcuda_interruptions, __ATOMIC_RELAXED);
}

/* What is known of launches like a sample's own; NULL where it has none, or its place is another kind's by
 * now. */
static inline struct vcuda_cost *vcuda_sample_cost(const struct vcuda_sample *sample) {
    return sample->cost && sample->cost->key == sample->cost_key ? sample->cost : NULL;
}
static inline uint64_t vcuda_sample_cost_ns(const struct vcuda_sample *sample) {
    const struct vcuda_cost *cost = vcuda_sample_cost(sample);
    return cost ? cost->ns : 0;
}

/* The part of the card, of VCUDA_WEIGHT_FULL, that a grid of less than 2^magnitude blocks fills: an SM takes
 * one at least. 0 = a graph, or unknown: all of it. */
static inline uint32_t vcuda_meter_weight(const struct vcuda_context_meter *context, uint32_t magnitude) {
    uint64_t blocks = magnitude < 32 ? (uint64_t)1 << magnitude : UINT32_MAX;
    if (magnitude == 0 || blocks >= context->sms)
        return VCUDA_WEIGHT_FULL;
    return (uint32_t)(blocks * VCUDA_WEIGHT_FULL / context->sms);
}

/* Other streams of its context that may be at work. */
static inline uint32_t vcuda_meter_others(const struct vcuda_stream_meter *meter) {
    uint32_t count = 0;
    for (const struct vcuda_stream_meter *other = meter->context->streams; other; other = other->next)
        count += other != meter && (other->outstanding || vcuda_meter_holds_more(other));
    return count;
}

/* Let go of an event. */
void vcuda_event_put(struct vcuda_context_meter *context, CUevent event);
/* gpu_ns of work: events may be recorded at that pace. */
void vcuda_meter_earn(struct vcuda_context_meter *context, const struct vcuda_stream_meter *meter,
                      uint64_t gpu_ns);
/* What was paid for the launches up to now; the rest is the stream's credit. */
uint64_t vcuda_meter_take_charge(struct vcuda_stream_meter *meter);
/* Have samples that should have been reached paid for as time goes on; what has been, for those of the
 * context. */
uint64_t vcuda_meter_pay_late(struct vcuda_share *share, struct vcuda_context_meter *context);

#endif
