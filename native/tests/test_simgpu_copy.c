/*
 * Copies and memsets of the simulated driver carry data, between every two places, in stream order, and never
 * touch what they should not.
 *
 * build: native/simgpu/machine.c native/simgpu/models.c native/simgpu/timeline.c
 * build: build/native/sim/libcuda.so.1
 */
#include "simgpu.h"

#define BYTES 300000

static unsigned char first[BYTES], second[BYTES], third[BYTES];

static unsigned char *pattern(unsigned char *made, unsigned int seed) {
    for (size_t i = 0; i < BYTES; i++)
        made[i] = (unsigned char)(i * 31 + i / 251 + seed);
    return made;
}

static CUdeviceptr device(size_t bytes) {
    CUdeviceptr at;
    OK(cuMemAlloc_v2(&at, bytes));
    return at;
}

PROMISE(data_goes_there_and_back) {
    on_v100();
    unsigned char *one = pattern(first, 1), *back = third;
    CUdeviceptr a = device(BYTES), b = device(BYTES);
    OK(cuMemcpyHtoD_v2(a, one, BYTES));
    OK(cuMemcpyDtoD_v2(b, a, BYTES));
    OK(cuMemcpyDtoH_v2(back, b, BYTES));
    CHECK(memcmp(one, back, BYTES) == 0);
    memset(back, 0, BYTES);
    OK(cuMemcpy((uintptr_t)back, b + 7, 1000));
    CHECK(memcmp(one + 7, back, 1000) == 0);
    OK(cuMemFree_v2(a));
    OK(cuMemFree_v2(b));
}

PROMISE(a_pageable_source_may_be_changed_at_once) {
    on_v100();
    CUstream stream;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    unsigned char *one = pattern(first, 1), *same = pattern(second, 1), *back = third;
    CUdeviceptr at = device(BYTES);
    OK(cuMemcpyHtoDAsync_v2(at, one, 1000, stream));
    OK(cuMemcpyHtoDAsync_v2(at + 1000, one + 1000, BYTES - 1000, stream));
    memset(one, 0, BYTES);
    OK(cuMemcpyDtoHAsync_v2(back, at, BYTES, stream)); /* to pageable memory: waits */
    CHECK(memcmp(same, back, BYTES) == 0);
}

PROMISE(pinned_copies_happen_in_stream_order) {
    on_v100();
    CUstream stream;
    void *pinned;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemAllocHost_v2(&pinned, 64 * MIB));
    CUdeviceptr at = device(64 * MIB);
    memset(pinned, 5, 64 * MIB);
    OK(cuMemcpyHtoDAsync_v2(at, pinned, 64 * MIB, stream));
    OK(cuMemsetD8Async(at + 1, 6, 1, stream));
    OK(cuMemcpyDtoHAsync_v2(pinned, at, 64 * MIB, stream));
    OK(cuStreamSynchronize(stream));
    CHECK_EQUAL(((unsigned char *)pinned)[0], 5);
    CHECK_EQUAL(((unsigned char *)pinned)[1], 6);
    CHECK_EQUAL(((unsigned char *)pinned)[64 * MIB - 1], 5);
}

PROMISE(memory_that_was_freed_is_not_written) {
    on_v100();
    CUstream stream;
    void *pinned;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemAllocHost_v2(&pinned, 32 * MIB));
    CUdeviceptr at = device(32 * MIB);
    for (int i = 0; i < 20; i++)
        OK(cuMemcpyHtoDAsync_v2(at, pinned, 32 * MIB, stream));
    OK(cuMemFree_v2(at)); /* waits for the copies */
    OK(cuMemFreeHost(pinned));
    OK(cuCtxSynchronize());
    CHECK_EQUAL(data_bytes(), 0);
}

PROMISE(memsets_fill_their_elements_and_no_more) {
    on_v100();
    unsigned int words[100];
    unsigned char bytes[400];
    CUdeviceptr at = device(4096);
    OK(cuMemsetD8_v2(at, 0xaa, 400));
    OK(cuMemsetD16_v2(at + 2, 0x1234, 3));
    OK(cuMemsetD32_v2(at + 8, 0xdeadbeef, 2));
    OK(cuMemcpyDtoH_v2(words, at, 400));
    CHECK_EQUAL(words[0], 0x1234aaaa);
    CHECK_EQUAL(words[1], 0x12341234);
    CHECK_EQUAL(words[2], 0xdeadbeef);
    CHECK_EQUAL(words[3], 0xdeadbeef);
    CHECK_EQUAL(words[4], 0xaaaaaaaa);
    OK(cuMemsetD2D8_v2(at, 40, 0x11, 3, 10));
    OK(cuMemcpyDtoH_v2(bytes, at, 400));
    CHECK_EQUAL(bytes[42], 0x11);
    CHECK_EQUAL(bytes[43], 0xaa);
    CHECK_EQUAL(bytes[363], 0xaa);
    CHECK_EQUAL(bytes[360], 0x11);
    CHECK_EQUAL(cuMemsetD32_v2(at + 2, 0, 1), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuMemsetD8_v2(at, 0, 4097), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuMemsetD2D8_v2(at, 2, 0, 3, 10), CUDA_ERROR_INVALID_VALUE);
    OK(cuMemsetD8_v2(at, 0, 0));
}

