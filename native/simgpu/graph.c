/*
 * Graphs: nodes in the order of their making, each with what it depends on.
 */
#include "graph.h"

#include <stdlib.h>
#include <string.h>

static uint64_t last_graph, last_node;

struct CUgraph_st *sim_graph_make(void) {
    struct CUgraph_st *graph = calloc(1, sizeof *graph);
    if (!graph || !sim_handle_put(graph, SIM_HANDLE_GRAPH)) {
        free(graph);
        return NULL;
    }
    graph->id = ++last_graph;
    return graph;
}

static void free_node(struct CUgraphNode_st *node) {
    sim_handle_drop(node);
    sim_content_drop(node->content);
    if (node->child)
        sim_graph_end(node->child);
    free(node->attributes);
    free(node->before);
    free(node);
}

void sim_graph_end(struct CUgraph_st *graph) {
    sim_handle_drop(graph);
    sim_execs_graph_ends(graph);
    while (graph->first) {
        struct CUgraphNode_st *node = graph->first;
        graph->first = node->next;
        free_node(node);
    }
    sim_owned_end(&graph->owned);
    free(graph);
}

/* ---- edges ---- */

bool sim_edge_add(struct sim_edge **edges, size_t *count, const struct sim_edge *edge) {
    struct sim_edge *grown = realloc(*edges, (*count + 1) * sizeof *grown);
    if (!grown)
        return false;
    *edges = grown;
    grown[(*count)++] = *edge;
    return true;
}

static bool edge_is(const struct sim_edge *edge, CUgraphNode node, const CUgraphEdgeData *data) {
    return edge->node == node && (!data || memcmp(&edge->data, data, sizeof *data) == 0);
}

CUresult sim_graph_edges(const struct CUgraph_st *graph, const CUgraphNode *nodes,
                         const CUgraphEdgeData *data, size_t count, struct sim_edge **out) {
    *out = NULL;
    if (!count)
        return CUDA_SUCCESS;
    if (!nodes || count > graph->count)
        return CUDA_ERROR_INVALID_VALUE;
    struct sim_edge *edges = calloc(count, sizeof *edges);
    if (!edges)
        return CUDA_ERROR_OUT_OF_MEMORY;
    for (size_t i = 0; i < count; i++) {
        bool fine = sim_handle_is(nodes[i], SIM_HANDLE_NODE) && nodes[i]->graph == graph;
        for (size_t j = 0; fine && j < i; j++)
            fine = nodes[i] != nodes[j];
        if (!fine) {
            free(edges);
            return CUDA_ERROR_INVALID_VALUE;
        }
        edges[i].node = nodes[i];
        if (data)
            edges[i].data = data[i];
    }
    *out = edges;
    return CUDA_SUCCESS;
}

