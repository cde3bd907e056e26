/*
 * Work on the simulated card: streams, events, launches, host functions, values in memory.
 *
 * build: native/simgpu/machine.c native/simgpu/models.c native/simgpu/timeline.c
 * build: build/native/sim/libcuda.so.1
 */
#include "simgpu_work.h"

#include <pthread.h>

/* ---- kernels and events ---- */

PROMISE(a_kernel_lasts_as_long_as_it_is_told) {
    on_v100();
    CUfunction kernel = function_of("spin");
    CUstream stream = new_stream();
    hold(stream);
    CUevent start = recorded(stream);
    OK(spin(kernel, stream, 3 * MS));
    CUevent end = recorded(stream);
    release();
    OK(cuEventSynchronize(end));
    CHECK_NEAR(between(start, end), 3 * MS);
    CHECK_NEAR(between(end, start), -3 * (long long)MS);
}

PROMISE(other_kernels_take_waves_of_blocks) {
    on_v100();
    CUfunction kernel = function_of("none");
    CUstream stream = new_stream();
    hold(stream);
    CUevent start = recorded(stream);
    /* 2,048 threads of an SM are 8 blocks of 256: 641 blocks on 80 SMs are two waves of 10 us. */
    OK(cuLaunchKernel(kernel, 641, 1, 1, 256, 1, 1, 0, stream, NULL, NULL));
    CUevent end = recorded(stream);
    release();
    OK(cuStreamSynchronize(stream));
    CHECK_NEAR(between(start, end), 20000);
}

PROMISE(streams_of_a_process_overlap) {
    on_v100();
    CUfunction kernel = function_of("spin");
    CUstream held = new_stream(), one = new_stream(), other = new_stream();
    hold(held);
    CUevent start = recorded(held);
    OK(cuStreamWaitEvent(one, start, 0));
    OK(cuStreamWaitEvent(other, start, 0));
    OK(spin_small(kernel, one, 4 * MS));
    OK(spin_small(kernel, other, 4 * MS));
    CUevent ends[] = {recorded(one), recorded(other)};
    release();
    OK(cuCtxSynchronize());
    CHECK_NEAR(between(start, ends[0]), 4 * MS);
    CHECK_NEAR(between(start, ends[1]), 4 * MS);
}

PROMISE(the_legacy_stream_waits_for_blocking_ones) {
    CUstream blocking;
    on_v100();
    CUfunction kernel = function_of("spin");
    OK(cuStreamCreate(&blocking, CU_STREAM_DEFAULT));
    hold(blocking);
    OK(spin_small(kernel, blocking, 3 * MS));
    CUevent end = recorded(blocking);
    OK(spin_small(kernel, NULL, 2 * MS));
    CUevent legacy = recorded(CU_STREAM_LEGACY);
    OK(spin_small(kernel, blocking, 1 * MS));
    CUevent after = recorded(blocking);
    release();
    OK(cuEventSynchronize(after));
    CHECK_NEAR(between(end, legacy), 2 * MS);
    CHECK_NEAR(between(legacy, after), 1 * MS);
}

PROMISE(events_answer_as_documented) {
    on_v100();
    CUfunction kernel = function_of("spin");
    CUstream stream = new_stream();
    CUevent fresh = new_event(), untimed;
    float ms;
    OK(cuEventQuery(fresh));
    OK(cuEventSynchronize(fresh));
    OK(cuEventCreate(&untimed, CU_EVENT_DISABLE_TIMING));
    OK(cuEventRecord(untimed, stream));
    CHECK_EQUAL(cuEventElapsedTime(&ms, untimed, untimed), CUDA_ERROR_INVALID_HANDLE);
    CHECK_EQUAL(cuEventElapsedTime(&ms, fresh, fresh), CUDA_ERROR_INVALID_HANDLE);
    OK(cuEventRecord(fresh, stream));
    hold(stream);
    OK(spin(kernel, stream, MS));
    CUevent end = recorded(stream);
    CHECK_EQUAL(cuEventQuery(end), CUDA_ERROR_NOT_READY);
    CHECK_EQUAL(cuStreamQuery(stream), CUDA_ERROR_NOT_READY);
    CHECK_EQUAL(cuEventElapsedTime(&ms, fresh, end), CUDA_ERROR_NOT_READY);
    OK(cuEventDestroy_v2(end)); /* pending: it is let go of */
    CHECK_EQUAL(cuEventQuery(end), CUDA_ERROR_INVALID_HANDLE);
    release();
    OK(cuStreamSynchronize(stream));
    OK(cuStreamQuery(stream));
    CHECK_EQUAL(cuEventRecordWithFlags(fresh, stream, CU_EVENT_RECORD_EXTERNAL), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuEventCreate(&end, 0x80), CUDA_ERROR_INVALID_VALUE);
}

