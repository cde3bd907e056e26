/*
 * Adding nodes of each kind, and their parameters. All calls go through one form of parameters, that of
 * cuGraphAddNode; the older ones are translated.
 */
#include "graph.h"

#include <stdlib.h>
#include <string.h>

/* Translations of what the older calls pass. */
static CUgraphNodeParams of_kernel(const CUDA_KERNEL_NODE_PARAMS_v2 *kernel) {
    CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_KERNEL};
    memcpy(&params.kernel, kernel, sizeof *kernel); /* the third version has the same fields */
    return params;
}
static CUgraphNodeParams of_kernel_v1(const CUDA_KERNEL_NODE_PARAMS_v1 *kernel) {
    CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_KERNEL};
    memcpy(&params.kernel, kernel, sizeof *kernel); /* a prefix */
    return params;
}
static CUgraphNodeParams of_copy(const CUDA_MEMCPY3D *copy, CUcontext context) {
    return (CUgraphNodeParams){.type = CU_GRAPH_NODE_TYPE_MEMCPY, .memcpy = {0, 0, context, *copy}};
}
static CUgraphNodeParams of_set(const CUDA_MEMSET_NODE_PARAMS *set, CUcontext context) {
    CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_MEMSET};
    memcpy(&params.memset, set, sizeof *set); /* a prefix */
    params.memset.ctx = context;
    return params;
}
static CUgraphNodeParams of_host(const CUDA_HOST_NODE_PARAMS *host) {
    return (CUgraphNodeParams){.type = CU_GRAPH_NODE_TYPE_HOST,
                               .host = {.fn = host->fn, .userData = host->userData}};
}
static CUgraphNodeParams of_event(CUevent event, CUgraphNodeType type) {
    return (CUgraphNodeParams){.type = type, .eventRecord = {.event = event}};
}
static CUgraphNodeParams of_values(const CUDA_BATCH_MEM_OP_NODE_PARAMS *values) {
    CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_BATCH_MEM_OP};
    memcpy(&params.memOp, values, sizeof *values);
    return params;
}

/* ---- adding ---- */

struct place {
    CUgraph graph;
    const CUgraphNode *nodes;
    const CUgraphEdgeData *data;
    size_t count;
};

static CUresult add_at(const struct place *place, CUgraphNodeType type, struct sim_content *content,
                       struct CUgraph_st *child, CUgraphNode *node) {
    struct sim_edge *edges;
    if (!sim_handle_is(place->graph, SIM_HANDLE_GRAPH))
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = sim_graph_edges(place->graph, place->nodes, place->data, place->count, &edges);
    if (result == CUDA_SUCCESS) {
        result = sim_graph_add(place->graph, type, content, child, edges, place->count, node);
        free(edges);
    }
    return result;
}

static bool is_below(const struct CUgraph_st *graph, const struct CUgraph_st *above) {
    for (; graph; graph = graph->parent ? graph->parent->graph : NULL)
        if (graph == above)
            return true;
    return false;
}

/* Lock held. */
static CUresult add_child(const struct place *place, CUDA_CHILD_GRAPH_NODE_PARAMS *params,
                          CUgraphNode *node) {
    struct CUgraph_st *child = params->graph;
    bool moves = params->ownership == CU_GRAPH_CHILD_GRAPH_OWNERSHIP_MOVE;
    if (!sim_handle_is(child, SIM_HANDLE_GRAPH) || !sim_handle_is(place->graph, SIM_HANDLE_GRAPH) ||
        is_below(place->graph, child))
        return CUDA_ERROR_INVALID_VALUE;
    if (moves && (child->parent || child->instances))
        return CUDA_ERROR_INVALID_VALUE;
    if (!moves && child->allocates)
        return CUDA_ERROR_NOT_SUPPORTED;
    struct CUgraph_st *own = moves ? child : sim_graph_copy(child);
    if (!own)
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = add_at(place, CU_GRAPH_NODE_TYPE_GRAPH, NULL, own, node);
    if (result != CUDA_SUCCESS && !moves)
        sim_graph_end(own);
    return result;
}

