/*
 * Contexts, and each thread's stack of them.
 *
 * A context that was destroyed stays behind as an empty struct, so that threads that still have it as their
 * current one are answered CUDA_ERROR_CONTEXT_IS_DESTROYED.
 */
#include "context.h"

#include <stdlib.h>
#include <string.h>

#define STACK_DEPTH 128

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct CUctx_st *contexts, *ended; /* those that live; those that have lived (never a primary one) */

static _Thread_local struct CUctx_st *stack[STACK_DEPTH];
static _Thread_local unsigned int depth;

static bool lives(const struct CUctx_st *context) {
    return __atomic_load_n(&context->magic, __ATOMIC_ACQUIRE) == SIM_CONTEXT_MAGIC;
}

static CUresult of_thread(struct CUctx_st **context) {
    CUresult result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    *context = depth ? stack[depth - 1] : NULL;
    if (!*context)
        return CUDA_ERROR_INVALID_CONTEXT;
    return lives(*context) ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

CUresult sim_current(struct CUctx_st **context) {
    CUresult result = of_thread(context);
    if (result == CUDA_SUCCESS && sim_machine()->cards[(*context)->card].lost)
        return CUDA_ERROR_UNKNOWN; /* what programs see of a card that fell off the bus */
    return result;
}

bool sim_is_context(CUcontext context) {
    pthread_mutex_lock(&lock);
    const struct CUctx_st *at = contexts;
    while (at && at != context)
        at = at->next;
    pthread_mutex_unlock(&lock);
    return at != NULL;
}

void sim_synchronize_all(void) {
    struct CUctx_st *known[64];
    size_t count = 0;
    pthread_mutex_lock(&lock);
    for (struct CUctx_st *at = contexts; at && count < 64; at = at->next)
        known[count++] = at;
    pthread_mutex_unlock(&lock);
    while (count)
        sim_context_synchronize(known[--count]);
}

/* ---- beginning and end ---- */

CUresult sim_context_flags_check(unsigned int flags) {
    unsigned int schedule = flags & CU_CTX_SCHED_MASK;
    bool one = schedule == CU_CTX_SCHED_AUTO || schedule == CU_CTX_SCHED_SPIN ||
               schedule == CU_CTX_SCHED_YIELD || schedule == CU_CTX_SCHED_BLOCKING_SYNC;
    return one && !(flags & ~(unsigned int)CU_CTX_FLAGS_MASK) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* Never freed: a thread may still look at those of a context that has ended. */
static struct sim_settings *default_settings(struct sim_settings *settings) {
    if (!settings)
        settings = malloc(sizeof *settings);
    if (settings) {
        *settings = (struct sim_settings){.cache = CU_FUNC_CACHE_PREFER_NONE};
        settings->limits[CU_LIMIT_STACK_SIZE] = 1024;
        settings->limits[CU_LIMIT_PRINTF_FIFO_SIZE] = 1 << 20;
        settings->limits[CU_LIMIT_MALLOC_HEAP_SIZE] = 8 << 20;
        settings->limits[CU_LIMIT_DEV_RUNTIME_SYNC_DEPTH] = 2;
        settings->limits[CU_LIMIT_DEV_RUNTIME_PENDING_LAUNCH_COUNT] = 2048;
        settings->limits[CU_LIMIT_MAX_L2_FETCH_GRANULARITY] = 64;
    }
    return settings;
}

CUresult sim_context_start(struct CUctx_st *context, CUdevice device, unsigned int flags) {
    static uint64_t ids;
    uint32_t card;
    CUresult result = sim_card_of(device, &card);
    if (result != CUDA_SUCCESS)
        return result;
    if (sim_machine()->cards[card].lost)
        return CUDA_ERROR_UNKNOWN;
    struct sim_settings *settings = default_settings(context->settings);
    sim_machine_lock();
    bool taken = settings && sim_card_take(card, sim_machine()->cards[card].model.context_bytes);
    sim_machine_unlock();
    if (!taken) {
        if (!context->settings)
            free(settings);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    context->card = card;
    context->device = device;
    context->flags = flags;
    context->references = 1;
    context->legacy = context->per_thread = 0;
    context->streams = NULL;
    context->heap = NULL;
    context->settings = settings;
    pthread_mutex_lock(&lock);
    context->id = ++ids;
    context->next = contexts;
    contexts = context;
    __atomic_store_n(&context->magic, SIM_CONTEXT_MAGIC, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

/* Take it out of those that live; false where somebody else has. */
static bool unlist(struct CUctx_st *context) {
    pthread_mutex_lock(&lock);
    struct CUctx_st **link = &contexts;
    while (*link && *link != context)
        link = &(*link)->next;
    bool found = *link != NULL;
    if (found) {
        *link = context->next;
        if (!context->primary) {
            context->next = ended;
            ended = context;
        }
        __atomic_store_n(&context->magic, 0, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&lock);
    return found;
}

void sim_context_end(struct CUctx_st *context) {
    if (!unlist(context))
        return;
    sim_work_context_ends(context);
    sim_modules_context_ends(context);
    sim_memory_context_ends(context);
    context->references = 0;
    sim_machine_lock();
    sim_card_give(context->card, sim_machine()->cards[context->card].model.context_bytes);
    sim_machine_unlock();
}

/* ---- creating ---- */

CUresult sim_push(struct CUctx_st *context) {
    if (depth == STACK_DEPTH)
        return CUDA_ERROR_OUT_OF_MEMORY;
    stack[depth++] = context;
    return CUDA_SUCCESS;
}

static CUresult create(CUcontext *made, unsigned int flags, CUdevice device) {
    CUresult result = made ? sim_context_flags_check(flags) : CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS)
        return result;
    if (depth == STACK_DEPTH)
        return CUDA_ERROR_OUT_OF_MEMORY;
    struct CUctx_st *context = calloc(1, sizeof *context);
    if (!context)
        return CUDA_ERROR_OUT_OF_MEMORY;
    result = sim_context_start(context, device, flags);
    if (result != CUDA_SUCCESS) {
        free(context);
        return result;
    }
    *made = context;
    return sim_push(context);
}

SIM_EXPORT CUresult cuCtxCreate(CUcontext *pctx, unsigned int flags, CUdevice dev) {
    SIM_BEGIN();
    return create(pctx, flags, dev);
}

SIM_EXPORT CUresult cuCtxCreate_v2(CUcontext *pctx, unsigned int flags, CUdevice dev) {
    SIM_BEGIN();
    return create(pctx, flags, dev);
}

SIM_EXPORT CUresult cuCtxCreate_v3(CUcontext *pctx, CUexecAffinityParam *paramsArray, int numParams,
                                   unsigned int flags, CUdevice dev) {
    SIM_BEGIN();
    if (numParams < 0 || (numParams && !paramsArray))
        return CUDA_ERROR_INVALID_VALUE;
    return numParams ? CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY : create(pctx, flags, dev);
}

SIM_EXPORT CUresult cuCtxCreate_v4(CUcontext *pctx, CUctxCreateParams *ctxCreateParams, unsigned int flags,
                                   CUdevice dev) {
    SIM_BEGIN();
    if (ctxCreateParams && ctxCreateParams->numExecAffinityParams)
        return CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY;
    if (ctxCreateParams && ctxCreateParams->cigParams)
        return CUDA_ERROR_NOT_SUPPORTED;
    return create(pctx, flags, dev);
}

static CUresult destroy(CUcontext context) {
    if (!sim_is_context(context) || context->primary)
        return CUDA_ERROR_INVALID_CONTEXT;
    if (depth && stack[depth - 1] == context)
        depth--;
    sim_context_end(context);
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxDestroy_v2(CUcontext ctx) {
    SIM_BEGIN();
    return destroy(ctx);
}

SIM_EXPORT CUresult cuCtxDestroy(CUcontext ctx) {
    SIM_BEGIN();
    return destroy(ctx);
}

SIM_EXPORT CUresult cuCtxAttach(CUcontext *pctx, unsigned int flags) {
    SIM_BEGIN_IN(context);
    if (!pctx || flags)
        return CUDA_ERROR_INVALID_VALUE;
    __atomic_add_fetch(&context->references, 1, __ATOMIC_RELAXED);
    *pctx = context;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxDetach(CUcontext ctx) {
    SIM_BEGIN_IN(context);
    if (ctx != context || context->primary)
        return CUDA_ERROR_INVALID_CONTEXT;
    return __atomic_sub_fetch(&context->references, 1, __ATOMIC_RELAXED) ? CUDA_SUCCESS : destroy(ctx);
}

/* ---- the thread's stack ---- */

static CUresult push(CUcontext context) {
    return sim_is_context(context) ? sim_push(context) : CUDA_ERROR_INVALID_CONTEXT;
}

static CUresult pop(CUcontext *popped) {
    if (!depth)
        return CUDA_ERROR_INVALID_CONTEXT;
    depth--;
    if (popped)
        *popped = stack[depth];
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxPushCurrent_v2(CUcontext ctx) {
    SIM_BEGIN();
    return push(ctx);
}

SIM_EXPORT CUresult cuCtxPushCurrent(CUcontext ctx) {
    SIM_BEGIN();
    return push(ctx);
}

SIM_EXPORT CUresult cuCtxPopCurrent_v2(CUcontext *pctx) {
    SIM_BEGIN();
    return pop(pctx);
}

SIM_EXPORT CUresult cuCtxPopCurrent(CUcontext *pctx) {
    SIM_BEGIN();
    return pop(pctx);
}

SIM_EXPORT CUresult cuCtxSetCurrent(CUcontext ctx) {
    SIM_BEGIN();
    if (!ctx) {
        depth -= depth > 0;
        return CUDA_SUCCESS;
    }
    if (!sim_is_context(ctx))
        return CUDA_ERROR_INVALID_CONTEXT;
    if (!depth)
        return sim_push(ctx);
    stack[depth - 1] = ctx;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxGetCurrent(CUcontext *pctx) {
    SIM_BEGIN();
    if (!pctx)
        return CUDA_ERROR_INVALID_VALUE;
    *pctx = depth ? stack[depth - 1] : NULL;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuCtxGetDevice(CUdevice *device) {
    CUresult result = sim_fault(__func__);
    struct CUctx_st *context;
    if (result == CUDA_SUCCESS)
        result = of_thread(&context); /* a lost card still has its number */
    if (result != CUDA_SUCCESS)
        return result;
    if (!device)
        return CUDA_ERROR_INVALID_VALUE;
    *device = context->device;
    return CUDA_SUCCESS;
}

CUresult sim_context_named(CUcontext context, struct CUctx_st **found) {
    if (!context)
        return sim_current(found);
    CUresult result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    *found = context;
    return sim_is_context(context) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}
