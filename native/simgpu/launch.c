/*
 * Kernel launches. Kernels are not executed; they take time. One that waits on the card's clock takes as long
 * as its first parameter says, any other one wave after the other of blocks of SIMGPU_BLOCK_NS (10 us) each.
 */
#include "module.h"

#include <stdlib.h>
#include <string.h>

#define BLOCK_NS 10000U
#define LAUNCH_NS 2000U /* what the least of kernels takes */

/* ---- how long, of how much ---- */

static uint64_t block_ns(void) {
    static _Atomic uint64_t known;
    uint64_t ns = known;
    if (!ns) {
        const char *text = getenv("SIMGPU_BLOCK_NS");
        unsigned long long wanted = text ? strtoull(text, NULL, 10) : 0;
        known = ns = wanted ? wanted : BLOCK_NS;
    }
    return ns;
}

/* The first parameter where it is a number of nanoseconds; false where it is not there. */
static bool first_parameter(void **parameters, void **extra, uint64_t *value) {
    const void *at = parameters ? parameters[0] : NULL;
    for (; !at && extra && extra[0] != CU_LAUNCH_PARAM_END; extra += 2)
        if (extra[0] == CU_LAUNCH_PARAM_BUFFER_POINTER)
            at = extra[1];
    if (at)
        memcpy(value, at, sizeof *value);
    return at != NULL;
}

static void take_time(const struct sim_launch *launch, void **parameters, void **extra, struct sim_job *job) {
    const struct CUfunc_st *function = launch->function;
    const struct sim_model *model = &sim_machine()->cards[function->module->context->card].model;
    uint64_t blocks = (uint64_t)launch->grid[0] * launch->grid[1] * launch->grid[2], each = block_ns(),
             wanted;
    uint32_t per_sm = sim_blocks_per_sm(function, launch->block[0] * launch->block[1] * launch->block[2]);
    per_sm = per_sm ? per_sm : 1;
    if (function->entry->spins && first_parameter(parameters, extra, &wanted))
        each = wanted;
    uint64_t ns = sim_wave_ns(model->sm_count, blocks, per_sm, each);
    uint64_t sms = (blocks + per_sm - 1) / per_sm;
    *job = (struct sim_job){.kind = SIM_OP_KERNEL, .node = CU_GRAPH_NODE_TYPE_KERNEL};
    job->duration_ns = ns > LAUNCH_NS ? ns : LAUNCH_NS;
    job->sms = sms < model->sm_count ? (uint32_t)sms : model->sm_count;
}

/* ---- what may be launched ---- */

static bool shape_is_valid(const struct sim_launch *launch) {
    const unsigned int *grid = launch->grid, *block = launch->block, *cluster = launch->cluster;
    if (!grid[0] || !grid[1] || !grid[2] || grid[0] > INT32_MAX || grid[1] > 65535 || grid[2] > 65535)
        return false;
    if (!block[0] || !block[1] || !block[2] || block[0] > 1024 || block[1] > 1024 || block[2] > 64)
        return false;
    for (int i = 0; i < 3; i++)
        if (cluster[i] && grid[i] % cluster[i])
            return false;
    return block[0] * block[1] * block[2] <= launch->function->entry->max_threads;
}

static bool parameters_are_there(const struct CUfunc_st *function, void **parameters, void **extra) {
    if (parameters && extra)
        return false;
    if (parameters)
        for (uint32_t i = 0; i < function->entry->parameter_count; i++)
            if (!parameters[i])
                return false;
    return parameters || extra || !function->entry->parameter_count;
}

CUresult sim_launch_check(const struct sim_launch *launch, void **parameters, void **extra,
                          struct sim_job *job) {
    const struct CUfunc_st *function = launch->function;
    uint32_t shared = function->entry->shared_bytes, most = function->max_dynamic_shared >= 0
                                                                ? (uint32_t)function->max_dynamic_shared
                                                            : shared < 49152 ? 49152 - shared
                                                                             : 0;
    if (!shape_is_valid(launch) || launch->shared_bytes > most ||
        !parameters_are_there(function, parameters, extra))
        return CUDA_ERROR_INVALID_VALUE;
    take_time(launch, parameters, extra, job);
    uint64_t threads = (uint64_t)launch->block[0] * launch->block[1] * launch->block[2];
    if (threads * function->entry->registers > 65536)
        return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
    if (launch->cooperative) {
        const struct sim_model *model = &sim_machine()->cards[function->module->context->card].model;
        uint64_t blocks = (uint64_t)launch->grid[0] * launch->grid[1] * launch->grid[2];
        if (blocks > (uint64_t)model->sm_count * sim_blocks_per_sm(function, (uint32_t)threads))
            return CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE;
    }
    return CUDA_SUCCESS;
}

