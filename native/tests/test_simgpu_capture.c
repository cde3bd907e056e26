/*
 * Captures on the simulated card.
 *
 * build: native/simgpu/machine.c native/simgpu/models.c native/simgpu/timeline.c
 * build: build/native/sim/libcuda.so.1
 */
#include <pthread.h>

#include "simgpu_graph.h"

/* ---- captures ---- */

PROMISE(captured_work_becomes_a_graph) {
    CUgraph graph;
    CUstreamCaptureStatus status;
    CUgraphNode nodes[8];
    CUgraphNodeType type;
    CUdeviceptr at, async;
    size_t count = 8;
    unsigned int in[16] = {9}, out[16] = {0};
    on_v100();
    CUfunction kernel = function_of("spin");
    CUstream stream = new_stream();
    OK(cuMemAlloc_v2(&at, sizeof in));
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuStreamIsCapturing(stream, &status));
    CHECK_EQUAL(status, CU_STREAM_CAPTURE_STATUS_ACTIVE);
    OK(cuMemcpyHtoDAsync_v2(at, in, sizeof in, stream));
    OK(spin_small(kernel, stream, 3 * MS));
    OK(cuMemcpyDtoHAsync_v2(out, at, sizeof out, stream));
    OK(cuLaunchHostFunc(stream, count_call, NULL));
    OK(cuMemAllocAsync(&async, MIB, stream));
    OK(cuMemsetD8Async(async, 1, 64, stream));
    OK(cuMemFreeAsync(async, stream));
    OK(cuStreamEndCapture(stream, &graph));
    OK(cuGraphGetNodes(graph, nodes, &count));
    static const CUgraphNodeType expected[] = {CU_GRAPH_NODE_TYPE_MEMCPY,    CU_GRAPH_NODE_TYPE_KERNEL,
                                               CU_GRAPH_NODE_TYPE_MEMCPY,    CU_GRAPH_NODE_TYPE_HOST,
                                               CU_GRAPH_NODE_TYPE_MEM_ALLOC, CU_GRAPH_NODE_TYPE_MEMSET,
                                               CU_GRAPH_NODE_TYPE_MEM_FREE};
    CHECK_EQUAL(count, 7);
    for (int i = 0; i < 7; i++) {
        OK(cuGraphNodeGetType(nodes[i], &type));
        CHECK_EQUAL(type, expected[i]);
    }
    CHECK(out[0] == 0 && calls == 0);
    CUgraphExec exec = instantiated(graph);
    OK(cuGraphLaunch(exec, stream));
    OK(cuStreamSynchronize(stream));
    CHECK(out[0] == 9 && calls == 1);
    in[0] = 10;
    OK(cuGraphLaunch(exec, stream));
    OK(cuStreamSynchronize(stream));
    CHECK(out[0] == 10 && calls == 2);
}

PROMISE(forks_are_captured_and_have_to_be_joined) {
    CUgraph graph;
    CUgraphNode nodes[4];
    size_t count = 4;
    on_v100();
    CUfunction kernel = function_of("spin");
    CUstream stream = new_stream(), side = new_stream();
    CUevent fork = new_event(), join = new_event();
    for (int joined = 0; joined < 2; joined++) {
        OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
        OK(spin_small(kernel, stream, MS));
        OK(cuEventRecord(fork, stream));
        OK(cuStreamWaitEvent(side, fork, 0));
        OK(spin_small(kernel, side, 4 * MS));
        OK(spin_small(kernel, stream, 2 * MS));
        OK(cuEventRecord(join, side));
        if (joined)
            OK(cuStreamWaitEvent(stream, join, 0));
        CHECK_EQUAL(cuStreamEndCapture(side, &graph), CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
        CHECK_EQUAL(cuStreamEndCapture(stream, &graph),
                    joined ? CUDA_SUCCESS : CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
        OK(cuStreamQuery(side));
    }
    OK(cuGraphGetNodes(graph, nodes, &count));
    CHECK_EQUAL(count, 3);
    CHECK_NEAR(duration_of(instantiated(graph)), 5 * MS);
}

/* Begin, do something forbidden, and see the capture fail. */
#define FORBIDDEN(call, answer)                                                                              \
    do {                                                                                                     \
        CUgraph none_;                                                                                       \
        CUstreamCaptureStatus status_;                                                                       \
        OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));                                  \
        OK(cuEventRecord(event, stream));                                                                    \
        CHECK_EQUAL(call, answer);                                                                           \
        OK(cuStreamIsCapturing(stream, &status_));                                                           \
        CHECK_EQUAL(status_, CU_STREAM_CAPTURE_STATUS_INVALIDATED);                                          \
        CHECK_EQUAL(spin_small(kernel, stream, MS), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);                  \
        CHECK_EQUAL(cuStreamEndCapture(stream, &none_), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);              \
        CHECK(none_ == NULL);                                                                                \
        OK(cuStreamQuery(stream));                                                                           \
    } while (0)

