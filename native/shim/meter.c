/*
 * Metering: where events are recorded and what is made of them.
 *
 * A measured launch has an event before and one behind it. What ran in its stream since the measured launch
 * before is known exactly where the stream neither ran dry between the two nor was held up by something but
 * kernels: it did not run dry if the earlier events had not been reached when the later ones were recorded.
 * Else it is the sum of the expected costs, at most the time that passed. Intervals of a context's streams
 * are merged on the GPU's clock, so that overlapping work counts once.
 *
 * An event in a stream that has run dry tells when it was recorded, not when the work before it ended. So
 * nothing is ever recorded behind work that may have ended, and what passes on the host between the first
 * event and the launch is taken off where the stream may have been dry.
 */
#include "meter.h"

#include <stdlib.h>
#include <time.h>

#include "limiter.h"
#include "meter_parts.h"

#define ORIGIN_NS ((uint64_t)1 << 50) /* of a context's clock: there is a before */
#define REBASE_NS                                                                                            \
    4000000000          /* cuEventElapsedTime answers a float: within 4 s it is good to half a microsecond */
#define DRIFT_NS 200000 /* by which the two clocks may part in that time */
#define LONG_WAIT_NS 200000 /* how much longer than expected a wait must be to be suspicious */
#define SKIP 32

uint32_t vcuda_captures;
int32_t vcuda_graphics_captures;
uint32_t vcuda_interruptions;

/* The shortest half of opened-to-launched seen: how late the work usually starts after its event. */
static uint64_t usual_delay_ns = 1000000;

static uint64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* A little chance, so that no rhythm of the program hides a kind of launch from measuring. */
static uint64_t next_burst_ns(void) {
    static uint32_t state = 1;
    state = state * 1664525 + 1013904223;
    return VCUDA_BURST_NS / 2 + (uint64_t)(state >> 8) * VCUDA_BURST_NS / (1 << 24);
}

/* ---- events ---- */

static CUevent take_event(struct vcuda_context_meter *context) {
    CUevent event = NULL;
    if (context->events)
        return context->event[--context->events];
    return vcuda_real.cuEventCreate(&event, CU_EVENT_DEFAULT) == CUDA_SUCCESS ? event : NULL;
}

static void put_event(struct vcuda_context_meter *context, CUevent event) {
    if (event && context->events < VCUDA_EVENTS)
        context->event[context->events++] = event;
    else if (event)
        vcuda_real.cuEventDestroy_v2(event);
}

static bool elapsed(CUevent from, CUevent to, int64_t *ns) {
    float ms = 0;
    CUresult result = vcuda_real.cuEventElapsedTime_v2(&ms, from, to);
    if (result == CUDA_ERROR_NOT_FOUND)
        result = vcuda_real.cuEventElapsedTime(&ms, from, to);
    *ns = (int64_t)((double)ms * 1e6);
    return result == CUDA_SUCCESS;
}

/* ---- what measurements say ---- */

void vcuda_meter_account(struct vcuda_share *share, int card, uint64_t gpu_ns) {
    if (card < 0 || !gpu_ns)
        return;
    __atomic_fetch_add(&vcuda_own_slot_card(share, card)->gpu_ns, gpu_ns, __ATOMIC_RELAXED);
    vcuda_limiter_used(share, card, gpu_ns);
}

/*
 * How long a launch ran whose stream may have been dry: its events' distance, but for what the host took from
 * the one to the launch. That is usually the same; where it was much more, the launch's known cost decides.
 */
static uint64_t without_delay(const struct vcuda_sample *sample, uint64_t own) {
    uint64_t known = sample->cost && sample->cost->key == sample->cost_key ? sample->cost->ns : 0;
    if (sample->slack_ns / 2 < usual_delay_ns)
        usual_delay_ns = sample->slack_ns / 2;
    uint64_t most = own > usual_delay_ns ? own - usual_delay_ns : 1;
    uint64_t doubt = sample->slack_ns - 2 * usual_delay_ns;
    uint64_t least = most > doubt ? most - doubt : 1;
    if (known == 0)
        return least;
    return known < least ? least : known > most ? most : known;
}

static void learn(const struct vcuda_sample *sample, uint64_t ns) {
    struct vcuda_cost *cost = sample->cost;
    if (!cost || cost->key != sample->cost_key)
        return;
    uint64_t now = ns ? ns : 1;
    if (cost->ns)
        now = (uint64_t)((int64_t)cost->ns + ((int64_t)now - (int64_t)cost->ns) / 4);
    __atomic_store_n(&cost->ns, now ? now : 1, __ATOMIC_RELAXED);
}

/* The host's clock now is behind the GPU's end of work by what it took to notice: the least of that is kept.
 */
