/*
 * Linear, pitched and managed memory: reserve, allocate, and settle on the pages that the driver really took.
 *
 * What a program frees is given back to the ledger only after the driver has freed it, so that the ledger is
 * never below what the card holds.
 */
#include "memory.h"

#include <time.h>

#include "pages.h"

#define MINIMUM_PITCH 512

/* key: address; bytes: charged for at allocation; size: as asked; owner: the context. */
static struct vcuda_shards allocations;

bool vcuda_reserve_or_settle_as(struct vcuda_share *share, int card, enum vcuda_kind kind, uint64_t bytes,
                                unsigned int how) {
    if (vcuda_reserve_as(share, card, kind, bytes, how))
        return true;
    if (!vcuda_pools_in_use)
        return false;
    vcuda_pools_settle(share);
    return vcuda_reserve_as(share, card, kind, bytes, how);
}

bool vcuda_reserve_or_settle(struct vcuda_share *share, int card, enum vcuda_kind kind, uint64_t bytes) {
    return vcuda_reserve_or_settle_as(share, card, kind, bytes, 0);
}

bool vcuda_wait_for_the_dead(struct vcuda_share *share, int card, int *tries) {
    const struct vcuda_ledger_card *all = &share->ledger.header->cards[card];
    uint64_t reclaimed = __atomic_load_n(&all->reclaimed_ns, __ATOMIC_RELAXED);
    if (reclaimed == 0 || ++*tries > 100 || sys_clock_ns(CLOCK_MONOTONIC) - reclaimed > 1000000000)
        return false;
    struct timespec pause = {0, 5000000};
    nanosleep(&pause, NULL);
    return true;
}

static uint64_t current_context(void) {
    CUcontext context = NULL;
    return vcuda_real.cuCtxGetCurrent(&context) == CUDA_SUCCESS ? (uint64_t)(uintptr_t)context : 0;
}

/* One attempt to allocate, from the question of room to the record. */
struct attempt {
    struct vcuda_share *share;
    int card;
    enum vcuda_kind kind;
    uint64_t page_bytes;
    uint64_t reserved;
    uint64_t unsettled; /* all of it, where only the address will tell what it costs */
    int tries;
};

/* CUDA_SUCCESS: go and ask the driver. */
static CUresult begin(struct attempt *attempt, struct vcuda_share *share, enum vcuda_kind kind,
                      uint64_t bytes) {
    CUresult error;
    attempt->share = share;
    attempt->kind = kind;
    attempt->reserved = attempt->unsettled = 0;
    attempt->tries = 0;
    attempt->card = vcuda_current_card(share, &error);
    if (error != CUDA_SUCCESS)
        return error;
    if (attempt->card < 0)
        return CUDA_ERROR_OUT_OF_MEMORY;
    attempt->page_bytes = vcuda_page_bytes(share, attempt->card);
    uint64_t needed = vcuda_round_up(bytes, attempt->page_bytes);
    unsigned int how = needed == bytes ? 0 : VCUDA_UNSETTLED;
    bool reserved = vcuda_reserve_or_settle_as(share, attempt->card, kind, needed, how | VCUDA_AT_ONCE);
    /* At the limit, a small allocation may still fit into a page that is paid for: where it went is checked.
     */
    if (!reserved && vcuda_pages_have_room(attempt->card, attempt->page_bytes, bytes))
        return CUDA_SUCCESS;
    if (!reserved && !vcuda_reserve_as(share, attempt->card, kind, needed, how))
        return vcuda_refuse(share, attempt->card, bytes);
    attempt->reserved = needed;
    attempt->unsettled = how ? needed : 0;
    return CUDA_SUCCESS;
}

static void give_up(struct attempt *attempt) {
    vcuda_release(attempt->share, attempt->card, attempt->kind, attempt->reserved);
    vcuda_settle(attempt->share, attempt->card, attempt->unsettled);
}

/* The driver has allocated [address, address + bytes): pay for the pages, or have it freed again. */
static CUresult settle(struct attempt *attempt, CUdeviceptr address, uint64_t bytes) {
    uint64_t cost = vcuda_pages_cover(attempt->card, attempt->page_bytes, address, bytes);
    struct vcuda_record record = {.key = address,
                                  .bytes = cost,
                                  .size = bytes,
                                  .owner = current_context(),
                                  .card = (int16_t)attempt->card,
                                  .kind = (uint16_t)attempt->kind};
    bool paid = cost != VCUDA_PAGES_FAILED &&
                (cost <= attempt->reserved ||
                 vcuda_reserve(attempt->share, attempt->card, attempt->kind, cost - attempt->reserved));
    if (paid && vcuda_shards_put(&allocations, &record)) {
        if (cost < attempt->reserved)
            vcuda_release(attempt->share, attempt->card, attempt->kind, attempt->reserved - cost);
        vcuda_settle(attempt->share, attempt->card, attempt->unsettled);
        return CUDA_SUCCESS;
    }
    vcuda_depth++;
    vcuda_real.cuMemFree_v2(address);
    vcuda_depth--;
    if (cost != VCUDA_PAGES_FAILED)
        vcuda_pages_uncover(attempt->page_bytes, address, bytes);
    if (paid && cost > attempt->reserved)
        attempt->reserved = cost;
    give_up(attempt);
    return vcuda_refuse(attempt->share, attempt->card, bytes);
}

