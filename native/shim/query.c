/* What a program is told of its card: the share, as if it were the card. */
#include "memory.h"

static uint64_t at_most(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

static uint64_t limit_of(struct vcuda_share *share, int card) {
    return __atomic_load_n(&vcuda_share_grant(share, card)->memory_bytes, __ATOMIC_RELAXED);
}

/* `free` and `total` hold the driver's answer. A share larger than its card is never shown as more than the
 * card. */
static void show_share(struct vcuda_share *share, int card, uint64_t *free, uint64_t *total) {
    uint64_t limit = at_most(limit_of(share, card), *total),
             used = vcuda_ledger_used(&share->ledger, (uint32_t)card);
    *total = limit;
    *free = at_most(*free, used < limit ? limit - used : 0);
}

VCUDA_EXPORT CUresult cuMemGetInfo_v2(size_t *free, size_t *total) {
    /* The driver is asked first: its errors are its own, and so is memory that a neighbour's crash has not
     * given back yet. */
    CUresult result = vcuda_real.cuMemGetInfo_v2(free, total), error;
    struct vcuda_share *share = vcuda_limited_share();
    if (!share || result != CUDA_SUCCESS)
        return result;
    int card = vcuda_current_card(share, &error);
    uint64_t shown_free = *free, shown_total = *total;
    if (card >= 0)
        show_share(share, card, &shown_free, &shown_total);
    else
        shown_free = shown_total = 0;
    *free = shown_free;
    *total = shown_total;
    return result;
}

VCUDA_EXPORT CUresult cuMemGetInfo(unsigned int *free, unsigned int *total) {
    CUresult result = vcuda_real.cuMemGetInfo(free, total), error;
    struct vcuda_share *share = vcuda_limited_share();
    if (!share || result != CUDA_SUCCESS)
        return result;
    int card = vcuda_current_card(share, &error);
    uint64_t shown_free = *free, shown_total = *total;
    if (card >= 0)
        show_share(share, card, &shown_free, &shown_total);
    else
        shown_free = shown_total = 0;
    *free = (unsigned int)shown_free;
    *total = (unsigned int)shown_total;
    return result;
}

VCUDA_EXPORT CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice dev) {
    CUresult result = vcuda_real.cuDeviceTotalMem_v2(bytes, dev);
    struct vcuda_share *share = vcuda_limited_share();
    if (share && result == CUDA_SUCCESS) {
        int card = vcuda_card_of(share, dev);
        *bytes = card >= 0 ? at_most(*bytes, limit_of(share, card)) : 0;
    }
    return result;
}

VCUDA_EXPORT CUresult cuDeviceTotalMem(unsigned int *bytes, CUdevice dev) {
    CUresult result = vcuda_real.cuDeviceTotalMem(bytes, dev);
    struct vcuda_share *share = vcuda_limited_share();
    if (share && result == CUDA_SUCCESS) {
        int card = vcuda_card_of(share, dev);
        *bytes = card >= 0 ? (unsigned int)at_most(*bytes, limit_of(share, card)) : 0;
    }
    return result;
}
