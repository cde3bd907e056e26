/*
 * Contexts: what the driver takes for one is not to be seen from inside while neighbours allocate, so the
 * grant carries it, calibrated per card and driver by the node side. A context takes along what was made in
 * it.
 */
#include "memory.h"
#include "meter.h"

/* key: context (created) or device + 1 (primary); bytes: charged; owner: the context; count: retained. */
static struct vcuda_table contexts, primaries;

static uint64_t cost_of_context(struct vcuda_share *share, int card) {
    return vcuda_share_grant(share, card)->context_bytes;
}

static void forget_inside(struct vcuda_share *share, CUcontext context) {
    vcuda_linear_forget_context(share, context);
    vcuda_arrays_forget_context(share, context);
    vcuda_modules_forget_context(share, context);
    vcuda_limits_forget_context(share, context);
}

/* CUDA_SUCCESS: the card is granted and a context has been paid for. */
static CUresult pay(struct vcuda_share *share, CUdevice device, int *card) {
    *card = vcuda_card_of(share, device);
    if (*card < 0) {
        int count = 0;
        /* What isn't a device is the driver's to say; a device that isn't granted has no memory for us. */
        vcuda_real.cuDeviceGetCount(&count);
        return device >= 0 && device < count ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_INVALID_DEVICE;
    }
    uint64_t bytes = cost_of_context(share, *card);
    return vcuda_reserve_or_settle(share, *card, VCUDA_KIND_CONTEXT, bytes)
               ? CUDA_SUCCESS
               : vcuda_refuse(share, *card, bytes);
}