static CUresult add(const struct place *place, CUgraphNodeParams *params, CUgraphNode *node) {
    struct sim_content *content = NULL;
    CUresult result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    if (!node || !params)
        return CUDA_ERROR_INVALID_VALUE;
    bool is_child = params->type == CU_GRAPH_NODE_TYPE_GRAPH;
    if (!is_child && (result = sim_content_make(params, &content)) != CUDA_SUCCESS)
        return result;
    sim_work_lock();
    if (is_child) {
        result = add_child(place, &params->graph, node);
    } else {
        result = add_at(place, params->type, content, NULL, node);
        if (result != CUDA_SUCCESS)
            sim_content_drop(content);
    }
    sim_work_unlock();
    return result;
}

#define PLACE ((struct place){hGraph, dependencies, NULL, numDependencies})
#define ADD(translated)                                                                                      \
    CUgraphNodeParams params = translated;                                                                   \
    return add(&PLACE, &params, phGraphNode)

SIM_EXPORT CUresult cuGraphAddNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies,
                                   size_t numDependencies, CUgraphNodeParams *nodeParams) {
    return add(&PLACE, nodeParams, phGraphNode);
}
SIM_EXPORT CUresult cuGraphAddNode_v2(CUgraphNode *phGraphNode, CUgraph hGraph,
                                      const CUgraphNode *dependencies, const CUgraphEdgeData *dependencyData,
                                      size_t numDependencies, CUgraphNodeParams *nodeParams) {
    return add(&(struct place){hGraph, dependencies, dependencyData, numDependencies}, nodeParams,
               phGraphNode);
}
SIM_EXPORT CUresult cuGraphAddNode_v3(CUgraphNode *phGraphNode, CUgraph hGraph,
                                      const CUgraphNode *dependencies, const CUgraphEdgeData *dependencyData,
                                      size_t numDependencies, CUgraphNodeParams *nodeParams) {
    return add(&(struct place){hGraph, dependencies, dependencyData, numDependencies}, nodeParams,
               phGraphNode);
}
SIM_EXPORT CUresult cuGraphAddKernelNode(CUgraphNode *phGraphNode, CUgraph hGraph,
                                         const CUgraphNode *dependencies, size_t numDependencies,
                                         const CUDA_KERNEL_NODE_PARAMS_v1 *nodeParams) {
    if (!nodeParams)
        return CUDA_ERROR_INVALID_VALUE;
    ADD(of_kernel_v1(nodeParams));
}
SIM_EXPORT CUresult cuGraphAddKernelNode_v2(CUgraphNode *phGraphNode, CUgraph hGraph,
                                            const CUgraphNode *dependencies, size_t numDependencies,
                                            const CUDA_KERNEL_NODE_PARAMS_v2 *nodeParams) {
    if (!nodeParams)
        return CUDA_ERROR_INVALID_VALUE;
    ADD(of_kernel(nodeParams));
}
SIM_EXPORT CUresult cuGraphAddMemcpyNode(CUgraphNode *phGraphNode, CUgraph hGraph,
                                         const CUgraphNode *dependencies, size_t numDependencies,
                                         const CUDA_MEMCPY3D *copyParams, CUcontext ctx) {
    if (!copyParams)
        return CUDA_ERROR_INVALID_VALUE;
    ADD(of_copy(copyParams, ctx));
}
SIM_EXPORT CUresult cuGraphAddMemsetNode(CUgraphNode *phGraphNode, CUgraph hGraph,
                                         const CUgraphNode *dependencies, size_t numDependencies,
                                         const CUDA_MEMSET_NODE_PARAMS *memsetParams, CUcontext ctx) {
    if (!memsetParams)
        return CUDA_ERROR_INVALID_VALUE;
    ADD(of_set(memsetParams, ctx));
}
SIM_EXPORT CUresult cuGraphAddHostNode(CUgraphNode *phGraphNode, CUgraph hGraph,
                                       const CUgraphNode *dependencies, size_t numDependencies,
                                       const CUDA_HOST_NODE_PARAMS *nodeParams) {
    if (!nodeParams)
        return CUDA_ERROR_INVALID_VALUE;
    ADD(of_host(nodeParams));
}
SIM_EXPORT CUresult cuGraphAddChildGraphNode(CUgraphNode *phGraphNode, CUgraph hGraph,
                                             const CUgraphNode *dependencies, size_t numDependencies,
                                             CUgraph childGraph) {
    ADD(((CUgraphNodeParams){.type = CU_GRAPH_NODE_TYPE_GRAPH, .graph = {.graph = childGraph}}));
}
SIM_EXPORT CUresult cuGraphAddEmptyNode(CUgraphNode *phGraphNode, CUgraph hGraph,
                                        const CUgraphNode *dependencies, size_t numDependencies) {
    ADD({.type = CU_GRAPH_NODE_TYPE_EMPTY});
}
SIM_EXPORT CUresult cuGraphAddEventRecordNode(CUgraphNode *phGraphNode, CUgraph hGraph,
                                              const CUgraphNode *dependencies, size_t numDependencies,
                                              CUevent event) {
    ADD(of_event(event, CU_GRAPH_NODE_TYPE_EVENT_RECORD));
}
SIM_EXPORT CUresult cuGraphAddEventWaitNode(CUgraphNode *phGraphNode, CUgraph hGraph,
                                            const CUgraphNode *dependencies, size_t numDependencies,
                                            CUevent event) {
    ADD(of_event(event, CU_GRAPH_NODE_TYPE_WAIT_EVENT));
}
SIM_EXPORT CUresult cuGraphAddBatchMemOpNode(CUgraphNode *phGraphNode, CUgraph hGraph,
                                             const CUgraphNode *dependencies, size_t numDependencies,
                                             const CUDA_BATCH_MEM_OP_NODE_PARAMS *nodeParams) {
    if (!nodeParams)
        return CUDA_ERROR_INVALID_VALUE;
    ADD(of_values(nodeParams));
}
SIM_EXPORT CUresult cuGraphAddMemAllocNode(CUgraphNode *phGraphNode, CUgraph hGraph,
                                           const CUgraphNode *dependencies, size_t numDependencies,
                                           CUDA_MEM_ALLOC_NODE_PARAMS *nodeParams) {
    CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_MEM_ALLOC};
    if (!nodeParams)
        return CUDA_ERROR_INVALID_VALUE;
    memcpy(&params.alloc, nodeParams, sizeof *nodeParams);
    CUresult result = add(&PLACE, &params, phGraphNode);
    if (result == CUDA_SUCCESS)
        nodeParams->dptr = params.alloc.dptr;
    return result;
}
SIM_EXPORT CUresult cuGraphAddMemFreeNode(CUgraphNode *phGraphNode, CUgraph hGraph,
                                          const CUgraphNode *dependencies, size_t numDependencies,
                                          CUdeviceptr dptr) {
    ADD(((CUgraphNodeParams){.type = CU_GRAPH_NODE_TYPE_MEM_FREE, .free = {dptr}}));
}

