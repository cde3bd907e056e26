/*
 * Graphs on the simulated card.
 *
 * build: native/simgpu/machine.c native/simgpu/models.c native/simgpu/timeline.c
 * build: build/native/sim/libcuda.so.1
 */
#include "simgpu_graph.h"

/* ---- graphs ---- */

PROMISE(chains_follow_and_branches_overlap) {
    CUgraph graph;
    on_v100();
    CUfunction kernel = function_of("spin");
    OK(cuGraphCreate(&graph, 0));
    CUgraphNode first = add_spin(graph, kernel, &durations[0], NULL, 0);
    CUgraphNode short_one = add_spin(graph, kernel, &durations[1], &first, 1);
    CUgraphNode long_one = add_spin(graph, kernel, &durations[3], &first, 1);
    CUgraphNode ends[] = {short_one, long_one};
    add_spin(graph, kernel, &durations[0], ends, 2);
    CUgraphExec exec = instantiated(graph);
    OK(cuGraphDestroy(graph));
    CHECK_NEAR(duration_of(exec), 6 * MS);
    CHECK_NEAR(duration_of(exec), 6 * MS);
    OK(cuGraphExecDestroy(exec));
}

PROMISE(launches_of_one_graph_follow_each_other) {
    CUgraph graph;
    on_v100();
    CUfunction kernel = function_of("spin");
    CUstream held = new_stream(), one = new_stream(), other = new_stream();
    OK(cuGraphCreate(&graph, 0));
    add_spin(graph, kernel, &durations[2], NULL, 0);
    CUgraphExec exec = instantiated(graph);
    hold(held);
    CUevent start = recorded(held);
    OK(cuStreamWaitEvent(one, start, 0));
    OK(cuStreamWaitEvent(other, start, 0));
    OK(cuGraphLaunch(exec, one));
    OK(cuGraphLaunch(exec, other));
    CUevent end = recorded(other);
    OK(cuGraphExecDestroy(exec)); /* what is launched goes on */
    release();
    OK(cuCtxSynchronize());
    CHECK_NEAR(between(start, end), 6 * MS);
}

PROMISE(a_graph_tells_its_nodes_and_edges) {
    CUgraph graph, clone, owner;
    CUgraphNode nodes[4], from[4], to[4], found;
    CUgraphNodeType type;
    CUDA_KERNEL_NODE_PARAMS params;
    size_t count;
    on_v100();
    CUfunction kernel = function_of("spin");
    OK(cuGraphCreate(&graph, 0));
    CUgraphNode first = add_spin(graph, kernel, &durations[0], NULL, 0);
    CUgraphNode second = add_spin(graph, kernel, &durations[1], &first, 1);
    CUgraphNode third;
    OK(cuGraphAddEmptyNode(&third, graph, NULL, 0));
    OK(cuGraphAddDependencies(graph, &second, &third, 1));
    CHECK_EQUAL(cuGraphAddDependencies(graph, &second, &third, 1), CUDA_ERROR_INVALID_VALUE);
    OK(cuGraphGetNodes(graph, NULL, &count));
    CHECK_EQUAL(count, 3);
    count = 4;
    OK(cuGraphGetNodes(graph, nodes, &count));
    CHECK(count == 3 && nodes[0] == first && nodes[2] == third && nodes[3] == NULL);
    count = 1;
    OK(cuGraphGetRootNodes(graph, nodes, &count));
    CHECK(count == 1 && nodes[0] == first);
    count = 4;
    OK(cuGraphGetEdges(graph, from, to, &count));
    CHECK(count == 2 && from[0] == first && to[0] == second && from[1] == second && to[1] == third);
    count = 4;
    OK(cuGraphNodeGetDependentNodes(first, nodes, &count));
    CHECK(count == 1 && nodes[0] == second);
    OK(cuGraphNodeGetType(third, &type));
    CHECK_EQUAL(type, CU_GRAPH_NODE_TYPE_EMPTY);
    OK(cuGraphKernelNodeGetParams_v2(second, &params));
    CHECK(params.func == kernel && params.gridDimX == 1 &&
          *(unsigned long long *)params.kernelParams[0] == 2 * MS);
    OK(cuGraphNodeGetContainingGraph(first, &owner));
    CHECK(owner == graph);
    OK(cuGraphClone(&clone, graph));
    OK(cuGraphNodeFindInClone(&found, second, clone));
    CHECK(found != second);
    OK(cuGraphDestroyNode(second));
    OK(cuGraphGetEdges(graph, NULL, NULL, &count));
    CHECK_EQUAL(count, 0);
    OK(cuGraphGetEdges(clone, NULL, NULL, &count));
    CHECK_EQUAL(count, 2);
    OK(cuGraphRemoveDependencies(clone, &found, NULL, 0));
    OK(cuGraphDestroy(clone));
    CHECK_EQUAL(cuGraphNodeGetType(found, &type), CUDA_ERROR_INVALID_VALUE);
    OK(cuGraphDestroy(graph));
}

