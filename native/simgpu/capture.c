/*
 * Stream capture: work that is submitted becomes nodes of a graph. A stream that captures stands on the nodes
 * that its next piece of work will depend on (its tips); waiting for an event of the capture brings another
 * stream into it.
 */
#include "graph.h"

#include <stdlib.h>
#include <string.h>

static struct sim_capture *captures;
static uint64_t last_capture;

static _Thread_local CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

static uint64_t this_thread(void) {
    return (uint64_t)(uintptr_t)&thread_mode; /* differs between threads that live */
}

static struct sim_capture *find(uint64_t id) {
    struct sim_capture *capture = captures;
    while (capture && capture->id != id)
        capture = capture->next;
    return capture;
}

bool sim_capture_uses(const struct CUgraph_st *graph) {
    for (const struct sim_capture *capture = captures; capture; capture = capture->next)
        if (capture->graph == graph)
            return true;
    return false;
}

void sim_captures_forget(void) {
    captures = NULL;
}

static void leave(struct CUstream_st *stream) {
    free(stream->tips);
    stream->tips = NULL;
    stream->tip_count = 0;
    stream->capture = NULL;
}

/* The capture is over: its streams are ordinary ones again. The graph stays. */
static void finish(struct sim_capture *capture) {
    for (struct CUstream_st *stream = capture->context->streams; stream; stream = stream->next)
        if (stream->capture == capture)
            leave(stream);
    for (struct sim_capture **link = &captures; *link; link = &(*link)->next) {
        if (*link == capture) {
            *link = capture->next;
            break;
        }
    }
    free(capture);
}

/* ---- what may not be done while something captures ---- */

