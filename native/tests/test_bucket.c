/*
 * The bucket: by the numbers; with a thread in each core; and with each of its operations cut short, or cut
 * in two by another one, at every access to shared memory that it makes.
 *
 * For the last, bucket.c is compiled into this file with its atomic accesses led past at_access().
 */
#include <setjmp.h>
#include <stdbool.h>

#include "check.h"
#include "vcuda/abi.h"

static void at_access(void);

#define __atomic_load_n(...) (at_access(), __atomic_load_n(__VA_ARGS__))
#define __atomic_store_n(...) (at_access(), __atomic_store_n(__VA_ARGS__))
#define __atomic_fetch_add(...) (at_access(), __atomic_fetch_add(__VA_ARGS__))
#define __atomic_compare_exchange_n(...) (at_access(), __atomic_compare_exchange_n(__VA_ARGS__))
#include "bucket.c" // NOLINT(bugprone-suspicious-include)
#undef __atomic_load_n
#undef __atomic_store_n
#undef __atomic_fetch_add
#undef __atomic_compare_exchange_n

#include <pthread.h>

#define S ((uint64_t)1000 * MS)
#define BURST ((int64_t)VCUDA_BUCKET_BURST_NS)
#define DEBT ((int64_t)VCUDA_DEBT_NS)
#define NOW (1000000 * S)
#define SHARE 300000

/* ---- what happens at an access ---- */

static _Thread_local int steps_left = -1; /* -1: nothing happens */
static _Thread_local void (*then)(void);

static void at_access(void) {
    if (steps_left >= 0 && steps_left-- == 0)
        then();
}

/* ---- numbers ---- */

/* At NOW, with this balance. */
static struct vcuda_bucket bucket_of(int64_t balance) {
    return (struct vcuda_bucket){
        .supply_ns = (uint64_t)balance + 7, .demand_ns = 7, .refill_ns = NOW, .rate_ppm = SHARE};
}

static int64_t balance_after(struct vcuda_bucket *bucket, uint64_t passed_ns) {
    vcuda_bucket_refill(bucket, NOW + passed_ns, SHARE);
    return vcuda_bucket_balance(bucket);
}

PROMISE(a_new_bucket_is_full) {
    struct vcuda_bucket bucket = {0};
    vcuda_bucket_refill(&bucket, NOW, SHARE);
    CHECK_EQUAL(vcuda_bucket_balance(&bucket), BURST);
    CHECK_EQUAL(bucket.rate_ppm, SHARE);
    CHECK_EQUAL(bucket.resets, 0);
}

/* At the share that the bucket was last refilled with. */
static uint64_t wait_ns(const struct vcuda_bucket *bucket, uint64_t ticket) {
    return vcuda_bucket_wait_at_ns(bucket, ticket, __atomic_load_n(&bucket->rate_ppm, __ATOMIC_RELAXED));
}

PROMISE(time_brings_the_share_of_it_and_no_more_than_the_burst) {
    struct vcuda_bucket bucket = bucket_of(-(int64_t)S);
    CHECK_EQUAL(balance_after(&bucket, 1 * S), -(int64_t)(700 * MS));
    CHECK_EQUAL(balance_after(&bucket, 2 * S), -(int64_t)(400 * MS));
    CHECK_EQUAL(balance_after(&bucket, 100 * S), BURST);
    CHECK_EQUAL(balance_after(&bucket, 100000 * S), BURST);
    CHECK_EQUAL(bucket.resets, 0);
}

PROMISE(the_smallest_share_gets_its_part_of_days) {
    struct vcuda_bucket bucket = bucket_of(-(int64_t)S);
    bucket.rate_ppm = 1;
    vcuda_bucket_refill(&bucket, NOW + 200000 * S, 1);
    CHECK_EQUAL(vcuda_bucket_balance(&bucket), -(int64_t)(800 * MS));
    CHECK_EQUAL(wait_ns(&bucket, bucket.demand_ns), 800000 * S);
}

