/*
 * Work that waits for work, under a share of GPU time: `limiter_progress KINDS DEBT_MS [limited]` prints a
 * line for each program that has come to its end. A launch that is held back until other work has ended makes
 * it hang.
 *
 * KINDS is `known`: what is launched has been measured before; or `unknown`: each program launches functions
 * that were never seen. Before a launch that is to wait, DEBT_MS of work are done. With `limited`, it is also
 * checked that it did wait.
 */
#include <semaphore.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/wait.h>

#include "launch_work.h"

enum { WORDS = 64, SHAPES = 4, KERNEL_US = 20, WAITING_MS = 2 };
enum { WAITING = 32, INDEBTED = 64 }; /* blocks: a shape is a kind, and each kind always takes as long */

static uint32_t *words; /* pinned: streams wait for them and write them, and so does the host */
static bool known, limited;
static uint64_t debt_ns;

/* Functions are told apart by their handles, so those of a module that is loaded again are new. */
static void fresh_functions(void) {
    CUmodule module;
    MUST(cuModuleLoadData(&module, spin_ptx));
    MUST(cuModuleGetFunction(&spin, module, "spin"));
}

static void begin(void) {
    memset(words, 0, WORDS * sizeof *words);
    if (!known)
        fresh_functions();
}

static void end(const char *name) {
    MUST(cuCtxSynchronize());
    puts(name);
    fflush(stdout);
}

static CUdeviceptr address(int word) {
    CUdeviceptr at;
    MUST(cuMemHostGetDevicePointer_v2(&at, words, 0));
    return at + (CUdeviceptr)word * sizeof *words;
}

static void await(CUstream stream, int word) {
    MUST(cuStreamWaitValue32_v2(stream, address(word), 1, CU_STREAM_WAIT_VALUE_GEQ));
}

static void raise_word(CUstream stream, int word) {
    MUST(cuStreamWriteValue32_v2(stream, address(word), 1, 0));
}

/* Kernels of several shapes, each of which is a kind. */
static void put(CUstream stream, int count) {
    for (int i = 0; i < count; i++)
        launch_blocks(stream, 1U << i % SHAPES, KERNEL_US * US);
}

static void measure_all_kinds(void) {
    for (int i = 0; i < 3 * SHAPES; i++) {
        launch_blocks(streams[0], 1U << i % SHAPES, KERNEL_US * US);
        MUST(cuStreamSynchronize(streams[0]));
    }
    launch_blocks(streams[0], WAITING, WAITING_MS * MS);
    MUST(cuStreamSynchronize(streams[0]));
}

static pthread_t start(void *(*run)(void *)) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, run, NULL))
        exit(1);
    return thread;
}

/* ---- values ---- */

static void waits_for_a_later_launch(void) {
    begin();
    put(streams[0], 4);
    await(streams[0], 0);
    put(streams[0], 20);
    put(streams[1], 20);
    MUST(cuStreamSynchronize(streams[1]));
    put(streams[1], 20);
    raise_word(streams[1], 0);
    end("a value that a later launch writes");
}

static void wait_and_write(CUstream stream, int wanted, int written) {
    CUstreamBatchMemOpParams operations[2];
    memset(operations, 0, sizeof operations);
    operations[0].waitValue.operation = CU_STREAM_MEM_OP_WAIT_VALUE_32;
    operations[0].waitValue.address = address(wanted);
    operations[0].waitValue.value = 1;
    operations[0].waitValue.flags = CU_STREAM_WAIT_VALUE_GEQ;
    operations[1].writeValue.operation = CU_STREAM_MEM_OP_WRITE_VALUE_32;
    operations[1].writeValue.address = address(written);
    operations[1].writeValue.value = 1;
    MUST(cuStreamBatchMemOp_v2(stream, 2, operations, 0));
}

/* The last stream waits for the one before, and so on; what the first waits for is launched last of all. */
static void a_batch(void) {
    begin();
    for (int i = 3; i >= 1; i--) {
        put(streams[i], 4);
        wait_and_write(streams[i], i, i + 1);
        put(streams[i], 4);
    }
    put(streams[0], 8);
    raise_word(streams[0], 1);
    MUST(cuStreamWaitValue32_v2(streams[0], address(4), 1, CU_STREAM_WAIT_VALUE_EQ));
    put(streams[0], 4);
    end("a chain of batched operations");
}

