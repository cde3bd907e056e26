/*
 * Metering against a model of a card whose every instant is known: the ledger's GPU time is to be the time in
 * which at least one kernel ran. The launches' and waits' own handlers run, on a driver that is this file:
 * streams are queues, all side by side; the clock is this file's too and moves when the program works or
 * waits.
 * build: native/shim/meter.c native/shim/meter_read.c native/shim/meter_wait.c native/shim/busy.c
 * build: native/shim/meter_streams.c native/shim/meter_end.c
 * build: native/shim/admit.c native/shim/limiter.c native/shim/cost.c native/shim/plan.c native/shim/bucket.c
 * build: native/shim/overlap.c
 * build: native/shim/launch.c native/shim/sync.c native/shim/capture.c native/shim/stall.c
 */
#include "meter.h"

#include "check.h"
#include "memory.h"

#define US 1000
#define MS 1000000
#define CALL_NS (2 * US) /* what a launch takes on the host */

/* ---- the model ---- */

struct CUstream_st {
    uint64_t free_ns; /* when all that it holds has ended */
    bool capturing;
};
struct CUevent_st {
    uint64_t at_ns;
};

static uint64_t now_ns = 1000 * (uint64_t)MS;
static struct CUstream_st legacy, per_thread;
static struct {
    uint64_t from, to;
} kernel[100000];
static int kernels;
static uint64_t next_ns; /* how long the next kernel runs */
static int stray_calls;  /* events that went into a capturing stream */
static CUresult next_result;
static void *const the_context = &legacy;

static struct CUstream_st *stream_of(CUstream stream) {
    return stream == CU_STREAM_LEGACY || !stream ? &legacy
           : stream == CU_STREAM_PER_THREAD      ? &per_thread
                                                 : stream;
}

static void work(CUstream handle, uint64_t ns, bool counts) {
    struct CUstream_st *stream = stream_of(handle);
    uint64_t start = stream->free_ns > now_ns ? stream->free_ns : now_ns;
    stream->free_ns = start + ns;
    if (counts) {
        kernel[kernels].from = start;
        kernel[kernels++].to = start + ns;
    }
    now_ns += CALL_NS;
}