PROMISE(a_thousand_launches_are_pending_before_one_blocks) {
    const char *why;
    on_v100();
    CUfunction kernel = function_of("spin");
    CUstream stream = new_stream();
    for (int i = 0; i < 1024; i++)
        OK(spin(kernel, stream, 100000));
    uint64_t before = sim_now_ns();
    CUevent end = recorded(stream); /* one too many: waits until the first has ended */
    struct sim_timeline *timeline = &sim_machine_open(&why)->cards[0].timeline;
    sim_machine_lock();
    sim_timeline_advance(timeline, sim_now_ns());
    uint64_t kernels = timeline->processes[0].kernels + timeline->processes[1].kernels;
    sim_machine_unlock();
    CHECK(kernels >= 1 && sim_now_ns() > before);
    OK(cuEventSynchronize(end));
}

/* ---- what cannot be launched ---- */

PROMISE(launches_are_checked) {
    on_v100();
    CUfunction kernel = function_of("add"), none = function_of("none");
    unsigned long long a = 0;
    unsigned int n = 0;
    char s[24], c = 0;
    void *parameters[] = {&a, &n, s, &c}, *missing[] = {&a, NULL, s, &c};
    OK(cuLaunchKernel(kernel, 1, 1, 1, 256, 1, 1, 0, NULL, parameters, NULL));
    CHECK_EQUAL(cuLaunchKernel(kernel, 1, 1, 1, 257, 1, 1, 0, NULL, parameters, NULL),
                CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuLaunchKernel(none, 1, 1, 1, 1025, 1, 1, 0, NULL, NULL, NULL), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuLaunchKernel(none, 0, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuLaunchKernel(none, 1, 65536, 1, 1, 1, 1, 0, NULL, NULL, NULL), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuLaunchKernel(none, 1, 1, 1, 1, 1, 65, 0, NULL, NULL, NULL), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuLaunchKernel(none, 1, 1, 1, 1, 1, 1, 49153, NULL, NULL, NULL), CUDA_ERROR_INVALID_VALUE);
    OK(cuFuncSetAttribute(none, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 65536));
    OK(cuLaunchKernel(none, 1, 1, 1, 1, 1, 1, 65536, NULL, NULL, NULL));
    CHECK_EQUAL(cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, NULL, missing, NULL), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuLaunchKernel(NULL, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL), CUDA_ERROR_INVALID_HANDLE);
    CHECK_EQUAL(cuLaunchKernel(none, 1, 1, 1, 1, 1, 1, 0, (CUstream)&a, NULL, NULL),
                CUDA_ERROR_INVALID_HANDLE);
    OK(cuLaunchCooperativeKernel(none, 160, 1, 1, 1024, 1, 1, 0, NULL, NULL));
    CHECK_EQUAL(cuLaunchCooperativeKernel(none, 161, 1, 1, 1024, 1, 1, 0, NULL, NULL),
                CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
    OK(cuCtxSynchronize());
}

PROMISE(each_way_to_launch_takes_the_same_time) {
    on_v100();
    CUfunction kernel = function_of("spin");
    CUstream stream = new_stream();
    unsigned long long ns = 2 * MS;
    size_t bytes = sizeof ns;
    void *parameters[] = {&ns};
    void *extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, &ns, CU_LAUNCH_PARAM_BUFFER_SIZE, &bytes,
                     CU_LAUNCH_PARAM_END};
    CUlaunchConfig config = {1, 1, 1, 1, 1, 1, 0, stream, NULL, 0};
    CUDA_LAUNCH_PARAMS several = {kernel, 1, 1, 1, 1, 1, 1, 0, stream, parameters};
    CUevent events[8];
    hold(stream);
    events[0] = recorded(stream);
    OK(cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, stream, NULL, extra));
    events[1] = recorded(stream);
    OK(cuLaunchKernelEx(&config, kernel, parameters, NULL));
    events[2] = recorded(stream);
    OK(cuLaunchCooperativeKernel(kernel, 1, 1, 1, 1, 1, 1, 0, stream, parameters));
    events[3] = recorded(stream);
    OK(cuLaunchCooperativeKernelMultiDevice(&several, 1, 0));
    events[4] = recorded(stream);
    OK(cuFuncSetBlockShape(kernel, 1, 1, 1));
    OK(cuParamSetSize(kernel, 8));
    OK(cuParamSetv(kernel, 0, &ns, 8));
    OK(cuLaunchGridAsync(kernel, 1, 1, stream));
    events[5] = recorded(stream);
    release();
    OK(cuStreamSynchronize(stream));
    for (int i = 0; i < 5; i++)
        CHECK_NEAR(between(events[i], events[i + 1]), 2 * MS);
}

