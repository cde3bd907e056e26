/*
 * Launches: each is counted in the ledger, taken from what its stream has paid for, and measured when it is
 * time.
 *
 * The common launch runs through `common` and `count`: no lock, no call into the driver but its own, no
 * clock. Everything else goes through `enter` and `leave`. A launch into a stream that captures becomes a
 * node of a graph: it is neither counted nor measured, and nothing of ours goes in. A launch that the driver
 * refuses leaves no trace.
 */
#include "memory.h"
#include "meter.h"

/* A kind of launch: what is launched, and the magnitude of its grid, for which an address leaves room. */
static uint64_t kind_of(const void *what, uint64_t x, uint64_t y, uint64_t z) {
    uint64_t blocks = x * y * z;
    uint64_t magnitude = blocks ? 64 - (uint64_t)__builtin_clzll(blocks) : 0;
    return (uint64_t)(uintptr_t)what << 7 | magnitude;
}

/* The stream's meter for a launch that needs nothing but to be counted, and its expected cost; else NULL. */
static inline struct vcuda_stream_meter *common(uint64_t kind, CUstream stream, bool ptsz,
                                                uint64_t *cost_ns) {
    if (__atomic_load_n(&vcuda_captures, __ATOMIC_RELAXED))
        return NULL;
    struct vcuda_stream_meter *meter = vcuda_meter_find(stream, ptsz);
    const struct vcuda_cost *cost = vcuda_cost_find(kind);
    if (!meter || !cost)
        return NULL;
    *cost_ns = __atomic_load_n(&cost->ns, __ATOMIC_RELAXED);
    uint64_t work = __atomic_load_n(&meter->work_ns, __ATOMIC_RELAXED) + *cost_ns;
    if (*cost_ns == 0 || work >= __atomic_load_n(&meter->due_ns, __ATOMIC_RELAXED))
        return NULL;
    return meter;
}

/* The launches must be right; of the expected costs, threads that race on a stream may lose some. */
static inline void count(struct vcuda_stream_meter *meter, uint64_t cost_ns) {
    __atomic_store_n(&meter->work_ns, __atomic_load_n(&meter->work_ns, __ATOMIC_RELAXED) + cost_ns,
                     __ATOMIC_RELAXED);
    __atomic_fetch_add(&meter->use->launches, 1, __ATOMIC_RELAXED);
}

__attribute__((noinline)) static void enter(struct vcuda_share *share, struct vcuda_ticket *ticket,
                                            uint64_t kind, CUstream stream, bool ptsz) {
    *ticket = (struct vcuda_ticket){0};
    enum vcuda_capturing captures = VCUDA_CAPTURES_NOT;
    if (__atomic_load_n(&vcuda_captures, __ATOMIC_RELAXED))
        captures = vcuda_meter_captures(stream, ptsz);
    if (captures == VCUDA_CAPTURES)
        return;
    struct vcuda_stream_meter *meter = vcuda_meter_get(share, stream, ptsz);
    if (!meter)
        return;
    ticket->meter = meter;
    ticket->cost = vcuda_cost_get(kind);
    ticket->expected_ns = __atomic_load_n(&ticket->cost->ns, __ATOMIC_RELAXED);
    vcuda_admit(share, ticket, kind & VCUDA_MAGNITUDE);
    vcuda_meter_begins(meter);
    bool due = __atomic_load_n(&meter->work_ns, __ATOMIC_RELAXED) + ticket->expected_ns >=
               __atomic_load_n(&meter->measure_ns, __ATOMIC_RELAXED);
    if (ticket->expected_ns == 0) {
        due = meter->skip == 0 || meter->outstanding == 0;
        meter->skip -= meter->skip > 0;
    }
    if (due && captures == VCUDA_CAPTURES_NOT) {
        uint64_t used = vcuda_credit_use(ticket);
        vcuda_meter_open(share, ticket);
        if (!ticket->sample)
            vcuda_credit_return(ticket, used);
    }
}

__attribute__((noinline)) static void leave(struct vcuda_ticket *ticket, CUresult result) {
    struct vcuda_stream_meter *meter = ticket->meter;
    if (meter && result == CUDA_SUCCESS) {
        /* What is measured is in its sample; what was never measured can only be numbered. */
        count(meter, ticket->sample ? 0 : ticket->expected_ns);
        if (!ticket->sample && ticket->expected_ns == 0)
            __atomic_fetch_add(&meter->unknown, 1, __ATOMIC_RELAXED);
    }
    if (ticket->sample)
        vcuda_meter_close(ticket, result);
}

