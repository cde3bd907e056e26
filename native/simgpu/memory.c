/* Linear and managed memory: cuMemAlloc and its relatives, and the driver's own small allocations. */
#include "memory.h"

#include <stdlib.h>

#define PITCH_ALIGNMENT 512U

/* ---- allocating ---- */

static CUresult allocate(struct CUctx_st *context, enum sim_memory_kind kind, uint64_t bytes,
                         unsigned int flags, CUdeviceptr *address) {
    static const enum sim_heap_class classes[] = {
        [SIM_MEMORY_LINEAR] = SIM_HEAP_DATA,
        [SIM_MEMORY_MANAGED] = SIM_HEAP_MANAGED,
        [SIM_MEMORY_INTERNAL] = SIM_HEAP_INTERNAL,
    };
    CUdeviceptr at;
    struct sim_block *block;
    if (bytes > (uint64_t)1 << 46)
        return CUDA_ERROR_OUT_OF_MEMORY;
    sim_memory_lock();
    CUresult result = sim_heap_allocate(context, classes[kind], bytes, &at, &block);
    if (result == CUDA_SUCCESS) {
        struct sim_range range = {.node = {.start = at, .bytes = bytes},
                                  .kind = kind,
                                  .context = context,
                                  .card = context->card,
                                  .device = context->device,
                                  .flags = flags,
                                  .of = block};
        if (sim_range_put(&range)) {
            *address = at;
        } else {
            sim_heap_free(block, at, bytes);
            result = CUDA_ERROR_OUT_OF_MEMORY;
        }
    }
    sim_memory_unlock();
    return result;
}

static void drop(struct sim_range *range) {
    sim_heap_free(range->of, range->node.start, range->node.bytes);
    sim_range_drop(range);
}

CUresult sim_memory_small(struct CUctx_st *context, uint64_t bytes, CUdeviceptr *address) {
    return bytes ? allocate(context, SIM_MEMORY_INTERNAL, bytes, 0, address) : CUDA_ERROR_INVALID_VALUE;
}

void sim_memory_small_free(struct CUctx_st *context, CUdeviceptr address) {
    sim_memory_lock();
    struct sim_range *range = sim_range_at(address);
    if (range && range->node.start == address && range->kind == SIM_MEMORY_INTERNAL &&
        range->context == context)
        drop(range);
    sim_memory_unlock();
}

void sim_memory_context_ends(struct CUctx_st *context) {
    sim_arrays_context_ends(context);
    sim_pools_context_ends(context);
    sim_ipc_context_ends(context);
    sim_host_context_ends(context);
    sim_memory_lock();
    struct sim_range *next;
    for (struct sim_range *range = sim_range_from(0); range; range = next) {
        next = sim_range_from(range->node.start + range->node.bytes);
        if (range->context == context && range->kind <= SIM_MEMORY_INTERNAL)
            sim_range_drop(range);
    }
    sim_heap_end(context);
    sim_memory_unlock();
}

/* ---- the calls ---- */

SIM_EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *dptr, size_t bytesize) {
    SIM_BEGIN_IN(context);
    if (!dptr || !bytesize)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = sim_capture_forbids();
    return result == CUDA_SUCCESS ? allocate(context, SIM_MEMORY_LINEAR, bytesize, 0, dptr) : result;
}

SIM_EXPORT CUresult cuMemAllocPitch_v2(CUdeviceptr *dptr, size_t *pPitch, size_t WidthInBytes, size_t Height,
                                       unsigned int ElementSizeBytes) {
    SIM_BEGIN_IN(context);
    bool size_known = ElementSizeBytes == 4 || ElementSizeBytes == 8 || ElementSizeBytes == 16;
    if (!dptr || !pPitch || !WidthInBytes || !Height || !size_known)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = sim_capture_forbids();
    uint64_t pitch = sim_round_up(WidthInBytes, PITCH_ALIGNMENT), bytes;
    if (result == CUDA_SUCCESS && __builtin_mul_overflow(pitch, (uint64_t)Height, &bytes))
        result = CUDA_ERROR_OUT_OF_MEMORY;
    if (result == CUDA_SUCCESS)
        result = allocate(context, SIM_MEMORY_LINEAR, bytes, 0, dptr);
    if (result == CUDA_SUCCESS)
        *pPitch = pitch;
    return result;
}

