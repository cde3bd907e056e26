/* A table of fixed size, by hashing with a few probes. */
#include "cost.h"

#include <stdbool.h>

#define WEIGHT 8 /* of all that was learned before, against one measurement: WEIGHT - 1 to 1 */
#define SLOW_WEIGHT 64
#define TYPICAL_WEIGHT 16

struct vcuda_cost vcuda_costs[VCUDA_COST_ENTRIES];
/* Apart from what launches look at. */
static struct {
    uint64_t slow_ns; /* the same mean over more launches */
    enum vcuda_cost_known how;
} more[VCUDA_COST_ENTRIES];
static uint64_t typical_ns;

struct vcuda_cost *vcuda_cost_get(uint64_t kind) {
    for (uint64_t probe = 0; probe < VCUDA_COST_PROBES; probe++) {
        struct vcuda_cost *cost = &vcuda_costs[(vcuda_mix(kind) + probe) % VCUDA_COST_ENTRIES];
        uint64_t key = __atomic_load_n(&cost->key, __ATOMIC_RELAXED);
        if (key == kind || (key == 0 && (__atomic_compare_exchange_n(&cost->key, &key, kind, false,
                                                                     __ATOMIC_RELAXED, __ATOMIC_RELAXED) ||
                                         key == kind)))
            return cost;
    }
    /* A crowded neighbourhood: the first makes way. What is measured of it meanwhile is not learned. */
    struct vcuda_cost *cost = &vcuda_costs[vcuda_mix(kind) % VCUDA_COST_ENTRIES];
    __atomic_store_n(&cost->ns, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&more[cost - vcuda_costs].how, VCUDA_COST_GUESSED, __ATOMIC_RELAXED);
    __atomic_store_n(&cost->key, kind, __ATOMIC_RELAXED);
    return cost;
}

static uint64_t moved(uint64_t mean, uint64_t ns, uint64_t weight) {
    int64_t by = ((int64_t)ns - (int64_t)mean) / (int64_t)weight;
    uint64_t next = mean + (uint64_t)by;
    return next ? next : 1;
}

void vcuda_cost_learn(struct vcuda_cost *cost, uint64_t kind, uint64_t ns, enum vcuda_cost_known how) {
    if (!cost || __atomic_load_n(&cost->key, __ATOMIC_RELAXED) != kind)
        return;
    uint64_t known = __atomic_load_n(&cost->ns, __ATOMIC_RELAXED), now = ns ? ns : 1;
    if (!known)
        typical_ns = typical_ns ? moved(typical_ns, now, TYPICAL_WEIGHT) : now;
    uint64_t *slow = &more[cost - vcuda_costs].slow_ns;
    if (how > more[cost - vcuda_costs].how)
        __atomic_store_n(&more[cost - vcuda_costs].how, how, __ATOMIC_RELAXED);
    __atomic_store_n(slow, known ? moved(*slow, now, SLOW_WEIGHT) : now, __ATOMIC_RELAXED);
    __atomic_store_n(&cost->ns, known ? moved(known, now, WEIGHT) : now, __ATOMIC_RELAXED);
}

enum vcuda_cost_known vcuda_cost_how(const struct vcuda_cost *cost) {
    return cost ? __atomic_load_n(&more[cost - vcuda_costs].how, __ATOMIC_RELAXED) : VCUDA_COST_GUESSED;
}

uint64_t vcuda_cost_slow(const struct vcuda_cost *cost) {
    return __atomic_load_n(&more[cost - vcuda_costs].slow_ns, __ATOMIC_RELAXED);
}

uint64_t vcuda_cost_typical(void) {
    return __atomic_load_n(&typical_ns, __ATOMIC_RELAXED);
}