CUresult sim_graph_add(struct CUgraph_st *graph, CUgraphNodeType type, struct sim_content *content,
                       struct CUgraph_st *child, const struct sim_edge *before, size_t count,
                       CUgraphNode *out) {
    struct CUgraphNode_st *node = calloc(1, sizeof *node);
    struct sim_edge *edges = count ? malloc(count * sizeof *edges) : NULL;
    if (!node || (count && !edges) || !sim_handle_put(node, SIM_HANDLE_NODE)) {
        free(node);
        free(edges);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (count)
        memcpy(edges, before, count * sizeof *edges);
    *node = (struct CUgraphNode_st){
        .graph = graph, .number = ++last_node, .local = ++graph->last_local, .type = type};
    node->content = content;
    node->child = child;
    node->before = edges;
    node->before_count = count;
    if (child)
        child->parent = node;
    if (graph->last)
        graph->last->next = node;
    else
        graph->first = node;
    graph->last = node;
    graph->count++;
    graph->allocates |= type == CU_GRAPH_NODE_TYPE_MEM_ALLOC || (child && child->allocates);
    *out = node;
    return CUDA_SUCCESS;
}

static void copy_attributes(struct CUgraphNode_st *to, const struct CUgraphNode_st *from) {
    size_t bytes = SIM_STREAM_ATTRIBUTES * sizeof *from->attributes;
    to->attributes = from->attributes ? malloc(bytes) : NULL;
    if (to->attributes)
        memcpy(to->attributes, from->attributes, bytes);
}

struct CUgraph_st *sim_graph_copy(const struct CUgraph_st *graph) {
    struct CUgraph_st *copy = sim_graph_make();
    struct CUgraphNode_st **made = calloc(graph->count + 1, sizeof(struct CUgraphNode_st *));
    bool complete = copy && made && sim_owned_copy(&copy->owned, graph->owned);
    size_t count = 0;
    for (struct CUgraphNode_st *node = graph->first; complete && node; node = node->next) {
        struct CUgraph_st *child = node->child ? sim_graph_copy(node->child) : NULL;
        complete = (child || !node->child) &&
                   sim_graph_add(copy, node->type, sim_content_share(node->content), child, node->before,
                                 node->before_count, &made[count]) == CUDA_SUCCESS;
        if (!complete)
            break;
        made[count]->origin = node->number;
        copy_attributes(made[count], node);
        node->place = (uint32_t)count++;
    }
    for (size_t i = 0; complete && i < count;
         i++) /* the edges were copied with the original's nodes in them */
        for (size_t e = 0; e < made[i]->before_count; e++)
            made[i]->before[e].node = made[made[i]->before[e].node->place];
    free(made);
    if (complete)
        return copy;
    if (copy)
        sim_graph_end(copy);
    return NULL;
}

CUresult sim_graph_order(struct CUgraph_st *graph, CUgraphNode **out) {
    CUgraphNode *order = calloc(graph->count + 1, sizeof *order);
    size_t done = 0;
    if (!order)
        return CUDA_ERROR_OUT_OF_MEMORY;
    for (struct CUgraphNode_st *node = graph->first; node; node = node->next)
        node->place = UINT32_MAX;
    /* Edges nearly always go from earlier nodes to later ones, so that one round is enough. */
    for (bool progress = true; progress && done < graph->count;) {
        progress = false;
        for (struct CUgraphNode_st *node = graph->first; node; node = node->next) {
            bool free_to_go = node->place == UINT32_MAX;
            for (size_t i = 0; free_to_go && i < node->before_count; i++)
                free_to_go = node->before[i].node->place != UINT32_MAX;
            if (!free_to_go)
                continue;
            node->place = (uint32_t)done;
            order[done++] = node;
            progress = true;
        }
    }
    if (done < graph->count) {
        free(order);
        return CUDA_ERROR_INVALID_VALUE;
    }
    *out = order;
    return CUDA_SUCCESS;
}

bool sim_graph_has(const struct CUgraph_st *graph, CUgraphNodeType type) {
    for (const struct CUgraphNode_st *node = graph->first; node; node = node->next)
        if (node->type == type || (node->child && sim_graph_has(node->child, type)))
            return true;
    return false;
}

/* ---- the calls: graphs ---- */

/* Take the lock with a graph or a node: held after success only. */
static CUresult enter(const void *handle, enum sim_handle_kind kind) {
    CUresult result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    sim_work_lock();
    if (sim_handle_is(handle, kind))
        return CUDA_SUCCESS;
    sim_work_unlock();
    return CUDA_ERROR_INVALID_VALUE;
}

static CUresult leave(CUresult result) {
    sim_work_unlock();
    return result;
}

SIM_EXPORT CUresult cuGraphCreate(CUgraph *phGraph, unsigned int flags) {
    SIM_BEGIN();
    if (!phGraph || flags)
        return CUDA_ERROR_INVALID_VALUE;
    sim_work_lock();
    *phGraph = sim_graph_make();
    return leave(*phGraph ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY);
}

SIM_EXPORT CUresult cuGraphDestroy(CUgraph hGraph) {
    CUresult result = enter(hGraph, SIM_HANDLE_GRAPH);
    if (result != CUDA_SUCCESS)
        return result;
    if (hGraph->parent || sim_capture_uses(hGraph))
        return leave(CUDA_ERROR_INVALID_VALUE);
    sim_graph_end(hGraph);
    return leave(CUDA_SUCCESS);
}

SIM_EXPORT CUresult cuGraphClone(CUgraph *phGraphClone, CUgraph originalGraph) {
    if (!phGraphClone)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = enter(originalGraph, SIM_HANDLE_GRAPH);
    if (result != CUDA_SUCCESS)
        return result;
    if (originalGraph->allocates)
        return leave(CUDA_ERROR_NOT_SUPPORTED);
    *phGraphClone = sim_graph_copy(originalGraph);
    return leave(*phGraphClone ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY);
}

SIM_EXPORT CUresult cuGraphNodeFindInClone(CUgraphNode *phNode, CUgraphNode hOriginalNode,
                                           CUgraph hClonedGraph) {
    if (!phNode)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = enter(hOriginalNode, SIM_HANDLE_NODE);
    if (result != CUDA_SUCCESS)
        return result;
    *phNode = NULL;
    if (sim_handle_is(hClonedGraph, SIM_HANDLE_GRAPH))
        for (struct CUgraphNode_st *node = hClonedGraph->first; node && !*phNode; node = node->next)
            if (node->origin == hOriginalNode->number)
                *phNode = node;
    return leave(*phNode ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE);
}

SIM_EXPORT CUresult cuGraphGetId(CUgraph hGraph, unsigned int *graphId) {
    CUresult result = graphId ? enter(hGraph, SIM_HANDLE_GRAPH) : CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS)
        return result;
    *graphId = (unsigned int)hGraph->id;
    return leave(CUDA_SUCCESS);
}

