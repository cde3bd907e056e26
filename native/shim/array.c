/*
 * Arrays and mipmapped arrays: opaque to the program, so what they cost follows from their description.
 *
 * Drivers lay arrays out in blocks of 64 bytes x 8 rows and keep them in the pages of device memory. Arrays
 * of a page and more are charged whole pages; smaller ones share pages, and are charged the pages that their
 * sum needs. Sparse and deferred arrays hold no memory of their own: what is mapped into them is charged by
 * cuMemCreate.
 */
#include "memory.h"

#define BLOCK_BYTES 64
#define BLOCK_ROWS 8

/* key: the array's or mipmapped array's handle; size: its blocks; owner: the context. */
static struct vcuda_table arrays;

/* Bytes of small arrays, and what is charged for them, by card. */
static struct {
    vcuda_lock lock;
    uint64_t bytes[VCUDA_MAX_CARDS], charged[VCUDA_MAX_CARDS];
} small;

static uint64_t format_bytes(CUarray_format format) {
    switch (format) {
    case CU_AD_FORMAT_UNSIGNED_INT8:
    case CU_AD_FORMAT_SIGNED_INT8:
        return 1;
    case CU_AD_FORMAT_UNSIGNED_INT16:
    case CU_AD_FORMAT_SIGNED_INT16:
    case CU_AD_FORMAT_HALF:
        return 2;
    default:
        /* 32-bit ones; normalised, block-compressed and video formats: at most 4 bytes a channel, 16 a block
         * of 4 x 4. */
        return 4;
    }
}

static uint64_t times(uint64_t a, uint64_t b) {
    return b && a > VCUDA_MAX_BYTES / b ? VCUDA_MAX_BYTES + 1 : a * b;
}

/* One level, in blocks. An extent of 0 means that the array lacks that dimension. */
static uint64_t level_bytes(const CUDA_ARRAY3D_DESCRIPTOR *d, unsigned int level) {
    bool layers = d->Flags & (CUDA_ARRAY3D_LAYERED | CUDA_ARRAY3D_CUBEMAP);
    uint64_t width = (uint64_t)d->Width >> level, height = (uint64_t)d->Height >> level;
    uint64_t depth = layers ? (uint64_t)d->Depth : (uint64_t)d->Depth >> level;
    uint64_t row = times(width ? width : 1, d->NumChannels * format_bytes(d->Format));
    uint64_t rows = d->Height == 0 ? 1 : vcuda_round_up(height ? height : 1, BLOCK_ROWS);
    return times(times(vcuda_round_up(row, BLOCK_BYTES), rows), depth ? depth : 1);
}

static uint64_t array_bytes(const CUDA_ARRAY3D_DESCRIPTOR *d, unsigned int levels) {
    uint64_t bytes = 0;
    if (d->Flags & (CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING))
        return 0;
    for (unsigned int level = 0; level < levels && level < 32; level++)
        bytes += level_bytes(d, level);
    return bytes;
}

static bool pay(struct vcuda_share *share, int card, uint64_t bytes) {
    uint64_t page = vcuda_page_bytes(share, card);
    if (bytes >= page)
        return vcuda_reserve_or_settle(share, card, VCUDA_KIND_ARRAY, vcuda_round_up(bytes, page));
    vcuda_lock_take(&small.lock);
    uint64_t wanted = vcuda_round_up(small.bytes[card] + bytes, page);
    bool paid = wanted <= small.charged[card] ||
                vcuda_reserve_or_settle(share, card, VCUDA_KIND_ARRAY, wanted - small.charged[card]);
    if (paid) {
        small.bytes[card] += bytes;
        if (wanted > small.charged[card])
            small.charged[card] = wanted;
    }
    vcuda_lock_give(&small.lock);
    return paid;
}

static void give_back(struct vcuda_share *share, int card, uint64_t bytes) {
    uint64_t page = vcuda_page_bytes(share, card);
    if (bytes >= page) {
        vcuda_release(share, card, VCUDA_KIND_ARRAY, vcuda_round_up(bytes, page));
        return;
    }
    vcuda_lock_take(&small.lock);
    small.bytes[card] -= bytes;
    uint64_t wanted = vcuda_round_up(small.bytes[card], page);
    vcuda_release(share, card, VCUDA_KIND_ARRAY, small.charged[card] - wanted);
    small.charged[card] = wanted;
    vcuda_lock_give(&small.lock);
}

