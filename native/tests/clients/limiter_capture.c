/*
 * Captures in each mode, with launches that wait for their share before, beside and in between:
 * `limiter_capture DEBT_MS`. What is in the graphs, what they do, and what the program is told are printed,
 * and must be the same whoever else stands between it and the driver.
 */
#include <stdbool.h>

#include "launch_work.h"

enum { KERNELS = 12, MOST_NODES = 200 };

static uint64_t debt_ns;
static uint32_t *words; /* pinned */
static int called;

static void CUDA_CB call(void *unused) {
    (void)unused;
    __atomic_fetch_add(&called, 1, __ATOMIC_RELAXED);
}

/* So much that the next launch has to wait for it. */
static void get_into_debt(void) {
    launch_blocks(streams[3], 64, debt_ns);
    MUST(cuStreamSynchronize(streams[3]));
}

static void *launch_elsewhere(void *unused) {
    (void)unused;
    MUST(cuCtxSetCurrent(context));
    for (unsigned int i = 0; i < 20; i++)
        launch_blocks(streams[1], 1U << i % 5, 100 * US);
    return NULL;
}

static pthread_t start(void *(*run)(void *)) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, run, NULL))
        exit(1);
    return thread;
}

/* ---- what is in a graph ---- */

static uint64_t mixed(uint64_t hash, uint64_t value) {
    return (hash ^ value) * 0x100000001b3;
}

static uint64_t content_of(CUgraphNode node, CUgraphNodeType type) {
    CUDA_KERNEL_NODE_PARAMS_v2 kernel;
    uint64_t hash = mixed(0xcbf29ce484222325, type);
    if (type == CU_GRAPH_NODE_TYPE_KERNEL) {
        MUST(cuGraphKernelNodeGetParams_v2(node, &kernel));
        hash = mixed(mixed(hash, kernel.gridDimX), kernel.blockDimX);
        hash = mixed(hash, *(const uint64_t *)kernel.kernelParams[0]);
    }
    return hash;
}

/* A node's content and that of all it depends on: the same for the same graph, whatever its nodes are called.
 */
static uint64_t depth_first(CUgraphNode node, int depth) {
    CUgraphNode before[MOST_NODES];
    size_t count = MOST_NODES;
    CUgraphNodeType type;
    MUST(cuGraphNodeGetType(node, &type));
    MUST(cuGraphNodeGetDependencies(node, before, &count));
    uint64_t sum = 0;
    for (size_t i = 0; i < count && depth < 100; i++)
        sum += depth_first(before[i], depth + 1);
    return mixed(content_of(node, type), sum + count);
}

static void print_graph(const char *what, CUgraph graph) {
    CUgraphNode nodes[MOST_NODES];
    size_t count = MOST_NODES, edges = 0, of_type[32] = {0};
    uint64_t sum = 0;
    MUST(cuGraphGetNodes(graph, nodes, &count));
    MUST(cuGraphGetEdges(graph, NULL, NULL, &edges));
    for (size_t i = 0; i < count; i++) {
        CUgraphNodeType type;
        MUST(cuGraphNodeGetType(nodes[i], &type));
        of_type[type % 32]++;
        sum += depth_first(nodes[i], 0);
    }
    printf("%s: %zu nodes, %zu edges, %016llx;", what, count, edges, (unsigned long long)sum);
    for (int type = 0; type < 32; type++)
        if (of_type[type])
            printf(" %zu of type %d", of_type[type], type);
    puts("");
}

/* What the thread's mode is: whoever changes it for calls of his own has to put it back. */
static void print_mode(const char *what) {
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL, other = CU_STREAM_CAPTURE_MODE_GLOBAL;
    MUST(cuThreadExchangeStreamCaptureMode(&mode));
    other = mode;
    MUST(cuThreadExchangeStreamCaptureMode(&other));
    printf("%s: the thread's mode is %d\n", what, (int)mode);
}

/* ---- captures ---- */

static void record_all_sorts(CUstream first, CUstream second) {
    CUevent fork, join;
    CUdeviceptr at;
    MUST(cuMemHostGetDevicePointer_v2(&at, words, 0));
    MUST(cuEventCreate(&fork, CU_EVENT_DISABLE_TIMING));
    MUST(cuEventCreate(&join, CU_EVENT_DEFAULT));
    launch_blocks(first, 4, 10 * US);
    MUST(cuEventRecord(fork, first));
    MUST(cuStreamWaitEvent(second, fork, 0));
    for (unsigned int i = 0; i < KERNELS; i++) {
        launch_blocks(first, 1U << i % 4, (10 + i) * US);
        launch_blocks(second, 2U << i % 4, (30 + i) * US);
    }
    MUST(cuLaunchHostFunc(second, call, NULL));
    MUST(cuEventRecord(join, second));
    MUST(cuStreamWaitEvent(first, join, 0));
    MUST(cuMemsetD32Async(at, 7, 4, first));
    launch_blocks(first, 4, 10 * US);
    MUST(cuEventDestroy_v2(fork));
    MUST(cuEventDestroy_v2(join));
}

