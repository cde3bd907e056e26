/*
 * What measurements say: how long launches ran, when, and what that makes of the ledger, the costs and the
 * plan.
 *
 * What is known of an interval is used in this order: events at both ends of work that did not run dry;
 * events at one end, with bounds from the host's clock for the other; how long a thread waited; the expected
 * cost.
 */
#include "limiter.h"
#include "meter_parts.h"
#include "overlap.h"

#define ORIGIN_NS ((uint64_t)1 << 50) /* of a context's clock: there is a before */
#define REBASE_NS                                                                                            \
    4000000000          /* cuEventElapsedTime answers a float: within 4 s it is good to half a microsecond */
#define CLOCKS_NS 20000 /* by which the GPU's clock may be ahead of what it is taken for */
#define ALIKE 2         /* times more than is known: then launches of the kind differ */
#define CROWDED_NS 1000000000
#define LATE_LEAST_NS 50000    /* by which work may be late: no more than a thread that woke up late */
#define LATE_MOST_NS 250000000 /* that is paid for one sample before it has been reached */

/* From before the first event to the launch's return, usually. */
static uint64_t usual_slack_ns = 20000;

static bool elapsed(CUevent from, CUevent to, int64_t *ns) {
    float ms = 0;
    CUresult result = vcuda_real.cuEventElapsedTime_v2(&ms, from, to);
    if (result == CUDA_ERROR_NOT_FOUND)
        result = vcuda_real.cuEventElapsedTime(&ms, from, to);
    *ns = (int64_t)((double)ms * 1e6);
    return result == CUDA_SUCCESS;
}

void vcuda_meter_account(struct vcuda_share *share, int card, uint64_t gpu_ns, uint64_t paid_ns) {
    if (card < 0)
        return;
    if (gpu_ns)
        __atomic_fetch_add(&vcuda_own_slot_card(share, card)->gpu_ns, gpu_ns, __ATOMIC_RELAXED);
    if (gpu_ns || paid_ns)
        vcuda_limiter_settle(share, card, gpu_ns, paid_ns);
}

/* New busy time counts, unless another process of the container was at work. */
static void account_fresh(struct vcuda_share *share, struct vcuda_context_meter *context, uint64_t from,
                          uint64_t to, uint64_t fresh, uint64_t paid_ns) {
    if (fresh && context->lag_ns && context->card >= 0) {
        uint64_t host = from + (uint64_t)context->lag_ns;
        struct vcuda_ledger_card *card = &share->ledger.header->cards[context->card];
        uint64_t only = vcuda_overlap_report(card, (uint32_t)share->ledger.slot, host, host + to - from);
        fresh = only < fresh ? only : fresh;
    }
    vcuda_meter_account(share, context->card, vcuda_limiter_true_ns(share, context->card, fresh), paid_ns);
}

/* An interval in which a context's kernels ran. */
static void account(struct vcuda_share *share, struct vcuda_context_meter *context, uint64_t from,
                    uint64_t to, uint64_t paid_ns) {
    account_fresh(share, context, from, to, vcuda_busy_add(&context->busy, from, to), paid_ns);
}

/* Whether streams have had work that did not fit on the card at once: it ran one after the other. */
static bool is_crowded(const struct vcuda_context_meter *context) {
    return context->crowded_ns && vcuda_clock_ns() - context->crowded_ns < CROWDED_NS;
}

/* In a crowd: a stream's launches are expected to have run for ran_ns between `can` and `to`, and from `sure`
 * on some stream was at work without doubt. Times that are sure hold what others ran too, which is told
 * later: so what is expected counts only as far as it is more, in all, than what was sure. */
static void account_crowd(struct vcuda_share *share, struct vcuda_context_meter *context, uint64_t can,
                          uint64_t sure, uint64_t to, uint64_t ran_ns, uint64_t paid_ns) {
    uint64_t fresh = vcuda_busy_add(&context->busy, sure, to);
    context->surplus_ns += (int64_t)(fresh - ran_ns);
    if (context->surplus_ns < 0) {
        fresh += vcuda_busy_fill(&context->busy, can, to, (uint64_t)-context->surplus_ns);
        context->surplus_ns = 0;
    }
    account_fresh(share, context, to - fresh, to, fresh, paid_ns);
}

void vcuda_meter_refund(struct vcuda_share *share, struct vcuda_stream_meter *meter) {
    vcuda_meter_account(share, meter->card, 0, __atomic_exchange_n(&meter->charged_ns, 0, __ATOMIC_RELAXED));
    meter->paid_ns = 0;
}

