/*
 * A graph as a picture, in the language of Graphviz.
 */
#include "graph.h"

#include <stdio.h>

static const char *const kinds[] = {
    "KERNEL",      "MEMCPY",       "MEMSET",           "HOST",           "GRAPH",     "EMPTY",
    "EVENT_WAIT",  "EVENT_RECORD", "EXT_SEMAS_SIGNAL", "EXT_SEMAS_WAIT", "MEM_ALLOC", "MEM_FREE",
    "BATCH_MEM_OP"};

static void print_node(FILE *file, const struct CUgraphNode_st *node) {
    size_t kind = (size_t)node->type;
    const char *name = kind < sizeof kinds / sizeof kinds[0] ? kinds[kind] : "OTHER";
    const char *kernel = "";
    if (node->type == CU_GRAPH_NODE_TYPE_KERNEL && node->content) {
        CUfunction function = node->content->params.kernel.func;
        CUkernel of_library = node->content->params.kernel.kern;
        if (sim_handle_is(function, SIM_HANDLE_FUNCTION))
            kernel = function->entry->name;
        else if (sim_handle_is(of_library, SIM_HANDLE_KERNEL))
            kernel = of_library->entry->name;
    }
    fprintf(file, "    \"graph_%llu_node_%u\" [shape=\"%s\" label=\"%u\\n%s%s%s\"];\n",
            (unsigned long long)node->graph->id, node->local,
            node->type == CU_GRAPH_NODE_TYPE_KERNEL ? "octagon" : "box", node->local, name,
            *kernel ? "\\n" : "", kernel);
}

static void print_graph(FILE *file, const struct CUgraph_st *graph) {
    unsigned long long id = graph->id;
    fprintf(file, "  subgraph cluster_%llu {\n    label=\"graph_%llu\" graph[style=\"dashed\"];\n", id, id);
    for (const struct CUgraphNode_st *node = graph->first; node; node = node->next)
        print_node(file, node);
    for (const struct CUgraphNode_st *node = graph->first; node; node = node->next)
        for (size_t i = 0; i < node->before_count; i++)
            fprintf(file, "    \"graph_%llu_node_%u\" -> \"graph_%llu_node_%u\";\n", id,
                    node->before[i].node->local, id, node->local);
    fprintf(file, "  }\n");
    for (const struct CUgraphNode_st *node = graph->first; node; node = node->next)
        if (node->child)
            print_graph(file, node->child);
}

SIM_EXPORT CUresult cuGraphDebugDotPrint(CUgraph hGraph, const char *path, unsigned int flags) {
    (void)flags;
    SIM_BEGIN();
    FILE *file = path ? fopen(path, "we") : NULL;
    if (!file)
        return path ? CUDA_ERROR_OPERATING_SYSTEM : CUDA_ERROR_INVALID_VALUE;
    sim_work_lock();
    bool there = sim_handle_is(hGraph, SIM_HANDLE_GRAPH);
    if (there) {
        fprintf(file, "digraph dot {\n");
        print_graph(file, hGraph);
        fprintf(file, "}\n");
    }
    sim_work_unlock();
    bool written = fclose(file) == 0;
    return !there ? CUDA_ERROR_INVALID_VALUE : written ? CUDA_SUCCESS : CUDA_ERROR_OPERATING_SYSTEM;
}
