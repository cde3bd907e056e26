/*
 * What the files of work know of one another: streams, events, launches, modules, graphs.
 *
 * One lock, sim_work_lock, guards all of it in this process. It is taken before the machine's and after
 * nothing: no function of contexts or memory (sim_current, sim_memory_*, ...) is called with it held, nor an
 * action, nor anything of the program's.
 */
#ifndef SIM_WORK_H
#define SIM_WORK_H

#include <pthread.h>

#include "driver.h"

/* NVIDIA's cudaProfiler.h, which declares these, is not among the headers of the build. */
SIM_EXPORT CUresult cuProfilerStart(void);
SIM_EXPORT CUresult cuProfilerStop(void);

#define SIM_NEVER UINT64_MAX
#define SIM_PRIORITY_GREATEST (-5) /* of streams; the least is 0 */

void sim_work_lock(void);
void sim_work_unlock(void);
/* Lock held. Have a function of the program's called by whoever next lets go of the lock. */
void sim_defer(CUhostFn function, void *data);

/* ---- handles (handles.c): which pointers are whose; lock held ---- */

enum sim_handle_kind {
    SIM_HANDLE_NONE = 0,
    SIM_HANDLE_STREAM,
    SIM_HANDLE_EVENT,
    SIM_HANDLE_MODULE,
    SIM_HANDLE_FUNCTION,
    SIM_HANDLE_LIBRARY,
    SIM_HANDLE_KERNEL,
    SIM_HANDLE_LINK,
    SIM_HANDLE_GRAPH,
    SIM_HANDLE_NODE,
    SIM_HANDLE_EXEC,
    SIM_HANDLE_USER_OBJECT,
    SIM_HANDLE_TEXREF,
};

bool sim_handle_put(const void *handle, enum sim_handle_kind kind);
void sim_handle_drop(const void *handle);
bool sim_handle_is(const void *handle, enum sim_handle_kind kind);
/* Forget all: after a fork, what the parent had is not the child's. */
void sim_handles_forget(void);

/* ---- pending work (work.c) ---- */

#define SIM_STREAM_ATTRIBUTES 17

/* A piece of work that ends with something to do in this process. */
struct sim_pending {
    struct sim_pending *next;
    struct CUstream_st *stream;
    sim_op op; /* kept until it is done with */
    uint64_t end_ns, sequence;
    bool gate;                 /* its action is the worker's: it is run before the gate is opened */
    bool (*ready)(void *data); /* of a gate: whether it may be opened; NULL = at once */
    struct sim_action action;
};

struct CUstream_st {
    struct CUctx_st *context; /* NULL: it has ended */
    struct CUstream_st *next; /* of its context */
    struct CUstream_st *next_busy, *next_thread;
    uint32_t card, lane; /* lane: the timeline's stream */
    enum sim_stream_kind kind;
    unsigned int flags;
    int priority;
    uint64_t id, thread; /* thread: whose default stream it is, else 0 */
    uint32_t users;      /* calls that are inside and may have let go of the lock */
    bool destroyed, busy;
    struct sim_pending *first, *last;
    CUlaunchAttributeValue attributes[SIM_STREAM_ATTRIBUTES]; /* by number; only remembered */
    /* of a stream that captures; see graph.h */
    struct sim_capture *capture;
    struct sim_edge *tips;
    size_t tip_count;
    const CUgraphNode *tip_nodes; /* what cuStreamGetCaptureInfo last showed of the tips */
    const CUgraphEdgeData *tip_data;
};

/* Lock held, and let go of where the stream is full. `after` must have ended first; `ready` as above, for
 * gates. With `keep` (marks only) *op is to be released; else it is only a name. */
CUresult sim_put(struct CUstream_st *stream, const struct sim_job *job, bool (*ready)(void *data),
                 sim_op after, bool keep, sim_op *op);
/* Bring the model to now, and run what has ended. Lock held, and let go of while actions run. Returns 0 where
 * `op` has ended, else the earliest instant at which it can. */
uint64_t sim_look(uint32_t card, sim_op op);
/* Sleep until it has ended and everything has run that ended by then. Lock held, and let go of. */
void sim_wait(uint32_t card, sim_op op);
/* The last operation of a stream that has not ended, or 0. */
sim_op sim_last(const struct CUstream_st *stream);
/* When an operation ended, 0 where it has not; and let go of a kept one. */
uint64_t sim_ended_ns(uint32_t card, sim_op op);
void sim_let_go(uint32_t card, sim_op op);
/* Whether the worker, a thread, runs this. */
bool sim_in_callback(void);

/* ---- streams (stream.c) ---- */

/* Lock held. The stream behind a handle, default streams made where they are not yet there; `context` is the
 * current one. A stream that captures is answered as any other. */
