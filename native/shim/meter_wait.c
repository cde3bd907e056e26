/*
 * Waits: before one, the end of what is queued is marked, if that can still be told; after it, what was
 * measured is read and the rest has ended. How long a thread waited tells how long its work ran.
 */
#include "limiter.h"
#include "meter_parts.h"

#define LONG_WAIT_NS 200000 /* how much longer than expected a wait must be to be suspicious */
#define GAP_NS 20000        /* between two waits, a host's work that says nothing of the GPU's */
#define PATIENCE_NS                                                                                          \
    250000000 /* for so long nothing else is launched that is as unknown as what is being measured */
#define BLOCKED_NS 10000  /* a wait so short was none */
#define STREAMS_ASKED 16  /* at most, whether they are empty, by a launch that waits */
#define NOTICE_NS 1000000 /* longer than it takes to notice the end of a wait, but for accidents */

static bool is_waited_for(const struct vcuda_stream_meter *meter, const struct vcuda_wait *wait) {
    return !wait->stream || (meter->stream == wait->stream && vcuda_is_ours(meter));
}

/* The context that a wait is about, entered; NULL where nothing of it was ever metered. Lock held if not
 * NULL. */
static struct vcuda_context_meter *enter(struct vcuda_share *share, CUcontext context,
                                         struct vcuda_visit *visit) {
    if (!context)
        vcuda_real.cuCtxGetCurrent(&context);
    if (!context)
        return NULL;
    vcuda_lock_take(&vcuda_meter_lock); /* nobody waits for the GPU with it held, and who waits has time */
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
            wait->one |= meter->outstanding == 1 && !vcuda_meter_holds_more(meter);
            if ((tails[count] = vcuda_meter_tail(meter)) != NULL)
                count++;
        }
    vcuda_lock_give(&vcuda_meter_lock);
    for (int i = 0; i < count; i++)
        vcuda_meter_record_tail(tails[i]);
    vcuda_leave(&visit);
    wait->since_ns = wait->active ? vcuda_clock_ns() : 0;
}

/* The end of a wait for one launch that was measured was noticed so late. */
static void learn_notice(struct vcuda_context_meter *context, uint64_t took_ns) {
    int64_t off = (int64_t)took_ns - context->notice_ns;
    if (off > NOTICE_NS || off < -NOTICE_NS)
        return;
    context->notice_ns += off / 4;
    context->spread_ns += ((off < 0 ? -off : off) - context->spread_ns) / 4;
}

/* A thread that waited for one stream's kernels did so as long as they ran, but for what it usually takes to
 * notice their end. They began about between when the stream was last empty and the wait. */
static struct vcuda_guess guess_of(const struct vcuda_context_meter *context,
                                   const struct vcuda_stream_meter *meter, const struct vcuda_wait *wait,
                                   uint64_t waited_ns) {
    uint64_t gap = wait->since_ns - meter->empty_ns;
    int64_t doubt = 2 * context->spread_ns + 1000;
    int64_t length = (int64_t)(waited_ns + gap / 2) - context->notice_ns;
    if (!meter->empty_ns || gap > waited_ns + GAP_NS)
        return VCUDA_NOTHING;
    length = length > 0 ? length : 1;
    return (struct vcuda_guess){wait->since_ns - gap / 2, (uint64_t)length,
                                (uint64_t)(doubt < length ? doubt : length)};
}