static int by_start(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* The time in which at least one kernel ran. */
static uint64_t truth(void) {
    uint64_t sum = 0, reached = 0;
    qsort(kernel, (size_t)kernels, sizeof kernel[0], by_start);
    for (int i = 0; i < kernels; i++) {
        uint64_t from = kernel[i].from > reached ? kernel[i].from : reached;
        if (kernel[i].to > from)
            sum += kernel[i].to - from;
        reached = kernel[i].to > reached ? kernel[i].to : reached;
    }
    return sum;
}

/* ---- the driver ---- */

static CUresult launch_kernel(CUfunction f, unsigned int x, unsigned int y, unsigned int z, unsigned int bx,
                              unsigned int by, unsigned int bz, unsigned int shared, CUstream stream,
                              void **params, void **extra) {
    (void)f, (void)x, (void)y, (void)z, (void)bx, (void)by, (void)bz, (void)shared, (void)params, (void)extra;
    if (next_result != CUDA_SUCCESS)
        return next_result;
    if (!stream_of(stream)->capturing)
        work(stream, next_ns, true);
    return CUDA_SUCCESS;
}
static CUresult graph_launch(CUgraphExec graph, CUstream stream) {
    (void)graph;
    work(stream, next_ns, true);
    return CUDA_SUCCESS;
}
static CUresult wait_event(CUstream stream, CUevent event, unsigned int flags) {
    (void)flags;
    struct CUstream_st *waits = stream_of(stream);
    if (waits->free_ns < event->at_ns)
        waits->free_ns = event->at_ns;
    return CUDA_SUCCESS;
}
static CUresult copy(CUdeviceptr to, const void *from, size_t ns, CUstream stream) {
    (void)to, (void)from;
    work(stream, ns, false);
    return CUDA_SUCCESS;
}
static CUresult get_attribute(int *value, CUdevice_attribute which, CUdevice device) {
    (void)which, (void)device;
    *value = 64;
    return CUDA_SUCCESS;
}
static CUresult event_create(CUevent *event, unsigned int flags) {
    (void)flags;
    *event = calloc(1, sizeof **event);
    return CUDA_SUCCESS;
}
static CUresult event_destroy(CUevent event) {
    free(event);
    return CUDA_SUCCESS;
}
static CUresult event_record(CUevent event, CUstream handle) {
    struct CUstream_st *stream = stream_of(handle);
    stray_calls += stream->capturing;
    event->at_ns = stream->free_ns > now_ns ? stream->free_ns : now_ns;
    now_ns += CALL_NS;
    return CUDA_SUCCESS;
}
static CUresult event_query(CUevent event) {
    return event->at_ns <= now_ns ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
static CUresult event_synchronize(CUevent event) {
    now_ns = event->at_ns > now_ns ? event->at_ns : now_ns;
    return CUDA_SUCCESS;
}
static CUresult event_elapsed(float *ms, CUevent from, CUevent to) {
    if (event_query(from) != CUDA_SUCCESS || event_query(to) != CUDA_SUCCESS)
        return CUDA_ERROR_NOT_READY;
    *ms = (float)((double)(int64_t)(to->at_ns - from->at_ns) / 1e6);
    return CUDA_SUCCESS;
}
static CUresult stream_synchronize(CUstream handle) {
    struct CUstream_st *stream = stream_of(handle);
    now_ns = stream->free_ns > now_ns ? stream->free_ns : now_ns;
    return CUDA_SUCCESS;
}
static struct CUstream_st streams[8];
static CUresult ctx_synchronize(void) {
    for (int i = 0; i < 8; i++)
        stream_synchronize(&streams[i]);
    stream_synchronize(CU_STREAM_LEGACY);
    return stream_synchronize(CU_STREAM_PER_THREAD);
}
static CUresult stream_query(CUstream stream) {
    return stream_of(stream)->free_ns <= now_ns ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
static CUresult stream_destroy(CUstream stream) {
    (void)stream;
    return CUDA_SUCCESS;
}
static CUresult is_capturing(CUstream stream, CUstreamCaptureStatus *status) {
    *status = stream_of(stream)->capturing ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
}
static CUresult begin_capture(CUstream stream, CUstreamCaptureMode mode) {
    (void)mode;
    stream->capturing = true;
    return CUDA_SUCCESS;
}
static CUresult end_capture(CUstream stream, CUgraph *graph) {
    (void)graph;
    stream->capturing = false;
    return CUDA_SUCCESS;
}
static CUresult exchange_mode(CUstreamCaptureMode *mode) {
    *mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
    return CUDA_SUCCESS;
}
static CUresult get_current(CUcontext *context) {
    *context = the_context;
    return CUDA_SUCCESS;
}
static CUresult get_device(CUdevice *device) {
    *device = 0;
    return CUDA_SUCCESS;
}
static CUresult get_id(CUcontext context, unsigned long long *id) {
    (void)context;
    *id = 7;
    return CUDA_SUCCESS;
}
static CUresult get_stream_context(CUstream stream, CUcontext *context) {
    (void)stream;
    *context = the_context;
    return CUDA_SUCCESS;
}
static CUresult primary_state(CUdevice device, unsigned int *flags, int *active) {
    (void)device;
    *flags = 0;
    *active = 0;
    return CUDA_SUCCESS;
}

struct vcuda_real vcuda_real = {.cuLaunchKernel = launch_kernel,
                                .cuLaunchKernel_ptsz = launch_kernel,
                                .cuGraphLaunch = graph_launch,
                                .cuStreamWaitEvent = wait_event,
                                .cuMemcpyHtoDAsync_v2 = copy,
                                .cuEventCreate = event_create,
                                .cuEventDestroy_v2 = event_destroy,
                                .cuEventRecord = event_record,
                                .cuEventQuery = event_query,
                                .cuEventSynchronize = event_synchronize,
                                .cuEventElapsedTime_v2 = event_elapsed,
                                .cuStreamSynchronize = stream_synchronize,
                                .cuCtxSynchronize = ctx_synchronize,
                                .cuStreamQuery = stream_query,
                                .cuStreamDestroy_v2 = stream_destroy,
                                .cuStreamIsCapturing = is_capturing,
                                .cuStreamBeginCapture_v2 = begin_capture,
                                .cuStreamEndCapture = end_capture,
                                .cuThreadExchangeStreamCaptureMode = exchange_mode,
                                .cuCtxGetCurrent = get_current,
                                .cuCtxGetDevice = get_device,
                                .cuDeviceGetAttribute = get_attribute,
                                .cuCtxGetId = get_id,
                                .cuStreamGetCtx = get_stream_context,
                                .cuDevicePrimaryCtxGetState = primary_state};

/* ---- the rest of the shim ---- */

static struct vcuda_slot slot;
static const uint32_t alive = 1;
static struct vcuda_grant_card grant_card = {.core_ppm = VCUDA_PPM, .core_max_ppm = VCUDA_PPM};
static struct vcuda_ledger ledger;
static struct vcuda_share share = {
    .grant = {.card_count = 1, .card_bytes = sizeof grant_card, .cards = (const char *)&grant_card},
    .ledger = {.header = &ledger},
    .alive = &alive};
struct vcuda_share *vcuda_share_attached = &share;
__thread int vcuda_depth;
bool vcuda_pools_in_use, vcuda_graph_memory_in_use;

struct vcuda_slot *vcuda_ledger_slot(const struct vcuda_ledger_map *map, uint32_t index) {
    (void)map, (void)index;
    return &slot;
}
uint32_t vcuda_ledger_reclaim(const struct vcuda_ledger_map *map) {
    (void)map;
    return 0;
}
void vcuda_pools_settle(struct vcuda_share *of) {
    (void)of;
}
bool vcuda_graph_memory_admit(struct vcuda_share *of, CUgraphExec graph, struct vcuda_graph_ticket *ticket) {
    (void)of, (void)graph, (void)ticket;
    return true;
}
void vcuda_graph_memory_settle(struct vcuda_share *of, const struct vcuda_graph_ticket *ticket) {
    (void)of, (void)ticket;
}
/* The metering's own clock: the wait's length is the model's. */
int clock_gettime(clockid_t clock, struct timespec *time) {
    (void)clock;
    *time = (struct timespec){(time_t)(now_ns / 1000000000), (long)(now_ns % 1000000000)};
    return 0;
}

/* ---- programs ---- */

static const CUfunction one = (CUfunction)(uintptr_t)0x1000, other = (CUfunction)(uintptr_t)0x2000;

static void launch(CUfunction function, CUstream stream, uint64_t ns) {
    next_ns = ns;
    CHECK(cuLaunchKernel(function, 64, 1, 1, 128, 1, 1, 0, stream, NULL, NULL) == CUDA_SUCCESS);
}

static void check_within(double percent) {
    uint64_t found = slot.cards[0].gpu_ns, expected = truth();
    double error = 100.0 * ((double)found - (double)expected) / (double)expected;
    if (error > percent || error < -percent) {
        fprintf(stderr, "GPU time is %" PRIu64 " ns, not %" PRIu64 ": %.2f %% off\n", found, expected, error);
        exit(1);
    }
    CHECK_EQUAL(slot.cards[0].launches, kernels);
}

PROMISE(waited_for_one_by_one) {
    for (int i = 0; i < 100; i++) {
        launch(one, &streams[0], MS);
        CHECK(cuStreamSynchronize(&streams[0]) == CUDA_SUCCESS);
    }
    check_within(0.5);
}

PROMISE(small_ones_waited_for_one_by_one) {
    for (int i = 0; i < 10000; i++) {
        launch(one, &streams[0], 20 * US);
        CHECK(cuStreamSynchronize(&streams[0]) == CUDA_SUCCESS);
        now_ns += 5 * US;
    }
    check_within(2);
}

PROMISE(a_deep_queue) {
    for (int i = 0; i < 1000; i++)
        launch(one, &streams[0], MS);
    CHECK(cuCtxSynchronize() == CUDA_SUCCESS);
    check_within(0.1);
}

PROMISE(a_deep_queue_of_kernels_that_differ) {
    srand(1);
    for (int i = 0; i < 3000; i++)
        launch(one, &streams[0], (uint64_t)(10 + rand() % 2000) * US);
    CHECK(cuStreamSynchronize(&streams[0]) == CUDA_SUCCESS);
    check_within(0.1);
}

PROMISE(long_and_short_by_turns_waited_for) {
    for (int i = 0; i < 2000; i++) {
        launch(one, &streams[0], i % 2 ? 5 * MS : 10 * US);
        CHECK(cuStreamSynchronize(&streams[0]) == CUDA_SUCCESS);
    }
    check_within(1);
}

PROMISE(a_change_of_cost_is_noticed) {
    for (int i = 0; i < 2000; i++) {
        launch(one, &streams[0], i < 1000 ? 10 * US : 20 * MS);
        CHECK(cuStreamSynchronize(&streams[0]) == CUDA_SUCCESS);
    }
    check_within(0.5);
}

PROMISE(bursts_with_pauses) {
    for (int burst = 0; burst < 200; burst++) {
        for (int i = 0; i < 30; i++)
            launch(i % 3 ? one : other, &streams[0], i % 3 ? 30 * US : 90 * US);
        now_ns += 7 * MS; /* the stream runs dry, and nobody waits for it */
    }
    CHECK(cuCtxSynchronize() == CUDA_SUCCESS);
    check_within(2);
}

PROMISE(four_streams_side_by_side) {
    for (int i = 0; i < 250; i++)
        for (int stream = 0; stream < 4; stream++)
            launch(one, &streams[stream], MS);
    CHECK(cuCtxSynchronize() == CUDA_SUCCESS);
    check_within(0.5);
}

PROMISE(four_streams_waited_for) {
    for (int round = 0; round < 100; round++) {
        for (int stream = 0; stream < 4; stream++)
            launch(one, &streams[stream], MS);
        CHECK(cuCtxSynchronize() == CUDA_SUCCESS);
    }
    check_within(2);
}

PROMISE(four_streams_of_small_ones) {
    for (int round = 0; round < 100; round++) {
        for (int i = 0; i < 100; i++)
            for (int stream = 0; stream < 4; stream++)
                launch(one, &streams[stream], 50 * US);
        CHECK(cuCtxSynchronize() == CUDA_SUCCESS);
    }
    check_within(2);
}

PROMISE(streams_one_after_the_other) {
    for (int i = 0; i < 400; i++) {
        launch(one, &streams[i % 4], 300 * US);
        CHECK(cuStreamSynchronize(&streams[i % 4]) == CUDA_SUCCESS);
    }
    check_within(2);
}

PROMISE(a_long_one_beside_many_short_ones) {
    launch(other, &streams[1], 500 * (uint64_t)MS);
    for (int i = 0; i < 400; i++) {
        launch(one, &streams[0], MS / 2);
        CHECK(cuStreamSynchronize(&streams[0]) == CUDA_SUCCESS);
        now_ns += MS / 2;
    }
    CHECK(cuCtxSynchronize() == CUDA_SUCCESS);
    check_within(0.5);
}

PROMISE(copies_between_kernels_are_not_core_time) {
    for (int i = 0; i < 1000; i++) {
        launch(one, &streams[0], 500 * US);
        CHECK(cuMemcpyHtoDAsync_v2(0, NULL, 500 * US, &streams[0]) == CUDA_SUCCESS);
    }
    CHECK(cuStreamSynchronize(&streams[0]) == CUDA_SUCCESS);
    check_within(2);
}

PROMISE(waiting_for_another_stream_is_not_core_time) {
    for (int i = 0; i < 500; i++) {
        struct CUevent_st event = {now_ns + 9 * MS};
        CHECK(cuStreamWaitEvent(&streams[0], &event, 0) == CUDA_SUCCESS);
        for (int k = 0; k < 10; k++)
            launch(one, &streams[0], 300 * US);
        now_ns += MS;
    }
    CHECK(cuStreamSynchronize(&streams[0]) == CUDA_SUCCESS);
    check_within(2);
}

PROMISE(graphs_are_kinds_of_their_own) {
    for (int i = 0; i < 300; i++) {
        next_ns = i % 2 ? 7 * MS : 200 * US;
        CHECK(cuGraphLaunch((CUgraphExec)(uintptr_t)(0x5000 + 0x100 * (i % 2)), &streams[0]) == CUDA_SUCCESS);
        if (i % 10 == 0)
            CHECK(cuStreamSynchronize(&streams[0]) == CUDA_SUCCESS);
    }
    CHECK(cuStreamSynchronize(&streams[0]) == CUDA_SUCCESS);
    check_within(0.5);
}

PROMISE(default_streams_are_metered) {
    for (int i = 0; i < 300; i++) {
        launch(one, NULL, MS);
        launch(one, CU_STREAM_PER_THREAD, MS);
        next_ns = MS;
        CHECK(cuLaunchKernel_ptsz(one, 64, 1, 1, 128, 1, 1, 0, NULL, NULL, NULL) == CUDA_SUCCESS);
    }
    CHECK(cuCtxSynchronize() == CUDA_SUCCESS);
    check_within(0.5);
}

PROMISE(a_poll_reads_what_a_wait_would) {
    for (int i = 0; i < 100; i++) {
        launch(one, &streams[0], MS);
        while (cuStreamQuery(&streams[0]) == CUDA_ERROR_NOT_READY)
            now_ns += 10 * US;
    }
    check_within(0.5);
}

PROMISE(streams_by_turns_waited_for_by_events) {
    for (int i = 0; i < 400; i++) {
        struct CUevent_st event = {0};
        launch(one, &streams[i % 4], 300 * US);
        event_record(&event, &streams[i % 4]);
        CHECK(cuEventSynchronize(&event) == CUDA_SUCCESS);
    }
    CHECK(cuCtxSynchronize() == CUDA_SUCCESS);
    check_within(2);
}

PROMISE(a_destroyed_stream_is_accounted) {
    for (int i = 0; i < 100; i++) {
        for (int k = 0; k < 20; k++)
            launch(one, &streams[i % 8], MS);
        CHECK(cuStreamDestroy_v2(&streams[i % 8]) == CUDA_SUCCESS);
        if (i % 8 == 7)
            CHECK(cuCtxSynchronize() == CUDA_SUCCESS);
    }
    CHECK(cuCtxSynchronize() == CUDA_SUCCESS);
    check_within(1);
}

PROMISE(a_host_that_is_held_up_costs_nothing) {
    for (int i = 0; i < 1000; i++) {
        launch(one, &streams[0], 2 * MS);
        CHECK(cuStreamSynchronize(&streams[0]) == CUDA_SUCCESS);
        now_ns += i % 10 ? 0 : 50 * MS;
    }
    check_within(0.5);
}

PROMISE(refused_launches_leave_no_trace) {
    launch(one, &streams[0], MS);
    CHECK(cuStreamSynchronize(&streams[0]) == CUDA_SUCCESS);
    next_result = CUDA_ERROR_INVALID_VALUE;
    for (int i = 0; i < 1000; i++)
        CHECK(cuLaunchKernel(i % 2 ? one : other, 64, 1, 1, 128, 1, 1, 0, &streams[0], NULL, NULL) ==
              CUDA_ERROR_INVALID_VALUE);
    next_result = CUDA_SUCCESS;
    CHECK(cuCtxSynchronize() == CUDA_SUCCESS);
    check_within(0.5);
}

PROMISE(nothing_enters_a_capturing_stream) {
    for (int i = 0; i < 10; i++)
        launch(one, &streams[0], MS);
    CHECK(cuStreamBeginCapture_v2(&streams[0], CU_STREAM_CAPTURE_MODE_GLOBAL) == CUDA_SUCCESS);
    CHECK_EQUAL(vcuda_captures, 1);
    for (int i = 0; i < 1000; i++) {
        launch(i % 2 ? one : other, &streams[0], MS);
        launch(i % 2 ? one : other, &streams[1], MS);
    }
    CHECK(cuStreamEndCapture(&streams[0], NULL) == CUDA_SUCCESS);
    CHECK_EQUAL(vcuda_captures, 0);
    CHECK_EQUAL(stray_calls, 0);
    CHECK(cuCtxSynchronize() == CUDA_SUCCESS);
    check_within(0.5);
}

PROMISE(more_streams_than_records) {
    static struct CUstream_st many[2000];
    for (int round = 0; round < 3; round++)
        for (int i = 0; i < 2000; i++) {
            launch(one, &many[i], MS);
            CHECK(cuStreamSynchronize(&many[i]) == CUDA_SUCCESS);
        }
    check_within(0.5);
}

int main(int argc, char **argv) {
    return keep_promises(argc, argv);
}
