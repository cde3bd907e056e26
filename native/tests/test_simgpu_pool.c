/*
 * Stream-ordered memory of the simulated driver: pools grow by chunks, are trimmed when work is waited for,
 * and reuse what a stream has freed.
 *
 * build: native/simgpu/machine.c native/simgpu/models.c native/simgpu/timeline.c
 * build: build/native/sim/libcuda.so.1
 */
#include "simgpu.h"

#define CHUNK (32 * MIB)

static uint64_t attribute(CUmemoryPool pool, CUmemPool_attribute which) {
    uint64_t value;
    OK(cuMemPoolGetAttribute(pool, which, &value));
    return value;
}

static void set_threshold(CUmemoryPool pool, uint64_t bytes) {
    OK(cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &bytes));
}

static CUmemoryPool default_pool(void) {
    CUmemoryPool pool;
    OK(cuDeviceGetDefaultMemPool(&pool, 0));
    return pool;
}

static CUmemoryPool explicit_pool(void) {
    CUmemoryPool pool;
    CUmemPoolProps wanted = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED};
    wanted.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    OK(cuMemPoolCreate(&pool, &wanted));
    return pool;
}

PROMISE(a_pool_grows_by_chunks_and_is_trimmed_at_synchronisation) {
    on_v100();
    CUstream stream;
    CUdeviceptr at, more, large;
    CUmemoryPool pool = default_pool();
    OK(cuStreamCreate(&stream, 0));
    OK(cuMemAllocAsync(&at, 1000, stream));
    CHECK_EQUAL(data_bytes(), CHUNK);
    OK(cuMemAllocAsync(&more, 20 * MIB, stream));
    CHECK_EQUAL(data_bytes(), CHUNK);
    OK(cuMemAllocAsync(&large, 33 * MIB, stream));
    CHECK_EQUAL(data_bytes(), 3 * CHUNK);
    CHECK_EQUAL(attribute(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT), 3 * CHUNK);
    CHECK_EQUAL(attribute(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT), 1024 + 53 * MIB);
    OK(cuMemFreeAsync(large, stream));
    OK(cuMemFreeAsync(at, stream));
    CHECK_EQUAL(data_bytes(), 3 * CHUNK);
    OK(cuStreamSynchronize(stream));
    CHECK_EQUAL(data_bytes(), CHUNK);
    CHECK_EQUAL(attribute(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT), 20 * MIB);
    CHECK_EQUAL(cuMemFreeAsync(at, stream), CUDA_ERROR_INVALID_VALUE);
    OK(cuMemFree_v2(more)); /* cuMemFree takes it, too */
    OK(cuCtxSynchronize());
    CHECK_EQUAL(data_bytes(), 0);
    CHECK_EQUAL(attribute(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH), 3 * CHUNK);
    uint64_t zero = 0;
    OK(cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH, &zero));
    CHECK_EQUAL(attribute(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH), 0);
}

PROMISE(a_threshold_keeps_memory_and_trimming_gives_it_back) {
    on_v100();
    CUdeviceptr at;
    CUmemoryPool pool = explicit_pool();
    set_threshold(pool, UINT64_MAX);
    OK(cuMemAllocFromPoolAsync(&at, 100 * MIB, pool, NULL));
    OK(cuMemsetD8Async(at, 7, 100 * MIB, NULL));
    OK(cuMemFreeAsync(at, NULL));
    OK(cuCtxSynchronize());
    CHECK_EQUAL(data_bytes(), 4 * CHUNK);
    OK(cuMemPoolTrimTo(pool, 1));
    CHECK_EQUAL(data_bytes(), 4 * CHUNK); /* one chunk: all or nothing */
    OK(cuMemPoolTrimTo(pool, 0));
    CHECK_EQUAL(data_bytes(), 0);
    OK(cuMemPoolDestroy(pool));
    CHECK_EQUAL(cuMemPoolDestroy(pool), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuMemPoolDestroy(default_pool()), CUDA_ERROR_INVALID_VALUE);
}

PROMISE(a_stream_reuses_what_it_has_freed) {
    on_v100();
    CUstream stream;
    CUdeviceptr first, next;
    OK(cuStreamCreate(&stream, 0));
    for (int i = 0; i < 100; i++) {
        OK(cuMemAllocAsync(&first, 20 * MIB, stream));
        OK(cuMemAllocAsync(&next, 12 * MIB, stream));
        OK(cuMemFreeAsync(first, stream));
        OK(cuMemFreeAsync(next, stream));
    }
    CHECK_EQUAL(attribute(default_pool(), CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH), CHUNK);
    OK(cuStreamSynchronize(stream));
    CHECK_EQUAL(attribute(default_pool(), CU_MEMPOOL_ATTR_USED_MEM_CURRENT), 0);
    CHECK_EQUAL(data_bytes(), 0);
}

