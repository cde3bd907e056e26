/* Virtual memory management: reserved addresses, what is mapped there, and who may touch it. */
#include "vmm.h"

#include <stdlib.h>
#include <sys/mman.h>

static struct sim_node *reservations;

bool sim_reservation_at(CUdeviceptr address, CUdeviceptr *start, uint64_t *bytes) {
    const struct sim_node *found = sim_tree_at(reservations, address);
    if (found) {
        *start = found->start;
        *bytes = found->bytes;
    }
    return found != NULL;
}

SIM_EXPORT CUresult cuMemAddressReserve(CUdeviceptr *ptr, size_t size, size_t alignment, CUdeviceptr addr,
                                        unsigned long long flags) {
    SIM_BEGIN();
    (void)addr; /* a wish, which need not be granted */
    if (!ptr || !size || size % SIM_PAGE_BYTES || flags || (alignment & (alignment - 1)))
        return CUDA_ERROR_INVALID_VALUE;
    struct sim_node *node = calloc(1, sizeof *node);
    CUdeviceptr address = node ? sim_map_nothing(size, alignment) : 0;
    if (!address) {
        free(node);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    node->start = address;
    node->bytes = size;
    sim_memory_lock();
    sim_tree_put(&reservations, node);
    sim_memory_unlock();
    *ptr = address;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemAddressFree(CUdeviceptr ptr, size_t size) {
    SIM_BEGIN();
    sim_memory_lock();
    struct sim_node *node = sim_tree_at(reservations, ptr);
    const struct sim_range *first = sim_range_from(ptr);
    bool whole = node && node->start == ptr && node->bytes == size;
    bool empty = !first || first->node.start >= ptr + size;
    if (whole && empty)
        sim_tree_drop(&reservations, node);
    sim_memory_unlock();
    if (!whole || !empty)
        return CUDA_ERROR_INVALID_VALUE;
    sim_unmap_pages(ptr, size);
    free(node);
    return CUDA_SUCCESS;
}

/* ---- mapping ---- */

static CUresult map(CUdeviceptr address, uint64_t bytes, uint64_t offset, struct sim_physical *physical) {
    const struct sim_node *node = sim_tree_at(reservations, address);
    const struct sim_range *there = sim_range_from(address);
    uint64_t last;
    if (!physical || !node || address % SIM_PAGE_BYTES || __builtin_add_overflow(offset, bytes, &last) ||
        last > physical->bytes || bytes > node->start + node->bytes - address)
        return CUDA_ERROR_INVALID_VALUE;
    if (there && there->node.start < address + bytes)
        return CUDA_ERROR_INVALID_VALUE;
    struct sim_mapping *mapping = malloc(sizeof *mapping);
    if (!mapping)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *mapping =
        (struct sim_mapping){.physical = physical, .address = address, .bytes = bytes, .offset = offset};
    struct sim_range range = {.node = {.start = address, .bytes = bytes},
                              .kind = SIM_MEMORY_MAPPED,
                              .of = mapping,
                              .card = physical->card,
                              .device = physical->properties.location.id};
    if (!sim_range_put(&range)) {
        free(mapping);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (!sim_physical_show(physical, mapping)) {
        sim_range_drop(sim_range_at(address));
        sim_hide_pages(address, bytes);
        free(mapping);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    physical->mappings++;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemMap(CUdeviceptr ptr, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                             unsigned long long flags) {
    SIM_BEGIN();
    if (!size || size % SIM_PAGE_BYTES || offset % SIM_PAGE_BYTES || flags)
        return CUDA_ERROR_INVALID_VALUE;
    sim_memory_lock();
    CUresult result = map(ptr, size, offset, sim_physical_of(handle));
    sim_memory_unlock();
    return result;
}

/* Whether [address, address + bytes) is whole mappings and nothing else; with `cut`, the last may reach
 * further. */
static bool is_mapped(CUdeviceptr address, uint64_t bytes, bool cut) {
    uint64_t end = address + bytes;
    const struct sim_range *range = sim_range_at(address);
    if (!bytes || end < address || !range || (!cut && range->node.start != address))
        return false;
    for (uint64_t at = address; at < end;) {
        range = sim_range_at(at);
        if (!range || range->kind != SIM_MEMORY_MAPPED)
            return false;
        at = range->node.start + range->node.bytes;
        if (at > end && !cut)
            return false;
    }
    return true;
}

SIM_EXPORT CUresult cuMemUnmap(CUdeviceptr ptr, size_t size) {
    SIM_BEGIN();
    sim_synchronize_all(); /* what was submitted before may still use the memory */
    sim_memory_lock();
    bool mapped = is_mapped(ptr, size, false);
    for (uint64_t at = ptr; mapped && at < ptr + size;) {
        struct sim_range *range = sim_range_at(at);
        struct sim_mapping *mapping = range->of;
        at += mapping->bytes;
        sim_hide_pages(mapping->address, mapping->bytes);
        sim_range_drop(range);
        mapping->physical->mappings--;
        sim_physical_settle(mapping->physical);
        free(mapping);
    }
    sim_memory_unlock();
    return mapped ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

void sim_mappings_follow(const struct sim_physical *physical) {
    for (struct sim_range *range = sim_range_from(0); range;
         range = sim_range_from(range->node.start + range->node.bytes)) {
        if (range->kind == SIM_MEMORY_MAPPED && ((struct sim_mapping *)range->of)->physical == physical)
            sim_physical_show(physical, range->of);
    }
}

/* ---- access ---- */

int sim_mapping_protection(const struct sim_mapping *mapping) {
    switch (mapping->access) {
    case CU_MEM_ACCESS_FLAGS_PROT_READWRITE:
        return PROT_READ | PROT_WRITE;
    case CU_MEM_ACCESS_FLAGS_PROT_READ:
        return PROT_READ;
    default:
        return PROT_NONE;
    }
}

static void set_access(struct sim_range *range, const CUmemAccessDesc *wanted, uint32_t device_bit) {
    struct sim_mapping *mapping = range->of;
    bool reads = wanted->flags != CU_MEM_ACCESS_FLAGS_PROT_NONE;
    bool writes = wanted->flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    if (device_bit) {
        mapping->readers = reads ? mapping->readers | device_bit : mapping->readers & ~device_bit;
        mapping->writers = writes ? mapping->writers | device_bit : mapping->writers & ~device_bit;
    } else {
        mapping->host_reads = reads;
        mapping->host_writes = writes;
    }
    mapping->access = mapping->writers || mapping->host_writes  ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE
                      : mapping->readers || mapping->host_reads ? CU_MEM_ACCESS_FLAGS_PROT_READ
                                                                : CU_MEM_ACCESS_FLAGS_PROT_NONE;
    range->flags = mapping->access;
    mprotect((void *)(uintptr_t)mapping->address, mapping->bytes, sim_mapping_protection(mapping));
}

static bool access_known(CUmemAccess_flags flags) {
    return flags == CU_MEM_ACCESS_FLAGS_PROT_NONE || flags == CU_MEM_ACCESS_FLAGS_PROT_READ ||
           flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
}

SIM_EXPORT CUresult cuMemSetAccess(CUdeviceptr ptr, size_t size, const CUmemAccessDesc *desc, size_t count) {
    SIM_BEGIN();
    uint32_t card;
    if (!desc || !count || count > 2 * SIM_CARDS)
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count; i++) {
        CUresult result = access_known(desc[i].flags) ? sim_location_check(&desc[i].location, &card)
                                                      : CUDA_ERROR_INVALID_VALUE;
        if (result != CUDA_SUCCESS)
            return result;
    }
    sim_memory_lock();
    bool mapped = is_mapped(ptr, size, true);
    for (uint64_t at = ptr; mapped && at < ptr + size;) {
        struct sim_range *range = sim_range_at(at);
        for (size_t i = 0; i < count; i++)
            set_access(range, &desc[i],
                       desc[i].location.type == CU_MEM_LOCATION_TYPE_DEVICE ? 1U << desc[i].location.id : 0);
        at = range->node.start + range->node.bytes;
    }
    sim_memory_unlock();
    return mapped ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_EXPORT CUresult cuMemGetAccess(unsigned long long *flags, const CUmemLocation *location,
                                   CUdeviceptr ptr) {
    SIM_BEGIN();
    uint32_t card;
    CUresult result = flags && location ? sim_location_check(location, &card) : CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS)
        return result;
    sim_memory_lock();
    const struct sim_range *range = sim_range_at(ptr);
    const struct sim_mapping *mapping = range && range->kind == SIM_MEMORY_MAPPED ? range->of : NULL;
    if (mapping) {
        uint32_t bit = location->type == CU_MEM_LOCATION_TYPE_DEVICE ? 1U << location->id : 0;
        bool reads = bit ? mapping->readers & bit : mapping->host_reads;
        bool writes = bit ? mapping->writers & bit : mapping->host_writes;
        *flags = writes  ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE
                 : reads ? CU_MEM_ACCESS_FLAGS_PROT_READ
                         : CU_MEM_ACCESS_FLAGS_PROT_NONE;
    }
    sim_memory_unlock();
    return mapping ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
