/* What a program may ask of an address. */
#include "vmm.h"

#include <stdint.h>
#include <string.h>

/* What is known of an address; lock held. An address that is only reserved has no range. */
struct known {
    const struct sim_range *range;
    CUdeviceptr address, start; /* start, bytes: of the allocation or the reservation */
    uint64_t bytes;
};

static bool look_up(CUdeviceptr address, struct known *known) {
    *known = (struct known){.range = sim_range_at(address), .address = address};
    if (known->range) {
        known->start = known->range->node.start;
        known->bytes = known->range->node.bytes;
    }
    bool reserved = sim_reservation_at(address, &known->start, &known->bytes);
    return reserved || (known->range && known->range->kind != SIM_MEMORY_INTERNAL);
}

static bool is_host(const struct sim_range *range) {
    return sim_kind_is_host(range->kind) || (range->kind == SIM_MEMORY_MAPPED && range->card == SIM_NO_CARD);
}

static CUmemoryPool pool_of(const struct sim_range *range) {
    return range->kind == SIM_MEMORY_POOLED ? sim_piece_pool(range) : NULL;
}

static unsigned int handle_types(const struct sim_range *range) {
    if (range->kind != SIM_MEMORY_MAPPED)
        return CU_MEM_HANDLE_TYPE_NONE;
    return ((const struct sim_mapping *)range->of)->physical->properties.requestedHandleTypes;
}

#define ANSWER(type, value)                                                                                  \
    do {                                                                                                     \
        *(type *)data = (type)(value);                                                                       \
        return CUDA_SUCCESS;                                                                                 \
    } while (0)

/* What is known of addresses that are reserved, too. */
static CUresult answer_reserved(const struct known *known, CUpointer_attribute attribute, void *data) {
    switch (attribute) {
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
        ANSWER(CUdeviceptr, known->start);
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
        ANSWER(size_t, known->bytes);
    case CU_POINTER_ATTRIBUTE_MAPPED:
        ANSWER(bool, known->range != NULL);
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

static CUresult answer(const struct known *known, CUpointer_attribute attribute, void *data) {
    const struct sim_range *range = known->range;
    if (!range)
        return answer_reserved(known, attribute, data);
    switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT: /* memory that no context made has none */
        ANSWER(CUcontext, range->context);
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        ANSWER(unsigned int, is_host(range) ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE);
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
        ANSWER(CUdeviceptr, known->address);
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
        if (!is_host(range) && range->kind != SIM_MEMORY_MANAGED)
            return CUDA_ERROR_INVALID_VALUE;
        ANSWER(void *, (uintptr_t)known->address);
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
        ANSWER(int, range->sync_memops);
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
    case CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID:
        ANSWER(unsigned long long, range->id);
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
        ANSWER(bool, range->kind == SIM_MEMORY_MANAGED);
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
        ANSWER(int, range->device);
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
        ANSWER(bool, range->kind == SIM_MEMORY_LINEAR);
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
        ANSWER(unsigned long long, handle_types(range));
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
    case CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE:
        ANSWER(bool, false);
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
        ANSWER(unsigned int,
               range->kind == SIM_MEMORY_MAPPED ? range->flags : CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
        ANSWER(CUmemoryPool, pool_of(range));
    case CU_POINTER_ATTRIBUTE_MAPPING_SIZE:
        ANSWER(size_t, range->node.bytes);
    case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR:
        ANSWER(CUdeviceptr, range->node.start);
    default:
        return answer_reserved(known, attribute, data);
    }
}

SIM_EXPORT CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr ptr) {
    SIM_BEGIN();
    struct known known;
    if (!data)
        return CUDA_ERROR_INVALID_VALUE;
    if (attribute == CU_POINTER_ATTRIBUTE_P2P_TOKENS)
        return CUDA_ERROR_NOT_SUPPORTED;
    sim_memory_lock();
    CUresult result = look_up(ptr, &known) ? answer(&known, attribute, data) : CUDA_ERROR_INVALID_VALUE;
    sim_memory_unlock();
    return result;
}

static size_t answer_bytes(CUpointer_attribute attribute) {
    switch (attribute) {
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
        return sizeof(int);
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
    case CU_POINTER_ATTRIBUTE_MAPPED:
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
    case CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE:
        return sizeof(bool);
    default:
        return sizeof(uint64_t);
    }
}

static bool is_attribute(CUpointer_attribute attribute) {
    return (int)attribute >= CU_POINTER_ATTRIBUTE_CONTEXT &&
           attribute <= CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE;
}

/* Unlike the singular, this one answers "nothing" for what it does not know. */
SIM_EXPORT CUresult cuPointerGetAttributes(unsigned int numAttributes, CUpointer_attribute *attributes,
                                           void **data, CUdeviceptr ptr) {
    SIM_BEGIN();
    struct known known;
    if (!numAttributes || !attributes || !data)
        return CUDA_ERROR_INVALID_VALUE;
    for (unsigned int i = 0; i < numAttributes; i++)
        if (!data[i] || !is_attribute(attributes[i]))
            return CUDA_ERROR_INVALID_VALUE;
    sim_memory_lock();
    bool found = look_up(ptr, &known);
    for (unsigned int i = 0; i < numAttributes; i++) {
        if (found && answer(&known, attributes[i], data[i]) == CUDA_SUCCESS)
            continue;
        memset(data[i], 0, answer_bytes(attributes[i]));
        if (attributes[i] == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL)
            *(int *)data[i] = CU_DEVICE_INVALID;
    }
    sim_memory_unlock();
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuPointerSetAttribute(const void *value, CUpointer_attribute attribute, CUdeviceptr ptr) {
    SIM_BEGIN();
    if (!value || attribute != CU_POINTER_ATTRIBUTE_SYNC_MEMOPS)
        return CUDA_ERROR_INVALID_VALUE;
    sim_memory_lock();
    struct sim_range *range = sim_range_at(ptr);
    if (range)
        range->sync_memops = *(const int *)value != 0;
    sim_memory_unlock();
    return range ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
