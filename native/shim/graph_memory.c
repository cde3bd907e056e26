/*
 * Memory that graphs allocate: taken by the driver when a graph is launched or uploaded, kept for the next
 * launch, and reported per device as reserved. Before a graph's first launch the sum of its allocation nodes
 * is reserved; after it, the charge is what the driver reports.
 */
#include "memory.h"

bool vcuda_graph_memory_in_use;

/* key: graph or executable graph; size: bytes of its allocation nodes; card; count: launches seen. */
static struct vcuda_table graphs, executables;
/* Charged for graphs, by card; the lock is around reading the driver's figure and settling on it. */
static struct {
    vcuda_lock lock;
    uint64_t charged[VCUDA_MAX_CARDS];
} memory;

void vcuda_graph_memory_forget_process(void) {
    memory.lock = (vcuda_lock){0};
    for (int card = 0; card < VCUDA_MAX_CARDS; card++)
        memory.charged[card] = 0;
    vcuda_graph_memory_in_use = false;
}

static void add_bytes(void *graph, int card, uint64_t bytes) {
    if (bytes == 0 || card < 0)
        return;
    struct vcuda_record fresh = {.key = (uint64_t)(uintptr_t)graph, .size = bytes, .card = (int16_t)card};
    vcuda_lock_take(&graphs.lock);
    struct vcuda_record *found = vcuda_table_find(&graphs, fresh.key);
    if (found)
        found->size += bytes;
    else
        vcuda_table_put(&graphs,
                        &fresh); /* if it fails, the launch settles on the driver's figure all the same */
    vcuda_lock_give(&graphs.lock);
    __atomic_store_n(&vcuda_graph_memory_in_use, true, __ATOMIC_RELAXED);
}

static void add_graph(void *to, void *from) {
    struct vcuda_record record;
    if (vcuda_graph_memory_in_use && vcuda_record_read(&graphs, (uint64_t)(uintptr_t)from, &record))
        add_bytes(to, record.card, record.size);
}

void vcuda_graph_memory_captured(struct vcuda_share *share, int card, CUstream stream, uint64_t bytes) {
    CUstreamCaptureStatus status;
    cuuint64_t id;
    CUgraph graph = NULL;
    uint64_t page = vcuda_page_bytes(share, card);
    if (vcuda_real.cuStreamGetCaptureInfo_v2(stream, &status, &id, &graph, NULL, NULL) == CUDA_SUCCESS &&
        graph)
        add_bytes(graph, card, vcuda_round_up(bytes, page));
}

static void node_added(CUgraph graph, const CUDA_MEM_ALLOC_NODE_PARAMS *params, CUresult result) {
    struct vcuda_share *share = vcuda_limited_share();
    if (!share || result != CUDA_SUCCESS || params->poolProps.location.type != CU_MEM_LOCATION_TYPE_DEVICE)
        return;
    int card = vcuda_card_of(share, params->poolProps.location.id);
    if (card >= 0)
        add_bytes(graph, card, vcuda_round_up(params->bytesize, vcuda_page_bytes(share, card)));
}

VCUDA_EXPORT CUresult cuGraphAddMemAllocNode(CUgraphNode *phGraphNode, CUgraph hGraph,
                                             const CUgraphNode *dependencies, size_t numDependencies,
                                             CUDA_MEM_ALLOC_NODE_PARAMS *nodeParams) {
    CUresult result =
        vcuda_real.cuGraphAddMemAllocNode(phGraphNode, hGraph, dependencies, numDependencies, nodeParams);
    node_added(hGraph, nodeParams, result);
    return result;
}

static void any_node_added(CUgraph graph, CUgraphNodeParams *params, CUresult result) {
    if (result != CUDA_SUCCESS || !params)
        return;
    if (params->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC) {
        CUDA_MEM_ALLOC_NODE_PARAMS alloc = {.poolProps = params->alloc.poolProps,
                                            .bytesize = params->alloc.bytesize};
        node_added(graph, &alloc, result);
    } else if (params->type == CU_GRAPH_NODE_TYPE_GRAPH) {
        add_graph(graph, params->graph.graph);
    }
}

