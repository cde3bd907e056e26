/*
 * The ways in which programs give a card work. Each is a loop until it is told to stop; at its end, what is
 * still queued is waited for, but for the deep queue, which would take minutes.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "cores.h"

#define DEEP 1000     /* launches ahead of the one that is waited for */
#define DEEP_STEP 100 /* launches from one event to the next */
#define AHEAD 8       /* the same of the other loops, for each stream */
#define STREAMS 4
#define THREADS 4
#define GRAPH_KERNELS 50
#define GRAPHS_AHEAD 2

static CUstream new_stream(void) {
    CUstream stream;
    MUST(driver.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    return stream;
}

static CUevent new_event(void) {
    CUevent event;
    MUST(driver.cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    return event;
}

static void drain(void) {
    MUST(driver.cuCtxSynchronize());
}

static void nothing(void) {}

static void launch(const struct kernel *kernel, CUstream stream) {
    MUST(driver.cuLaunchKernel(kernel->function, kernel->blocks, 1, 1, kernel->threads, 1, 1, 0, stream,
                               (void **)kernel->parameters, NULL));
}

static void launch_cooperative(const struct kernel *kernel, CUstream stream) {
    MUST(driver.cuLaunchCooperativeKernel(kernel->function, kernel->blocks, 1, 1, kernel->threads, 1, 1, 0,
                                          stream, (void **)kernel->parameters));
}

static void launch_extended(const struct kernel *kernel, CUstream stream) {
    CUlaunchConfig config = {kernel->blocks, 1, 1, kernel->threads, 1, 1, 0, stream, NULL, 0};
    MUST(driver.cuLaunchKernelEx(&config, kernel->function, (void **)kernel->parameters, NULL));
}

/* ---- one launch, one wait; also by its own pace ---- */

static void synchronous(void) {
    CUstream stream = new_stream();
    uint64_t turn = options.seed, next = now_ns();
    while (go_on(nothing)) {
        struct kernel kernel;
        work_next(&kernel, &turn);
        if (options.pace > 0) { /* from start to start; a late one is made up for, but not after a pause */
            uint64_t now = now_ns(), step = (uint64_t)((double)kernel.length_ns / options.pace);
            next = next + 1000000000 < now ? now : next;
            sleep_until(next);
            next += step;
        }
        launch(&kernel, stream);
        work_launched(1, kernel.length_ns);
        MUST(driver.cuStreamSynchronize(stream));
    }
}

/* ---- ahead of the card ---- */

/* A launch after the other in `count` streams by turns, each stream `ahead` launches ahead of what it waits
 * for; an event every `step` launches. */
static void ahead_of(void (*give)(const struct kernel *, CUstream), uint32_t count, uint32_t ahead,
                     uint32_t step, void (*at_end)(void)) {
    CUstream streams[STREAMS];
    CUevent events[STREAMS][DEEP / DEEP_STEP + AHEAD];
    uint32_t ring = ahead / step;
    uint64_t turn = options.seed;
    for (uint32_t i = 0; i < count; i++) {
        streams[i] = new_stream();
        for (uint32_t k = 0; k < ring; k++)
            events[i][k] = new_event();
    }
    for (uint64_t i = 0; go_on(at_end); i++) {
        uint32_t stream = (uint32_t)(i % count);
        uint64_t number = i / count;
        struct kernel kernel;
        if (number >= ahead && number % step == 0)
            MUST(driver.cuEventSynchronize(events[stream][number / step % ring]));
        work_next(&kernel, &turn);
        give(&kernel, streams[stream]);
        work_launched(1, kernel.length_ns);
        if (number % step == step - 1)
            MUST(driver.cuEventRecord(events[stream][number / step % ring], streams[stream]));
    }
    at_end();
}

static void queue(void) {
    ahead_of(launch, 1, DEEP, DEEP_STEP, nothing);
}
static void streams4(void) {
    ahead_of(launch, STREAMS, AHEAD, 1, drain);
}
static void cooperative(void) {
    ahead_of(launch_cooperative, 1, AHEAD, 1, drain);
}
static void extended(void) {
    if (!driver.cuLaunchKernelEx)
        must(CUDA_ERROR_NOT_SUPPORTED, "cuLaunchKernelEx");
    ahead_of(launch_extended, 1, AHEAD, 1, drain);
}

/* ---- graphs ---- */

static CUgraphExec record(CUstream stream, uint64_t *turn, uint64_t *length_ns) {
    CUgraph graph;
    CUgraphExec executable;
    *length_ns = 0;
    MUST(driver.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    for (int i = 0; i < GRAPH_KERNELS; i++) {
        struct kernel kernel;
        work_next(&kernel, turn);
        launch(&kernel, stream);
        *length_ns += kernel.length_ns;
    }
    MUST(driver.cuStreamEndCapture(stream, &graph));
    MUST(driver.cuGraphInstantiateWithFlags(&executable, graph, 0));
    MUST(driver.cuGraphDestroy(graph));
    return executable;
}

static void graphs(void) {
    enum { DIFFERENT = 8 };
    CUstream stream = new_stream();
    CUgraphExec graph[DIFFERENT];
    CUevent events[GRAPHS_AHEAD];
    uint64_t turn = options.seed, length[DIFFERENT];
    for (int i = 0; i < DIFFERENT; i++)
        graph[i] = record(stream, &turn, &length[i]);
    for (int i = 0; i < GRAPHS_AHEAD; i++)
        events[i] = new_event();
    for (uint64_t i = 0; go_on(drain); i++) {
        if (i >= GRAPHS_AHEAD)
            MUST(driver.cuEventSynchronize(events[i % GRAPHS_AHEAD]));
        MUST(driver.cuGraphLaunch(graph[i % DIFFERENT], stream));
        work_launched(GRAPH_KERNELS, length[i % DIFFERENT]);
        MUST(driver.cuEventRecord(events[i % GRAPHS_AHEAD], stream));
    }
    drain();
}

/* ---- threads with a default stream each ---- */

static void *on_own_stream(void *number) {
    uint64_t turn = options.seed + (uint64_t)(uintptr_t)number * 7919;
    MUST(driver.cuCtxSetCurrent(work_context()));
    for (uint64_t i = 1; go_on(nothing); i++) {
        struct kernel kernel;
        work_next(&kernel, &turn);
        MUST(driver.cuLaunchKernel_ptsz(kernel.function, kernel.blocks, 1, 1, kernel.threads, 1, 1, 0, NULL,
                                        kernel.parameters, NULL));
        work_launched(1, kernel.length_ns);
        if (i % AHEAD == 0)
            MUST(driver.cuStreamSynchronize_ptsz(NULL));
    }
    MUST(driver.cuStreamSynchronize_ptsz(NULL));
    return NULL;
}

static void per_thread(void) {
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, on_own_stream, (void *)i))
            exit(1);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
}

/* ---- requests that come by the clock ---- */

/* Latency is from when a request comes, even if the one before is still at work then. */
static void service(void) {
    CUstream stream = new_stream();
    uint64_t turn = options.seed, period = (uint64_t)(options.period * 1e9), comes = now_ns(), resumed = 0;
    while (go_on(nothing)) {
        struct kernel kernel;
        bool first = account->resumed_ns != resumed;
        resumed = account->resumed_ns;
        if (first)
            comes = now_ns();
        sleep_until(comes);
        work_next(&kernel, &turn);
        launch(&kernel, stream);
        work_launched(1, kernel.length_ns);
        MUST(driver.cuStreamSynchronize(stream));
        uint64_t latency = now_ns() - comes;
        if (first)
            account->first_ns = latency;
        else if (account->latencies < LATENCIES)
            account->latency_ns[account->latencies++] = latency;
        comes += period;
    }
}

static const struct {
    const char *name;
    mode_loop loop;
} modes[] = {
    {"sync", synchronous},        {"queue", queue},       {"streams4", streams4}, {"graph", graphs},
    {"cooperative", cooperative}, {"launchex", extended}, {"ptds", per_thread},   {"service", service},
};

mode_loop mode_of(const char *name) {
    for (size_t i = 0; name && i < sizeof modes / sizeof *modes; i++)
        if (strcmp(modes[i].name, name) == 0)
            return modes[i].loop;
    return NULL;
}
