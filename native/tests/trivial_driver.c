/*
 * A second driver for the shim's tests: one card of 16 GiB, as little as a program needs that allocates and
 * launches, and in everything that a driver is free to choose the opposite of the simulator.
 *
 * Small allocations don't share pages. cuGetProcAddress answers with pointers that are exported under no
 * name. It has no pools, no graphs and no captures: their names are missing. Kernels take no time. Nothing is
 * shared between processes.
 */
#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define VERSION 12040
#define TOTAL ((size_t)16 << 30)
#define PAGE ((size_t)2 << 20)
#define BLOCKS 4096

struct CUctx_st {
    int uses;
};
struct CUmod_st {
    int unused;
};
struct CUevent_st {
    int unused;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct CUctx_st primary;
static __thread CUcontext current[8];
static __thread int depth;
static int initialised;
static size_t used;
/* Block i lies at (i + 1) << 36; its size, 0 = free. */
static size_t blocks[BLOCKS];

static CUcontext top(void) {
    return depth ? current[depth - 1] : NULL;
}

/* ---- the card ---- */

static CUresult init(unsigned int flags) {
    initialised = 1;
    return flags ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

static CUresult device_get(CUdevice *device, int ordinal) {
    *device = 0;
    if (!initialised)
        return CUDA_ERROR_NOT_INITIALIZED;
    return ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

static CUresult device_count(int *count) {
    *count = 1;
    return initialised ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
}

static CUresult device_uuid(CUuuid *uuid, CUdevice device) {
    memset(uuid, 0x11, sizeof *uuid);
    return device == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

static CUresult device_total(size_t *bytes, CUdevice device) {
    *bytes = TOTAL;
    return device == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

static CUresult driver_version(int *version) {
    *version = VERSION;
    return CUDA_SUCCESS;
}

/* ---- contexts: the primary one, on a stack for each thread ---- */

static CUresult primary_retain(CUcontext *context, CUdevice device) {
    if (!initialised || device != 0)
        return initialised ? CUDA_ERROR_INVALID_DEVICE : CUDA_ERROR_NOT_INITIALIZED;
    pthread_mutex_lock(&lock);
    primary.uses++;
    pthread_mutex_unlock(&lock);
    *context = &primary;
    return CUDA_SUCCESS;
}

static CUresult primary_release(CUdevice device) {
    pthread_mutex_lock(&lock);
    CUresult result = device == 0 && primary.uses ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
    primary.uses -= result == CUDA_SUCCESS;
    pthread_mutex_unlock(&lock);
    return result;
}

static CUresult primary_state(CUdevice device, unsigned int *flags, int *active) {
    *flags = 0;
    *active = primary.uses > 0;
    return device == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

/* A green context is the primary one under another name. */
static CUresult green_create(CUgreenCtx *context, CUdevResourceDesc resources, CUdevice device,
                             unsigned int flags) {
    (void)resources;
    (void)flags;
    return primary_retain((CUcontext *)context, device);
}

static CUresult green_destroy(CUgreenCtx context) {
    return (CUcontext)context == &primary ? primary_release(0) : CUDA_ERROR_INVALID_HANDLE;
}

static CUresult set_current(CUcontext context) {
    depth = depth ? depth : 1;
    current[depth - 1] = context;
    depth -= context == NULL;
    return CUDA_SUCCESS;
}

static CUresult get_current(CUcontext *context) {
    *context = top();
    return CUDA_SUCCESS;
}

static CUresult current_device(CUdevice *device) {
    *device = 0;
    return top() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

/* ---- memory ---- */

static CUresult take(CUdeviceptr *address, size_t bytes) {
    size_t whole = (bytes + PAGE - 1) / PAGE * PAGE;
    CUresult result = bytes ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < BLOCKS && bytes && bytes <= TOTAL && used + whole <= TOTAL; i++)
        if (!blocks[i]) {
            blocks[i] = whole;
            used += whole;
            *address = (CUdeviceptr)(i + 1) << 36;
            result = CUDA_SUCCESS;
            break;
        }
    pthread_mutex_unlock(&lock);
    return result;
}

static CUresult give(CUdeviceptr address) {
    size_t i = (size_t)(address >> 36) - 1;
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&lock);
    if (address % ((CUdeviceptr)1 << 36) == 0 && i < BLOCKS && blocks[i]) {
        used -= blocks[i];
        blocks[i] = 0;
        result = CUDA_SUCCESS;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

static CUresult mem_alloc(CUdeviceptr *address, size_t bytes) {
    return top() ? take(address, bytes) : CUDA_ERROR_INVALID_CONTEXT;
}

static CUresult mem_free(CUdeviceptr address) {
    return top() ? give(address) : CUDA_ERROR_INVALID_CONTEXT;
}

static CUresult mem_info(size_t *free, size_t *total) {
    *total = TOTAL;
    *free = TOTAL - used;
    return top() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

static CUresult mem_create(CUmemGenericAllocationHandle *handle, size_t bytes,
                           const CUmemAllocationProp *properties, unsigned long long flags) {
    if (flags || bytes % PAGE)
        return CUDA_ERROR_INVALID_VALUE;
    if (properties->location.type != CU_MEM_LOCATION_TYPE_DEVICE)
        return CUDA_ERROR_NOT_SUPPORTED;
    return properties->location.id == 0 ? take(handle, bytes) : CUDA_ERROR_INVALID_DEVICE;
}

/* ---- work ---- */

static CUresult module_load(CUmodule *module, const void *image) {
    static struct CUmod_st the_module;
    *module = &the_module;
    return image ? CUDA_SUCCESS : CUDA_ERROR_INVALID_IMAGE;
}

static CUresult module_unload(CUmodule module) {
    return module ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

static CUresult module_function(CUfunction *function, CUmodule module, const char *name) {
    *function = (CUfunction)module;
    return name ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

static CUresult launch(CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                       unsigned int block_x, unsigned int block_y, unsigned int block_z, unsigned int shared,
                       CUstream stream, void **parameters, void **extra) {
    (void)shared;
    (void)stream;
    (void)parameters;
    (void)extra;
    if (!top())
        return CUDA_ERROR_INVALID_CONTEXT;
    return function && grid_x && grid_y && grid_z && block_x && block_y && block_z ? CUDA_SUCCESS
                                                                                   : CUDA_ERROR_INVALID_VALUE;
}

static CUresult of_stream(CUstream stream) {
    (void)stream;
    return top() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

static CUresult event_create(CUevent *event, unsigned int flags) {
    (void)flags;
    *event = malloc(sizeof **event);
    return *event ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult event_destroy(CUevent event) {
    free(event);
    return CUDA_SUCCESS;
}

static CUresult event_record(CUevent event, CUstream stream) {
    return event ? of_stream(stream) : CUDA_ERROR_INVALID_HANDLE;
}

static CUresult event_query(CUevent event) {
    return event ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

static CUresult event_elapsed(float *ms, CUevent start, CUevent end) {
    *ms = 0;
    return start && end ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

/* ---- exported ---- */

EXPORT CUresult cuInit(unsigned int flags) {
    return init(flags);
}
EXPORT CUresult cuDriverGetVersion(int *version) {
    return driver_version(version);
}
EXPORT CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    return device_get(device, ordinal);
}
EXPORT CUresult cuDeviceGetCount(int *count) {
    return device_count(count);
}
EXPORT CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice device) {
    return device_uuid(uuid, device);
}
EXPORT CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    return device_total(bytes, device);
}
EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    return primary_retain(context, device);
}
EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    return primary_release(device);
}
EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned int *flags, int *active) {
    return primary_state(device, flags, active);
}
EXPORT CUresult cuGreenCtxCreate(CUgreenCtx *context, CUdevResourceDesc resources, CUdevice device,
                                 unsigned int flags) {
    return green_create(context, resources, device, flags);
}
EXPORT CUresult cuGreenCtxDestroy(CUgreenCtx context) {
    return green_destroy(context);
}
EXPORT CUresult cuCtxSetCurrent(CUcontext context) {
    return set_current(context);
}
EXPORT CUresult cuCtxGetCurrent(CUcontext *context) {
    return get_current(context);
}
EXPORT CUresult cuCtxGetDevice(CUdevice *device) {
    return current_device(device);
}
EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) {
    return mem_alloc(address, bytes);
}
EXPORT CUresult cuMemFree_v2(CUdeviceptr address) {
    return mem_free(address);
}
EXPORT CUresult cuMemGetInfo_v2(size_t *free, size_t *total) {
    return mem_info(free, total);
}
EXPORT CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t bytes,
                            const CUmemAllocationProp *properties, unsigned long long flags) {
    return mem_create(handle, bytes, properties, flags);
}
EXPORT CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    return give(handle);
}
EXPORT CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    return module_load(module, image);
}
EXPORT CUresult cuModuleUnload(CUmodule module) {
    return module_unload(module);
}
EXPORT CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    return module_function(function, module, name);
}
EXPORT CUresult cuLaunchKernel(CUfunction f, unsigned int gx, unsigned int gy, unsigned int gz,
                               unsigned int bx, unsigned int by, unsigned int bz, unsigned int shared,
                               CUstream stream, void **parameters, void **extra) {
    return launch(f, gx, gy, gz, bx, by, bz, shared, stream, parameters, extra);
}
EXPORT CUresult cuLaunchKernel_ptsz(CUfunction f, unsigned int gx, unsigned int gy, unsigned int gz,
                                    unsigned int bx, unsigned int by, unsigned int bz, unsigned int shared,
                                    CUstream stream, void **parameters, void **extra) {
    return launch(f, gx, gy, gz, bx, by, bz, shared, stream, parameters, extra);
}
EXPORT CUresult cuStreamSynchronize(CUstream stream) {
    return of_stream(stream);
}
EXPORT CUresult cuStreamSynchronize_ptsz(CUstream stream) {
    return of_stream(stream);
}
EXPORT CUresult cuStreamQuery(CUstream stream) {
    return of_stream(stream);
}
EXPORT CUresult cuCtxSynchronize(void) {
    return of_stream(NULL);
}
EXPORT CUresult cuEventCreate(CUevent *event, unsigned int flags) {
    return event_create(event, flags);
}
EXPORT CUresult cuEventDestroy_v2(CUevent event) {
    return event_destroy(event);
}
EXPORT CUresult cuEventRecord(CUevent event, CUstream stream) {
    return event_record(event, stream);
}
EXPORT CUresult cuEventRecord_ptsz(CUevent event, CUstream stream) {
    return event_record(event, stream);
}
EXPORT CUresult cuEventQuery(CUevent event) {
    return event_query(event);
}
EXPORT CUresult cuEventElapsedTime(float *ms, CUevent start, CUevent end) {
    return event_elapsed(ms, start, end);
}

/* ---- by name and version ---- */

static CUresult proc_address(const char *symbol, void **address, int version, cuuint64_t flags);
static CUresult proc_address_v2(const char *symbol, void **address, int version, cuuint64_t flags,
                                CUdriverProcAddressQueryResult *status);

/* Behind the exported functions, so that no address is one of theirs. */
static const struct {
    const char *symbol;
    int since;
    void *address;
} procedures[] = {
    {"cuInit", 2000, (void *)init},
    {"cuDriverGetVersion", 2020, (void *)driver_version},
    {"cuDeviceGet", 2000, (void *)device_get},
    {"cuDeviceGetCount", 2000, (void *)device_count},
    {"cuDeviceGetUuid", 9020, (void *)device_uuid},
    {"cuDeviceTotalMem", 3020, (void *)device_total},
    {"cuDevicePrimaryCtxRetain", 7000, (void *)primary_retain},
    {"cuDevicePrimaryCtxRelease", 11000, (void *)primary_release},
    {"cuCtxSetCurrent", 4000, (void *)set_current},
    {"cuMemAlloc", 3020, (void *)mem_alloc},
    {"cuMemFree", 3020, (void *)mem_free},
    {"cuMemGetInfo", 3020, (void *)mem_info},
    {"cuMemCreate", 10020, (void *)mem_create},
    {"cuMemRelease", 10020, (void *)give},
    {"cuModuleLoadData", 2000, (void *)module_load},
    {"cuModuleGetFunction", 2000, (void *)module_function},
    {"cuLaunchKernel", 4000, (void *)launch},
    {"cuCtxSynchronize", 2000, (void *)cuCtxSynchronize},
    {"cuGetProcAddress", 11030, (void *)proc_address},
    {"cuGetProcAddress", 12000, (void *)proc_address_v2},
};

static CUdriverProcAddressQueryResult find(const char *symbol, void **address, int version) {
    CUdriverProcAddressQueryResult status = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    *address = NULL;
    for (size_t i = 0; i < sizeof procedures / sizeof *procedures; i++)
        if (strcmp(procedures[i].symbol, symbol) == 0) {
            if (procedures[i].since <= version)
                *address = procedures[i].address;
            status = *address ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT;
        }
    return status;
}

/* As NVIDIA's driver: the older function fails where the newer one succeeds and says so in the status. */
static CUresult proc_address(const char *symbol, void **address, int version, cuuint64_t flags) {
    (void)flags;
    return find(symbol, address, version) == CU_GET_PROC_ADDRESS_SUCCESS ? CUDA_SUCCESS
                                                                         : CUDA_ERROR_NOT_FOUND;
}

static CUresult proc_address_v2(const char *symbol, void **address, int version, cuuint64_t flags,
                                CUdriverProcAddressQueryResult *status) {
    (void)flags;
    CUdriverProcAddressQueryResult found = find(symbol, address, version);
    if (status)
        *status = found;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGetProcAddress(const char *symbol, void **address, int version, cuuint64_t flags) {
    return proc_address(symbol, address, version, flags);
}
EXPORT CUresult cuGetProcAddress_v2(const char *symbol, void **address, int version, cuuint64_t flags,
                                    CUdriverProcAddressQueryResult *status) {
    return proc_address_v2(symbol, address, version, flags, status);
}