/* Runs `call`, a call of the driver that sets `result`, as often as the dead make it worth. */
#define ASK_DRIVER(attempt, result, call)                                                                    \
    do {                                                                                                     \
        vcuda_depth++;                                                                                       \
        (result) = (call);                                                                                   \
        vcuda_depth--;                                                                                       \
    } while ((result) == CUDA_ERROR_OUT_OF_MEMORY &&                                                         \
             vcuda_wait_for_the_dead((attempt)->share, (attempt)->card, &(attempt)->tries))

VCUDA_EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *dptr, size_t bytesize) {
    struct vcuda_share *share = vcuda_limited_share();
    if (!share || vcuda_depth || !dptr)
        return vcuda_real.cuMemAlloc_v2(dptr, bytesize);
    struct attempt attempt;
    CUresult result = begin(&attempt, share, VCUDA_KIND_LINEAR, bytesize);
    if (result != CUDA_SUCCESS)
        return result;
    ASK_DRIVER(&attempt, result, vcuda_real.cuMemAlloc_v2(dptr, bytesize));
    if (result == CUDA_SUCCESS)
        return settle(&attempt, *dptr, bytesize);
    give_up(&attempt);
    return result;
}

/* The ABI of CUDA 3.1 and older, with 32-bit addresses: still exported by every driver. */
VCUDA_EXPORT CUresult cuMemAlloc(CUdeviceptr_v1 *dptr, unsigned int bytesize) {
    struct vcuda_share *share = vcuda_limited_share();
    if (!share || vcuda_depth || !dptr)
        return vcuda_real.cuMemAlloc(dptr, bytesize);
    struct attempt attempt;
    CUresult result = begin(&attempt, share, VCUDA_KIND_LINEAR, bytesize);
    if (result != CUDA_SUCCESS)
        return result;
    ASK_DRIVER(&attempt, result, vcuda_real.cuMemAlloc(dptr, bytesize));
    if (result == CUDA_SUCCESS)
        return settle(&attempt, *dptr, bytesize);
    give_up(&attempt);
    return result;
}

/* How much a pitched allocation takes at the least; the driver's pitch settles it. */
static uint64_t pitched_bytes(uint64_t width, uint64_t height) {
    uint64_t pitch = vcuda_round_up(width, MINIMUM_PITCH);
    return height && pitch > VCUDA_MAX_BYTES / height ? VCUDA_MAX_BYTES + 1 : pitch * height;
}

VCUDA_EXPORT CUresult cuMemAllocPitch_v2(CUdeviceptr *dptr, size_t *pPitch, size_t WidthInBytes,
                                         size_t Height, unsigned int ElementSizeBytes) {
    struct vcuda_share *share = vcuda_limited_share();
    if (!share || vcuda_depth || !dptr || !pPitch)
        return vcuda_real.cuMemAllocPitch_v2(dptr, pPitch, WidthInBytes, Height, ElementSizeBytes);
    struct attempt attempt;
    CUresult result = begin(&attempt, share, VCUDA_KIND_LINEAR, pitched_bytes(WidthInBytes, Height));
    if (result != CUDA_SUCCESS)
        return result;
    ASK_DRIVER(&attempt, result,
               vcuda_real.cuMemAllocPitch_v2(dptr, pPitch, WidthInBytes, Height, ElementSizeBytes));
    if (result == CUDA_SUCCESS)
        return settle(&attempt, *dptr, (uint64_t)*pPitch * Height);
    give_up(&attempt);
    return result;
}

VCUDA_EXPORT CUresult cuMemAllocPitch(CUdeviceptr_v1 *dptr, unsigned int *pPitch, unsigned int WidthInBytes,
                                      unsigned int Height, unsigned int ElementSizeBytes) {
    struct vcuda_share *share = vcuda_limited_share();
    if (!share || vcuda_depth || !dptr || !pPitch)
        return vcuda_real.cuMemAllocPitch(dptr, pPitch, WidthInBytes, Height, ElementSizeBytes);
    struct attempt attempt;
    CUresult result = begin(&attempt, share, VCUDA_KIND_LINEAR, pitched_bytes(WidthInBytes, Height));
    if (result != CUDA_SUCCESS)
        return result;
    ASK_DRIVER(&attempt, result,
               vcuda_real.cuMemAllocPitch(dptr, pPitch, WidthInBytes, Height, ElementSizeBytes));
    if (result == CUDA_SUCCESS)
        return settle(&attempt, *dptr, (uint64_t)*pPitch * Height);
    give_up(&attempt);
    return result;
}