/* ---- streams ---- */

PROMISE(a_stream_with_work_may_be_destroyed) {
    on_v100();
    CUfunction kernel = function_of("spin");
    CUstream stream = new_stream();
    hold(stream);
    OK(spin(kernel, stream, MS));
    CUevent end = recorded(stream);
    OK(cuStreamDestroy_v2(stream));
    CHECK_EQUAL(cuStreamQuery(stream), CUDA_ERROR_INVALID_HANDLE);
    CHECK_EQUAL(cuEventQuery(end), CUDA_ERROR_NOT_READY);
    release();
    OK(cuCtxSynchronize()); /* waits for what the stream had */
    OK(cuEventQuery(end));
    CHECK_EQUAL(cuStreamDestroy_v2(NULL), CUDA_ERROR_INVALID_HANDLE);
}

PROMISE(streams_tell_what_they_are) {
    CUstream stream;
    CUcontext context = on_v100(), found;
    CUdevice device;
    unsigned int flags;
    int priority;
    unsigned long long id, other;
    CUstreamAttrValue value;
    OK(cuStreamCreateWithPriority(&stream, CU_STREAM_NON_BLOCKING, -100));
    OK(cuStreamGetFlags(stream, &flags));
    OK(cuStreamGetPriority(stream, &priority));
    OK(cuStreamGetCtx(stream, &found));
    OK(cuStreamGetId(stream, &id));
    OK(cuStreamGetId(NULL, &other));
    OK(cuStreamGetDevice(stream, &device));
    CHECK(flags == CU_STREAM_NON_BLOCKING && priority == -5 && found == context && id != other &&
          device == 0);
    value.syncPolicy = CU_SYNC_POLICY_SPIN;
    OK(cuStreamSetAttribute(stream, CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY, &value));
    OK(cuStreamCopyAttributes(NULL, stream));
    value.syncPolicy = 0;
    OK(cuStreamGetAttribute(NULL, CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY, &value));
    CHECK_EQUAL(value.syncPolicy, CU_SYNC_POLICY_SPIN);
    CHECK_EQUAL(cuStreamCreate(&stream, 2), CUDA_ERROR_INVALID_VALUE);
}

static void *use_own_default_stream(void *context) {
    unsigned long long id;
    OK(cuCtxSetCurrent(context));
    OK(cuStreamGetId_ptsz(NULL, &id));
    OK(cuStreamSynchronize_ptsz(NULL));
    return (void *)(uintptr_t)id;
}