static void set_clocks(struct vcuda_context_meter *context, uint64_t end_ns) {
    int64_t lag = (int64_t)(clock_ns() - end_ns);
    if (context->lag_ns == 0 || lag < context->lag_ns)
        context->lag_ns = lag;
}

static void digest(struct vcuda_share *share, struct vcuda_context_meter *context,
                   struct vcuda_sample *sample) {
    struct vcuda_stream_meter *meter = sample->meter;
    int64_t since_base = 0, length = 0;
    if (context->base && !elapsed(context->base, sample->end, &since_base))
        return;
    if (sample->begin && !elapsed(sample->begin, sample->end, &length))
        return;
    uint64_t own = length > 0 ? (uint64_t)length : 0;
    uint64_t end = (context->base ? context->base_ns : ORIGIN_NS) + (uint64_t)since_base;
    uint64_t from, known_end = meter->last_end_ns ? meter->last_end_ns : end;
    if (sample->continuous && meter->last_end_ns) {
        from = known_end < end - own ? known_end : end - own;
        if (sample->begin)
            learn(sample, own);
    } else {
        if (sample->begin) {
            own = sample->busy ? own : without_delay(sample, own);
            learn(sample, own);
        }
        uint64_t before = sample->expected_ns + sample->unknown * (sample->cost ? own : meter->last_cost_ns);
        from = end - own - before;
        if (from < meter->last_end_ns)
            from = meter->last_end_ns < end - own ? meter->last_end_ns : end - own;
    }
    if (sample->begin)
        meter->last_cost_ns = own < UINT32_MAX ? (uint32_t)own : UINT32_MAX;
    if (end > meter->last_end_ns)
        meter->last_end_ns = end;
    set_clocks(context, end);
    vcuda_meter_account(share, context->card, vcuda_busy_add(&context->busy, from, end));
    if (!context->base || end > context->base_ns + REBASE_NS) { /* the clock goes on from here */
        CUevent old = context->base;
        context->base = sample->end;
        context->base_ns = end;
        context->lag_ns += DRIFT_NS;
        sample->end = old;
    }
}

static void free_sample(struct vcuda_context_meter *context, struct vcuda_sample *sample) {
    struct vcuda_stream_meter *meter = sample->meter;
    put_event(context, sample->begin);
    put_event(context, sample->end);
    sample->state = VCUDA_SAMPLE_FREE;
    if (--meter->outstanding == 0 && !meter->key)
        vcuda_stream_free(meter);
}

/* Read what has been reached; asks, never waits. In a stream, events are reached in order. Context current.
 */
void vcuda_meter_harvest(struct vcuda_share *share, struct vcuda_context_meter *context) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < context->samples; i++)
        context->sample[context->order[i]].meter->blocked = false;
    for (uint32_t i = 0; i < context->samples; i++) {
        struct vcuda_sample *sample = &context->sample[context->order[i]];
        uint32_t state = __atomic_load_n(&sample->state, __ATOMIC_ACQUIRE); /* pairs with close's store */
        if (state == VCUDA_SAMPLE_PENDING && !sample->meter->blocked) {
            CUresult result = vcuda_real.cuEventQuery(sample->end);
            if (result == CUDA_SUCCESS)
                digest(share, context, sample);
            if (result != CUDA_ERROR_NOT_READY)
                state = VCUDA_SAMPLE_DEAD;
        }
        if (state == VCUDA_SAMPLE_DEAD) {
            free_sample(context, sample);
        } else {
            sample->meter->blocked = true;
            context->order[kept++] = context->order[i];
        }
    }
    context->samples = kept;
}

/* ---- samples ---- */

/* With its events; NULL where there are none, or the stream has its share of them. */
static struct vcuda_sample *take_sample(struct vcuda_stream_meter *meter, bool pair) {
    struct vcuda_context_meter *context = meter->context;
    /* Launches leave some for the ends of what streams hold, and many streams have one each before a few have
     * more. */
    uint32_t most = context->samples < VCUDA_SAMPLES / 4 ? VCUDA_STREAM_SAMPLES : 1;
    if (context->samples == VCUDA_SAMPLES ||
        (pair && (context->samples >= VCUDA_SAMPLES / 2 || meter->outstanding >= most)))
        return NULL;
    CUevent end = take_event(context), begin = pair && end ? take_event(context) : NULL;
    if (!end || (pair && !begin)) {
        put_event(context, end);
        return NULL;
    }
    uint8_t index = 0;
    while (index < VCUDA_SAMPLES - 1 && context->sample[index].state != VCUDA_SAMPLE_FREE)
        index++;
    struct vcuda_sample *sample = &context->sample[index];
    uint32_t interruptions = __atomic_load_n(&vcuda_interruptions, __ATOMIC_RELAXED);
    bool held_up = __atomic_exchange_n(&meter->interrupted, false, __ATOMIC_RELAXED) ||
                   meter->interruptions != interruptions;
    *sample = (struct vcuda_sample){.state = VCUDA_SAMPLE_OPEN,
                                    .meter = meter,
                                    .begin = begin,
                                    .end = end,
                                    .continuous = meter->outstanding > 0 && !held_up};
    meter->interruptions = interruptions;
    meter->outstanding++;
    context->order[context->samples++] = index;
    return sample;
}