/* Managed memory may live on the host for a time; it is charged as if it were all on the card, as a limit
 * must. */
VCUDA_EXPORT CUresult cuMemAllocManaged(CUdeviceptr *dptr, size_t bytesize, unsigned int flags) {
    struct vcuda_share *share = vcuda_limited_share();
    if (!share || vcuda_depth || !dptr)
        return vcuda_real.cuMemAllocManaged(dptr, bytesize, flags);
    struct attempt attempt;
    CUresult result = begin(&attempt, share, VCUDA_KIND_MANAGED, bytesize);
    if (result != CUDA_SUCCESS)
        return result;
    ASK_DRIVER(&attempt, result, vcuda_real.cuMemAllocManaged(dptr, bytesize, flags));
    if (result == CUDA_SUCCESS)
        return settle(&attempt, *dptr, bytesize);
    give_up(&attempt);
    return result;
}

static void give_back(struct vcuda_share *share, const struct vcuda_record *record) {
    uint64_t pages = vcuda_pages_uncover(vcuda_page_bytes(share, record->card), record->key, record->size);
    vcuda_release(share, record->card, (enum vcuda_kind)record->kind, pages);
}

bool vcuda_linear_free(struct vcuda_share *share, CUdeviceptr address, CUresult *result) {
    struct vcuda_record record;
    if (!vcuda_shards_take(&allocations, address, &record))
        return false;
    /* Without its record first: once the driver has freed it, another thread may be given the address. */
    vcuda_depth++;
    *result = vcuda_real.cuMemFree_v2(address);
    vcuda_depth--;
    if (*result == CUDA_SUCCESS)
        give_back(share, &record);
    else
        vcuda_shards_put(&allocations, &record);
    return true;
}

VCUDA_EXPORT CUresult cuMemFree_v2(CUdeviceptr dptr) {
    struct vcuda_share *share = vcuda_limited_share();
    CUresult result;
    if (!share || vcuda_depth)
        return vcuda_real.cuMemFree_v2(dptr);
    if (vcuda_linear_free(share, dptr, &result))
        return result;
    result = vcuda_real.cuMemFree_v2(dptr); /* of a pool, imported, or not an address at all */
    if (result == CUDA_SUCCESS)
        vcuda_pool_freed(share, dptr);
    return result;
}

VCUDA_EXPORT CUresult cuMemFree(CUdeviceptr_v1 dptr) {
    struct vcuda_share *share = vcuda_limited_share();
    CUresult result;
    if (!share || vcuda_depth)
        return vcuda_real.cuMemFree(dptr);
    return vcuda_linear_free(share, dptr, &result) ? result : vcuda_real.cuMemFree(dptr);
}

/* ---- freed in stream order ---- */

/* key: address; owner: the stream; count: 1 if it is a handle of the per-thread default stream's API. */
static struct vcuda_table leaving;

void vcuda_linear_freed_in_stream(struct vcuda_share *share, CUdeviceptr address, CUstream stream,
                                  bool ptsz) {
    struct vcuda_record record;
    if (!vcuda_shards_take(&allocations, address, &record))
        return;
    record.owner = (uint64_t)(uintptr_t)stream;
    record.count = ptsz;
    if (!vcuda_record_put(&leaving, &record))
        give_back(share, &record);
    else
        __atomic_store_n(&vcuda_pools_in_use, true, __ATOMIC_RELAXED);
}

static bool has_left(struct vcuda_record *record, void *data) {
    CUstream stream = (CUstream)(uintptr_t)record->owner;
    CUresult result =
        record->count ? vcuda_real.cuStreamQuery_ptsz(stream) : vcuda_real.cuStreamQuery(stream);
    if (result == CUDA_ERROR_NOT_READY)
        return false;
    give_back(data, record);
    return true;
}

void vcuda_linear_settle_leaving(struct vcuda_share *share) {
    if (__atomic_load_n(&leaving.used, __ATOMIC_RELAXED))
        vcuda_table_sweep(&leaving, has_left, share);
}

/* ---- the end of a context ---- */

struct ending {
    struct vcuda_share *share;
    uint64_t context;
};

static bool goes_along(struct vcuda_record *record, void *data) {
    struct ending *ending = data;
    if (record->owner != ending->context)
        return false;
    give_back(ending->share, record);
    return true;
}

void vcuda_linear_forget_context(struct vcuda_share *share, CUcontext context) {
    struct ending ending = {share, (uint64_t)(uintptr_t)context};
    for (int i = 0; context && i < VCUDA_SHARDS; i++)
        vcuda_table_sweep(&allocations.part[i].table, goes_along, &ending);
}
