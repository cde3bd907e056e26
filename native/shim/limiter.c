/*
 * Paying and waiting: the bucket is the container's (in its ledger), the plan this process's own.
 *
 * One lock per card for the plan, held for a few dozen instructions; the bucket needs none. A launch that
 * must wait sleeps on the grant's futex, so that a changed share wakes it, until the instant at which its
 * ticket is reached.
 */
#include "limiter.h"

#include <string.h>

#include "bucket.h"
#include "lock.h"
#include "plan.h"

#define RATE_VALID_NS 1000000000 /* as long as nobody confirms it, a share in force holds */
#define SLICE_VALID_NS 2000000000
#define WITH_GATE 2 /* what rides along may add this part of its length, and pays for it */
#define WITHOUT 8   /* and this where nobody waits: streams are few, so the debt that this makes is small */
#define TOGETHER_NS 3000000
#define LITTLE 50               /* having waited, nobody waits for another part of that, */
#define LITTLE_NS 100000        /* and so much */
#define SOON_NS 5000            /* what a wait is too short for */
#define FIRST_LOOK_NS 100000    /* of a launch that waits for a measurement; then twice as long each time */
#define LATE_NS 100000000       /* for so long at most a launch waits because work is late */
#define LONG_WAIT_NS 20000000   /* before such a wait, the dead are looked for */
#define DEEP_NAP_NS 1000000000  /* with so much debt that it is not made any deeper */
#define OTHERS_OWE_NS 100000000 /* if others owe more, they may die meanwhile: look so often */

static struct {
    vcuda_lock lock;
    struct vcuda_plan plan;
} cards[VCUDA_MAX_CARDS];

/* ---- what the grant says ---- */

static uint32_t load32(const uint32_t *word) {
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}

/* Or a little ahead of us. */
static bool is_recent(const uint64_t *then, uint64_t now_ns, uint64_t valid_ns) {
    uint64_t age = now_ns - __atomic_load_n(then, __ATOMIC_RELAXED);
    return age < valid_ns || age > -valid_ns;
}

/* The share in force: what the arbiter says, for as long as it lives, else the guarantee. */
static uint32_t rate_of(const struct vcuda_grant_card *grant, uint64_t now_ns) {
    uint32_t core = load32(&grant->core_ppm), rate = load32(&grant->rate_ppm);
    uint32_t most = load32(&grant->core_max_ppm);
    bool recent = is_recent(&grant->rate_ns, now_ns, RATE_VALID_NS);
    bool valid = rate >= 1 && rate <= (most > core ? most : core) && recent;
    return valid ? rate : core;
}

/* If nobody says any more how much of what is measured was truly had, all of it was. */
static uint32_t slice_of(const struct vcuda_grant_card *grant) {
    int64_t slice = __atomic_load_n(&grant->slice_ppm, __ATOMIC_RELAXED);
    if (slice < VCUDA_PPM / 100 || slice >= VCUDA_PPM)
        return VCUDA_PPM;
    return is_recent(&grant->slice_ns, vcuda_clock_ns(), SLICE_VALID_NS) ? (uint32_t)slice : VCUDA_PPM;
}

static uint64_t scaled(uint64_t ns, uint32_t by, uint32_t of) {
    return by == of ? ns : (uint64_t)((double)ns * by / of);
}

bool vcuda_limiter_limits(const struct vcuda_share *share, int card) {
    if (card < 0 || share->whole)
        return false;
    const struct vcuda_grant_card *grant = vcuda_share_grant(share, card);
    return load32(&grant->core_ppm) < VCUDA_PPM && !(load32(&grant->flags) & VCUDA_CARD_WHOLE);
}

uint64_t vcuda_limiter_true_ns(const struct vcuda_share *share, int card, uint64_t measured_ns) {
    return card < 0 ? measured_ns : scaled(measured_ns, slice_of(vcuda_share_grant(share, card)), VCUDA_PPM);
}

uint64_t vcuda_limiter_measured_ns(const struct vcuda_share *share, int card, uint64_t true_ns) {
    return card < 0 ? true_ns : scaled(true_ns, VCUDA_PPM, slice_of(vcuda_share_grant(share, card)));
}

/* ---- paying ---- */

