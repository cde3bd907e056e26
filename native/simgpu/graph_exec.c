/*
 * Executable graphs: made of a graph, launched into streams.
 */
#include "graph.h"

#include <stdlib.h>

static struct CUgraphExec_st *execs;
static uint64_t last_exec;

#define KNOWN_FLAGS                                                                                          \
    (CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH | CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD |                  \
     CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY)

void sim_execs_forget(void) {
    execs = NULL;
}

struct sim_step *sim_step_of(const struct CUgraphExec_st *exec, CUgraphNode node) {
    for (size_t i = 0; i < exec->count; i++)
        if (exec->steps[i].origin == node->number)
            return &exec->steps[i];
    return NULL;
}

/* ---- beginning and end; the lock is held ---- */

static bool own_all(struct CUgraphExec_st *exec, const struct CUgraph_st *graph) {
    bool owned = sim_owned_copy(&exec->owned, graph->owned);
    for (const struct CUgraphNode_st *node = graph->first; node && owned; node = node->next)
        owned = !node->child || own_all(exec, node->child);
    return owned;
}

static CUresult make(struct CUgraph_st *graph, cuuint64_t flags, struct CUgraphExec_st **out) {
    if (graph->allocates && graph->instances)
        return CUDA_ERROR_NOT_SUPPORTED;
    struct CUgraphExec_st *exec = calloc(1, sizeof *exec);
    if (!exec)
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = sim_steps_make(graph, &exec->steps, &exec->count, &exec->lane_count);
    if (result == CUDA_SUCCESS && (!own_all(exec, graph) || !sim_handle_put(exec, SIM_HANDLE_EXEC))) {
        sim_owned_end(&exec->owned);
        sim_steps_free(exec->steps, exec->count);
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (result != CUDA_SUCCESS) {
        free(exec);
        return result;
    }
    exec->id = ++last_exec;
    exec->flags = flags;
    exec->next = execs;
    execs = exec;
    if (graph->allocates) {
        exec->graph = graph;
        graph->instances++;
    }
    *out = exec;
    return CUDA_SUCCESS;
}

static void end_lanes(struct CUgraphExec_st *exec) {
    for (uint32_t lane = 1; exec->lanes && lane < exec->lane_count; lane++) {
        if (exec->lanes[lane]) {
            sim_stream_end(exec->lanes[lane]);
            sim_stream_settle(exec->lanes[lane]);
        }
    }
    free(exec->lanes);
    exec->lanes = NULL;
    exec->context = NULL;
}

static void settle(struct CUgraphExec_st *exec) {
    if (!exec->destroyed || exec->users)
        return;
    for (struct CUgraphExec_st **link = &execs; *link; link = &(*link)->next) {
        if (*link == exec) {
            *link = exec->next;
            break;
        }
    }
    sim_owned_end_after(&exec->owned, exec->context, exec->last);
    end_lanes(exec);
    if (exec->graph)
        exec->graph->instances--;
    sim_steps_free(exec->steps, exec->count);
    free(exec);
}

void sim_execs_graph_ends(const struct CUgraph_st *graph) {
    for (struct CUgraphExec_st *exec = execs; exec; exec = exec->next)
        if (exec->graph == graph)
            exec->graph = NULL;
}

void sim_graphs_context_ends(struct CUctx_st *context) {
    for (struct CUgraphExec_st *exec = execs; exec; exec = exec->next) {
        if (exec->context != context)
            continue;
        free(exec->lanes); /* the streams end with the context's others */
        exec->lanes = NULL;
        exec->context = NULL;
    }
}

/* ---- launching ---- */

/* Pages behind all that the graph allocates. The lock is let go of. */
static CUresult back(struct CUgraphExec_st *exec) {
    CUresult result = CUDA_SUCCESS;
    for (size_t i = 0; i < exec->count && result == CUDA_SUCCESS; i++) {
        struct sim_content *content = exec->steps[i].content;
        if (!content || !content->block)
            continue;
        sim_work_unlock();
        result = sim_graph_block_back(content->block);
        sim_work_lock();
    }
    return result;
}

/* What is still allocated from the last launch is freed where the program wants that, else it is an error. */
static CUresult check_allocations(const struct CUgraphExec_st *exec) {
    for (size_t i = 0; i < exec->count; i++) {
        const struct sim_content *content = exec->steps[i].content;
        if (!content || !content->block || !sim_graph_block_used(content->block))
            continue;
        if (!(exec->flags & CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH))
            return CUDA_ERROR_INVALID_VALUE;
        sim_graph_memory_free(content->params.alloc.dptr);
    }
    return CUDA_SUCCESS;
}

static void account_allocations(const struct CUgraphExec_st *exec) {
    for (size_t i = 0; i < exec->count; i++) {
        const struct sim_content *content = exec->steps[i].content;
        if (content && content->block)
            sim_graph_block_use(content->block);
        else if (content && exec->steps[i].type == CU_GRAPH_NODE_TYPE_MEM_FREE)
            sim_graph_memory_free(content->params.free.dptr);
    }
}

static bool open_lanes(struct CUgraphExec_st *exec, struct CUctx_st *context) {
    if (exec->context == context)
        return true;
    end_lanes(exec);
    exec->lanes = calloc(exec->lane_count + 1, sizeof(struct CUstream_st *));
    if (!exec->lanes)
        return false;
    exec->context = context;
    exec->card = context->card;
    exec->last = 0;
    for (uint32_t lane = 1; lane < exec->lane_count; lane++)
        exec->lanes[lane] =
            sim_stream_hidden(context); /* NULL: there are no more; it shares the launch's stream */
    return true;
}

static CUresult put_mark(struct CUstream_st *stream, sim_op after, sim_op *op) {
    struct sim_job mark = {.kind = SIM_OP_MARK};
    return sim_put(stream, &mark, NULL, after, false, op);
}

static CUresult put_values(struct CUstream_st *stream, const struct sim_content *content, sim_op after,
                           sim_op *op) {
    CUresult result = CUDA_SUCCESS;
    for (unsigned int i = 0; i < content->params.memOp.count && result == CUDA_SUCCESS; i++)
        result = sim_values_put(stream, &content->params.memOp.paramArray[i], i ? 0 : after, op);
    return result;
}

static CUresult put_event(struct CUstream_st *stream, const struct sim_step *step, sim_op after, sim_op *op) {
    CUevent event = step->content->params.eventRecord.event;
    if (!sim_handle_is(event, SIM_HANDLE_EVENT)) /* destroyed since */
        return put_mark(stream, after, op);
    if (step->type == CU_GRAPH_NODE_TYPE_EVENT_RECORD)
        return sim_event_put(event, stream, after, op);
    CUresult result = put_mark(stream, after, op);
    return result == CUDA_SUCCESS ? sim_event_await(event, stream, op) : result;
}

static CUresult put_content(struct CUstream_st *stream, const struct sim_step *step, sim_op after,
                            sim_op *op) {
    const struct sim_content *content = step->content;
    if (!content || step->disabled)
        return put_mark(stream, after, op);
    switch (step->type) {
    case CU_GRAPH_NODE_TYPE_HOST:
        return sim_host_put(stream, content->params.host.fn, content->params.host.userData, after, op);
    case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP:
        return put_values(stream, content, after, op);
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
        return put_event(stream, step, after, op);
    default:
        return sim_put(stream, &content->job, NULL, after, false, op);
    }
}

/* Submit one step to its lane. Where it waits for several others, marks wait for all but one of them. */
static CUresult put_step(struct CUgraphExec_st *exec, size_t at, struct CUstream_st *launch, sim_op start) {
    struct sim_step *step = &exec->steps[at];
    struct CUstream_st *stream = step->lane && exec->lanes[step->lane] ? exec->lanes[step->lane] : launch;
    CUresult result = CUDA_SUCCESS;
    sim_op after = step->lane && !step->before_count ? start : 0, op = 0;
    for (uint32_t i = 0; i < step->before_count && result == CUDA_SUCCESS; i++) {
        const struct sim_step *before = &exec->steps[step->before[i]];
        if (before->lane == step->lane)
            continue;
        if (after)
            result = put_mark(stream, after, NULL);
        after = before->op;
    }
    if (result != CUDA_SUCCESS)
        return result;
    struct sim_content *content = sim_content_share(step->content); /* the lock may be let go of */
    struct sim_step now = *step;
    result = put_content(stream, &now, after, &op);
    sim_content_drop(content);
    step->op = op;
    return result;
}

static CUresult submit(struct CUgraphExec_st *exec, struct CUstream_st *stream) {
    sim_op start = 0, end = 0;
    CUresult result = CUDA_SUCCESS;
    if (!open_lanes(exec, stream->context))
        return CUDA_ERROR_OUT_OF_MEMORY;
    if (exec->last ||
        exec->lane_count > 1) /* one launch of it after the other, and branches after what is before */
        result = put_mark(stream, exec->last, &start);
    end = start;
    for (size_t i = 0; i < exec->count && result == CUDA_SUCCESS; i++) {
        result = put_step(exec, i, stream, start);
        if (!exec->steps[i].lane)
            end = exec->steps[i].op;
    }
    for (size_t i = 0; i < exec->count && result == CUDA_SUCCESS; i++)
        if (exec->steps[i].tail && exec->steps[i].lane)
            result = put_mark(stream, exec->steps[i].op, &end);
    exec->last = end;
    return result;
}

static CUresult launch(CUgraphExec exec, CUstream handle, bool ptsz, bool upload) {
    CUresult result = sim_fault(upload ? "cuGraphUpload" : "cuGraphLaunch");
    if (result != CUDA_SUCCESS)
        return result;
    SIM_ENTER(handle, ptsz);
    (void)context;
    if (!sim_handle_is(exec, SIM_HANDLE_EXEC))
        return sim_stream_leave(stream, CUDA_ERROR_INVALID_VALUE);
    if (stream->capture)
        return sim_stream_leave(stream, upload ? sim_capture_refuse(stream) : sim_capture_exec(stream, exec));
    exec->users++;
    result = sim_capture_refuse(stream);
    if (result == CUDA_SUCCESS && !upload)
        result = check_allocations(exec);
    if (result == CUDA_SUCCESS)
        result = back(exec);
    if (result == CUDA_SUCCESS && !upload) {
        account_allocations(exec);
        result = submit(exec, stream);
    }
    exec->users--;
    settle(exec);
    return sim_stream_leave(stream, result);
}

SIM_EXPORT CUresult cuGraphLaunch(CUgraphExec hGraphExec, CUstream hStream) {
    return launch(hGraphExec, hStream, false, false);
}
SIM_EXPORT CUresult cuGraphLaunch_ptsz(CUgraphExec hGraphExec, CUstream hStream) {
    return launch(hGraphExec, hStream, true, false);
}
SIM_EXPORT CUresult cuGraphUpload(CUgraphExec hGraphExec, CUstream hStream) {
    return launch(hGraphExec, hStream, false, true);
}
SIM_EXPORT CUresult cuGraphUpload_ptsz(CUgraphExec hGraphExec, CUstream hStream) {
    return launch(hGraphExec, hStream, true, true);
}

/* ---- instantiating ---- */

static CUresult instantiate(CUgraphExec *out, CUgraph graph, cuuint64_t flags) {
    CUresult result = sim_fault("cuGraphInstantiate");
    if (result == CUDA_SUCCESS)
        result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    if (!out || (flags & ~(cuuint64_t)(KNOWN_FLAGS | CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH)))
        return CUDA_ERROR_INVALID_VALUE;
    if (flags &
        CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH) /* kernels, which would launch it, are not executed */
        return CUDA_ERROR_NOT_SUPPORTED;
    sim_work_lock();
    result = sim_handle_is(graph, SIM_HANDLE_GRAPH) && !sim_capture_uses(graph) ? make(graph, flags, out)
                                                                                : CUDA_ERROR_INVALID_VALUE;
    sim_work_unlock();
    return result;
}

static CUresult instantiate_logged(CUgraphExec *out, CUgraph graph, CUgraphNode *error, char *log,
                                   size_t bytes) {
    if (error)
        *error = NULL;
    if (log && bytes)
        *log = 0;
    return instantiate(out, graph, 0);
}

SIM_EXPORT CUresult cuGraphInstantiate(CUgraphExec *phGraphExec, CUgraph hGraph, CUgraphNode *phErrorNode,
                                       char *logBuffer, size_t bufferSize) {
    return instantiate_logged(phGraphExec, hGraph, phErrorNode, logBuffer, bufferSize);
}
SIM_EXPORT CUresult cuGraphInstantiate_v2(CUgraphExec *phGraphExec, CUgraph hGraph, CUgraphNode *phErrorNode,
                                          char *logBuffer, size_t bufferSize) {
    return instantiate_logged(phGraphExec, hGraph, phErrorNode, logBuffer, bufferSize);
}
SIM_EXPORT CUresult cuGraphInstantiateWithFlags(CUgraphExec *phGraphExec, CUgraph hGraph,
                                                unsigned long long flags) {
    return instantiate(phGraphExec, hGraph, flags);
}

static CUresult instantiate_with(CUgraphExec *out, CUgraph graph, CUDA_GRAPH_INSTANTIATE_PARAMS *params,
                                 bool ptsz) {
    if (!params)
        return CUDA_ERROR_INVALID_VALUE;
    params->hErrNode_out = NULL;
    CUresult result = instantiate(out, graph, params->flags);
    if (result == CUDA_SUCCESS && (params->flags & CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD))
        result = launch(*out, params->hUploadStream, ptsz, true);
    params->result_out =
        result == CUDA_SUCCESS ? CUDA_GRAPH_INSTANTIATE_SUCCESS : CUDA_GRAPH_INSTANTIATE_ERROR;
    return result;
}

SIM_EXPORT CUresult cuGraphInstantiateWithParams(CUgraphExec *phGraphExec, CUgraph hGraph,
                                                 CUDA_GRAPH_INSTANTIATE_PARAMS *instantiateParams) {
    return instantiate_with(phGraphExec, hGraph, instantiateParams, false);
}
SIM_EXPORT CUresult cuGraphInstantiateWithParams_ptsz(CUgraphExec *phGraphExec, CUgraph hGraph,
                                                      CUDA_GRAPH_INSTANTIATE_PARAMS *instantiateParams) {
    return instantiate_with(phGraphExec, hGraph, instantiateParams, true);
}

/* Take the lock with an executable graph: held after success only. */
static CUresult enter(CUgraphExec exec, const void *answer) {
    CUresult result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    sim_work_lock();
    if (answer && sim_handle_is(exec, SIM_HANDLE_EXEC))
        return CUDA_SUCCESS;
    sim_work_unlock();
    return CUDA_ERROR_INVALID_VALUE;
}

SIM_EXPORT CUresult cuGraphExecDestroy(CUgraphExec hGraphExec) {
    CUresult result = enter(hGraphExec, hGraphExec);
    if (result != CUDA_SUCCESS)
        return result;
    sim_handle_drop(hGraphExec);
    hGraphExec->destroyed = true;
    settle(hGraphExec);
    sim_work_unlock();
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGraphExecGetFlags(CUgraphExec hGraphExec, cuuint64_t *flags) {
    CUresult result = enter(hGraphExec, flags);
    if (result != CUDA_SUCCESS)
        return result;
    *flags = hGraphExec->flags;
    sim_work_unlock();
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGraphExecGetId(CUgraphExec hGraphExec, unsigned int *graphId) {
    CUresult result = enter(hGraphExec, graphId);
    if (result != CUDA_SUCCESS)
        return result;
    *graphId = (unsigned int)hGraphExec->id;
    sim_work_unlock();
    return CUDA_SUCCESS;
}
