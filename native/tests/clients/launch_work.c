/*
 * Work for the card, one scenario each: `launch_work SCENARIO`. When the scenario's work has ended it prints
 * how many launches the driver has taken, and waits for a line on standard input, so that whoever started it
 * can read what was counted. A plain client of the driver API.
 */
#include "launch_work.h"

#define WHOLE 5120, 1, 1, 1024, 1, 1, 0 /* more than any card has room for */

static unsigned int taken; /* launches */

#define LAUNCHED(call)                                                                                       \
    do {                                                                                                     \
        MUST(call);                                                                                          \
        __atomic_fetch_add(&taken, 1, __ATOMIC_RELAXED);                                                     \
    } while (0)

static void launch(CUstream stream, uint64_t ns) {
    void *parameters[] = {&ns};
    LAUNCHED(cuLaunchKernel(spin, SMALL, stream, parameters, NULL));
}

/* ---- scenarios ---- */

static void waited_for(void) {
    for (int i = 0; i < 100; i++) {
        launch(streams[0], MS);
        MUST(cuStreamSynchronize(streams[0]));
    }
}

static void queued(void) {
    for (int i = 0; i < 300; i++)
        launch(streams[0], MS);
    MUST(cuCtxSynchronize());
}

static void different(void) {
    unsigned int state = 1;
    for (int i = 0; i < 600; i++) {
        state = state * 1664525 + 1013904223;
        launch(streams[0], 50 * US + state % MS);
        if (i % 50 == 0)
            MUST(cuStreamSynchronize(streams[0]));
    }
    MUST(cuCtxSynchronize());
}

static void small(void) {
    for (int i = 0; i < 200; i++) {
        for (int k = 0; k < 20; k++)
            launch(streams[0], 100 * US);
        MUST(cuStreamSynchronize(streams[0]));
    }
}

static void side_by_side(void) {
    for (int i = 0; i < 100; i++)
        for (int stream = 0; stream < 4; stream++)
            launch(streams[stream], MS);
    MUST(cuCtxSynchronize());
}

/* Each stream's kernels need the whole card, so streams take turns. */
static void one_at_a_time(void) {
    uint64_t ns = 20 * US;
    void *parameters[] = {&ns};
    for (int i = 0; i < 50; i++)
        for (int stream = 0; stream < 4; stream++)
            LAUNCHED(cuLaunchKernel(spin, WHOLE, streams[stream], parameters, NULL));
    MUST(cuCtxSynchronize());
}

static CUgraphExec graph_of(int kernels, uint64_t ns) {
    CUgraph graph;
    CUgraphExec executable;
    void *parameters[] = {&ns};
    MUST(cuStreamBeginCapture_v2(streams[0], CU_STREAM_CAPTURE_MODE_GLOBAL));
    for (int i = 0; i < kernels; i++)
        MUST(cuLaunchKernel(spin, SMALL, streams[0], parameters, NULL));
    MUST(cuStreamEndCapture(streams[0], &graph));
    MUST(cuGraphInstantiateWithFlags(&executable, graph, 0));
    MUST(cuGraphDestroy(graph));
    return executable;
}

static void graphs(void) {
    CUgraphExec large = graph_of(50, 100 * US), little = graph_of(3, 100 * US);
    for (int i = 0; i < 40; i++) {
        LAUNCHED(cuGraphLaunch(large, streams[0]));
        LAUNCHED(cuGraphLaunch(little, streams[0]));
        if (i % 8 == 0)
            MUST(cuStreamSynchronize(streams[0]));
    }
    MUST(cuStreamSynchronize(streams[0]));
}

static void cooperative(void) {
    uint64_t ns = MS;
    void *parameters[] = {&ns};
    for (int i = 0; i < 100; i++)
        LAUNCHED(cuLaunchCooperativeKernel(spin, SMALL, streams[0], parameters));
    MUST(cuCtxSynchronize());
}

static void *on_own_streams(void *unused) {
    uint64_t ns = MS;
    void *parameters[] = {&ns};
    (void)unused;
    MUST(cuCtxSetCurrent(context));
    for (int i = 0; i < 50; i++) {
        LAUNCHED(cuLaunchKernel_ptsz(spin, SMALL, NULL, parameters, NULL));
        LAUNCHED(cuLaunchKernel(spin, SMALL, CU_STREAM_PER_THREAD, parameters, NULL));
    }
    MUST(cuStreamSynchronize_ptsz(NULL));
    return NULL;
}

static void per_thread(void) {
    in_threads(on_own_streams, 4);
}