/* Round and round, each stream's part of all rounds submitted before the next stream's. */
static void a_ring_of_streams(void) {
    begin();
    for (int i = 3; i >= 0; i--)
        for (int round = 0; round < 5; round++) {
            if (i || round)
                await(streams[i], 4 * round + i);
            put(streams[i], 2);
            raise_word(streams[i], 4 * round + i + 1);
        }
    end("a ring of streams");
}

/* ---- host functions ---- */

static sem_t called;

static void CUDA_CB call(void *unused) {
    (void)unused;
    sem_post(&called);
}

static void *answer(void *unused) {
    (void)unused;
    MUST(cuCtxSetCurrent(context));
    for (int round = 0; round < 5; round++) {
        sem_wait(&called);
        put(streams[1], 4);
        raise_word(streams[1], round);
    }
    return NULL;
}

static void host_functions(void) {
    begin();
    pthread_t thread = start(answer);
    for (int round = 0; round < 5; round++) {
        put(streams[0], 4);
        MUST(cuLaunchHostFunc(streams[0], call, NULL));
        await(streams[0], round);
    }
    put(streams[0], 4);
    pthread_join(thread, NULL);
    end("host functions that let a thread launch");
}

static void CUDA_CB add(CUstream stream, CUresult status, void *counter) {
    (void)stream;
    must(status, "a callback's status");
    __atomic_fetch_add((int *)counter, 1, __ATOMIC_RELAXED);
}

static void callbacks(void) {
    int counter = 0;
    begin();
    for (int i = 0; i < 10; i++) {
        put(streams[i % 4], 1);
        MUST(cuStreamAddCallback(streams[i % 4], add, &counter, 0));
        put(streams[i % 4], 1);
    }
    MUST(cuCtxSynchronize());
    if (counter != 10)
        exit(1);
    end("callbacks between kernels");
}

/* ---- events ---- */