/* A launch that needs more than the common one is apart, so that its ticket costs the common one nothing. */
#define LAUNCH(name, parameters, arguments, kind, stream, ptsz)                                              \
    VCUDA_EXPORT CUresult name parameters;                                                                   \
    __attribute__((noinline)) static CUresult slow_##name parameters {                                       \
        struct vcuda_share *share = vcuda_share();                                                           \
        struct vcuda_ticket ticket;                                                                          \
        if (!share)                                                                                          \
            return vcuda_real.name arguments;                                                                \
        enter(share, &ticket, kind, stream, ptsz);                                                           \
        CUresult result = vcuda_real.name arguments;                                                         \
        leave(&ticket, result);                                                                              \
        return result;                                                                                       \
    }                                                                                                        \
    VCUDA_EXPORT CUresult name parameters {                                                                  \
        struct vcuda_share *share = vcuda_share();                                                           \
        uint64_t cost_ns;                                                                                    \
        if (!share || vcuda_depth)                                                                           \
            return vcuda_real.name arguments;                                                                \
        struct vcuda_stream_meter *meter = common(kind, stream, ptsz, &cost_ns);                             \
        if (!meter)                                                                                          \
            return slow_##name arguments;                                                                    \
        CUresult result = vcuda_real.name arguments;                                                         \
        if (result == CUDA_SUCCESS)                                                                          \
            count(meter, cost_ns);                                                                           \
        return result;                                                                                       \
    }

#define KERNEL_PARAMETERS                                                                                    \
    (CUfunction f, unsigned int gridDimX, unsigned int gridDimY, unsigned int gridDimZ,                      \
     unsigned int blockDimX, unsigned int blockDimY, unsigned int blockDimZ, unsigned int sharedMemBytes,    \
     CUstream hStream, void **kernelParams, void **extra)
#define KERNEL_ARGUMENTS                                                                                     \
    (f, gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes, hStream,              \
     kernelParams, extra)
#define KERNEL_KIND kind_of(f, gridDimX, gridDimY, gridDimZ)
LAUNCH(cuLaunchKernel, KERNEL_PARAMETERS, KERNEL_ARGUMENTS, KERNEL_KIND, hStream, false)
LAUNCH(cuLaunchKernel_ptsz, KERNEL_PARAMETERS, KERNEL_ARGUMENTS, KERNEL_KIND, hStream, true)

#define COOPERATIVE_PARAMETERS                                                                               \
    (CUfunction f, unsigned int gridDimX, unsigned int gridDimY, unsigned int gridDimZ,                      \
     unsigned int blockDimX, unsigned int blockDimY, unsigned int blockDimZ, unsigned int sharedMemBytes,    \
     CUstream hStream, void **kernelParams)
#define COOPERATIVE_ARGUMENTS                                                                                \
    (f, gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes, hStream, kernelParams)
LAUNCH(cuLaunchCooperativeKernel, COOPERATIVE_PARAMETERS, COOPERATIVE_ARGUMENTS, KERNEL_KIND, hStream, false)
LAUNCH(cuLaunchCooperativeKernel_ptsz, COOPERATIVE_PARAMETERS, COOPERATIVE_ARGUMENTS, KERNEL_KIND, hStream,
       true)

/* A program may pass no configuration at all; what is said to that is the driver's affair. */
#define EX_PARAMETERS (const CUlaunchConfig *config, CUfunction f, void **kernelParams, void **extra)
#define EX_ARGUMENTS (config, f, kernelParams, extra)
#define EX_KIND                                                                                              \
    (config ? kind_of(f, config->gridDimX, config->gridDimY, config->gridDimZ) : kind_of(f, 0, 0, 0))
#define EX_STREAM (config ? config->hStream : NULL)
LAUNCH(cuLaunchKernelEx, EX_PARAMETERS, EX_ARGUMENTS, EX_KIND, EX_STREAM, false)
LAUNCH(cuLaunchKernelEx_ptsz, EX_PARAMETERS, EX_ARGUMENTS, EX_KIND, EX_STREAM, true)

/* The oldest interface; what has no stream goes to the legacy one. */
#define GRID_KIND kind_of(f, (uint64_t)(unsigned)grid_width, (uint64_t)(unsigned)grid_height, 1)
LAUNCH(cuLaunch, (CUfunction f), (f), kind_of(f, 1, 1, 1), NULL, false)
LAUNCH(cuLaunchGrid, (CUfunction f, int grid_width, int grid_height), (f, grid_width, grid_height), GRID_KIND,
       NULL, false)
