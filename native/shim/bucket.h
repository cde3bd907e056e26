/*
 * A share of GPU time, as a bucket: what comes in with time, what is asked for by launches.
 *
 * A launch takes a ticket and may go once everything that was asked for before it has come in. So it is
 * admitted from a balance of 0, however long it is, and what comes after pays. Tickets are served in order.
 *
 * Promises (docs/decisions/0002-limiter.md, docs/explanation/limiter.md), whatever the words hold at first
 * and whichever process is killed where: the balance that anybody acts on is at most VCUDA_BUCKET_BURST_NS; a
 * ticket is reached after a finite time. Knows nothing of CUDA, reads no clock, never sleeps. Any number of
 * threads and processes use a bucket at once.
 */
#ifndef VCUDA_BUCKET_H
#define VCUDA_BUCKET_H

#include <stdint.h>

#include "vcuda/abi.h"

/* The most that an idle share keeps. */
#define VCUDA_BUCKET_BURST_NS 10000000
/* The deepest debt that work is held to; twice as much cannot be true. */
#define VCUDA_DEBT_NS 3600000000000
/* Time that is not worth writing down yet. */
#define VCUDA_BUCKET_LEAST_NS 1000
/* Income that is written down at once, and lost with who is killed while at it. */
#define VCUDA_BUCKET_STEP_NS 100000000
/* So far the bucket's time may be ahead of who was held up since it read the clock; and so long nobody need
 * look for the share in force to be known. */
#define VCUDA_BUCKET_AHEAD_NS 1000000000

/* Let time pass up to now_ns (CLOCK_MONOTONIC), and `rate_ppm` be in force from there on; 1 to VCUDA_PPM,
 * others are brought into that range. The time since the last refill counts at the old rate, if it is more
 * than a second at the lower of the two. Read the clock just before: what happened in between must not look
 * like the future. */
void vcuda_bucket_refill(struct vcuda_bucket *bucket, uint64_t now_ns, uint32_t rate_ppm);

/* What may be used at once; negative: debt. As of the last refill. */
int64_t vcuda_bucket_balance(const struct vcuda_bucket *bucket);

/* Ask for cost_ns of GPU time, at most VCUDA_DEBT_NS / 2; the ticket. */
uint64_t vcuda_bucket_take(struct vcuda_bucket *bucket, uint64_t cost_ns);

/* How long it is until the ticket is reached at `rate_ppm`, in ns; 0 = it is. As of the last refill. At most
 * until the bucket is full: a ticket beyond that is of a bucket that was put right meanwhile. */
uint64_t vcuda_bucket_wait_at_ns(const struct vcuda_bucket *bucket, uint64_t ticket, uint32_t rate_ppm);

/* Work took more (less, if negative) than was paid for it. Takes no balance below -VCUDA_DEBT_NS, lifts none
 * above the burst. */
void vcuda_bucket_correct(struct vcuda_bucket *bucket, int64_t more_ns);

#endif