static void events_across_streams(void) {
    CUevent reached[4];
    begin();
    await(streams[0], 0);
    for (int i = 0; i < 4; i++) {
        MUST(cuEventCreate(&reached[i], i % 2 ? CU_EVENT_DISABLE_TIMING : CU_EVENT_DEFAULT));
        put(streams[i], 4);
        MUST(cuEventRecord(reached[i], streams[i]));
        MUST(cuStreamWaitEvent(streams[(i + 1) % 4], reached[i], 0));
    }
    if (cuEventQuery(reached[3]) != CUDA_ERROR_NOT_READY)
        exit(1);
    CUstream other;
    MUST(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    put(other, 4);
    raise_word(other, 0);
    MUST(cuEventSynchronize(reached[3]));
    for (int i = 0; i < 4; i++)
        MUST(cuEventDestroy_v2(reached[i]));
    MUST(cuStreamDestroy_v2(other));
    end("events across streams");
}

/* ---- default streams ---- */

/* The legacy stream waits for a blocking one, that for a value, and that is written by a launch behind both.
 */
static void the_legacy_stream(void) {
    CUstream blocking[2];
    begin();
    for (int i = 0; i < 2; i++)
        MUST(cuStreamCreate(&blocking[i], CU_STREAM_DEFAULT));
    await(blocking[0], 0);
    put(blocking[0], 4);
    put(NULL, 4);
    put(blocking[1], 4);
    put(CU_STREAM_LEGACY, 4);
    put(streams[0], 4);
    raise_word(streams[0], 0);
    for (int i = 0; i < 2; i++) {
        MUST(cuStreamSynchronize(blocking[i]));
        MUST(cuStreamDestroy_v2(blocking[i]));
    }
    end("the legacy stream");
}

static int place;

/* The later a thread came, the earlier it is waited for. */
static void *in_own_stream(void *unused) {
    uint64_t ns = KERNEL_US * US;
    void *parameters[] = {&ns};
    (void)unused;
    MUST(cuCtxSetCurrent(context));
    int own = __atomic_fetch_add(&place, 1, __ATOMIC_RELAXED);
    await(CU_STREAM_PER_THREAD, own + 1);
    for (int i = 0; i < 4; i++)
        MUST(cuLaunchKernel_ptsz(spin, 4, 1, 1, 32, 1, 1, 0, NULL, parameters, NULL));
    raise_word(CU_STREAM_PER_THREAD, own);
    MUST(cuStreamSynchronize(CU_STREAM_PER_THREAD));
    return NULL;
}

static void *write_the_last(void *unused) {
    (void)unused;
    MUST(cuCtxSetCurrent(context));
    while (__atomic_load_n(&place, __ATOMIC_RELAXED) < 3)
        usleep(1000);
    put(CU_STREAM_PER_THREAD, 2);
    raise_word(CU_STREAM_PER_THREAD, 3);
    return NULL;
}

static void streams_of_threads(void) {
    pthread_t threads[4];
    begin();
    place = 0;
    for (int i = 0; i < 4; i++)
        threads[i] = start(i < 3 ? in_own_stream : write_the_last);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    end("per-thread default streams");
}

/* ---- destroyed with work pending ---- */

static void contexts_destroyed(void) {
    CUfunction before = spin;
    begin();
    CUfunction kept = spin;
    for (int round = 0; round < 3; round++) {
        CUcontext other;
        CUstream stream;
        MUST(cuCtxCreate_v2(&other, 0, device));
        fresh_functions();
        MUST(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
        put(stream, 4);
        await(stream, 10); /* nobody writes it */
        put(stream, 4);
        put(NULL, 2);
        MUST(cuCtxDestroy_v2(other));
        MUST(cuCtxSetCurrent(context));
        spin = kept;
        put(streams[round], 4);
    }
    spin = known ? before : kept;
    end("contexts destroyed with work pending");
}

static volatile bool stop;

static void *launch_on(void *unused) {
    (void)unused;
    MUST(cuCtxSetCurrent(context));
    for (int i = 0; !stop && i < 10000; i++) {
        put(streams[1], 1);
        usleep(500);
    }
    return NULL;
}

static void streams_destroyed(void) {
    begin();
    stop = false;
    pthread_t thread = start(launch_on);
    for (int i = 0; i < 40; i++) {
        CUstream one;
        MUST(cuStreamCreate(&one, CU_STREAM_NON_BLOCKING));
        if (i % 4 == 0)
            await(one, 0);
        put(one, 1);
        MUST(cuStreamDestroy_v2(one));
    }
    put(streams[0], 1);
    raise_word(streams[0], 0);
    stop = true;
    pthread_join(thread, NULL);
    end("streams destroyed while another thread launches");
}

/* ---- a full queue ---- */

static void *fill(void *unused) {
    (void)unused;
    MUST(cuCtxSetCurrent(context));
    for (int i = 0; i < 1100; i++)
        launch_blocks(streams[0], 1, 1 * US);
    return NULL;
}

static void a_full_queue(void) {
    CUstream other;
    begin();
    if (known)
        for (int i = 0; i < 20; i++) { /* so that the mean is that of short ones */
            launch_blocks(streams[0], 1, 1 * US);
            MUST(cuStreamSynchronize(streams[0]));
        }
    await(streams[0], 0);
    pthread_t thread = start(fill);
    usleep(100000); /* long enough for the queue to be full; if not, this run shows less */
    put(streams[1], 20);
    MUST(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    put(other, 4);
    MUST(cuStreamSynchronize(other));
    MUST(cuStreamDestroy_v2(other));
    raise_word(streams[1], 0);
    pthread_join(thread, NULL);
    end("a full queue");
}

/* ---- while a launch waits ---- */

static volatile bool goes, gone;
static volatile int signals;

/* What it launches is more than any credit. */
static void *wait_to_launch(void *unused) {
    (void)unused;
    MUST(cuCtxSetCurrent(context));
    goes = true;
    for (int i = 0; i < 3; i++)
        launch_blocks(streams[2], WAITING, WAITING_MS * MS);
    gone = true;
    return NULL;
}

static pthread_t let_one_wait(void) {
    goes = gone = false;
    launch_blocks(streams[3], INDEBTED, debt_ns);
    MUST(cuStreamSynchronize(streams[3]));
    pthread_t thread = start(wait_to_launch);
    while (!goes)
        usleep(1000);
    usleep(20000); /* so that it is inside */
    return thread;
}

static void must_still_wait(const char *what) {
    if (limited && gone) {
        fprintf(stderr, "%s: the launch had gone before\n", what);
        exit(1);
    }
}

/* None of these is a launch, and none of them waits for what is launched elsewhere. */
static void other_calls(void) {
    CUdeviceptr memory;
    CUstream stream;
    CUevent event;
    size_t free_bytes, total_bytes;
    MUST(cuMemAlloc_v2(&memory, 1 << 20));
    MUST(cuMemGetInfo_v2(&free_bytes, &total_bytes));
    MUST(cuMemsetD8Async(memory, 0, 1 << 20, streams[1]));
    MUST(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    MUST(cuEventCreate(&event, CU_EVENT_DEFAULT));
    MUST(cuEventRecord(event, stream));
    MUST(cuStreamWaitEvent(streams[1], event, 0));
    MUST(cuEventSynchronize(event));
    MUST(cuStreamSynchronize(streams[1]));
    MUST(cuStreamQuery(streams[0]));
    MUST(cuEventDestroy_v2(event));
    MUST(cuStreamDestroy_v2(stream));
    MUST(cuMemFree_v2(memory));
}

static void calls_go_on(void) {
    begin();
    pthread_t thread = let_one_wait();
    other_calls();
    must_still_wait("other calls");
    pthread_join(thread, NULL);
    end("other calls while a launch waits");
}

static void on_signal(int number) {
    (void)number;
    signals++;
}

static void signals_arrive(void) {
    struct sigaction action = {.sa_handler = on_signal};
    begin();
    sigaction(SIGUSR1, &action, NULL);
    pthread_t thread = let_one_wait();
    for (int i = 0; i < 10; i++) {
        pthread_kill(thread, SIGUSR1);
        usleep(2000);
    }
    must_still_wait("signals");
    pthread_join(thread, NULL);
    if (limited && signals == 0)
        exit(1);
    end("signals while a launch waits");
}

static void must_end_well(pid_t child) {
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
        fprintf(stderr, "a child ended badly\n");
        exit(1);
    }
}

/* Whoever holds something in the parent is not in the child to let go of it. */
static void children(void) {
    begin();
    pthread_t thread = let_one_wait();
    pid_t child = fork();
    if (child == 0) {
        free(malloc(100));
        _exit(0);
    }
    must_end_well(child);
    must_still_wait("a child");
    child = fork();
    if (child == 0) /* drivers do not start again in a child: what they say to that must come */
        _exit(cuInit(0) == CUDA_SUCCESS);
    must_end_well(child);
    pthread_join(thread, NULL);
    end("children of a process that waits");
}

/* Forked before either has begun, parent and child are two processes like any other two. */
static void set_up_beside_a_child(void) {
    pid_t child = fork();
    set_up();
    put(streams[0], 8);
    MUST(cuCtxSynchronize());
    if (child == 0)
        _exit(0);
    must_end_well(child);
    end("a child forked before either began");
}

int main(int argc, char **argv) {
    if (argc < 3)
        return 2;
    known = strcmp(argv[1], "known") == 0;
    debt_ns = strtoull(argv[2], NULL, 10) * MS;
    limited = argc > 3;
    sem_init(&called, 0, 0);
    set_up_beside_a_child();
    MUST(cuMemHostAlloc((void **)&words, WORDS * sizeof *words, CU_MEMHOSTALLOC_DEVICEMAP));
    if (known)
        measure_all_kinds();
    waits_for_a_later_launch();
    a_batch();
    a_ring_of_streams();
    host_functions();
    callbacks();
    events_across_streams();
    the_legacy_stream();
    streams_of_threads();
    contexts_destroyed();
    streams_destroyed();
    a_full_queue();
    calls_go_on();
    signals_arrive();
    children();
    let_one_wait();
    puts("the end, while a launch waits");
    return 0;
}