static void finish(struct vcuda_sample *sample, bool good) {
    __atomic_store_n(&sample->state, good ? VCUDA_SAMPLE_PENDING : VCUDA_SAMPLE_DEAD, __ATOMIC_RELEASE);
}

/* Everything launched so far goes into the sample. */
static void hand_over(struct vcuda_stream_meter *meter, struct vcuda_sample *sample) {
    uint64_t work = __atomic_load_n(&meter->work_ns, __ATOMIC_RELAXED);
    sample->expected_ns = work > meter->settled_ns ? work - meter->settled_ns : 0;
    sample->unknown = meter->unknown;
    meter->settled_ns = work;
    meter->unknown = 0;
}

/* Take back a sample of which nothing came; racing threads may make it a little wrong. */
static void hand_back(struct vcuda_stream_meter *meter, struct vcuda_sample *sample) {
    __atomic_fetch_sub(&meter->settled_ns, sample->expected_ns, __ATOMIC_RELAXED);
    __atomic_fetch_add(&meter->unknown, sample->unknown, __ATOMIC_RELAXED);
    finish(sample, false);
}

static bool open_sample(struct vcuda_share *share, struct vcuda_ticket *ticket) {
    struct vcuda_stream_meter *meter = ticket->meter;
    vcuda_meter_harvest(share, meter->context);
    struct vcuda_sample *sample = take_sample(meter, true);
    uint64_t work = __atomic_load_n(&meter->work_ns, __ATOMIC_RELAXED);
    __atomic_store_n(&meter->due_ns, work + next_burst_ns(), __ATOMIC_RELAXED);
    if (!sample) {
        meter->skip = SKIP;
        return false;
    }
    if (meter->force) {
        meter->force--;
        __atomic_store_n(&meter->due_ns, 0, __ATOMIC_RELAXED);
    }
    hand_over(meter, sample);
    sample->busy = vcuda_real.cuStreamQuery(meter->stream) == CUDA_ERROR_NOT_READY;
    sample->cost = ticket->cost;
    sample->cost_key = ticket->cost->key;
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
        ticket->sample->opened_ns = clock_ns();
        if (vcuda_real.cuEventRecord(ticket->sample->begin, meter->stream) != CUDA_SUCCESS) {
            hand_back(meter, ticket->sample);
            ticket->sample = NULL;
        }
    }
    vcuda_leave(&visit);
}

void vcuda_meter_close(struct vcuda_ticket *ticket, CUresult result) {
    struct vcuda_sample *sample = ticket->sample;
    struct vcuda_visit visit;
    sample->slack_ns = clock_ns() - sample->opened_ns;
    if (result != CUDA_SUCCESS || !vcuda_visit(&visit, ticket->meter->context->context)) {
        hand_back(ticket->meter, sample);
        return;
    }
    finish(sample, vcuda_real.cuEventRecord(sample->end, ticket->meter->stream) == CUDA_SUCCESS);
    vcuda_leave(&visit);
}

/* ---- waits ---- */

void vcuda_meter_settle(struct vcuda_share *share, struct vcuda_stream_meter *meter) {
    struct vcuda_context_meter *context = meter->context;
    uint64_t pending = vcuda_meter_pending(meter);
    meter->settled_ns = __atomic_load_n(&meter->work_ns, __ATOMIC_RELAXED);
    meter->unknown = 0;
    if (!pending)
        return;
    /* When it ran is known only so far: it has ended by now, on the GPU's clock, and began after what came
     * before. */
    uint64_t now = context->lag_ns ? clock_ns() - (uint64_t)context->lag_ns : ORIGIN_NS;
    uint64_t from = now - pending > meter->last_end_ns ? now - pending : meter->last_end_ns;
    meter->last_end_ns = from + pending;
    vcuda_meter_account(share, context->card, vcuda_busy_add(&context->busy, from, from + pending));
}

/* Whether it is this thread's to record in, to ask about or to wait for. */
static bool is_ours(const struct vcuda_stream_meter *meter) {
    return !meter->thread || meter->thread == &vcuda_here;
}

struct vcuda_sample *vcuda_meter_tail(struct vcuda_stream_meter *meter) {
    if (!meter->key || !meter->outstanding || !vcuda_meter_holds_more(meter) || !is_ours(meter) ||
        vcuda_meter_captures(meter->stream, false) != VCUDA_CAPTURES_NOT ||
        !vcuda_lock_try(&meter->recording))
        return NULL;
    struct vcuda_sample *sample = take_sample(meter, false);
    if (sample)
        hand_over(meter, sample);
    else
        vcuda_lock_give(&meter->recording);
    return sample;
}

