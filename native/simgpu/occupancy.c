/*
 * Occupancy: how many blocks of a function an SM holds at once, by its threads, registers and shared memory.
 */
#include "module.h"

#define WARP 32U
#define REGISTERS_PER_SM 65536U
#define REGISTERS_UNIT 256U /* per warp, registers are given in such pieces */
#define SHARED_UNIT 1024U

static int attribute(CUdevice device, CUdevice_attribute which) {
    int value = 0;
    cuDeviceGetAttribute(&value, which, device);
    return value;
}

static uint32_t at_most(uint32_t one, uint32_t other) {
    return one < other ? one : other;
}

static uint32_t round_up(uint32_t value, uint32_t unit) {
    return (value + unit - 1) / unit * unit;
}

/* Without shared memory: launches ask this often. */
static uint32_t by_threads(const struct CUfunc_st *function, uint32_t threads) {
    const struct sim_model *model = &sim_machine()->cards[function->module->context->card].model;
    uint32_t architecture = model->major * 10 + model->minor, warps = round_up(threads, WARP) / WARP;
    uint32_t blocks = architecture == 75 || architecture == 86 || architecture == 87 ? 16
                      : architecture == 89 || architecture >= 120                    ? 24
                                                                                     : 32;
    uint32_t of_warp = round_up(function->entry->registers * WARP, REGISTERS_UNIT);
    if (!warps)
        return 0;
    blocks = at_most(blocks, model->threads_per_sm / (warps * WARP));
    return of_warp ? at_most(blocks, REGISTERS_PER_SM / (of_warp * warps)) : blocks;
}

uint32_t sim_blocks_per_sm(const struct CUfunc_st *function, uint32_t threads) {
    return by_threads(function, threads);
}

static uint32_t blocks_with(const struct CUfunc_st *function, uint32_t threads, size_t dynamic_bytes) {
    CUdevice device = function->module->context->device;
    if (threads > function->entry->max_threads)
        return 0;
    uint32_t blocks = by_threads(function, threads);
    size_t reserved = (size_t)attribute(device, CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK);
    size_t most = (size_t)attribute(device, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR);
    size_t shared = function->entry->shared_bytes + dynamic_bytes;
    if (!shared)
        return blocks;
    shared = (shared + reserved + SHARED_UNIT - 1) / SHARED_UNIT * SHARED_UNIT;
    return shared > most ? 0 : at_most(blocks, (uint32_t)(most / shared));
}

/* The lock is held after success only. */
static CUresult enter(CUfunction handle, struct CUfunc_st **function) {
    struct CUctx_st *context;
    CUresult result = sim_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    sim_work_lock();
    result = sim_function_of(context, handle, function);
    if (result != CUDA_SUCCESS)
        sim_work_unlock();
    return result;
}

static CUresult active_blocks(int *blocks, CUfunction func, int threads, size_t dynamic_bytes,
                              unsigned int flags) {
    struct CUfunc_st *function;
    if (!blocks || threads <= 0 || flags > CU_OCCUPANCY_DISABLE_CACHING_OVERRIDE)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = enter(func, &function);
    if (result != CUDA_SUCCESS)
        return result;
    *blocks = (int)blocks_with(function, (uint32_t)threads, dynamic_bytes);
    sim_work_unlock();
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *numBlocks, CUfunction func,
                                                                int blockSize, size_t dynamicSMemSize) {
    return active_blocks(numBlocks, func, blockSize, dynamicSMemSize, CU_OCCUPANCY_DEFAULT);
}
SIM_EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *numBlocks, CUfunction func,
                                                                         int blockSize,
                                                                         size_t dynamicSMemSize,
                                                                         unsigned int flags) {
    return active_blocks(numBlocks, func, blockSize, dynamicSMemSize, flags);
}

