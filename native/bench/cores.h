/*
 * The workload of `vcuda bench cores`, in parts: cores.c reads the command line and leads one process through
 * warm-up, start and end; cores_modes.c is the ways to launch; cores_work.c what is launched.
 *
 * A plain client of the driver API that knows nothing of shares: it runs unchanged with and without the shim,
 * on a real card and on a simulated one. It needs nothing newer than glibc 2.17.
 */
#ifndef CORES_H
#define CORES_H

#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#define LENGTHS 16 /* that --lengths can name */
#define LATENCIES 65536

struct options {
    const char *mode;
    uint64_t lengths_ns[LENGTHS]; /* one, or several of which each launch draws one */
    uint32_t lengths;
    bool mix;                    /* lengths from a heavy tail instead */
    uint64_t seed;               /* of whatever is drawn */
    uint32_t blocks;             /* of a grid */
    uint32_t functions;          /* different ones, launched by turns */
    uint32_t processes;          /* that do the same */
    double seconds;              /* until it ends by itself; 0 = when it is told to */
    double rest_after, rest_for; /* one pause */
    double pace;                 /* part of the time in which it works, by its own will; 0 = all of it */
    double period;               /* seconds from one request to the next */
};

/* What a process did, in shared memory: its parent prints it. */
struct account {
    uint64_t launched, kernels, work_ns;     /* work: the sum of its kernels' own times */
    uint64_t longest_ns;                     /* of one launch */
    uint64_t began_ns, ended_ns, resumed_ns; /* CLOCK_MONOTONIC */
    uint64_t first_ns;                       /* latency of the first request after the pause */
    uint32_t ready, latencies, blocks, pad0;
    uint64_t latency_ns[LATENCIES];
};

extern struct options options;
extern struct account *account; /* this process's */
extern volatile sig_atomic_t stopped;

/* ---- cores_work.c ---- */

/* The driver, which is not linked: a library that is not everywhere would keep a wheel from being portable.
 */
/* clang-format off */
#define CORES_DRIVER(X)                                                                                      \
    X(cuInit) X(cuDeviceGet) X(cuDeviceGetAttribute) X(cuDevicePrimaryCtxRetain) X(cuGetErrorName)           \
    X(cuCtxSetCurrent) X(cuCtxSynchronize) X(cuModuleLoadData) X(cuModuleGetFunction)                        \
    X(cuOccupancyMaxActiveBlocksPerMultiprocessor)                                                           \
    X(cuLaunchKernel) X(cuLaunchKernel_ptsz) X(cuLaunchKernelEx) X(cuLaunchCooperativeKernel)                \
    X(cuStreamCreate) X(cuStreamSynchronize) X(cuStreamSynchronize_ptsz)                                     \
    X(cuEventCreate) X(cuEventRecord) X(cuEventSynchronize)                                                  \
    X(cuStreamBeginCapture_v2) X(cuStreamEndCapture)                                                         \
    X(cuGraphInstantiateWithFlags) X(cuGraphLaunch) X(cuGraphDestroy)
/* clang-format on */
#define CORES_FUNCTION(name) __typeof__(&name) name;
struct driver {
    CORES_DRIVER(CORES_FUNCTION)
};
extern struct driver driver;

uint64_t now_ns(void);
void sleep_until(uint64_t at_ns);
void must(CUresult result, const char *what);
#define MUST(call) must(call, #call)

/* Everything that costs time once: context, modules, occupancy. */
void work_set_up(void);
CUcontext work_context(void);

/* A kernel to launch: which, how large, and how long each of its blocks spins so that all of it takes so
 * long. */
struct kernel {
    CUfunction function;
    unsigned int blocks, threads;
    uint64_t spin_ns, length_ns;
    void *parameters[1];
};
/* `turn` is the caller's own generator. Safe from several threads. */
void work_next(struct kernel *kernel, uint64_t *turn);
/* Counted as launched. */
void work_launched(uint64_t kernels, uint64_t length_ns);

/* ---- cores_modes.c ---- */

/* The loop of options.mode, or NULL. `paused` is called between launches, with nothing pending. */
typedef void (*mode_loop)(void);
mode_loop mode_of(const char *name);
/* In cores.c: whether to go on; sleeps through the pause, before which `drain` is called. */
bool go_on(void (*drain)(void));

#endif
