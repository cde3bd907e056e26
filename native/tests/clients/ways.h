/* What every way in has to stand: a program that allocates, asks, launches. It says in one line what it was
 * told. */
#ifndef WAYS_H
#define WAYS_H

#ifndef __CUDA_API_VERSION_INTERNAL
#define __CUDA_API_VERSION_INTERNAL
#endif
#include <cuda.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

/* clang-format off */
#define FUNCTIONS(F)                                                                     \
    F(cuInit) F(cuDeviceGet) F(cuDevicePrimaryCtxRetain) F(cuCtxSetCurrent)              \
    F(cuMemGetInfo_v2) F(cuDeviceTotalMem_v2) F(cuMemAlloc_v2) F(cuMemFree_v2)           \
    F(cuMemCreate) F(cuMemRelease) F(cuModuleLoadData) F(cuModuleGetFunction)            \
    F(cuLaunchKernel) F(cuCtxSynchronize)
/* clang-format on */

struct api {
#define MEMBER(name) __typeof__(name) *name;
    FUNCTIONS(MEMBER)
#undef MEMBER
};

#define LAUNCHES 3
#define MIB ((size_t)1 << 20)

static const char kernel[] =
    ".version 6.0\n.target sm_50\n.address_size 64\n.visible .entry idle()\n{\n\tret;\n}\n";

/* From a thread that has no context: the device is in the arguments. */
struct creation {
    const struct api *api;
    size_t bytes;
    CUresult result;
};

static void *create(void *data) {
    struct creation *creation = data;
    CUmemGenericAllocationHandle handle;
    CUmemAllocationProp properties = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                      .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = 0}};
    creation->result = creation->api->cuMemCreate(&handle, creation->bytes, &properties, 0);
    if (creation->result == CUDA_SUCCESS)
        creation->result = creation->api->cuMemRelease(handle);
    return NULL;
}

static CUresult create_in_thread(const struct api *api, size_t bytes) {
    struct creation creation = {api, bytes, CUDA_ERROR_UNKNOWN};
    pthread_t thread;
    if (pthread_create(&thread, NULL, create, &creation) == 0)
        pthread_join(thread, NULL);
    return creation.result;
}

__attribute__((unused)) static int scenario(const struct api *api, size_t share_bytes) {
    CUdevice device = -1;
    CUcontext context = NULL;
    CUmodule module;
    CUfunction function;
    CUdeviceptr half = 0, rest = 0;
    size_t free = 0, total = 0, card = 0;
    int launched = 0;
    CUresult start = api->cuInit(0);
    start = start ? start : api->cuDeviceGet(&device, 0);
    start = start ? start : api->cuDevicePrimaryCtxRetain(&context, device);
    start = start ? start : api->cuCtxSetCurrent(context);
    start = start ? start : api->cuModuleLoadData(&module, kernel);
    start = start ? start : api->cuModuleGetFunction(&function, module, "idle");
    if (start) {
        printf("{\"start\": %d}\n", start);
        return 1;
    }
    api->cuDeviceTotalMem_v2(&card, device);
    api->cuMemGetInfo_v2(&free, &total);
    CUresult within = api->cuMemAlloc_v2(&half, share_bytes / 2);
    CUresult beyond = api->cuMemAlloc_v2(&rest, share_bytes);
    if (beyond == CUDA_SUCCESS)
        api->cuMemFree_v2(rest);
    CUresult thread_within = create_in_thread(api, 2 * MIB);
    CUresult thread_beyond = create_in_thread(api, share_bytes);
    CUresult freed = api->cuMemFree_v2(half);
    for (int i = 0; i < LAUNCHES; i++)
        launched += api->cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL) == CUDA_SUCCESS;
    CUresult synchronised = api->cuCtxSynchronize();
    int (*second)(void) = (int (*)(void))dlsym(RTLD_DEFAULT, "second_preload_calls");
    printf("{\"start\": 0, \"card\": %zu, \"total\": %zu, \"within\": %d, \"beyond\": %d, \"thread_within\": "
           "%d, "
           "\"thread_beyond\": %d, \"freed\": %d, \"launched\": %d, \"synchronised\": %d, \"second\": %d}\n",
           card, total, within, beyond, thread_within, thread_beyond, freed, launched, synchronised,
           second ? second() : -1);
    return 0;
}

/* The object and the symbol that an address belongs to, as "libcuda.so.1 cuMemAlloc_v2". */
__attribute__((unused)) static void print_place(const void *address) {
    Dl_info info = {0};
    if (!address) {
        puts("nowhere");
        return;
    }
    dladdr(address, &info);
    const char *file = info.dli_fname ? info.dli_fname : "?";
    for (const char *at = file; *at; at++)
        file = *at == '/' ? at + 1 : file;
    printf("%s %s\n", file, info.dli_sname && info.dli_saddr == address ? info.dli_sname : "-");
}

#endif
