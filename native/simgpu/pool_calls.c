/* Stream-ordered memory: the calls. */
#include "pool.h"

#include <stdlib.h>
#include <string.h>

#include "work.h"

/* Have what has ended run its actions, so that pieces that have left are there for all. */
static void look(uint32_t card) {
    sim_work_lock();
    sim_look(card == SIM_NO_CARD ? 0 : card, 0);
    sim_work_unlock();
}

static bool pieces_leave(CUmemoryPool pool) {
    sim_memory_lock();
    bool leave = sim_pool_is(pool) && pool->leaving;
    sim_memory_unlock();
    return leave;
}

void sim_pools_synchronised(void) {
    sim_memory_lock();
    sim_pools_trim(SIM_NO_POOLS);
    sim_memory_unlock();
}

/* ---- allocating and freeing ---- */

static CUresult attempt(CUmemoryPool pool, struct CUctx_st *context, uint64_t bytes, CUstream lane, bool grow,
                        CUdeviceptr *address) {
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    sim_memory_lock();
    if (sim_pool_is(pool))
        result = sim_pool_allocate(pool, context, bytes, lane, grow, address);
    sim_memory_unlock();
    return result;
}

static CUresult trim_and_try(CUmemoryPool pool, struct CUctx_st *context, uint64_t bytes, CUstream lane,
                             CUdeviceptr *address) {
    sim_context_synchronize(context);
    sim_memory_lock();
    sim_pools_trim(context->card);
    sim_memory_unlock();
    return attempt(pool, context, bytes, lane, true, address);
}

/* From `pool`, or from the current one of the stream's device where that is NULL. */
static CUresult allocate(CUdeviceptr *address, uint64_t bytes, CUmemoryPool pool, CUstream stream,
                         bool ptsz) {
    struct CUctx_st *context;
    bool capturing;
    CUmemPoolProps properties;
    if (!address || !bytes)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = sim_stream_owner(stream, ptsz, &context);
    if (result == CUDA_SUCCESS)
        result = sim_stream_capturing(stream, ptsz, &capturing);
    if (result != CUDA_SUCCESS)
        return result;
    sim_memory_lock();
    if (!pool)
        pool = sim_pool_current(context->card, context->device);
    bool known = pool && sim_pool_is(pool);
    if (known)
        properties = pool->properties;
    sim_memory_unlock();
    if (!known)
        return pool ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_OUT_OF_MEMORY;
    if (capturing)
        return sim_capture_alloc(stream, ptsz, &properties, bytes, address);
    CUstream lane = stream ? stream : ptsz ? CU_STREAM_PER_THREAD : CU_STREAM_LEGACY;
    result = attempt(pool, context, bytes, lane, !pieces_leave(pool), address);
    if (result == CUDA_ERROR_OUT_OF_MEMORY && pieces_leave(pool)) {
        look(context->card);
        result = attempt(pool, context, bytes, lane, true, address);
    }
    return result == CUDA_ERROR_OUT_OF_MEMORY ? trim_and_try(pool, context, bytes, lane, address) : result;
}

SIM_EXPORT CUresult cuMemAllocAsync(CUdeviceptr *dptr, size_t bytesize, CUstream hStream) {
    SIM_BEGIN();
    return allocate(dptr, bytesize, NULL, hStream, false);
}
SIM_EXPORT CUresult cuMemAllocAsync_ptsz(CUdeviceptr *dptr, size_t bytesize, CUstream hStream) {
    SIM_BEGIN();
    return allocate(dptr, bytesize, NULL, hStream, true);
}
SIM_EXPORT CUresult cuMemAllocFromPoolAsync(CUdeviceptr *dptr, size_t bytesize, CUmemoryPool pool,
                                            CUstream hStream) {
    SIM_BEGIN();
    return pool ? allocate(dptr, bytesize, pool, hStream, false) : CUDA_ERROR_INVALID_VALUE;
}
SIM_EXPORT CUresult cuMemAllocFromPoolAsync_ptsz(CUdeviceptr *dptr, size_t bytesize, CUmemoryPool pool,
                                                 CUstream hStream) {
    SIM_BEGIN();
    return pool ? allocate(dptr, bytesize, pool, hStream, true) : CUDA_ERROR_INVALID_VALUE;
}

