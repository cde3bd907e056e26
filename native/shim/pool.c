/*
 * Stream-ordered pools: what is charged is what a pool has reserved from the card, not each allocation.
 *
 * How much a pool will grow is the driver's affair, so: reserve the most that it may, allocate, ask the
 * driver what the pool holds now, and settle. A pool shrinks when the driver trims it, at the latest when
 * work is waited for; vcuda_pools_settle is called there, and before an allocation of any kind is refused.
 */
#include "memory.h"

bool vcuda_pools_in_use;

/* key: pool; bytes: charged; size: the largest growth seen; count: 1 once destroyed. */
static struct vcuda_table pools;
/* Allocations of pools that were destroyed with some still alive. key: address; owner: pool. Kept for all
 * allocations, since which pools will be destroyed early is not known. size: bytes asked. */
static struct vcuda_table pool_allocations;
/* Around the driver's allocation and the reading of its pool, so that growth is attributed once. */
static vcuda_lock pool_lock;

void vcuda_pools_forget_process(void) {
    pool_lock = (vcuda_lock){0};
    vcuda_pools_in_use = false;
}

static bool reserved_now(CUmemoryPool pool, uint64_t *bytes) {
    cuuint64_t value = 0;
    if (vcuda_real.cuMemPoolGetAttribute(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &value) != CUDA_SUCCESS)
        return false;
    *bytes = value;
    return true;
}

static uint64_t used_now(CUmemoryPool pool) {
    cuuint64_t value = 0;
    vcuda_real.cuMemPoolGetAttribute(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT, &value);
    return value;
}

/* Make the charge of one pool what the driver says; caller holds pool_lock. */
static void settle_pool(struct vcuda_share *share, struct vcuda_record *record) {
    uint64_t now;
    if (record->count || !reserved_now((CUmemoryPool)(uintptr_t)record->key, &now))
        return;
    if (now < record->bytes)
        vcuda_release(share, record->card, VCUDA_KIND_POOL, record->bytes - now);
    else if (now > record->bytes)
        vcuda_ledger_charge(&share->ledger, (uint32_t)record->card, VCUDA_KIND_POOL, now - record->bytes);
    record->bytes = now;
}

static bool settle_each(struct vcuda_record *record, void *data) {
    settle_pool(data, record);
    return false;
}

void vcuda_pools_settle(struct vcuda_share *share) {
    vcuda_lock_take(&pool_lock);
    vcuda_depth++;
    vcuda_table_sweep(&pools, settle_each, share);
    vcuda_depth--;
    vcuda_lock_give(&pool_lock);
    vcuda_linear_settle_leaving(share);
}

/* The pool's record, made when it is first seen; a copy. */
static bool know_pool(CUmemoryPool pool, int card, struct vcuda_record *record) {
    vcuda_lock_take(&pools.lock);
    struct vcuda_record *found = vcuda_table_find(&pools, (uint64_t)(uintptr_t)pool);
    struct vcuda_record fresh = {
        .key = (uint64_t)(uintptr_t)pool, .card = (int16_t)card, .kind = VCUDA_KIND_POOL};
    bool known = found != NULL || vcuda_table_put(&pools, &fresh);
    *record = found ? *found : fresh;
    vcuda_lock_give(&pools.lock);
    __atomic_store_n(&vcuda_pools_in_use, true, __ATOMIC_RELAXED);
    return known;
}

static void update_pool(const struct vcuda_record *record) {
    vcuda_lock_take(&pools.lock);
    struct vcuda_record *found = vcuda_table_find(&pools, record->key);
    if (found)
        *found = *record;
    vcuda_lock_give(&pools.lock);
}

struct stream_call {
    CUdeviceptr *dptr;
    size_t bytes;
    CUmemoryPool pool; /* NULL: the device's current one */
    CUstream stream;
    bool ptsz;
};

static CUresult call_driver(const struct stream_call *call) {
    if (call->pool)
        return call->ptsz
                   ? vcuda_real.cuMemAllocFromPoolAsync_ptsz(call->dptr, call->bytes, call->pool,
                                                             call->stream)
                   : vcuda_real.cuMemAllocFromPoolAsync(call->dptr, call->bytes, call->pool, call->stream);
    return call->ptsz ? vcuda_real.cuMemAllocAsync_ptsz(call->dptr, call->bytes, call->stream)
                      : vcuda_real.cuMemAllocAsync(call->dptr, call->bytes, call->stream);
}