uint64_t vcuda_meter_take_charge(struct vcuda_stream_meter *meter) {
    uint64_t work = __atomic_load_n(&meter->work_ns, __ATOMIC_RELAXED);
    uint64_t paid = __atomic_load_n(&meter->paid_ns, __ATOMIC_RELAXED);
    uint64_t charged = __atomic_load_n(&meter->charged_ns, __ATOMIC_RELAXED);
    uint64_t credit = paid != VCUDA_UNLIMITED && paid > work ? paid - work : 0;
    if (charged <= credit)
        return 0;
    __atomic_fetch_sub(&meter->charged_ns, charged - credit, __ATOMIC_RELAXED);
    return charged - credit;
}

/*
 * How long a launch ran whose stream was dry: its events' distance, but for what the host took from the first
 * of them to the launch. Where that took much longer than usual, or where launches of its kind were measured
 * behind others, exactly, nothing is learned: what is known decides, as far as it can be true.
 */
static uint64_t without_delay(struct vcuda_share *share, const struct vcuda_sample *sample, uint64_t own) {
    uint64_t slack = sample->slack_ns, most = own > 1 ? own - 1 : 1;
    uint64_t likely = own > sample->delay_ns ? own - sample->delay_ns : 1;
    uint64_t known = vcuda_limiter_measured_ns(share, sample->meter->card, vcuda_sample_cost_ns(sample));
    bool usual = slack < 2 * usual_slack_ns;
    uint64_t seen = usual ? slack : 2 * usual_slack_ns;
    usual_slack_ns = (uint64_t)((int64_t)usual_slack_ns + ((int64_t)seen - (int64_t)usual_slack_ns) / 16);
    bool exact = vcuda_cost_how(vcuda_sample_cost(sample)) == VCUDA_COST_EXACT;
    if (!known || (usual && !exact))
        return likely;
    uint64_t least = own > slack ? own - slack : 1;
    return known < least ? least : known > most ? most : known;
}

/* How far the context's clock is behind the host's. An event in an empty stream is reached when it is
 * recorded, or a little later; an end of work is noticed now, or was over before: bounds from either side, of
 * which the first is the better. They hold for a while, since the clocks drift. */
static void set_clocks(struct vcuda_context_meter *context, const struct vcuda_sample *sample,
                       uint64_t length_ns, uint64_t end_ns) {
    int64_t most = (int64_t)(vcuda_clock_ns() - end_ns);
    if (sample->begin && !sample->busy) {
        int64_t least = (int64_t)(sample->begun_ns - (end_ns - length_ns));
        if (context->lag_least_ns == 0 || least > context->lag_least_ns)
            context->lag_least_ns = least;
        if (!context->lag_tied || least > context->lag_ns)
            context->lag_ns = least;
        context->lag_tied = true;
        context->tied_ns = vcuda_clock_ns();
    }
    if (context->lag_ns == 0 || most < context->lag_ns)
        context->lag_ns = most;
}

/* What was learned in this while is the better for the next one. */
static void follow_clocks(struct vcuda_context_meter *context) {
    if (context->lag_least_ns)
        context->lag_ns = context->lag_least_ns;
    context->lag_least_ns = 0;
}

/* An instant of the host's on the context's clock; 0 = not known. */
static uint64_t on_gpu(const struct vcuda_context_meter *context, uint64_t host_ns) {
    return host_ns && context->lag_ns ? host_ns - (uint64_t)context->lag_ns : 0;
}

/* What launches before a sample's own are expected to have run. */
static uint64_t expected_before(struct vcuda_share *share, const struct vcuda_sample *sample, uint64_t own) {
    const struct vcuda_stream_meter *meter = sample->meter;
    uint64_t each = sample->begin ? own : vcuda_limiter_measured_ns(share, meter->card, meter->last_cost_ns);
    return vcuda_limiter_measured_ns(share, meter->card, sample->expected_ns) + sample->unknown * each;
}

/* How long the launches before a sample's own ran, up to end_ns, in a stream that may have been dry in
 * between: what is expected, within what is known. It was not at work before it was last seen empty; and if
 * it was at work when the sample was recorded, it was so from there on. */
