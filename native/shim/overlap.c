/* A ring of intervals that all processes of a container write. A torn entry is a wrong one, among many. */
#include "overlap.h"

#include "busy.h"

#define RECENT (sizeof((struct vcuda_ledger_card *)0)->recent / sizeof(struct vcuda_interval))
#define SLOT_SHIFT 40
#define LENGTH_MASK (((uint64_t)1 << SLOT_SHIFT) - 1)

uint64_t vcuda_overlap_report(struct vcuda_ledger_card *card, uint32_t slot, uint64_t from_ns,
                              uint64_t to_ns) {
    struct vcuda_busy others = {0};
    uint64_t length = to_ns > from_ns ? to_ns - from_ns : 0;
    if (!length || length > LENGTH_MASK)
        return length;
    for (uint32_t i = 0; i < RECENT; i++) {
        uint64_t from = __atomic_load_n(&card->recent[i].from_ns, __ATOMIC_RELAXED);
        uint64_t word = __atomic_load_n(&card->recent[i].length, __ATOMIC_RELAXED);
        uint64_t to = from + (word & LENGTH_MASK);
        if (word >> SLOT_SHIFT != slot + 1 && from < to_ns && to > from_ns)
            vcuda_busy_add(&others, from, to);
    }
    uint64_t index = __atomic_fetch_add(&card->recent_next, 1, __ATOMIC_RELAXED) % RECENT;
    __atomic_store_n(&card->recent[index].from_ns, from_ns, __ATOMIC_RELAXED);
    __atomic_store_n(&card->recent[index].length, (uint64_t)(slot + 1) << SLOT_SHIFT | length,
                     __ATOMIC_RELAXED);
    return others.count ? vcuda_busy_add(&others, from_ns, to_ns) : length;
}
