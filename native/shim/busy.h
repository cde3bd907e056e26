/*
 * The union of busy times: how much of an interval was not known as busy before.
 *
 * Streams overlap, and the card is busy once. A fixed number of spans is kept; beside the newest ones, older
 * ones are merged, and a merged span remembers how much of it was busy. A late interval that covers it whole
 * is thus counted exactly, one that covers part of it in proportion.
 */
#ifndef VCUDA_BUSY_H
#define VCUDA_BUSY_H

#include <stdint.h>

#define VCUDA_BUSY_SPANS 32

struct vcuda_span {
    uint64_t from, to;
    uint64_t busy; /* at most to - from */
};

struct vcuda_busy {
    uint32_t count;
    struct vcuda_span span[VCUDA_BUSY_SPANS]; /* disjoint, ascending */
};

/* Add [from, to); answers how much of it was not known as busy. */
uint64_t vcuda_busy_add(struct vcuda_busy *busy, uint64_t from, uint64_t to);
/* Add `most` of busy time somewhere in [from, to) where nothing was known of any, or as much as there is room
 * for; answers how much. */
uint64_t vcuda_busy_fill(struct vcuda_busy *busy, uint64_t from, uint64_t to, uint64_t most);

#endif
