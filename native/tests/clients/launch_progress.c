/*
 * Work that waits for work: `launch_progress` prints a line for each program that has come to its end.
 * Whoever stands between it and the driver and waits for the card where the program does not, makes it hang.
 */
#include <semaphore.h>

#include "launch_work.h"

static CUdeviceptr value;
static sem_t called, launched;

static void reset(void) {
    uint32_t zero = 0;
    MUST(cuMemcpyHtoD_v2(value, &zero, sizeof zero));
}

/* A stream waits for a value that work launched later writes. */
static void waits_for_a_value(void) {
    reset();
    for (int i = 0; i < 20; i++)
        launch_blocks(streams[0], 4, MS);
    MUST(cuStreamWaitValue32_v2(streams[0], value, 1, CU_STREAM_WAIT_VALUE_GEQ));
    for (unsigned int i = 0; i < 400; i++)
        launch_blocks(streams[0], 1U << i % 6, 10 * US);
    for (unsigned int i = 0; i < 400; i++)
        launch_blocks(streams[1], 1U << i % 6, 10 * US);
    MUST(cuStreamSynchronize(streams[1]));
    MUST(cuStreamWriteValue32_v2(streams[1], value, 1, 0));
    MUST(cuCtxSynchronize());
}

/* A thread is held up by a full queue; what empties it is launched by another, which uses all kinds of calls.
 */
static void *fill(void *unused) {
    (void)unused;
    MUST(cuCtxSetCurrent(context));
    for (unsigned int i = 0; i < 3000; i++)
        launch_blocks(streams[0], 1U << i % 6, 2 * US);
    sem_post(&launched);
    return NULL;
}

static void a_full_queue(void) {
    pthread_t thread;
    CUstream other;
    CUevent event;
    reset();
    launch_blocks(streams[0], 4, MS);
    MUST(cuStreamWaitValue32_v2(streams[0], value, 1, CU_STREAM_WAIT_VALUE_GEQ));
    if (pthread_create(&thread, NULL, fill, NULL))
        exit(1);
    usleep(100000); /* long enough for it to be held up; if not, this run shows less */
    for (unsigned int i = 0; i < 400; i++)
        launch_blocks(streams[1], 1U << i % 8, 100 * US);
    MUST(cuEventCreate(&event, CU_EVENT_DEFAULT));
    MUST(cuEventRecord(event, streams[1]));
    MUST(cuEventSynchronize(event));
    MUST(cuEventDestroy_v2(event));
    MUST(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    launch_blocks(other, 4, MS);
    MUST(cuStreamSynchronize(other));
    MUST(cuStreamDestroy_v2(other));
    MUST(cuStreamDestroy_v2(streams[2]));
    MUST(cuStreamCreate(&streams[2], CU_STREAM_NON_BLOCKING));
    MUST(cuStreamWriteValue32_v2(streams[1], value, 1, 0));
    pthread_join(thread, NULL);
    sem_wait(&launched);
    MUST(cuCtxSynchronize());
}

/* A host function lets another thread launch what its stream waits for. */
static void CUDA_CB call(void *unused) {
    (void)unused;
    sem_post(&called);
}

static void *answer(void *unused) {
    (void)unused;
    MUST(cuCtxSetCurrent(context));
    sem_wait(&called);
    for (unsigned int i = 0; i < 50; i++)
        launch_blocks(streams[1], 1U << i % 4, 50 * US);
    MUST(cuStreamWriteValue32_v2(streams[1], value, 1, 0));
    return NULL;
}

static void a_host_function(void) {
    pthread_t thread;
    reset();
    if (pthread_create(&thread, NULL, answer, NULL))
        exit(1);
    launch_blocks(streams[0], 4, MS);
    MUST(cuLaunchHostFunc(streams[0], call, NULL));
    MUST(cuStreamWaitValue32_v2(streams[0], value, 1, CU_STREAM_WAIT_VALUE_GEQ));
    for (unsigned int i = 0; i < 100; i++)
        launch_blocks(streams[0], 1U << i % 5, 50 * US);
    MUST(cuStreamSynchronize(streams[0]));
    pthread_join(thread, NULL);
    MUST(cuCtxSynchronize());
}

int main(void) {
    set_up();
    sem_init(&called, 0, 0);
    sem_init(&launched, 0, 0);
    MUST(cuMemAlloc_v2(&value, 4));
    waits_for_a_value();
    puts("waits for a value");
    fflush(stdout);
    a_full_queue();
    puts("a full queue");
    fflush(stdout);
    a_host_function();
    puts("a host function");
    return 0;
}