PROMISE(each_thread_has_a_default_stream_of_its_own) {
    unsigned long long mine, named, legacy;
    CUcontext context = on_v100();
    OK(cuStreamGetId_ptsz(NULL, &mine));
    OK(cuStreamGetId(CU_STREAM_PER_THREAD, &named));
    OK(cuStreamGetId(NULL, &legacy));
    CHECK(mine == named && mine != legacy);
    for (int i = 0; i < 5000; i++) { /* more than the model has streams: they go with their threads */
        pthread_t thread;
        void *other;
        CHECK(pthread_create(&thread, NULL, use_own_default_stream, context) == 0);
        CHECK(pthread_join(thread, &other) == 0);
        CHECK((uintptr_t)other != mine);
    }
}

PROMISE(nothing_crashes_on_a_handle_that_is_none) {
    on_v100();
    void *bad[] = {NULL, (void *)3, (void *)0x123456, (void *)-1L, (void *)(uintptr_t)spin_ptx};
    for (int i = 0; i < 5; i++) {
        float ms;
        unsigned int count;
        int value;
        const char *name;
        CUgraph graph;
        CHECK_EQUAL(cuEventQuery(bad[i]), CUDA_ERROR_INVALID_HANDLE);
        CHECK_EQUAL(cuEventRecord(bad[i], NULL), CUDA_ERROR_INVALID_HANDLE);
        CHECK_EQUAL(cuEventElapsedTime(&ms, bad[i], bad[i]), CUDA_ERROR_INVALID_HANDLE);
        CHECK_EQUAL(cuModuleUnload(bad[i]), CUDA_ERROR_INVALID_HANDLE);
        CHECK_EQUAL(cuModuleGetFunctionCount(&count, bad[i]), CUDA_ERROR_INVALID_HANDLE);
        CHECK_EQUAL(cuLibraryUnload(bad[i]), CUDA_ERROR_INVALID_HANDLE);
        CHECK_EQUAL(cuFuncGetName(&name, bad[i]), CUDA_ERROR_INVALID_HANDLE);
        CHECK_EQUAL(cuFuncGetAttribute(&value, CU_FUNC_ATTRIBUTE_NUM_REGS, bad[i]),
                    CUDA_ERROR_INVALID_HANDLE);
        CHECK_EQUAL(cuGraphDestroy(bad[i]), CUDA_ERROR_INVALID_VALUE);
        CHECK_EQUAL(cuGraphLaunch(bad[i], NULL), CUDA_ERROR_INVALID_VALUE);
        CHECK_EQUAL(cuGraphClone(&graph, bad[i]), CUDA_ERROR_INVALID_VALUE);
        CHECK_EQUAL(cuLinkDestroy(bad[i]), CUDA_ERROR_INVALID_HANDLE);
        CHECK_EQUAL(cuUserObjectRelease(bad[i], 1), CUDA_ERROR_INVALID_VALUE);
        if (i > 1)
            CHECK_EQUAL(cuStreamSynchronize(bad[i]), CUDA_ERROR_INVALID_HANDLE);
    }
}

/* ---- host functions ---- */

static _Atomic int calls;

static void count_call(void *data) {
    CHECK_EQUAL(calls, *(int *)data);
    CHECK_EQUAL(cuStreamSynchronize(NULL), CUDA_ERROR_NOT_PERMITTED);
    calls++;
}

static void count_callback(CUstream stream, CUresult status, void *data) {
    (void)stream;
    OK(status);
    count_call(data);
}

PROMISE(host_functions_run_in_stream_order) {
    int order[] = {0, 1, 2};
    on_v100();
    CUfunction kernel = function_of("spin");
    CUstream stream = new_stream();
    hold(stream);
    OK(spin(kernel, stream, MS));
    OK(cuLaunchHostFunc(stream, count_call, &order[0]));
    OK(cuStreamAddCallback(stream, count_callback, &order[1], 0));
    CUevent start = recorded(stream);
    OK(spin(kernel, stream, MS));
    OK(cuLaunchHostFunc_ptsz(stream, count_call, &order[2]));
    CHECK_EQUAL(calls, 0);
    release();
    OK(cuStreamSynchronize(stream));
    CHECK_EQUAL(calls, 3);
    OK(cuEventSynchronize(start));
}

