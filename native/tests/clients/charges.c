/*
 * One scenario for each way to take memory of a card: `charges SCENARIO`.
 *
 * After each step it prints the step's name and waits for a line on standard input, so that whoever started
 * it can compare what the driver and the ledger say. It knows nothing of either: a plain client of the driver
 * API.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"

#define MIB ((size_t)1 << 20)

static const char ptx[] = ".version 6.0\n.target sm_50\n.address_size 64\n"
                          ".visible .global .align 8 .b8 table[4096];\n"
                          ".visible .entry nothing() {\n  ret;\n}\n";

static CUdevice device;
static CUcontext context;

static void linear(void) {
    CUdeviceptr a, b, c, d;
    MUST(cuMemAlloc(&a, MIB / 2));
    MUST(cuMemAlloc(&b, MIB / 2));
    step("two small ones in one page");
    MUST(cuMemAlloc(&c, 3 * MIB));
    step("three MiB in two pages");
    MUST(cuMemAlloc(&d, 8 * MIB));
    step("eight MiB in four pages");
    MUST(cuMemFree(a));
    step("one small one freed");
    MUST(cuMemFree(b));
    step("the other one too");
    MUST(cuMemFree(d));
    MUST(cuMemFree(c));
    step("all freed");
}

static void pitch(void) {
    CUdeviceptr a;
    size_t stride;
    MUST(cuMemAllocPitch(&a, &stride, 1000, 5000, 4));
    step("1000 bytes by 5000 rows");
    MUST(cuMemFree(a));
    step("freed");
}

static void managed(void) {
    CUdeviceptr a;
    MUST(cuMemAllocManaged(&a, 10 * MIB, CU_MEM_ATTACH_GLOBAL));
    step("ten MiB");
    MUST(cuMemFree(a));
    step("freed");
}

static CUarray array_of(size_t width, size_t height, size_t depth) {
    CUarray made;
    CUDA_ARRAY3D_DESCRIPTOR description = {
        .Width = width, .Height = height, .Depth = depth, .Format = CU_AD_FORMAT_FLOAT, .NumChannels = 4};
    MUST(cuArray3DCreate(&made, &description));
    return made;
}

static void array(void) {
    CUDA_ARRAY_DESCRIPTOR flat = {
        .Width = 64, .Height = 64, .Format = CU_AD_FORMAT_UNSIGNED_INT8, .NumChannels = 1};
    CUarray small, other, big;
    MUST(cuArrayCreate(&small, &flat));
    other = array_of(16, 16, 0);
    step("two small ones in one page");
    big = array_of(256, 256, 4);
    step("four MiB in two pages");
    MUST(cuArrayDestroy(small));
    MUST(cuArrayDestroy(big));
    MUST(cuArrayDestroy(other));
    step("destroyed");
}

static void mipmap(void) {
    CUmipmappedArray made;
    CUDA_ARRAY3D_DESCRIPTOR description = {
        .Width = 1024, .Height = 1024, .Format = CU_AD_FORMAT_FLOAT, .NumChannels = 1};
    MUST(cuMipmappedArrayCreate(&made, &description, 11));
    step("1024 x 1024 with all its levels");
    MUST(cuMipmappedArrayDestroy(made));
    step("destroyed");
}

static CUmemGenericAllocationHandle physical(size_t bytes, CUmemLocationType type) {
    CUmemGenericAllocationHandle handle;
    CUmemAllocationProp wanted = {.type = CU_MEM_ALLOCATION_TYPE_PINNED, .location = {.type = type, .id = 0}};
    if (type == CU_MEM_LOCATION_TYPE_DEVICE)
        wanted.location.id = device;
    MUST(cuMemCreate(&handle, bytes, &wanted, 0));
    return handle;
}

static CUdeviceptr mapped(CUmemGenericAllocationHandle handle, size_t bytes) {
    CUdeviceptr address;
    CUmemAccessDesc access = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device},
                              .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    MUST(cuMemAddressReserve(&address, bytes, 0, 0, 0));
    MUST(cuMemMap(address, bytes, 0, handle, 0));
    MUST(cuMemSetAccess(address, bytes, &access, 1));
    return address;
}

static void unmapped(CUdeviceptr address, size_t bytes) {
    MUST(cuMemUnmap(address, bytes));
    MUST(cuMemAddressFree(address, bytes));
}

static void vmm(void) {
    CUmemGenericAllocationHandle handle = physical(4 * MIB, CU_MEM_LOCATION_TYPE_DEVICE), again;
    step("created");
    CUdeviceptr address = mapped(handle, 4 * MIB);
    step("mapped");
    MUST(cuMemRelease(handle));
    step("released while mapped");
    unmapped(address, 4 * MIB);
    step("unmapped");

    handle = physical(4 * MIB, CU_MEM_LOCATION_TYPE_DEVICE);
    address = mapped(handle, 4 * MIB);
    unmapped(address, 4 * MIB);
    step("unmapped before it is released");
    MUST(cuMemRelease(handle));
    step("released");

    handle = physical(4 * MIB, CU_MEM_LOCATION_TYPE_DEVICE);
    address = mapped(handle, 4 * MIB);
    CUdeviceptr other = mapped(handle, 4 * MIB);
    MUST(cuMemRetainAllocationHandle(&again, (void *)(uintptr_t)address));
    MUST(cuMemRelease(handle));
    unmapped(address, 4 * MIB);
    step("mapped twice, retained; one of each gone");
    unmapped(other, 4 * MIB);
    step("retained still");
    MUST(cuMemRelease(again));
    step("the last reference gone");

    address = 0;
    MUST(cuMemAddressReserve(&address, 64 * MIB, 0, 0, 0));
    step("addresses alone");
    for (size_t at = 0; at < 4; at++) {
        handle = physical(2 * MIB, CU_MEM_LOCATION_TYPE_DEVICE);
        MUST(cuMemMap(address + at * 2 * MIB, 2 * MIB, 0, handle, 0));
        MUST(cuMemRelease(handle));
    }
    step("four side by side");
    MUST(cuMemUnmap(address, 8 * MIB));
    MUST(cuMemAddressFree(address, 64 * MIB));
    step("unmapped by one call");
}

static void pool(void) {
    CUdeviceptr a, b;
    CUmemoryPool own, standard;
    CUstream stream;
    cuuint64_t keep = 256 * MIB;
    CUmemPoolProps properties = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                                 .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device}};
    MUST(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    step("before");
    MUST(cuMemAllocAsync(&a, MIB, stream));
    step("the default pool has grown");
    MUST(cuMemAllocAsync(&b, 40 * MIB, stream));
    step("and again");
    MUST(cuMemFreeAsync(a, stream));
    MUST(cuMemFreeAsync(b, stream));
    MUST(cuStreamSynchronize(stream));
    step("freed, and trimmed at the synchronisation");

    MUST(cuDeviceGetDefaultMemPool(&standard, device));
    MUST(cuMemPoolSetAttribute(standard, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &keep));
    MUST(cuMemAllocAsync(&a, 8 * MIB, stream));
    MUST(cuMemFreeAsync(a, stream));
    MUST(cuStreamSynchronize(stream));
    step("freed, and kept below the threshold");
    MUST(cuMemPoolTrimTo(standard, 0));
    step("trimmed by hand");

    MUST(cuMemPoolCreate(&own, &properties));
    MUST(cuMemAllocFromPoolAsync(&a, 8 * MIB, own, stream));
    step("a pool of one's own");
    MUST(cuMemPoolDestroy(own));
    step("destroyed with an allocation alive");
    MUST(cuMemFreeAsync(a, stream));
    MUST(cuStreamSynchronize(stream));
    step("which is then freed");
    MUST(cuStreamDestroy(stream));
}

static void graph(void) {
    CUgraph made;
    CUgraphExec executable;
    CUgraphNode allocation, end;
    CUstream stream;
    CUDA_MEM_ALLOC_NODE_PARAMS wanted = {
        .poolProps = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                      .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device}},
        .bytesize = 6 * MIB};
    MUST(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    MUST(cuGraphCreate(&made, 0));
    MUST(cuGraphAddMemAllocNode(&allocation, made, NULL, 0, &wanted));
    MUST(cuGraphAddMemFreeNode(&end, made, &allocation, 1, wanted.dptr));
    MUST(cuGraphInstantiateWithFlags(&executable, made, 0));
    MUST(cuGraphLaunch(executable, stream));
    MUST(cuStreamSynchronize(stream));
    step("launched");
    MUST(cuGraphLaunch(executable, stream));
    MUST(cuStreamSynchronize(stream));
    step("launched again");
    MUST(cuGraphExecDestroy(executable));
    MUST(cuGraphDestroy(made));
    MUST(cuDeviceGraphMemTrim(device));
    step("destroyed and trimmed");
    MUST(cuStreamDestroy(stream));
}

static void capture(void) {
    CUgraph made;
    CUgraphExec executable;
    CUdeviceptr a;
    CUstream stream;
    MUST(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    MUST(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    MUST(cuMemAllocAsync(&a, 6 * MIB, stream));
    MUST(cuMemFreeAsync(a, stream));
    MUST(cuStreamEndCapture(stream, &made));
    step("captured");
    MUST(cuGraphInstantiateWithFlags(&executable, made, 0));
    MUST(cuGraphLaunch(executable, stream));
    MUST(cuStreamSynchronize(stream));
    step("launched");
    MUST(cuGraphExecDestroy(executable));
    MUST(cuGraphDestroy(made));
    MUST(cuDeviceGraphMemTrim(device));
    step("destroyed and trimmed");
    MUST(cuStreamDestroy(stream));
}

static void contexts(void) {
    CUcontext second;
    CUdeviceptr a;
    MUST(cuCtxCreate(&second, NULL, 0, device));
    step("a second context");
    MUST(cuMemAlloc(&a, 4 * MIB));
    step("with memory in it");
    MUST(cuCtxDestroy(second));
    step("destroyed, and its memory with it");
    MUST(cuCtxSetCurrent(context));
    MUST(cuMemAlloc(&a, 4 * MIB));
    MUST(cuDevicePrimaryCtxReset(device));
    step("the primary one reset");
}

static void module(void) {
    CUmodule one, two;
    MUST(cuModuleLoadData(&one, ptx));
    step("a module");
    MUST(cuModuleLoadData(&two, ptx));
    step("a second one in the same page");
    MUST(cuModuleUnload(one));
    step("one unloaded");
    MUST(cuModuleUnload(two));
    step("both unloaded");
}

static void host(void) {
    void *a, *b, *c = aligned_alloc(4096, 4 * MIB);
    CUdeviceptr seen;
    MUST(cuMemAllocHost(&a, 4 * MIB));
    MUST(cuMemHostAlloc(&b, 4 * MIB, CU_MEMHOSTALLOC_DEVICEMAP));
    MUST(cuMemHostRegister(c, 4 * MIB, CU_MEMHOSTREGISTER_DEVICEMAP));
    MUST(cuMemHostGetDevicePointer(&seen, b, 0));
    CUmemGenericAllocationHandle handle = physical(2 * MIB, CU_MEM_LOCATION_TYPE_HOST);
    step("pinned, registered, and created on the host");
    MUST(cuMemRelease(handle));
    MUST(cuMemHostUnregister(c));
    MUST(cuMemFreeHost(b));
    MUST(cuMemFreeHost(a));
    free(c);
    step("freed");
}

static const struct {
    const char *name;
    void (*run)(void);
} scenarios[] = {{"linear", linear},   {"pitch", pitch},       {"managed", managed}, {"array", array},
                 {"mipmap", mipmap},   {"vmm", vmm},           {"pool", pool},       {"graph", graph},
                 {"capture", capture}, {"contexts", contexts}, {"module", module},   {"host", host}};

int main(int argc, char **argv) {
    MUST(cuInit(0));
    MUST(cuDeviceGet(&device, 0));
    MUST(cuDevicePrimaryCtxRetain(&context, device));
    MUST(cuCtxSetCurrent(context));
    step("context");
    for (size_t i = 0; argc > 1 && i < sizeof scenarios / sizeof scenarios[0]; i++)
        if (!strcmp(scenarios[i].name, argv[1])) {
            scenarios[i].run();
            return 0;
        }
    fprintf(stderr, "charges: name a scenario\n");
    return 2;
}
