/*
 * The plan: what a launch adds to the time in which the card is at work, by hand-made cases, and against a
 * second, slower way to count on random ones.
 *
 * build: native/shim/plan.c
 */
#include "plan.h"

#include "check.h"

#define FULL VCUDA_WEIGHT_FULL
#define HALF (FULL / 2)
#define NOW ((uint64_t)1000000000)

static struct vcuda_plan plan;

static const void *stream(int number) {
    return (const void *)(uintptr_t)(1000 + number);
}

/* Launched at once; what it adds. */
static uint64_t launch(int number, uint64_t at, uint64_t length, uint32_t weight) {
    struct vcuda_step step = vcuda_plan_look(&plan, stream(number), at, length, weight);
    vcuda_plan_do(&plan, stream(number), &step, weight);
    return step.adds_ns;
}

PROMISE(work_of_one_stream_runs_in_order) {
    CHECK_EQUAL(launch(1, NOW, 100, 1), 100);
    CHECK_EQUAL(launch(1, NOW + 10, 50, 1), 50);
    CHECK_EQUAL(plan.until_ns, NOW + 150);
    CHECK_EQUAL(launch(1, NOW + 1000, 7, 1), 7);
    CHECK_EQUAL(plan.until_ns, NOW + 1007);
}

PROMISE(what_fits_beside_others_adds_only_what_goes_beyond_them) {
    CHECK_EQUAL(launch(1, NOW, 100, HALF), 100);
    CHECK_EQUAL(launch(2, NOW, 100, HALF), 0);
    CHECK_EQUAL(launch(2, NOW + 50, 30, HALF), 30);
    CHECK_EQUAL(plan.until_ns, NOW + 130);
}

PROMISE(what_fills_the_card_runs_behind_the_others) {
    CHECK_EQUAL(launch(1, NOW, 100, FULL), 100);
    CHECK_EQUAL(launch(2, NOW, 100, FULL), 100);
    CHECK_EQUAL(launch(3, NOW, 10, 1), 10);
    CHECK_EQUAL(launch(4, NOW + 250, 10, UINT32_MAX), 10);
    CHECK_EQUAL(plan.until_ns, NOW + 260);
}

PROMISE(looking_changes_nothing) {
    launch(1, NOW, 100, HALF);
    struct vcuda_plan before = plan;
    vcuda_plan_look(&plan, stream(2), NOW + 5, 500, HALF);
    CHECK(memcmp(&plan, &before, sizeof plan) == 0);
}

/* A launch that waits is planned for later. It must not take the lane of a stream that is at work meanwhile.
 */
PROMISE(a_stream_at_work_is_not_forgotten_for_a_launch_that_comes_later) {
    launch(1, NOW, 100, 1);
    CHECK_EQUAL(launch(2, NOW + 200, 500, 1), 500);
    CHECK_EQUAL(vcuda_plan_look(&plan, stream(1), NOW + 10, 1000, 1).end_ns, NOW + 1100);
}

PROMISE(more_streams_than_lanes_count_one_after_the_other) {
    for (int i = 0; i < VCUDA_PLAN_LANES; i++)
        CHECK_EQUAL(launch(i, NOW, 100, 1), i == 0 ? 100 : 0);
    CHECK_EQUAL(launch(100, NOW, 30, 1), 30);
    CHECK_EQUAL(launch(101, NOW, 30, 1), 30);
    CHECK_EQUAL(plan.until_ns, NOW + 160);
    /* And they are still known of when a stream among the others is found empty. */
    vcuda_plan_idle(&plan, stream(0), NOW + 50);
    CHECK_EQUAL(plan.until_ns, NOW + 160);
    /* Later there is room again. */
    CHECK_EQUAL(launch(100, NOW + 1000, 30, 1), 30);
    CHECK_EQUAL(launch(101, NOW + 1000, 30, 1), 0);
}

PROMISE(an_empty_stream_shortens_the_plan_to_what_others_have) {
    launch(1, NOW, 1000, HALF);
    launch(2, NOW, 300, HALF);
    vcuda_plan_idle(&plan, stream(1), NOW + 100);
    CHECK_EQUAL(plan.until_ns, NOW + 300);
    vcuda_plan_idle(&plan, stream(2), NOW + 100);
    CHECK_EQUAL(plan.until_ns, NOW + 100);
    vcuda_plan_idle(&plan, stream(3), NOW + 200);
    CHECK_EQUAL(plan.until_ns, NOW + 100);
    CHECK_EQUAL(launch(1, NOW + 100, 50, FULL), 50);
}

PROMISE(a_moved_end_moves_the_plan) {
    launch(1, NOW, 1000, HALF);
    launch(2, NOW, 300, HALF);
    vcuda_plan_move(&plan, stream(1), 500, NOW);
    CHECK_EQUAL(plan.until_ns, NOW + 1500);
    vcuda_plan_move(&plan, stream(1), -1400, NOW);
    CHECK_EQUAL(plan.until_ns, NOW + 300);
    vcuda_plan_move(&plan, stream(2), INT64_MIN, NOW + 20);
    CHECK_EQUAL(plan.until_ns, NOW + 100);
    vcuda_plan_move(&plan, stream(9), 5000, NOW);
    CHECK_EQUAL(plan.until_ns, NOW + 100);
    vcuda_plan_move(&plan, stream(1), INT64_MAX, NOW);
    CHECK_EQUAL(plan.until_ns, NOW + VCUDA_PLAN_LONGEST_NS);
}

PROMISE(no_length_wraps) {
    CHECK_EQUAL(launch(1, NOW, UINT64_MAX, 1), VCUDA_PLAN_LONGEST_NS);
    CHECK_EQUAL(launch(1, NOW, UINT64_MAX - NOW, 1), VCUDA_PLAN_LONGEST_NS);
}

/* ---- random launches, counted instant by instant ---- */

enum { STREAMS = 6, LENGTH = 4000 };

/* No launch adds more than its length, none is planned before what its stream has; and all together add as
 * much as is covered by where they are planned. */
PROMISE(what_launches_add_is_the_union_of_where_they_are_planned) {
    static bool busy[2 * LENGTH];
    srand(1);
    for (int round = 0; round < 3000; round++) {
        uint64_t now = NOW, sum = 0, count = 0, own[STREAMS] = {0};
        memset(&plan, 0, sizeof plan);
        memset(busy, 0, sizeof busy);
        for (int i = 0; i < 20; i++) {
            int number = rand() % STREAMS;
            uint64_t length = (uint64_t)(rand() % 150);
            uint32_t weight = rand() % 3 ? (uint32_t)(rand() % FULL) : FULL;
            now += (uint64_t)(rand() % 3 ? 0 : rand() % 100);
            struct vcuda_step step = vcuda_plan_look(&plan, stream(number), now, length, weight);
            vcuda_plan_do(&plan, stream(number), &step, weight);
            CHECK(step.adds_ns <= length && step.end_ns >= now + length);
            CHECK(step.end_ns >= own[number] + length);
            own[number] = step.end_ns;
            sum += step.adds_ns;
            for (uint64_t at = step.end_ns - length; at < step.end_ns; at++)
                busy[at - NOW] = true;
        }
        for (int at = 0; at < 2 * LENGTH; at++)
            count += busy[at];
        CHECK_EQUAL(sum, count);
    }
}

int main(int argc, char **argv) {
    return keep_promises(argc, argv);
}