VCUDA_EXPORT CUresult cuGraphAddNode(CUgraphNode *phGraphNode, CUgraph hGraph,
                                     const CUgraphNode *dependencies, size_t numDependencies,
                                     CUgraphNodeParams *nodeParams) {
    CUresult result =
        vcuda_real.cuGraphAddNode(phGraphNode, hGraph, dependencies, numDependencies, nodeParams);
    any_node_added(hGraph, nodeParams, result);
    return result;
}

VCUDA_EXPORT CUresult cuGraphAddNode_v2(CUgraphNode *phGraphNode, CUgraph hGraph,
                                        const CUgraphNode *dependencies,
                                        const CUgraphEdgeData *dependencyData, size_t numDependencies,
                                        CUgraphNodeParams *nodeParams) {
    CUresult result = vcuda_real.cuGraphAddNode_v2(phGraphNode, hGraph, dependencies, dependencyData,
                                                   numDependencies, nodeParams);
    any_node_added(hGraph, nodeParams, result);
    return result;
}

VCUDA_EXPORT CUresult cuGraphAddNode_v3(CUgraphNode *phGraphNode, CUgraph hGraph,
                                        const CUgraphNode *dependencies,
                                        const CUgraphEdgeData *dependencyData, size_t numDependencies,
                                        CUgraphNodeParams *nodeParams) {
    CUresult result = vcuda_real.cuGraphAddNode_v3(phGraphNode, hGraph, dependencies, dependencyData,
                                                   numDependencies, nodeParams);
    any_node_added(hGraph, nodeParams, result);
    return result;
}

VCUDA_EXPORT CUresult cuGraphAddChildGraphNode(CUgraphNode *phGraphNode, CUgraph hGraph,
                                               const CUgraphNode *dependencies, size_t numDependencies,
                                               CUgraph childGraph) {
    CUresult result =
        vcuda_real.cuGraphAddChildGraphNode(phGraphNode, hGraph, dependencies, numDependencies, childGraph);
    if (result == CUDA_SUCCESS)
        add_graph(hGraph, childGraph);
    return result;
}

VCUDA_EXPORT CUresult cuGraphClone(CUgraph *phGraphClone, CUgraph originalGraph) {
    CUresult result = vcuda_real.cuGraphClone(phGraphClone, originalGraph);
    if (result == CUDA_SUCCESS)
        add_graph(*phGraphClone, originalGraph);
    return result;
}

static void forget(struct vcuda_table *table, void *handle) {
    struct vcuda_record record;
    if (vcuda_graph_memory_in_use)
        vcuda_record_take(table, (uint64_t)(uintptr_t)handle, &record);
}

VCUDA_EXPORT CUresult cuGraphDestroy(CUgraph hGraph) {
    forget(&graphs, hGraph);
    return vcuda_real.cuGraphDestroy(hGraph);
}

/* ---- executable graphs ---- */

static CUresult instantiated(CUresult result, CUgraphExec *executable, CUgraph graph) {
    struct vcuda_record record;
    if (result == CUDA_SUCCESS && vcuda_graph_memory_in_use &&
        vcuda_record_read(&graphs, (uint64_t)(uintptr_t)graph, &record)) {
        record.key = (uint64_t)(uintptr_t)*executable;
        record.count = 0;
        vcuda_record_put(&executables, &record);
    }
    return result;
}

VCUDA_EXPORT CUresult cuGraphInstantiate(CUgraphExec *phGraphExec, CUgraph hGraph, CUgraphNode *phErrorNode,
                                         char *logBuffer, size_t bufferSize) {
    return instantiated(
        vcuda_real.cuGraphInstantiate(phGraphExec, hGraph, phErrorNode, logBuffer, bufferSize), phGraphExec,
        hGraph);
}
VCUDA_EXPORT CUresult cuGraphInstantiate_v2(CUgraphExec *phGraphExec, CUgraph hGraph,
                                            CUgraphNode *phErrorNode, char *logBuffer, size_t bufferSize) {
    return instantiated(
        vcuda_real.cuGraphInstantiate_v2(phGraphExec, hGraph, phErrorNode, logBuffer, bufferSize),
        phGraphExec, hGraph);
}
VCUDA_EXPORT CUresult cuGraphInstantiateWithFlags(CUgraphExec *phGraphExec, CUgraph hGraph,
                                                  unsigned long long flags) {
    return instantiated(vcuda_real.cuGraphInstantiateWithFlags(phGraphExec, hGraph, flags), phGraphExec,
                        hGraph);
}
VCUDA_EXPORT CUresult cuGraphInstantiateWithParams(CUgraphExec *phGraphExec, CUgraph hGraph,
                                                   CUDA_GRAPH_INSTANTIATE_PARAMS *instantiateParams) {
    return instantiated(vcuda_real.cuGraphInstantiateWithParams(phGraphExec, hGraph, instantiateParams),
                        phGraphExec, hGraph);
}
VCUDA_EXPORT CUresult cuGraphInstantiateWithParams_ptsz(CUgraphExec *phGraphExec, CUgraph hGraph,
                                                        CUDA_GRAPH_INSTANTIATE_PARAMS *instantiateParams) {
    return instantiated(vcuda_real.cuGraphInstantiateWithParams_ptsz(phGraphExec, hGraph, instantiateParams),
                        phGraphExec, hGraph);
}