static void wait_for_release(void *data) {
    while (!__atomic_load_n((int *)data, __ATOMIC_ACQUIRE))
        usleep(100);
}

PROMISE(a_host_function_holds_up_its_own_stream_only) {
    int released = 0;
    on_v100();
    CUfunction kernel = function_of("spin");
    CUstream held = new_stream(), other = new_stream();
    OK(cuLaunchHostFunc(held, wait_for_release, &released));
    OK(spin_small(kernel, held, MS));
    OK(spin_small(kernel, other, MS));
    OK(cuStreamSynchronize(other));
    CHECK_EQUAL(cuStreamQuery(held), CUDA_ERROR_NOT_READY);
    __atomic_store_n(&released, 1, __ATOMIC_RELEASE);
    OK(cuStreamSynchronize(held));
}

PROMISE(a_context_may_end_while_host_functions_wait) {
    int released = 0;
    CUcontext context = on_v100();
    CUstream held = new_stream();
    OK(cuLaunchHostFunc(held, wait_for_release, &released));
    for (int i = 0; i < 10; i++)
        OK(cuLaunchHostFunc(held, wait_for_release, &released));
    OK(cuCtxDestroy_v2(context));
    __atomic_store_n(&released, 1, __ATOMIC_RELEASE);
    OK(cuCtxCreate_v2(&context, 0, 0));
    held = new_stream();
    OK(cuLaunchHostFunc(held, wait_for_release, &released));
    OK(cuStreamSynchronize(held));
}

/* ---- values in memory ---- */

PROMISE(a_stream_waits_for_a_value_and_writes_one) {
    CUdeviceptr at;
    on_v100();
    CUstream waiting = new_stream(), writing = new_stream();
    OK(cuMemAlloc_v2(&at, 4096));
    OK(cuMemsetD32_v2(at, 0, 1024));
    OK(cuStreamWaitValue32(waiting, at, 7, CU_STREAM_WAIT_VALUE_EQ));
    OK(cuStreamWriteValue64(waiting, at + 8, 99, 0));
    usleep(2000);
    CHECK_EQUAL(cuStreamQuery(waiting), CUDA_ERROR_NOT_READY);
    OK(cuStreamWriteValue32(writing, at, 7, 0));
    while (__atomic_load_n((uint64_t *)at + 1, __ATOMIC_ACQUIRE) != 99) /* without any call of the driver */
        usleep(100);
    OK(cuStreamSynchronize(waiting));
    CHECK_EQUAL(cuStreamWaitValue32(waiting, at + 2, 0, 0), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuStreamWriteValue32(waiting, 16, 0, 0), CUDA_ERROR_INVALID_VALUE);
    CUstreamBatchMemOpParams batch[2] = {
        {.writeValue = {CU_STREAM_MEM_OP_WRITE_VALUE_32, at + 16, {5}, 0, 0}},
        {.waitValue = {CU_STREAM_MEM_OP_WAIT_VALUE_32, at + 16, {5}, 0, 0}}};
    OK(cuStreamBatchMemOp_v2(waiting, 2, batch, 0));
    OK(cuStreamSynchronize(waiting));
    CHECK_EQUAL(*(uint32_t *)(at + 16), 5);
}

/* ---- threads, processes ---- */

