/*
 * cuDeviceGetAttribute: what is the same on every card since Volta, what follows from the compute capability,
 * and what is the model's own. What this driver does not do is answered with 0.
 */
#include "driver.h"

#include <stdlib.h>

#define ATTRIBUTE(name) CU_DEVICE_ATTRIBUTE_##name
#define SAME_FOR_ALL_LAST 161 /* the highest attribute that cuda.h of 13.x names */

/* By attribute; what isn't here is 0. */
static const int same[SAME_FOR_ALL_LAST + 1] = {
    [ATTRIBUTE(MAX_THREADS_PER_BLOCK)] = 1024,
    [ATTRIBUTE(MAX_BLOCK_DIM_X)] = 1024,
    [ATTRIBUTE(MAX_BLOCK_DIM_Y)] = 1024,
    [ATTRIBUTE(MAX_BLOCK_DIM_Z)] = 64,
    [ATTRIBUTE(MAX_GRID_DIM_X)] = 2147483647,
    [ATTRIBUTE(MAX_GRID_DIM_Y)] = 65535,
    [ATTRIBUTE(MAX_GRID_DIM_Z)] = 65535,
    [ATTRIBUTE(MAX_SHARED_MEMORY_PER_BLOCK)] = 49152,
    [ATTRIBUTE(TOTAL_CONSTANT_MEMORY)] = 65536,
    [ATTRIBUTE(WARP_SIZE)] = 32,
    [ATTRIBUTE(MAX_PITCH)] = 2147483647,
    [ATTRIBUTE(MAX_REGISTERS_PER_BLOCK)] = 65536,
    [ATTRIBUTE(TEXTURE_ALIGNMENT)] = 512,
    [ATTRIBUTE(GPU_OVERLAP)] = 1,
    [ATTRIBUTE(CAN_MAP_HOST_MEMORY)] = 1,
    [ATTRIBUTE(COMPUTE_MODE)] = CU_COMPUTEMODE_DEFAULT,
    [ATTRIBUTE(MAXIMUM_TEXTURE1D_WIDTH)] = 131072,
    [ATTRIBUTE(MAXIMUM_TEXTURE2D_WIDTH)] = 131072,
    [ATTRIBUTE(MAXIMUM_TEXTURE2D_HEIGHT)] = 65536,
    [ATTRIBUTE(MAXIMUM_TEXTURE3D_WIDTH)] = 16384,
    [ATTRIBUTE(MAXIMUM_TEXTURE3D_HEIGHT)] = 16384,
    [ATTRIBUTE(MAXIMUM_TEXTURE3D_DEPTH)] = 16384,
    [ATTRIBUTE(MAXIMUM_TEXTURE2D_LAYERED_WIDTH)] = 32768,
    [ATTRIBUTE(MAXIMUM_TEXTURE2D_LAYERED_HEIGHT)] = 32768,
    [ATTRIBUTE(MAXIMUM_TEXTURE2D_LAYERED_LAYERS)] = 2048,
    [ATTRIBUTE(SURFACE_ALIGNMENT)] = 512,
    [ATTRIBUTE(CONCURRENT_KERNELS)] = 1,
    [ATTRIBUTE(UNIFIED_ADDRESSING)] = 1,
    [ATTRIBUTE(MAXIMUM_TEXTURE1D_LAYERED_WIDTH)] = 32768,
    [ATTRIBUTE(MAXIMUM_TEXTURE1D_LAYERED_LAYERS)] = 2048,
    [ATTRIBUTE(CAN_TEX2D_GATHER)] = 1,
    [ATTRIBUTE(MAXIMUM_TEXTURE2D_GATHER_WIDTH)] = 32768,
    [ATTRIBUTE(MAXIMUM_TEXTURE2D_GATHER_HEIGHT)] = 32768,
    [ATTRIBUTE(MAXIMUM_TEXTURE3D_WIDTH_ALTERNATE)] = 8192,
    [ATTRIBUTE(MAXIMUM_TEXTURE3D_HEIGHT_ALTERNATE)] = 8192,
    [ATTRIBUTE(MAXIMUM_TEXTURE3D_DEPTH_ALTERNATE)] = 32768,
    [ATTRIBUTE(TEXTURE_PITCH_ALIGNMENT)] = 32,
    [ATTRIBUTE(MAXIMUM_TEXTURECUBEMAP_WIDTH)] = 32768,
    [ATTRIBUTE(MAXIMUM_TEXTURECUBEMAP_LAYERED_WIDTH)] = 32768,
    [ATTRIBUTE(MAXIMUM_TEXTURECUBEMAP_LAYERED_LAYERS)] = 2046,
    [ATTRIBUTE(MAXIMUM_SURFACE1D_WIDTH)] = 32768,
    [ATTRIBUTE(MAXIMUM_SURFACE2D_WIDTH)] = 131072,
    [ATTRIBUTE(MAXIMUM_SURFACE2D_HEIGHT)] = 65536,
    [ATTRIBUTE(MAXIMUM_SURFACE3D_WIDTH)] = 16384,
    [ATTRIBUTE(MAXIMUM_SURFACE3D_HEIGHT)] = 16384,
    [ATTRIBUTE(MAXIMUM_SURFACE3D_DEPTH)] = 16384,
    [ATTRIBUTE(MAXIMUM_SURFACE1D_LAYERED_WIDTH)] = 32768,
    [ATTRIBUTE(MAXIMUM_SURFACE1D_LAYERED_LAYERS)] = 2048,
    [ATTRIBUTE(MAXIMUM_SURFACE2D_LAYERED_WIDTH)] = 32768,
    [ATTRIBUTE(MAXIMUM_SURFACE2D_LAYERED_HEIGHT)] = 32768,
    [ATTRIBUTE(MAXIMUM_SURFACE2D_LAYERED_LAYERS)] = 2048,
    [ATTRIBUTE(MAXIMUM_SURFACECUBEMAP_WIDTH)] = 32768,
    [ATTRIBUTE(MAXIMUM_SURFACECUBEMAP_LAYERED_WIDTH)] = 32768,
    [ATTRIBUTE(MAXIMUM_SURFACECUBEMAP_LAYERED_LAYERS)] = 2046,
    [ATTRIBUTE(MAXIMUM_TEXTURE1D_LINEAR_WIDTH)] = 268435456,
    [ATTRIBUTE(MAXIMUM_TEXTURE2D_LINEAR_WIDTH)] = 131072,
    [ATTRIBUTE(MAXIMUM_TEXTURE2D_LINEAR_HEIGHT)] = 65000,
    [ATTRIBUTE(MAXIMUM_TEXTURE2D_LINEAR_PITCH)] = 2097120,
    [ATTRIBUTE(MAXIMUM_TEXTURE2D_MIPMAPPED_WIDTH)] = 32768,
    [ATTRIBUTE(MAXIMUM_TEXTURE2D_MIPMAPPED_HEIGHT)] = 32768,
    [ATTRIBUTE(MAXIMUM_TEXTURE1D_MIPMAPPED_WIDTH)] = 32768,
    [ATTRIBUTE(STREAM_PRIORITIES_SUPPORTED)] = 1,
    [ATTRIBUTE(GLOBAL_L1_CACHE_SUPPORTED)] = 1,
    [ATTRIBUTE(LOCAL_L1_CACHE_SUPPORTED)] = 1,
    [ATTRIBUTE(MAX_REGISTERS_PER_MULTIPROCESSOR)] = 65536,
    [ATTRIBUTE(MANAGED_MEMORY)] = 1,
    [ATTRIBUTE(CONCURRENT_MANAGED_ACCESS)] = 1,
    [ATTRIBUTE(COMPUTE_PREEMPTION_SUPPORTED)] = 1,
    [ATTRIBUTE(CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM)] = 1,
    [ATTRIBUTE(CAN_USE_STREAM_MEM_OPS_V1)] = 1,
    [ATTRIBUTE(CAN_USE_64_BIT_STREAM_MEM_OPS_V1)] = 1,
    [ATTRIBUTE(CAN_USE_STREAM_WAIT_VALUE_NOR_V1)] = 1,
    [ATTRIBUTE(COOPERATIVE_LAUNCH)] = 1,
    [ATTRIBUTE(HOST_REGISTER_SUPPORTED)] = 1,
    [ATTRIBUTE(VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED)] = 1,
    [ATTRIBUTE(HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED)] = 1,
    [ATTRIBUTE(READ_ONLY_HOST_REGISTER_SUPPORTED)] = 1,
    [ATTRIBUTE(MEMORY_POOLS_SUPPORTED)] = 1,
    [ATTRIBUTE(CAN_USE_64_BIT_STREAM_MEM_OPS)] = 1,
    [ATTRIBUTE(CAN_USE_STREAM_WAIT_VALUE_NOR)] = 1,
    [ATTRIBUTE(IPC_EVENT_SUPPORTED)] = 1,
    [ATTRIBUTE(MEM_SYNC_DOMAIN_COUNT)] = 1,
    [ATTRIBUTE(UNIFIED_FUNCTION_POINTERS)] = 1,
    [ATTRIBUTE(NUMA_ID)] = -1,
    [ATTRIBUTE(HOST_NUMA_ID)] = 0,
    [ATTRIBUTE(HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED)] = 1,
    [ATTRIBUTE(HOST_MEMORY_POOLS_SUPPORTED)] = 1,
    [ATTRIBUTE(HOST_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED)] = 1,
};