PROMISE(a_graph_with_a_circle_has_no_executable_form) {
    CUgraph graph;
    CUgraphNode nodes[2];
    CUgraphExec exec;
    on_v100();
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphAddEmptyNode(&nodes[0], graph, NULL, 0));
    OK(cuGraphAddEmptyNode(&nodes[1], graph, nodes, 1));
    OK(cuGraphAddDependencies(graph, &nodes[1], &nodes[0], 1));
    CHECK_EQUAL(cuGraphInstantiateWithFlags(&exec, graph, 0), CUDA_ERROR_INVALID_VALUE);
}

PROMISE(copies_sets_and_functions_run_with_each_launch) {
    CUcontext context = on_v100();
    CUgraph graph;
    CUgraphNode set, copy, host, last;
    CUdeviceptr at;
    CUstream stream = new_stream();
    unsigned int words[64] = {0};
    OK(cuMemAlloc_v2(&at, sizeof words));
    CUDA_MEMSET_NODE_PARAMS sets = {at, 0, 0xabcd1234, 4, 64, 1};
    CUDA_MEMCPY3D copies = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                            .srcDevice = at,
                            .dstMemoryType = CU_MEMORYTYPE_HOST,
                            .dstHost = words,
                            .WidthInBytes = sizeof words,
                            .Height = 1,
                            .Depth = 1};
    CUDA_HOST_NODE_PARAMS hosts = {.fn = count_call};
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphAddMemsetNode(&set, graph, NULL, 0, &sets, context));
    OK(cuGraphAddMemcpyNode(&copy, graph, &set, 1, &copies, context));
    OK(cuGraphAddHostNode(&host, graph, &copy, 1, &hosts));
    OK(cuGraphAddHostNode(&last, graph, &host, 1, &hosts));
    CUgraphExec exec = instantiated(graph);
    OK(cuGraphLaunch(exec, stream));
    OK(cuStreamSynchronize(stream));
    CHECK(words[0] == 0xabcd1234 && words[63] == 0xabcd1234 && calls == 2);
    memset(words, 0, sizeof words);
    sets.value = 7;
    OK(cuGraphExecMemsetNodeSetParams(exec, set, &sets, context));
    OK(cuGraphLaunch(exec, stream));
    OK(cuStreamSynchronize(stream));
    CHECK(words[0] == 7 && words[63] == 7 && calls == 4);
    OK(cuGraphMemsetNodeGetParams(set, &sets));
    CHECK_EQUAL(sets.value, 0xabcd1234);
    OK(cuGraphNodeSetEnabled(exec, set, 0));
    OK(cuMemsetD8_v2(at, 1, sizeof words));
    OK(cuGraphLaunch(exec, stream));
    OK(cuStreamSynchronize(stream));
    CHECK_EQUAL(words[0], 0x01010101);
}