static uint64_t before(struct vcuda_share *share, const struct vcuda_context_meter *context,
                       const struct vcuda_sample *sample, uint64_t own, uint64_t end_ns) {
    const struct vcuda_stream_meter *meter = sample->meter;
    uint64_t expected = expected_before(share, sample, own);
    uint64_t empty = on_gpu(context, meter->empty_ns), recorded = on_gpu(context, sample->opened_ns);
    uint64_t most = end_ns > empty ? end_ns - empty : 0;
    uint64_t least = sample->busy && sample->clean && recorded && end_ns > recorded ? end_ns - recorded : 0;
    return expected < least ? least : expected > most ? most : expected;
}

/* The stream's work ended at end_ns on the context's clock, which was expected at another time. */
static void adjust_plan(const struct vcuda_context_meter *context, const struct vcuda_sample *sample,
                        uint64_t end_ns) {
    struct vcuda_stream_meter *meter = sample->meter;
    if (!sample->planned_ns || !context->lag_ns)
        return;
    uint64_t expected = sample->planned_ns + (uint64_t)(meter->moved_ns - sample->moved_ns);
    int64_t later = (int64_t)(end_ns + (uint64_t)context->lag_ns - expected);
    meter->moved_ns += later;
    vcuda_limiter_move(context->card, meter, later);
}

/* How much launches of one kind differ, in this stream. */
static void differ(struct vcuda_stream_meter *meter, const struct vcuda_sample *sample, uint64_t cost_ns) {
    uint64_t known = vcuda_sample_cost_ns(sample);
    uint64_t off = known > cost_ns ? known - cost_ns : cost_ns - known;
    if (known)
        meter->varies = (uint16_t)((meter->varies * 7 + 256 * (off < known ? off : known) / known) / 8);
}

/* What a launch by itself would have taken, if others had their turns while it was measured: as if all had
 * the same part. */
static uint64_t part_of(const struct vcuda_sample *sample, uint64_t took_ns) {
    return took_ns / (1 + sample->beside);
}

/* Whether a launch that was measured beside others can have taken what is known of those that ran alone: then
 * nothing is learned of it. */
static bool says_nothing(const struct vcuda_sample *sample, uint64_t took_ns) {
    const struct vcuda_stream_meter *meter = sample->meter;
    uint64_t known = vcuda_sample_cost_ns(sample);
    if (!sample->beside || meter->varies > VCUDA_VARIES ||
        vcuda_cost_how(vcuda_sample_cost(sample)) == VCUDA_COST_GUESSED)
        return false;
    return !sample->busy || (known <= took_ns && part_of(sample, took_ns) / ALIKE <= known);
}

/* A launch by itself, as far as is known. */
static uint64_t cost_of(struct vcuda_share *share, const struct vcuda_sample *sample, uint64_t own) {
    uint64_t took = vcuda_limiter_true_ns(share, sample->meter->card, own);
    return says_nothing(sample, took) ? vcuda_sample_cost_ns(sample) : part_of(sample, took);
}

static void learn(struct vcuda_share *share, const struct vcuda_sample *sample, uint64_t own) {
    struct vcuda_stream_meter *meter = sample->meter;
    uint64_t cost = cost_of(share, sample, own);
    if (!says_nothing(sample, vcuda_limiter_true_ns(share, meter->card, own))) {
        differ(meter, sample, cost);
        vcuda_cost_learn(sample->cost, sample->cost_key, cost,
                         sample->beside ? VCUDA_COST_GUESSED
                         : sample->busy ? VCUDA_COST_EXACT
                                        : VCUDA_COST_ALONE);
    }
    vcuda_meter_earn(meter->context, meter, cost);
    meter->last_cost_ns = cost < UINT32_MAX ? (uint32_t)cost : UINT32_MAX;
}

/* From where on, up to end_ns, the card was at work without doubt; `own`: what was measured of a sample's
 * launch. */
static uint64_t sure_from(struct vcuda_share *share, const struct vcuda_sample *sample, uint64_t own,
                          uint64_t end_ns) {
    uint64_t seen = on_gpu(sample->meter->context, sample->opened_ns);
    if (sample->busy && sample->clean && seen && seen < end_ns - own)
        return seen;
    if (sample->begin && !sample->busy) /* others may not have had it while the launch was on its way */
        own = vcuda_limiter_measured_ns(share, sample->meter->card, cost_of(share, sample, own));
    return end_ns - own;
}