static uint64_t reserved_by_graphs(struct vcuda_share *share, int card) {
    cuuint64_t bytes = 0;
    for (CUdevice device = 0; device < VCUDA_MAX_DEVICES; device++)
        if (share->card_of[device] == card)
            vcuda_real.cuDeviceGetGraphMemAttribute(device, CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT, &bytes);
    return bytes;
}

/* Make the charge what the driver says, counting `extra` as reserved for it already. */
static void settle_card(struct vcuda_share *share, int card, uint64_t extra) {
    vcuda_lock_take(&memory.lock);
    uint64_t now = reserved_by_graphs(share, card), held = memory.charged[card] + extra;
    if (now < held)
        vcuda_release(share, card, VCUDA_KIND_GRAPH, held - now);
    else if (now > held)
        vcuda_ledger_charge(&share->ledger, (uint32_t)card, VCUDA_KIND_GRAPH, now - held);
    memory.charged[card] = now;
    vcuda_lock_give(&memory.lock);
}

bool vcuda_graph_memory_admit(struct vcuda_share *share, CUgraphExec graph,
                              struct vcuda_graph_ticket *ticket) {
    ticket->card = -1;
    ticket->reserved = 0;
    bool first = false;
    uint64_t bytes = 0;
    vcuda_lock_take(&executables.lock);
    struct vcuda_record *record = vcuda_table_find(&executables, (uint64_t)(uintptr_t)graph);
    if (record) {
        first = record->count == 0;
        record->count = 1;
        bytes = record->size;
        ticket->card = record->card;
    }
    vcuda_lock_give(&executables.lock);
    if (!first)
        return true;
    if (vcuda_reserve_or_settle(share, ticket->card, VCUDA_KIND_GRAPH, bytes)) {
        ticket->reserved = bytes;
        return true;
    }
    /* The driver may have the memory already, from a graph that ran before. */
    vcuda_lock_take(&memory.lock);
    bool there = reserved_by_graphs(share, ticket->card) >= bytes;
    vcuda_lock_give(&memory.lock);
    if (there)
        return true;
    vcuda_lock_take(&executables.lock);
    record = vcuda_table_find(&executables, (uint64_t)(uintptr_t)graph);
    if (record)
        record->count = 0;
    vcuda_lock_give(&executables.lock);
    vcuda_ledger_count_refusal(&share->ledger, (uint32_t)ticket->card, bytes);
    return false;
}

void vcuda_graph_memory_settle(struct vcuda_share *share, const struct vcuda_graph_ticket *ticket) {
    if (ticket->card >= 0)
        settle_card(share, ticket->card, ticket->reserved);
}

static void settle_all(void) {
    struct vcuda_share *share = vcuda_graph_memory_in_use ? vcuda_limited_share() : NULL;
    for (uint32_t card = 0; share && card < share->grant.card_count; card++)
        settle_card(share, (int)card, 0);
}

VCUDA_EXPORT CUresult cuGraphExecDestroy(CUgraphExec hGraphExec) {
    forget(&executables, hGraphExec);
    CUresult result = vcuda_real.cuGraphExecDestroy(hGraphExec);
    settle_all();
    return result;
}

VCUDA_EXPORT CUresult cuDeviceGraphMemTrim(CUdevice device) {
    CUresult result = vcuda_real.cuDeviceGraphMemTrim(device);
    settle_all();
    return result;
}