/* Answers of unknown length: the count alone where there is no array, else as many as there is room for. */
struct answer {
    CUgraphNode *nodes;
    size_t room, count;
};

static void tell(struct answer *answer, CUgraphNode node) {
    if (answer->nodes && answer->count < answer->room)
        answer->nodes[answer->count] = node;
    answer->count++;
}

static void told(struct answer *answer, size_t *count) {
    for (size_t i = answer->count; answer->nodes && i < answer->room; i++)
        answer->nodes[i] = NULL;
    if (!answer->nodes || answer->count < answer->room)
        *count = answer->count;
}

static CUresult get_nodes(CUgraph graph, CUgraphNode *nodes, size_t *count, bool roots) {
    CUresult result = count ? enter(graph, SIM_HANDLE_GRAPH) : CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS)
        return result;
    struct answer answer = {nodes, *count, 0};
    for (struct CUgraphNode_st *node = graph->first; node; node = node->next)
        if (!roots || !node->before_count)
            tell(&answer, node);
    told(&answer, count);
    return leave(CUDA_SUCCESS);
}

SIM_EXPORT CUresult cuGraphGetNodes(CUgraph hGraph, CUgraphNode *nodes, size_t *numNodes) {
    return get_nodes(hGraph, nodes, numNodes, false);
}
SIM_EXPORT CUresult cuGraphGetRootNodes(CUgraph hGraph, CUgraphNode *rootNodes, size_t *numRootNodes) {
    return get_nodes(hGraph, rootNodes, numRootNodes, true);
}

/* ---- the calls: edges ---- */

static const CUgraphEdgeData plain_edge;

static CUresult get_edges(CUgraph graph, CUgraphNode *from, CUgraphNode *to, CUgraphEdgeData *data,
                          size_t *count) {
    CUresult result = count && !from == !to ? enter(graph, SIM_HANDLE_GRAPH) : CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS)
        return result;
    struct answer sources = {from, *count, 0}, targets = {to, *count, 0};
    for (struct CUgraphNode_st *node = graph->first; node; node = node->next) {
        for (size_t i = 0; i < node->before_count; i++) {
            if (data && sources.count < sources.room)
                data[sources.count] = node->before[i].data;
            else if (from && !data && memcmp(&node->before[i].data, &plain_edge, sizeof plain_edge) != 0)
                result = CUDA_ERROR_LOSSY_QUERY;
            tell(&sources, node->before[i].node);
            tell(&targets, node);
        }
    }
    told(&targets, count);
    told(&sources, count);
    return leave(result);
}