static CUresult created(struct vcuda_share *share, int card, CUresult result, CUcontext context) {
    uint64_t bytes = cost_of_context(share, card);
    struct vcuda_record record = {.key = (uint64_t)(uintptr_t)context,
                                  .bytes = bytes,
                                  .card = (int16_t)card,
                                  .owner = (uint64_t)(uintptr_t)context,
                                  .count = 1};
    if (result == CUDA_SUCCESS && vcuda_record_put(&contexts, &record))
        return CUDA_SUCCESS;
    if (result == CUDA_SUCCESS) {
        vcuda_real.cuCtxDestroy_v2(context);
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    vcuda_release(share, card, VCUDA_KIND_CONTEXT, bytes);
    return result;
}

#define CREATE(call)                                                                                         \
    do {                                                                                                     \
        struct vcuda_share *share = vcuda_limited_share();                                                   \
        int card;                                                                                            \
        vcuda_meter_elsewhere(); /* what is created becomes current */                                       \
        if (!share || vcuda_depth || !pctx)                                                                  \
            return (call);                                                                                   \
        CUresult result = pay(share, dev, &card);                                                            \
        if (result != CUDA_SUCCESS)                                                                          \
            return result;                                                                                   \
        vcuda_depth++;                                                                                       \
        result = (call);                                                                                     \
        vcuda_depth--;                                                                                       \
        return created(share, card, result, result == CUDA_SUCCESS ? *pctx : NULL);                          \
    } while (0)

VCUDA_EXPORT CUresult cuCtxCreate(CUcontext *pctx, unsigned int flags, CUdevice dev) {
    CREATE(vcuda_real.cuCtxCreate(pctx, flags, dev));
}
VCUDA_EXPORT CUresult cuCtxCreate_v2(CUcontext *pctx, unsigned int flags, CUdevice dev) {
    CREATE(vcuda_real.cuCtxCreate_v2(pctx, flags, dev));
}
VCUDA_EXPORT CUresult cuCtxCreate_v3(CUcontext *pctx, CUexecAffinityParam *paramsArray, int numParams,
                                     unsigned int flags, CUdevice dev) {
    CREATE(vcuda_real.cuCtxCreate_v3(pctx, paramsArray, numParams, flags, dev));
}
VCUDA_EXPORT CUresult cuCtxCreate_v4(CUcontext *pctx, CUctxCreateParams *ctxCreateParams, unsigned int flags,
                                     CUdevice dev) {
    CREATE(vcuda_real.cuCtxCreate_v4(pctx, ctxCreateParams, flags, dev));
}

/* Contexts for work beside OpenGL and VDPAU. */
VCUDA_EXPORT CUresult cuGLCtxCreate(CUcontext *pctx, unsigned int flags, CUdevice dev) {
    CREATE(vcuda_real.cuGLCtxCreate(pctx, flags, dev));
}
VCUDA_EXPORT CUresult cuGLCtxCreate_v2(CUcontext *pctx, unsigned int flags, CUdevice dev) {
    CREATE(vcuda_real.cuGLCtxCreate_v2(pctx, flags, dev));
}
VCUDA_EXPORT CUresult cuVDPAUCtxCreate(CUcontext *pctx, unsigned int flags, CUdevice dev, uint32_t vdpDevice,
                                       void *vdpGetProcAddress) {
    CREATE(vcuda_real.cuVDPAUCtxCreate(pctx, flags, dev, vdpDevice, vdpGetProcAddress));
}
VCUDA_EXPORT CUresult cuVDPAUCtxCreate_v2(CUcontext *pctx, unsigned int flags, CUdevice dev,
                                          uint32_t vdpDevice, void *vdpGetProcAddress) {
    CREATE(vcuda_real.cuVDPAUCtxCreate_v2(pctx, flags, dev, vdpDevice, vdpGetProcAddress));
}

/* Around the call that ends a context: its events can be read until then. */
static void metering_ends(CUcontext context) {
    struct vcuda_share *share = vcuda_share();
    if (share && !vcuda_depth)
        vcuda_meter_context_ends(share, context);
}

static CUresult metering_ended(CUcontext context, CUresult result) {
    struct vcuda_share *share = vcuda_share();
    if (share && !vcuda_depth && result == CUDA_SUCCESS)
        vcuda_meter_forget_context(share, context);
    return result;
}

static CUresult destroyed(CUcontext context, CUresult result, struct vcuda_share *share,
                          const struct vcuda_record *record) {
    if (result != CUDA_SUCCESS) {
        vcuda_record_put(&contexts, record);
        return result;
    }
    forget_inside(share, context);
    vcuda_release(share, record->card, VCUDA_KIND_CONTEXT, record->bytes);
    return result;
}

#define DESTROY(call)                                                                                        \
    do {                                                                                                     \
        struct vcuda_share *share = vcuda_limited_share();                                                   \
        struct vcuda_record record;                                                                          \
        metering_ends(ctx);                                                                                  \
        if (!share || !vcuda_record_take(&contexts, (uint64_t)(uintptr_t)ctx, &record))                      \
            return metering_ended(ctx, (call));                                                              \
        vcuda_depth++;                                                                                       \
        CUresult result = (call);                                                                            \
        vcuda_depth--;                                                                                       \
        metering_ended(ctx, result);                                                                         \
        return destroyed(ctx, result, share, &record);                                                       \
    } while (0)

VCUDA_EXPORT CUresult cuCtxDestroy_v2(CUcontext ctx) {
    DESTROY(vcuda_real.cuCtxDestroy_v2(ctx));
}
VCUDA_EXPORT CUresult cuCtxDestroy(CUcontext ctx) {
    DESTROY(vcuda_real.cuCtxDestroy(ctx));
}

/* cuCtxAttach and cuCtxDetach count uses of a created context; the last detach destroys it. */
VCUDA_EXPORT CUresult cuCtxAttach(CUcontext *pctx, unsigned int flags) {
    CUresult result = vcuda_real.cuCtxAttach(pctx, flags);
    if (result == CUDA_SUCCESS) {
        vcuda_lock_take(&contexts.lock);
        struct vcuda_record *record = vcuda_table_find(&contexts, (uint64_t)(uintptr_t)*pctx);
        if (record)
            record->count++;
        vcuda_lock_give(&contexts.lock);
    }
    return result;
}

VCUDA_EXPORT CUresult cuCtxDetach(CUcontext ctx) {
    struct vcuda_share *share = vcuda_limited_share();
    struct vcuda_record record;
    bool found = share && vcuda_record_take(&contexts, (uint64_t)(uintptr_t)ctx, &record);
    metering_ends(ctx);
    CUresult result = vcuda_real.cuCtxDetach(ctx);
    if (!found)
        return result;
    if (result != CUDA_SUCCESS || --record.count > 0) {
        vcuda_record_put(&contexts, &record);
        return result;
    }
    metering_ended(ctx, result);
    return destroyed(ctx, result, share, &record);
}

/* ---- primary contexts: one a device, made by the first retain and ended by the last release or a reset ----
 */

/* Around the primary contexts' calls: whether one is active is asked of the driver before and after. */
static vcuda_lock primary_lock;

void vcuda_contexts_forget_process(void) {
    primary_lock = (vcuda_lock){0};
}

static bool is_active(CUdevice device) {
    unsigned int flags;
    int active = 0;
    return vcuda_real.cuDevicePrimaryCtxGetState(device, &flags, &active) == CUDA_SUCCESS && active;
}

/* Caller holds primary_lock. */
static void pay_back_if_ended(struct vcuda_share *share, CUdevice device) {
    struct vcuda_record record;
    if (is_active(device) || !vcuda_record_take(&primaries, (uint64_t)device + 1, &record))
        return;
    forget_inside(share, (CUcontext)(uintptr_t)record.owner);
    vcuda_release(share, record.card, VCUDA_KIND_CONTEXT, record.bytes);
}

/* Caller holds primary_lock. CUDA_SUCCESS: the device's primary context is paid for; `fresh` if it was just
 * now. */
static CUresult pay_primary(struct vcuda_share *share, CUdevice device, int *card, bool *fresh) {
    struct vcuda_record record;
    *card = -1;
    pay_back_if_ended(share,
                      device); /* ended behind our back, by its device being reset through another way */
    *fresh = !vcuda_record_read(&primaries, (uint64_t)device + 1, &record);
    return *fresh ? pay(share, device, card) : CUDA_SUCCESS;
}

/* Caller holds primary_lock, and has paid just now. */
static void settle_primary(struct vcuda_share *share, CUdevice device, int card, CUresult result,
                           CUcontext context) {
    uint64_t bytes = cost_of_context(share, card);
    struct vcuda_record record = {.key = (uint64_t)device + 1,
                                  .bytes = bytes,
                                  .card = (int16_t)card,
                                  .owner = (uint64_t)(uintptr_t)context};
    if (result != CUDA_SUCCESS || !vcuda_record_put(&primaries, &record))
        vcuda_release(share, card, VCUDA_KIND_CONTEXT, bytes);
}

VCUDA_EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *pctx, CUdevice dev) {
    struct vcuda_share *share = vcuda_limited_share();
    if (!share || vcuda_depth || !pctx)
        return vcuda_real.cuDevicePrimaryCtxRetain(pctx, dev);
    int card;
    bool fresh;
    vcuda_lock_take(&primary_lock);
    vcuda_depth++;
    CUresult result = pay_primary(share, dev, &card, &fresh);
    if (result == CUDA_ERROR_INVALID_DEVICE && card < 0) {
        result = vcuda_real.cuDevicePrimaryCtxRetain(pctx, dev);
    } else if (result == CUDA_SUCCESS) {
        result = vcuda_real.cuDevicePrimaryCtxRetain(pctx, dev);
        if (fresh)
            settle_primary(share, dev, card, result, result == CUDA_SUCCESS ? *pctx : NULL);
    }
    vcuda_depth--;
    vcuda_lock_give(&primary_lock);
    return result;
}

