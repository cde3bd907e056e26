/* What a program sets in a context and asks of it: limits, preferences, peers; and waiting for it. */
#include "context.h"

SIM_EXPORT CUresult cuCtxGetDevice_v2(CUdevice *device, CUcontext ctx) {
    SIM_BEGIN();
    struct CUctx_st *context;
    CUresult result = device ? sim_context_named(ctx, &context) : CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        *device = context->device;
    return result;
}

static CUresult synchronize(CUcontext named) {
    struct CUctx_st *context;
    CUresult result = sim_context_named(named, &context);
    if (result == CUDA_SUCCESS)
        result = sim_capture_refuse_context(context);
    if (result == CUDA_SUCCESS)
        result = sim_context_synchronize(context);
    sim_pools_synchronised();
    return result;
}

SIM_EXPORT CUresult cuCtxSynchronize(void) {
    SIM_BEGIN();
    return synchronize(NULL);
}

SIM_EXPORT CUresult cuCtxSynchronize_v2(CUcontext ctx) {
    SIM_BEGIN();
    return synchronize(ctx);
}

SIM_EXPORT CUresult cuCtxGetId(CUcontext ctx, unsigned long long *ctxId) {
    SIM_BEGIN();
    struct CUctx_st *context;
    CUresult result = ctxId ? sim_context_named(ctx, &context) : CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        *ctxId = context->id;
    return result;
}

SIM_EXPORT CUresult cuCtxGetApiVersion(CUcontext ctx, unsigned int *version) {
    SIM_BEGIN();
    struct CUctx_st *context;
    CUresult result = version ? sim_context_named(ctx, &context) : CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        *version = 3020; /* what every context since cuCtxCreate_v2 answers */
    return result;
}

SIM_EXPORT CUresult cuCtxGetFlags(unsigned int *flags) {
    SIM_BEGIN_IN(context);
    if (!flags)
        return CUDA_ERROR_INVALID_VALUE;
    *flags = context->flags;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxSetFlags(unsigned int flags) {
    SIM_BEGIN_IN(context);
    CUresult result = sim_context_flags_check(flags);
    if (result == CUDA_SUCCESS)
        context->flags = flags;
    return result;
}

SIM_EXPORT CUresult cuCtxGetLimit(size_t *pvalue, CUlimit limit) {
    SIM_BEGIN_IN(context);
    if (!pvalue)
        return CUDA_ERROR_INVALID_VALUE;
    if ((unsigned int)limit >= CU_LIMIT_MAX)
        return CUDA_ERROR_UNSUPPORTED_LIMIT;
    *pvalue = context->settings->limits[limit];
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxSetLimit(CUlimit limit, size_t value) {
    SIM_BEGIN_IN(context);
    if ((unsigned int)limit >= CU_LIMIT_MAX)
        return CUDA_ERROR_UNSUPPORTED_LIMIT;
    if (limit == CU_LIMIT_STACK_SIZE && value > 512 << 10)
        return CUDA_ERROR_INVALID_VALUE;
    context->settings->limits[limit] = value;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxGetCacheConfig(CUfunc_cache *pconfig) {
    SIM_BEGIN_IN(context);
    if (!pconfig)
        return CUDA_ERROR_INVALID_VALUE;
    *pconfig = context->settings->cache;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxSetCacheConfig(CUfunc_cache config) {
    SIM_BEGIN_IN(context);
    if ((unsigned int)config > CU_FUNC_CACHE_PREFER_EQUAL)
        return CUDA_ERROR_INVALID_VALUE;
    context->settings->cache = config;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxGetSharedMemConfig(CUsharedconfig *pConfig) {
    SIM_BEGIN_IN(context);
    if (!pConfig)
        return CUDA_ERROR_INVALID_VALUE;
    *pConfig = CU_SHARED_MEM_CONFIG_FOUR_BYTE_BANK_SIZE; /* fixed since Maxwell */
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxSetSharedMemConfig(CUsharedconfig config) {
    SIM_BEGIN_IN(context);
    (void)context;
    return (unsigned int)config > CU_SHARED_MEM_CONFIG_EIGHT_BYTE_BANK_SIZE ? CUDA_ERROR_INVALID_VALUE
                                                                            : CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxResetPersistingL2Cache(void) {
    SIM_BEGIN_IN(context);
    (void)context;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxGetExecAffinity(CUexecAffinityParam *pExecAffinity, CUexecAffinityType type) {
    SIM_BEGIN_IN(context);
    (void)context;
    (void)type;
    return pExecAffinity ? CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY : CUDA_ERROR_INVALID_VALUE;
}

/* ---- peers ---- */

SIM_EXPORT CUresult cuCtxEnablePeerAccess(CUcontext peerContext, unsigned int Flags) {
    SIM_BEGIN_IN(context);
    if (!sim_is_context(peerContext))
        return CUDA_ERROR_INVALID_CONTEXT;
    if (Flags)
        return CUDA_ERROR_INVALID_VALUE;
    if (peerContext->card == context->card)
        return peerContext == context ? CUDA_ERROR_INVALID_CONTEXT : CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
    uint32_t bit = 1U << peerContext->device;
    uint32_t before = __atomic_fetch_or(&context->settings->peers, bit, __ATOMIC_RELAXED);
    return before & bit ? CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED : CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxDisablePeerAccess(CUcontext peerContext) {
    SIM_BEGIN_IN(context);
    if (!sim_is_context(peerContext))
        return CUDA_ERROR_INVALID_CONTEXT;
    uint32_t bit = 1U << peerContext->device;
    uint32_t before = __atomic_fetch_and(&context->settings->peers, ~bit, __ATOMIC_RELAXED);
    return before & bit ? CUDA_SUCCESS : CUDA_ERROR_PEER_ACCESS_NOT_ENABLED;
}