/* Looked at each 7 ns: what is too small to be written down is not lost. */
PROMISE(frequent_looks_lose_nothing) {
    struct vcuda_bucket bucket = bucket_of(-(int64_t)S);
    for (uint64_t passed = 0; passed <= 10 * MS; passed += 7)
        vcuda_bucket_refill(&bucket, NOW + passed, SHARE);
    int64_t got = vcuda_bucket_balance(&bucket) + (int64_t)S;
    CHECK(got <= (int64_t)(3 * MS) && got >= (int64_t)(3 * MS) - 2 * VCUDA_BUCKET_LEAST_NS);
}

PROMISE(a_launch_of_any_length_goes_from_a_balance_of_0_and_the_next_one_pays) {
    struct vcuda_bucket bucket = bucket_of(0);
    uint64_t first = vcuda_bucket_take(&bucket, 90 * S);
    uint64_t second = vcuda_bucket_take(&bucket, 1 * S);
    CHECK_EQUAL(wait_ns(&bucket, first), 0);
    CHECK_EQUAL(wait_ns(&bucket, second), 300 * S);
    vcuda_bucket_refill(&bucket, NOW + 300 * S - 2000, SHARE);
    CHECK(wait_ns(&bucket, second) > 0);
    vcuda_bucket_refill(&bucket, NOW + 300 * S, SHARE);
    CHECK_EQUAL(wait_ns(&bucket, second), 0);
    CHECK_EQUAL(bucket.resets, 0);
}

/* Time, unlike a share, cannot be had twice: old clocks come from threads that were held up. */
PROMISE(a_clock_read_long_ago_changes_nothing) {
    struct vcuda_bucket bucket = bucket_of(-(int64_t)(50 * S));
    vcuda_bucket_refill(&bucket, NOW + S, SHARE);
    struct vcuda_bucket before = bucket;
    vcuda_bucket_refill(&bucket, NOW + 10 * MS, 10000);
    CHECK(memcmp(&bucket, &before, sizeof bucket) == 0);
}

PROMISE(a_clock_of_another_boot_forgives_no_debt) {
    struct vcuda_bucket bucket = bucket_of(-(int64_t)(50 * S));
    vcuda_bucket_refill(&bucket, 100 * S, SHARE);
    CHECK_EQUAL(vcuda_bucket_balance(&bucket), -(int64_t)(50 * S));
    CHECK_EQUAL(bucket.refill_ns, 100 * S);
    CHECK_EQUAL(bucket.resets, 1);
}

PROMISE(honest_debt_is_kept_however_deep) {
    struct vcuda_bucket bucket = bucket_of(0);
    for (int i = 0; i < 3000; i++) /* as many waiting launches of a second each */
        vcuda_bucket_take(&bucket, S);
    vcuda_bucket_correct(&bucket, (int64_t)(200 * S)); /* and a kernel of 200 s that nobody had expected */
    CHECK_EQUAL(balance_after(&bucket, 0), -(int64_t)(3200 * S));
    vcuda_bucket_correct(&bucket, INT64_MAX);
    CHECK_EQUAL(balance_after(&bucket, 0), -DEBT);
    vcuda_bucket_correct(&bucket, 1);
    CHECK_EQUAL(balance_after(&bucket, 0), -DEBT);
    CHECK_EQUAL(bucket.resets, 0);
}

PROMISE(what_is_given_back_lifts_nothing_above_the_burst) {
    struct vcuda_bucket bucket = bucket_of(-(int64_t)S);
    vcuda_bucket_correct(&bucket, -(int64_t)(400 * MS));
    CHECK_EQUAL(vcuda_bucket_balance(&bucket), -(int64_t)(600 * MS));
    vcuda_bucket_correct(&bucket, INT64_MIN);
    CHECK_EQUAL(vcuda_bucket_balance(&bucket), BURST);
}