/* One launch on its way. */
struct visit {
    const struct vcuda_order *order;
    const struct vcuda_grant_card *grant;
    struct vcuda_ledger_card *ledger;
    struct vcuda_slot_card *slot;
    uint64_t ticket;
    uint64_t at_ns;    /* when it is expected to go */
    uint64_t known_ns; /* when what was launched before is expected to have ended */
    uint64_t late_ns;  /* charged for work that goes on longer than expected, when it was last looked */
    bool waits;        /* for its ticket */
};

/* The clock is read last: time that others have seen pass in between is not to look like garbage. */
static uint64_t refill(const struct visit *visit) {
    uint64_t now = vcuda_clock_ns();
    vcuda_bucket_refill(&visit->ledger->bucket, now, rate_of(visit->grant, now));
    return now;
}

/* Before the bucket is charged: killed in between, the process owes what nobody took, and it is given back.
 */
static uint64_t take(const struct visit *visit, uint64_t cost_ns) {
    __atomic_fetch_add(&visit->slot->owed_ns, cost_ns, __ATOMIC_RELAXED);
    return vcuda_bucket_take(&visit->ledger->bucket, cost_ns);
}

/* More debt than this is not made: a launch that finds it asks again later. */
#define DEEP_NS (VCUDA_DEBT_NS / 2)

/* As the grant says, whatever the ledger says the rate is. */
static uint64_t ticket_wait_ns(const struct visit *visit, uint64_t ticket, uint64_t now_ns) {
    return vcuda_bucket_wait_at_ns(&visit->ledger->bucket, ticket, rate_of(visit->grant, now_ns));
}

/* Until the latest launch that had to wait goes; 0 = it has gone. */
static uint64_t gate_wait_ns(const struct visit *visit, const struct vcuda_plan *plan, uint64_t now_ns) {
    uint64_t planned = plan->gate_ns > now_ns ? plan->gate_ns - now_ns : 0;
    uint64_t really = ticket_wait_ns(visit, plan->ticket, now_ns);
    uint64_t wait = planned > really ? planned : really;
    return wait > SOON_NS ? wait : 0;
}

/* Without a ticket of its own: beside a launch that waits, with it, and paying for what it adds; or in time
 * that is paid for already, at once. False where neither can be. */
static bool ride(struct visit *visit, struct vcuda_plan *plan, uint64_t now_ns, uint64_t length_ns,
                 uint64_t *paid_ns) {
    const struct vcuda_order *order = visit->order;
    uint64_t gate = gate_wait_ns(visit, plan, now_ns);
    struct vcuda_step step = vcuda_plan_look(plan, order->stream, now_ns + gate, length_ns, order->weight);
    if (step.adds_ns > length_ns / (gate ? WITH_GATE : WITHOUT))
        return false;
    *paid_ns = scaled(step.adds_ns, slice_of(visit->grant), VCUDA_PPM);
    if (*paid_ns)
        take(visit, *paid_ns);
    visit->ticket = plan->ticket;
    visit->at_ns = now_ns + gate;
    visit->waits = gate > 0 || order->guessed;
    if (gate == 0) /* nothing to wait for but a measurement */
        visit->ticket = __atomic_load_n(&visit->ledger->bucket.supply_ns, __ATOMIC_RELAXED);
    vcuda_plan_do(plan, order->stream, &step, order->weight);
    return true;
}

/* Plan's lock held. What was paid; VCUDA_DEBT_NS: too much is owed already. */
static uint64_t enter(struct visit *visit, struct vcuda_plan *plan, uint64_t now_ns) {
    const struct vcuda_order *order = visit->order;
    const struct vcuda_bucket *bucket = &visit->ledger->bucket;
    uint32_t slice = slice_of(visit->grant);
    uint64_t length = scaled(order->length_ns, VCUDA_PPM, slice), paid;
    visit->known_ns = plan->until_ns;
    if (ride(visit, plan, now_ns, length, &paid))
        return paid;
    if (vcuda_bucket_balance(bucket) < -(int64_t)DEEP_NS)
        return VCUDA_DEBT_NS;
    uint64_t wait = ticket_wait_ns(visit, __atomic_load_n(&bucket->demand_ns, __ATOMIC_RELAXED), now_ns);
    struct vcuda_step step = vcuda_plan_look(plan, order->stream, now_ns + wait, length, order->weight);
    paid = scaled(step.adds_ns, slice, VCUDA_PPM);
    visit->ticket = take(visit, paid);
    visit->at_ns = now_ns + wait;
    visit->waits = true;
    vcuda_plan_do(plan, order->stream, &step, order->weight);
    if (wait > SOON_NS) {
        plan->gate_ns = now_ns + wait;
        plan->ticket = visit->ticket;
    }
    return paid;
}