void vcuda_meter_record_tail(struct vcuda_sample *sample) {
    struct vcuda_stream_meter *meter = sample->meter;
    CUresult result = vcuda_real.cuEventRecord(sample->end, meter->stream);
    vcuda_lock_give(&meter->recording);
    finish(sample, result == CUDA_SUCCESS);
}

static bool is_waited_for(const struct vcuda_stream_meter *meter, const struct vcuda_wait *wait) {
    return !wait->stream || (meter->stream == wait->stream && is_ours(meter));
}

/* The context that a wait is about, entered; NULL where nothing of it was ever metered. Lock held if not
 * NULL. */
static struct vcuda_context_meter *enter(struct vcuda_share *share, CUcontext context,
                                         struct vcuda_visit *visit) {
    if (!context)
        vcuda_real.cuCtxGetCurrent(&context);
    if (!context || !vcuda_meter_try())
        return NULL;
    if (vcuda_visit(visit, context)) {
        struct vcuda_context_meter *meter = vcuda_context_meter(share, context, false);
        if (meter)
            return meter;
        vcuda_leave(visit);
    }
    vcuda_lock_give(&vcuda_meter_lock);
    return NULL;
}

static CUcontext context_of(const struct vcuda_wait *wait) {
    struct vcuda_stream_meter *meter = vcuda_meter_known(wait->stream);
    return wait->context ? wait->context : meter ? meter->context->context : NULL;
}

void vcuda_meter_wait(struct vcuda_share *share, struct vcuda_wait *wait) {
    struct vcuda_sample *tails[VCUDA_SAMPLES];
    struct vcuda_visit visit;
    int count = 0;
    struct vcuda_context_meter *context = enter(share, context_of(wait), &visit);
    if (!context)
        return;
    vcuda_meter_harvest(share, context);
    for (struct vcuda_stream_meter *meter = context->streams; meter && count < VCUDA_SAMPLES;
         meter = meter->next)
        if (is_waited_for(meter, wait)) {
            wait->active |= meter->outstanding > 0 || vcuda_meter_holds_more(meter);
            wait->exact |= meter->outstanding > 0;
            if ((tails[count] = vcuda_meter_tail(meter)) != NULL)
                count++;
        }
    vcuda_lock_give(&vcuda_meter_lock);
    for (int i = 0; i < count; i++)
        vcuda_meter_record_tail(tails[i]);
    vcuda_leave(&visit);
    wait->since_ns = wait->active ? clock_ns() : 0;
}

void vcuda_meter_waited(struct vcuda_share *share, const struct vcuda_wait *wait, CUresult result) {
    struct vcuda_visit visit;
    if (!wait->active || result != CUDA_SUCCESS)
        return;
    uint64_t waited = clock_ns() - wait->since_ns;
    struct vcuda_context_meter *context = enter(share, context_of(wait), &visit);
    if (!context)
        return;
    vcuda_meter_harvest(share, context);
    for (struct vcuda_stream_meter *meter = context->streams; meter; meter = meter->next) {
        if (!is_waited_for(meter, wait))
            continue;
        uint64_t pending = vcuda_meter_pending(meter);
        if (pending && !wait->exact && waited > 2 * pending + LONG_WAIT_NS) {
            meter->force = 4;
            __atomic_store_n(&meter->due_ns, 0, __ATOMIC_RELAXED);
        }
        vcuda_meter_settle(share, meter);
    }
    vcuda_lock_give(&vcuda_meter_lock);
    vcuda_leave(&visit);
}

void vcuda_meter_idle(struct vcuda_share *share, CUstream stream, bool ptsz) {
    struct vcuda_wait wait = {.stream = vcuda_stream_of(stream, ptsz), .active = true, .exact = true};
    vcuda_meter_waited(share, &wait, CUDA_SUCCESS);
}

void vcuda_meter_look(struct vcuda_share *share, bool all) {
    struct vcuda_visit visit;
    struct vcuda_context_meter *context = enter(share, NULL, &visit);
    if (!context)
        return;
    vcuda_meter_harvest(share, context);
    for (struct vcuda_stream_meter *meter = all ? context->streams : NULL; meter; meter = meter->next)
        if (meter->key && vcuda_meter_holds_more(meter) && is_ours(meter) &&
            vcuda_meter_captures(meter->stream, false) == VCUDA_CAPTURES_NOT &&
            vcuda_real.cuStreamQuery(meter->stream) == CUDA_SUCCESS)
            vcuda_meter_settle(share, meter);
    vcuda_lock_give(&vcuda_meter_lock);
    vcuda_leave(&visit);
}
