/* What clients that launch have in common: a kernel that takes a given time, four streams, and how calls
 * fail. */
#ifndef VCUDA_TESTS_LAUNCH_WORK_H
#define VCUDA_TESTS_LAUNCH_WORK_H

#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define US 1000
#define MS 1000000
#define SMALL 4, 1, 1, 32, 1, 1, 0 /* a few blocks: kernels of several streams run side by side */

/* Waits on the clock for its parameter's nanoseconds; on a real card as on a simulated one. */
static const char spin_ptx[] = ".version 6.0\n.target sm_50\n.address_size 64\n"
                               ".visible .entry spin(.param .u64 duration) {\n"
                               "  .reg .u64 %now, %end;\n  .reg .pred %more;\n"
                               "  ld.param.u64 %end, [duration];\n  mov.u64 %now, %globaltimer;\n"
                               "  add.u64 %end, %end, %now;\n"
                               "again:\n  mov.u64 %now, %globaltimer;\n  setp.lt.u64 %more, %now, %end;\n"
                               "  @%more bra again;\n  ret;\n}\n";

static CUdevice device;
static CUcontext context;
static CUfunction spin;
static CUstream streams[4];

static inline void must(CUresult result, const char *what) {
    const char *name = "unknown";
    if (result == CUDA_SUCCESS)
        return;
    cuGetErrorName(result, &name);
    fprintf(stderr, "%s: %s\n", what, name);
    exit(1);
}
#define MUST(call) must(call, #call)

static inline void launch_blocks(CUstream stream, unsigned int blocks, uint64_t ns) {
    void *parameters[] = {&ns};
    MUST(cuLaunchKernel(spin, blocks, 1, 1, 32, 1, 1, 0, stream, parameters, NULL));
}

static inline void in_threads(void *(*run)(void *), int count) {
    pthread_t threads[8];
    for (int i = 0; i < count; i++)
        if (pthread_create(&threads[i], NULL, run, NULL))
            exit(1);
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
}

static inline void set_up(void) {
    CUmodule module;
    MUST(cuInit(0));
    MUST(cuDeviceGet(&device, 0));
    MUST(cuDevicePrimaryCtxRetain(&context, device));
    MUST(cuCtxSetCurrent(context));
    MUST(cuModuleLoadData(&module, spin_ptx));
    MUST(cuModuleGetFunction(&spin, module, "spin"));
    for (int i = 0; i < 4; i++)
        MUST(cuStreamCreate(&streams[i], CU_STREAM_NON_BLOCKING));
}

#endif