CUresult sim_launch_keep(const struct CUfunc_st *function, void **parameters, void **extra, void ***copy) {
    const struct sim_entry *entry = function->entry;
    const unsigned char *buffer = NULL;
    size_t buffer_bytes = SIM_PARAMETERS_LIMIT, bytes = 0;
    *copy = NULL;
    if (!entry->parameter_count)
        return CUDA_SUCCESS;
    for (void **at = extra; at && at[0] != CU_LAUNCH_PARAM_END; at += 2) {
        if (at[0] == CU_LAUNCH_PARAM_BUFFER_POINTER)
            buffer = at[1];
        else if (at[0] == CU_LAUNCH_PARAM_BUFFER_SIZE && at[1])
            buffer_bytes = *(const size_t *)at[1];
    }
    for (uint32_t i = 0; i < entry->parameter_count; i++)
        bytes += (entry->parameters[i].bytes + 15U) & ~15U;
    size_t pointers = (entry->parameter_count * sizeof(void *) + 15) & ~(size_t)15;
    void **kept = calloc(1, pointers + bytes);
    if (!kept)
        return CUDA_ERROR_OUT_OF_MEMORY;
    unsigned char *to = (unsigned char *)kept + pointers;
    for (uint32_t i = 0; i < entry->parameter_count; i++) {
        const struct sim_parameter *parameter = &entry->parameters[i];
        if (parameters && parameters[i])
            memcpy(to, parameters[i], parameter->bytes);
        else if (buffer && (size_t)parameter->offset + parameter->bytes <= buffer_bytes)
            memcpy(to, buffer + parameter->offset, parameter->bytes);
        kept[i] = to;
        to += (parameter->bytes + 15U) & ~15U;
    }
    *copy = kept;
    return CUDA_SUCCESS;
}

/* ---- the calls ---- */

struct events { /* that a launch records */
    CUevent programmatic, completion;
};

static CUresult record(CUevent event, struct CUstream_st *stream) {
    if (!event)
        return CUDA_SUCCESS;
    if (!sim_handle_is(event, SIM_HANDLE_EVENT) || event->context != stream->context)
        return CUDA_ERROR_INVALID_HANDLE;
    return stream->capture ? sim_capture_record(stream, event, false) : sim_event_put(event, stream, 0, NULL);
}

static CUresult launch_in(CUstream handle, bool ptsz, CUfunction f, struct sim_launch *launch,
                          void **parameters, void **extra, const struct events *events) {
    struct sim_job job;
    SIM_ENTER(handle, ptsz);
    (void)context;
    CUresult result = sim_function_of(stream->context, f, &launch->function);
    if (result == CUDA_SUCCESS && launch->function->module->context != stream->context)
        result = CUDA_ERROR_INVALID_HANDLE;
    if (result == CUDA_SUCCESS)
        result = sim_launch_check(launch, parameters, extra, &job);
    if (result == CUDA_SUCCESS && stream->capture)
        result = sim_capture_kernel(stream, launch, &job, f, parameters, extra);
    else if (result == CUDA_SUCCESS && (result = sim_capture_refuse(stream)) == CUDA_SUCCESS)
        result = sim_put(stream, &job, NULL, 0, false, NULL);
    if (result == CUDA_SUCCESS && events) {
        result = record(events->programmatic, stream);
        if (result == CUDA_SUCCESS)
            result = record(events->completion, stream);
    }
    return sim_stream_leave(stream, result);
}

static CUresult launch_kernel(CUfunction f, struct sim_launch launch, CUstream handle, bool ptsz,
                              void **parameters, void **extra) {
    CUresult result = sim_fault(launch.cooperative ? "cuLaunchCooperativeKernel" : "cuLaunchKernel");
    return result == CUDA_SUCCESS ? launch_in(handle, ptsz, f, &launch, parameters, extra, NULL) : result;
}

#define SHAPE(with)                                                                                          \
    ((struct sim_launch){.grid = {gridDimX, gridDimY, gridDimZ},                                             \
                         .block = {blockDimX, blockDimY, blockDimZ},                                         \
                         .shared_bytes = sharedMemBytes,                                                     \
                         .cooperative = with})