/* ---- waiting ---- */

/* Launches that wait for the same ticket are to go together, though supply moves while they wait: none goes a
 * little earlier than planned. */
static uint64_t together(const struct visit *visit, uint64_t left_ns, uint64_t now_ns) {
    uint64_t planned = visit->at_ns > now_ns ? visit->at_ns - now_ns : 0;
    return planned > left_ns && planned < left_ns + TOGETHER_NS ? planned : left_ns;
}

/* How long it is until the launch may go. What was charged for work that goes on delays it for LATE_NS at
 * most: it may be the launch that this work waits for. */
static uint64_t left_ns(const struct visit *visit, uint64_t now_ns, uint64_t waited_ns) {
    uint64_t left = ticket_wait_ns(visit, visit->ticket, now_ns);
    uint64_t otherwise = ticket_wait_ns(visit, visit->ticket - visit->late_ns, now_ns);
    uint64_t patience = waited_ns < LATE_NS ? LATE_NS - waited_ns : 0;
    if (visit->late_ns && left > patience)
        left = otherwise > patience ? otherwise : patience;
    return together(visit, left > SOON_NS ? left : 0, now_ns);
}

static void look(struct visit *visit) {
    visit->late_ns = visit->order->look(visit->order->argument);
}

/* The same of a launch of unknown cost: not while something like it is being measured. */
static uint64_t hold_ns(const struct visit *visit, uint64_t left_ns) {
    uint64_t hold = visit->order->guessed ? visit->order->hold(visit->order->argument) : 0;
    return hold > left_ns ? hold : left_ns;
}

/* The longest sleep after which the share in force is still known to be what it is. */
static uint64_t known_for_ns(const struct vcuda_grant_card *grant, uint64_t now_ns) {
    uint64_t until = __atomic_load_n(&grant->rate_ns, __ATOMIC_RELAXED) + RATE_VALID_NS;
    bool yields = rate_of(grant, now_ns) < load32(&grant->core_ppm);
    return yields && until > now_ns ? until - now_ns : UINT64_MAX;
}

/* Whether some other process owes so much that its death would make a difference. */
static bool others_owe(const struct vcuda_share *share, int card, const struct vcuda_slot_card *own) {
    const struct vcuda_ledger_map *map = &share->ledger;
    uint32_t high = __atomic_load_n(&map->header->slots_high, __ATOMIC_RELAXED);
    for (uint32_t i = 0; i < high && i < map->slot_count; i++) {
        const struct vcuda_slot_card *each = &vcuda_ledger_slot(map, i)->cards[card];
        if (each != own && __atomic_load_n(&each->owed_ns, __ATOMIC_RELAXED) > OTHERS_OWE_NS)
            return true;
    }
    return false;
}

static void say_starved(struct vcuda_ledger_card *ledger, uint64_t until_ns) {
    uint64_t known = __atomic_load_n(&ledger->starved_ns, __ATOMIC_RELAXED);
    if (known < until_ns || known > until_ns + VCUDA_DEBT_NS)
        __atomic_store_n(&ledger->starved_ns, until_ns, __ATOMIC_RELAXED);
}

