/* What the files of contexts know of one another: context.c, primary.c, settings.c. */
#ifndef SIM_CONTEXT_H
#define SIM_CONTEXT_H

#include "driver.h"

#define SIM_CONTEXT_MAGIC 0x7478657463647563U /* of one that lives */

/* What a program set in a context, and is told again. */
struct sim_settings {
    size_t limits[CU_LIMIT_MAX];
    CUfunc_cache cache;
    uint32_t peers; /* ordinals whose memory may be reached, a bit each */
};

/* Take what a context costs, and give the struct its life; CUDA_ERROR_OUT_OF_MEMORY. */
CUresult sim_context_start(struct CUctx_st *context, CUdevice device, unsigned int flags);
/* End all that is in it, and give back what it cost. No lock is held. */
void sim_context_end(struct CUctx_st *context);

CUresult sim_context_flags_check(unsigned int flags);
/* The calling thread's stack. */
CUresult sim_push(struct CUctx_st *context);

#endif