static void undo(const struct stream_call *call) {
    if (call->ptsz)
        vcuda_real.cuMemFreeAsync_ptsz(*call->dptr, call->stream);
    else
        vcuda_real.cuMemFreeAsync(*call->dptr, call->stream);
}

/* The device whose current pool an allocation on `stream` comes from: the stream's, not the thread's. */
static bool stream_device(CUstream stream, CUdevice *device) {
    CUcontext context = NULL, current = NULL;
    bool own = stream == NULL || stream == CU_STREAM_LEGACY || stream == CU_STREAM_PER_THREAD;
    if (own || vcuda_real.cuStreamGetCtx(stream, &context) != CUDA_SUCCESS || !context ||
        vcuda_real.cuCtxGetCurrent(&current) != CUDA_SUCCESS || context == current)
        return vcuda_real.cuCtxGetDevice(device) == CUDA_SUCCESS;
    if (vcuda_real.cuCtxPushCurrent_v2(context) != CUDA_SUCCESS)
        return false;
    bool found = vcuda_real.cuCtxGetDevice(device) == CUDA_SUCCESS;
    vcuda_real.cuCtxPopCurrent_v2(&context);
    return found;
}

static bool capturing(CUstream stream, bool ptsz) {
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    CUresult result = ptsz ? vcuda_real.cuStreamIsCapturing_ptsz(stream, &status)
                           : vcuda_real.cuStreamIsCapturing(stream, &status);
    /* The legacy stream answers with an error while another stream captures; it cannot itself be captured. */
    return result == CUDA_SUCCESS && status == CU_STREAM_CAPTURE_STATUS_ACTIVE;
}

/* Allocate from a pool on a granted card; caller holds pool_lock. */
static CUresult grow(struct vcuda_share *share, int card, CUmemoryPool pool, const struct stream_call *call) {
    struct vcuda_record record;
    if (!know_pool(pool, card, &record))
        return CUDA_ERROR_OUT_OF_MEMORY;
    settle_pool(share, &record);
    uint64_t page = vcuda_page_bytes(share, card), needed = vcuda_round_up(call->bytes, page);
    uint64_t chunk = vcuda_share_grant(share, card)->pool_chunk_bytes;
    uint64_t most = needed > chunk ? needed : chunk;
    if (record.size > most)
        most = record.size;
    bool room = record.bytes >= used_now(pool) && record.bytes - used_now(pool) >= call->bytes;
    uint64_t reserved = 0;
    /* What it does not take is given back in a moment, and must not have cost anybody an allocation. */
    if (vcuda_reserve_as(share, card, VCUDA_KIND_POOL, most, VCUDA_UNSETTLED | VCUDA_AT_ONCE))
        reserved = most;
    else if (vcuda_reserve_as(share, card, VCUDA_KIND_POOL, needed,
                              room ? VCUDA_UNSETTLED | VCUDA_AT_ONCE : VCUDA_UNSETTLED))
        reserved = needed;
    else if (!room) {
        update_pool(&record);
        return vcuda_refuse(share, card, call->bytes);
    }
    CUresult result;
    int tries = 0;
    do
        result = call_driver(call);
    while (result == CUDA_ERROR_OUT_OF_MEMORY && vcuda_wait_for_the_dead(share, card, &tries));
    uint64_t now = record.bytes;
    reserved_now(pool, &now);
    uint64_t growth = now > record.bytes ? now - record.bytes : 0;
    if (result == CUDA_SUCCESS && growth > needed && growth > record.size)
        record.size = growth; /* the driver's own chunk: reserved at once next time */
    if (growth <= reserved)
        vcuda_release(share, card, VCUDA_KIND_POOL, reserved - growth);
    vcuda_settle(share, card, reserved);
    if (growth > reserved && !vcuda_reserve(share, card, VCUDA_KIND_POOL, growth - reserved)) {
        /* Grown beyond the limit: given back in stream order, and charged until the driver has trimmed it. */
        undo(call);
        vcuda_ledger_charge(&share->ledger, (uint32_t)card, VCUDA_KIND_POOL, growth - reserved);
        result = vcuda_refuse(share, card, call->bytes);
    }
    record.bytes += growth;
    update_pool(&record);
    return result;
}