void vcuda_meter_waited(struct vcuda_share *share, const struct vcuda_wait *wait, CUresult result) {
    struct vcuda_visit visit;
    if (!wait->active || result != CUDA_SUCCESS)
        return;
    uint64_t waited = vcuda_clock_ns() - wait->since_ns;
    struct vcuda_context_meter *context = enter(share, context_of(wait), &visit);
    if (!context)
        return;
    vcuda_meter_harvest(share, context);
    int waiting = 0;
    for (struct vcuda_stream_meter *meter = context->streams; meter; meter = meter->next)
        if (is_waited_for(meter, wait)) {
            waiting += vcuda_meter_holds_more(meter);
            if (wait->one && meter->alone_ns && !vcuda_meter_holds_more(meter))
                learn_notice(context, wait->since_ns + waited - meter->alone_from_ns - meter->alone_ns);
        }
    for (struct vcuda_stream_meter *meter = context->streams; meter; meter = meter->next) {
        if (!is_waited_for(meter, wait))
            continue;
        uint64_t pending = vcuda_limiter_measured_ns(share, meter->card, vcuda_meter_pending(meter));
        if (pending && !wait->exact && waited > 2 * pending + LONG_WAIT_NS) {
            meter->force = 4;
            __atomic_store_n(&meter->measure_ns, 0, __ATOMIC_RELAXED);
            __atomic_store_n(&meter->due_ns, 0, __ATOMIC_RELAXED);
        }
        bool alone = waiting == 1 && !wait->exact && wait->since_ns &&
                     !__atomic_load_n(&meter->interrupted, __ATOMIC_RELAXED);
        vcuda_meter_settle(share, meter, alone ? guess_of(context, meter, wait, waited) : VCUDA_NOTHING);
        meter->alone_ns = 0;
    }
    vcuda_lock_give(&vcuda_meter_lock);
    vcuda_leave(&visit);
}

void vcuda_meter_idle(struct vcuda_share *share, CUstream stream, bool ptsz) {
    struct vcuda_wait wait = {.stream = vcuda_stream_of(stream, ptsz), .active = true, .exact = true};
    vcuda_meter_waited(share, &wait, CUDA_SUCCESS);
}

/* Whether what was launched in the stream and is in no sample has ended. */
static bool has_run_dry(const struct vcuda_stream_meter *meter) {
    return meter->key && vcuda_meter_holds_more(meter) && vcuda_is_ours(meter) &&
           vcuda_meter_captures(meter->stream, false) == VCUDA_CAPTURES_NOT &&
           vcuda_real.cuStreamQuery(meter->stream) == CUDA_SUCCESS;
}

void vcuda_meter_look(struct vcuda_share *share, bool all) {
    struct vcuda_visit visit;
    struct vcuda_context_meter *context = enter(share, NULL, &visit);
    if (!context)
        return;
    vcuda_meter_harvest(share, context);
    for (struct vcuda_stream_meter *meter = all ? context->streams : NULL; meter; meter = meter->next)
        if (has_run_dry(meter))
            vcuda_meter_settle(share, meter,
                               (struct vcuda_guess){.from_ns = meter->outstanding ? 0 : meter->empty_ns});
    vcuda_lock_give(&vcuda_meter_lock);
    vcuda_leave(&visit);
}

void vcuda_meter_watch(struct vcuda_share *share, struct vcuda_watch *watch) {
    struct vcuda_visit visit;
    *watch = (struct vcuda_watch){0};
    struct vcuda_context_meter *context = enter(share, NULL, &visit);
    if (!context)
        return;
    int working = 0;
    for (struct vcuda_stream_meter *meter = context->streams; meter; meter = meter->next)
        working += meter->outstanding > 0 || vcuda_meter_holds_more(meter);
    watch->sole = working == 1;
    for (struct vcuda_stream_meter *meter = context->streams; meter && watch->count < VCUDA_WATCHED;
         meter = meter->next)
        if (meter->key && vcuda_meter_holds_more(meter) && vcuda_is_ours(meter) && !vcuda_is_held_up(meter) &&
            meter->varies > VCUDA_VARIES) {
            watch->stream[watch->count].meter = meter;
            watch->stream[watch->count].work_ns = __atomic_load_n(&meter->work_ns, __ATOMIC_RELAXED);
            watch->stream[watch->count].unknown = meter->unknown;
            watch->stream[watch->count++].sequence = meter->sequence;
        }
    vcuda_lock_give(&vcuda_meter_lock);
    vcuda_leave(&visit);
    watch->since_ns = watch->count ? vcuda_clock_ns() : 0;
}