PROMISE(the_share_in_force_counts_and_the_lower_one_where_nobody_watched) {
    struct vcuda_bucket fell = bucket_of(-(int64_t)S), long_ago = fell, rose = fell, noise = fell;
    vcuda_bucket_refill(&fell, NOW + S, 100000);
    CHECK_EQUAL(vcuda_bucket_balance(&fell), -(int64_t)(700 * MS));
    vcuda_bucket_refill(&fell, NOW + 2 * S, 100000);
    CHECK_EQUAL(vcuda_bucket_balance(&fell), -(int64_t)(600 * MS));
    vcuda_bucket_refill(&long_ago, NOW + 2 * S, 100000);
    CHECK_EQUAL(vcuda_bucket_balance(&long_ago), -(int64_t)(800 * MS));
    vcuda_bucket_refill(&rose, NOW + 2 * S, 900000);
    CHECK_EQUAL(vcuda_bucket_balance(&rose), -(int64_t)(400 * MS));
    noise.rate_ppm = UINT32_MAX;
    CHECK_EQUAL(balance_after(&noise, S), -(int64_t)(700 * MS));
    CHECK_EQUAL(noise.rate_ppm, SHARE);
}

PROMISE(a_ticket_from_before_noise_waits_for_a_full_bucket_at_most) {
    for (int bit = 0; bit < 64; bit++) {
        struct vcuda_bucket bucket = bucket_of(0);
        uint64_t ticket = vcuda_bucket_take(&bucket, S);
        bucket.demand_ns -= (uint64_t)1 << bit;
        vcuda_bucket_refill(&bucket, NOW, SHARE);
        uint64_t wait = wait_ns(&bucket, ticket);
        CHECK(wait <= (S + (uint64_t)BURST) * 10 / 3 + 1);
        vcuda_bucket_refill(&bucket, NOW + wait + 2000, SHARE);
        CHECK_EQUAL(wait_ns(&bucket, ticket), 0);
    }
}

/* ---- one operation cut by another, or by death, at each access ---- */

static struct vcuda_bucket cut;
static uint64_t late; /* what has passed since NOW, for who refills */

static void refills(void) {
    vcuda_bucket_refill(&cut, NOW + late, SHARE);
}
static void refills_at_another_share(void) {
    vcuda_bucket_refill(&cut, NOW + late, SHARE / 3);
}
static void asks(void) {
    vcuda_bucket_take(&cut, 25 * MS);
}
static void took_more(void) {
    vcuda_bucket_correct(&cut, (int64_t)(40 * MS));
}
static void took_less(void) {
    vcuda_bucket_correct(&cut, -(int64_t)(4 * MS));
}
static void asks_and_refills(void) {
    asks();
    refills();
}
static void (*const operations[])(void) = {refills,   refills_at_another_share, asks, took_more,
                                           took_less, asks_and_refills};
#define OPERATIONS (sizeof operations / sizeof *operations)

/* What each gives or takes at most, for the sums below. */
static const int64_t gives[] = {
    0, 0, -(int64_t)(25 * MS), -(int64_t)(40 * MS), (int64_t)(4 * MS), -(int64_t)(25 * MS)};

static const int64_t balances[] = {BURST,
                                   BURST - 300,
                                   BURST / 2,
                                   0,
                                   -(int64_t)(40 * MS),
                                   -(int64_t)S,
                                   -DEBT + 5,
                                   -2 * DEBT + (int64_t)S,
                                   -2 * DEBT - 5,
                                   BURST + 1,
                                   INT64_MAX,
                                   INT64_MIN};
#define BALANCES (sizeof balances / sizeof *balances)
static const uint64_t passed[] = {0, 100, 5000, MS, 20 * MS, 3 * S, 30 * S};
#define PASSED (sizeof passed / sizeof *passed)