SIM_EXPORT CUresult cuGraphGetEdges(CUgraph hGraph, CUgraphNode *from, CUgraphNode *to, size_t *numEdges) {
    return get_edges(hGraph, from, to, NULL, numEdges);
}
SIM_EXPORT CUresult cuGraphGetEdges_v2(CUgraph hGraph, CUgraphNode *from, CUgraphNode *to,
                                       CUgraphEdgeData *edgeData, size_t *numEdges) {
    return get_edges(hGraph, from, to, edgeData, numEdges);
}

static CUresult get_neighbours(CUgraphNode node, bool before, CUgraphNode *nodes, CUgraphEdgeData *data,
                               size_t *count) {
    CUresult result = count ? enter(node, SIM_HANDLE_NODE) : CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS)
        return result;
    struct answer answer = {nodes, *count, 0};
    for (struct CUgraphNode_st *at = before ? node : node->graph->first; at; at = before ? NULL : at->next) {
        for (size_t i = 0; i < at->before_count; i++) {
            if (!before && at->before[i].node != node)
                continue;
            if (data && answer.count < answer.room)
                data[answer.count] = at->before[i].data;
            tell(&answer, before ? at->before[i].node : at);
        }
    }
    told(&answer, count);
    return leave(CUDA_SUCCESS);
}

SIM_EXPORT CUresult cuGraphNodeGetDependencies(CUgraphNode hNode, CUgraphNode *dependencies,
                                               size_t *numDependencies) {
    return get_neighbours(hNode, true, dependencies, NULL, numDependencies);
}
SIM_EXPORT CUresult cuGraphNodeGetDependencies_v2(CUgraphNode hNode, CUgraphNode *dependencies,
                                                  CUgraphEdgeData *edgeData, size_t *numDependencies) {
    return get_neighbours(hNode, true, dependencies, edgeData, numDependencies);
}
SIM_EXPORT CUresult cuGraphNodeGetDependentNodes(CUgraphNode hNode, CUgraphNode *dependentNodes,
                                                 size_t *numDependentNodes) {
    return get_neighbours(hNode, false, dependentNodes, NULL, numDependentNodes);
}
SIM_EXPORT CUresult cuGraphNodeGetDependentNodes_v2(CUgraphNode hNode, CUgraphNode *dependentNodes,
                                                    CUgraphEdgeData *edgeData, size_t *numDependentNodes) {
    return get_neighbours(hNode, false, dependentNodes, edgeData, numDependentNodes);
}

static CUresult change_edges(CUgraph graph, const CUgraphNode *from, const CUgraphNode *to,
                             const CUgraphEdgeData *data, size_t count, bool add) {
    CUresult result = enter(graph, SIM_HANDLE_GRAPH);
    if (result != CUDA_SUCCESS)
        return result;
    if (count && (!from || !to || (!add && graph->allocates)))
        return leave(CUDA_ERROR_INVALID_VALUE);
    for (size_t i = 0; i < count && result == CUDA_SUCCESS; i++) {
        if (!sim_handle_is(from[i], SIM_HANDLE_NODE) || !sim_handle_is(to[i], SIM_HANDLE_NODE) ||
            from[i]->graph != graph || to[i]->graph != graph || from[i] == to[i])
            return leave(CUDA_ERROR_INVALID_VALUE);
        struct CUgraphNode_st *node = to[i];
        size_t at = 0;
        while (at < node->before_count &&
               !edge_is(&node->before[at], from[i], add || !data ? NULL : &data[i]))
            at++;
        bool there = at < node->before_count;
        struct sim_edge edge = {from[i], data ? data[i] : plain_edge};
        if (there == add)
            result = CUDA_ERROR_INVALID_VALUE;
        else if (add && !sim_edge_add(&node->before, &node->before_count, &edge))
            result = CUDA_ERROR_OUT_OF_MEMORY;
        else if (!add)
            node->before[at] = node->before[--node->before_count];
    }
    return leave(result);
}

