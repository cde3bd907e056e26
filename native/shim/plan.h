/*
 * When the work that was launched is expected to run: what a launch adds to the time in which the card works
 * for this process.
 *
 * Work of one stream runs in order; work of several side by side while it fits on the card, else one after
 * the other. A launch that fits into time that is paid for already costs nothing. All instants are
 * CLOCK_MONOTONIC nanoseconds; nothing here reads a clock, and the caller sees to it that one thread at a
 * time is inside. See docs/decisions/0002-limiter.md.
 */
#ifndef VCUDA_PLAN_H
#define VCUDA_PLAN_H

#include <stdint.h>

#define VCUDA_PLAN_LANES 16     /* streams at work that are told apart */
#define VCUDA_WEIGHT_FULL 65536 /* a kernel that fills the card */
#define VCUDA_PLAN_LONGEST_NS                                                                                \
    1800000000000 /* no launch is taken for longer: so much can be paid for at once */

struct vcuda_lane {
    const void *stream;
    uint64_t until_ns; /* when its work is expected to end */
    uint32_t weight;   /* the part of the card that it fills, of VCUDA_WEIGHT_FULL */
};

struct vcuda_plan {
    uint64_t until_ns; /* when all of it is expected to end */
    uint64_t gate_ns;  /* when the latest launch that had to wait is expected to go */
    uint64_t ticket;   /* and its ticket */
    /* The last one is for all streams that find the others at work: it counts as filling the card. */
    struct vcuda_lane lane[VCUDA_PLAN_LANES + 1];
};

/* What a launch in `stream`, admitted at `at_ns`, is expected to do. */
struct vcuda_step {
    uint64_t end_ns;
    uint64_t adds_ns; /* to the time in which the card works for this process */
    uint32_t lane;    /* VCUDA_PLAN_LANES: the one for all others */
};
struct vcuda_step vcuda_plan_look(const struct vcuda_plan *plan, const void *stream, uint64_t at_ns,
                                  uint64_t length_ns, uint32_t weight);
/* It goes. */
void vcuda_plan_do(struct vcuda_plan *plan, const void *stream, const struct vcuda_step *step,
                   uint32_t weight);
/* When the stream's work is expected to end; 0 = nothing is known of it. */
uint64_t vcuda_plan_end(const struct vcuda_plan *plan, const void *stream);
/* The stream's work will end so much later than expected; earlier, if negative. */
void vcuda_plan_move(struct vcuda_plan *plan, const void *stream, int64_t later_ns, uint64_t now_ns);
/* The stream is known to be empty. */
void vcuda_plan_idle(struct vcuda_plan *plan, const void *stream, uint64_t now_ns);

#endif
