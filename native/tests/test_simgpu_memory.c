/*
 * Memory of the simulated card: what linear, pitched, managed and host memory cost, who may free it, and what
 * goes with a context.
 *
 * build: native/simgpu/machine.c native/simgpu/models.c native/simgpu/timeline.c
 * build: build/native/sim/libcuda.so.1
 */
#include "simgpu.h"

PROMISE(a_context_costs_what_the_model_says) {
    CUcontext context = on_v100();
    size_t free_bytes, total;
    CHECK_EQUAL(used_of(0), V100_CONTEXT);
    OK(cuMemGetInfo_v2(&free_bytes, &total));
    CHECK_EQUAL(total, V100_TOTAL - V100_RESERVED);
    CHECK_EQUAL(free_bytes, total - V100_CONTEXT);
    OK(cuCtxDestroy_v2(context));
    CHECK_EQUAL(used_of(0), 0);
    CHECK_EQUAL(cuMemGetInfo_v2(&free_bytes, &total), CUDA_ERROR_INVALID_CONTEXT);
}

PROMISE(small_allocations_share_a_page) {
    CUdeviceptr at[3000];
    on_v100();
    OK(cuMemAlloc_v2(&at[0], 1));
    CHECK_EQUAL(data_bytes(), PAGE);
    for (int i = 1; i < 3000; i++) {
        OK(cuMemAlloc_v2(&at[i], 513));
        CHECK_EQUAL(at[i] % 512, 0);
    }
    CHECK_EQUAL(data_bytes(), 2 * PAGE); /* 1 + 2999 * 2 units of 512, of 4096 a page */
    for (int i = 0; i < 3000; i++)
        OK(cuMemFree_v2(at[i]));
    CHECK_EQUAL(data_bytes(), 0);
}

PROMISE(large_allocations_have_whole_pages) {
    CUdeviceptr a, b, c;
    on_v100();
    OK(cuMemAlloc_v2(&a, MIB));
    OK(cuMemAlloc_v2(&b, MIB));
    CHECK_EQUAL(data_bytes(), PAGE);
    OK(cuMemAlloc_v2(&c, MIB + 1));
    CHECK_EQUAL(c % PAGE, 0);
    CHECK_EQUAL(data_bytes(), 2 * PAGE);
    OK(cuMemFree_v2(c));
    OK(cuMemAlloc_v2(&c, 5 * GIB + 1));
    CHECK_EQUAL(data_bytes(), PAGE + 5 * GIB + PAGE);
    OK(cuMemFree_v2(c));
}

PROMISE(the_card_is_given_out_to_the_last_page) {
    CUdeviceptr at, rest;
    size_t free_bytes, total;
    on_v100();
    OK(cuMemGetInfo_v2(&free_bytes, &total));
    CHECK_EQUAL(cuMemAlloc_v2(&at, free_bytes + 1), CUDA_ERROR_OUT_OF_MEMORY);
    OK(cuMemAlloc_v2(&at, free_bytes - PAGE));
    OK(cuMemAlloc_v2(&rest, MIB));
    CHECK_EQUAL(used_of(0), total);
    CUdeviceptr none;
    CHECK_EQUAL(cuMemAlloc_v2(&none, MIB + 1), CUDA_ERROR_OUT_OF_MEMORY);
    OK(cuMemAlloc_v2(&none, MIB)); /* there is still room on the page of the other */
    OK(cuMemGetInfo_v2(&free_bytes, &total));
    CHECK_EQUAL(free_bytes, 0);
    CHECK_EQUAL(cuMemAlloc_v2(&none, SIZE_MAX), CUDA_ERROR_OUT_OF_MEMORY);
}

PROMISE(wrong_arguments_are_answered_as_documented) {
    CUdeviceptr at = 0;
    size_t size;
    CUcontext context;
    fresh_machine("V100-SXM2-16GB");
    CHECK_EQUAL(cuMemAlloc_v2(&at, 1), CUDA_ERROR_NOT_INITIALIZED);
    CHECK_EQUAL(cuInit(1), CUDA_ERROR_INVALID_VALUE);
    OK(cuInit(0));
    CHECK_EQUAL(cuMemAlloc_v2(&at, 1), CUDA_ERROR_INVALID_CONTEXT);
    CHECK_EQUAL(cuCtxCreate_v2(&context, 0, 1), CUDA_ERROR_INVALID_DEVICE);
    CHECK_EQUAL(cuCtxCreate_v2(NULL, 0, 0), CUDA_ERROR_INVALID_VALUE);
    OK(cuCtxCreate_v2(&context, 0, 0));
    CHECK_EQUAL(cuMemAlloc_v2(NULL, 1), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuMemAlloc_v2(&at, 0), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuMemFree_v2(0), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuMemFree_v2(12345), CUDA_ERROR_INVALID_VALUE);
    OK(cuMemAlloc_v2(&at, 4096));
    CHECK_EQUAL(cuMemFree_v2(at + 512), CUDA_ERROR_INVALID_VALUE);
    OK(cuMemFree_v2(at));
    CHECK_EQUAL(cuMemFree_v2(at), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuMemAllocPitch_v2(&at, &size, 100, 10, 3), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuMemAllocManaged(&at, 100, 0), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuCtxDestroy_v2((CUcontext)(uintptr_t)0x1234), CUDA_ERROR_INVALID_CONTEXT);
    CHECK_EQUAL(cuCtxSetCurrent((CUcontext)(uintptr_t)0x1234), CUDA_ERROR_INVALID_CONTEXT);
}