static uint64_t least(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

/* Time passes until the ticket is reached; the time then. */
static uint64_t wait_for_it(const struct vcuda_share *share, int card, struct visit *visit) {
    uint32_t changes =
        load32(&visit->grant->changes); /* before looking: a change in between ends the sleep */
    uint64_t began = refill(visit), now = began, pause = FIRST_LOOK_NS;
    uint64_t left = hold_ns(visit, left_ns(visit, now, 0));
    bool owed = false;
    if (!left)
        return now;
    if (left > LONG_WAIT_NS) {
        vcuda_ledger_reclaim(&share->ledger);
        owed = others_owe(share, card, visit->slot);
        now = refill(visit);
        left = hold_ns(visit, left_ns(visit, now, now - began));
    }
    __atomic_fetch_add(&visit->slot->waits, 1, __ATOMIC_RELAXED);
    while (left) {
        uint64_t sleep = least(left, known_for_ns(visit->grant, now));
        say_starved(visit->ledger, now + left);
        if (visit->order->guessed)
            sleep = least(sleep, pause);
        if (owed)
            sleep = least(sleep, OTHERS_OWE_NS);
        /* What was paid too much comes back when that is known, and is cut off at the burst if nobody looks.
         */
        if (visit->order->uncertain && visit->known_ns > now &&
            sleep > visit->known_ns - now + VCUDA_BUCKET_BURST_NS)
            sleep = visit->known_ns - now + LITTLE_NS;
        pause *= 2;
        sys_futex_wait(&visit->grant->changes, changes, sleep);
        __atomic_fetch_add(&visit->slot->wakeups, 1, __ATOMIC_RELAXED);
        if (owed)
            vcuda_ledger_reclaim(&share->ledger);
        changes = load32(&visit->grant->changes);
        look(visit);
        now = refill(visit);
        left = left_ns(visit, now, now - began);
        if (left < (now - began) / LITTLE + LITTLE_NS) /* it is paid for all the same */
            left = 0;
        left = hold_ns(visit, left);
    }
    say_starved(visit->ledger, now);
    __atomic_fetch_add(&visit->slot->wait_ns, now - began, __ATOMIC_RELAXED);
    return now;
}

uint64_t vcuda_limiter_admit(const struct vcuda_share *share, int card, const struct vcuda_order *order) {
    struct vcuda_ledger_card *ledger = &share->ledger.header->cards[card];
    struct visit visit = {.order = order,
                          .grant = vcuda_share_grant(share, card),
                          .ledger = ledger,
                          .slot = vcuda_own_slot_card(share, card)};
    uint64_t now, paid;
    look(&visit);
    for (;;) {
        uint32_t changes = load32(&visit.grant->changes);
        vcuda_lock_take(&cards[card].lock);
        now = refill(&visit);
        paid = enter(&visit, &cards[card].plan, now);
        vcuda_lock_give(&cards[card].lock);
        if (paid != VCUDA_DEBT_NS)
            break;
        sys_futex_wait(&visit.grant->changes, changes, DEEP_NAP_NS);
    }
    __atomic_store_n(&ledger->active_ns, now, __ATOMIC_RELAXED);
    if (visit.waits) {
        __atomic_fetch_add(&visit.slot->held_ns, paid, __ATOMIC_RELAXED);
        now = wait_for_it(share, card, &visit);
        __atomic_store_n(&visit.slot->active_ns, now, __ATOMIC_RELAXED);
        __atomic_fetch_sub(&visit.slot->held_ns, paid, __ATOMIC_RELAXED);
        if (now > visit.at_ns) /* later than planned, and so its work ends later */
            vcuda_limiter_move(card, order->stream, (int64_t)(now - visit.at_ns));
    } else {
        __atomic_store_n(&visit.slot->active_ns, now, __ATOMIC_RELAXED);
    }
    return paid;
}

/* ---- what it really took ---- */

void vcuda_limiter_charge(const struct vcuda_share *share, int card, uint64_t more_ns) {
    __atomic_fetch_add(&vcuda_own_slot_card(share, card)->owed_ns, more_ns, __ATOMIC_RELAXED);
    vcuda_bucket_correct(&share->ledger.header->cards[card].bucket, (int64_t)more_ns);
}

void vcuda_limiter_settle(const struct vcuda_share *share, int card, uint64_t used_ns, uint64_t paid_ns) {
    struct vcuda_slot_card *slot = vcuda_own_slot_card(share, card);
    if (!vcuda_limiter_limits(share, card) && !paid_ns)
        return;
    if (used_ns != paid_ns)
        vcuda_bucket_correct(&share->ledger.header->cards[card].bucket, (int64_t)(used_ns - paid_ns));
    __atomic_fetch_sub(&slot->owed_ns, paid_ns, __ATOMIC_RELAXED);
}

uint64_t vcuda_limiter_end_of(int card, const void *stream) {
    vcuda_lock_take(&cards[card].lock);
    uint64_t end = vcuda_plan_end(&cards[card].plan, stream);
    vcuda_lock_give(&cards[card].lock);
    return end;
}

void vcuda_limiter_idle(int card, const void *stream) {
    vcuda_lock_take(&cards[card].lock);
    vcuda_plan_idle(&cards[card].plan, stream, vcuda_clock_ns());
    vcuda_lock_give(&cards[card].lock);
}

void vcuda_limiter_move(int card, const void *stream, int64_t later_ns) {
    vcuda_lock_take(&cards[card].lock);
    vcuda_plan_move(&cards[card].plan, stream, later_ns, vcuda_clock_ns());
    vcuda_lock_give(&cards[card].lock);
}

void vcuda_limiter_forget_process(void) {
    memset(cards, 0, sizeof cards);
}
