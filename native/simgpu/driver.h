/*
 * What the files of the simulated libcuda know of one another.
 *
 * Device addresses are addresses of this process: memory of the card is host memory, mapped lazily, so that
 * copies carry data. Kernels take time and touch nothing.
 */
#ifndef SIM_DRIVER_H
#define SIM_DRIVER_H

#ifndef __CUDA_API_VERSION_INTERNAL
#define __CUDA_API_VERSION_INTERNAL /* cuda.h is to declare the old names too, and to rename none */
#endif
#include <cuda.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "machine.h"

/* ---- contexts (context.c) ---- */

struct CUctx_st {
    uint64_t magic;
    uint64_t id;     /* cuCtxGetId */
    uint32_t card;   /* index into the machine's cards */
    CUdevice device; /* ordinal: what CUDA_VISIBLE_DEVICES leaves, in its order */
    bool primary;
    uint32_t references; /* primary: retains; created: attaches */
    unsigned int flags;
    uint32_t legacy, per_thread; /* timeline streams, made by work.c when first used; 0 = none yet */
    struct CUstream_st *streams; /* of this context, by work.c */
    struct CUctx_st *next;
    struct sim_heap *heap;         /* its pages and small allocations, by block.c */
    struct sim_settings *settings; /* limits and preferences, by context.c */
};

/* CUDA_SUCCESS where cuInit has been called in this very process (not in a parent of it). */
CUresult sim_initialised(void);
/* The calling thread's current context; CUDA_ERROR_NOT_INITIALIZED, _INVALID_CONTEXT, or the card is lost. */
CUresult sim_current(struct CUctx_st **context);
/* Whether a handle is a live context. */
bool sim_is_context(CUcontext context);
/* The card behind an ordinal; CUDA_ERROR_INVALID_DEVICE. */
CUresult sim_card_of(CUdevice device, uint32_t *card);
/* How many of the machine's cards this process sees. */
int sim_device_count(void);
/* The context that a call names, NULL meaning the current one. */
CUresult sim_context_named(CUcontext context, struct CUctx_st **found);

/* ---- memory (memory.c), for graphs and modules ---- */

/* Address space for memory of the card; whole pages; 0 where there is none left. */
CUdeviceptr sim_address_reserve(uint64_t bytes, uint64_t alignment);
void sim_address_free(CUdeviceptr address, uint64_t bytes);
/* Take pages of the card and put them behind reserved addresses (zero-filled); and the reverse. */
CUresult sim_memory_back(uint32_t card, CUdeviceptr address, uint64_t bytes);
void sim_memory_unback(uint32_t card, CUdeviceptr address, uint64_t bytes);
/* A small allocation of the driver's own in a context (code, global variables); counts as the process's
 * memory. */
CUresult sim_memory_small(struct CUctx_st *context, uint64_t bytes, CUdeviceptr *address);
void sim_memory_small_free(struct CUctx_st *context, CUdeviceptr address);
/* A context ends: everything that was allocated in it is given back. */
void sim_memory_context_ends(struct CUctx_st *context);

/* ---- work (work.c: streams; event.c; launch.c; graph.c) ---- */

#define SIM_ACTION_BYTES 160

/* What happens in this process when the model reaches a piece of work: data that moves, pages that are given
 * back. */
struct sim_action {
    void (*run)(void *data);
    _Alignas(16) unsigned char data[SIM_ACTION_BYTES];
};

struct sim_job {
    enum sim_op_kind kind;
    uint64_t duration_ns;     /* of a kernel or copy, alone on the card */
    uint32_t sms;             /* of a kernel; 0 = all */
    CUgraphNodeType node;     /* what it becomes in a stream that captures */
    struct sim_action action; /* run == NULL: none */
    bool wait;                /* return only when it has ended (synchronous copies) */
};

/* Submit to a stream of the current context (0, CU_STREAM_LEGACY, CU_STREAM_PER_THREAD or a handle; `ptsz`
 * says what 0 means), or add to the graph that the stream captures. Blocks while the stream is full. An
 * action runs exactly once, in stream order, after the job has ended on the model: by whoever of this process
 * looks next, or by the worker thread. Work that waits in a destroyed stream or context still has its action
 * run. */
