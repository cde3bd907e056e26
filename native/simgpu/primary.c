/* Primary contexts: one a device and process, made by the first retain, ended by the last release or a reset.
 */
#include "context.h"

/* Around beginnings and ends, so that a retain never meets one that is half ended. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct CUctx_st primaries[SIM_CARDS];
static unsigned int wanted_flags[SIM_CARDS];

SIM_EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *pctx, CUdevice dev) {
    SIM_BEGIN();
    uint32_t card;
    CUresult result = pctx ? sim_card_of(dev, &card) : CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS)
        return result;
    struct CUctx_st *context = &primaries[dev];
    pthread_mutex_lock(&lock);
    context->primary = true;
    if (context->references)
        context->references++;
    else
        result = sim_context_start(context, dev, wanted_flags[dev]);
    pthread_mutex_unlock(&lock);
    if (result == CUDA_SUCCESS)
        *pctx = context;
    return result;
}

static CUresult release(CUdevice device) {
    uint32_t card;
    CUresult result = sim_card_of(device, &card);
    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&lock);
    if (!primaries[device].references)
        result = CUDA_ERROR_INVALID_CONTEXT;
    else if (primaries[device].references > 1)
        primaries[device].references--;
    else
        sim_context_end(&primaries[device]);
    pthread_mutex_unlock(&lock);
    return result;
}

SIM_EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice dev) {
    SIM_BEGIN();
    return release(dev);
}

SIM_EXPORT CUresult cuDevicePrimaryCtxRelease(CUdevice dev) {
    SIM_BEGIN();
    return release(dev);
}

static CUresult reset(CUdevice device) {
    uint32_t card;
    CUresult result = sim_card_of(device, &card);
    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&lock);
    if (primaries[device].references)
        sim_context_end(&primaries[device]);
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDevicePrimaryCtxReset_v2(CUdevice dev) {
    SIM_BEGIN();
    return reset(dev);
}

SIM_EXPORT CUresult cuDevicePrimaryCtxReset(CUdevice dev) {
    SIM_BEGIN();
    return reset(dev);
}

static CUresult set_flags(CUdevice device, unsigned int flags) {
    uint32_t card;
    CUresult result = sim_card_of(device, &card);
    if (result == CUDA_SUCCESS)
        result = sim_context_flags_check(flags);
    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&lock);
    wanted_flags[device] = flags;
    if (primaries[device].references)
        primaries[device].flags = flags;
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice dev, unsigned int flags) {
    SIM_BEGIN();
    return set_flags(dev, flags);
}

SIM_EXPORT CUresult cuDevicePrimaryCtxSetFlags(CUdevice dev, unsigned int flags) {
    SIM_BEGIN();
    return set_flags(dev, flags);
}

SIM_EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice dev, unsigned int *flags, int *active) {
    SIM_BEGIN();
    uint32_t card;
    CUresult result = flags && active ? sim_card_of(dev, &card) : CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&lock);
    *flags = wanted_flags[dev];
    *active = primaries[dev].references > 0;
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}
