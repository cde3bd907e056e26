/*
 * Copies: checked when they are called, done in this process when the model has reached them.
 *
 * Both sides are resolved to rows of bytes at the call. When the time has come, memory of the card and arrays
 * are looked up once more: what a program has freed in between is left alone.
 */
#include "copy.h"

#include <stdlib.h>
#include <string.h>

#define STAGE_BYTES                                                                                          \
    65536U /* pageable memory up to so much is copied away at the call; for more, the call waits */

/* One side: rows of memory. */
struct side {
    unsigned char *data;
    uint64_t row_bytes, slice_bytes; /* from one row, one slice, to the next */
    CUarray array;                   /* that must still be there; NULL: none */
    enum sim_place place;
};

struct copy {
    struct side to, from;
    uint64_t width, height, depth;
    void *staged; /* to be freed; NULL: none */
};
_Static_assert(sizeof(struct copy) <= SIM_ACTION_BYTES, "a copy is an action's data");

enum sim_place sim_place_of(CUdeviceptr address, uint64_t bytes, bool written) {
    bool host;
    CUdeviceptr start;
    uint64_t reserved;
    const struct sim_range *range = sim_range_at(address);
    if (!range && sim_range_expected(
                      address, bytes)) /* a graph's that has not been launched; nothing is moved before */
        return SIM_PLACE_DEVICE;
    if (!range)
        return !address || sim_reservation_at(address, &start, &reserved) ? SIM_PLACE_NOWHERE
                                                                          : SIM_PLACE_PAGEABLE;
    if (!sim_range_covers(address, bytes, written, &host))
        return sim_kind_is_host(range->kind) ? SIM_PLACE_PAGEABLE : SIM_PLACE_NOWHERE;
    if (host)
        return SIM_PLACE_PINNED;
    return range->kind == SIM_MEMORY_MANAGED ? SIM_PLACE_MANAGED : SIM_PLACE_DEVICE;
}

/* ---- doing it ---- */

static uint64_t span(const struct copy *copy, const struct side *side) {
    return (copy->depth - 1) * side->slice_bytes + (copy->height - 1) * side->row_bytes + copy->width;
}

static bool still_there(const struct copy *copy, const struct side *side, bool written) {
    struct sim_array_view view;
    bool host;
    if (side->array)
        return sim_array_view(side->array, &view);
    return side->place == SIM_PLACE_PAGEABLE ||
           sim_range_covers((CUdeviceptr)(uintptr_t)side->data, span(copy, side), written, &host);
}

static void run(void *data) {
    struct copy *copy = data;
    sim_memory_lock();
    bool there = still_there(copy, &copy->to, true) && still_there(copy, &copy->from, false);
    sim_memory_unlock();
    for (uint64_t z = 0; there && z < copy->depth; z++) {
        for (uint64_t y = 0; y < copy->height; y++) {
            memmove(copy->to.data + z * copy->to.slice_bytes + y * copy->to.row_bytes,
                    copy->from.data + z * copy->from.slice_bytes + y * copy->from.row_bytes, copy->width);
        }
    }
    free(copy->staged);
}

/* ---- resolving a side; lock held ---- */

/* A side as CUDA_MEMCPY3D has it, without the direction. */
struct named_side {
    CUmemorytype type;
    CUdeviceptr address; /* host memory too */
    CUarray array;
    uint64_t x, y, z, level, pitch, height;
};

static CUresult resolve_array(const struct named_side *named, const struct copy *copy, struct side *side) {
    struct sim_array_view view;
    if (!sim_array_view(named->array, &view))
        return CUDA_ERROR_INVALID_HANDLE;
    if (named->x > view.width_bytes || copy->width > view.width_bytes - named->x || named->y > view.height ||
        copy->height > view.height - named->y || named->z > view.depth || copy->depth > view.depth - named->z)
        return CUDA_ERROR_INVALID_VALUE;
    *side =
        (struct side){.data = view.data + named->z * view.slice_bytes + named->y * view.row_bytes + named->x,
                      .row_bytes = view.row_bytes,
                      .slice_bytes = view.slice_bytes,
                      .array = named->array,
                      .place = SIM_PLACE_DEVICE};
    return CUDA_SUCCESS;
}

static CUresult resolve_linear(const struct named_side *named, const struct copy *copy, struct side *side,
                               bool written) {
    uint64_t pitch = named->pitch ? named->pitch : named->x + copy->width;
    uint64_t rows = named->height ? named->height : named->y + copy->height, slice, last, end;
    if (pitch < named->x + copy->width && copy->height > 1)
        return CUDA_ERROR_INVALID_VALUE;
    if (rows < named->y + copy->height && copy->depth > 1)
        return CUDA_ERROR_INVALID_VALUE;
    if (__builtin_mul_overflow(pitch, rows, &slice) ||
        __builtin_mul_overflow(slice, named->z + copy->depth, &last) ||
        __builtin_add_overflow(last, named->address, &end))
        return CUDA_ERROR_INVALID_VALUE;
    uint64_t start = named->address + named->z * slice + named->y * pitch + named->x;
    *side =
        (struct side){.data = (unsigned char *)(uintptr_t)start, .row_bytes = pitch, .slice_bytes = slice};
    if (!named->address)
        return CUDA_ERROR_INVALID_VALUE;
    side->place = sim_place_of(start, span(copy, side), written);
    bool must_be_known = named->type == CU_MEMORYTYPE_DEVICE;
    if (side->place == SIM_PLACE_NOWHERE || (must_be_known && side->place == SIM_PLACE_PAGEABLE))
        return CUDA_ERROR_INVALID_VALUE;
    return CUDA_SUCCESS;
}

