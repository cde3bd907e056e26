/*
 * Managed memory: advice and prefetches. The memory stays on the card that it was taken from, so both are
 * only checked, remembered, and told again.
 */
#include "vmm.h"

#include <string.h>

/* Lock held; NULL where [address, address + bytes) is not inside one piece of managed memory. */
static struct sim_range *managed(CUdeviceptr address, uint64_t bytes) {
    struct sim_range *range = sim_range_at(address);
    if (!range || range->kind != SIM_MEMORY_MANAGED || !bytes ||
        bytes > range->node.start + range->node.bytes - address)
        return NULL;
    return range;
}

/* What is remembered of a location: an ordinal plus 1, or -1 for the host; 0 is nothing. */
static CUresult remember(const CUmemLocation *location, int *remembered) {
    uint32_t card;
    CUresult result = sim_location_check(location, &card);
    *remembered = card == SIM_NO_CARD ? -1 : location->id + 1;
    return result;
}

static CUmemLocation location_of(CUdevice device) {
    CUmemLocation location = {.type = device == CU_DEVICE_CPU ? CU_MEM_LOCATION_TYPE_HOST
                                                              : CU_MEM_LOCATION_TYPE_DEVICE};
    location.id = device;
    return location;
}

/* ---- advice ---- */

static CUresult advise(CUdeviceptr address, uint64_t bytes, CUmem_advise advice,
                       const CUmemLocation *location) {
    int where = 0;
    bool located = advice == CU_MEM_ADVISE_SET_PREFERRED_LOCATION ||
                   advice == CU_MEM_ADVISE_SET_ACCESSED_BY || advice == CU_MEM_ADVISE_UNSET_ACCESSED_BY;
    CUresult result = located ? remember(location, &where) : CUDA_SUCCESS;
    if (result != CUDA_SUCCESS)
        return result;
    sim_memory_lock();
    struct sim_range *range = managed(address, bytes);
    result = range ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    if (range) {
        switch (advice) {
        case CU_MEM_ADVISE_SET_READ_MOSTLY:
        case CU_MEM_ADVISE_UNSET_READ_MOSTLY:
            range->read_mostly = advice == CU_MEM_ADVISE_SET_READ_MOSTLY;
            break;
        case CU_MEM_ADVISE_SET_PREFERRED_LOCATION:
        case CU_MEM_ADVISE_UNSET_PREFERRED_LOCATION:
            range->preferred = where;
            break;
        case CU_MEM_ADVISE_SET_ACCESSED_BY:
        case CU_MEM_ADVISE_UNSET_ACCESSED_BY:
            break;
        default:
            result = CUDA_ERROR_INVALID_VALUE;
        }
    }
    sim_memory_unlock();
    return result;
}

SIM_EXPORT CUresult cuMemAdvise_v2(CUdeviceptr devPtr, size_t count, CUmem_advise advice,
                                   CUmemLocation location) {
    SIM_BEGIN_IN(context);
    (void)context;
    return advise(devPtr, count, advice, &location);
}

SIM_EXPORT CUresult cuMemAdvise(CUdeviceptr devPtr, size_t count, CUmem_advise advice, CUdevice device) {
    SIM_BEGIN_IN(context);
    (void)context;
    CUmemLocation location = location_of(device);
    return advise(devPtr, count, advice, &location);
}

/* ---- prefetches ---- */

