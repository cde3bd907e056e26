/*
 * What nodes do, made of the parameters that calls pass. A content is never changed: setting a node's
 * parameters gives it another one.
 */
#include "graph.h"

#include <stdlib.h>
#include <string.h>

static struct sim_content *fresh(CUgraphNodeType type) {
    struct sim_content *content = calloc(1, sizeof *content);
    if (content) {
        content->references = 1;
        content->params.type = type;
        content->described = true;
        content->job.kind = SIM_OP_MARK;
    }
    return content;
}

struct sim_content *sim_content_share(struct sim_content *content) {
    if (content)
        content->references++;
    return content;
}

void sim_content_drop(struct sim_content *content) {
    if (!content || --content->references)
        return;
    if (content->block)
        sim_graph_block_drop(content->block);
    free(content->kept);
    free(content);
}

/* ---- kernels; the lock is held ---- */

CUresult sim_content_of_launch(const struct sim_launch *launch, const struct sim_job *job, CUfunction handle,
                               void **parameters, void **extra, struct sim_content **out) {
    struct sim_content *content = fresh(CU_GRAPH_NODE_TYPE_KERNEL);
    if (!content)
        return CUDA_ERROR_OUT_OF_MEMORY;
    void **kept;
    CUresult result = sim_launch_keep(launch->function, parameters, extra, &kept);
    if (result != CUDA_SUCCESS) {
        sim_content_drop(content);
        return result;
    }
    content->kept = kept;
    content->launch = *launch;
    content->job = *job;
    CUDA_KERNEL_NODE_PARAMS_v3 *kernel = &content->params.kernel;
    bool is_kernel = sim_handle_is(handle, SIM_HANDLE_KERNEL);
    *kernel = (CUDA_KERNEL_NODE_PARAMS_v3){.func = is_kernel ? NULL : handle,
                                           .gridDimX = launch->grid[0],
                                           .gridDimY = launch->grid[1],
                                           .gridDimZ = launch->grid[2],
                                           .blockDimX = launch->block[0],
                                           .blockDimY = launch->block[1],
                                           .blockDimZ = launch->block[2],
                                           .sharedMemBytes = launch->shared_bytes,
                                           .kernelParams = kept,
                                           .kern = is_kernel ? (CUkernel)handle : NULL,
                                           .ctx = launch->function->module->context};
    *out = content;
    return CUDA_SUCCESS;
}

CUresult sim_content_of_job(const struct sim_job *job, struct sim_content **out) {
    struct sim_content *content = fresh(job->node);
    if (!content)
        return CUDA_ERROR_OUT_OF_MEMORY;
    content->job = *job;
    content->job.wait = false;
    content->described = false;
    *out = content;
    return CUDA_SUCCESS;
}