/* Managed memory is taken from the card at once and stays there: it does not move, nor go beyond the card. */
SIM_EXPORT CUresult cuMemAllocManaged(CUdeviceptr *dptr, size_t bytesize, unsigned int flags) {
    SIM_BEGIN_IN(context);
    if (!dptr || !bytesize || (flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST))
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = sim_capture_forbids();
    return result == CUDA_SUCCESS ? allocate(context, SIM_MEMORY_MANAGED, bytesize, flags, dptr) : result;
}

/* What lies at the address that cuMemFree was given; the lock is not held afterwards. */
static bool look(CUdeviceptr address, enum sim_memory_kind *kind, struct CUctx_st **context) {
    sim_memory_lock();
    const struct sim_range *range = sim_range_at(address);
    bool found = range && range->node.start == address;
    if (found) {
        *kind = range->kind;
        *context = range->context;
    }
    sim_memory_unlock();
    return found;
}

bool sim_memory_free(CUdeviceptr address, bool leaving) {
    bool freed = false;
    sim_memory_lock();
    struct sim_range *range = sim_range_at(address);
    if (range && range->node.start == address && range->leaving == leaving) {
        freed = range->kind == SIM_MEMORY_LINEAR || range->kind == SIM_MEMORY_MANAGED ||
                range->kind == SIM_MEMORY_POOLED;
        if (range->kind == SIM_MEMORY_POOLED)
            sim_piece_free(range);
        else if (freed)
            drop(range);
    }
    sim_memory_unlock();
    return freed;
}

/* The address says whose memory it is: no context needs to be current. */
SIM_EXPORT CUresult cuMemFree_v2(CUdeviceptr dptr) {
    SIM_BEGIN();
    enum sim_memory_kind kind;
    struct CUctx_st *owner;
    CUresult result = sim_capture_forbids();
    if (result != CUDA_SUCCESS)
        return result;
    if (!look(dptr, &kind, &owner) || kind == SIM_MEMORY_GRAPH)
        return sim_graph_memory_free(dptr) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    /* What was submitted before may still use the memory; of what cuMemAllocAsync gave the caller knows that
     * it doesn't. */
    if (kind != SIM_MEMORY_POOLED && owner && sim_is_context(owner))
        sim_context_synchronize(owner);
    return sim_memory_free(dptr, false) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_EXPORT CUresult cuMemGetInfo_v2(size_t *free, size_t *total) {
    SIM_BEGIN_IN(context);
    if (!free || !total)
        return CUDA_ERROR_INVALID_VALUE;
    const struct sim_card *card = &sim_machine()->cards[context->card];
    sim_machine_lock();
    sim_machine_reap();
    *free = sim_card_free_bytes(card);
    *total = sim_card_total_bytes(card);
    sim_machine_unlock();
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemGetInfo(unsigned int *free, unsigned int *total) {
    SIM_BEGIN_IN(context);
    uint64_t free_bytes, total_bytes;
    if (!free || !total)
        return CUDA_ERROR_INVALID_VALUE;
    const struct sim_card *card = &sim_machine()->cards[context->card];
    sim_machine_lock();
    free_bytes = sim_card_free_bytes(card);
    total_bytes = sim_card_total_bytes(card);
    sim_machine_unlock();
    *free = free_bytes > UINT32_MAX ? UINT32_MAX : (unsigned int)free_bytes;
    *total = total_bytes > UINT32_MAX ? UINT32_MAX : (unsigned int)total_bytes;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemGetAddressRange_v2(CUdeviceptr *pbase, size_t *psize, CUdeviceptr dptr) {
    SIM_BEGIN_IN(context);
    (void)context;
    sim_memory_lock();
    const struct sim_range *range = sim_range_at(dptr);
    bool found = range && range->kind != SIM_MEMORY_REGISTERED && range->kind != SIM_MEMORY_INTERNAL;
    if (found && pbase)
        *pbase = range->node.start;
    if (found && psize)
        *psize = range->node.bytes;
    sim_memory_unlock();
    return found ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