/* What follows from the compute capability; figures of NVIDIA's programming guide. */
struct capability {
    unsigned int version; /* 10 * major + minor */
    int shared_kib_per_sm, blocks_per_sm, double_ratio;
};

static const struct capability capabilities[] = {
    {70, 96, 32, 2},   {75, 64, 16, 32}, {80, 164, 32, 2},   {86, 100, 16, 64},
    {89, 100, 24, 64}, {90, 228, 32, 2}, {120, 100, 24, 64},
};

static const struct capability *capability_of(const struct sim_model *model) {
    const struct capability *found = &capabilities[0];
    for (size_t i = 0; i < sizeof capabilities / sizeof capabilities[0]; i++)
        if (capabilities[i].version <= 10 * model->major + model->minor)
            found = &capabilities[i];
    return found;
}

/* HBM stacks have wide buses; the clock is what then gives the bandwidth, at two transfers a cycle. */
static int bus_bits(const struct sim_model *model) {
    if (model->bandwidth_gbs >= 1400)
        return 5120;
    return model->bandwidth_gbs >= 880 && model->major == 7 ? 4096 : model->bandwidth_gbs > 500 ? 384 : 256;
}

static int of_model(const struct sim_model *model, uint32_t card, CUdevice_attribute attribute) {
    const struct capability *capability = capability_of(model);
    int shared = capability->shared_kib_per_sm * 1024, reserved = model->major >= 8 ? 1024 : 0;
    switch (attribute) {
    case ATTRIBUTE(CLOCK_RATE):
        return (int)model->max_sm_mhz * 1000;
    case ATTRIBUTE(MULTIPROCESSOR_COUNT):
        return (int)model->sm_count;
    case ATTRIBUTE(ECC_ENABLED):
        return bus_bits(model) > 4000;
    case ATTRIBUTE(PCI_BUS_ID):
        return (int)card + 1;
    case ATTRIBUTE(GPU_PCI_DEVICE_ID):
        return (int)(model->pci_device_id << 16 | 0x10de);
    case ATTRIBUTE(GPU_PCI_SUBSYSTEM_ID):
        return 0x10de;
    case ATTRIBUTE(MEMORY_CLOCK_RATE):
        return (int)((uint64_t)model->bandwidth_gbs * 8000000 / 2 / (uint64_t)bus_bits(model));
    case ATTRIBUTE(GLOBAL_MEMORY_BUS_WIDTH):
        return bus_bits(model);
    case ATTRIBUTE(L2_CACHE_SIZE):
        return (int)model->l2_bytes;
    case ATTRIBUTE(MAX_THREADS_PER_MULTIPROCESSOR):
        return (int)model->threads_per_sm;
    case ATTRIBUTE(ASYNC_ENGINE_COUNT):
        return model->major >= 8 ? 3 : 2;
    case ATTRIBUTE(COMPUTE_CAPABILITY_MAJOR):
        return (int)model->major;
    case ATTRIBUTE(COMPUTE_CAPABILITY_MINOR):
        return (int)model->minor;
    case ATTRIBUTE(MAX_SHARED_MEMORY_PER_MULTIPROCESSOR):
        return shared;
    case ATTRIBUTE(MULTI_GPU_BOARD_GROUP_ID):
        return (int)card;
    case ATTRIBUTE(SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO):
        return capability->double_ratio;
    case ATTRIBUTE(MAX_SHARED_MEMORY_PER_BLOCK_OPTIN):
        return shared - reserved;
    case ATTRIBUTE(MAX_BLOCKS_PER_MULTIPROCESSOR):
        return capability->blocks_per_sm;
    case ATTRIBUTE(MAX_PERSISTING_L2_CACHE_SIZE):
        return model->major >= 8 ? (int)(model->l2_bytes / 4 * 3) : 0;
    case ATTRIBUTE(MAX_ACCESS_POLICY_WINDOW_SIZE):
        return model->major >= 8 ? 134217728 : 0;
    case ATTRIBUTE(RESERVED_SHARED_MEMORY_PER_BLOCK):
        return reserved;
    case ATTRIBUTE(MEMPOOL_SUPPORTED_HANDLE_TYPES):
        return CU_MEM_HANDLE_TYPE_NONE; /* pools are not exported */
    case ATTRIBUTE(CLUSTER_LAUNCH):
    case ATTRIBUTE(TENSOR_MAP_ACCESS_SUPPORTED):
        return model->major >= 9;
    default:
        return same[attribute];
    }
}

