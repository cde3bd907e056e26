/*
 * A driver whose calls return at once: what a call costs with the shim in front of this, and what it costs
 * without, differ by what the shim adds. It answers what the shim asks: one device, distinct addresses, and
 * events on a clock that each launch moves on by LAUNCH_NS, so that metering does in full what it does on a
 * card.
 */
#ifndef __CUDA_API_VERSION_INTERNAL
#define __CUDA_API_VERSION_INTERNAL
#endif
#include <cuda.h>
#include <stdint.h>
#include <string.h>

#define LAUNCH_NS 2000
#define TOTAL ((size_t)16 << 30)
#define PAGE ((CUdeviceptr)2 << 20)
#define PAGES 4096 /* each thread's addresses come round after so many */

/* The fields that are written are each on a line of its own. */
static struct {
    _Alignas(128) uint64_t gpu_ns;
    _Alignas(128) uint64_t threads;
} state;

static __thread struct {
    uint64_t base, next;
} mine;
static __thread CUcontext current;

static char context, function, streams[64], events[4096];
static uint64_t event_ns[4096];
static uint32_t event_count, stream_count;

CUresult cuInit(unsigned int Flags) {
    (void)Flags;
    return CUDA_SUCCESS;
}
CUresult cuDriverGetVersion(int *driverVersion) {
    *driverVersion = 13000;
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetCount(int *count) {
    *count = 1;
    return CUDA_SUCCESS;
}
CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
/* 00000000-0000-0000-0000-000000000001 */
CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice dev) {
    (void)dev;
    memset(uuid->bytes, 0, sizeof uuid->bytes);
    uuid->bytes[15] = 1;
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice dev) {
    return cuDeviceGetUuid(uuid, dev);
}

/* ---- contexts ---- */

CUresult cuCtxCreate_v2(CUcontext *pctx, unsigned int flags, CUdevice dev) {
    (void)flags;
    (void)dev;
    *pctx = current = (CUcontext)&context;
    return CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext ctx) {
    current = ctx;
    return CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext *pctx) {
    *pctx = current;
    return CUDA_SUCCESS;
}
CUresult cuCtxGetDevice(CUdevice *device) {
    *device = 0;
    return current ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}
CUresult cuCtxGetId(CUcontext ctx, unsigned long long *ctxId) {
    (void)ctx;
    *ctxId = 1;
    return CUDA_SUCCESS;
}
CUresult cuCtxSynchronize(void) {
    return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxGetState(CUdevice dev, unsigned int *flags, int *active) {
    (void)dev;
    *flags = 0;
    *active = 0;
    return CUDA_SUCCESS;
}

/* ---- memory ---- */

CUresult cuMemAlloc_v2(CUdeviceptr *dptr, size_t bytesize) {
    (void)bytesize;
    if (!mine.base)
        mine.base =
            ((uint64_t)1 << 40) + __atomic_fetch_add(&state.threads, 1, __ATOMIC_RELAXED) * PAGES * PAGE;
    *dptr = mine.base + mine.next++ % PAGES * PAGE;
    return CUDA_SUCCESS;
}
CUresult cuMemFree_v2(CUdeviceptr dptr) {
    (void)dptr;
    return CUDA_SUCCESS;
}
CUresult cuMemGetInfo_v2(size_t *free, size_t *total) {
    *free = *total = TOTAL;
    return CUDA_SUCCESS;
}

/* ---- streams, events, launches ---- */

CUresult cuStreamCreate(CUstream *phStream, unsigned int Flags) {
    (void)Flags;
    *phStream = (CUstream)&streams[stream_count++ % sizeof streams];
    return CUDA_SUCCESS;
}
CUresult cuStreamGetCtx(CUstream hStream, CUcontext *pctx) {
    (void)hStream;
    *pctx = (CUcontext)&context;
    return CUDA_SUCCESS;
}
CUresult cuStreamIsCapturing(CUstream hStream, CUstreamCaptureStatus *captureStatus) {
    (void)hStream;
    *captureStatus = CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
}
CUresult cuStreamSynchronize(CUstream hStream) {
    (void)hStream;
    return CUDA_SUCCESS;
}
CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode) {
    static __thread CUstreamCaptureMode mine_is;
    CUstreamCaptureMode old = mine_is;
    mine_is = *mode;
    *mode = old;
    return CUDA_SUCCESS;
}

CUresult cuEventCreate(CUevent *phEvent, unsigned int Flags) {
    (void)Flags;
    *phEvent = (CUevent)&events[event_count++ % sizeof events];
    return CUDA_SUCCESS;
}
CUresult cuEventRecord(CUevent hEvent, CUstream hStream) {
    (void)hStream;
    event_ns[(char *)hEvent - events] = __atomic_load_n(&state.gpu_ns, __ATOMIC_RELAXED);
    return CUDA_SUCCESS;
}
CUresult cuEventQuery(CUevent hEvent) {
    (void)hEvent;
    return CUDA_SUCCESS;
}
CUresult cuEventElapsedTime_v2(float *pMilliseconds, CUevent hStart, CUevent hEnd) {
    *pMilliseconds =
        (float)((double)(int64_t)(event_ns[(char *)hEnd - events] - event_ns[(char *)hStart - events]) / 1e6);
    return CUDA_SUCCESS;
}
CUresult cuEventElapsedTime(float *pMilliseconds, CUevent hStart, CUevent hEnd) {
    return cuEventElapsedTime_v2(pMilliseconds, hStart, hEnd);
}

static void launch(void) {
    __atomic_store_n(&state.gpu_ns, __atomic_load_n(&state.gpu_ns, __ATOMIC_RELAXED) + LAUNCH_NS,
                     __ATOMIC_RELAXED);
}
CUresult cuModuleGetFunction(CUfunction *hfunc, CUmodule hmod, const char *name) {
    (void)hmod;
    (void)name;
    *hfunc = (CUfunction)&function;
    return CUDA_SUCCESS;
}
CUresult cuLaunchKernel(CUfunction f, unsigned int gridDimX, unsigned int gridDimY, unsigned int gridDimZ,
                        unsigned int blockDimX, unsigned int blockDimY, unsigned int blockDimZ,
                        unsigned int sharedMemBytes, CUstream hStream, void **kernelParams, void **extra) {
    (void)f, (void)gridDimX, (void)gridDimY, (void)gridDimZ, (void)blockDimX, (void)blockDimY,
        (void)blockDimZ;
    (void)sharedMemBytes, (void)hStream, (void)kernelParams, (void)extra;
    launch();
    return CUDA_SUCCESS;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction f, void **kernelParams, void **extra) {
    (void)config, (void)f, (void)kernelParams, (void)extra;
    launch();
    return CUDA_SUCCESS;
}
CUresult cuGraphLaunch(CUgraphExec hGraphExec, CUstream hStream) {
    (void)hGraphExec, (void)hStream;
    launch();
    return CUDA_SUCCESS;
}
