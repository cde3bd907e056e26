/*
 * The limiter: what is asked before work goes to the card, and told when it is known what it took.
 *
 * Interception (launch.c) knows what is launched and where; metering (meter.c) knows what such work has cost.
 * The limiter knows neither: it is given a length and a stream's name, and may let time pass before it
 * answers. It never waits for work on the GPU to end, or programs whose kernels wait for each other would
 * hang. How: docs/decisions/0002-limiter.md; the arithmetic is bucket.c's and plan.c's.
 */
#ifndef VCUDA_LIMITER_H
#define VCUDA_LIMITER_H

#include "share.h"

#define VCUDA_CHUNK_NS 2000000 /* a stream pays for so much at a time */

/* A wish to launch. */
struct vcuda_order {
    const void *stream; /* any name for it */
    uint64_t length_ns; /* how long it will keep the card at work, as far as is known */
    uint32_t weight;    /* the part of the card that it fills, of VCUDA_WEIGHT_FULL */
    bool guessed;       /* nothing like it has been measured */
    bool uncertain;     /* what is like it differs much: work may end long before it is expected to */
    /* Read what has been measured, charge for what runs longer than expected, and answer how much has been
     * charged for what still does, in ns. Called without any lock of the limiter's. */
    uint64_t (*look)(void *argument);
    /* Of a guessed one: how long to hold on at most, in ns, for something like it that is being measured. */
    uint64_t (*hold)(void *argument);
    void *argument;
};

/* Whether launches on `card` must be paid for, as the grant says now. */
bool vcuda_limiter_limits(const struct vcuda_share *share, int card);

/* Pay, and let time pass until it may go; what was paid, in ns of GPU time. */
uint64_t vcuda_limiter_admit(const struct vcuda_share *share, int card, const struct vcuda_order *order);

/* Work that goes on is taking more_ns more than was paid for it. */
void vcuda_limiter_charge(const struct vcuda_share *share, int card, uint64_t more_ns);
/* Work for which paid_ns were paid has taken used_ns. */
void vcuda_limiter_settle(const struct vcuda_share *share, int card, uint64_t used_ns, uint64_t paid_ns);

/* When the work of a stream is expected to end, on CLOCK_MONOTONIC; 0 = nothing is known of it. */
uint64_t vcuda_limiter_end_of(int card, const void *stream);
/* The work of a stream has ended, or ended (will end) so much later than expected (earlier, if negative). */
void vcuda_limiter_idle(int card, const void *stream);
void vcuda_limiter_move(int card, const void *stream, int64_t later_ns);

/* Beside neighbours more is measured than is truly had: the one for the other. */
uint64_t vcuda_limiter_measured_ns(const struct vcuda_share *share, int card, uint64_t true_ns);
uint64_t vcuda_limiter_true_ns(const struct vcuda_share *share, int card, uint64_t measured_ns);

void vcuda_limiter_forget_process(void);

#endif
