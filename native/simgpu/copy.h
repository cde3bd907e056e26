/* What the files of copies know of one another: copy.c (what a copy is and does), copy_calls.c and memset.c.
 */
#ifndef SIM_COPY_H
#define SIM_COPY_H

#include "memory.h"

enum sim_place {
    SIM_PLACE_NOWHERE,
    SIM_PLACE_DEVICE,
    SIM_PLACE_MANAGED, /* the host may look at it at any time */
    SIM_PLACE_PINNED,
    SIM_PLACE_PAGEABLE, /* the program's memory, unknown here */
};

/* Where [address, address + bytes) is, to be read or written. Lock held. */
enum sim_place sim_place_of(CUdeviceptr address, uint64_t bytes, bool written);

/* How a call copies. */
struct sim_copy_mode {
    CUstream stream;
    bool ptsz, synchronous;
};

/* Check and submit. */
CUresult sim_copy(struct CUctx_st *context, const CUDA_MEMCPY3D *copy, struct sim_copy_mode mode);

#endif