static CUresult spoil(struct sim_capture *capture) {
    bool was = capture->invalid;
    capture->invalid = true;
    return was ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

void sim_capture_touch(uint64_t id) {
    struct sim_capture *capture = find(id);
    if (capture)
        capture->invalid = true;
}

/* A capture of blocking streams of the context: the legacy stream would have to wait for them. */
static struct sim_capture *blocking_capture(const struct CUctx_st *context) {
    for (struct CUstream_st *stream = context->streams; stream; stream = stream->next)
        if (stream->capture && stream->kind == SIM_STREAM_BLOCKING)
            return stream->capture;
    return NULL;
}

CUresult sim_capture_refuse(struct CUstream_st *stream) {
    if (stream->capture)
        return spoil(stream->capture);
    struct sim_capture *implicit = captures && stream->kind == SIM_STREAM_LEGACY && stream->context
                                       ? blocking_capture(stream->context)
                                       : NULL;
    if (!implicit)
        return CUDA_SUCCESS;
    implicit->invalid = true;
    return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
}

bool sim_capture_implicit(const struct CUstream_st *stream) {
    return captures && stream->kind == SIM_STREAM_LEGACY && stream->context &&
           blocking_capture(stream->context);
}

CUresult sim_capture_refuse_context(struct CUctx_st *context) {
    CUresult result = CUDA_SUCCESS;
    sim_work_lock();
    for (struct sim_capture *capture = captures; capture; capture = capture->next)
        if (capture->context == context)
            result = spoil(capture);
    sim_work_unlock();
    return result;
}

CUresult sim_capture_forbids(void) {
    CUresult result = CUDA_SUCCESS;
    if (thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED || !__atomic_load_n(&captures, __ATOMIC_RELAXED))
        return CUDA_SUCCESS;
    sim_work_lock();
    for (struct sim_capture *capture = captures; capture; capture = capture->next) {
        bool mine = capture->thread == this_thread() && capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED;
        bool global =
            thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL && capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
        if (mine || global) {
            capture->invalid = true;
            result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
    }
    sim_work_unlock();
    return result;
}

SIM_EXPORT CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode) {
    SIM_BEGIN();
    if (!mode || (unsigned int)*mode > CU_STREAM_CAPTURE_MODE_RELAXED)
        return CUDA_ERROR_INVALID_VALUE;
    CUstreamCaptureMode before = thread_mode;
    thread_mode = *mode;
    *mode = before;
    return CUDA_SUCCESS;
}

/* ---- work becomes nodes; the lock is held ---- */

static CUresult stand_on(struct CUstream_st *stream, CUgraphNode node) {
    struct sim_edge edge = {.node = node};
    free(stream->tips);
    stream->tips = NULL;
    stream->tip_count = 0;
    return sim_edge_add(&stream->tips, &stream->tip_count, &edge) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult sim_capture_add(struct CUstream_st *stream, CUgraphNodeType type, struct sim_content *content,
                         struct CUgraph_st *child, CUgraphNode *node) {
    CUgraphNode fresh;
    if (!stream->capture || stream->capture->invalid)
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    CUresult result =
        sim_graph_add(stream->capture->graph, type, content, child, stream->tips, stream->tip_count, &fresh);
    if (result != CUDA_SUCCESS)
        return result;
    if (node)
        *node = fresh;
    return stand_on(stream, fresh);
}

/* Adds a content that was just made, if it was. */
static CUresult add_made(struct CUstream_st *stream, CUresult made, struct sim_content *content) {
    if (made != CUDA_SUCCESS)
        return made;
    CUresult result = sim_capture_add(stream, content->params.type, content, NULL, NULL);
    if (result != CUDA_SUCCESS)
        sim_content_drop(content);
    return result;
}

CUresult sim_capture_job(struct CUstream_st *stream, const struct sim_job *job) {
    struct sim_content *content = NULL;
    CUresult made = sim_content_of_job(job, &content);
    return add_made(stream, made, content);
}

CUresult sim_capture_kernel(struct CUstream_st *stream, const struct sim_launch *launch,
                            const struct sim_job *job, CUfunction handle, void **parameters, void **extra) {
    struct sim_content *content = NULL;
    CUresult made = sim_content_of_launch(launch, job, handle, parameters, extra, &content);
    return add_made(stream, made, content);
}

CUresult sim_capture_exec(struct CUstream_st *stream, const struct CUgraphExec_st *exec) {
    struct CUgraph_st *child = sim_graph_of_steps(exec->steps, exec->count);
    if (!child)
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = sim_capture_add(stream, CU_GRAPH_NODE_TYPE_GRAPH, NULL, child, NULL);
    if (result != CUDA_SUCCESS)
        sim_graph_end(child);
    return result;
}

/* A node of parameters whose making needs no other lock. */
static CUresult add_plain(struct CUstream_st *stream, CUgraphNodeParams *params, const void *kept,
                          size_t bytes) {
    struct sim_job nothing = {.kind = SIM_OP_MARK, .node = params->type};
    struct sim_content *content;
    CUresult result = sim_content_of_job(&nothing, &content);
    if (result != CUDA_SUCCESS)
        return result;
    content->params = *params;
    content->described = true;
    if (bytes) {
        content->kept = malloc(bytes);
        if (!content->kept) {
            sim_content_drop(content);
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        memcpy(content->kept, kept, bytes);
        content->params.memOp.paramArray = content->kept;
    }
    return add_made(stream, CUDA_SUCCESS, content);
}

CUresult sim_capture_host(struct CUstream_st *stream, CUhostFn function, void *data) {
    CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_HOST, .host = {.fn = function, .userData = data}};
    return add_plain(stream, &params, NULL, 0);
}

CUresult sim_capture_values(struct CUstream_st *stream, unsigned int count,
                            const CUstreamBatchMemOpParams *operations) {
    CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_BATCH_MEM_OP,
                                .memOp = {.ctx = stream->context, .count = count}};
    return add_plain(stream, &params, operations, count * sizeof *operations);
}

CUresult sim_capture_record(struct CUstream_st *stream, struct CUevent_st *event, bool external) {
    if (stream->capture->invalid)
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (external) {
        CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_EVENT_RECORD, .eventRecord = {.event = event}};
        return add_plain(stream, &params, NULL, 0);
    }
    struct sim_edge *tips = stream->tip_count ? malloc(stream->tip_count * sizeof *tips) : NULL;
    if (stream->tip_count && !tips)
        return CUDA_ERROR_OUT_OF_MEMORY;
    sim_event_clear(event);
    if (tips)
        memcpy(tips, stream->tips, stream->tip_count * sizeof *tips);
    event->tips = tips;
    event->tip_count = stream->tip_count;
    event->capture = stream->capture->id;
    event->recorded = true;
    return CUDA_SUCCESS;
}

static bool stands_on(const struct CUstream_st *stream, CUgraphNode node) {
    for (size_t i = 0; i < stream->tip_count; i++)
        if (stream->tips[i].node == node)
            return true;
    return false;
}