static void digest(struct vcuda_share *share, struct vcuda_context_meter *context,
                   struct vcuda_sample *sample) {
    struct vcuda_stream_meter *meter = sample->meter;
    int64_t since_base = 0, length = 0;
    uint64_t paid = sample->charged_ns;
    sample->charged_ns = 0;
    if ((context->base && !elapsed(context->base, sample->end, &since_base)) ||
        (sample->begin && !elapsed(sample->begin, sample->end, &length))) {
        /* Nothing is known of it after all: it is taken to have cost what was paid. */
        vcuda_meter_account(share, context->card, paid, paid);
        return;
    }
    uint64_t own = length > 0 ? (uint64_t)length : 0;
    uint64_t end = (context->base ? context->base_ns : ORIGIN_NS) + (uint64_t)since_base;
    /* What was proven since then is known as busy, and does not count twice. */
    uint64_t from, before_it = sample->chain_ns ? sample->chain_ns : meter->sample_end_ns;
    bool crowded = is_crowded(context), continuous = sample->continuous && before_it;
    uint64_t can = 0, ran = 0;
    if (!continuous && sample->begin && !sample->busy)
        own = without_delay(share, sample, own);
    if (crowded) {
        uint64_t empty = on_gpu(context, meter->empty_ns);
        can = empty > meter->sample_end_ns ? empty : meter->sample_end_ns;
        ran = expected_before(share, sample, own);
        if (sample->begin)
            ran += vcuda_limiter_measured_ns(share, meter->card, cost_of(share, sample, own));
    }
    if (continuous) {
        from = before_it < end - own ? before_it : end - own;
    } else if (crowded) {
        from = sure_from(share, sample, own, end);
    } else {
        from = end - own - before(share, context, sample, own, end - own);
        if (from < meter->sample_end_ns)
            from = meter->sample_end_ns < end - own ? meter->sample_end_ns : end - own;
    }
    meter->sample_end_ns = end;
    meter->alone_from_ns = sample->begun_ns + sample->delay_ns;
    meter->alone_ns = sample->begin && !sample->busy && meter->outstanding == 1 ? own : 0;
    if (sample->begin)
        learn(share, sample, own);
    if (end > meter->last_end_ns)
        meter->last_end_ns = end;
    meter->guesses = 0;
    set_clocks(context, sample, length > 0 ? (uint64_t)length : 0, end);
    adjust_plan(context, sample, end);
    if (meter->outstanding == 1 && !vcuda_meter_holds_more(meter))
        meter->empty_ns = vcuda_clock_ns();
    if (crowded)
        account_crowd(share, context, can, from, end, ran, paid);
    else
        account(share, context, from, end, paid);
    if (!context->base || end > context->base_ns + REBASE_NS) { /* the clock goes on from here */
        CUevent old = context->base;
        context->base = sample->end;
        context->base_ns = end;
        follow_clocks(context);
        sample->end = old;
    }
}

static void free_sample(struct vcuda_share *share, struct vcuda_context_meter *context,
                        struct vcuda_sample *sample) {
    struct vcuda_stream_meter *meter = sample->meter;
    vcuda_meter_account(share, context->card, 0, sample->charged_ns);
    vcuda_event_put(context, sample->begin);
    vcuda_event_put(context, sample->end);
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
            free_sample(share, context, sample);
        } else {
            sample->meter->blocked = true;
            context->order[kept++] = context->order[i];
        }
    }
    context->samples = kept;
}

/* As long as one such time follows another, what the stream holds more than in the beginning has run in that
 * time, if that can be: it counts instead of what was expected. */
void vcuda_meter_prove(struct vcuda_share *share, struct vcuda_stream_meter *meter, uint64_t since_ns,
                       uint64_t now_ns, bool empty) {
    struct vcuda_context_meter *context = meter->context;
    uint64_t work = __atomic_load_n(&meter->work_ns, __ATOMIC_RELAXED);
    uint64_t holds = work > meter->settled_ns ? work - meter->settled_ns : 0;
    if (meter->proven_ns && since_ns - meter->proven_ns < VCUDA_CHAIN_NS)
        since_ns = meter->proven_ns;
    else
        meter->carried_ns = holds;
    uint64_t from = on_gpu(context, since_ns), to = on_gpu(context, now_ns);
    if (!from || to <= from)
        return;
    meter->proven_ns = empty ? 0 : now_ns;
    uint64_t more = empty ? holds : holds > meter->carried_ns ? holds - meter->carried_ns : 0;
    uint64_t ran = vcuda_limiter_true_ns(share, meter->card, to - from);
    uint64_t told = empty || more < ran ? more : ran;
    meter->settled_ns = work - holds + told;
    if (empty)
        meter->unknown = 0;
    if (to > meter->last_end_ns)
        meter->last_end_ns = to;
    if (is_crowded(context))
        account_crowd(share, context, from, from, to, vcuda_limiter_measured_ns(share, meter->card, told), 0);
    else
        account(share, context, from, to, 0);
}