void vcuda_arrays_forget_process(void) {
    small.lock = (vcuda_lock){0};
    for (int card = 0; card < VCUDA_MAX_CARDS; card++)
        small.bytes[card] = small.charged[card] = 0;
}

/* CUDA_SUCCESS: go and ask the driver. */
static CUresult begin(struct vcuda_share *share, uint64_t bytes, int *card) {
    CUresult error;
    *card = vcuda_current_card(share, &error);
    if (error != CUDA_SUCCESS)
        return error;
    if (*card < 0)
        return CUDA_ERROR_OUT_OF_MEMORY;
    return pay(share, *card, bytes) ? CUDA_SUCCESS : vcuda_refuse(share, *card, bytes);
}

/* CUDA_SUCCESS: recorded. Otherwise nothing is charged, and the caller has the driver destroy the object. */
static CUresult settle(struct vcuda_share *share, int card, uint64_t bytes, CUresult result, void *handle) {
    CUcontext context = NULL;
    if (result == CUDA_SUCCESS) {
        vcuda_real.cuCtxGetCurrent(&context);
        struct vcuda_record record = {.key = (uint64_t)(uintptr_t)handle,
                                      .size = bytes,
                                      .card = (int16_t)card,
                                      .owner = (uint64_t)(uintptr_t)context,
                                      .kind = VCUDA_KIND_ARRAY};
        if (vcuda_record_put(&arrays, &record))
            return CUDA_SUCCESS;
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    give_back(share, card, bytes);
    return result;
}

/* One handler's shape; `description` is a CUDA_ARRAY3D_DESCRIPTOR. */
#define CREATE(handle, description, levels, call, destroy)                                                   \
    do {                                                                                                     \
        uint64_t bytes = array_bytes(&(description), (levels));                                              \
        int card;                                                                                            \
        CUresult result = begin(share, bytes, &card);                                                        \
        if (result != CUDA_SUCCESS)                                                                          \
            return result;                                                                                   \
        vcuda_depth++;                                                                                       \
        CUresult made = (call);                                                                              \
        result = settle(share, card, bytes, made, made == CUDA_SUCCESS ? *(handle) : NULL);                  \
        if (made == CUDA_SUCCESS && result != CUDA_SUCCESS)                                                  \
            destroy(*(handle));                                                                              \
        vcuda_depth--;                                                                                       \
        return result;                                                                                       \
    } while (0)

VCUDA_EXPORT CUresult cuArrayCreate_v2(CUarray *pHandle, const CUDA_ARRAY_DESCRIPTOR *pAllocateArray) {
    struct vcuda_share *share = vcuda_limited_share();
    if (!share || vcuda_depth || !pHandle || !pAllocateArray)
        return vcuda_real.cuArrayCreate_v2(pHandle, pAllocateArray);
    CUDA_ARRAY3D_DESCRIPTOR d = {.Width = pAllocateArray->Width,
                                 .Height = pAllocateArray->Height,
                                 .Format = pAllocateArray->Format,
                                 .NumChannels = pAllocateArray->NumChannels};
    CREATE(pHandle, d, 1, vcuda_real.cuArrayCreate_v2(pHandle, pAllocateArray), vcuda_real.cuArrayDestroy);
}

VCUDA_EXPORT CUresult cuArrayCreate(CUarray *pHandle, const CUDA_ARRAY_DESCRIPTOR_v1 *pAllocateArray) {
    struct vcuda_share *share = vcuda_limited_share();
    if (!share || vcuda_depth || !pHandle || !pAllocateArray)
        return vcuda_real.cuArrayCreate(pHandle, pAllocateArray);
    CUDA_ARRAY3D_DESCRIPTOR d = {.Width = pAllocateArray->Width,
                                 .Height = pAllocateArray->Height,
                                 .Format = pAllocateArray->Format,
                                 .NumChannels = pAllocateArray->NumChannels};
    CREATE(pHandle, d, 1, vcuda_real.cuArrayCreate(pHandle, pAllocateArray), vcuda_real.cuArrayDestroy);
}

VCUDA_EXPORT CUresult cuArray3DCreate_v2(CUarray *pHandle, const CUDA_ARRAY3D_DESCRIPTOR *pAllocateArray) {
    struct vcuda_share *share = vcuda_limited_share();
    if (!share || vcuda_depth || !pHandle || !pAllocateArray)
        return vcuda_real.cuArray3DCreate_v2(pHandle, pAllocateArray);
    CREATE(pHandle, *pAllocateArray, 1, vcuda_real.cuArray3DCreate_v2(pHandle, pAllocateArray),
           vcuda_real.cuArrayDestroy);
}

VCUDA_EXPORT CUresult cuArray3DCreate(CUarray *pHandle, const CUDA_ARRAY3D_DESCRIPTOR_v1 *pAllocateArray) {
    struct vcuda_share *share = vcuda_limited_share();
    if (!share || vcuda_depth || !pHandle || !pAllocateArray)
        return vcuda_real.cuArray3DCreate(pHandle, pAllocateArray);
    CUDA_ARRAY3D_DESCRIPTOR d = {.Width = pAllocateArray->Width,
                                 .Height = pAllocateArray->Height,
                                 .Depth = pAllocateArray->Depth,
                                 .Format = pAllocateArray->Format,
                                 .NumChannels = pAllocateArray->NumChannels,
                                 .Flags = pAllocateArray->Flags};
    CREATE(pHandle, d, 1, vcuda_real.cuArray3DCreate(pHandle, pAllocateArray), vcuda_real.cuArrayDestroy);
}

VCUDA_EXPORT CUresult cuMipmappedArrayCreate(CUmipmappedArray *pHandle,
                                             const CUDA_ARRAY3D_DESCRIPTOR *pMipmappedArrayDesc,
                                             unsigned int numMipmapLevels) {
    struct vcuda_share *share = vcuda_limited_share();
    if (!share || vcuda_depth || !pHandle || !pMipmappedArrayDesc)
        return vcuda_real.cuMipmappedArrayCreate(pHandle, pMipmappedArrayDesc, numMipmapLevels);
    CREATE(pHandle, *pMipmappedArrayDesc, numMipmapLevels,
           vcuda_real.cuMipmappedArrayCreate(pHandle, pMipmappedArrayDesc, numMipmapLevels),
           vcuda_real.cuMipmappedArrayDestroy);
}

#define DESTROY(handle, call)                                                                                \
    do {                                                                                                     \
        struct vcuda_share *share = vcuda_limited_share();                                                   \
        struct vcuda_record record;                                                                          \
        if (!share || !vcuda_record_take(&arrays, (uint64_t)(uintptr_t)(handle), &record))                   \
            return (call);                                                                                   \
        CUresult result = (call);                                                                            \
        if (result == CUDA_SUCCESS)                                                                          \
            give_back(share, record.card, record.size);                                                      \
        else                                                                                                 \
            vcuda_record_put(&arrays, &record);                                                              \
        return result;                                                                                       \
    } while (0)

VCUDA_EXPORT CUresult cuArrayDestroy(CUarray hArray) {
    DESTROY(hArray, vcuda_real.cuArrayDestroy(hArray));
}

VCUDA_EXPORT CUresult cuMipmappedArrayDestroy(CUmipmappedArray hMipmappedArray) {
    DESTROY(hMipmappedArray, vcuda_real.cuMipmappedArrayDestroy(hMipmappedArray));
}

struct ending {
    struct vcuda_share *share;
    uint64_t context;
};

static bool goes_along(struct vcuda_record *record, void *data) {
    struct ending *ending = data;
    if (record->owner != ending->context)
        return false;
    give_back(ending->share, record->card, record->size);
    return true;
}

void vcuda_arrays_forget_context(struct vcuda_share *share, CUcontext context) {
    struct ending ending = {share, (uint64_t)(uintptr_t)context};
    if (context)
        vcuda_table_sweep(&arrays, goes_along, &ending);
}
