/*
 * Two counters that only count on; their difference is the balance.
 *
 * `demand_ns` is only added to. `supply_ns` is only swapped, for a value that was computed from both as they
 * were: so no two can give, or cut, for the same reason. It is read before `demand_ns`: what comes in between
 * makes the balance look lower than it is, and a swap on such a look fails if supply has moved.
 */
#include "bucket.h"

#include <stdbool.h>

#define MS 1000000

static uint64_t load(const uint64_t *word) {
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}

static bool swap(uint64_t *word, uint64_t *seen, uint64_t next) {
    return __atomic_compare_exchange_n(word, seen, next, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

static void count(uint32_t *word) {
    __atomic_fetch_add(word, 1, __ATOMIC_RELAXED);
}

static int64_t balance_of(const struct vcuda_bucket *bucket, uint64_t supply) {
    return (int64_t)(supply - load(&bucket->demand_ns));
}

/* Whoever sees a supply sees the demand that it was computed from, or a later one. */
static uint64_t supply_of(const struct vcuda_bucket *bucket) {
    return __atomic_load_n(&bucket->supply_ns, __ATOMIC_ACQUIRE);
}

int64_t vcuda_bucket_balance(const struct vcuda_bucket *bucket) {
    return balance_of(bucket, supply_of(bucket));
}

static uint32_t clamped(uint32_t rate_ppm) {
    return rate_ppm == 0 ? 1 : rate_ppm < VCUDA_PPM ? rate_ppm : VCUDA_PPM;
}

/* The time in which so much comes in, rounded up. At most 2 debts: the product does not wrap. */
static uint64_t time_for(uint64_t income_ns, uint32_t rate) {
    return (income_ns * VCUDA_PPM + rate - 1) / rate;
}

/* How much more there may be. What cannot be true has room for as much as what just can. */
static int64_t room_of(int64_t balance) {
    int64_t least = -2 * (int64_t)VCUDA_DEBT_NS;
    return balance >= VCUDA_BUCKET_BURST_NS ? 0 : VCUDA_BUCKET_BURST_NS - (balance > least ? balance : least);
}

/* Add to the balance, within bounds; who is out of them already is led no farther. */
static void move(struct vcuda_bucket *bucket, int64_t more_ns) {
    uint64_t supply = supply_of(bucket);
    int64_t by;
    do {
        int64_t balance = balance_of(bucket, supply), up = room_of(balance);
        int64_t down = balance > VCUDA_BUCKET_BURST_NS     ? VCUDA_DEBT_NS
                       : balance > -(int64_t)VCUDA_DEBT_NS ? balance + (int64_t)VCUDA_DEBT_NS
                                                           : 0;
        by = more_ns > up ? up : more_ns < 0 && -more_ns > down ? -down : more_ns;
    } while (by && !swap(&bucket->supply_ns, &supply, supply + (uint64_t)by));
}

/* What cannot be true: balance 0, time now. Each by itself: a clock gone wrong forgives no debt. */
static void put_right(struct vcuda_bucket *bucket, uint64_t now_ns) {
    uint64_t supply = supply_of(bucket), demand = load(&bucket->demand_ns), since = load(&bucket->refill_ns);
    int64_t balance = (int64_t)(supply - demand);
    if ((balance > VCUDA_BUCKET_BURST_NS || balance < -2 * (int64_t)VCUDA_DEBT_NS) &&
        swap(&bucket->supply_ns, &supply, demand))
        count(&bucket->resets);
    if (since > now_ns && since - now_ns > VCUDA_BUCKET_AHEAD_NS && swap(&bucket->refill_ns, &since, now_ns))
        count(&bucket->resets);
}

/* What was in force since the last refill; of a long time nobody knows that, and the lower of it and of what
 * is in force now counts: then neither noise in the ledger nor a change that nobody saw gives much. */
static uint32_t rate_since(const struct vcuda_bucket *bucket, uint64_t now_ns, uint32_t rate) {
    uint32_t before = __atomic_load_n(&bucket->rate_ppm, __ATOMIC_RELAXED);
    bool known = now_ns <= load(&bucket->refill_ns) + VCUDA_BUCKET_AHEAD_NS;
    return before == 0 || before > VCUDA_PPM || (before > rate && !known) ? rate : before;
}

/* Write down a part of the time that has passed; whether there is more. `all`: even what is not worth it yet,
 * because from now on another rate holds. */
static bool step(struct vcuda_bucket *bucket, uint64_t now_ns, uint32_t rate, bool all) {
    uint64_t since = load(&bucket->refill_ns), until = now_ns;
    if (since >= now_ns)
        return false;
    /* In a millisecond comes in a whole number of nanoseconds at any rate. */
    uint64_t most = (uint64_t)VCUDA_BUCKET_STEP_NS / rate * MS, elapsed = now_ns - since;
    uint64_t room = (uint64_t)room_of(vcuda_bucket_balance(bucket));
    uint64_t income = (elapsed < most ? elapsed : most) * rate / VCUDA_PPM;
    bool full = income >= room, more = !full && elapsed > most;
    if (!all && (elapsed < VCUDA_BUCKET_LEAST_NS || (!full && income == 0)))
        return false;
    if (full)
        income = room; /* the rest of the time is not used */
    else if (more)
        until = since + most;
    else if (!all)
        until = since + time_for(income, rate); /* the rest of a nanosecond goes on counting */
    if (!swap(&bucket->refill_ns, &since, until))
        return true;
    move(bucket, (int64_t)income);
    return more;
}

void vcuda_bucket_refill(struct vcuda_bucket *bucket, uint64_t now_ns, uint32_t rate_ppm) {
    uint32_t rate = clamped(rate_ppm), since = rate_since(bucket, now_ns, rate);
    bool change = __atomic_load_n(&bucket->rate_ppm, __ATOMIC_RELAXED) != rate;
    put_right(bucket, now_ns);
    while (step(bucket, now_ns, since, change)) {
    }
    /* Who was held up, and comes with an old clock, comes with an old rate too. */
    if (change && load(&bucket->refill_ns) <= now_ns)
        __atomic_store_n(&bucket->rate_ppm, rate, __ATOMIC_RELAXED);
}

uint64_t vcuda_bucket_take(struct vcuda_bucket *bucket, uint64_t cost_ns) {
    if (cost_ns > VCUDA_DEBT_NS / 2)
        cost_ns = VCUDA_DEBT_NS / 2;
    return __atomic_fetch_add(&bucket->demand_ns, cost_ns, __ATOMIC_RELAXED);
}

uint64_t vcuda_bucket_wait_at_ns(const struct vcuda_bucket *bucket, uint64_t ticket, uint32_t rate_ppm) {
    uint64_t supply = supply_of(bucket);
    int64_t behind = (int64_t)(ticket - supply), most = room_of(balance_of(bucket, supply));
    if (behind > most) /* a full bucket gets no fuller: who waits for more would wait for ever */
        behind = most;
    return behind <= 0 ? 0 : time_for((uint64_t)behind, clamped(rate_ppm));
}

void vcuda_bucket_correct(struct vcuda_bucket *bucket, int64_t more_ns) {
    int64_t most = VCUDA_DEBT_NS;
    move(bucket, more_ns > most ? -most : more_ns < -most ? most : -more_ns);
}
