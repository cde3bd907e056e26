/*
 * Metering: where events are recorded. What is made of them: meter_read.c.
 *
 * A measured launch has an event before and one behind it; the end of what a stream holds may have one too.
 * An event in a stream that has run dry tells when it was recorded, not when the work before it ended. So
 * nothing is ever recorded behind work that may have ended, but for the event before a measured launch.
 */
#include "meter.h"

#include "limiter.h"
#include "meter_parts.h"

#define SKIP 32
#define POSTPONED 8        /* times at most */
#define TIED_NS 1000000000 /* after which what pairs tell has to be told again */
#define TAIL_NS 1000000    /* of work in a stream that makes its end worth an event */

uint32_t vcuda_captures;
int32_t vcuda_graphics_captures;
uint32_t vcuda_interruptions;

/* A little chance, so that no rhythm of the program hides a kind of launch from measuring. Where launches of
 * a kind differ much, as many of them go by whatever is expected of them just now: if more went by after a
 * short one than after a long one, the mean would be too small. */
static uint64_t next_burst_ns(const struct vcuda_stream_meter *meter, const struct vcuda_cost *cost) {
    static uint32_t state = 1;
    state = state * 1664525 + 1013904223;
    uint64_t burst = VCUDA_BURST_NS / 2 + (uint64_t)(state >> 8) * VCUDA_BURST_NS / (1 << 24);
    uint64_t slow = vcuda_cost_slow(cost);
    if (meter->varies > VCUDA_VARIES && slow)
        burst = (uint64_t)((double)burst * (double)cost->ns / (double)slow);
    return vcuda_coarse(meter) * burst;
}

/* ---- events ---- */

static CUevent take_event(struct vcuda_context_meter *context) {
    CUevent event = NULL;
    if (context->events)
        return context->event[--context->events];
    return vcuda_real.cuEventCreate(&event, CU_EVENT_DEFAULT) == CUDA_SUCCESS ? event : NULL;
}

void vcuda_event_put(struct vcuda_context_meter *context, CUevent event) {
    if (event && context->events < VCUDA_EVENTS)
        context->event[context->events++] = event;
    else if (event)
        vcuda_real.cuEventDestroy_v2(event);
}

/* Events are recorded at the pace of the work; what is measured by itself is not in its stream's work. */
void vcuda_meter_earn(struct vcuda_context_meter *context, const struct vcuda_stream_meter *meter,
                      uint64_t gpu_ns) {
    uint64_t each = VCUDA_EVENT_NS * vcuda_coarse(meter);
    context->earned_ns += gpu_ns;
    uint64_t all = context->events_left + context->earned_ns / each;
    context->earned_ns %= each;
    context->events_left = all < VCUDA_EVENTS_FREE ? (uint32_t)all : VCUDA_EVENTS_FREE;
}

void vcuda_meter_begins(struct vcuda_stream_meter *meter) {
    if (!meter->outstanding && !vcuda_meter_holds_more(meter))
        __atomic_store_n(&meter->empty_ns, vcuda_clock_ns(), __ATOMIC_RELAXED);
}

/* ---- samples ---- */

/* With its events; NULL where there are none, or the stream has its share of them. */
static struct vcuda_sample *take_sample(struct vcuda_stream_meter *meter, bool pair) {
    struct vcuda_context_meter *context = meter->context;
    uint64_t work = __atomic_load_n(&meter->work_ns, __ATOMIC_RELAXED);
    uint64_t guessed = __atomic_exchange_n(&meter->guessed_ns, 0, __ATOMIC_RELAXED);
    vcuda_meter_earn(context, meter, work - meter->earned_ns + guessed);
    meter->earned_ns = work;
    /* Launches leave some for the ends of what streams hold, and many streams have one each before a few have
     * more. */
    uint32_t most = context->samples < VCUDA_SAMPLES / 4 ? VCUDA_STREAM_SAMPLES : 1;
    if (context->samples == VCUDA_SAMPLES || context->events_left < (pair ? 2 : 1) ||
        (pair && (context->samples >= VCUDA_SAMPLES / 2 || meter->outstanding >= most)))
        return NULL;
    CUevent end = take_event(context), begin = pair && end ? take_event(context) : NULL;
    if (!end || (pair && !begin)) {
        vcuda_event_put(context, end);
        return NULL;
    }
    uint8_t index = 0;
    while (index < VCUDA_SAMPLES - 1 && context->sample[index].state != VCUDA_SAMPLE_FREE)
        index++;
    struct vcuda_sample *sample = &context->sample[index];
    uint32_t interruptions = __atomic_load_n(&vcuda_interruptions, __ATOMIC_RELAXED);
    context->events_left -= pair ? 2 : 1;
    bool held_up = __atomic_exchange_n(&meter->interrupted, false, __ATOMIC_RELAXED) ||
                   meter->interruptions != interruptions;
    meter->held_up = held_up || (meter->outstanding && meter->held_up);
    bool goes_on = meter->proven_ns && vcuda_clock_ns() - meter->proven_ns < VCUDA_CHAIN_NS;
    *sample = (struct vcuda_sample){.state = VCUDA_SAMPLE_OPEN,
                                    .meter = meter,
                                    .begin = begin,
                                    .end = end,
                                    .clean = !meter->held_up,
                                    .chain_ns = meter->outstanding ? 0 : meter->last_end_ns,
                                    .continuous = (meter->outstanding > 0 || goes_on) && !held_up};
    meter->interruptions = interruptions;
    meter->outstanding++;
    meter->sequence++;
    context->order[context->samples++] = index;
    return sample;
}