/* A green context is a part of the primary context, which it retains for as long as it lives. */
VCUDA_EXPORT CUresult cuGreenCtxCreate(CUgreenCtx *phCtx, CUdevResourceDesc desc, CUdevice dev,
                                       unsigned int flags) {
    struct vcuda_share *share = vcuda_limited_share();
    if (!share || vcuda_depth)
        return vcuda_real.cuGreenCtxCreate(phCtx, desc, dev, flags);
    int card;
    bool fresh;
    CUcontext primary = NULL;
    vcuda_lock_take(&primary_lock);
    vcuda_depth++;
    CUresult result = pay_primary(share, dev, &card, &fresh);
    if (result == CUDA_ERROR_INVALID_DEVICE && card < 0) {
        result = vcuda_real.cuGreenCtxCreate(phCtx, desc, dev, flags);
    } else if (result == CUDA_SUCCESS) {
        result = vcuda_real.cuGreenCtxCreate(phCtx, desc, dev, flags);
        /* Its handle is known only to who retains it. */
        if (fresh && result == CUDA_SUCCESS &&
            vcuda_real.cuDevicePrimaryCtxRetain(&primary, dev) == CUDA_SUCCESS)
            vcuda_real.cuDevicePrimaryCtxRelease_v2(dev);
        if (fresh)
            settle_primary(share, dev, card, result, primary);
    }
    vcuda_depth--;
    vcuda_lock_give(&primary_lock);
    return result;
}