static void *launch_and_wait(void *context) {
    OK(cuCtxSetCurrent(context));
    CUfunction kernel = function_of("spin");
    for (int i = 0; i < 50; i++) {
        CUdeviceptr at;
        unsigned int pattern[256], back[256];
        CUstream stream = new_stream();
        for (int word = 0; word < 256; word++)
            pattern[word] = (unsigned int)((uintptr_t)&pattern + (uintptr_t)(i * word));
        OK(cuMemAlloc_v2(&at, sizeof pattern));
        OK(cuMemcpyHtoDAsync_v2(at, pattern, sizeof pattern, stream));
        OK(spin_small(kernel, stream, 50000));
        OK(cuMemcpyDtoHAsync_v2(back, at, sizeof back, stream));
        CUevent end = recorded(stream);
        OK(i % 2 ? cuEventSynchronize(end) : cuStreamSynchronize(stream));
        CHECK(memcmp(pattern, back, sizeof back) == 0);
        OK(cuEventDestroy_v2(end));
        OK(cuStreamDestroy_v2(stream));
        OK(cuMemFree_v2(at));
    }
    return NULL;
}

PROMISE(threads_work_side_by_side) {
    pthread_t threads[8];
    CUcontext context = on_v100();
    for (int i = 0; i < 8; i++)
        CHECK(pthread_create(&threads[i], NULL, launch_and_wait, context) == 0);
    for (int i = 0; i < 8; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    OK(cuCtxSynchronize());
}

static void be_a_fork(void *function) {
    int count;
    CHECK_EQUAL(cuStreamSynchronize(NULL), CUDA_ERROR_NOT_INITIALIZED);
    CHECK_EQUAL(cuDeviceGetCount(&count), CUDA_ERROR_NOT_INITIALIZED);
    CHECK_EQUAL(spin(function, NULL, MS), CUDA_ERROR_NOT_INITIALIZED);
}

PROMISE(a_forked_child_has_none_of_it) {
    on_v100();
    CUfunction kernel = function_of("spin");
    OK(spin(kernel, NULL, 10 * MS));
    CHECK(ended_well(start(be_a_fork, kernel)));
    OK(cuCtxSynchronize());
}

static void spin_for(void *duration) {
    CUcontext context;
    OK(cuInit(0));
    OK(cuCtxCreate_v2(&context, 0, 0));
    OK(spin(function_of("spin"), NULL, *(unsigned long long *)duration));
    OK(cuCtxSynchronize());
}

PROMISE(processes_share_the_time_of_a_card) {
    unsigned long long durations[] = {30 * MS, 50 * MS};
    fresh_machine("V100-SXM2-16GB");
    pid_t one = start(spin_for, &durations[0]), other = start(spin_for, &durations[1]);
    CHECK(ended_well(one) && ended_well(other));
    CHECK_EQUAL(card_at(0)->timeline.busy_ns, 80 * MS); /* together it is as much, however they took turns */
}

PROMISE(the_work_of_a_killed_process_vanishes) {
    unsigned long long hour = 3600000 * MS, moment = 5 * MS;
    fresh_machine("V100-SXM2-16GB");
    pid_t child = start(spin_for, &hour);
    struct sim_timeline *timeline = &card_at(0)->timeline;
    while (!__atomic_load_n(&timeline->sequence, __ATOMIC_RELAXED)) /* until it has launched */
        usleep(1000);
    kill_and_wait(child);
    spin_for(&moment);
    sim_machine_lock();
    uint64_t next = sim_timeline_next_ns(timeline);
    sim_machine_unlock();
    CHECK_EQUAL(next, UINT64_MAX); /* idle */
}

PROMISE(an_event_of_one_card_holds_up_a_stream_of_another) {
    CUcontext first, second;
    fresh_machine("V100-SXM2-16GB,V100-SXM2-16GB");
    OK(cuInit(0));
    OK(cuCtxCreate_v2(&first, 0, 0));
    CUfunction kernel = function_of("spin");
    CUstream one = new_stream();
    hold(one);
    OK(spin(kernel, one, MS));
    CUevent end = recorded(one);
    OK(cuCtxCreate_v2(&second, 0, 1));
    CUstream other = new_stream();
    OK(cuStreamWaitEvent(other, end, 0));
    CHECK_EQUAL(cuStreamQuery(other), CUDA_ERROR_NOT_READY);
    release();
    OK(cuStreamSynchronize(other));
    OK(cuEventQuery(end));
}

int main(int argc, char **argv) {
    return keep_promises(argc, argv);
}