PROMISE(a_destroyed_pool_lives_until_its_last_allocation) {
    on_v100();
    CUdeviceptr at;
    CUmemoryPool pool = explicit_pool(), found;
    OK(cuDeviceSetMemPool(0, pool));
    OK(cuMemAllocAsync(&at, 100, NULL));
    OK(cuDeviceGetMemPool(&found, 0));
    CHECK(found == pool);
    OK(cuMemPoolDestroy(pool));
    OK(cuDeviceGetMemPool(&found, 0));
    CHECK(found == default_pool());
    CHECK_EQUAL(data_bytes(), CHUNK);
    OK(cuMemFreeAsync(at, NULL));
    OK(cuCtxSynchronize());
    CHECK_EQUAL(data_bytes(), 0);
}

PROMISE(a_full_card_is_used_to_the_last_page) {
    on_v100();
    CUdeviceptr at, rest;
    size_t free_bytes, total;
    OK(cuMemGetInfo_v2(&free_bytes, &total));
    OK(cuMemAlloc_v2(&at, free_bytes - 10 * MIB));
    OK(cuMemAllocAsync(&rest, 9 * MIB, NULL));
    CHECK_EQUAL(used_of(0), total);
    CUdeviceptr none;
    CHECK_EQUAL(cuMemAllocAsync(&none, 2 * MIB, NULL), CUDA_ERROR_OUT_OF_MEMORY);
    OK(cuMemFreeAsync(rest, NULL));
    OK(cuMemAllocAsync(&none, 10 * MIB, NULL)); /* waits for what is being freed */
}

PROMISE(linear_memory_may_be_freed_in_stream_order) {
    on_v100();
    CUdeviceptr at;
    OK(cuMemAlloc_v2(&at, 10 * MIB));
    OK(cuMemFreeAsync(at, NULL));
    CHECK_EQUAL(cuMemFreeAsync(at, NULL), CUDA_ERROR_INVALID_VALUE);
    OK(cuCtxSynchronize());
    CHECK_EQUAL(data_bytes(), 0);
}

PROMISE(limits_of_pools_hold) {
    on_v100();
    CUdeviceptr at;
    CUmemoryPool pool;
    CUmemPoolProps wanted = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED, .maxSize = CHUNK};
    wanted.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    OK(cuMemPoolCreate(&pool, &wanted));
    OK(cuMemAllocFromPoolAsync(&at, 30 * MIB, pool, NULL));
    CHECK_EQUAL(cuMemAllocFromPoolAsync(&at, 3 * MIB, pool, NULL), CUDA_ERROR_OUT_OF_MEMORY);
    CHECK_EQUAL(cuMemAllocFromPoolAsync(&at, 3, (CUmemoryPool)(uintptr_t)0x77, NULL),
                CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuMemAllocAsync(&at, 0, NULL), CUDA_ERROR_INVALID_VALUE);
    wanted.handleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    CHECK_EQUAL(cuMemPoolCreate(&pool, &wanted), CUDA_ERROR_NOT_SUPPORTED);
}

PROMISE(captured_allocations_are_memory_once_the_graph_runs) {
    on_v100();
    CUstream stream;
    CUgraph graph;
    CUgraphExec executable;
    CUdeviceptr at;
    void *pinned;
    unsigned int *words;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemAllocHost_v2(&pinned, 4096));
    words = pinned;
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    OK(cuMemAllocAsync(&at, 3 * MIB, stream));
    OK(cuMemsetD32Async(at + 512, 0x77, 1024, stream));
    OK(cuMemcpyDtoHAsync_v2(pinned, at + 512, 4096, stream));
    OK(cuMemFreeAsync(at, stream));
    OK(cuStreamEndCapture(stream, &graph));
    OK(cuGraphInstantiateWithFlags(&executable, graph, 0));
    CHECK_EQUAL(data_bytes(), 0);
    CHECK_EQUAL(cuMemFree_v2(at), CUDA_ERROR_INVALID_VALUE);
    for (int i = 0; i < 3; i++) {
        words[5] = 0;
        OK(cuGraphLaunch(executable, stream));
        OK(cuStreamSynchronize(stream));
        CHECK_EQUAL(words[5], 0x77);
    }
    CHECK_EQUAL(data_bytes(), 2 * PAGE);
    OK(cuGraphExecDestroy(executable));
    OK(cuGraphDestroy(graph));
    OK(cuDeviceGraphMemTrim(0));
    CHECK_EQUAL(data_bytes(), 0);
}

int main(int argc, char **argv) {
    return keep_promises(argc, argv);
}
