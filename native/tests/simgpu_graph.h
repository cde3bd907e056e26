/* What the tests of graphs and of captures have in common. */
#ifndef SIMGPU_GRAPH_H
#define SIMGPU_GRAPH_H

#include "simgpu_work.h"

static unsigned long long durations[8] = {MS, 2 * MS, 3 * MS, 4 * MS, 5 * MS, 6 * MS, 7 * MS, 8 * MS};

static inline CUgraphNode add_spin(CUgraph graph, CUfunction kernel, unsigned long long *ns,
                                   const CUgraphNode *before, size_t count) {
    void *parameters[] = {ns};
    CUDA_KERNEL_NODE_PARAMS params = {.func = kernel, 1, 1, 1, 1, 1, 1, 0, parameters, NULL, NULL, NULL};
    CUgraphNode node;
    OK(cuGraphAddKernelNode_v2(&node, graph, before, count, &params));
    return node;
}

static inline CUgraphExec instantiated(CUgraph graph) {
    CUgraphExec exec;
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    return exec;
}

/* How long a launch of it takes on the card. */
static inline long long duration_of(CUgraphExec exec) {
    CUstream stream = new_stream();
    hold(stream);
    CUevent start = recorded(stream);
    OK(cuGraphLaunch(exec, stream));
    CUevent end = recorded(stream);
    release();
    OK(cuEventSynchronize(end));
    long long ns = between(start, end);
    OK(cuStreamDestroy_v2(stream));
    return ns;
}

static _Atomic int calls;

static inline void count_call(void *data) {
    (void)data;
    calls++;
}

#endif
