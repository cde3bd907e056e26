/*
 * What a stream pays for before it launches: a piece of time, its credit, from which the launches that follow
 * are taken without asking; for launches of which nothing is known, a guess each.
 */
#include "limiter.h"
#include "meter_parts.h"
#include "plan.h"

#define GUESS_NS 200000     /* for a launch before anything at all has been measured */
#define MOST_NS 50000000000 /* nobody pays more at once */
#define GUESSES_ALIKE 8     /* launches that are guessed alike where there is something to go by */
#define GUESSES_DOUBLE 3    /* times that a guess doubles */
#define GUESS_MOST_NS 64000000

struct looking {
    struct vcuda_share *share;
    struct vcuda_stream_meter *meter;
};

static uint64_t look(void *argument) {
    struct looking *looking = argument;
    return vcuda_meter_late(looking->share, looking->meter);
}

static uint64_t hold(void *argument) {
    struct looking *looking = argument;
    return vcuda_meter_unmeasured_ns(looking->share, looking->meter);
}

/* The more has been launched without a measurement, the more it may be; unless something else holds it up. */
static uint64_t guess(struct vcuda_stream_meter *meter) {
    uint64_t typical = vcuda_cost_typical();
    uint32_t before = __atomic_fetch_add(&meter->guesses, 1, __ATOMIC_RELAXED);
    uint32_t doubled = typical ? before / GUESSES_ALIKE : before;
    if (__atomic_load_n(&meter->interrupted, __ATOMIC_RELAXED) || (meter->outstanding && meter->held_up))
        doubled = 0;
    uint64_t length = (typical ? typical : GUESS_NS) << (doubled < GUESSES_DOUBLE ? doubled : GUESSES_DOUBLE);
    return length < GUESS_MOST_NS ? length : typical > GUESS_MOST_NS ? typical : GUESS_MOST_NS;
}

void vcuda_admit(struct vcuda_share *share, struct vcuda_ticket *ticket, uint32_t magnitude) {
    struct vcuda_stream_meter *meter = ticket->meter;
    uint64_t work = __atomic_load_n(&meter->work_ns, __ATOMIC_RELAXED);
    uint64_t paid = __atomic_load_n(&meter->paid_ns, __ATOMIC_RELAXED);
    if (!vcuda_limiter_limits(share, meter->card)) {
        __atomic_store_n(&meter->paid_ns, VCUDA_UNLIMITED, __ATOMIC_RELAXED);
        vcuda_meter_set_due(meter);
        return;
    }
    if (paid == VCUDA_UNLIMITED || paid < work) /* limited since a moment ago; or threads raced */
        paid = work;
    bool guessed = ticket->expected_ns == 0;
    if (!guessed && work + ticket->expected_ns <= paid)
        return;
    uint64_t length = guessed ? guess(meter) : ticket->expected_ns - (paid - work);
    if (!guessed && length < VCUDA_CHUNK_NS)
        length = VCUDA_CHUNK_NS;
    if (length > MOST_NS)
        length = MOST_NS;
    struct looking looking = {share, meter};
    struct vcuda_order order = {.stream = meter,
                                .length_ns = length,
                                .weight = vcuda_meter_weight(meter->context, magnitude),
                                .guessed = guessed,
                                .uncertain = meter->varies > VCUDA_VARIES,
                                .look = look,
                                .hold = hold,
                                .argument = &looking};
    if (guessed)
        __atomic_fetch_add(&meter->guessed_ns, length, __ATOMIC_RELAXED);
    uint64_t charged = vcuda_limiter_admit(share, meter->card, &order);
    __atomic_fetch_add(&meter->charged_ns, charged, __ATOMIC_RELAXED);
    __atomic_store_n(&meter->paid_ns, guessed ? paid : paid + length, __ATOMIC_RELAXED);
    vcuda_meter_set_due(meter);
}

uint64_t vcuda_credit_use(const struct vcuda_ticket *ticket) {
    struct vcuda_stream_meter *meter = ticket->meter;
    uint64_t paid = __atomic_load_n(&meter->paid_ns, __ATOMIC_RELAXED);
    uint64_t work = __atomic_load_n(&meter->work_ns, __ATOMIC_RELAXED);
    if (paid == VCUDA_UNLIMITED || paid <= work)
        return 0;
    uint64_t used = ticket->expected_ns < paid - work ? ticket->expected_ns : paid - work;
    __atomic_store_n(&meter->paid_ns, paid - used, __ATOMIC_RELAXED);
    vcuda_meter_set_due(meter);
    return used;
}

void vcuda_credit_return(const struct vcuda_ticket *ticket, uint64_t used_ns) {
    if (!used_ns)
        return;
    __atomic_fetch_add(&ticket->meter->paid_ns, used_ns, __ATOMIC_RELAXED);
    vcuda_meter_set_due(ticket->meter);
}