/* ---- reading parameters ---- */

/* A node's parameters; pointers in them are the node's own, and live as long as these do. */
static CUresult read_node(CUgraphNode node, int type, CUgraphNodeParams *params) {
    CUresult result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    sim_work_lock();
    if (!sim_handle_is(node, SIM_HANDLE_NODE) || (type >= 0 && (int)node->type != type))
        result = CUDA_ERROR_INVALID_VALUE;
    else if (node->child)
        *params = (CUgraphNodeParams){.type = node->type, .graph = {.graph = node->child}};
    else
        *params = node->content->params;
    sim_work_unlock();
    return result;
}

#define READ(node_type, member, to)                                                                          \
    CUgraphNodeParams params;                                                                                \
    CUresult result = (to) ? read_node(hNode, node_type, &params) : CUDA_ERROR_INVALID_VALUE;                \
    if (result == CUDA_SUCCESS)                                                                              \
        memcpy(to, &params.member, sizeof *(to));                                                            \
    return result

SIM_EXPORT CUresult cuGraphNodeGetParams(CUgraphNode hNode, CUgraphNodeParams *nodeParams) {
    return nodeParams ? read_node(hNode, -1, nodeParams) : CUDA_ERROR_INVALID_VALUE;
}
SIM_EXPORT CUresult cuGraphKernelNodeGetParams(CUgraphNode hNode, CUDA_KERNEL_NODE_PARAMS_v1 *nodeParams) {
    READ(CU_GRAPH_NODE_TYPE_KERNEL, kernel, nodeParams);
}
SIM_EXPORT CUresult cuGraphKernelNodeGetParams_v2(CUgraphNode hNode, CUDA_KERNEL_NODE_PARAMS_v2 *nodeParams) {
    READ(CU_GRAPH_NODE_TYPE_KERNEL, kernel, nodeParams);
}
SIM_EXPORT CUresult cuGraphMemcpyNodeGetParams(CUgraphNode hNode, CUDA_MEMCPY3D *nodeParams) {
    READ(CU_GRAPH_NODE_TYPE_MEMCPY, memcpy.copyParams, nodeParams);
}
SIM_EXPORT CUresult cuGraphMemsetNodeGetParams(CUgraphNode hNode, CUDA_MEMSET_NODE_PARAMS *nodeParams) {
    READ(CU_GRAPH_NODE_TYPE_MEMSET, memset, nodeParams);
}
SIM_EXPORT CUresult cuGraphHostNodeGetParams(CUgraphNode hNode, CUDA_HOST_NODE_PARAMS *nodeParams) {
    READ(CU_GRAPH_NODE_TYPE_HOST, host, nodeParams);
}
SIM_EXPORT CUresult cuGraphChildGraphNodeGetGraph(CUgraphNode hNode, CUgraph *phGraph) {
    READ(CU_GRAPH_NODE_TYPE_GRAPH, graph.graph, phGraph);
}
SIM_EXPORT CUresult cuGraphEventRecordNodeGetEvent(CUgraphNode hNode, CUevent *event_out) {
    READ(CU_GRAPH_NODE_TYPE_EVENT_RECORD, eventRecord.event, event_out);
}
SIM_EXPORT CUresult cuGraphEventWaitNodeGetEvent(CUgraphNode hNode, CUevent *event_out) {
    READ(CU_GRAPH_NODE_TYPE_WAIT_EVENT, eventWait.event, event_out);
}
SIM_EXPORT CUresult cuGraphBatchMemOpNodeGetParams(CUgraphNode hNode,
                                                   CUDA_BATCH_MEM_OP_NODE_PARAMS *nodeParams_out) {
    READ(CU_GRAPH_NODE_TYPE_BATCH_MEM_OP, memOp, nodeParams_out);
}
SIM_EXPORT CUresult cuGraphMemAllocNodeGetParams(CUgraphNode hNode, CUDA_MEM_ALLOC_NODE_PARAMS *params_out) {
    READ(CU_GRAPH_NODE_TYPE_MEM_ALLOC, alloc, params_out);
}
SIM_EXPORT CUresult cuGraphMemFreeNodeGetParams(CUgraphNode hNode, CUdeviceptr *dptr_out) {
    READ(CU_GRAPH_NODE_TYPE_MEM_FREE, free.dptr, dptr_out);
}

