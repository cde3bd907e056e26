/* What the tests of the simulated GPU's work share: kernels, streams, events. */
#ifndef SIMGPU_WORK_TESTS_H
#define SIMGPU_WORK_TESTS_H

#include "simgpu.h"

#define MS 1000000ULL

static const char spin_ptx[] =
    ".version 6.0\n.target sm_50\n.address_size 64\n"
    ".visible .global .align 4 .u32 counter;\n"
    ".visible .entry spin(.param .u64 duration) {\n"
    "  .reg .u64 %r<5>; .reg .pred %p;\n"
    "  ld.param.u64 %r1, [duration];\n"
    "  mov.u64 %r2, %globaltimer;\n"
    "again:\n"
    "  mov.u64 %r3, %globaltimer;\n"
    "  sub.u64 %r4, %r3, %r2;\n"
    "  setp.lt.u64 %p, %r4, %r1;\n"
    "  @%p bra again;\n"
    "  ret;\n}\n"
    ".visible .entry add(.param .u64 a, .param .u32 n, .param .align 8 .b8 s[24],\n"
    "                    .param .u8 c) .maxntid 256,1,1 {\n"
    "  .shared .align 4 .b8 buffer[1024];\n"
    "  ret;\n}\n"
    ".visible .entry none() { ret; }\n";

static inline CUfunction function_of(const char *name) {
    CUmodule module;
    CUfunction function;
    OK(cuModuleLoadData(&module, spin_ptx));
    OK(cuModuleGetFunction(&function, module, name));
    return function;
}

/* So many nanoseconds on every SM. */
static inline CUresult spin(CUfunction kernel, CUstream stream, unsigned long long ns) {
    void *parameters[] = {&ns};
    return cuLaunchKernel(kernel, 80, 1, 1, 1024, 1, 1, 0, stream, parameters, NULL);
}

/* On one SM only. */
static inline CUresult spin_small(CUfunction kernel, CUstream stream, unsigned long long ns) {
    void *parameters[] = {&ns};
    return cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, stream, parameters, NULL);
}

/* A stream that is held runs what is submitted to it only once it is released: however slow this machine is
 * just now, all of it then follows without a gap. */
static uint32_t held_until_one;

static inline void hold(CUstream stream) {
    __atomic_store_n(&held_until_one, 0, __ATOMIC_RELEASE);
    OK(cuStreamWaitValue32(stream, (CUdeviceptr)(uintptr_t)&held_until_one, 1, CU_STREAM_WAIT_VALUE_EQ));
}

static inline void release(void) {
    __atomic_store_n(&held_until_one, 1, __ATOMIC_RELEASE);
}

static inline CUstream new_stream(void) {
    CUstream stream;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    return stream;
}

static inline CUevent new_event(void) {
    CUevent event;
    OK(cuEventCreate(&event, CU_EVENT_DEFAULT));
    return event;
}

static inline CUevent recorded(CUstream stream) {
    CUevent event = new_event();
    OK(cuEventRecord(event, stream));
    return event;
}

/* Nanoseconds between two events, as exactly as a float of milliseconds says. */
static inline long long between(CUevent start, CUevent end) {
    float ms;
    OK(cuEventElapsedTime(&ms, start, end));
    return (long long)(ms * 1e6 + (ms < 0 ? -0.5 : 0.5));
}

#define CHECK_NEAR(found, expected)                                                                          \
    do {                                                                                                     \
        long long found_ns = (found), off = found_ns - (long long)(expected);                                \
        if (off < -2 || off > 2) { /* a float of some ms has this resolution */                              \
            fprintf(stderr, "%s:%d: %s is %lld ns, not %lld\n", __FILE__, __LINE__, #found, found_ns,        \
                    (long long)(expected));                                                                  \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

#endif