static CUresult note_prefetch(CUdeviceptr address, uint64_t bytes, const CUmemLocation *location) {
    int where = 0;
    CUresult result = remember(location, &where);
    if (result != CUDA_SUCCESS)
        return result;
    sim_memory_lock();
    struct sim_range *range = managed(address, bytes);
    if (range)
        range->prefetched = where;
    sim_memory_unlock();
    return range ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult mark(CUstream stream, bool ptsz) {
    const struct sim_job job = {.kind = SIM_OP_MARK, .node = CU_GRAPH_NODE_TYPE_EMPTY};
    return sim_submit_job(stream, ptsz, &job);
}

static CUresult prefetch(CUdeviceptr address, uint64_t bytes, const CUmemLocation *location, CUstream stream,
                         bool ptsz) {
    CUresult result = note_prefetch(address, bytes, location);
    return result == CUDA_SUCCESS ? mark(stream, ptsz) : result;
}

SIM_EXPORT CUresult cuMemPrefetchAsync(CUdeviceptr devPtr, size_t count, CUdevice dstDevice,
                                       CUstream hStream) {
    SIM_BEGIN_IN(context);
    (void)context;
    CUmemLocation location = location_of(dstDevice);
    return prefetch(devPtr, count, &location, hStream, false);
}
SIM_EXPORT CUresult cuMemPrefetchAsync_ptsz(CUdeviceptr devPtr, size_t count, CUdevice dstDevice,
                                            CUstream hStream) {
    SIM_BEGIN_IN(context);
    (void)context;
    CUmemLocation location = location_of(dstDevice);
    return prefetch(devPtr, count, &location, hStream, true);
}
SIM_EXPORT CUresult cuMemPrefetchAsync_v2(CUdeviceptr devPtr, size_t count, CUmemLocation location,
                                          unsigned int flags, CUstream hStream) {
    SIM_BEGIN_IN(context);
    (void)context;
    return flags ? CUDA_ERROR_INVALID_VALUE : prefetch(devPtr, count, &location, hStream, false);
}
SIM_EXPORT CUresult cuMemPrefetchAsync_v2_ptsz(CUdeviceptr devPtr, size_t count, CUmemLocation location,
                                               unsigned int flags, CUstream hStream) {
    SIM_BEGIN_IN(context);
    (void)context;
    return flags ? CUDA_ERROR_INVALID_VALUE : prefetch(devPtr, count, &location, hStream, true);
}

struct batch {
    const CUdeviceptr *addresses;
    const size_t *sizes;
    size_t count;
    const CUmemLocation *locations; /* NULL: discard only, which is no promise about what is then read */
    const size_t *starts;
    size_t location_count;
};

static CUresult run_batch(const struct batch *batch, unsigned long long flags, CUstream stream, bool ptsz) {
    if (!batch->addresses || !batch->sizes || !batch->count || flags)
        return CUDA_ERROR_INVALID_VALUE;
    if (batch->locations && (!batch->starts || !batch->location_count || batch->starts[0]))
        return CUDA_ERROR_INVALID_VALUE;
    size_t location = 0;
    for (size_t i = 0; i < batch->count; i++) {
        CUresult result = CUDA_SUCCESS;
        while (batch->locations && location + 1 < batch->location_count && batch->starts[location + 1] <= i)
            location++;
        if (batch->locations) {
            result = note_prefetch(batch->addresses[i], batch->sizes[i], &batch->locations[location]);
        } else {
            sim_memory_lock();
            result = managed(batch->addresses[i], batch->sizes[i]) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
            sim_memory_unlock();
        }
        if (result != CUDA_SUCCESS)
            return result;
    }
    return mark(stream, ptsz);
}

#define BATCH(name, suffix, is_ptsz)                                                                         \
    SIM_EXPORT CUresult name##suffix(CUdeviceptr *dptrs, size_t *sizes, size_t count,                        \
                                     CUmemLocation *prefetchLocs, size_t *prefetchLocIdxs,                   \
                                     size_t numPrefetchLocs, unsigned long long flags, CUstream hStream) {   \
        SIM_BEGIN_IN(context);                                                                               \
        (void)context;                                                                                       \
        const struct batch batch = {dptrs, sizes, count, prefetchLocs, prefetchLocIdxs, numPrefetchLocs};    \
        return prefetchLocs ? run_batch(&batch, flags, hStream, is_ptsz) : CUDA_ERROR_INVALID_VALUE;         \
    }
