/*
 * The cost model: what launches of one kind take of GPU time, as a running mean of those that were measured.
 *
 * A kind is a function and the magnitude of its grid, or a graph. The table has a fixed size: a program with
 * more kinds than fit pays for guessing again what was pushed out. Knows nothing of CUDA. Any thread may look
 * something up; learning is done by one at a time.
 */
#ifndef VCUDA_COST_H
#define VCUDA_COST_H

#include <stddef.h>
#include <stdint.h>

#define VCUDA_COST_ENTRIES 2048 /* a power of two */
#define VCUDA_COST_PROBES 8

struct vcuda_cost {
    uint64_t key;
    uint64_t ns; /* running mean; 0 = never measured */
};

extern struct vcuda_cost vcuda_costs[VCUDA_COST_ENTRIES];

static inline uint64_t vcuda_mix(uint64_t value) {
    value *= 0x9e3779b97f4a7c15;
    return value >> 32;
}

/* In one look, where it lies at the first place; else NULL. */
static inline struct vcuda_cost *vcuda_cost_find(uint64_t kind) {
    struct vcuda_cost *cost = &vcuda_costs[vcuda_mix(kind) % VCUDA_COST_ENTRIES];
    return __atomic_load_n(&cost->key, __ATOMIC_RELAXED) == kind ? cost : NULL;
}

/* Its entry, made if there is none. */
struct vcuda_cost *vcuda_cost_get(uint64_t kind);
/* How well it is known what a launch takes. */
enum vcuda_cost_known {
    VCUDA_COST_GUESSED, /* others had the card too while it was measured */
    VCUDA_COST_ALONE,   /* but for what the host took to launch it */
    VCUDA_COST_EXACT,   /* behind other work, to the precision of the GPU's clock */
};
/* A launch of this kind took ns; nothing where the entry is another kind's by now. */
void vcuda_cost_learn(struct vcuda_cost *cost, uint64_t kind, uint64_t ns, enum vcuda_cost_known how);
/* How well a launch of it was known at best. */
enum vcuda_cost_known vcuda_cost_how(const struct vcuda_cost *cost);
/* The mean over more launches, of one that was measured. */
uint64_t vcuda_cost_slow(const struct vcuda_cost *cost);
/* What the first measured launch of a kind took, as a running mean over kinds; 0 = nothing was measured. */
uint64_t vcuda_cost_typical(void);

#endif