/* ---- setting parameters: of a graph's node, or of what it is in an executable graph ---- */

static CUresult check_settable(CUgraphNode node, CUgraphNodeType type) {
    if (!sim_handle_is(node, SIM_HANDLE_NODE) || node->type != type || type == CU_GRAPH_NODE_TYPE_GRAPH)
        return CUDA_ERROR_INVALID_VALUE;
    bool memory = type == CU_GRAPH_NODE_TYPE_MEM_ALLOC || type == CU_GRAPH_NODE_TYPE_MEM_FREE;
    return memory ? CUDA_ERROR_NOT_SUPPORTED : CUDA_SUCCESS;
}

static CUresult set(CUgraphExec exec, bool in_exec, CUgraphNode node, CUgraphNodeParams *params) {
    struct sim_content *content;
    CUresult result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    if (!params)
        return CUDA_ERROR_INVALID_VALUE;
    sim_work_lock();
    result = check_settable(node, params->type);
    sim_work_unlock();
    if (result == CUDA_SUCCESS)
        result = sim_content_make(params, &content);
    if (result != CUDA_SUCCESS)
        return result;
    sim_work_lock();
    struct sim_content **to = NULL;
    if ((result = check_settable(node, params->type)) == CUDA_SUCCESS && !in_exec) {
        to = &node->content;
    } else if (result == CUDA_SUCCESS && sim_handle_is(exec, SIM_HANDLE_EXEC)) {
        struct sim_step *step = sim_step_of(exec, node);
        to = step ? &step->content : NULL;
    }
    if (result == CUDA_SUCCESS && !to)
        result = CUDA_ERROR_INVALID_VALUE;
    if (to) {
        struct sim_content *old = *to;
        *to = content;
        content = old;
    }
    sim_content_drop(content);
    sim_work_unlock();
    return result;
}