SIM_EXPORT CUresult cuLaunchKernel(CUfunction f, unsigned int gridDimX, unsigned int gridDimY,
                                   unsigned int gridDimZ, unsigned int blockDimX, unsigned int blockDimY,
                                   unsigned int blockDimZ, unsigned int sharedMemBytes, CUstream hStream,
                                   void **kernelParams, void **extra) {
    return launch_kernel(f, SHAPE(false), hStream, false, kernelParams, extra);
}
SIM_EXPORT CUresult cuLaunchKernel_ptsz(CUfunction f, unsigned int gridDimX, unsigned int gridDimY,
                                        unsigned int gridDimZ, unsigned int blockDimX, unsigned int blockDimY,
                                        unsigned int blockDimZ, unsigned int sharedMemBytes, CUstream hStream,
                                        void **kernelParams, void **extra) {
    return launch_kernel(f, SHAPE(false), hStream, true, kernelParams, extra);
}
SIM_EXPORT CUresult cuLaunchCooperativeKernel(CUfunction f, unsigned int gridDimX, unsigned int gridDimY,
                                              unsigned int gridDimZ, unsigned int blockDimX,
                                              unsigned int blockDimY, unsigned int blockDimZ,
                                              unsigned int sharedMemBytes, CUstream hStream,
                                              void **kernelParams) {
    return launch_kernel(f, SHAPE(true), hStream, false, kernelParams, NULL);
}
SIM_EXPORT CUresult cuLaunchCooperativeKernel_ptsz(CUfunction f, unsigned int gridDimX, unsigned int gridDimY,
                                                   unsigned int gridDimZ, unsigned int blockDimX,
                                                   unsigned int blockDimY, unsigned int blockDimZ,
                                                   unsigned int sharedMemBytes, CUstream hStream,
                                                   void **kernelParams) {
    return launch_kernel(f, SHAPE(true), hStream, true, kernelParams, NULL);
}

SIM_EXPORT CUresult cuLaunchCooperativeKernelMultiDevice(CUDA_LAUNCH_PARAMS *launchParamsList,
                                                         unsigned int numDevices, unsigned int flags) {
    CUresult result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    if (!launchParamsList || !numDevices || numDevices > SIM_CARDS || flags > 3)
        return CUDA_ERROR_INVALID_VALUE;
    for (unsigned int i = 0; i < numDevices && result == CUDA_SUCCESS; i++) {
        const CUDA_LAUNCH_PARAMS *each = &launchParamsList[i];
        struct sim_launch launch = {.grid = {each->gridDimX, each->gridDimY, each->gridDimZ},
                                    .block = {each->blockDimX, each->blockDimY, each->blockDimZ},
                                    .shared_bytes = each->sharedMemBytes,
                                    .cooperative = true};
        result = launch_in(each->hStream, false, each->function, &launch, each->kernelParams, NULL, NULL);
    }
    return result;
}