static bool can_be_true(int64_t balance) {
    return balance <= BURST && balance >= -2 * DEBT;
}

/* The first is cut at each access, the second runs there, and at last behind it; `judge` sees the outcome. */
static int cut_each(void (*first)(void), int64_t balance, void (*at_cut)(void), void (*judge)(void)) {
    int access = 0;
    for (;; access++) {
        cut = bucket_of(balance);
        steps_left = access;
        then = at_cut;
        first();
        bool was_cut = steps_left < 0;
        steps_left = -1;
        if (!was_cut)
            at_cut();
        judge();
        if (!was_cut)
            return access;
    }
}

static int64_t begun, given;
static uint64_t income;

static void is_sound(void) {
    int64_t balance = vcuda_bucket_balance(&cut);
    if (!can_be_true(begun)) { /* put right to 0 by one of the two, or not looked at by a refill at all */
        CHECK(balance <= BURST + 8 * (int64_t)MS || cut.resets == 0);
        return;
    }
    CHECK_EQUAL(cut.resets, 0);
    CHECK(balance <= BURST);
    CHECK(balance <= begun + (int64_t)income + (given > 0 ? given : 0) + VCUDA_BUCKET_LEAST_NS);
    CHECK(balance >= begun - 65 * (int64_t)MS * 2);
}

PROMISE(cut_in_two_by_another_at_any_access_it_gives_nothing_twice_and_takes_nothing_twice) {
    int cuts = 0;
    for (size_t first = 0; first < OPERATIONS; first++)
        for (size_t second = 0; second < OPERATIONS; second++)
            for (size_t i = 0; i < BALANCES; i++)
                for (size_t j = 0; j < PASSED; j++) {
                    begun = balances[i];
                    late = passed[j];
                    income = late * SHARE / VCUDA_PPM;
                    given = 0;
                    given += gives[first] > 0 ? gives[first] : 0;
                    given += gives[second] > 0 ? gives[second] : 0;
                    cuts += cut_each(operations[first], balances[i], operations[second], is_sound);
                }
    CHECK(cuts > 5000);
    printf("%d cuts by another\n", cuts);
}

static void refills_and_took_more(void) {
    refills();
    took_more();
}
static void is_put_right_once(void) {
    CHECK_EQUAL(cut.resets, 1);
    CHECK_EQUAL(vcuda_bucket_balance(&cut), -(int64_t)(40 * MS));
}

PROMISE(who_is_late_to_put_noise_right_forgives_nothing_that_came_since) {
    late = 0;
    for (size_t i = 0; i < BALANCES; i++)
        if (!can_be_true(balances[i]))
            CHECK(cut_each(refills, balances[i], refills_and_took_more, is_put_right_once) > 3);
}

/* Nothing is lost either: what both ask for and bring is there in the end. */
static int64_t expected;
static void nothing_is_lost(void) {
    refills();
    int64_t balance = vcuda_bucket_balance(&cut);
    CHECK(balance <= expected && balance >= expected - VCUDA_BUCKET_LEAST_NS);
}

PROMISE(cut_in_two_by_another_it_loses_nothing) {
    static const size_t same_share[] = {0, 2, 3, 4};
    int cuts = 0;
    late = 20 * MS;
    for (size_t a = 0; a < 4; a++)
        for (size_t b = 0; b < 4; b++) {
            size_t first = same_share[a], second = same_share[b];
            int64_t balance = -(int64_t)S;
            expected = balance + (int64_t)(late * SHARE / VCUDA_PPM) + gives[first] + gives[second];
            cuts += cut_each(operations[first], balance, operations[second], nothing_is_lost);
        }
    CHECK(cuts > 50);
}

static jmp_buf death;
static void dies(void) {
    longjmp(death, 1);
}

