/* Setting memory. Zeros over much untouched memory cost the host none: its pages are dropped instead. */
#include <string.h>
#include <sys/mman.h>

#include "copy.h"

#define HOST_PAGE 4096U
#define DROP_BYTES ((uint64_t)1 << 20)

struct set {
    CUdeviceptr address;
    uint64_t pitch, width, height; /* width: in elements */
    uint32_t value, element;
};
_Static_assert(sizeof(struct set) <= SIM_ACTION_BYTES, "a memset is an action's data");

static uint64_t span(const struct set *set) {
    return (set->height - 1) * set->pitch + set->width * set->element;
}

/* Memory that only this process maps, and only once; lock held. */
static bool is_private(CUdeviceptr address, uint64_t bytes) {
    const struct sim_range *range = sim_range_at(address);
    if (!range || range->node.start + range->node.bytes < address + bytes)
        return false;
    if (range->kind == SIM_MEMORY_LINEAR || range->kind == SIM_MEMORY_MANAGED)
        return !((const struct sim_block *)range->of)->shared_id;
    return range->kind == SIM_MEMORY_POOLED || range->kind == SIM_MEMORY_GRAPH;
}

static void fill_zeros(unsigned char *at, uint64_t bytes) {
    uintptr_t start = (uintptr_t)at, end = start + bytes;
    uintptr_t first = (start + HOST_PAGE - 1) & ~(uintptr_t)(HOST_PAGE - 1),
              last = end & ~(uintptr_t)(HOST_PAGE - 1);
    sim_memory_lock();
    bool dropped = bytes >= DROP_BYTES && is_private(start, bytes) &&
                   madvise((void *)first, last - first, MADV_DONTNEED) == 0;
    sim_memory_unlock();
    if (!dropped) {
        memset(at, 0, bytes);
        return;
    }
    memset(at, 0, first - start);
    memset((void *)last, 0, end - last);
}

static void fill(unsigned char *at, const struct set *set) {
    uint64_t bytes = set->width * set->element;
    if (set->value == 0)
        fill_zeros(at, bytes);
    else if (set->element == 1)
        memset(at, (int)set->value, bytes);
    else
        for (uint64_t i = 0; i < bytes; i += set->element)
            memcpy(at + i, &set->value, set->element); /* little-endian: the low bytes come first */
}

static void run(void *data) {
    struct set *set = data;
    bool host;
    sim_memory_lock();
    bool there = sim_range_covers(set->address, span(set), true, &host);
    sim_memory_unlock();
    for (uint64_t y = 0; there && y < set->height; y++)
        fill((unsigned char *)(uintptr_t)(set->address + y * set->pitch), set);
}

static CUresult check(const struct set *set, enum sim_place *place) {
    const uint64_t most = (uint64_t)1 << 40;
    uint64_t bytes;
    if ((set->element != 1 && set->element != 2 && set->element != 4) || set->address % set->element)
        return CUDA_ERROR_INVALID_VALUE;
    if (set->width > most || set->height > most || __builtin_mul_overflow(set->pitch, set->height, &bytes) ||
        bytes > (uint64_t)1 << 47)
        return CUDA_ERROR_INVALID_VALUE;
    if (set->height > 1 && (set->pitch < set->width * set->element || set->pitch % set->element))
        return CUDA_ERROR_INVALID_VALUE;
    sim_memory_lock();
    *place = sim_place_of(set->address, span(set), true);
    sim_memory_unlock();
    return *place == SIM_PLACE_NOWHERE || *place == SIM_PLACE_PAGEABLE ? CUDA_ERROR_INVALID_VALUE
                                                                       : CUDA_SUCCESS;
}

static struct sim_job job_of(const struct CUctx_st *context, const struct set *set, enum sim_place place) {
    struct sim_job job = {.kind = SIM_OP_COPY, .node = CU_GRAPH_NODE_TYPE_MEMSET, .action.run = run};
    job.duration_ns =
        sim_copy_ns(context->card, set->width * set->element * set->height, place != SIM_PLACE_PINNED);
    memcpy(job.action.data, set, sizeof *set);
    return job;
}