LAUNCH(cuLaunchGridAsync, (CUfunction f, int grid_width, int grid_height, CUstream hStream),
       (f, grid_width, grid_height, hStream), GRID_KIND, hStream, false)

/* One kernel on each of several devices. Removed from the newest toolkits, still exported by drivers. */
VCUDA_EXPORT CUresult cuLaunchCooperativeKernelMultiDevice(CUDA_LAUNCH_PARAMS *launchParamsList,
                                                           unsigned int numDevices, unsigned int flags) {
    struct vcuda_share *share = vcuda_share();
    struct vcuda_ticket tickets[VCUDA_MAX_CARDS];
    if (!share || vcuda_depth || !launchParamsList || numDevices > VCUDA_MAX_CARDS)
        return vcuda_real.cuLaunchCooperativeKernelMultiDevice(launchParamsList, numDevices, flags);
    for (unsigned int i = 0; i < numDevices; i++) {
        const CUDA_LAUNCH_PARAMS *one = &launchParamsList[i];
        enter(share, &tickets[i], kind_of(one->function, one->gridDimX, one->gridDimY, one->gridDimZ),
              one->hStream, false);
    }
    CUresult result = vcuda_real.cuLaunchCooperativeKernelMultiDevice(launchParamsList, numDevices, flags);
    for (unsigned int i = numDevices; i-- > 0;)
        leave(&tickets[i], result);
    return result;
}

/* ---- graphs ---- */

static CUresult launch_graph(CUgraphExec graph, CUstream stream, bool ptsz) {
    return ptsz ? vcuda_real.cuGraphLaunch_ptsz(graph, stream) : vcuda_real.cuGraphLaunch(graph, stream);
}

static CUresult upload_graph(CUgraphExec graph, CUstream stream, bool ptsz) {
    return ptsz ? vcuda_real.cuGraphUpload_ptsz(graph, stream) : vcuda_real.cuGraphUpload(graph, stream);
}

/* `call` with the memory of the graph's allocation nodes paid for. */
static CUresult with_memory(CUgraphExec graph, CUstream stream, bool ptsz,
                            CUresult (*call)(CUgraphExec, CUstream, bool)) {
    struct vcuda_share *limited = vcuda_graph_memory_in_use ? vcuda_limited_share() : NULL;
    struct vcuda_graph_ticket memory;
    if (!limited)
        return call(graph, stream, ptsz);
    if (!vcuda_graph_memory_admit(limited, graph, &memory))
        return CUDA_ERROR_OUT_OF_MEMORY;
    vcuda_depth++;
    CUresult result = call(graph, stream, ptsz);
    vcuda_depth--;
    vcuda_graph_memory_settle(limited, &memory);
    return result;
}

static CUresult graph_launch(CUgraphExec graph, CUstream stream, bool ptsz) {
    struct vcuda_share *share = vcuda_share();
    struct vcuda_ticket ticket;
    if (!share || vcuda_depth)
        return launch_graph(graph, stream, ptsz);
    uint64_t kind = kind_of(graph, 0, 0, 0), cost_ns;
    struct vcuda_stream_meter *meter =
        vcuda_graph_memory_in_use ? NULL : common(kind, stream, ptsz, &cost_ns);
    if (meter) {
        CUresult result = launch_graph(graph, stream, ptsz);
        if (result == CUDA_SUCCESS)
            count(meter, cost_ns);
        return result;
    }
    enter(share, &ticket, kind, stream, ptsz);
    CUresult result = with_memory(graph, stream, ptsz, launch_graph);
    leave(&ticket, result);
    return result;
}

VCUDA_EXPORT CUresult cuGraphLaunch(CUgraphExec hGraphExec, CUstream hStream) {
    return graph_launch(hGraphExec, hStream, false);
}
VCUDA_EXPORT CUresult cuGraphLaunch_ptsz(CUgraphExec hGraphExec, CUstream hStream) {
    return graph_launch(hGraphExec, hStream, true);
}

/* Takes the memory that the launch would take; no kernel runs. */
VCUDA_EXPORT CUresult cuGraphUpload(CUgraphExec hGraphExec, CUstream hStream) {
    return with_memory(hGraphExec, hStream, false, upload_graph);
}
VCUDA_EXPORT CUresult cuGraphUpload_ptsz(CUgraphExec hGraphExec, CUstream hStream) {
    return with_memory(hGraphExec, hStream, true, upload_graph);
}
