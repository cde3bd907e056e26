/*
 * The place of the limiter: what is asked before work goes to the card.
 *
 * Interception (launch.c) knows what is launched and where; metering (meter.c) knows what such work has cost.
 * The limiter is told both and may let time pass before it answers; it may never wait for work on the GPU to
 * end, or programs whose kernels wait for each other would hang. Today it admits at once.
 */
#ifndef VCUDA_LIMITER_H
#define VCUDA_LIMITER_H

#include "share.h"

/* `cost_ns`: expected GPU time, 0 = not known yet. */
static inline void vcuda_limiter_admit(struct vcuda_share *share, int card, uint64_t cost_ns) {
    (void)share;
    (void)card;
    (void)cost_ns;
}

/* `gpu_ns` more have really been used on `card` than any admission was told of before. */
static inline void vcuda_limiter_used(struct vcuda_share *share, int card, uint64_t gpu_ns) {
    (void)share;
    (void)card;
    (void)gpu_ns;
}

#endif