CUresult sim_capture_await(struct CUstream_st *stream, struct CUevent_st *event, bool external) {
    struct sim_capture *capture = event->capture ? find(event->capture) : NULL;
    if (stream->capture && stream->capture->invalid)
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (external) {
        CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_WAIT_EVENT, .eventWait = {.event = event}};
        return add_plain(stream, &params, NULL, 0);
    }
    if (!capture && !event->recorded)
        return CUDA_SUCCESS;
    if (!capture && !stream->capture) /* of a capture that is over: it never stands for work that ran */
        return CUDA_ERROR_CAPTURED_EVENT;
    if (!capture) {
        stream->capture->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    if (capture->invalid)
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (stream->capture && stream->capture != capture) {
        stream->capture->invalid = capture->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_MERGE;
    }
    if (stream->kind == SIM_STREAM_LEGACY || stream->context != capture->context) {
        capture->invalid = true;
        return stream->kind == SIM_STREAM_LEGACY ? CUDA_ERROR_STREAM_CAPTURE_IMPLICIT
                                                 : CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    stream->capture = capture;
    for (size_t i = 0; i < event->tip_count; i++)
        if (!stands_on(stream, event->tips[i].node) &&
            !sim_edge_add(&stream->tips, &stream->tip_count, &event->tips[i]))
            return CUDA_ERROR_OUT_OF_MEMORY;
    return CUDA_SUCCESS;
}

void sim_capture_drop(struct CUstream_st *stream) {
    struct sim_capture *capture = stream->capture;
    if (!capture)
        return;
    if (capture->origin != stream) { /* clients do so once they have joined it */
        leave(stream);
        return;
    }
    struct CUgraph_st *graph = capture->given ? NULL : capture->graph;
    finish(capture);
    if (graph)
        sim_graph_end(graph);
}

void sim_captures_context_ends(struct CUctx_st *context) {
    for (struct CUstream_st *stream = context->streams; stream; stream = stream->next)
        sim_capture_drop(stream);
}

/* ---- memory; called without the lock ---- */

static CUresult add_memory(CUstream handle, bool ptsz, CUgraphNodeParams *params, CUdeviceptr *address) {
    struct sim_content *content;
    CUresult result = sim_content_make(params, &content);
    if (result != CUDA_SUCCESS)
        return result;
    struct CUctx_st *context;
    struct CUstream_st *stream;
    result = sim_stream_enter(handle, ptsz, &context, &stream);
    if (result == CUDA_SUCCESS) {
        result = stream->capture ? sim_capture_add(stream, params->type, content, NULL, NULL)
                                 : CUDA_ERROR_INVALID_VALUE; /* it was ended just now */
        if (result != CUDA_SUCCESS)
            sim_content_drop(content);
        result = sim_stream_leave(stream, result);
    }
    if (result == CUDA_SUCCESS && address)
        *address = params->alloc.dptr;
    return result;
}

CUresult sim_capture_alloc(CUstream stream, bool ptsz, const CUmemPoolProps *props, uint64_t bytes,
                           CUdeviceptr *address) {
    CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_MEM_ALLOC,
                                .alloc = {.poolProps = *props, .bytesize = bytes}};
    params.alloc.poolProps.allocType = CU_MEM_ALLOCATION_TYPE_PINNED;
    return add_memory(stream, ptsz, &params, address);
}

CUresult sim_capture_free(CUstream stream, bool ptsz, CUdeviceptr address) {
    CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_MEM_FREE, .free = {address}};
    return add_memory(stream, ptsz, &params, NULL);
}

/* ---- beginning and end ---- */

static CUresult begin(CUstream handle, bool ptsz, CUstreamCaptureMode mode, CUgraph graph,
                      const CUgraphNode *dependencies, const CUgraphEdgeData *data, size_t count,
                      bool given) {
    if ((unsigned int)mode > CU_STREAM_CAPTURE_MODE_RELAXED)
        return CUDA_ERROR_INVALID_VALUE;
    SIM_ENTER(handle, ptsz);
    struct sim_edge *tips = NULL;
    CUresult result = CUDA_SUCCESS;
    if (stream->kind == SIM_STREAM_LEGACY)
        result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    else if (stream->capture)
        result = CUDA_ERROR_ILLEGAL_STATE;
    else if (given && (!sim_handle_is(graph, SIM_HANDLE_GRAPH) || sim_capture_uses(graph)))
        result = CUDA_ERROR_INVALID_VALUE;
    else if (given)
        result = sim_graph_edges(graph, dependencies, data, count, &tips);
    if (result != CUDA_SUCCESS)
        return sim_stream_leave(stream, result);
    struct sim_capture *capture = calloc(1, sizeof *capture);
    if (!given)
        graph = sim_graph_make();
    if (!capture || !graph) {
        free(capture);
        free(tips);
        if (graph && !given)
            sim_graph_end(graph);
        return sim_stream_leave(stream, CUDA_ERROR_OUT_OF_MEMORY);
    }
    *capture = (struct sim_capture){.next = captures,
                                    .id = ++last_capture,
                                    .thread = this_thread(),
                                    .graph = graph,
                                    .context = context,
                                    .origin = stream,
                                    .mode = mode,
                                    .given = given};
    capture->context = stream->context;
    __atomic_store_n(&captures, capture, __ATOMIC_RELAXED);
    stream->capture = capture;
    stream->tips = tips;
    stream->tip_count = count;
    return sim_stream_leave(stream, CUDA_SUCCESS);
}

