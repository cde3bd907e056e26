/* Device memory: what the files of the memory handlers know of one another. */
#ifndef VCUDA_MEMORY_H
#define VCUDA_MEMORY_H

#include "record.h"
#include "share.h"

/* Reserve `bytes`, looking first whether stream-ordered pools have given something back unnoticed. */
bool vcuda_reserve_or_settle(struct vcuda_share *share, int card, enum vcuda_kind kind, uint64_t bytes);
bool vcuda_reserve_or_settle_as(struct vcuda_share *share, int card, enum vcuda_kind kind, uint64_t bytes,
                                unsigned int how);

/* After the driver has answered CUDA_ERROR_OUT_OF_MEMORY to what the ledger allowed: a process of this
 * container that has just died may hold its memory still. True = that may be so, some time has been waited,
 * try again. */
bool vcuda_wait_for_the_dead(struct vcuda_share *share, int card, int *tries);

/* Forget what a context took along when it was destroyed, and give back what was charged for it. */
void vcuda_linear_forget_context(struct vcuda_share *share, CUcontext context);
void vcuda_arrays_forget_context(struct vcuda_share *share, CUcontext context);
void vcuda_modules_forget_context(struct vcuda_share *share, CUcontext context);
void vcuda_limits_forget_context(struct vcuda_share *share, CUcontext context);

/* Give back what was freed in stream order and has left. */
void vcuda_linear_settle_leaving(struct vcuda_share *share);

/* In a forked child: the parent's locks and sums are not the child's. */
void vcuda_arrays_forget_process(void);
void vcuda_vmm_forget_process(void);
void vcuda_pools_forget_process(void);
void vcuda_graph_memory_forget_process(void);
void vcuda_modules_forget_process(void);
void vcuda_contexts_forget_process(void);
void vcuda_limits_forget_process(void);

/* If `address` is a linear allocation, free it and give its charge back. False = not ours. */
bool vcuda_linear_free(struct vcuda_share *share, CUdeviceptr address, CUresult *result);

/* A linear allocation freed in stream order: its charge stays until the stream has come that far. */
void vcuda_linear_freed_in_stream(struct vcuda_share *share, CUdeviceptr address, CUstream stream, bool ptsz);

/* ---- pools (pool.c) and graph memory (graph_memory.c) ---- */

extern bool vcuda_pools_in_use; /* some stream-ordered pool of this process was charged */
/* Compare what is charged for pools with what they have reserved. Call after work has been waited for. */
void vcuda_pools_settle(struct vcuda_share *share);
static inline void vcuda_synchronised(void) {
    if (__builtin_expect(__atomic_load_n(&vcuda_pools_in_use, __ATOMIC_RELAXED), 0)) {
        struct vcuda_share *share = vcuda_limited_share();
        if (share)
            vcuda_pools_settle(share);
    }
}
/* A cuMemFree(Async) of an address of a pool that was destroyed while it was in use, and the like. */
void vcuda_pool_freed(struct vcuda_share *share, CUdeviceptr address);

extern bool vcuda_graph_memory_in_use; /* some graph of this process allocates memory */
/* Before a graph is launched or uploaded: false = its memory does not fit. After: charge what it really took.
 */
struct vcuda_graph_ticket {
    int card;
    uint64_t reserved;
};
bool vcuda_graph_memory_admit(struct vcuda_share *share, CUgraphExec graph,
                              struct vcuda_graph_ticket *ticket);
void vcuda_graph_memory_settle(struct vcuda_share *share, const struct vcuda_graph_ticket *ticket);
/* A capturing stream got an allocation of `bytes`: the graph it ends in will have to be charged. */
void vcuda_graph_memory_captured(struct vcuda_share *share, int card, CUstream stream, uint64_t bytes);

#endif
