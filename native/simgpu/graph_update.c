/*
 * Changing executable graphs: all of one after another graph of the same form, one child graph of it, and
 * switching nodes off.
 */
#include "graph.h"

#include <stdlib.h>
#include <string.h>

static CUgraphNode find_node(struct CUgraph_st *graph, uint64_t number) {
    for (struct CUgraphNode_st *node = graph->first; node; node = node->next) {
        CUgraphNode below = node->number == number ? node
                            : node->child          ? find_node(node->child, number)
                                                   : NULL;
        if (below)
            return below;
    }
    return NULL;
}

static bool same_before(const struct sim_step *one, const struct sim_step *other) {
    return one->before_count == other->before_count &&
           (!one->before_count ||
            memcmp(one->before, other->before, one->before_count * sizeof *one->before) == 0);
}

/* Whether a step can become another; both are of one place in graphs of one form. */
static CUgraphExecUpdateResult compare(const struct sim_step *now, const struct sim_step *then) {
    if (!same_before(now, then))
        return CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED;
    if (now->type != then->type)
        return CU_GRAPH_EXEC_UPDATE_ERROR_NODE_TYPE_CHANGED;
    if (now->type == CU_GRAPH_NODE_TYPE_KERNEL &&
        now->content->params.kernel.ctx != then->content->params.kernel.ctx)
        return CU_GRAPH_EXEC_UPDATE_ERROR_UNSUPPORTED_FUNCTION_CHANGE;
    if (now->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC || now->type == CU_GRAPH_NODE_TYPE_MEM_FREE)
        return now->content == then->content ? CU_GRAPH_EXEC_UPDATE_SUCCESS
                                             : CU_GRAPH_EXEC_UPDATE_ERROR_NOT_SUPPORTED;
    return CU_GRAPH_EXEC_UPDATE_SUCCESS;
}

static void take_content(struct sim_step *step, struct sim_step *from) {
    struct sim_content *old = step->content;
    step->content = from->content;
    from->content = old;
}

static CUresult update(CUgraphExec exec, CUgraph graph, CUgraphExecUpdateResultInfo *info) {
    struct sim_step *steps;
    size_t count;
    *info = (CUgraphExecUpdateResultInfo){.result = CU_GRAPH_EXEC_UPDATE_ERROR};
    CUresult result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    sim_work_lock();
    if (!sim_handle_is(exec, SIM_HANDLE_EXEC) || !sim_handle_is(graph, SIM_HANDLE_GRAPH))
        result = CUDA_ERROR_INVALID_VALUE;
    else
        result = sim_steps_make(graph, &steps, &count, NULL);
    if (result != CUDA_SUCCESS) {
        sim_work_unlock();
        return result;
    }
    info->result =
        count == exec->count ? CU_GRAPH_EXEC_UPDATE_SUCCESS : CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED;
    for (size_t i = 0; i < count && info->result == CU_GRAPH_EXEC_UPDATE_SUCCESS; i++) {
        info->result = compare(&exec->steps[i], &steps[i]);
        if (info->result != CU_GRAPH_EXEC_UPDATE_SUCCESS)
            info->errorNode = find_node(graph, steps[i].origin);
    }
    for (size_t i = 0; i < count && info->result == CU_GRAPH_EXEC_UPDATE_SUCCESS; i++)
        take_content(&exec->steps[i], &steps[i]);
    sim_steps_free(steps, count);
    sim_work_unlock();
    return info->result == CU_GRAPH_EXEC_UPDATE_SUCCESS ? CUDA_SUCCESS : CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
}

SIM_EXPORT CUresult cuGraphExecUpdate_v2(CUgraphExec hGraphExec, CUgraph hGraph,
                                         CUgraphExecUpdateResultInfo *resultInfo) {
    return resultInfo ? update(hGraphExec, hGraph, resultInfo) : CUDA_ERROR_INVALID_VALUE;
}

SIM_EXPORT CUresult cuGraphExecUpdate(CUgraphExec hGraphExec, CUgraph hGraph, CUgraphNode *hErrorNode_out,
                                      CUgraphExecUpdateResult *updateResult_out) {
    CUgraphExecUpdateResultInfo info;
    if (!updateResult_out)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = update(hGraphExec, hGraph, &info);
    *updateResult_out = info.result;
    if (hErrorNode_out)
        *hErrorNode_out = info.errorNode;
    return result;
}

/* The steps of the child graph's nodes take over those of another graph of its form; the lock is held. */
static CUresult update_child(CUgraphExec exec, struct CUgraph_st *child, struct CUgraph_st *graph) {
    struct sim_step *now, *then = NULL;
    size_t now_count, then_count = 0;
    CUresult result = sim_steps_make(child, &now, &now_count, NULL);
    if (result != CUDA_SUCCESS)
        return result;
    result = sim_steps_make(graph, &then, &then_count, NULL);
    if (result == CUDA_SUCCESS && now_count != then_count)
        result = CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < now_count && result == CUDA_SUCCESS; i++)
        if (compare(&now[i], &then[i]) != CU_GRAPH_EXEC_UPDATE_SUCCESS)
            result = CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < now_count && result == CUDA_SUCCESS; i++)
        for (size_t s = 0; s < exec->count && now[i].origin; s++)
            if (exec->steps[s].origin == now[i].origin)
                take_content(&exec->steps[s], &then[i]);
    sim_steps_free(now, now_count);
    sim_steps_free(then, then_count);
    return result;
}

SIM_EXPORT CUresult cuGraphExecChildGraphNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode,
                                                       CUgraph childGraph) {
    SIM_BEGIN();
    sim_work_lock();
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    if (sim_handle_is(hGraphExec, SIM_HANDLE_EXEC) && sim_handle_is(hNode, SIM_HANDLE_NODE) && hNode->child &&
        sim_handle_is(childGraph, SIM_HANDLE_GRAPH))
        result = update_child(hGraphExec, hNode->child, childGraph);
    sim_work_unlock();
    return result;
}

/* ---- switching nodes off ---- */

/* The step of a node that can be switched off; the lock is held after success only. */
static CUresult enter(CUgraphExec exec, CUgraphNode node, struct sim_step **step) {
    CUresult result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    sim_work_lock();
    bool there = sim_handle_is(exec, SIM_HANDLE_EXEC) && sim_handle_is(node, SIM_HANDLE_NODE) &&
                 (node->type == CU_GRAPH_NODE_TYPE_KERNEL || node->type == CU_GRAPH_NODE_TYPE_MEMCPY ||
                  node->type == CU_GRAPH_NODE_TYPE_MEMSET);
    *step = there ? sim_step_of(exec, node) : NULL;
    if (!*step)
        sim_work_unlock();
    return *step ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_EXPORT CUresult cuGraphNodeSetEnabled(CUgraphExec hGraphExec, CUgraphNode hNode, unsigned int isEnabled) {
    struct sim_step *step;
    CUresult result = enter(hGraphExec, hNode, &step);
    if (result != CUDA_SUCCESS)
        return result;
    step->disabled = !isEnabled;
    sim_work_unlock();
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGraphNodeGetEnabled(CUgraphExec hGraphExec, CUgraphNode hNode,
                                          unsigned int *isEnabled) {
    struct sim_step *step;
    if (!isEnabled)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = enter(hGraphExec, hNode, &step);
    if (result != CUDA_SUCCESS)
        return result;
    *isEnabled = !step->disabled;
    sim_work_unlock();
    return CUDA_SUCCESS;
}