/* The context that parameters name, else the current one. */
static CUresult context_of(CUcontext named, struct CUctx_st **context) {
    if (!named)
        return sim_current(context);
    *context = named;
    return sim_is_context(named) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

static CUresult make_kernel(const CUDA_KERNEL_NODE_PARAMS_v3 *kernel, struct sim_content **content) {
    struct CUctx_st *context = NULL;
    struct sim_job job;
    struct sim_launch launch = {.grid = {kernel->gridDimX, kernel->gridDimY, kernel->gridDimZ},
                                .block = {kernel->blockDimX, kernel->blockDimY, kernel->blockDimZ},
                                .shared_bytes = kernel->sharedMemBytes};
    CUfunction handle = kernel->func ? kernel->func : (CUfunction)kernel->kern;
    CUresult found = context_of(kernel->ctx, &context);
    sim_work_lock();
    CUresult result = CUDA_SUCCESS;
    if (sim_handle_is(handle, SIM_HANDLE_FUNCTION))
        launch.function = handle;
    else if (found != CUDA_SUCCESS)
        result = found;
    else
        result = sim_function_of(context, handle, &launch.function);
    if (result == CUDA_SUCCESS && kernel->ctx && kernel->func &&
        launch.function->module->context != kernel->ctx)
        result = CUDA_ERROR_INVALID_CONTEXT;
    if (result == CUDA_SUCCESS)
        result = sim_launch_check(&launch, kernel->kernelParams, kernel->extra, &job);
    if (result == CUDA_SUCCESS)
        result = sim_content_of_launch(&launch, &job, handle, kernel->kernelParams, kernel->extra, content);
    sim_work_unlock();
    return result == CUDA_ERROR_INVALID_HANDLE ? CUDA_ERROR_INVALID_VALUE : result;
}

/* ---- the others ---- */

static CUresult make_copy(CUDA_MEMCPY_NODE_PARAMS *params, struct sim_content *content) {
    struct CUctx_st *context;
    CUresult result = context_of(params->copyCtx, &context);
    if (result != CUDA_SUCCESS)
        return result;
    content->params.memcpy = *params;
    content->params.memcpy.copyCtx = context;
    return sim_copy_job(context, &params->copyParams, &content->job);
}

static CUresult make_set(const CUDA_MEMSET_NODE_PARAMS_v2 *params, struct sim_content *content) {
    struct CUctx_st *context;
    CUDA_MEMSET_NODE_PARAMS set = {params->dst,         params->pitch, params->value,
                                   params->elementSize, params->width, params->height};
    CUresult result = context_of(params->ctx, &context);
    if (result != CUDA_SUCCESS)
        return result;
    content->params.memset = *params;
    content->params.memset.ctx = context;
    return sim_memset_job(context, &set, &content->job);
}

static CUresult make_event(CUevent event, struct sim_content *content) {
    sim_work_lock();
    bool there = sim_handle_is(event, SIM_HANDLE_EVENT);
    sim_work_unlock();
    content->params.eventRecord.event = event; /* waits have it at the same place */
    return there ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult make_alloc(CUDA_MEM_ALLOC_NODE_PARAMS_v2 *params, struct sim_content *content) {
    uint32_t card;
    if (params->poolProps.location.type != CU_MEM_LOCATION_TYPE_DEVICE ||
        (params->poolProps.allocType != CU_MEM_ALLOCATION_TYPE_PINNED))
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = sim_card_of(params->poolProps.location.id, &card);
    if (result == CUDA_SUCCESS)
        result = sim_graph_block_make(card, params->bytesize, &content->block, &params->dptr);
    if (result != CUDA_SUCCESS)
        return result;
    content->params.alloc = *params;
    size_t bytes = params->accessDescs ? params->accessDescCount * sizeof(CUmemAccessDesc) : 0;
    content->params.alloc.accessDescs = NULL;
    if (!bytes)
        return CUDA_SUCCESS;
    content->kept = malloc(bytes);
    if (!content->kept)
        return CUDA_ERROR_OUT_OF_MEMORY;
    memcpy(content->kept, params->accessDescs, bytes);
    content->params.alloc.accessDescs = content->kept;
    return CUDA_SUCCESS;
}

static CUresult make_values(const CUDA_BATCH_MEM_OP_NODE_PARAMS_v2 *params, struct sim_content *content) {
    CUresult result = sim_values_check(params->count, params->paramArray, params->flags);
    if (result != CUDA_SUCCESS)
        return result;
    content->params.memOp = *params;
    content->kept = malloc(params->count * sizeof *params->paramArray);
    if (!content->kept)
        return CUDA_ERROR_OUT_OF_MEMORY;
    memcpy(content->kept, params->paramArray, params->count * sizeof *params->paramArray);
    content->params.memOp.paramArray = content->kept;
    return CUDA_SUCCESS;
}

static CUresult fill(CUgraphNodeParams *params, struct sim_content *content) {
    switch (params->type) {
    case CU_GRAPH_NODE_TYPE_MEMCPY:
        return make_copy(&params->memcpy, content);
    case CU_GRAPH_NODE_TYPE_MEMSET:
        return make_set(&params->memset, content);
    case CU_GRAPH_NODE_TYPE_HOST:
        content->params.host = params->host;
        return params->host.fn ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    case CU_GRAPH_NODE_TYPE_EMPTY:
        return CUDA_SUCCESS;
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
        return make_event(params->eventRecord.event, content);
    case CU_GRAPH_NODE_TYPE_MEM_ALLOC:
        return make_alloc(&params->alloc, content);
    case CU_GRAPH_NODE_TYPE_MEM_FREE:
        content->params.free = params->free;
        return sim_graph_block_is(params->free.dptr) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP:
        return make_values(&params->memOp, content);
    default:
        return CUDA_ERROR_NOT_SUPPORTED;
    }
}

CUresult sim_content_make(CUgraphNodeParams *params, struct sim_content **out) {
    if (params->type == CU_GRAPH_NODE_TYPE_KERNEL)
        return make_kernel(&params->kernel, out);
    struct sim_content *content = fresh(params->type);
    if (!content)
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = fill(params, content);
    if (result == CUDA_SUCCESS)
        *out = content;
    else
        sim_content_drop(content);
    return result;
}