SIM_EXPORT CUresult cuStreamBeginCapture(CUstream hStream) {
    return begin(hStream, false, CU_STREAM_CAPTURE_MODE_GLOBAL, NULL, NULL, NULL, 0, false);
}
SIM_EXPORT CUresult cuStreamBeginCapture_ptsz(CUstream hStream) {
    return begin(hStream, true, CU_STREAM_CAPTURE_MODE_GLOBAL, NULL, NULL, NULL, 0, false);
}
SIM_EXPORT CUresult cuStreamBeginCapture_v2(CUstream hStream, CUstreamCaptureMode mode) {
    return begin(hStream, false, mode, NULL, NULL, NULL, 0, false);
}
SIM_EXPORT CUresult cuStreamBeginCapture_v2_ptsz(CUstream hStream, CUstreamCaptureMode mode) {
    return begin(hStream, true, mode, NULL, NULL, NULL, 0, false);
}
SIM_EXPORT CUresult cuStreamBeginCaptureToGraph(CUstream hStream, CUgraph hGraph,
                                                const CUgraphNode *dependencies,
                                                const CUgraphEdgeData *dependencyData, size_t numDependencies,
                                                CUstreamCaptureMode mode) {
    return begin(hStream, false, mode, hGraph, dependencies, dependencyData, numDependencies, true);
}
SIM_EXPORT CUresult cuStreamBeginCaptureToGraph_ptsz(CUstream hStream, CUgraph hGraph,
                                                     const CUgraphNode *dependencies,
                                                     const CUgraphEdgeData *dependencyData,
                                                     size_t numDependencies, CUstreamCaptureMode mode) {
    return begin(hStream, true, mode, hGraph, dependencies, dependencyData, numDependencies, true);
}

/* Mark what comes before a node, itself included. */
static void mark_before(CUgraphNode node) {
    if (node->place)
        return;
    node->place = 1;
    for (size_t i = 0; i < node->before_count; i++)
        mark_before(node->before[i].node);
}

/* Whether all that other streams captured comes before what the origin stands on. */
static bool is_joined(const struct sim_capture *capture) {
    for (struct CUgraphNode_st *node = capture->graph->first; node; node = node->next)
        node->place = 0;
    for (size_t i = 0; i < capture->origin->tip_count; i++)
        mark_before(capture->origin->tips[i].node);
    for (const struct CUstream_st *stream = capture->context->streams; stream; stream = stream->next)
        for (size_t i = 0; stream->capture == capture && i < stream->tip_count; i++)
            if (!stream->tips[i].node->place)
                return false;
    return true;
}

static CUresult end(CUstream handle, bool ptsz, CUgraph *graph) {
    if (!graph)
        return CUDA_ERROR_INVALID_VALUE;
    SIM_ENTER(handle, ptsz);
    (void)context;
    struct sim_capture *capture = stream->capture;
    CUresult result = CUDA_SUCCESS;
    *graph = NULL;
    if (!capture)
        return sim_stream_leave(stream, CUDA_ERROR_ILLEGAL_STATE);
    if (capture->origin != stream)
        return sim_stream_leave(stream, CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
    if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && capture->thread != this_thread())
        return sim_stream_leave(stream, CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
    if (capture->invalid)
        result = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    else if (!is_joined(capture))
        result = CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
    struct CUgraph_st *made = capture->graph;
    bool given = capture->given;
    finish(capture);
    if (result == CUDA_SUCCESS)
        *graph = made;
    else if (!given)
        sim_graph_end(made);
    return sim_stream_leave(stream, result);
}

SIM_EXPORT CUresult cuStreamEndCapture(CUstream hStream, CUgraph *phGraph) {
    return end(hStream, false, phGraph);
}
SIM_EXPORT CUresult cuStreamEndCapture_ptsz(CUstream hStream, CUgraph *phGraph) {
    return end(hStream, true, phGraph);
}