static void *on_one_stream(void *unused) {
    (void)unused;
    MUST(cuCtxSetCurrent(context));
    for (int i = 0; i < 1000; i++)
        launch(streams[0], 50 * US);
    return NULL;
}

static void shared_stream(void) {
    in_threads(on_one_stream, 4);
    MUST(cuCtxSynchronize());
}

static void legacy(void) {
    for (int i = 0; i < 100; i++)
        launch(NULL, MS);
    MUST(cuStreamSynchronize(NULL));
}

static void with_copies(void) {
    enum { BYTES = 8 << 20 };
    CUdeviceptr on_card;
    void *on_host;
    MUST(cuMemAlloc_v2(&on_card, BYTES));
    MUST(cuMemAllocHost_v2(&on_host, BYTES));
    for (int i = 0; i < 100; i++) {
        launch(streams[0], MS);
        MUST(cuMemcpyHtoDAsync_v2(on_card, on_host, BYTES, streams[0]));
    }
    MUST(cuCtxSynchronize());
}

/* One of each way to launch. */
static void each_way(void) {
    uint64_t ns = MS;
    void *parameters[] = {&ns};
    CUgraphExec graph = graph_of(2, MS);
    CUlaunchConfig config = {4, 1, 1, 32, 1, 1, 0, streams[1], NULL, 0};
    LAUNCHED(cuLaunchKernel(spin, SMALL, streams[0], parameters, NULL));
    LAUNCHED(cuLaunchKernel_ptsz(spin, SMALL, NULL, parameters, NULL));
    LAUNCHED(cuLaunchKernelEx(&config, spin, parameters, NULL));
    LAUNCHED(cuLaunchKernelEx_ptsz(&config, spin, parameters, NULL));
    LAUNCHED(cuLaunchCooperativeKernel(spin, SMALL, streams[2], parameters));
    LAUNCHED(cuLaunchCooperativeKernel_ptsz(spin, SMALL, streams[2], parameters));
    LAUNCHED(cuGraphLaunch(graph, streams[3]));
    LAUNCHED(cuGraphLaunch_ptsz(graph, streams[3]));
    MUST(cuFuncSetBlockShape(spin, 32, 1, 1));
    MUST(cuParamSetSize(spin, 8));
    MUST(cuParamSetv(spin, 0, &ns, 8));
    LAUNCHED(cuLaunch(spin));
    LAUNCHED(cuLaunchGrid(spin, 4, 1));
    LAUNCHED(cuLaunchGridAsync(spin, 4, 1, streams[0]));
    MUST(cuCtxSynchronize());
}

/* What the driver refuses, and what becomes a node of a graph, is no launch. */
static void refused_and_captured(void) {
    uint64_t ns = MS;
    void *parameters[] = {&ns};
    launch(streams[0], MS);
    for (int i = 0; i < 100; i++)
        if (cuLaunchKernel(spin, 0, 1, 1, 32, 1, 1, 0, streams[0], parameters, NULL) == CUDA_SUCCESS)
            exit(1);
    graph_of(100, MS);
    MUST(cuCtxSynchronize());
}

/* Ends without having waited for anything but a copy. */
static void left_alone(void) {
    uint64_t value;
    CUdeviceptr on_card;
    MUST(cuMemAlloc_v2(&on_card, sizeof value));
    for (int i = 0; i < 100; i++)
        launch(NULL, MS);
    MUST(cuMemcpyDtoH_v2(&value, on_card, sizeof value));
}

static const struct {
    const char *name;
    void (*run)(void);
} scenarios[] = {
    {"waited_for", waited_for},
    {"queued", queued},
    {"different", different},
    {"small", small},
    {"side_by_side", side_by_side},
    {"one_at_a_time", one_at_a_time},
    {"graphs", graphs},
    {"cooperative", cooperative},
    {"per_thread", per_thread},
    {"shared_stream", shared_stream},
    {"legacy", legacy},
    {"with_copies", with_copies},
    {"each_way", each_way},
    {"refused_and_captured", refused_and_captured},
    {"left_alone", left_alone},
};

int main(int argc, char **argv) {
    void (*run)(void) = NULL;
    for (size_t i = 0; argc == 2 && i < sizeof scenarios / sizeof *scenarios; i++)
        if (strcmp(argv[1], scenarios[i].name) == 0)
            run = scenarios[i].run;
    if (!run) {
        fprintf(stderr, "usage: launch_work SCENARIO\n");
        return 2;
    }
    set_up();
    run();
    printf("%u\n", taken);
    fflush(stdout);
    getchar();
    return 0;
}