void vcuda_meter_settle(struct vcuda_share *share, struct vcuda_stream_meter *meter,
                        struct vcuda_guess guess) {
    struct vcuda_context_meter *context = meter->context;
    uint64_t pending = vcuda_limiter_measured_ns(share, meter->card, vcuda_meter_pending(meter));
    bool limited = meter->card >= 0 && meter->paid_ns != VCUDA_UNLIMITED;
    bool doubtful = meter->varies > VCUDA_VARIES || meter->unknown;
    uint64_t paid = vcuda_meter_take_charge(meter), clock = vcuda_clock_ns(), was_empty = meter->empty_ns;
    meter->settled_ns = __atomic_load_n(&meter->work_ns, __ATOMIC_RELAXED);
    meter->unknown = 0;
    meter->empty_ns = clock;
    if (!meter->outstanding) {
        meter->interruptions = __atomic_load_n(&vcuda_interruptions, __ATOMIC_RELAXED);
        __atomic_store_n(&meter->interrupted, false, __ATOMIC_RELAXED);
    }
    if (limited && !meter->outstanding) {
        meter->guesses = 0;
        vcuda_limiter_idle(meter->card, meter);
    }
    if (!pending && !paid)
        return;
    if (pending && guess.length_ns && doubtful &&
        (pending < guess.length_ns - guess.doubt_ns || pending > guess.length_ns + guess.doubt_ns))
        pending = guess.length_ns;
    /* When it ran is known only so far: it has ended by now, on the GPU's clock, and began after what came
     * before. */
    uint64_t now = context->lag_ns ? on_gpu(context, clock) : ORIGIN_NS;
    uint64_t empty = on_gpu(context, was_empty), from = now - pending;
    uint64_t can = empty > meter->last_end_ns ? empty : meter->last_end_ns;
    if (is_crowded(context) && can && can < now) {
        meter->last_end_ns = now;
        account_crowd(share, context, can, now, now, pending, paid);
        return;
    }
    uint64_t began = on_gpu(context, guess.from_ns);
    if (began && began < from)
        from = began;
    from = from > meter->last_end_ns ? from : meter->last_end_ns;
    uint64_t to = from + pending < now + CLOCKS_NS ? from + pending : now + CLOCKS_NS;
    if (to > meter->last_end_ns)
        meter->last_end_ns = to;
    account(share, context, from, to, paid);
}

/* ---- work that takes longer than expected ---- */

/* A sample that should have been reached is paid for as time goes on. */
static uint64_t pay_late(struct vcuda_share *share, struct vcuda_context_meter *context,
                         struct vcuda_sample *sample, uint64_t until_ns, uint64_t now_ns) {
    uint64_t from = until_ns > context->late_to_ns ? until_ns : context->late_to_ns;
    uint64_t more = now_ns > from ? vcuda_limiter_true_ns(share, context->card, now_ns - from) : 0;
    if (sample->late_ns + more > LATE_MOST_NS)
        more = LATE_MOST_NS - sample->late_ns;
    if (more) {
        context->late_to_ns = now_ns;
        sample->late_ns += more;
        sample->charged_ns += more;
        vcuda_limiter_charge(share, context->card, more);
    }
    return sample->late_ns;
}

uint64_t vcuda_meter_pay_late(struct vcuda_share *share, struct vcuda_context_meter *context) {
    uint64_t late = 0, now = vcuda_clock_ns();
    for (uint32_t i = 0; i < context->samples; i++) {
        struct vcuda_sample *sample = &context->sample[context->order[i]];
        if (__atomic_load_n(&sample->state, __ATOMIC_ACQUIRE) != VCUDA_SAMPLE_PENDING || !sample->until_ns ||
            !sample->clean || vcuda_is_held_up(sample->meter))
            continue;
        if (now > sample->until_ns + LATE_LEAST_NS)
            late += pay_late(share, context, sample, sample->until_ns, now);
    }
    return late;
}