static void piece_left(void *data) {
    sim_memory_lock();
    sim_piece_left(*(uint64_t *)data);
    sim_memory_unlock();
}

static void free_linear(void *data) {
    sim_memory_free(*(CUdeviceptr *)data, true);
}

/* What becomes of the memory when the stream gets there; false where the address is none to be freed so. */
static bool begin_free(CUdeviceptr address, CUstream lane, struct sim_action *action) {
    bool begun = false;
    sim_memory_lock();
    struct sim_range *range = sim_range_at(address);
    if (range && range->node.start == address && !range->leaving) {
        if (range->kind == SIM_MEMORY_POOLED) {
            uint64_t number = sim_piece_leave(range, lane);
            action->run = piece_left;
            memcpy(action->data, &number, sizeof number);
            begun = true;
        } else if (range->kind == SIM_MEMORY_LINEAR || range->kind == SIM_MEMORY_MANAGED) {
            range->leaving = true;
            action->run = free_linear;
            memcpy(action->data, &address, sizeof address);
            begun = true;
        }
    }
    sim_memory_unlock();
    return begun;
}

static CUresult free_async(CUdeviceptr address, CUstream stream, bool ptsz) {
    struct CUctx_st *context;
    bool capturing;
    CUresult result = sim_stream_owner(stream, ptsz, &context);
    if (result == CUDA_SUCCESS)
        result = sim_stream_capturing(stream, ptsz, &capturing);
    if (result != CUDA_SUCCESS)
        return result;
    if (!address)
        return CUDA_ERROR_INVALID_VALUE;
    if (capturing)
        return sim_capture_free(stream, ptsz, address);
    struct sim_job job = {.kind = SIM_OP_MARK, .node = CU_GRAPH_NODE_TYPE_MEM_FREE};
    CUstream lane = stream ? stream : ptsz ? CU_STREAM_PER_THREAD : CU_STREAM_LEGACY;
    if (!begin_free(address, lane, &job.action)) {
        sim_context_synchronize(context);
        return sim_graph_memory_free(address) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    }
    result = sim_submit_job(stream, ptsz, &job);
    if (result != CUDA_SUCCESS) /* the memory is let go of all the same: nothing can hold on to it any more */
        job.action.run(job.action.data);
    return result;
}

SIM_EXPORT CUresult cuMemFreeAsync(CUdeviceptr dptr, CUstream hStream) {
    SIM_BEGIN();
    return free_async(dptr, hStream, false);
}
SIM_EXPORT CUresult cuMemFreeAsync_ptsz(CUdeviceptr dptr, CUstream hStream) {
    SIM_BEGIN();
    return free_async(dptr, hStream, true);
}

/* ---- pools ---- */