BATCH(cuMemPrefetchBatchAsync, , false)
BATCH(cuMemPrefetchBatchAsync, _ptsz, true)
BATCH(cuMemDiscardAndPrefetchBatchAsync, , false)
BATCH(cuMemDiscardAndPrefetchBatchAsync, _ptsz, true)

#define DISCARD(suffix, is_ptsz)                                                                             \
    SIM_EXPORT CUresult cuMemDiscardBatchAsync##suffix(CUdeviceptr *dptrs, size_t *sizes, size_t count,      \
                                                       unsigned long long flags, CUstream hStream) {         \
        SIM_BEGIN_IN(context);                                                                               \
        (void)context;                                                                                       \
        const struct batch batch = {.addresses = dptrs, .sizes = sizes, .count = count};                     \
        return run_batch(&batch, flags, hStream, is_ptsz);                                                   \
    }
DISCARD(, false)
DISCARD(_ptsz, true)

/* ---- asking ---- */

static int device_of(int remembered) {
    return remembered == 0 ? CU_DEVICE_INVALID : remembered < 0 ? CU_DEVICE_CPU : remembered - 1;
}

static int type_of(int remembered) {
    return remembered == 0  ? CU_MEM_LOCATION_TYPE_INVALID
           : remembered < 0 ? CU_MEM_LOCATION_TYPE_HOST
                            : CU_MEM_LOCATION_TYPE_DEVICE;
}

static CUresult answer(const struct sim_range *range, CUmem_range_attribute attribute, void *data,
                       size_t bytes) {
    int *numbers = data, value;
    switch (attribute) {
    case CU_MEM_RANGE_ATTRIBUTE_READ_MOSTLY:
        value = range->read_mostly;
        break;
    case CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION:
    case CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION_ID:
        value = device_of(range->preferred);
        break;
    case CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION:
    case CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION_ID:
        value = device_of(range->prefetched);
        break;
    case CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION_TYPE:
        value = type_of(range->preferred);
        break;
    case CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION_TYPE:
        value = type_of(range->prefetched);
        break;
    case CU_MEM_RANGE_ATTRIBUTE_ACCESSED_BY: /* a list, filled up with "nobody" */
        if (!bytes || bytes % sizeof(int))
            return CUDA_ERROR_INVALID_VALUE;
        for (size_t i = 0; i < bytes / sizeof(int); i++)
            numbers[i] = CU_DEVICE_INVALID;
        return CUDA_SUCCESS;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (bytes != sizeof(int))
        return CUDA_ERROR_INVALID_VALUE;
    *numbers = value;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemRangeGetAttributes(void **data, size_t *dataSizes, CUmem_range_attribute *attributes,
                                            size_t numAttributes, CUdeviceptr devPtr, size_t count) {
    SIM_BEGIN_IN(context);
    (void)context;
    if (!data || !dataSizes || !attributes || !numAttributes)
        return CUDA_ERROR_INVALID_VALUE;
    sim_memory_lock();
    const struct sim_range *range = managed(devPtr, count);
    CUresult result = range ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < numAttributes && result == CUDA_SUCCESS; i++)
        result = data[i] ? answer(range, attributes[i], data[i], dataSizes[i]) : CUDA_ERROR_INVALID_VALUE;
    sim_memory_unlock();
    return result;
}

SIM_EXPORT CUresult cuMemRangeGetAttribute(void *data, size_t dataSize, CUmem_range_attribute attribute,
                                           CUdeviceptr devPtr, size_t count) {
    SIM_BEGIN_IN(context);
    (void)context;
    if (!data)
        return CUDA_ERROR_INVALID_VALUE;
    sim_memory_lock();
    const struct sim_range *range = managed(devPtr, count);
    CUresult result = range ? answer(range, attribute, data, dataSize) : CUDA_ERROR_INVALID_VALUE;
    sim_memory_unlock();
    return result;
}