static CUresult allocate(struct vcuda_share *share, const struct stream_call *call) {
    CUdevice device;
    int card;
    CUmemoryPool pool = call->pool;
    if (!call->dptr || !stream_device(call->stream, &device))
        return call_driver(call);
    card = vcuda_card_of(share, device);
    if (pool) {
        struct vcuda_record record;
        if (vcuda_record_read(&pools, (uint64_t)(uintptr_t)pool, &record))
            card = record.card;
    } else if (vcuda_real.cuDeviceGetMemPool(&pool, device) != CUDA_SUCCESS) {
        return call_driver(call);
    }
    if (card < 0) /* a pool on the host, or a card that is not granted */
        return call->pool ? call_driver(call) : CUDA_ERROR_OUT_OF_MEMORY;
    if (capturing(call->stream, call->ptsz)) {
        /* Becomes a node of the graph; memory is taken when that is launched. */
        CUresult result = call_driver(call);
        if (result == CUDA_SUCCESS)
            vcuda_graph_memory_captured(share, card, call->stream, call->bytes);
        return result;
    }
    vcuda_lock_take(&pool_lock);
    vcuda_depth++;
    CUresult result = grow(share, card, pool, call);
    vcuda_depth--;
    vcuda_lock_give(&pool_lock);
    if (result == CUDA_SUCCESS) {
        struct vcuda_record record = {.key = *call->dptr,
                                      .size = call->bytes,
                                      .card = (int16_t)card,
                                      .owner = (uint64_t)(uintptr_t)pool};
        vcuda_record_put(&pool_allocations,
                         &record); /* if it fails, only an early destroy is charged longer */
    }
    return result;
}

#define ALLOCATE(name, call_pool, is_ptsz, arguments)                                                        \
    do {                                                                                                     \
        struct vcuda_share *share = vcuda_limited_share();                                                   \
        if (!share || vcuda_depth)                                                                           \
            return vcuda_real.name arguments;                                                                \
        const struct stream_call call = {dptr, bytesize, (call_pool), hStream, (is_ptsz)};                   \
        return allocate(share, &call);                                                                       \
    } while (0)

VCUDA_EXPORT CUresult cuMemAllocAsync(CUdeviceptr *dptr, size_t bytesize, CUstream hStream) {
    ALLOCATE(cuMemAllocAsync, NULL, false, (dptr, bytesize, hStream));
}
VCUDA_EXPORT CUresult cuMemAllocAsync_ptsz(CUdeviceptr *dptr, size_t bytesize, CUstream hStream) {
    ALLOCATE(cuMemAllocAsync_ptsz, NULL, true, (dptr, bytesize, hStream));
}
VCUDA_EXPORT CUresult cuMemAllocFromPoolAsync(CUdeviceptr *dptr, size_t bytesize, CUmemoryPool pool,
                                              CUstream hStream) {
    ALLOCATE(cuMemAllocFromPoolAsync, pool, false, (dptr, bytesize, pool, hStream));
}
VCUDA_EXPORT CUresult cuMemAllocFromPoolAsync_ptsz(CUdeviceptr *dptr, size_t bytesize, CUmemoryPool pool,
                                                   CUstream hStream) {
    ALLOCATE(cuMemAllocFromPoolAsync_ptsz, pool, true, (dptr, bytesize, pool, hStream));
}

void vcuda_pool_freed(struct vcuda_share *share, CUdeviceptr address) {
    struct vcuda_record allocation;
    if (!vcuda_record_take(&pool_allocations, address, &allocation))
        return;
    struct vcuda_record gone = {0};
    vcuda_lock_take(&pools.lock);
    struct vcuda_record *pool = vcuda_table_find(&pools, allocation.owner);
    if (pool &&
        pool->count) { /* destroyed: nobody can be asked any more; the last allocation ends the charge */
        pool->size -= allocation.size < pool->size ? allocation.size : pool->size;
        if (pool->size == 0) {
            gone = *pool;
            vcuda_table_remove(&pools, pool);
        }
    }
    vcuda_lock_give(&pools.lock);
    if (gone.key)
        vcuda_release(share, gone.card, VCUDA_KIND_POOL, gone.bytes);
}

