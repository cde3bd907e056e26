/* Disjoint spans in ascending order; an interval is merged with all that it touches. */
#include "busy.h"

#include <string.h>

/* How much of the part [low, high) of a span is taken to be busy. */
static uint64_t share_of(const struct vcuda_span *span, uint64_t low, uint64_t high) {
    uint64_t length = span->to - span->from;
    if (span->busy == length || length == 0)
        return high - low;
    return (uint64_t)((double)span->busy / (double)length * (double)(high - low));
}

/* Make room: the two neighbours with the smallest pause between them become one. */
static void merge_closest(struct vcuda_busy *busy) {
    uint32_t best = 0;
    for (uint32_t i = 1; i + 1 < busy->count; i++)
        if (busy->span[i + 1].from - busy->span[i].to < busy->span[best + 1].from - busy->span[best].to)
            best = i;
    busy->span[best].to = busy->span[best + 1].to;
    busy->span[best].busy += busy->span[best + 1].busy;
    busy->count--;
    memmove(&busy->span[best + 1], &busy->span[best + 2], (busy->count - best - 1) * sizeof busy->span[0]);
}

uint64_t vcuda_busy_fill(struct vcuda_busy *busy, uint64_t from, uint64_t to, uint64_t most) {
    if (to <= from)
        return 0;
    struct vcuda_span merged = {from, to, 0};
    uint64_t known = 0, touched_busy = 0;
    uint32_t first = 0, end;
    while (first < busy->count && busy->span[first].to < from)
        first++;
    for (end = first; end < busy->count && busy->span[end].from <= to; end++) {
        const struct vcuda_span *span = &busy->span[end];
        uint64_t low = span->from > from ? span->from : from, high = span->to < to ? span->to : to;
        known += share_of(span, low, high);
        touched_busy += span->busy;
        merged.from = span->from < merged.from ? span->from : merged.from;
        merged.to = span->to > merged.to ? span->to : merged.to;
    }
    uint64_t fresh = to - from - known < most ? to - from - known : most;
    merged.busy = touched_busy + fresh;
    if (end == first) { /* touches none: a span of its own */
        if (busy->count == VCUDA_BUSY_SPANS) {
            merge_closest(busy);
            return vcuda_busy_fill(busy, from, to, most);
        }
        memmove(&busy->span[first + 1], &busy->span[first], (busy->count - first) * sizeof merged);
        busy->count++;
    } else {
        memmove(&busy->span[first + 1], &busy->span[end], (busy->count - end) * sizeof merged);
        busy->count -= end - first - 1;
    }
    busy->span[first] = merged;
    return fresh;
}

uint64_t vcuda_busy_add(struct vcuda_busy *busy, uint64_t from, uint64_t to) {
    return vcuda_busy_fill(busy, from, to, UINT64_MAX);
}