/* Killed at each access: the next one finds a bucket that is sound, and poorer by one step at most. */
PROMISE(killed_at_any_access_it_leaves_a_sound_bucket) {
    static volatile int deaths;
    for (volatile size_t first = 0; first < OPERATIONS; first++)
        for (volatile size_t i = 0; i < BALANCES; i++)
            for (volatile size_t j = 0; j < PASSED; j++)
                for (volatile int access = 0;; access++) {
                    late = passed[j];
                    cut = bucket_of(balances[i]);
                    steps_left = access;
                    then = dies;
                    if (setjmp(death) == 0) {
                        operations[first]();
                        steps_left = -1;
                        break;
                    }
                    deaths++;
                    steps_left = -1;
                    refills();
                    int64_t balance = vcuda_bucket_balance(&cut);
                    int64_t begins = can_be_true(balances[i]) ? balances[i] : 0;
                    int64_t most = begins + (int64_t)(late * SHARE / VCUDA_PPM) + (int64_t)(4 * MS);
                    int64_t all = begins + (int64_t)(late * (SHARE / 3) / VCUDA_PPM);
                    int64_t least = (all < BURST ? all : BURST) - (int64_t)(65 * MS) - VCUDA_BUCKET_STEP_NS -
                                    VCUDA_BUCKET_LEAST_NS;
                    CHECK(balance <= BURST && balance <= most && balance >= least);
                }
    CHECK(deaths > 1000);
    printf("%d deaths\n", deaths);
}

/* ---- threads ---- */

#define THREADS 4
#define LOOKS 40000
#define TICK 2000 /* of simulated time */

static struct vcuda_bucket shared;
static uint64_t clock_now = NOW;
static uint64_t admitted, taken;

/* Each lets time pass, refills, launches what it may, and corrects; a thread that was held up has an old
 * clock.
 */
static void *launches(void *data) {
    uint64_t random = (uint64_t)(uintptr_t)data * 0x9e3779b97f4a7c15 + 1, ticket = 0, cost = 0;
    bool waits = false;
    for (int look = 0; look < LOOKS; look++) {
        random = random * 6364136223846793005 + 1442695040888963407;
        uint64_t now = __atomic_add_fetch(&clock_now, TICK, __ATOMIC_SEQ_CST);
        vcuda_bucket_refill(&shared, now, SHARE);
        CHECK(vcuda_bucket_balance(&shared) <= BURST);
        if (!waits) {
            cost = 1 + (random >> 33) % 20000;
            ticket = vcuda_bucket_take(&shared, cost);
            __atomic_fetch_add(&taken, cost, __ATOMIC_SEQ_CST);
            waits = true;
        }
        if (wait_ns(&shared, ticket) == 0) {
            int64_t more = (int64_t)((random >> 20) % 2001) - 1000;
            if ((int64_t)cost + more < 0)
                more = 0;
            vcuda_bucket_correct(&shared, more);
            __atomic_fetch_add(&admitted, cost + (uint64_t)more, __ATOMIC_SEQ_CST);
            waits = false;
        }
    }
    return NULL;
}

PROMISE(threads_that_race_are_admitted_what_time_brings_and_no_more) {
    pthread_t threads[THREADS];
    shared = bucket_of(0);
    shared.rate_ppm = SHARE;
    for (uintptr_t i = 0; i < THREADS; i++)
        CHECK_EQUAL(pthread_create(&threads[i], NULL, launches, (void *)i), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    uint64_t income_ns = (clock_now - NOW) * SHARE / VCUDA_PPM;
    CHECK_EQUAL(shared.resets, 0);
    CHECK_EQUAL(shared.demand_ns, 7 + taken);
    CHECK(admitted <= income_ns + (uint64_t)BURST + 21000);
    /* There was more to do than the share allows, so that all of it was used. */
    CHECK(admitted >= income_ns - income_ns / 100);
    printf("admitted %" PRIu64 " of %" PRIu64 " ns\n", admitted, income_ns);
}

int main(int argc, char **argv) {
    return keep_promises(argc, argv);
}