PROMISE(pitch_is_a_multiple_of_512) {
    CUdeviceptr at;
    size_t pitch;
    on_v100();
    OK(cuMemAllocPitch_v2(&at, &pitch, 513, 5000, 4));
    CHECK_EQUAL(pitch, 1024);
    CHECK_EQUAL(data_bytes(), 3 * PAGE);
    OK(cuMemFree_v2(at));
    CHECK_EQUAL(cuMemAllocPitch_v2(&at, &pitch, (size_t)1 << 40, (size_t)1 << 40, 4),
                CUDA_ERROR_OUT_OF_MEMORY);
}

PROMISE(managed_memory_is_the_cards_and_the_hosts) {
    CUdeviceptr at;
    bool managed;
    on_v100();
    OK(cuMemAllocManaged(&at, 3 * MIB, CU_MEM_ATTACH_GLOBAL));
    CHECK_EQUAL(data_bytes(), 2 * PAGE);
    memset((void *)(uintptr_t)at, 7, 3 * MIB);
    OK(cuPointerGetAttribute(&managed, CU_POINTER_ATTRIBUTE_IS_MANAGED, at + MIB));
    CHECK(managed);
    OK(cuMemAdvise(at, MIB, CU_MEM_ADVISE_SET_PREFERRED_LOCATION, 0));
    int where;
    OK(cuMemRangeGetAttribute(&where, sizeof where, CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION, at, MIB));
    CHECK_EQUAL(where, 0);
    OK(cuMemPrefetchAsync(at, MIB, CU_DEVICE_CPU, NULL));
    OK(cuMemFree_v2(at));
    CHECK_EQUAL(data_bytes(), 0);
}