SIM_EXPORT CUresult cuGraphAddDependencies(CUgraph hGraph, const CUgraphNode *from, const CUgraphNode *to,
                                           size_t numDependencies) {
    return change_edges(hGraph, from, to, NULL, numDependencies, true);
}
SIM_EXPORT CUresult cuGraphAddDependencies_v2(CUgraph hGraph, const CUgraphNode *from, const CUgraphNode *to,
                                              const CUgraphEdgeData *edgeData, size_t numDependencies) {
    return change_edges(hGraph, from, to, edgeData, numDependencies, true);
}
SIM_EXPORT CUresult cuGraphRemoveDependencies(CUgraph hGraph, const CUgraphNode *from, const CUgraphNode *to,
                                              size_t numDependencies) {
    return change_edges(hGraph, from, to, NULL, numDependencies, false);
}
SIM_EXPORT CUresult cuGraphRemoveDependencies_v2(CUgraph hGraph, const CUgraphNode *from,
                                                 const CUgraphNode *to, const CUgraphEdgeData *edgeData,
                                                 size_t numDependencies) {
    return change_edges(hGraph, from, to, edgeData, numDependencies, false);
}

SIM_EXPORT CUresult cuGraphDestroyNode(CUgraphNode hNode) {
    CUresult result = enter(hNode, SIM_HANDLE_NODE);
    if (result != CUDA_SUCCESS)
        return result;
    struct CUgraph_st *graph = hNode->graph;
    if (graph->allocates || sim_capture_uses(graph))
        return leave(CUDA_ERROR_NOT_SUPPORTED);
    struct CUgraphNode_st *previous = NULL;
    for (struct CUgraphNode_st *node = graph->first; node; node = node->next) {
        for (size_t i = node->before_count; i-- > 0;)
            if (node->before[i].node == hNode)
                node->before[i] = node->before[--node->before_count];
        if (node->next == hNode)
            previous = node;
    }
    if (previous)
        previous->next = hNode->next;
    else
        graph->first = hNode->next;
    if (graph->last == hNode)
        graph->last = previous;
    graph->count--;
    free_node(hNode);
    return leave(CUDA_SUCCESS);
}

/* ---- the calls: nodes ---- */

SIM_EXPORT CUresult cuGraphNodeGetType(CUgraphNode hNode, CUgraphNodeType *type) {
    CUresult result = type ? enter(hNode, SIM_HANDLE_NODE) : CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS)
        return result;
    *type = hNode->type;
    return leave(CUDA_SUCCESS);
}

SIM_EXPORT CUresult cuGraphNodeGetContainingGraph(CUgraphNode hNode, CUgraph *phGraph) {
    CUresult result = phGraph ? enter(hNode, SIM_HANDLE_NODE) : CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS)
        return result;
    *phGraph = hNode->graph;
    return leave(CUDA_SUCCESS);
}

SIM_EXPORT CUresult cuGraphNodeGetLocalId(CUgraphNode hNode, unsigned int *nodeId) {
    CUresult result = nodeId ? enter(hNode, SIM_HANDLE_NODE) : CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS)
        return result;
    *nodeId = hNode->local;
    return leave(CUDA_SUCCESS);
}

SIM_EXPORT CUresult cuGraphNodeGetToolsId(CUgraphNode hNode, unsigned long long *toolsNodeId) {
    CUresult result = toolsNodeId ? enter(hNode, SIM_HANDLE_NODE) : CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS)
        return result;
    *toolsNodeId = hNode->number;
    return leave(CUDA_SUCCESS);
}
