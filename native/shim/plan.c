/* Lanes, one for a stream; the plan ends with the last of them. */
#include "plan.h"

#include <stddef.h>

#include "bucket.h"

_Static_assert(VCUDA_PLAN_LONGEST_NS <= VCUDA_DEBT_NS / 2, "what a launch adds can be taken from the bucket");

static uint64_t later(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

/* The stream's own lane, or VCUDA_PLAN_LANES. */
static uint32_t own_lane(const struct vcuda_plan *plan, const void *stream) {
    uint32_t lane = 0;
    while (lane < VCUDA_PLAN_LANES && !(plan->lane[lane].stream == stream && plan->lane[lane].until_ns))
        lane++;
    return lane;
}

/* The stream's own lane; else the one that has had nothing to do for longest at `at_ns`, so that no stream
 * that is at work now is forgotten for a launch that comes later; else the common one. */
static uint32_t lane_of(const struct vcuda_plan *plan, const void *stream, uint64_t at_ns) {
    uint32_t own = own_lane(plan, stream), idle = 0;
    if (own < VCUDA_PLAN_LANES)
        return own;
    for (uint32_t i = 1; i < VCUDA_PLAN_LANES; i++)
        if (plan->lane[i].until_ns < plan->lane[idle].until_ns)
            idle = i;
    return plan->lane[idle].until_ns <= at_ns ? idle : VCUDA_PLAN_LANES;
}

/* How much of the card is taken at an instant by others than `lane`. */
static uint32_t beside(const struct vcuda_plan *plan, uint32_t lane, uint64_t at_ns) {
    uint32_t sum = 0;
    for (uint32_t i = 0; i <= VCUDA_PLAN_LANES; i++)
        if (i != lane && plan->lane[i].until_ns > at_ns)
            sum += plan->lane[i].weight;
    return sum;
}

static uint32_t clamped(uint32_t weight) {
    return weight < VCUDA_WEIGHT_FULL ? weight : VCUDA_WEIGHT_FULL;
}

struct vcuda_step vcuda_plan_look(const struct vcuda_plan *plan, const void *stream, uint64_t at_ns,
                                  uint64_t length_ns, uint32_t weight) {
    uint32_t lane = lane_of(plan, stream, at_ns);
    uint64_t start = at_ns;
    if (lane == VCUDA_PLAN_LANES || plan->lane[lane].stream == stream)
        start = later(start, plan->lane[lane].until_ns);
    uint32_t fills = lane == VCUDA_PLAN_LANES ? VCUDA_WEIGHT_FULL : clamped(weight);
    if (beside(plan, lane, start) + fills > VCUDA_WEIGHT_FULL)
        start = later(start, plan->until_ns);
    if (length_ns > VCUDA_PLAN_LONGEST_NS)
        length_ns = VCUDA_PLAN_LONGEST_NS;
    struct vcuda_step step = {.end_ns = start + length_ns, .lane = lane};
    uint64_t known = later(plan->until_ns, start);
    step.adds_ns = step.end_ns > known ? step.end_ns - known : 0;
    return step;
}

void vcuda_plan_do(struct vcuda_plan *plan, const void *stream, const struct vcuda_step *step,
                   uint32_t weight) {
    plan->until_ns = later(plan->until_ns, step->end_ns);
    if (step->lane < VCUDA_PLAN_LANES)
        plan->lane[step->lane] = (struct vcuda_lane){stream, step->end_ns, clamped(weight)};
    else
        plan->lane[VCUDA_PLAN_LANES] = (struct vcuda_lane){NULL, step->end_ns, VCUDA_WEIGHT_FULL};
}

/* What the lanes say; never more than was expected before. */
static void shrink(struct vcuda_plan *plan, uint64_t now_ns) {
    uint64_t until = now_ns;
    for (uint32_t i = 0; i <= VCUDA_PLAN_LANES; i++)
        until = later(until, plan->lane[i].until_ns);
    if (until < plan->until_ns)
        plan->until_ns = until;
}

uint64_t vcuda_plan_end(const struct vcuda_plan *plan, const void *stream) {
    uint32_t lane = own_lane(plan, stream);
    return lane < VCUDA_PLAN_LANES ? plan->lane[lane].until_ns : 0;
}

/* Neither before now nor farther away than any launch is taken to last: the arithmetic must not wrap. */
static uint64_t moved(uint64_t until_ns, int64_t later_ns, uint64_t now_ns) {
    uint64_t by = later_ns < 0 ? -(uint64_t)later_ns : (uint64_t)later_ns;
    uint64_t ahead = until_ns > now_ns ? until_ns - now_ns : 0;
    if (later_ns < 0)
        return until_ns - (by < ahead ? by : ahead);
    uint64_t most = later(until_ns, now_ns + VCUDA_PLAN_LONGEST_NS);
    return by < most - until_ns ? until_ns + by : most;
}

void vcuda_plan_move(struct vcuda_plan *plan, const void *stream, int64_t later_ns, uint64_t now_ns) {
    uint32_t own = own_lane(plan, stream);
    if (own < VCUDA_PLAN_LANES) {
        struct vcuda_lane *lane = &plan->lane[own];
        lane->until_ns = moved(lane->until_ns, later_ns, now_ns);
        plan->until_ns = later(plan->until_ns, lane->until_ns);
    }
    shrink(plan, now_ns);
}

void vcuda_plan_idle(struct vcuda_plan *plan, const void *stream, uint64_t now_ns) {
    uint32_t own = own_lane(plan, stream);
    if (own < VCUDA_PLAN_LANES && plan->lane[own].until_ns > now_ns)
        plan->lane[own].until_ns = now_ns;
    shrink(plan, now_ns);
}