PROMISE(zeros_over_a_whole_card_cost_the_host_nothing) {
    on_v100();
    const size_t bytes = 15 * GIB;
    char line[256];
    unsigned char one[3];
    CUdeviceptr at = device(bytes);
    OK(cuMemsetD8_v2(at + bytes - 1, 3, 1));
    OK(cuMemsetD8_v2(at + 1, 0, bytes - 1));
    OK(cuMemcpyDtoH_v2(one, at + bytes - 3, 3));
    CHECK_EQUAL(one[2], 0);
    long resident = 0;
    FILE *status = fopen("/proc/self/status", "r");
    CHECK(status);
    while (fgets(line, sizeof line, status))
        if (sscanf(line, "VmRSS: %ld", &resident) == 1)
            break;
    fclose(status);
    CHECK(resident > 0 && resident < 200 * 1024);
}

PROMISE(pitched_rectangles_are_copied_row_by_row) {
    on_v100();
    unsigned char *one = pattern(first, 1), back[30 * 20];
    CUdeviceptr at;
    size_t pitch;
    OK(cuMemAllocPitch_v2(&at, &pitch, 100, 50, 4));
    CUDA_MEMCPY2D to = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                        .srcHost = one,
                        .srcPitch = 100,
                        .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                        .dstDevice = at,
                        .dstPitch = pitch,
                        .WidthInBytes = 100,
                        .Height = 50};
    OK(cuMemcpy2D_v2(&to));
    CUDA_MEMCPY2D from = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                          .srcDevice = at,
                          .srcPitch = pitch,
                          .srcXInBytes = 10,
                          .srcY = 5,
                          .dstMemoryType = CU_MEMORYTYPE_HOST,
                          .dstHost = back,
                          .dstPitch = 30,
                          .WidthInBytes = 30,
                          .Height = 20};
    OK(cuMemcpy2D_v2(&from));
    for (int y = 0; y < 20; y++)
        CHECK(memcmp(back + y * 30, one + (size_t)(y + 5) * 100 + 10, 30) == 0);
    from.WidthInBytes = 31;
    CHECK_EQUAL(cuMemcpy2D_v2(&from), CUDA_ERROR_INVALID_VALUE);
}

PROMISE(boxes_go_through_arrays) {
    on_v100();
    enum { W = 20, H = 10, D = 6 };
    float source[D][H][W], back[2][3][4];
    CUarray array;
    CUDA_ARRAY3D_DESCRIPTOR description = {W, H, D, CU_AD_FORMAT_FLOAT, 1, 0};
    for (int i = 0; i < W * H * D; i++)
        ((float *)source)[i] = (float)i;
    OK(cuArray3DCreate_v2(&array, &description));
    CUDA_MEMCPY3D to = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                        .srcHost = source,
                        .srcPitch = W * 4,
                        .srcHeight = H,
                        .dstMemoryType = CU_MEMORYTYPE_ARRAY,
                        .dstArray = array,
                        .WidthInBytes = W * 4,
                        .Height = H,
                        .Depth = D};
    OK(cuMemcpy3D_v2(&to));
    CUDA_MEMCPY3D from = {.srcMemoryType = CU_MEMORYTYPE_ARRAY,
                          .srcArray = array,
                          .srcXInBytes = 5 * 4,
                          .srcY = 2,
                          .srcZ = 3,
                          .dstMemoryType = CU_MEMORYTYPE_HOST,
                          .dstHost = back,
                          .dstPitch = 16,
                          .dstHeight = 3,
                          .WidthInBytes = 16,
                          .Height = 3,
                          .Depth = 2};
    OK(cuMemcpy3D_v2(&from));
    for (int z = 0; z < 2; z++)
        for (int y = 0; y < 3; y++)
            CHECK(memcmp(back[z][y], &source[z + 3][y + 2][5], 16) == 0);
    from.Depth = 4;
    CHECK_EQUAL(cuMemcpy3D_v2(&from), CUDA_ERROR_INVALID_VALUE);
    CUarray line;
    CUDA_ARRAY_DESCRIPTOR flat = {100, 0, CU_AD_FORMAT_UNSIGNED_INT8, 1};
    unsigned char text[] = "through an array";
    OK(cuArrayCreate_v2(&line, &flat));
    OK(cuMemcpyHtoA_v2(line, 10, text, sizeof text));
    memset(text, 0, sizeof text);
    OK(cuMemcpyAtoH_v2(text, line, 10, sizeof text));
    CHECK(strcmp((char *)text, "through an array") == 0);
    CHECK_EQUAL(cuMemcpyHtoA_v2(line, 90, text, sizeof text), CUDA_ERROR_INVALID_VALUE);
}