static void run(const char *what, CUgraph graph) {
    CUgraphExec executable;
    called = 0;
    memset(words, 0, 4096);
    MUST(cuGraphInstantiateWithFlags(&executable, graph, 0));
    for (int i = 0; i < 3; i++) {
        MUST(cuGraphLaunch(executable, streams[i % 2]));
        MUST(cuStreamSynchronize(streams[i % 2]));
    }
    printf("%s: called %d times, words %u %u\n", what, called, words[0], words[3]);
    MUST(cuGraphExecDestroy(executable));
    MUST(cuGraphDestroy(graph));
}

static void capture(const char *what, CUstreamCaptureMode mode) {
    CUstreamCaptureStatus status, other;
    CUgraph graph = NULL;
    get_into_debt();
    MUST(cuStreamBeginCapture_v2(streams[0], mode));
    pthread_t thread = start(launch_elsewhere); /* waits for balance while this one captures */
    record_all_sorts(streams[0], streams[2]);
    launch_blocks(streams[1], 4, 100 * US); /* this one waits too, and its stream does not capture */
    record_all_sorts(streams[0], streams[2]);
    print_mode(what);
    MUST(cuStreamIsCapturing(streams[0], &status));
    MUST(cuStreamIsCapturing(streams[1], &other));
    printf("%s: status %d, of the other %d\n", what, (int)status, (int)other);
    printf("%s: end %d\n", what, (int)cuStreamEndCapture(streams[0], &graph));
    pthread_join(thread, NULL);
    print_graph(what, graph);
    run(what, graph);
}

/* A stream that captures, and threads that begin and launch at the same time in their own. */
static void *capture_in_thread(void *number) {
    CUgraph graph = NULL;
    CUgraphExec executable;
    CUstream stream;
    MUST(cuCtxSetCurrent(context));
    MUST(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    for (int round = 0; round < 5; round++) {
        launch_blocks(stream, 4, 100 * US);
        MUST(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
        for (unsigned int i = 0; i < 20; i++)
            launch_blocks(stream, 1U << i % 5, 10 * US);
        MUST(cuStreamEndCapture(stream, &graph));
        size_t count = 0;
        MUST(cuGraphGetNodes(graph, NULL, &count));
        *(size_t *)number += count;
        MUST(cuGraphInstantiateWithFlags(&executable, graph, 0));
        MUST(cuGraphLaunch(executable, stream));
        MUST(cuGraphExecDestroy(executable));
        MUST(cuGraphDestroy(graph));
    }
    MUST(cuStreamSynchronize(stream));
    MUST(cuStreamDestroy_v2(stream));
    return NULL;
}

static void threads(void) {
    size_t nodes[3] = {0};
    pthread_t thread[3];
    get_into_debt();
    for (int i = 0; i < 3; i++)
        if (pthread_create(&thread[i], NULL, capture_in_thread, &nodes[i]))
            exit(1);
    for (int i = 0; i < 3; i++)
        pthread_join(thread[i], NULL);
    printf("threads: %zu %zu %zu nodes\n", nodes[0], nodes[1], nodes[2]);
}

/* What a capture forbids the program is forbidden, and spoils it, as it would without a share. */
static void forbidden(void) {
    CUstream blocking;
    CUgraph graph = NULL;
    MUST(cuStreamCreate(&blocking, CU_STREAM_DEFAULT));
    get_into_debt();
    printf("forbidden: begin %d\n", (int)cuStreamBeginCapture_v2(NULL, CU_STREAM_CAPTURE_MODE_GLOBAL));
    MUST(cuStreamBeginCapture_v2(blocking, CU_STREAM_CAPTURE_MODE_GLOBAL));
    launch_blocks(blocking, 4, 10 * US);
    uint64_t ns = 10 * US;
    void *parameters[] = {&ns};
    printf("forbidden: legacy launch %d\n", (int)cuLaunchKernel(spin, SMALL, NULL, parameters, NULL));
    printf("forbidden: launch %d\n", (int)cuLaunchKernel(spin, SMALL, blocking, parameters, NULL));
    printf("forbidden: end %d\n", (int)cuStreamEndCapture(blocking, &graph));
    printf("forbidden: afterwards %d\n", (int)cuLaunchKernel(spin, SMALL, blocking, parameters, NULL));
    MUST(cuStreamSynchronize(blocking));
    MUST(cuStreamBeginCapture_v2(blocking, CU_STREAM_CAPTURE_MODE_RELAXED));
    launch_blocks(blocking, 4, 10 * US);
    printf("forbidden: query %d\n", (int)cuStreamQuery(blocking));
    printf("forbidden: end %d\n", (int)cuStreamEndCapture(blocking, &graph));
    MUST(cuStreamDestroy_v2(blocking));
}

int main(int argc, char **argv) {
    if (argc < 2)
        return 2;
    debt_ns = strtoull(argv[1], NULL, 10) * MS;
    set_up();
    MUST(cuMemHostAlloc((void **)&words, 4096, CU_MEMHOSTALLOC_DEVICEMAP));
    capture("global", CU_STREAM_CAPTURE_MODE_GLOBAL);
    capture("thread-local", CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    capture("relaxed", CU_STREAM_CAPTURE_MODE_RELAXED);
    threads();
    forbidden();
    capture("after", CU_STREAM_CAPTURE_MODE_GLOBAL);
    return 0;
}