#define SET(exec, in_exec, given, translated)                                                                \
    if (!(given))                                                                                            \
        return CUDA_ERROR_INVALID_VALUE;                                                                     \
    CUgraphNodeParams params = translated;                                                                   \
    return set(exec, in_exec, hNode, &params)

SIM_EXPORT CUresult cuGraphNodeSetParams(CUgraphNode hNode, CUgraphNodeParams *nodeParams) {
    return set(NULL, false, hNode, nodeParams);
}
SIM_EXPORT CUresult cuGraphNodeSetParams_v2(CUgraphNode hNode, CUgraphNodeParams *nodeParams) {
    return set(NULL, false, hNode, nodeParams);
}
SIM_EXPORT CUresult cuGraphExecNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode,
                                             CUgraphNodeParams *nodeParams) {
    return set(hGraphExec, true, hNode, nodeParams);
}
SIM_EXPORT CUresult cuGraphKernelNodeSetParams(CUgraphNode hNode,
                                               const CUDA_KERNEL_NODE_PARAMS_v1 *nodeParams) {
    SET(NULL, false, nodeParams, of_kernel_v1(nodeParams));
}
SIM_EXPORT CUresult cuGraphKernelNodeSetParams_v2(CUgraphNode hNode,
                                                  const CUDA_KERNEL_NODE_PARAMS_v2 *nodeParams) {
    SET(NULL, false, nodeParams, of_kernel(nodeParams));
}
SIM_EXPORT CUresult cuGraphExecKernelNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode,
                                                   const CUDA_KERNEL_NODE_PARAMS_v1 *nodeParams) {
    SET(hGraphExec, true, nodeParams, of_kernel_v1(nodeParams));
}
SIM_EXPORT CUresult cuGraphExecKernelNodeSetParams_v2(CUgraphExec hGraphExec, CUgraphNode hNode,
                                                      const CUDA_KERNEL_NODE_PARAMS_v2 *nodeParams) {
    SET(hGraphExec, true, nodeParams, of_kernel(nodeParams));
}
SIM_EXPORT CUresult cuGraphMemcpyNodeSetParams(CUgraphNode hNode, const CUDA_MEMCPY3D *nodeParams) {
    SET(NULL, false, nodeParams, of_copy(nodeParams, NULL));
}
SIM_EXPORT CUresult cuGraphExecMemcpyNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode,
                                                   const CUDA_MEMCPY3D *copyParams, CUcontext ctx) {
    SET(hGraphExec, true, copyParams, of_copy(copyParams, ctx));
}
SIM_EXPORT CUresult cuGraphMemsetNodeSetParams(CUgraphNode hNode, const CUDA_MEMSET_NODE_PARAMS *nodeParams) {
    SET(NULL, false, nodeParams, of_set(nodeParams, NULL));
}
SIM_EXPORT CUresult cuGraphExecMemsetNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode,
                                                   const CUDA_MEMSET_NODE_PARAMS *memsetParams,
                                                   CUcontext ctx) {
    SET(hGraphExec, true, memsetParams, of_set(memsetParams, ctx));
}
SIM_EXPORT CUresult cuGraphHostNodeSetParams(CUgraphNode hNode, const CUDA_HOST_NODE_PARAMS *nodeParams) {
    SET(NULL, false, nodeParams, of_host(nodeParams));
}
SIM_EXPORT CUresult cuGraphExecHostNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode,
                                                 const CUDA_HOST_NODE_PARAMS *nodeParams) {
    SET(hGraphExec, true, nodeParams, of_host(nodeParams));
}
SIM_EXPORT CUresult cuGraphEventRecordNodeSetEvent(CUgraphNode hNode, CUevent event) {
    SET(NULL, false, event, of_event(event, CU_GRAPH_NODE_TYPE_EVENT_RECORD));
}
SIM_EXPORT CUresult cuGraphExecEventRecordNodeSetEvent(CUgraphExec hGraphExec, CUgraphNode hNode,
                                                       CUevent event) {
    SET(hGraphExec, true, event, of_event(event, CU_GRAPH_NODE_TYPE_EVENT_RECORD));
}
SIM_EXPORT CUresult cuGraphEventWaitNodeSetEvent(CUgraphNode hNode, CUevent event) {
    SET(NULL, false, event, of_event(event, CU_GRAPH_NODE_TYPE_WAIT_EVENT));
}
SIM_EXPORT CUresult cuGraphExecEventWaitNodeSetEvent(CUgraphExec hGraphExec, CUgraphNode hNode,
                                                     CUevent event) {
    SET(hGraphExec, true, event, of_event(event, CU_GRAPH_NODE_TYPE_WAIT_EVENT));
}
SIM_EXPORT CUresult cuGraphBatchMemOpNodeSetParams(CUgraphNode hNode,
                                                   const CUDA_BATCH_MEM_OP_NODE_PARAMS *nodeParams) {
    SET(NULL, false, nodeParams, of_values(nodeParams));
}
SIM_EXPORT CUresult cuGraphExecBatchMemOpNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode,
                                                       const CUDA_BATCH_MEM_OP_NODE_PARAMS *nodeParams) {
    SET(hGraphExec, true, nodeParams, of_values(nodeParams));
}