PROMISE(what_is_not_the_cards_is_refused) {
    on_v100();
    unsigned char bytes[100];
    CUdeviceptr at = device(100);
    CHECK_EQUAL(cuMemcpyHtoD_v2(0, bytes, 1), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuMemcpyHtoD_v2(at, NULL, 1), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuMemcpyHtoD_v2(at, bytes, 101), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuMemcpyDtoH_v2(bytes, at + 100, 1), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuMemcpyHtoD_v2(at, bytes, SIZE_MAX), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuMemcpyDtoD_v2((uintptr_t)bytes, at, 1), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuMemcpyAtoH_v2(bytes, (CUarray)(uintptr_t)0x5678, 0, 1), CUDA_ERROR_INVALID_HANDLE);
    CHECK_EQUAL(cuMemcpyHtoDAsync_v2(at, bytes, 1, (CUstream)(uintptr_t)0x5678), CUDA_ERROR_INVALID_HANDLE);
    OK(cuMemcpyHtoD_v2(at, bytes, 0));
}

PROMISE(batches_copy_each_and_name_the_one_to_blame) {
    on_v100();
    CUstream stream;
    unsigned char *one = pattern(first, 1), back[20];
    CUdeviceptr at = device(1000);
    OK(cuStreamCreate(&stream, 0));
    OK(cuMemcpyHtoD_v2(at, one, 1000));
    CUdeviceptr to[] = {(uintptr_t)back, (uintptr_t)(back + 10)}, from[] = {at + 100, at + 300};
    size_t sizes[] = {10, 10}, start = 0, failed;
    CUmemcpyAttributes attributes = {.srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_STREAM};
    OK(cuMemcpyBatchAsync(to, from, sizes, 2, &attributes, &start, 1, &failed, stream));
    OK(cuStreamSynchronize(stream));
    CHECK(memcmp(back, one + 100, 10) == 0 && memcmp(back + 10, one + 300, 10) == 0);
    from[1] = at + 995;
    CHECK_EQUAL(cuMemcpyBatchAsync(to, from, sizes, 2, &attributes, &start, 1, &failed, stream),
                CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(failed, 1);
}

PROMISE(peers_copy_from_card_to_card) {
    CUcontext one, other;
    CUdeviceptr a, b;
    unsigned char back[100];
    fresh_machine("T4,A100-80GB");
    OK(cuInit(0));
    OK(cuCtxCreate_v2(&one, 0, 0));
    OK(cuMemAlloc_v2(&a, GIB));
    OK(cuMemsetD8_v2(a, 8, 100));
    uint64_t before = used_of(0);
    OK(cuCtxCreate_v2(&other, 0, 1));
    OK(cuMemAlloc_v2(&b, 3 * GIB));
    CHECK_EQUAL(used_of(0), before);
    CHECK_EQUAL(used_of(1), card_at(1)->model.context_bytes + 3 * GIB);
    OK(cuCtxEnablePeerAccess(one, 0));
    CHECK_EQUAL(cuCtxEnablePeerAccess(one, 0), CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED);
    OK(cuCtxSetCurrent(one));
    OK(cuMemcpyPeer(b, other, a, one, 100));
    OK(cuCtxSynchronize());
    OK(cuMemcpyDtoH_v2(back, b, 100));
    CHECK_EQUAL(back[99], 8);
    OK(cuMemFree_v2(b));
    CHECK_EQUAL(used_of(1), card_at(1)->model.context_bytes);
    CHECK_EQUAL(cuMemcpyPeer(b, other, a, (CUcontext)(uintptr_t)0x99, 100), CUDA_ERROR_INVALID_CONTEXT);
}

int main(int argc, char **argv) {
    return keep_promises(argc, argv);
}
