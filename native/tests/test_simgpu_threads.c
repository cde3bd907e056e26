/*
 * Threads that allocate, copy and free at once, in one context and in several, each by every kind of memory:
 * their data stays their own, and nothing is left behind.
 *
 * build: native/simgpu/machine.c native/simgpu/models.c native/simgpu/timeline.c
 * build: build/native/sim/libcuda.so.1
 */
#include "simgpu.h"

#include <pthread.h>

#define THREADS 8
#define ROUNDS 60
#define WORDS 5000

static void fill(CUdeviceptr at, unsigned int value, CUstream stream) {
    unsigned int words[WORDS];
    OK(cuMemsetD32Async(at, value, WORDS, stream));
    OK(cuMemcpyDtoHAsync_v2(words, at, sizeof words, stream));
    for (int i = 0; i < WORDS; i += 100)
        CHECK_EQUAL(words[i], value);
}

static void linear(unsigned int value, CUstream stream) {
    CUdeviceptr at;
    OK(cuMemAlloc_v2(&at, WORDS * 4 + value % 7 * MIB));
    fill(at, value, stream);
    OK(cuMemFree_v2(at));
}

static void pooled(unsigned int value, CUstream stream) {
    CUdeviceptr at;
    OK(cuMemAllocAsync(&at, WORDS * 4 + value % 5 * 7 * MIB, stream));
    fill(at, value, stream);
    OK(cuMemFreeAsync(at, stream));
}

static void mapped(unsigned int value, CUstream stream) {
    CUmemGenericAllocationHandle handle;
    CUmemAllocationProp wanted = {.type = CU_MEM_ALLOCATION_TYPE_PINNED};
    CUmemAccessDesc access = {.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    CUdeviceptr at;
    wanted.location.type = access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    OK(cuMemCreate(&handle, PAGE, &wanted, 0));
    OK(cuMemAddressReserve(&at, PAGE, 0, 0, 0));
    OK(cuMemMap(at, PAGE, 0, handle, 0));
    OK(cuMemRelease(handle));
    OK(cuMemSetAccess(at, PAGE, &access, 1));
    fill(at, value, stream);
    OK(cuMemUnmap(at, PAGE));
    OK(cuMemAddressFree(at, PAGE));
}

static void pinned(unsigned int value, CUstream stream) {
    void *host;
    CUdeviceptr at;
    OK(cuMemAllocHost_v2(&host, WORDS * 4));
    OK(cuMemAlloc_v2(&at, WORDS * 4));
    for (int i = 0; i < WORDS; i++)
        ((unsigned int *)host)[i] = value;
    OK(cuMemcpyHtoDAsync_v2(at, host, WORDS * 4, stream));
    OK(cuMemsetD8Async(at, 0, 4, stream));
    OK(cuMemcpyDtoHAsync_v2(host, at, WORDS * 4, stream));
    OK(cuStreamSynchronize(stream));
    CHECK_EQUAL(((unsigned int *)host)[0], 0);
    CHECK_EQUAL(((unsigned int *)host)[WORDS - 1], value);
    OK(cuMemFreeHost(host));
    OK(cuMemFree_v2(at));
}

static void arrays(unsigned int value, CUstream stream) {
    CUarray array;
    CUDA_ARRAY_DESCRIPTOR description = {WORDS, 0, CU_AD_FORMAT_UNSIGNED_INT32, 1};
    unsigned int words[WORDS];
    for (int i = 0; i < WORDS; i++)
        words[i] = value + (unsigned int)i;
    OK(cuArrayCreate_v2(&array, &description));
    OK(cuMemcpyHtoAAsync_v2(array, 0, words, sizeof words, stream));
    OK(cuMemcpyAtoHAsync_v2(words, array, 4, sizeof words - 4, stream));
    CHECK_EQUAL(words[10], value + 11);
    OK(cuArrayDestroy(array));
}

static void *work(void *data) {
    static void (*const kinds[])(unsigned int, CUstream) = {linear, pooled, mapped, pinned, arrays};
    CUcontext context = data, own = NULL;
    CUstream stream;
    if (context)
        OK(cuCtxSetCurrent(context));
    else
        OK(cuCtxCreate_v2(&own, 0, 0));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    for (unsigned int round = 0; round < ROUNDS; round++)
        kinds[round % 5](round * 2654435761U + (unsigned int)(uintptr_t)&stream, stream);
    OK(cuStreamDestroy_v2(stream));
    if (own)
        OK(cuCtxDestroy_v2(own));
    return NULL;
}

static void run(CUcontext shared) {
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        CHECK_EQUAL(pthread_create(&threads[i], NULL, work, shared), 0);
    for (int i = 0; i < THREADS; i++)
        CHECK_EQUAL(pthread_join(threads[i], NULL), 0);
}

PROMISE(threads_of_one_context_do_not_disturb_each_other) {
    CUcontext context = on_v100();
    run(context);
    OK(cuCtxSynchronize());
    CHECK_EQUAL(data_bytes(), 0);
}

PROMISE(contexts_come_and_go_beside_each_other) {
    fresh_machine("H200");
    OK(cuInit(0));
    run(NULL);
    CHECK_EQUAL(used_of(0), 0);
}

int main(int argc, char **argv) {
    return keep_promises(argc, argv);
}