PROMISE(what_cannot_be_captured_invalidates_the_capture) {
    CUdeviceptr at;
    CUstream stream;
    on_v100();
    CUfunction kernel = function_of("spin");
    CUevent event = new_event();
    OK(cuStreamCreate(&stream, CU_STREAM_DEFAULT));
    FORBIDDEN(cuStreamSynchronize(stream), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    FORBIDDEN(cuStreamQuery(stream), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    FORBIDDEN(cuCtxSynchronize(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    FORBIDDEN(cuEventQuery(event), CUDA_ERROR_CAPTURED_EVENT);
    FORBIDDEN(cuEventSynchronize(event), CUDA_ERROR_CAPTURED_EVENT);
    FORBIDDEN(cuMemAlloc_v2(&at, 1), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    FORBIDDEN(spin_small(kernel, NULL, MS), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    FORBIDDEN(cuStreamSynchronize(CU_STREAM_LEGACY), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    CHECK_EQUAL(cuStreamBeginCapture_v2(NULL, CU_STREAM_CAPTURE_MODE_GLOBAL),
                CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    CUgraph graph;
    CHECK_EQUAL(cuStreamEndCapture(stream, &graph), CUDA_ERROR_ILLEGAL_STATE);
    CUevent outside = new_event();
    OK(cuEventRecord(outside, stream));
    FORBIDDEN(cuStreamWaitEvent(stream, outside, 0), CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
}

PROMISE(asking_and_freeing_leave_a_capture_as_it_is) {
    CUstreamCaptureMode relaxed = CU_STREAM_CAPTURE_MODE_RELAXED;
    CUstreamCaptureStatus status;
    CUdeviceptr at;
    CUstream stream;
    CUgraph graph;
    on_v100();
    OK(cuMemAlloc_v2(&at, 1));
    OK(cuThreadExchangeStreamCaptureMode(&relaxed));
    OK(cuStreamCreate(&stream, CU_STREAM_DEFAULT));
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    CHECK_EQUAL(cuStreamIsCapturing(NULL, &status), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    OK(cuMemFree_v2(at));
    OK(cuStreamEndCapture(stream, &graph));
}

static void *allocate(void *expected) {
    CUdeviceptr at;
    CUcontext context;
    OK(cuDevicePrimaryCtxRetain(&context, 0));
    OK(cuCtxSetCurrent(context));
    CHECK_EQUAL(cuMemAlloc_v2(&at, 1), (uintptr_t)expected);
    return NULL;
}

PROMISE(the_mode_says_whose_calls_a_capture_forbids) {
    pthread_t thread;
    CUgraph graph;
    CUdeviceptr at;
    on_v100();
    CUstream stream = new_stream();
    for (int mode = CU_STREAM_CAPTURE_MODE_GLOBAL; mode <= CU_STREAM_CAPTURE_MODE_RELAXED; mode++) {
        bool others = mode == CU_STREAM_CAPTURE_MODE_GLOBAL, mine = mode != CU_STREAM_CAPTURE_MODE_RELAXED;
        uintptr_t answer = others ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : 0;
        OK(cuStreamBeginCapture_v2(stream, (CUstreamCaptureMode)mode));
        CHECK(pthread_create(&thread, NULL, allocate, (void *)answer) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
        CHECK_EQUAL(cuStreamEndCapture(stream, &graph), others ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : 0);
        OK(cuStreamBeginCapture_v2(stream, (CUstreamCaptureMode)mode));
        CHECK_EQUAL(cuMemAlloc_v2(&at, 1), mine ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : 0);
        CHECK_EQUAL(cuStreamEndCapture(stream, &graph), mine ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : 0);
    }
    CUstreamCaptureMode relaxed = CU_STREAM_CAPTURE_MODE_RELAXED;
    OK(cuThreadExchangeStreamCaptureMode(&relaxed));
    CHECK_EQUAL(relaxed, CU_STREAM_CAPTURE_MODE_GLOBAL);
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    OK(cuMemAlloc_v2(&at, 1));
    OK(cuStreamEndCapture(stream, &graph));
}

PROMISE(a_capture_tells_what_it_stands_on_and_can_be_redirected) {
    CUgraph graph, shown;
    CUgraphNode node;
    const CUgraphNode *tips;
    CUstreamCaptureStatus status;
    cuuint64_t id;
    size_t count;
    on_v100();
    CUfunction kernel = function_of("spin");
    CUstream stream = new_stream();
    OK(cuGraphCreate(&graph, 0));
    CUgraphNode first = add_spin(graph, kernel, &durations[0], NULL, 0);
    OK(cuStreamBeginCaptureToGraph(stream, graph, &first, NULL, 1, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cuStreamGetCaptureInfo_v2(stream, &status, &id, &shown, &tips, &count));
    CHECK(status == CU_STREAM_CAPTURE_STATUS_ACTIVE && shown == graph && count == 1 && tips[0] == first &&
          id != 0);
    node = add_spin(graph, kernel, &durations[1], NULL, 0);
    OK(cuStreamUpdateCaptureDependencies(stream, &node, 1, CU_STREAM_ADD_CAPTURE_DEPENDENCIES));
    OK(cuStreamGetCaptureInfo_v3(stream, &status, NULL, NULL, &tips, NULL, &count));
    CHECK(count == 2 && tips[1] == node);
    OK(spin_small(kernel, stream, 3 * MS));
    OK(cuStreamUpdateCaptureDependencies(stream, &node, 1, CU_STREAM_SET_CAPTURE_DEPENDENCIES));
    OK(spin_small(kernel, stream, MS));
    OK(cuStreamEndCapture(stream, &shown));
    CHECK(shown == graph);
    OK(cuGraphGetEdges(graph, NULL, NULL, &count));
    CHECK_EQUAL(count, 3);
    OK(cuStreamGetCaptureInfo(stream, &status, &id));
    CHECK_EQUAL(status, CU_STREAM_CAPTURE_STATUS_NONE);
}

PROMISE(a_graph_launched_into_a_capture_becomes_a_child) {
    CUgraph graph, whole;
    CUgraphNode nodes[2];
    CUgraphNodeType type;
    size_t count = 2;
    on_v100();
    CUfunction kernel = function_of("spin");
    CUstream stream = new_stream();
    OK(cuGraphCreate(&graph, 0));
    add_spin(graph, kernel, &durations[2], NULL, 0);
    CUgraphExec exec = instantiated(graph);
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    OK(cuGraphLaunch(exec, stream));
    OK(cuGraphLaunch(exec, stream));
    OK(cuStreamEndCapture(stream, &whole));
    OK(cuGraphGetNodes(whole, nodes, &count));
    OK(cuGraphNodeGetType(nodes[0], &type));
    CHECK(count == 2 && type == CU_GRAPH_NODE_TYPE_GRAPH);
    CHECK_NEAR(duration_of(instantiated(whole)), 6 * MS);
}

int main(int argc, char **argv) {
    return keep_promises(argc, argv);
}
