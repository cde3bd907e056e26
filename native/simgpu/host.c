/* Page-locked host memory: allocated here, or the program's own, registered. It costs no card anything. */
#include "memory.h"

#include <sys/mman.h>

#define HOST_PAGE 4096U
#define ALLOC_FLAGS                                                                                          \
    (unsigned int)(CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_WRITECOMBINED)
#define REGISTER_FLAGS                                                                                       \
    (unsigned int)(CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP | CU_MEMHOSTREGISTER_READ_ONLY)

static CUdeviceptr as_address(const void *pointer) {
    return (CUdeviceptr)(uintptr_t)pointer;
}

static void unmap(const struct sim_range *range) {
    munmap((void *)(uintptr_t)range->node.start, sim_round_up(range->node.bytes, HOST_PAGE));
}

static CUresult allocate(struct CUctx_st *context, void **pointer, uint64_t bytes, unsigned int flags) {
    if (!pointer || !bytes || flags & ~ALLOC_FLAGS)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = sim_capture_forbids();
    if (result != CUDA_SUCCESS)
        return result;
    uint64_t mapped = sim_round_up(bytes, HOST_PAGE);
    if (mapped > (uint64_t)1 << 46)
        return CUDA_ERROR_OUT_OF_MEMORY;
    void *at = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        return CUDA_ERROR_OUT_OF_MEMORY;
    struct sim_range range = {.node = {.start = as_address(at), .bytes = bytes},
                              .kind = SIM_MEMORY_HOST,
                              .context = context,
                              .card = context->card,
                              .device = context->device,
                              .flags = flags | CU_MEMHOSTALLOC_DEVICEMAP}; /* so with unified addressing */
    sim_memory_lock();
    bool kept = sim_range_put(&range) != NULL;
    sim_memory_unlock();
    if (!kept) {
        munmap(at, mapped);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *pointer = at;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemHostAlloc(void **pp, size_t bytesize, unsigned int Flags) {
    SIM_BEGIN_IN(context);
    return allocate(context, pp, bytesize, Flags);
}

SIM_EXPORT CUresult cuMemAllocHost_v2(void **pp, size_t bytesize) {
    SIM_BEGIN_IN(context);
    return allocate(context, pp, bytesize, 0);
}

SIM_EXPORT CUresult cuMemAllocHost(void **pp, unsigned int bytesize) {
    SIM_BEGIN_IN(context);
    return allocate(context, pp, bytesize, 0);
}

static bool begins_at(const struct sim_range *range, const void *pointer, enum sim_memory_kind kind) {
    return range && range->node.start == as_address(pointer) && range->kind == kind;
}

/* Whether there is such a range, before work is waited for that may use it. */
static bool exists(const void *pointer, enum sim_memory_kind kind) {
    sim_memory_lock();
    bool found = begins_at(sim_range_at(as_address(pointer)), pointer, kind);
    sim_memory_unlock();
    return found;
}

static bool take_away(const void *pointer, enum sim_memory_kind kind) {
    sim_memory_lock();
    struct sim_range *range = sim_range_at(as_address(pointer));
    bool found = begins_at(range, pointer, kind);
    if (found && kind == SIM_MEMORY_HOST)
        unmap(range);
    if (found)
        sim_range_drop(range);
    sim_memory_unlock();
    return found;
}

SIM_EXPORT CUresult cuMemFreeHost(void *p) {
    SIM_BEGIN();
    CUresult result = sim_capture_forbids();
    if (result != CUDA_SUCCESS)
        return result;
    if (!exists(p, SIM_MEMORY_HOST))
        return CUDA_ERROR_INVALID_VALUE;
    sim_synchronize_all();
    return take_away(p, SIM_MEMORY_HOST) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult add_registered(struct CUctx_st *context, void *pointer, uint64_t bytes, unsigned int flags) {
    uint64_t start = as_address(pointer);
    if (!pointer || !bytes || start + bytes < start ||
        flags & ~(REGISTER_FLAGS | CU_MEMHOSTREGISTER_IOMEMORY))
        return CUDA_ERROR_INVALID_VALUE;
    if (flags & CU_MEMHOSTREGISTER_IOMEMORY)
        return CUDA_ERROR_NOT_SUPPORTED;
    CUresult result = sim_capture_forbids();
    if (result != CUDA_SUCCESS)
        return result;
    struct sim_range range = {.node = {.start = start, .bytes = bytes},
                              .kind = SIM_MEMORY_REGISTERED,
                              .context = context,
                              .card = context->card,
                              .device = context->device,
                              .flags = flags | CU_MEMHOSTREGISTER_DEVICEMAP};
    sim_memory_lock();
    const struct sim_range *there = sim_range_from(start);
    if (there && there->node.start < start + bytes)
        result = sim_kind_is_host(there->kind) ? CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED
                                               : CUDA_ERROR_INVALID_VALUE;
    else
        result = sim_range_put(&range) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    sim_memory_unlock();
    return result;
}

SIM_EXPORT CUresult cuMemHostRegister_v2(void *p, size_t bytesize, unsigned int Flags) {
    SIM_BEGIN_IN(context);
    return add_registered(context, p, bytesize, Flags);
}

SIM_EXPORT CUresult cuMemHostRegister(void *p, size_t bytesize, unsigned int Flags) {
    SIM_BEGIN_IN(context);
    return add_registered(context, p, bytesize, Flags);
}

SIM_EXPORT CUresult cuMemHostUnregister(void *p) {
    SIM_BEGIN();
    CUresult result = sim_capture_forbids();
    if (result != CUDA_SUCCESS)
        return result;
    if (!p)
        return CUDA_ERROR_INVALID_VALUE;
    if (!exists(p, SIM_MEMORY_REGISTERED))
        return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
    sim_synchronize_all();
    return take_away(p, SIM_MEMORY_REGISTERED) ? CUDA_SUCCESS : CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
}

SIM_EXPORT CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *pdptr, void *p, unsigned int Flags) {
    SIM_BEGIN_IN(context);
    (void)context;
    if (!pdptr || Flags)
        return CUDA_ERROR_INVALID_VALUE;
    sim_memory_lock();
    const struct sim_range *range = sim_range_at(as_address(p));
    bool found = range && sim_kind_is_host(range->kind);
    sim_memory_unlock();
    *pdptr = found ? as_address(p) : 0;
    return found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_EXPORT CUresult cuMemHostGetFlags(unsigned int *pFlags, void *p) {
    SIM_BEGIN_IN(context);
    (void)context;
    if (!pFlags)
        return CUDA_ERROR_INVALID_VALUE;
    sim_memory_lock();
    const struct sim_range *range = sim_range_at(as_address(p));
    bool found = range && range->kind == SIM_MEMORY_HOST;
    if (found)
        *pFlags = range->flags;
    sim_memory_unlock();
    return found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

void sim_host_context_ends(struct CUctx_st *context) {
    struct sim_range *next;
    sim_memory_lock();
    for (struct sim_range *range = sim_range_from(0); range; range = next) {
        next = sim_range_from(range->node.start + range->node.bytes);
        if (range->context != context || !sim_kind_is_host(range->kind))
            continue;
        if (range->kind == SIM_MEMORY_HOST)
            unmap(range);
        sim_range_drop(range);
    }
    sim_memory_unlock();
}
