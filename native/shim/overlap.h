/*
 * Work of several processes of one container at the same time.
 *
 * Their kernels take turns on the card, so each one's intervals hold the others' turns. What counts for the
 * container is the time in which any of them was at work: whoever reports an interval takes off what another
 * process has reported already. Only the last few intervals are kept, in the ledger; who comes too late for
 * that, or at the very same moment, counts a little too much.
 */
#ifndef VCUDA_OVERLAP_H
#define VCUDA_OVERLAP_H

#include <stdint.h>

#include "vcuda/abi.h"

/* Report [from_ns, to_ns) of CLOCK_MONOTONIC for the process in `slot`; answers how much of it no other
 * process has reported. */
uint64_t vcuda_overlap_report(struct vcuda_ledger_card *card, uint32_t slot, uint64_t from_ns,
                              uint64_t to_ns);

#endif