static void finish(struct vcuda_sample *sample, bool good) {
    __atomic_store_n(&sample->state, good ? VCUDA_SAMPLE_PENDING : VCUDA_SAMPLE_DEAD, __ATOMIC_RELEASE);
}

/* What all streams of a context are expected to hold, if they ran one after the other. */
static uint64_t held(const struct vcuda_context_meter *context) {
    uint64_t sum = 0;
    for (const struct vcuda_stream_meter *meter = context->streams; meter; meter = meter->next)
        sum += vcuda_meter_pending(meter);
    for (uint32_t i = 0; i < context->samples; i++) {
        const struct vcuda_sample *sample = &context->sample[context->order[i]];
        sum +=
            sample->expected_ns + (sample->cost ? __atomic_load_n(&sample->cost->ns, __ATOMIC_RELAXED) : 0);
    }
    return sum;
}

/* Everything launched so far goes into the sample. */
static void hand_over(struct vcuda_stream_meter *meter, struct vcuda_sample *sample) {
    uint64_t work = __atomic_load_n(&meter->work_ns, __ATOMIC_RELAXED);
    sample->expected_ns = work > meter->settled_ns ? work - meter->settled_ns : 0;
    sample->unknown = meter->unknown;
    sample->charged_ns = vcuda_meter_take_charge(meter);
    sample->ahead_ns = held(meter->context);
    meter->settled_ns = work;
    meter->unknown = 0;
}

/* Take back a sample of which nothing came; racing threads may make it a little wrong. */
static void hand_back(struct vcuda_stream_meter *meter, struct vcuda_sample *sample) {
    __atomic_fetch_sub(&meter->settled_ns, sample->expected_ns, __ATOMIC_RELAXED);
    __atomic_fetch_add(&meter->unknown, sample->unknown, __ATOMIC_RELAXED);
    __atomic_fetch_add(&meter->charged_ns, sample->charged_ns, __ATOMIC_RELAXED);
    sample->charged_ns = 0;
    finish(sample, false);
}

/* Other streams at work that keep a launch of this kind from the card: what is measured of it holds their
 * time. */
static uint32_t beside(const struct vcuda_stream_meter *meter, uint64_t kind) {
    uint32_t others = vcuda_meter_others(meter);
    uint64_t weight = vcuda_meter_weight(meter->context, kind & VCUDA_MAGNITUDE);
    if (!others || (others + 1) * weight <= VCUDA_WEIGHT_FULL)
        return 0;
    meter->context->crowded_ns = vcuda_clock_ns();
    return others;
}

/* A launch of a limited stream is rather measured when others are at rest: when the next one was paid for,
 * and has waited. */
static bool postpone(struct vcuda_stream_meter *meter, const struct vcuda_cost *cost) {
    uint64_t work = __atomic_load_n(&meter->work_ns, __ATOMIC_RELAXED);
    uint64_t paid = __atomic_load_n(&meter->paid_ns, __ATOMIC_RELAXED);
    if (!cost->ns || paid == VCUDA_UNLIMITED || paid <= work || meter->postponed == POSTPONED ||
        !beside(meter, cost->key)) {
        meter->postponed = 0;
        return false;
    }
    meter->postponed++;
    __atomic_store_n(&meter->measure_ns, paid, __ATOMIC_RELAXED);
    vcuda_meter_set_due(meter);
    return true;
}

static bool open_sample(struct vcuda_share *share, struct vcuda_ticket *ticket) {
    struct vcuda_stream_meter *meter = ticket->meter;
    vcuda_meter_harvest(share, meter->context);
    if (postpone(meter, ticket->cost))
        return false;
    struct vcuda_sample *sample = take_sample(meter, true);
    uint64_t work = __atomic_load_n(&meter->work_ns, __ATOMIC_RELAXED);
    __atomic_store_n(&meter->measure_ns, work + next_burst_ns(meter, ticket->cost), __ATOMIC_RELAXED);
    if (!sample) {
        meter->skip = SKIP;
        vcuda_meter_set_due(meter);
        return false;
    }
    if (meter->force) {
        meter->force--;
        __atomic_store_n(&meter->measure_ns, 0, __ATOMIC_RELAXED);
    }
    vcuda_meter_set_due(meter);
    sample->cost = ticket->cost;
    sample->cost_key = ticket->cost->key;
    sample->beside = beside(meter, ticket->cost->key);
    hand_over(meter, sample);
    sample->busy = vcuda_real.cuStreamQuery(meter->stream) == CUDA_ERROR_NOT_READY;
    ticket->sample = sample;
    return true;
}