PROMISE(child_graphs_are_part_of_the_whole) {
    CUgraph graph, child, embedded;
    CUgraphNode first, middle, inner[2];
    CUgraphNodeType type;
    size_t count = 2;
    on_v100();
    CUfunction kernel = function_of("spin");
    OK(cuGraphCreate(&child, 0));
    add_spin(child, kernel, &durations[1], NULL, 0);
    add_spin(child, kernel, &durations[3], NULL, 0);
    OK(cuGraphCreate(&graph, 0));
    first = add_spin(graph, kernel, &durations[0], NULL, 0);
    OK(cuGraphAddChildGraphNode(&middle, graph, &first, 1, child));
    add_spin(graph, kernel, &durations[0], &middle, 1);
    OK(cuGraphDestroy(child)); /* the node has its own copy */
    OK(cuGraphChildGraphNodeGetGraph(middle, &embedded));
    OK(cuGraphGetNodes(embedded, inner, &count));
    OK(cuGraphNodeGetType(middle, &type));
    CHECK(count == 2 && type == CU_GRAPH_NODE_TYPE_GRAPH);
    CHECK_EQUAL(cuGraphDestroy(embedded), CUDA_ERROR_INVALID_VALUE);
    CUgraphExec exec = instantiated(graph);
    CHECK_NEAR(duration_of(exec), 6 * MS);
    /* the child's nodes can be changed by their own handles, or all of them by another graph's */
    void *parameters[] = {&durations[6]};
    CUDA_KERNEL_NODE_PARAMS params = {.func = kernel, 1, 1, 1, 1, 1, 1, 0, parameters, NULL, NULL, NULL};
    OK(cuGraphExecKernelNodeSetParams_v2(exec, inner[0], &params));
    CHECK_NEAR(duration_of(exec), 9 * MS);
    OK(cuGraphCreate(&child, 0));
    add_spin(child, kernel, &durations[0], NULL, 0);
    add_spin(child, kernel, &durations[0], NULL, 0);
    OK(cuGraphExecChildGraphNodeSetParams(exec, middle, child));
    CHECK_NEAR(duration_of(exec), 3 * MS);
    CHECK_EQUAL(cuGraphAddChildGraphNode(&first, child, NULL, 0, child), CUDA_ERROR_INVALID_VALUE);
}

PROMISE(an_executable_graph_takes_over_one_of_its_form) {
    CUgraph graph, longer, other;
    CUgraphExecUpdateResultInfo info;
    CUgraphNode node, extra;
    on_v100();
    CUfunction kernel = function_of("spin");
    OK(cuGraphCreate(&graph, 0));
    add_spin(graph, kernel, &durations[0], NULL, 0);
    CUgraphExec exec = instantiated(graph);
    OK(cuGraphCreate(&longer, 0));
    node = add_spin(longer, kernel, &durations[4], NULL, 0);
    OK(cuGraphExecUpdate_v2(exec, longer, &info));
    CHECK_EQUAL(info.result, CU_GRAPH_EXEC_UPDATE_SUCCESS);
    CHECK_NEAR(duration_of(exec), 5 * MS);
    OK(cuGraphAddEmptyNode(&extra, longer, &node, 1));
    CHECK_EQUAL(cuGraphExecUpdate_v2(exec, longer, &info), CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE);
    CHECK_EQUAL(info.result, CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED);
    OK(cuGraphCreate(&other, 0));
    OK(cuGraphAddEmptyNode(&extra, other, NULL, 0));
    CHECK_EQUAL(cuGraphExecUpdate_v2(exec, other, &info), CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE);
    CHECK(info.result == CU_GRAPH_EXEC_UPDATE_ERROR_NODE_TYPE_CHANGED && info.errorNode == extra);
}

