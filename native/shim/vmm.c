/*
 * Virtual memory management: physical allocations, charged from cuMemCreate until they are released as often
 * as they were retained *and* unmapped everywhere, in whatever order.
 *
 * The device is the one that the properties name; the calling thread need not have a context. Allocations on
 * the host, imports of another process's, and multicast objects cost this process nothing.
 */
#include "memory.h"

/* key: handle; bytes: charged; count: references the program holds; size: mappings. */
static struct vcuda_table physical;
/* key: address; size: length; owner: handle. */
static struct vcuda_table mappings;
/* Around mapping and unmapping: an address that the driver has unmapped may be mapped anew at once. */
static vcuda_lock mapping_lock;

void vcuda_vmm_forget_process(void) {
    mapping_lock = (vcuda_lock){0};
}

static int card_of_properties(const struct vcuda_share *share, const CUmemAllocationProp *properties) {
    if (properties->location.type != CU_MEM_LOCATION_TYPE_DEVICE)
        return -1;
    return vcuda_card_of(share, properties->location.id);
}

VCUDA_EXPORT CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size,
                                  const CUmemAllocationProp *prop, unsigned long long flags) {
    struct vcuda_share *share = vcuda_limited_share();
    if (!share || vcuda_depth || !handle || !prop || prop->location.type != CU_MEM_LOCATION_TYPE_DEVICE)
        return vcuda_real.cuMemCreate(handle, size, prop, flags);
    int card = card_of_properties(share, prop);
    if (card < 0) {
        /* A device that exists but is not granted has no memory for us; one that doesn't is the driver's to
         * say. */
        CUdevice device;
        bool exists = vcuda_real.cuDeviceGet(&device, prop->location.id) == CUDA_SUCCESS;
        return exists ? CUDA_ERROR_OUT_OF_MEMORY : vcuda_real.cuMemCreate(handle, size, prop, flags);
    }
    /* The driver refuses a size that is no multiple of its granularity; then nothing stays charged. */
    uint64_t bytes = size;
    if (!vcuda_reserve_or_settle(share, card, VCUDA_KIND_VMM, bytes))
        return vcuda_refuse(share, card, bytes);
    CUresult result;
    int tries = 0;
    do
        result = vcuda_real.cuMemCreate(handle, size, prop, flags);
    while (result == CUDA_ERROR_OUT_OF_MEMORY && vcuda_wait_for_the_dead(share, card, &tries));
    if (result == CUDA_SUCCESS) {
        struct vcuda_record record = {
            .key = *handle, .bytes = bytes, .card = (int16_t)card, .kind = VCUDA_KIND_VMM, .count = 1};
        if (vcuda_record_put(&physical, &record))
            return CUDA_SUCCESS;
        vcuda_real.cuMemRelease(*handle);
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    vcuda_release(share, card, VCUDA_KIND_VMM, bytes);
    return result;
}

/* Drops a reference or a mapping after the driver has; gives the charge back with the last of both. */
static void drop(struct vcuda_share *share, uint64_t handle, uint32_t references, uint64_t mapped) {
    struct vcuda_record gone = {0};
    vcuda_lock_take(&physical.lock);
    struct vcuda_record *record = vcuda_table_find(&physical, handle);
    if (record) {
        record->count -= references < record->count ? references : record->count;
        record->size -= mapped < record->size ? mapped : record->size;
        if (record->count == 0 && record->size == 0) {
            gone = *record;
            vcuda_table_remove(&physical, record);
        }
    }
    vcuda_lock_give(&physical.lock);
    if (gone.key)
        vcuda_release(share, gone.card, VCUDA_KIND_VMM, gone.bytes);
}

VCUDA_EXPORT CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    CUresult result = vcuda_real.cuMemRelease(handle);
    struct vcuda_share *share = vcuda_limited_share();
    if (share && result == CUDA_SUCCESS)
        drop(share, handle, 1, 0);
    return result;
}

VCUDA_EXPORT CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *addr) {
    CUresult result = vcuda_real.cuMemRetainAllocationHandle(handle, addr);
    if (result != CUDA_SUCCESS || !vcuda_limited_share())
        return result;
    vcuda_lock_take(&physical.lock);
    struct vcuda_record *record = vcuda_table_find(&physical, *handle);
    if (record)
        record->count++;
    vcuda_lock_give(&physical.lock);
    return result;
}

VCUDA_EXPORT CUresult cuMemMap(CUdeviceptr ptr, size_t size, size_t offset,
                               CUmemGenericAllocationHandle handle, unsigned long long flags) {
    struct vcuda_share *share = vcuda_limited_share();
    if (!share)
        return vcuda_real.cuMemMap(ptr, size, offset, handle, flags);
    /* Counted before, so that a release by another thread meanwhile does not end the charge. */
    vcuda_lock_take(&physical.lock);
    struct vcuda_record *record = vcuda_table_find(&physical, handle);
    if (record)
        record->size++;
    vcuda_lock_give(&physical.lock);
    if (!record) /* imported, on the host, or no handle at all */
        return vcuda_real.cuMemMap(ptr, size, offset, handle, flags);
    vcuda_lock_take(&mapping_lock);
    CUresult result = vcuda_real.cuMemMap(ptr, size, offset, handle, flags);
    struct vcuda_record mapping = {.key = ptr, .size = size, .owner = handle};
    if (result == CUDA_SUCCESS && !vcuda_record_put(&mappings, &mapping)) {
        vcuda_real.cuMemUnmap(ptr, size);
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    vcuda_lock_give(&mapping_lock);
    if (result != CUDA_SUCCESS)
        drop(share, handle, 0, 1);
    return result;
}

struct unmapping {
    struct vcuda_share *share;
    uint64_t start, end;
};

static bool was_inside(struct vcuda_record *record, void *data) {
    struct unmapping *unmapping = data;
    if (record->key < unmapping->start || record->key + record->size > unmapping->end)
        return false;
    drop(unmapping->share, record->owner, 0, 1);
    return true;
}

/* One call may unmap several mappings that lie side by side. */
VCUDA_EXPORT CUresult cuMemUnmap(CUdeviceptr ptr, size_t size) {
    struct vcuda_share *share = vcuda_limited_share();
    if (!share)
        return vcuda_real.cuMemUnmap(ptr, size);
    vcuda_lock_take(&mapping_lock);
    CUresult result = vcuda_real.cuMemUnmap(ptr, size);
    if (result == CUDA_SUCCESS) {
        struct vcuda_record mapping;
        struct unmapping unmapping = {share, ptr, ptr + size};
        bool found = vcuda_record_take(&mappings, ptr, &mapping);
        if (found)
            drop(share, mapping.owner, 0, 1);
        if (!found || mapping.size != size)
            vcuda_table_sweep(&mappings, was_inside, &unmapping);
    }
    vcuda_lock_give(&mapping_lock);
    return result;
}