static CUresult resolve(const struct named_side *named, const struct copy *copy, struct side *side,
                        bool written) {
    if (named->level)
        return CUDA_ERROR_INVALID_VALUE;
    switch (named->type) {
    case CU_MEMORYTYPE_ARRAY:
        return resolve_array(named, copy, side);
    case CU_MEMORYTYPE_HOST:
    case CU_MEMORYTYPE_DEVICE:
    case CU_MEMORYTYPE_UNIFIED:
        return resolve_linear(named, copy, side, written);
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

static CUdeviceptr address_of(CUmemorytype type, const void *host, CUdeviceptr device) {
    return type == CU_MEMORYTYPE_HOST ? (CUdeviceptr)(uintptr_t)host : device;
}

static CUresult resolve_both(const CUDA_MEMCPY3D *c, struct copy *copy) {
    const struct named_side to = {c->dstMemoryType, address_of(c->dstMemoryType, c->dstHost, c->dstDevice),
                                  c->dstArray,      c->dstXInBytes,
                                  c->dstY,          c->dstZ,
                                  c->dstLOD,        c->dstPitch,
                                  c->dstHeight};
    const struct named_side from = {c->srcMemoryType, address_of(c->srcMemoryType, c->srcHost, c->srcDevice),
                                    c->srcArray,      c->srcXInBytes,
                                    c->srcY,          c->srcZ,
                                    c->srcLOD,        c->srcPitch,
                                    c->srcHeight};
    *copy = (struct copy){.width = c->WidthInBytes, .height = c->Height, .depth = c->Depth};
    const uint64_t most = (uint64_t)1 << 47; /* what is larger is nowhere */
    uint64_t bytes;
    if (__builtin_mul_overflow(copy->width, copy->height, &bytes) ||
        __builtin_mul_overflow(bytes, copy->depth, &bytes) || bytes > most || to.x > most || from.x > most)
        return CUDA_ERROR_INVALID_VALUE;
    sim_memory_lock();
    CUresult result = resolve(&to, copy, &copy->to, true);
    if (result == CUDA_SUCCESS)
        result = resolve(&from, copy, &copy->from, false);
    sim_memory_unlock();
    return result;
}

/* ---- submitting ---- */

static bool on_card(const struct side *side) {
    return side->place == SIM_PLACE_DEVICE || side->place == SIM_PLACE_MANAGED;
}

static struct sim_job job_of(const struct CUctx_st *context, const struct copy *copy) {
    uint64_t bytes = copy->width * copy->height * copy->depth;
    struct sim_job job = {.kind = SIM_OP_COPY, .node = CU_GRAPH_NODE_TYPE_MEMCPY, .action.run = run};
    job.duration_ns = sim_copy_ns(context->card, bytes, on_card(&copy->to) && on_card(&copy->from));
    memcpy(job.action.data, copy, sizeof *copy);
    return job;
}

CUresult sim_copy_job(struct CUctx_st *context, const CUDA_MEMCPY3D *named, struct sim_job *job) {
    struct copy copy;
    if (!named->WidthInBytes || !named->Height || !named->Depth) {
        *job = (struct sim_job){.kind = SIM_OP_MARK, .node = CU_GRAPH_NODE_TYPE_MEMCPY};
        return CUDA_SUCCESS;
    }
    CUresult result = resolve_both(named, &copy);
    if (result == CUDA_SUCCESS)
        *job = job_of(context, &copy);
    return result;
}

/* Take what a pageable source holds now: the program may change it as soon as the call returns. */
static bool stage(struct copy *copy) {
    uint64_t bytes = copy->width * copy->height * copy->depth;
    unsigned char *staged = bytes <= STAGE_BYTES ? malloc(bytes) : NULL;
    if (!staged)
        return false;
    for (uint64_t z = 0; z < copy->depth; z++)
        for (uint64_t y = 0; y < copy->height; y++)
            memcpy(staged + (z * copy->height + y) * copy->width,
                   copy->from.data + z * copy->from.slice_bytes + y * copy->from.row_bytes, copy->width);
    copy->from = (struct side){.data = staged,
                               .row_bytes = copy->width,
                               .slice_bytes = copy->width * copy->height,
                               .place = SIM_PLACE_PAGEABLE};
    copy->staged = staged;
    return true;
}

CUresult sim_copy(struct CUctx_st *context, const CUDA_MEMCPY3D *named, struct sim_copy_mode mode) {
    struct copy copy;
    bool capturing = false;
    if (!named->WidthInBytes || !named->Height || !named->Depth)
        return CUDA_SUCCESS;
    CUresult result = mode.synchronous ? sim_capture_forbids() : CUDA_SUCCESS;
    if (result == CUDA_SUCCESS)
        result = resolve_both(named, &copy);
    if (result == CUDA_SUCCESS && !mode.synchronous)
        result = sim_stream_capturing(mode.stream, mode.ptsz, &capturing);
    if (result != CUDA_SUCCESS)
        return result;
    /* Within the card nobody waits; the host waits for what it will look at, and for what it may change. */
    bool device_only = copy.to.place == SIM_PLACE_DEVICE && copy.from.place == SIM_PLACE_DEVICE;
    bool wait = mode.synchronous ? !device_only : copy.to.place == SIM_PLACE_PAGEABLE;
    if (!wait && !capturing && copy.from.place == SIM_PLACE_PAGEABLE)
        wait = !stage(&copy);
    struct sim_job job = job_of(context, &copy);
    job.wait = wait && !capturing;
    result = sim_submit_job(mode.stream, mode.ptsz, &job);
    if (result != CUDA_SUCCESS)
        free(copy.staged);
    return result;
}