CUresult sim_memset_job(struct CUctx_st *context, const CUDA_MEMSET_NODE_PARAMS *named, struct sim_job *job) {
    enum sim_place place;
    struct set set = {named->dst,    named->pitch, named->width,
                      named->height, named->value, named->elementSize};
    if (!set.width || !set.height)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = check(&set, &place);
    if (result == CUDA_SUCCESS)
        *job = job_of(context, &set, place);
    return result;
}

static CUresult submit(struct CUctx_st *context, const struct set *set, struct sim_copy_mode mode) {
    enum sim_place place;
    if (!set->width || !set->height)
        return CUDA_SUCCESS;
    CUresult result = mode.synchronous ? sim_capture_forbids() : CUDA_SUCCESS;
    if (result == CUDA_SUCCESS)
        result = check(set, &place);
    if (result != CUDA_SUCCESS)
        return result;
    struct sim_job job = job_of(context, set, place);
    job.wait = mode.synchronous && place != SIM_PLACE_DEVICE; /* the host may look at it at once */
    return sim_submit_job(mode.stream, mode.ptsz, &job);
}

/* Each of the six in its four forms; `set` is a struct set's initialiser. */
#define DEFINE(name, parameters, asynchronous_parameters, ...)                                               \
    SIM_EXPORT CUresult name##_v2 parameters {                                                               \
        SIM_BEGIN_IN(context);                                                                               \
        const struct set set = {__VA_ARGS__};                                                                \
        return submit(context, &set, (struct sim_copy_mode){.synchronous = true});                           \
    }                                                                                                        \
    SIM_EXPORT CUresult name##_v2_ptds parameters {                                                          \
        SIM_BEGIN_IN(context);                                                                               \
        const struct set set = {__VA_ARGS__};                                                                \
        return submit(context, &set, (struct sim_copy_mode){.ptsz = true, .synchronous = true});             \
    }                                                                                                        \
    SIM_EXPORT CUresult name##Async asynchronous_parameters {                                                \
        SIM_BEGIN_IN(context);                                                                               \
        const struct set set = {__VA_ARGS__};                                                                \
        return submit(context, &set, (struct sim_copy_mode){.stream = hStream});                             \
    }                                                                                                        \
    SIM_EXPORT CUresult name##Async_ptsz asynchronous_parameters {                                           \
        SIM_BEGIN_IN(context);                                                                               \
        const struct set set = {__VA_ARGS__};                                                                \
        return submit(context, &set, (struct sim_copy_mode){.stream = hStream, .ptsz = true});               \
    }

DEFINE(cuMemsetD8, (CUdeviceptr dstDevice, unsigned char uc, size_t N),
       (CUdeviceptr dstDevice, unsigned char uc, size_t N, CUstream hStream), dstDevice, N, N, 1, uc, 1)
DEFINE(cuMemsetD16, (CUdeviceptr dstDevice, unsigned short us, size_t N),
       (CUdeviceptr dstDevice, unsigned short us, size_t N, CUstream hStream), dstDevice, N, N, 1, us, 2)
DEFINE(cuMemsetD32, (CUdeviceptr dstDevice, unsigned int ui, size_t N),
       (CUdeviceptr dstDevice, unsigned int ui, size_t N, CUstream hStream), dstDevice, N, N, 1, ui, 4)
DEFINE(cuMemsetD2D8, (CUdeviceptr dstDevice, size_t dstPitch, unsigned char uc, size_t Width, size_t Height),
       (CUdeviceptr dstDevice, size_t dstPitch, unsigned char uc, size_t Width, size_t Height,
        CUstream hStream),
       dstDevice, dstPitch, Width, Height, uc, 1)
DEFINE(cuMemsetD2D16,
       (CUdeviceptr dstDevice, size_t dstPitch, unsigned short us, size_t Width, size_t Height),
       (CUdeviceptr dstDevice, size_t dstPitch, unsigned short us, size_t Width, size_t Height,
        CUstream hStream),
       dstDevice, dstPitch, Width, Height, us, 2)
DEFINE(cuMemsetD2D32, (CUdeviceptr dstDevice, size_t dstPitch, unsigned int ui, size_t Width, size_t Height),
       (CUdeviceptr dstDevice, size_t dstPitch, unsigned int ui, size_t Width, size_t Height,
        CUstream hStream),
       dstDevice, dstPitch, Width, Height, ui, 4)