/* The block size that keeps most threads on an SM, the larger one of equals. */
static CUresult potential(int *grid, int *block, CUfunction func, CUoccupancyB2DSize sizes,
                          size_t dynamic_bytes, int limit, unsigned int flags) {
    struct CUfunc_st *function;
    if (!grid || !block || flags > CU_OCCUPANCY_DISABLE_CACHING_OVERRIDE)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = enter(func, &function);
    if (result != CUDA_SUCCESS)
        return result;
    struct CUfunc_st copy = *function; /* the program is asked for sizes without the lock */
    struct CUctx_st *context = function->module->context;
    const struct sim_model *model = &sim_machine()->cards[context->card].model;
    uint32_t most = copy.entry->max_threads, best = 0;
    most = limit > 0 ? at_most(most, (uint32_t)limit) : most;
    sim_work_unlock();
    *grid = *block = 0;
    for (uint32_t threads = most; threads; threads = threads > WARP ? (threads - 1) / WARP * WARP : 0) {
        size_t bytes = sizes ? sizes((int)threads) : dynamic_bytes;
        sim_work_lock();
        bool there = sim_handle_is(function, SIM_HANDLE_FUNCTION);
        uint32_t blocks = there ? blocks_with(&copy, threads, bytes) : 0;
        sim_work_unlock();
        if (blocks * threads > best) {
            best = blocks * threads;
            *block = (int)threads;
            *grid = (int)(blocks * model->sm_count);
        }
    }
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuOccupancyMaxPotentialBlockSize(int *minGridSize, int *blockSize, CUfunction func,
                                                     CUoccupancyB2DSize blockSizeToDynamicSMemSize,
                                                     size_t dynamicSMemSize, int blockSizeLimit) {
    return potential(minGridSize, blockSize, func, blockSizeToDynamicSMemSize, dynamicSMemSize,
                     blockSizeLimit, CU_OCCUPANCY_DEFAULT);
}
SIM_EXPORT CUresult cuOccupancyMaxPotentialBlockSizeWithFlags(int *minGridSize, int *blockSize,
                                                              CUfunction func,
                                                              CUoccupancyB2DSize blockSizeToDynamicSMemSize,
                                                              size_t dynamicSMemSize, int blockSizeLimit,
                                                              unsigned int flags) {
    return potential(minGridSize, blockSize, func, blockSizeToDynamicSMemSize, dynamicSMemSize,
                     blockSizeLimit, flags);
}

SIM_EXPORT CUresult cuOccupancyAvailableDynamicSMemPerBlock(size_t *dynamicSmemSize, CUfunction func,
                                                            int numBlocks, int blockSize) {
    struct CUfunc_st *function;
    if (!dynamicSmemSize || numBlocks <= 0 || blockSize <= 0)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = enter(func, &function);
    if (result != CUDA_SUCCESS)
        return result;
    CUdevice device = function->module->context->device;
    size_t reserved = (size_t)attribute(device, CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK);
    size_t each = (size_t)attribute(device, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR) /
                  (size_t)numBlocks / SHARED_UNIT * SHARED_UNIT;
    size_t most = (size_t)attribute(device, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
    size_t taken = function->entry->shared_bytes + reserved;
    if ((uint32_t)numBlocks > by_threads(function, (uint32_t)blockSize))
        result = CUDA_ERROR_INVALID_VALUE;
    else if ((each = each < most + reserved ? each : most + reserved) > taken)
        *dynamicSmemSize = each - taken;
    else
        *dynamicSmemSize = 0;
    sim_work_unlock();
    return result;
}

/* ---- clusters, of compute capability 9.0 and later ---- */

#define CLUSTER_PORTABLE 8
#define CLUSTER_MOST 16

static CUresult clusters(CUfunction func, const CUlaunchConfig *config, struct CUfunc_st **function,
                         bool *there) {
    if (!config)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = enter(func, function);
    if (result == CUDA_SUCCESS)
        *there = sim_machine()->cards[(*function)->module->context->card].model.major >= 9;
    return result;
}

SIM_EXPORT CUresult cuOccupancyMaxPotentialClusterSize(int *clusterSize, CUfunction func,
                                                       const CUlaunchConfig *config) {
    struct CUfunc_st *function;
    bool there;
    CUresult result = clusterSize ? clusters(func, config, &function, &there) : CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS)
        return result;
    *clusterSize = !there ? 1 : function->nonportable_cluster ? CLUSTER_MOST : CLUSTER_PORTABLE;
    sim_work_unlock();
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuOccupancyMaxActiveClusters(int *numClusters, CUfunction func,
                                                 const CUlaunchConfig *config) {
    struct CUfunc_st *function;
    bool there;
    uint32_t size = 1;
    CUresult result = numClusters ? clusters(func, config, &function, &there) : CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS)
        return result;
    for (unsigned int i = 0; config->attrs && i < config->numAttrs; i++) {
        const CUlaunchAttributeValue *value = &config->attrs[i].value;
        if (config->attrs[i].id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION)
            size = value->clusterDim.x * value->clusterDim.y * value->clusterDim.z;
    }
    uint32_t sms = sim_machine()->cards[function->module->context->card].model.sm_count;
    uint32_t threads = config->blockDimX * config->blockDimY * config->blockDimZ;
    uint32_t blocks = blocks_with(function, threads, config->sharedMemBytes) * sms;
    if (!size || size > CLUSTER_MOST || (size > 1 && !there))
        result = CUDA_ERROR_INVALID_CLUSTER_SIZE;
    else
        *numClusters = (int)(blocks / size);
    sim_work_unlock();
    return result;
}