/* ---- attributes of kernel nodes: remembered ---- */

/* The lock is held after success only. */
static CUresult enter_kernel(CUgraphNode node) {
    CUresult result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    sim_work_lock();
    if (sim_handle_is(node, SIM_HANDLE_NODE) && node->type == CU_GRAPH_NODE_TYPE_KERNEL)
        return CUDA_SUCCESS;
    sim_work_unlock();
    return CUDA_ERROR_INVALID_VALUE;
}

SIM_EXPORT CUresult cuGraphKernelNodeGetAttribute(CUgraphNode hNode, CUkernelNodeAttrID attr,
                                                  CUkernelNodeAttrValue *value_out) {
    if (!value_out || (unsigned int)attr >= SIM_STREAM_ATTRIBUTES)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = enter_kernel(hNode);
    if (result != CUDA_SUCCESS)
        return result;
    memset(value_out, 0, sizeof *value_out);
    if (hNode->attributes)
        *value_out = hNode->attributes[attr];
    sim_work_unlock();
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGraphKernelNodeSetAttribute(CUgraphNode hNode, CUkernelNodeAttrID attr,
                                                  const CUkernelNodeAttrValue *value) {
    if (!value || (unsigned int)attr >= SIM_STREAM_ATTRIBUTES)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = enter_kernel(hNode);
    if (result != CUDA_SUCCESS)
        return result;
    if (!hNode->attributes)
        hNode->attributes = calloc(SIM_STREAM_ATTRIBUTES, sizeof *hNode->attributes);
    if (hNode->attributes)
        hNode->attributes[attr] = *value;
    result = hNode->attributes ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    sim_work_unlock();
    return result;
}

SIM_EXPORT CUresult cuGraphKernelNodeCopyAttributes(CUgraphNode dst, CUgraphNode src) {
    CUresult result = enter_kernel(dst);
    if (result != CUDA_SUCCESS)
        return result;
    if (!sim_handle_is(src, SIM_HANDLE_NODE) || src->type != CU_GRAPH_NODE_TYPE_KERNEL) {
        result = CUDA_ERROR_INVALID_VALUE;
    } else if (src->attributes && src != dst) {
        size_t bytes = SIM_STREAM_ATTRIBUTES * sizeof *src->attributes;
        if (!dst->attributes)
            dst->attributes = malloc(bytes);
        if (dst->attributes)
            memcpy(dst->attributes, src->attributes, bytes);
    }
    sim_work_unlock();
    return result;
}