SIM_EXPORT CUresult cuMemPoolCreate(CUmemoryPool *pool, const CUmemPoolProps *poolProps) {
    SIM_BEGIN();
    uint32_t card;
    if (!pool || !poolProps)
        return CUDA_ERROR_INVALID_VALUE;
    if (poolProps->allocType == CU_MEM_ALLOCATION_TYPE_MANAGED ||
        poolProps->handleTypes != CU_MEM_HANDLE_TYPE_NONE)
        return CUDA_ERROR_NOT_SUPPORTED; /* pools are not shared between processes */
    if (poolProps->allocType != CU_MEM_ALLOCATION_TYPE_PINNED)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = sim_location_check(&poolProps->location, &card);
    if (result != CUDA_SUCCESS)
        return result;
    sim_memory_lock();
    CUmemoryPool made = sim_pool_make(poolProps, card);
    sim_memory_unlock();
    if (made)
        *pool = made;
    return made ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

SIM_EXPORT CUresult cuMemPoolDestroy(CUmemoryPool pool) {
    SIM_BEGIN();
    sim_memory_lock();
    bool may = sim_pool_is(pool) && !pool->is_default;
    if (may)
        sim_pool_destroy(pool);
    sim_memory_unlock();
    return may ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_EXPORT CUresult cuMemPoolTrimTo(CUmemoryPool pool, size_t minBytesToKeep) {
    SIM_BEGIN();
    if (pieces_leave(pool))
        look(0);
    sim_memory_lock();
    bool known = sim_pool_is(pool);
    if (known)
        sim_pool_trim(pool, minBytesToKeep);
    sim_memory_unlock();
    return known ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult get_attribute(const struct CUmemPoolHandle_st *pool, CUmemPool_attribute attribute,
                              void *value) {
    uint64_t number;
    switch (attribute) {
    case CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES:
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC:
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES:
        *(int *)value = pool->reuse[attribute - CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES];
        return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_ALLOCATION_TYPE:
        *(int *)value = (int)pool->properties.allocType;
        return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_EXPORT_HANDLE_TYPES:
    case CU_MEMPOOL_ATTR_HW_DECOMPRESS_ENABLED:
        *(int *)value = 0;
        return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_LOCATION_ID:
        *(int *)value = pool->properties.location.id;
        return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_LOCATION_TYPE:
        *(int *)value = (int)pool->properties.location.type;
        return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
        number = pool->threshold;
        break;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT:
        number = pool->reserved;
        break;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
        number = pool->reserved_high;
        break;
    case CU_MEMPOOL_ATTR_USED_MEM_CURRENT:
        number = pool->used;
        break;
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
        number = pool->used_high;
        break;
    case CU_MEMPOOL_ATTR_MAX_POOL_SIZE:
        number = pool->properties.maxSize;
        break;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
    memcpy(value, &number, sizeof number);
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemPoolGetAttribute(CUmemoryPool pool, CUmemPool_attribute attr, void *value) {
    SIM_BEGIN();
    if (!value)
        return CUDA_ERROR_INVALID_VALUE;
    if (attr == CU_MEMPOOL_ATTR_USED_MEM_CURRENT && pieces_leave(pool))
        look(0);
    sim_memory_lock();
    CUresult result = sim_pool_is(pool) ? get_attribute(pool, attr, value) : CUDA_ERROR_INVALID_VALUE;
    sim_memory_unlock();
    return result;
}

static CUresult set_attribute(struct CUmemPoolHandle_st *pool, CUmemPool_attribute attribute,
                              const void *value) {
    uint64_t number;
    switch (attribute) {
    case CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES:
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC:
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES:
        pool->reuse[attribute - CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES] = *(const int *)value != 0;
        return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD:
        memcpy(&pool->threshold, value, sizeof pool->threshold);
        return CUDA_SUCCESS;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH:
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH:
        memcpy(&number, value, sizeof number);
        if (number) /* the high water marks can only be reset */
            return CUDA_ERROR_INVALID_VALUE;
        if (attribute == CU_MEMPOOL_ATTR_USED_MEM_HIGH)
            pool->used_high = pool->used;
        else
            pool->reserved_high = pool->reserved;
        return CUDA_SUCCESS;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

SIM_EXPORT CUresult cuMemPoolSetAttribute(CUmemoryPool pool, CUmemPool_attribute attr, void *value) {
    SIM_BEGIN();
    if (!value)
        return CUDA_ERROR_INVALID_VALUE;
    sim_memory_lock();
    CUresult result = sim_pool_is(pool) ? set_attribute(pool, attr, value) : CUDA_ERROR_INVALID_VALUE;
    sim_memory_unlock();
    return result;
}

static CUresult set_access(CUmemoryPool pool, const CUmemAccessDesc *wanted) {
    uint32_t card;
    if (wanted->location.type != CU_MEM_LOCATION_TYPE_DEVICE)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = sim_location_check(&wanted->location, &card);
    if (result != CUDA_SUCCESS)
        return result;
    uint32_t bit = 1U << wanted->location.id;
    bool reads = wanted->flags != CU_MEM_ACCESS_FLAGS_PROT_NONE;
    if (card == pool->card && !reads) /* its own device's access cannot be taken away */
        return CUDA_ERROR_INVALID_VALUE;
    pool->readers = reads ? pool->readers | bit : pool->readers & ~bit;
    pool->writers =
        wanted->flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE ? pool->writers | bit : pool->writers & ~bit;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemPoolSetAccess(CUmemoryPool pool, const CUmemAccessDesc *map, size_t count) {
    SIM_BEGIN();
    if (!map || !count)
        return CUDA_ERROR_INVALID_VALUE;
    sim_memory_lock();
    CUresult result = sim_pool_is(pool) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count && result == CUDA_SUCCESS; i++)
        result = set_access(pool, &map[i]);
    sim_memory_unlock();
    return result;
}

SIM_EXPORT CUresult cuMemPoolGetAccess(CUmemAccess_flags *flags, CUmemoryPool memPool,
                                       CUmemLocation *location) {
    SIM_BEGIN();
    uint32_t card;
    CUresult result = flags && location ? sim_location_check(location, &card) : CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS)
        return result;
    sim_memory_lock();
    bool known = sim_pool_is(memPool);
    if (known) {
        uint32_t bit = card == SIM_NO_CARD ? 0 : 1U << location->id;
        bool own = card == memPool->card;
        *flags = own || memPool->writers & bit ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE
                 : memPool->readers & bit      ? CU_MEM_ACCESS_FLAGS_PROT_READ
                                               : CU_MEM_ACCESS_FLAGS_PROT_NONE;
    }
    sim_memory_unlock();
    return known ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* ---- which pool ---- */

static CUresult pool_of(CUmemoryPool *pool, const CUmemLocation *location, bool current) {
    uint32_t card;
    CUresult result = pool && location ? sim_location_check(location, &card) : CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS)
        return result;
    sim_memory_lock();
    CUmemoryPool found =
        current ? sim_pool_current(card, location->id) : sim_pool_default(card, location->id);
    sim_memory_unlock();
    if (found)
        *pool = found;
    return found ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

SIM_EXPORT CUresult cuDeviceGetDefaultMemPool(CUmemoryPool *pool_out, CUdevice dev) {
    SIM_BEGIN();
    CUmemLocation location = {.type = CU_MEM_LOCATION_TYPE_DEVICE};
    location.id = dev;
    return pool_of(pool_out, &location, false);
}

SIM_EXPORT CUresult cuDeviceGetMemPool(CUmemoryPool *pool, CUdevice dev) {
    SIM_BEGIN();
    CUmemLocation location = {.type = CU_MEM_LOCATION_TYPE_DEVICE};
    location.id = dev;
    return pool_of(pool, &location, true);
}

static CUresult set_current(uint32_t card, CUmemoryPool pool) {
    sim_memory_lock();
    bool fits = sim_pool_is(pool) && pool->card == card;
    if (fits)
        sim_pool_set_current(card, pool);
    sim_memory_unlock();
    return fits ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_EXPORT CUresult cuDeviceSetMemPool(CUdevice dev, CUmemoryPool pool) {
    SIM_BEGIN();
    uint32_t card;
    CUresult result = sim_card_of(dev, &card);
    return result == CUDA_SUCCESS ? set_current(card, pool) : result;
}

SIM_EXPORT CUresult cuMemGetDefaultMemPool(CUmemoryPool *pool_out, CUmemLocation *location,
                                           CUmemAllocationType type) {
    SIM_BEGIN();
    return type == CU_MEM_ALLOCATION_TYPE_PINNED ? pool_of(pool_out, location, false)
                                                 : CUDA_ERROR_NOT_SUPPORTED;
}

SIM_EXPORT CUresult cuMemGetMemPool(CUmemoryPool *pool, CUmemLocation *location, CUmemAllocationType type) {
    SIM_BEGIN();
    return type == CU_MEM_ALLOCATION_TYPE_PINNED ? pool_of(pool, location, true) : CUDA_ERROR_NOT_SUPPORTED;
}

SIM_EXPORT CUresult cuMemSetMemPool(CUmemLocation *location, CUmemAllocationType type, CUmemoryPool pool) {
    SIM_BEGIN();
    uint32_t card;
    if (type != CU_MEM_ALLOCATION_TYPE_PINNED)
        return CUDA_ERROR_NOT_SUPPORTED;
    CUresult result = location ? sim_location_check(location, &card) : CUDA_ERROR_INVALID_VALUE;
    return result == CUDA_SUCCESS ? set_current(card, pool) : result;
}