void vcuda_meter_watched(struct vcuda_share *share, const struct vcuda_watch *watch) {
    struct vcuda_visit visit;
    uint64_t now = vcuda_clock_ns();
    if (!watch->count || now - watch->since_ns < BLOCKED_NS)
        return;
    struct vcuda_context_meter *context = enter(share, NULL, &visit);
    if (!context)
        return;
    uint64_t waited = now - watch->since_ns,
             notice = context->notice_ns > 0 ? (uint64_t)context->notice_ns : 0;
    for (struct vcuda_stream_meter *meter = context->streams; meter; meter = meter->next)
        for (int i = 0; i < watch->count; i++)
            if (meter == watch->stream[i].meter && meter->key &&
                meter->sequence == watch->stream[i].sequence && meter->unknown == watch->stream[i].unknown &&
                __atomic_load_n(&meter->work_ns, __ATOMIC_RELAXED) == watch->stream[i].work_ns &&
                !vcuda_is_held_up(meter) &&
                vcuda_meter_captures(meter->stream, false) == VCUDA_CAPTURES_NOT) {
                if (vcuda_real.cuStreamQuery(meter->stream) == CUDA_ERROR_NOT_READY)
                    vcuda_meter_prove(share, meter, watch->since_ns, now, false);
                else if (watch->sole && waited > 3 * notice) /* whose end was noticed just now? */
                    vcuda_meter_prove(share, meter, watch->since_ns, now - (uint64_t)context->notice_ns,
                                      true);
            }
    vcuda_lock_give(&vcuda_meter_lock);
    vcuda_leave(&visit);
}

/* What ran in streams that are empty now did so since they were last seen empty: as early as could be, where
 * other streams ran too. */
static void settle_dry(struct vcuda_share *share, struct vcuda_context_meter *context) {
    int asked = 0;
    bool any = false;
    for (struct vcuda_stream_meter *meter = context->streams; meter; meter = meter->next) {
        if (meter->outstanding) {
            any = true;
            continue;
        }
        if (vcuda_meter_holds_more(meter) && asked++ < STREAMS_ASKED && has_run_dry(meter))
            vcuda_meter_settle(share, meter, (struct vcuda_guess){.from_ns = meter->empty_ns});
        else if (!vcuda_meter_holds_more(meter))
            meter->empty_ns = vcuda_clock_ns();
        any |= vcuda_meter_holds_more(meter);
    }
    if (!any) /* everything has been told */
        context->surplus_ns = 0;
}

uint64_t vcuda_meter_late(struct vcuda_share *share, struct vcuda_stream_meter *meter) {
    struct vcuda_visit visit;
    struct vcuda_sample *tail = NULL;
    uint64_t late = 0;
    if (!vcuda_meter_try())
        return 0;
    if (vcuda_visit(&visit, meter->context->context)) {
        vcuda_meter_harvest(share, meter->context);
        bool own =
            (uintptr_t)meter->stream > 2 || !visit.pushed; /* default streams are the current context's */
        tail = own ? vcuda_meter_tail(meter) : NULL;
        settle_dry(share, meter->context);
        late = vcuda_meter_pay_late(share, meter->context);
        vcuda_lock_give(&vcuda_meter_lock);
        if (tail)
            vcuda_meter_record_tail(tail);
        vcuda_leave(&visit);
    } else {
        vcuda_lock_give(&vcuda_meter_lock);
    }
    return late;
}

uint64_t vcuda_meter_unmeasured_ns(struct vcuda_share *share, struct vcuda_stream_meter *meter) {
    struct vcuda_context_meter *context = meter->context;
    struct vcuda_visit visit;
    uint64_t left = 0, now = vcuda_clock_ns();
    if (!vcuda_meter_try())
        return 0;
    if (vcuda_visit(&visit, context->context)) {
        vcuda_meter_harvest(share, context);
        for (uint32_t i = 0; i < context->samples; i++) {
            const struct vcuda_sample *sample = &context->sample[context->order[i]];
            const struct vcuda_cost *cost = vcuda_sample_cost(sample);
            bool unknown = cost && !cost->ns;
            uint64_t until = sample->opened_ns + PATIENCE_NS;
            if (unknown && sample->clean && !sample->meter->interrupted && until > now && until - now > left)
                left = until - now;
        }
        vcuda_leave(&visit);
    }
    vcuda_lock_give(&vcuda_meter_lock);
    return left;
}