PROMISE(host_memory_costs_the_card_nothing) {
    void *at;
    CUdeviceptr on_device;
    unsigned int flags;
    static char own[10000];
    on_v100();
    OK(cuMemAllocHost_v2(&at, 100 * MIB));
    memset(at, 1, 100 * MIB);
    OK(cuMemHostGetDevicePointer_v2(&on_device, at, 0));
    CHECK_EQUAL(on_device, (uintptr_t)at);
    OK(cuMemFreeHost(at));
    CHECK_EQUAL(cuMemFreeHost(at), CUDA_ERROR_INVALID_VALUE);
    OK(cuMemHostAlloc(&at, 1, CU_MEMHOSTALLOC_PORTABLE));
    OK(cuMemHostGetFlags(&flags, at));
    CHECK_EQUAL(flags, CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP);
    OK(cuMemHostRegister_v2(own, sizeof own, 0));
    CHECK_EQUAL(cuMemHostRegister_v2(own + 100, 10, 0), CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
    OK(cuMemHostUnregister(own));
    CHECK_EQUAL(cuMemHostUnregister(own), CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
    CHECK_EQUAL(data_bytes(), 0);
}

PROMISE(a_context_takes_its_memory_along) {
    CUdeviceptr at;
    CUarray array;
    void *host;
    CUDA_ARRAY_DESCRIPTOR description = {1000, 1000, CU_AD_FORMAT_FLOAT, 4};
    CUcontext first = on_v100(), second;
    OK(cuCtxCreate_v2(&second, 0, 0));
    CHECK_EQUAL(used_of(0), 2 * V100_CONTEXT);
    OK(cuMemAlloc_v2(&at, GIB));
    OK(cuMemAlloc_v2(&at, 100));
    OK(cuArrayCreate_v2(&array, &description));
    OK(cuMemAllocHost_v2(&host, 100));
    OK(cuCtxDestroy_v2(second));
    CHECK_EQUAL(used_of(0), V100_CONTEXT);
    CUcontext current;
    OK(cuCtxGetCurrent(&current));
    CHECK(current == first);
    CHECK_EQUAL(cuMemFree_v2(at), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuArrayDestroy(array), CUDA_ERROR_INVALID_HANDLE);
}

PROMISE(a_primary_context_lives_from_first_retain_to_last_release) {
    CUcontext one, other;
    unsigned int flags;
    int active;
    size_t bytes;
    fresh_machine("V100-SXM2-16GB");
    OK(cuInit(0));
    OK(cuDevicePrimaryCtxGetState(0, &flags, &active));
    CHECK(!active);
    CHECK_EQUAL(cuDevicePrimaryCtxRelease_v2(0), CUDA_ERROR_INVALID_CONTEXT);
    OK(cuDevicePrimaryCtxRetain(&one, 0));
    OK(cuDevicePrimaryCtxRetain(&other, 0));
    CHECK(one == other);
    CHECK_EQUAL(used_of(0), V100_CONTEXT);
    OK(cuCtxSetCurrent(one));
    CHECK_EQUAL(cuCtxDestroy_v2(one), CUDA_ERROR_INVALID_CONTEXT);
    OK(cuDevicePrimaryCtxRelease_v2(0));
    CUdeviceptr at;
    OK(cuMemAlloc_v2(&at, 10 * MIB));
    OK(cuDevicePrimaryCtxRelease_v2(0));
    CHECK_EQUAL(used_of(0), 0);
    CHECK_EQUAL(cuMemGetInfo_v2(&bytes, &bytes), CUDA_ERROR_CONTEXT_IS_DESTROYED);
    OK(cuDevicePrimaryCtxRetain(&one, 0));
    OK(cuMemAlloc_v2(&at, 10 * MIB));
    OK(cuDevicePrimaryCtxReset_v2(0));
    CHECK_EQUAL(used_of(0), 0);
    OK(cuDevicePrimaryCtxGetState(0, &flags, &active));
    CHECK(!active);
}

PROMISE(attributes_of_pointers_tell_what_lies_there) {
    CUdeviceptr at, start;
    CUcontext context = on_v100(), found;
    unsigned int type;
    size_t bytes;
    int ordinal;
    OK(cuMemAlloc_v2(&at, 1000));
    OK(cuPointerGetAttribute(&found, CU_POINTER_ATTRIBUTE_CONTEXT, at + 5));
    CHECK(found == context);
    OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, at));
    CHECK_EQUAL(type, CU_MEMORYTYPE_DEVICE);
    OK(cuMemGetAddressRange_v2(&start, &bytes, at + 999));
    CHECK_EQUAL(start, at);
    CHECK_EQUAL(bytes, 1000);
    CHECK_EQUAL(cuMemGetAddressRange_v2(&start, &bytes, at + 1000), CUDA_ERROR_NOT_FOUND);
    CHECK_EQUAL(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, (uintptr_t)&at),
                CUDA_ERROR_INVALID_VALUE);
    CUpointer_attribute asked[] = {CU_POINTER_ATTRIBUTE_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL};
    void *answers[] = {&type, &ordinal};
    OK(cuPointerGetAttributes(2, asked, answers, (uintptr_t)&at));
    CHECK_EQUAL(type, 0);
    CHECK(ordinal == CU_DEVICE_INVALID);
}

PROMISE(arrays_cost_their_blocks) {
    CUarray a, b;
    CUmipmappedArray mipmap;
    on_v100();
    CUDA_ARRAY_DESCRIPTOR line = {100, 0, CU_AD_FORMAT_FLOAT, 1};
    OK(cuArrayCreate_v2(&a, &line));
    CHECK_EQUAL(data_bytes(), PAGE);
    CUDA_ARRAY_DESCRIPTOR image = {1024, 512, CU_AD_FORMAT_UNSIGNED_INT8, 4}; /* a page to the byte */
    OK(cuArrayCreate_v2(&b, &image));
    CHECK_EQUAL(data_bytes(), 2 * PAGE);
    OK(cuArrayDestroy(b));
    image.Height = 511; /* rows in eights: the same */
    OK(cuArrayCreate_v2(&b, &image));
    CHECK_EQUAL(data_bytes(), 2 * PAGE);
    OK(cuArrayDestroy(b));
    image.Height = 504; /* below a page: together with the line still one */
    OK(cuArrayCreate_v2(&b, &image));
    CHECK_EQUAL(data_bytes(), PAGE);
    OK(cuArrayDestroy(b));
    OK(cuArrayDestroy(a));
    CUDA_ARRAY3D_DESCRIPTOR cube = {256, 256, 256, CU_AD_FORMAT_HALF, 4, 0};
    OK(cuMipmappedArrayCreate(&mipmap, &cube, 2));
    CHECK_EQUAL(data_bytes(), (128 + 16) * MIB);
    OK(cuMipmappedArrayGetLevel(&a, mipmap, 1));
    CUDA_ARRAY3D_DESCRIPTOR level;
    OK(cuArray3DGetDescriptor_v2(&level, a));
    CHECK_EQUAL(level.Width, 128);
    CHECK_EQUAL(level.Depth, 128);
    CHECK_EQUAL(cuMipmappedArrayGetLevel(&a, mipmap, 2), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuArrayDestroy(a), CUDA_ERROR_INVALID_HANDLE);
    OK(cuMipmappedArrayDestroy(mipmap));
    CHECK_EQUAL(data_bytes(), 0);
}

int main(int argc, char **argv) {
    return keep_promises(argc, argv);
}