PROMISE(every_general_node_can_be_added_and_read_back) {
    CUgraph graph;
    CUgraphNode node;
    on_v100();
    CUfunction kernel = function_of("spin");
    CUevent event = new_event();
    void *parameters[] = {&durations[0]};
    CUgraphNodeParams kinds[] = {
        {.type = CU_GRAPH_NODE_TYPE_KERNEL,
         .kernel = {kernel, 1, 1, 1, 1, 1, 1, 0, parameters, NULL, NULL, NULL}},
        {.type = CU_GRAPH_NODE_TYPE_HOST, .host = {.fn = count_call}},
        {.type = CU_GRAPH_NODE_TYPE_EMPTY},
        {.type = CU_GRAPH_NODE_TYPE_WAIT_EVENT, .eventWait = {event}},
        {.type = CU_GRAPH_NODE_TYPE_EVENT_RECORD, .eventRecord = {.event = event}},
    };
    OK(cuGraphCreate(&graph, 0));
    for (int i = 0; i < 5; i++) {
        CUgraphNodeParams back;
        OK(cuGraphAddNode_v2(&node, graph, NULL, NULL, 0, &kinds[i]));
        OK(cuGraphNodeGetParams(node, &back));
        CHECK_EQUAL(back.type, kinds[i].type);
        OK(cuGraphNodeSetParams(node, &kinds[i]));
    }
    CUgraphNodeParams conditional = {.type = CU_GRAPH_NODE_TYPE_CONDITIONAL};
    CHECK_EQUAL(cuGraphAddNode(&node, graph, NULL, 0, &conditional), CUDA_ERROR_NOT_SUPPORTED);
    CUgraphExec exec = instantiated(graph);
    OK(cuGraphLaunch(exec, NULL));
    OK(cuCtxSynchronize());
    OK(cuEventQuery(event));
    CHECK_EQUAL(calls, 1);
}

/* ---- memory of graphs ---- */

static cuuint64_t graph_memory(CUgraphMem_attribute attribute) {
    cuuint64_t value;
    OK(cuDeviceGetGraphMemAttribute(0, attribute, &value));
    return value;
}

#define RESERVED graph_memory(CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT)
#define USED graph_memory(CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT)

static CUDA_MEM_ALLOC_NODE_PARAMS alloc_of(size_t bytes) {
    return (CUDA_MEM_ALLOC_NODE_PARAMS){.poolProps = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
                                                      .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}},
                                        .bytesize = bytes};
}

PROMISE(graph_memory_is_taken_at_launch_and_kept_until_it_is_trimmed) {
    CUgraph graph;
    CUgraphNode alloc, use, done;
    unsigned int words[16] = {0};
    CUcontext context = on_v100();
    CUDA_MEM_ALLOC_NODE_PARAMS params = alloc_of(5 * MIB);
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphAddMemAllocNode(&alloc, graph, NULL, 0, &params));
    CUDA_MEMSET_NODE_PARAMS sets = {params.dptr, 0, 3, 4, 16, 1};
    OK(cuGraphAddMemsetNode(&use, graph, &alloc, 1, &sets, context));
    OK(cuGraphAddMemFreeNode(&done, graph, &use, 1, params.dptr));
    CHECK_EQUAL(data_bytes(), 0);
    CUgraphExec exec = instantiated(graph), second;
    CHECK_EQUAL(cuGraphInstantiateWithFlags(&second, graph, 0), CUDA_ERROR_NOT_SUPPORTED);
    CHECK_EQUAL(cuGraphClone(&graph, graph), CUDA_ERROR_NOT_SUPPORTED);
    CHECK_EQUAL(cuGraphDestroyNode(use), CUDA_ERROR_NOT_SUPPORTED);
    OK(cuGraphUpload(exec, NULL));
    CHECK(data_bytes() == 6 * MIB && RESERVED == 6 * MIB && USED == 0);
    OK(cuGraphLaunch(exec, NULL));
    OK(cuGraphLaunch(exec, NULL));
    OK(cuCtxSynchronize());
    OK(cuMemcpyDtoH_v2(words, params.dptr, sizeof words));
    CHECK_EQUAL(words[15], 3);
    CHECK(RESERVED == 6 * MIB && USED == 0 && graph_memory(CU_GRAPH_MEM_ATTR_USED_MEM_HIGH) == 6 * MIB);
    OK(cuDeviceGraphMemTrim(0));
    CHECK(RESERVED == 0 && data_bytes() == 0);
    OK(cuGraphLaunch(exec, NULL));
    CHECK_EQUAL(data_bytes(), 6 * MIB);
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphDestroy(graph));
    CHECK_EQUAL(RESERVED, 6 * MIB);
    OK(cuDeviceGraphMemTrim(0));
    CHECK(RESERVED == 0 && data_bytes() == 0);
}