void vcuda_meter_open(struct vcuda_share *share, struct vcuda_ticket *ticket) {
    struct vcuda_stream_meter *meter = ticket->meter;
    struct vcuda_visit visit;
    CUcontext current = NULL;
    if (meter->card < 0 || !vcuda_meter_try())
        return;
    bool own = (uintptr_t)meter->stream <= 2, here = true;
    if (own) {
        here = vcuda_real.cuCtxGetCurrent(&current) == CUDA_SUCCESS && current == meter->context->context;
        if (!here) /* the thread's context has changed unseen: its default streams are others now */
            vcuda_meter_elsewhere();
    }
    if (!here || !vcuda_visit(&visit, meter->context->context)) {
        vcuda_lock_give(&vcuda_meter_lock);
        return;
    }
    bool open =
        vcuda_meter_captures(meter->stream, false) == VCUDA_CAPTURES_NOT && open_sample(share, ticket);
    vcuda_lock_give(&vcuda_meter_lock);
    if (open) { /* outside the lock: a full stream makes the call wait, as it would the launch */
        ticket->sample->opened_ns = vcuda_clock_ns();
        if (vcuda_real.cuEventRecord(ticket->sample->begin, meter->stream) != CUDA_SUCCESS) {
            hand_back(meter, ticket->sample);
            ticket->sample = NULL;
            open = false;
        } else {
            ticket->sample->begun_ns = (ticket->sample->opened_ns + vcuda_clock_ns()) / 2;
        }
    }
    vcuda_leave(&visit);
    if (open)
        ticket->sample->launched_ns = vcuda_clock_ns();
}

/* When it should be reached. */
static void expect(struct vcuda_sample *sample) {
    struct vcuda_stream_meter *meter = sample->meter;
    const struct vcuda_share *share = vcuda_share();
    uint64_t now = vcuda_clock_ns();
    if (!share || meter->card < 0 || meter->paid_ns == VCUDA_UNLIMITED)
        return;
    uint64_t planned = vcuda_limiter_end_of(meter->card, meter);
    uint64_t alone = now + vcuda_limiter_measured_ns(share, meter->card, sample->ahead_ns);
    sample->planned_ns = planned > now ? planned : 0;
    sample->until_ns = planned > alone ? planned : alone;
    sample->moved_ns = meter->moved_ns;
}

void vcuda_meter_close(struct vcuda_ticket *ticket, CUresult result) {
    struct vcuda_sample *sample = ticket->sample;
    struct vcuda_stream_meter *meter = ticket->meter;
    struct vcuda_visit visit;
    uint64_t now = vcuda_clock_ns();
    sample->slack_ns = now - sample->opened_ns;
    sample->delay_ns = (sample->launched_ns + now) / 2 - sample->begun_ns;
    expect(sample);
    if (result != CUDA_SUCCESS || !vcuda_visit(&visit, ticket->meter->context->context)) {
        hand_back(meter, sample);
        return;
    }
    finish(sample, vcuda_real.cuEventRecord(sample->end, meter->stream) == CUDA_SUCCESS);
    vcuda_leave(&visit);
}

/* ---- the ends of what streams hold ---- */

/* Whether the end of what a stream holds is worth an event. Where launches of a kind differ much, what they
 * are expected to take says nothing of that. */
static bool is_much(const struct vcuda_stream_meter *meter) {
    return meter->outstanding || meter->varies > VCUDA_VARIES ||
           vcuda_meter_pending(meter) >= TAIL_NS * vcuda_coarse(meter);
}

/* Whether there are events for a pair too, before and behind a launch in an empty stream, or there was one
 * lately: it alone tells how late the end of a wait is noticed, and ties the GPU's clock to the host's. */
static bool leaves_a_pair(const struct vcuda_stream_meter *meter) {
    return meter->outstanding || meter->context->events_left > 2 ||
           vcuda_clock_ns() - meter->context->tied_ns < TIED_NS;
}

struct vcuda_sample *vcuda_meter_tail(struct vcuda_stream_meter *meter) {
    if (!meter->key || !vcuda_meter_holds_more(meter) || !vcuda_is_ours(meter) || meter->card < 0 ||
        !is_much(meter) || !leaves_a_pair(meter) ||
        vcuda_meter_captures(meter->stream, false) != VCUDA_CAPTURES_NOT ||
        (!meter->outstanding && vcuda_real.cuStreamQuery(meter->stream) != CUDA_ERROR_NOT_READY) ||
        !vcuda_lock_try(&meter->recording))
        return NULL;
    struct vcuda_sample *sample = take_sample(meter, false);
    if (sample) {
        hand_over(meter, sample);
        sample->busy = true;
        sample->opened_ns = vcuda_clock_ns();
        expect(sample);
    } else {
        vcuda_lock_give(&meter->recording);
    }
    return sample;
}

void vcuda_meter_record_tail(struct vcuda_sample *sample) {
    struct vcuda_stream_meter *meter = sample->meter;
    CUresult result = vcuda_real.cuEventRecord(sample->end, meter->stream);
    vcuda_lock_give(&meter->recording);
    finish(sample, result == CUDA_SUCCESS);
}