CUresult sim_submit_job(CUstream stream, bool ptsz, const struct sim_job *job);
/* Whether this stream is capturing; invalid handles answer an error. */
CUresult sim_stream_capturing(CUstream stream, bool ptsz, bool *capturing);
/* Wait until everything submitted so far in the context has ended and its actions have run. */
CUresult sim_context_synchronize(struct CUctx_st *context);
/* A context ends: its streams, events, modules and graphs go; pending work is let go of. Called before
 * sim_memory_context_ends. */
void sim_work_context_ends(struct CUctx_st *context);
void sim_modules_context_ends(struct CUctx_st *context);

/* How long a copy of `bytes` takes on this card: over its bus, or within its memory. */
uint64_t sim_copy_ns(uint32_t card, uint64_t bytes, bool on_card);

/* ---- faults (faults.c), from SIMGPU_FAULTS ---- */

/* Whether the call named `function` is to fail this time, and how; CUDA_SUCCESS = no. Also makes slow calls
 * slow. */
CUresult sim_fault(const char *function);
/* Cards that are to be lost are, from now on. */
void sim_lose_cards(void);

/* ---- what part of the driver asks of another beside the above ---- */

/* The jobs of a graph's copy and memset nodes, checked as the calls of those names check (copy.c). Their
 * actions may run any number of times, so they own nothing. */
CUresult sim_copy_job(struct CUctx_st *context, const CUDA_MEMCPY3D *copy, struct sim_job *job);
CUresult sim_memset_job(struct CUctx_st *context, const CUDA_MEMSET_NODE_PARAMS *set, struct sim_job *job);

/* Before a call that a capture may forbid, because it touches the device outside of any stream (cuMemAlloc,
 * cuMemFree, cuMemcpy, cuMemHostAlloc, ...): CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED where a capture of this
 * process in global mode, or one that this thread began in thread-local mode, is going on and this thread's
 * mode is not relaxed (capture.c). */
CUresult sim_capture_forbids(void);
/* Before cuCtxSynchronize: streams of the context that capture forbid it, and their captures are invalid
 * then. */
CUresult sim_capture_refuse_context(struct CUctx_st *context);
/* cuMemAllocAsync and cuMemFreeAsync in a stream that captures: nodes of its graph (capture.c). */
CUresult sim_capture_alloc(CUstream stream, bool ptsz, const CUmemPoolProps *props, uint64_t bytes,
                           CUdeviceptr *address);
CUresult sim_capture_free(CUstream stream, bool ptsz, CUdeviceptr address);
/* Whether an address is memory that a graph allocated and has not freed; if so it is given back
 * (graph_memory.c). For cuMemFree and cuMemFreeAsync of addresses that are not theirs. */
bool sim_graph_memory_free(CUdeviceptr address);

/* The context of a stream (0 and the special handles: the current one); invalid handles answer an error
 * (stream.c). */
CUresult sim_stream_owner(CUstream stream, bool ptsz, struct CUctx_st **context);
/* Work has been waited for, by whatever call: pools give back what lies above their thresholds (pool.c).
 * Called without any lock. */
void sim_pools_synchronised(void);
/* Wait until everything submitted so far in any context of this process has ended (context.c). */
void sim_synchronize_all(void);
/* How calls begin: the fault that is wanted of this one, then whether it may be made at all. */
#define SIM_BEGIN()                                                                                          \
    do {                                                                                                     \
        CUresult sim_begun = sim_fault(__func__);                                                            \
        if (sim_begun == CUDA_SUCCESS)                                                                       \
            sim_begun = sim_initialised();                                                                   \
        if (sim_begun != CUDA_SUCCESS)                                                                       \
            return sim_begun;                                                                                \
    } while (0)
#define SIM_BEGIN_IN(context)                                                                                \
    struct CUctx_st *context;                                                                                \
    do {                                                                                                     \
        CUresult sim_begun = sim_fault(__func__);                                                            \
        if (sim_begun == CUDA_SUCCESS)                                                                       \
            sim_begun = sim_current(&(context));                                                             \
        if (sim_begun != CUDA_SUCCESS)                                                                       \
            return sim_begun;                                                                                \
    } while (0)

#endif
