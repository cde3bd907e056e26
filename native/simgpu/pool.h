/* What the two files of stream-ordered memory know of each other: pool.c (what lies where) and pool_calls.c.
 */
#ifndef SIM_POOL_H
#define SIM_POOL_H

#include "vmm.h"

#define SIM_NO_POOLS (UINT32_MAX - 1) /* a card that has none */

struct sim_chunk;
struct sim_piece;

struct CUmemPoolHandle_st {
    struct sim_node node; /* start: its own address */
    uint32_t card;        /* SIM_NO_CARD: of the host */
    CUdevice device;
    CUmemPoolProps properties;
    bool is_default, destroyed;
    int reuse[3]; /* the CU_MEMPOOL_ATTR_REUSE_ settings: remembered, and as if they were on */
    uint64_t threshold, reserved, reserved_high, used, used_high;
    uint32_t readers, writers; /* ordinals that may besides its own, a bit each */
    uint32_t leaving;          /* pieces freed in a stream that has not got there yet */
    struct sim_chunk *chunks;
};

/* Lock held for all of these. */

CUmemoryPool sim_pool_make(const CUmemPoolProps *properties, uint32_t card);
bool sim_pool_is(CUmemoryPool pool);
/* The default pool of a location and the current one, made when first asked for; NULL: no memory. */
CUmemoryPool sim_pool_default(uint32_t card, CUdevice device);
CUmemoryPool sim_pool_current(uint32_t card, CUdevice device);
void sim_pool_set_current(uint32_t card, CUmemoryPool pool); /* NULL: the default one */
void sim_pool_destroy(CUmemoryPool pool);

/* Find room for `bytes`, in what is free or was freed before in the same stream (`lane`); with `grow`, take
 * more of the card for it. CUDA_ERROR_OUT_OF_MEMORY: none. */
CUresult sim_pool_allocate(CUmemoryPool pool, struct CUctx_st *context, uint64_t bytes, CUstream lane,
                           bool grow, CUdeviceptr *address);
/* The program has no use for it any more; returns the number by which sim_piece_left knows it. */
uint64_t sim_piece_leave(struct sim_range *range, CUstream lane);
/* The stream has got there: anybody may have it now. Nothing, if its own stream has had it in between. */
void sim_piece_left(uint64_t number);
/* Give chunks that are free back to the card, as long as `keep` bytes stay reserved. */
void sim_pool_trim(CUmemoryPool pool, uint64_t keep);
/* The same for all pools, down to their thresholds; those of card `wholly` to nothing. */
void sim_pools_trim(uint32_t wholly);

#endif
