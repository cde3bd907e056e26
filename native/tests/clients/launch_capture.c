/*
 * Captures in each mode, while other streams and threads launch: what is in the graphs, and whether a capture
 * was spoilt, is printed, and must be the same whoever else stands between this program and the driver.
 */
#include "launch_work.h"

static void *launch_elsewhere(void *unused) {
    (void)unused;
    MUST(cuCtxSetCurrent(context));
    for (unsigned int i = 0; i < 200; i++)
        launch_blocks(streams[3], 1U << i % 5, 100 * US);
    return NULL;
}

/* Two streams in one capture: the second joins through an event, and is joined again. */
static void fork_and_join(unsigned int kernels) {
    CUevent fork, join;
    MUST(cuEventCreate(&fork, CU_EVENT_DISABLE_TIMING));
    MUST(cuEventCreate(&join, CU_EVENT_DISABLE_TIMING));
    MUST(cuEventRecord(fork, streams[0]));
    MUST(cuStreamWaitEvent(streams[2], fork, 0));
    for (unsigned int i = 0; i < kernels; i++) {
        launch_blocks(streams[2], 8, 10 * US);
        launch_blocks(streams[0], 16, 10 * US);
    }
    MUST(cuEventRecord(join, streams[2]));
    MUST(cuStreamWaitEvent(streams[0], join, 0));
    MUST(cuEventDestroy_v2(fork));
    MUST(cuEventDestroy_v2(join));
}

static void print_graph(const char *what, CUgraph graph) {
    static CUgraphNode nodes[1000];
    size_t count = sizeof nodes / sizeof *nodes, kernels = 0;
    MUST(cuGraphGetNodes(graph, nodes, &count));
    for (size_t i = 0; i < count; i++) {
        CUgraphNodeType type;
        MUST(cuGraphNodeGetType(nodes[i], &type));
        kernels += type == CU_GRAPH_NODE_TYPE_KERNEL;
    }
    printf("%s: %zu nodes, %zu of them kernels\n", what, count, kernels);
}

static void capture(const char *what, CUstreamCaptureMode mode) {
    CUstreamCaptureStatus status;
    CUgraph graph;
    CUgraphExec executable;
    pthread_t thread;
    for (int i = 0; i < 20; i++) /* so that there is something to be metered meanwhile */
        launch_blocks(streams[1], 4, MS);
    MUST(cuStreamBeginCapture_v2(streams[0], mode));
    if (pthread_create(&thread, NULL, launch_elsewhere, NULL))
        exit(1);
    for (unsigned int i = 0; i < 300; i++) {
        launch_blocks(streams[0], 1U << i % 7, 10 * US);
        if (i % 10 == 0)
            launch_blocks(streams[1], 1U << i % 3, MS);
    }
    fork_and_join(20);
    pthread_join(thread, NULL);
    MUST(cuStreamIsCapturing(streams[0], &status));
    printf("%s: status %d\n", what, (int)status);
    MUST(cuStreamEndCapture(streams[0], &graph));
    print_graph(what, graph);
    MUST(cuGraphInstantiateWithFlags(&executable, graph, 0));
    MUST(cuGraphLaunch(executable, streams[0]));
    MUST(cuCtxSynchronize());
    MUST(cuGraphExecDestroy(executable));
    MUST(cuGraphDestroy(graph));
}

/* A capture that the program itself spoils is as spoilt, and its stream as usable afterwards. */
static void spoilt(void) {
    CUgraph graph = NULL;
    MUST(cuStreamBeginCapture_v2(streams[0], CU_STREAM_CAPTURE_MODE_RELAXED));
    launch_blocks(streams[0], 4, US);
    printf("spoilt: %d\n", (int)cuStreamSynchronize(streams[0]));
    printf("spoilt: end %d\n", (int)cuStreamEndCapture(streams[0], &graph));
    printf("spoilt: end again %d\n", (int)cuStreamEndCapture(streams[0], &graph));
    launch_blocks(streams[0], 4, US);
    MUST(cuStreamSynchronize(streams[0]));
}

int main(void) {
    set_up();
    capture("global", CU_STREAM_CAPTURE_MODE_GLOBAL);
    capture("thread-local", CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    capture("relaxed", CU_STREAM_CAPTURE_MODE_RELAXED);
    spoilt();
    capture("after", CU_STREAM_CAPTURE_MODE_GLOBAL);
    return 0;
}