PROMISE(what_a_graph_allocates_may_be_freed_outside) {
    CUgraph graph;
    CUgraphNode alloc;
    CUgraphExec exec;
    on_v100();
    CUDA_MEM_ALLOC_NODE_PARAMS params = alloc_of(MIB);
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphAddMemAllocNode(&alloc, graph, NULL, 0, &params));
    exec = instantiated(graph);
    CHECK_EQUAL(cuMemFree_v2(params.dptr), CUDA_ERROR_INVALID_VALUE);
    OK(cuGraphLaunch(exec, NULL));
    CHECK_EQUAL(USED, 2 * MIB);
    CHECK_EQUAL(cuGraphLaunch(exec, NULL), CUDA_ERROR_INVALID_VALUE); /* not freed yet */
    OK(cuMemFree_v2(params.dptr));
    OK(cuGraphLaunch(exec, NULL));
    OK(cuMemFreeAsync(params.dptr, NULL));
    OK(cuCtxSynchronize());
    CHECK_EQUAL(USED, 0);
    OK(cuGraphExecDestroy(exec));
    OK(cuGraphInstantiateWithFlags(&exec, graph, CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH));
    OK(cuGraphLaunch(exec, NULL));
    OK(cuGraphLaunch(exec, NULL));
    CHECK_EQUAL(USED, 2 * MIB);
}

PROMISE(a_graph_that_does_not_fit_is_not_launched) {
    CUgraph graph;
    CUgraphNode alloc;
    size_t free_bytes, total;
    on_v100();
    OK(cuMemGetInfo_v2(&free_bytes, &total));
    CUDA_MEM_ALLOC_NODE_PARAMS params = alloc_of(free_bytes + 1);
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphAddMemAllocNode(&alloc, graph, NULL, 0, &params));
    CUgraphExec exec = instantiated(graph);
    CHECK_EQUAL(cuGraphLaunch(exec, NULL), CUDA_ERROR_OUT_OF_MEMORY);
    CHECK(data_bytes() == 0 && RESERVED == 0);
}

/* ---- user objects ---- */

PROMISE(user_objects_live_as_long_as_what_holds_them) {
    CUgraph graph;
    CUuserObject object;
    on_v100();
    CUfunction kernel = function_of("spin");
    CUstream stream = new_stream();
    OK(cuUserObjectCreate(&object, NULL, count_call, 1, CU_USER_OBJECT_NO_DESTRUCTOR_SYNC));
    OK(cuGraphCreate(&graph, 0));
    OK(cuGraphRetainUserObject(graph, object, 1, CU_GRAPH_USER_OBJECT_MOVE));
    add_spin(graph, kernel, &durations[4], NULL, 0);
    CUgraphExec exec = instantiated(graph);
    OK(cuGraphDestroy(graph));
    CHECK_EQUAL(calls, 0);
    OK(cuGraphLaunch(exec, stream));
    CUevent end = recorded(stream);
    OK(cuGraphExecDestroy(exec));
    for (int i = 0; i < 20000 && !calls; i++) /* without any call: once the launch has ended */
        usleep(1000);
    CHECK_EQUAL(calls, 1);
    OK(cuEventQuery(end));
    CHECK_EQUAL(cuUserObjectRelease(object, 1), CUDA_ERROR_INVALID_VALUE);
}

int main(int argc, char **argv) {
    return keep_promises(argc, argv);
}