SIM_EXPORT CUresult cuDeviceGetAttribute(int *pi, CUdevice_attribute attrib, CUdevice dev) {
    SIM_BEGIN();
    uint32_t card;
    CUresult result = pi ? sim_card_of(dev, &card) : CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS)
        return result;
    if ((int)attrib < 1 || attrib > SAME_FOR_ALL_LAST)
        return CUDA_ERROR_INVALID_VALUE;
    *pi = of_model(&sim_machine()->cards[card].model, card, attrib);
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDeviceGetProperties(CUdevprop *prop, CUdevice dev) {
    SIM_BEGIN();
    uint32_t card;
    CUresult result = prop ? sim_card_of(dev, &card) : CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS)
        return result;
    *prop = (CUdevprop){
        .maxThreadsPerBlock = same[ATTRIBUTE(MAX_THREADS_PER_BLOCK)],
        .maxThreadsDim = {same[ATTRIBUTE(MAX_BLOCK_DIM_X)], same[ATTRIBUTE(MAX_BLOCK_DIM_Y)],
                          same[ATTRIBUTE(MAX_BLOCK_DIM_Z)]},
        .maxGridSize = {same[ATTRIBUTE(MAX_GRID_DIM_X)], same[ATTRIBUTE(MAX_GRID_DIM_Y)],
                        same[ATTRIBUTE(MAX_GRID_DIM_Z)]},
        .sharedMemPerBlock = same[ATTRIBUTE(MAX_SHARED_MEMORY_PER_BLOCK)],
        .totalConstantMemory = same[ATTRIBUTE(TOTAL_CONSTANT_MEMORY)],
        .SIMDWidth = same[ATTRIBUTE(WARP_SIZE)],
        .memPitch = same[ATTRIBUTE(MAX_PITCH)],
        .regsPerBlock = same[ATTRIBUTE(MAX_REGISTERS_PER_BLOCK)],
        .clockRate = (int)sim_machine()->cards[card].model.max_sm_mhz * 1000,
        .textureAlign = same[ATTRIBUTE(TEXTURE_ALIGNMENT)],
    };
    return CUDA_SUCCESS;
}