VCUDA_EXPORT CUresult cuGreenCtxDestroy(CUgreenCtx hCtx) {
    struct vcuda_share *share = vcuda_limited_share();
    if (!share || vcuda_depth)
        return vcuda_real.cuGreenCtxDestroy(hCtx);
    vcuda_lock_take(&primary_lock);
    vcuda_depth++;
    CUresult result = vcuda_real.cuGreenCtxDestroy(hCtx);
    for (CUdevice device = 0; result == CUDA_SUCCESS && device < VCUDA_MAX_DEVICES; device++)
        if (vcuda_card_of(share, device) >= 0)
            pay_back_if_ended(share, device);
    vcuda_depth--;
    vcuda_lock_give(&primary_lock);
    return result;
}

static void primary_metering_ends(CUdevice device) {
    struct vcuda_share *share = vcuda_share();
    if (share)
        vcuda_meter_primary_ends(share, device);
}

static CUresult primary_metering_ended(CUdevice device, CUresult result) {
    struct vcuda_share *share = vcuda_share();
    if (share && result == CUDA_SUCCESS && !is_active(device))
        vcuda_meter_forget_primary(share, device);
    return result;
}

#define END_PRIMARY(call)                                                                                    \
    do {                                                                                                     \
        struct vcuda_share *share = vcuda_limited_share();                                                   \
        if (vcuda_depth)                                                                                     \
            return (call);                                                                                   \
        primary_metering_ends(dev);                                                                          \
        if (!share)                                                                                          \
            return primary_metering_ended(dev, (call));                                                      \
        vcuda_lock_take(&primary_lock);                                                                      \
        vcuda_depth++;                                                                                       \
        CUresult result = (call);                                                                            \
        if (result == CUDA_SUCCESS)                                                                          \
            pay_back_if_ended(share, dev);                                                                   \
        vcuda_depth--;                                                                                       \
        vcuda_lock_give(&primary_lock);                                                                      \
        return primary_metering_ended(dev, result);                                                          \
    } while (0)

VCUDA_EXPORT CUresult cuDevicePrimaryCtxRelease(CUdevice dev) {
    END_PRIMARY(vcuda_real.cuDevicePrimaryCtxRelease(dev));
}
VCUDA_EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice dev) {
    END_PRIMARY(vcuda_real.cuDevicePrimaryCtxRelease_v2(dev));
}
VCUDA_EXPORT CUresult cuDevicePrimaryCtxReset(CUdevice dev) {
    END_PRIMARY(vcuda_real.cuDevicePrimaryCtxReset(dev));
}
VCUDA_EXPORT CUresult cuDevicePrimaryCtxReset_v2(CUdevice dev) {
    END_PRIMARY(vcuda_real.cuDevicePrimaryCtxReset_v2(dev));
}