static CUresult freed(struct vcuda_share *share, CUdeviceptr address, CUstream stream, bool ptsz,
                      CUresult result) {
    if (result == CUDA_SUCCESS && !capturing(stream, ptsz)) {
        vcuda_linear_freed_in_stream(share, address, stream, ptsz);
        vcuda_pool_freed(share, address);
    }
    return result;
}

VCUDA_EXPORT CUresult cuMemFreeAsync(CUdeviceptr dptr, CUstream hStream) {
    struct vcuda_share *share = vcuda_limited_share();
    CUresult result = vcuda_real.cuMemFreeAsync(dptr, hStream);
    return share && !vcuda_depth ? freed(share, dptr, hStream, false, result) : result;
}
VCUDA_EXPORT CUresult cuMemFreeAsync_ptsz(CUdeviceptr dptr, CUstream hStream) {
    struct vcuda_share *share = vcuda_limited_share();
    CUresult result = vcuda_real.cuMemFreeAsync_ptsz(dptr, hStream);
    return share && !vcuda_depth ? freed(share, dptr, hStream, true, result) : result;
}

/* ---- explicit pools ---- */

VCUDA_EXPORT CUresult cuMemPoolCreate(CUmemoryPool *pool, const CUmemPoolProps *poolProps) {
    CUresult result = vcuda_real.cuMemPoolCreate(pool, poolProps);
    struct vcuda_share *share = vcuda_limited_share();
    if (share && result == CUDA_SUCCESS) {
        struct vcuda_record record;
        bool device = poolProps->location.type == CU_MEM_LOCATION_TYPE_DEVICE;
        int card = device ? vcuda_card_of(share, poolProps->location.id) : -1;
        if (device && card < 0) {
            vcuda_real.cuMemPoolDestroy(*pool);
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        if (card >= 0)
            know_pool(*pool, card, &record);
    }
    return result;
}

static bool counts_for(struct vcuda_record *record, void *data) {
    uint64_t *total = data; /* total[0]: the pool; total[1]: its live bytes */
    if (record->owner == total[0])
        total[1] += record->size;
    return false;
}

/* A pool that is destroyed keeps its memory until the last allocation has been freed. */
VCUDA_EXPORT CUresult cuMemPoolDestroy(CUmemoryPool pool) {
    struct vcuda_share *share = vcuda_limited_share();
    if (!share)
        return vcuda_real.cuMemPoolDestroy(pool);
    uint64_t total[2] = {(uint64_t)(uintptr_t)pool, 0};
    struct vcuda_record record, gone = {0};
    vcuda_lock_take(&pool_lock);
    bool known = vcuda_record_read(&pools, total[0], &record);
    CUresult result = vcuda_real.cuMemPoolDestroy(pool);
    if (known && result == CUDA_SUCCESS) {
        vcuda_table_sweep(&pool_allocations, counts_for, total);
        if (total[1] == 0) {
            vcuda_record_take(&pools, total[0], &gone);
        } else {
            record.count = 1;
            record.size = total[1];
            update_pool(&record);
        }
    }
    vcuda_lock_give(&pool_lock);
    if (gone.key)
        vcuda_release(share, gone.card, VCUDA_KIND_POOL, gone.bytes);
    return result;
}

VCUDA_EXPORT CUresult cuMemPoolTrimTo(CUmemoryPool pool, size_t minBytesToKeep) {
    CUresult result = vcuda_real.cuMemPoolTrimTo(pool, minBytesToKeep);
    if (result == CUDA_SUCCESS)
        vcuda_synchronised();
    return result;
}

VCUDA_EXPORT CUresult cuMemPoolSetAttribute(CUmemoryPool pool, CUmemPool_attribute attr, void *value) {
    CUresult result = vcuda_real.cuMemPoolSetAttribute(pool, attr, value);
    if (result == CUDA_SUCCESS)
        vcuda_synchronised();
    return result;
}