CUresult sim_stream_find(struct CUctx_st *context, CUstream handle, bool ptsz, struct CUstream_st **stream);
/* A stream that no program sees, for the branches of graphs. NULL where there are no more. */
struct CUstream_st *sim_stream_hidden(struct CUctx_st *context);
void sim_stream_end(struct CUstream_st *stream);
/* Free what ended while somebody was inside; lock held. */
void sim_stream_settle(struct CUstream_st *stream);
void sim_streams_forget(void);
void sim_modules_forget(void);

#define SIM_ENTER(handle, ptsz)                                                                              \
    struct CUctx_st *context;                                                                                \
    struct CUstream_st *stream;                                                                              \
    CUresult entered = sim_stream_enter(handle, ptsz, &context, &stream);                                    \
    if (entered != CUDA_SUCCESS)                                                                             \
    return entered
/* A fault that is wanted of a call, which has several names. */
#define SIM_FAULT(name)                                                                                      \
    do {                                                                                                     \
        CUresult sim_wanted = sim_fault(name);                                                               \
        if (sim_wanted != CUDA_SUCCESS)                                                                      \
            return sim_wanted;                                                                               \
    } while (0)
/* Find the current context and the stream, and take the lock: held after success only. Leave with
 * sim_stream_leave. */
CUresult sim_stream_enter(CUstream handle, bool ptsz, struct CUctx_st **context, struct CUstream_st **stream);
CUresult sim_stream_leave(struct CUstream_st *stream, CUresult result);

/* ---- events (event.c) ---- */

struct CUevent_st {
    struct CUctx_st *context;
    struct CUevent_st *next, *previous;
    unsigned int flags;
    uint32_t card;
    uint32_t users; /* calls that are inside and may have let go of the lock */
    bool recorded, destroyed;
    sim_op op; /* kept; 0 = never recorded, or its end is known */
    uint64_t end_ns;
    /* recorded in a stream that captures: the capture's number and what the stream then stood on */
    uint64_t capture;
    struct sim_edge *tips;
    size_t tip_count;
};

/* Lock held. What was submitted to the stream so far is the event; the stream waits for the event. `after` as
 * in sim_put; *op is a name. */
CUresult sim_event_put(struct CUevent_st *event, struct CUstream_st *stream, sim_op after, sim_op *op);
CUresult sim_event_await(struct CUevent_st *event, struct CUstream_st *stream, sim_op *op);
/* The event forgets what it stood for. */
void sim_event_clear(struct CUevent_st *event);
/* Read the ends of all events that have ended, to let go of their operations. */
void sim_events_sweep(void);
void sim_events_context_ends(struct CUctx_st *context);
void sim_events_forget(void);

/* ---- host functions and memory values (hostfunc.c, values.c) ---- */

CUresult sim_host_put(struct CUstream_st *stream, CUhostFn function, void *data, sim_op after, sim_op *op);
/* The checks that a call does, and one operation of a batch put into a stream. */
CUresult sim_values_check(unsigned int count, const CUstreamBatchMemOpParams *operations, unsigned int flags);
CUresult sim_values_put(struct CUstream_st *stream, const CUstreamBatchMemOpParams *operation, sim_op after,
                        sim_op *op);

/* ---- captures and graphs, as streams know them (capture.c, graph_exec.c); lock held ---- */

/* A call that may not be made on a stream that captures, such as a query: invalidates the capture. The legacy
 * stream is refused while blocking streams of its context capture, since it would wait for them. */
CUresult sim_capture_refuse(struct CUstream_st *stream);
/* Add a piece of work to the graph that the stream captures. */
CUresult sim_capture_job(struct CUstream_st *stream, const struct sim_job *job);
CUresult sim_capture_host(struct CUstream_st *stream, CUhostFn function, void *data);
CUresult sim_capture_values(struct CUstream_st *stream, unsigned int count,
                            const CUstreamBatchMemOpParams *operations);
CUresult sim_capture_record(struct CUstream_st *stream, struct CUevent_st *event, bool external);
CUresult sim_capture_await(struct CUstream_st *stream, struct CUevent_st *event, bool external);
/* Somebody looked at an event that was recorded in the capture of this number: it is invalid, if it still
 * goes on. */
void sim_capture_touch(uint64_t capture);
/* A stream is destroyed, or its context ends. */
void sim_capture_drop(struct CUstream_st *stream);
void sim_captures_context_ends(struct CUctx_st *context);
void sim_captures_forget(void);
void sim_graphs_context_ends(struct CUctx_st *context);
void sim_execs_forget(void);
/* Give back what graphs have left behind; the lock is not held. */
void sim_graph_memory_trim(uint32_t card);
void sim_graph_memory_forget(void);

#endif