static CUresult read_attribute(const CUlaunchAttribute *attribute, struct sim_launch *launch,
                               struct events *events) {
    switch (attribute->id) {
    case CU_LAUNCH_ATTRIBUTE_COOPERATIVE:
        launch->cooperative = attribute->value.cooperative != 0;
        break;
    case CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION:
        launch->cluster[0] = attribute->value.clusterDim.x;
        launch->cluster[1] = attribute->value.clusterDim.y;
        launch->cluster[2] = attribute->value.clusterDim.z;
        break;
    case CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_EVENT:
        events->programmatic = attribute->value.programmaticEvent.event;
        break;
    case CU_LAUNCH_ATTRIBUTE_LAUNCH_COMPLETION_EVENT:
        events->completion = attribute->value.launchCompletionEvent.event;
        break;
    default:
        if ((int)attribute->id < 0 || attribute->id >= CU_LAUNCH_ATTRIBUTE_MAX)
            return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

static CUresult launch_extended(const CUlaunchConfig *config, bool ptsz, CUfunction f, void **parameters,
                                void **extra) {
    struct events events = {NULL, NULL};
    CUresult result = sim_fault("cuLaunchKernelEx");
    if (result == CUDA_SUCCESS)
        result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    if (!config || (config->numAttrs && !config->attrs))
        return CUDA_ERROR_INVALID_VALUE;
    struct sim_launch launch = {.grid = {config->gridDimX, config->gridDimY, config->gridDimZ},
                                .block = {config->blockDimX, config->blockDimY, config->blockDimZ},
                                .shared_bytes = config->sharedMemBytes};
    for (unsigned int i = 0; i < config->numAttrs && result == CUDA_SUCCESS; i++)
        result = read_attribute(&config->attrs[i], &launch, &events);
    return result == CUDA_SUCCESS ? launch_in(config->hStream, ptsz, f, &launch, parameters, extra, &events)
                                  : result;
}

SIM_EXPORT CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction f, void **kernelParams,
                                     void **extra) {
    return launch_extended(config, false, f, kernelParams, extra);
}
SIM_EXPORT CUresult cuLaunchKernelEx_ptsz(const CUlaunchConfig *config, CUfunction f, void **kernelParams,
                                          void **extra) {
    return launch_extended(config, true, f, kernelParams, extra);
}

/* ---- as in CUDA 3: shape and parameters are set first ---- */

/* The lock is held after success only. */
static CUresult enter(CUfunction f) {
    CUresult result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    sim_work_lock();
    if (sim_handle_is(f, SIM_HANDLE_FUNCTION))
        return CUDA_SUCCESS;
    sim_work_unlock();
    return CUDA_ERROR_INVALID_HANDLE;
}

SIM_EXPORT CUresult cuFuncSetBlockShape(CUfunction hfunc, int x, int y, int z) {
    if (x <= 0 || y <= 0 || z <= 0)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = enter(hfunc);
    if (result != CUDA_SUCCESS)
        return result;
    hfunc->block[0] = (unsigned int)x;
    hfunc->block[1] = (unsigned int)y;
    hfunc->block[2] = (unsigned int)z;
    sim_work_unlock();
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuFuncSetSharedSize(CUfunction hfunc, unsigned int bytes) {
    CUresult result = enter(hfunc);
    if (result != CUDA_SUCCESS)
        return result;
    hfunc->shared_bytes = bytes;
    sim_work_unlock();
    return CUDA_SUCCESS;
}

static CUresult set_parameter(CUfunction f, int offset, const void *value, unsigned int bytes) {
    if (offset < 0 || !value || bytes > SIM_PARAMETERS_LIMIT ||
        (unsigned int)offset > SIM_PARAMETERS_LIMIT - bytes)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = enter(f);
    if (result != CUDA_SUCCESS)
        return result;
    if (!f->parameters)
        f->parameters = calloc(1, SIM_PARAMETERS_LIMIT);
    if (f->parameters)
        memcpy(f->parameters + offset, value, bytes);
    result = f->parameters ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    sim_work_unlock();
    return result;
}

SIM_EXPORT CUresult cuParamSetSize(CUfunction hfunc, unsigned int numbytes) {
    CUresult result = enter(hfunc);
    if (result != CUDA_SUCCESS)
        return result;
    if (numbytes <= SIM_PARAMETERS_LIMIT)
        hfunc->parameter_bytes = numbytes;
    sim_work_unlock();
    return numbytes <= SIM_PARAMETERS_LIMIT ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
SIM_EXPORT CUresult cuParamSeti(CUfunction hfunc, int offset, unsigned int value) {
    return set_parameter(hfunc, offset, &value, sizeof value);
}
SIM_EXPORT CUresult cuParamSetf(CUfunction hfunc, int offset, float value) {
    return set_parameter(hfunc, offset, &value, sizeof value);
}
SIM_EXPORT CUresult cuParamSetv(CUfunction hfunc, int offset, void *ptr, unsigned int numbytes) {
    return set_parameter(hfunc, offset, ptr, numbytes);
}

static CUresult launch_set(CUfunction f, int width, int height, CUstream handle) {
    if (width <= 0 || height <= 0)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = enter(f);
    if (result != CUDA_SUCCESS)
        return result;
    struct sim_launch launch = {.grid = {(unsigned int)width, (unsigned int)height, 1},
                                .block = {f->block[0], f->block[1], f->block[2]},
                                .shared_bytes = f->shared_bytes};
    static unsigned char none[SIM_PARAMETERS_LIMIT];
    size_t bytes = f->parameter_bytes;
    void *extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, f->parameters ? f->parameters : none,
                     CU_LAUNCH_PARAM_BUFFER_SIZE, &bytes, CU_LAUNCH_PARAM_END};
    sim_work_unlock();
    return launch_in(handle, false, f, &launch, NULL, extra, NULL);
}

SIM_EXPORT CUresult cuLaunch(CUfunction f) {
    return launch_set(f, 1, 1, NULL);
}
SIM_EXPORT CUresult cuLaunchGrid(CUfunction f, int grid_width, int grid_height) {
    return launch_set(f, grid_width, grid_height, NULL);
}
SIM_EXPORT CUresult cuLaunchGridAsync(CUfunction f, int grid_width, int grid_height, CUstream hStream) {
    return launch_set(f, grid_width, grid_height, hStream);
}
