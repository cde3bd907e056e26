/*
 * Laying a graph out for execution: child graphs flat, in an order of submission, on lanes. A lane is a queue
 * of the model; lane 0 is the stream of the launch. A step follows on the lane of one that it depends on if
 * it can, so that a chain needs one lane, and branches that are independent overlap.
 */
#include "graph.h"

#include <stdlib.h>

#define LANES 16U
#define NOBODY UINT32_MAX

struct layout {
    struct sim_step *steps;
    size_t count, room;
};

void sim_steps_free(struct sim_step *steps, size_t count) {
    for (size_t i = 0; i < count; i++) {
        sim_content_drop(steps[i].content);
        free(steps[i].before);
    }
    free(steps);
}

struct places {
    uint32_t *list, count;
};

static bool place_add(struct places *places, uint32_t place) {
    uint32_t *grown = realloc(places->list, (places->count + 1) * sizeof *grown);
    if (!grown)
        return false;
    places->list = grown;
    grown[places->count++] = place;
    return true;
}

/* A new last step; it owns the list. NOBODY: no memory. */
static uint32_t add(struct layout *layout, const struct CUgraphNode_st *node, struct places before) {
    if (layout->count == layout->room) {
        size_t room = layout->room ? 2 * layout->room : 16;
        struct sim_step *grown = realloc(layout->steps, room * sizeof *grown);
        if (!grown) {
            free(before.list);
            return NOBODY;
        }
        layout->steps = grown;
        layout->room = room;
    }
    layout->steps[layout->count] =
        (struct sim_step){.origin = node ? node->number : 0,
                          .type = node ? node->type : CU_GRAPH_NODE_TYPE_EMPTY,
                          .content = node ? sim_content_share(node->content) : NULL,
                          .before = before.list,
                          .before_count = before.count};
    return (uint32_t)layout->count++;
}

/* One step that stands for all of them: itself where there is one, NOBODY where there is none. */
static bool join(struct layout *layout, struct places places, uint32_t *place) {
    *place = places.count ? places.list[0] : NOBODY;
    if (places.count < 2) {
        free(places.list);
        return true;
    }
    *place = add(layout, NULL, places);
    return *place != NOBODY;
}

/* Lay out a graph whose roots depend on the step `entry`; *exit stands for its end. */
static CUresult lay(struct layout *layout, struct CUgraph_st *graph, uint32_t entry, uint32_t *exit) {
    CUgraphNode *order;
    struct places ends = {NULL, 0};
    CUresult result = sim_graph_order(graph, &order);
    if (result != CUDA_SUCCESS)
        return result;
    bool *followed = calloc(graph->count + 1, 1);
    bool fine = followed != NULL;
    for (size_t i = 0; fine && i < graph->count;
         i++) /* places are positions in the order, until a node has its step */
        for (size_t e = 0; e < order[i]->before_count; e++)
            followed[order[i]->before[e].node->place] = true;
    for (size_t i = 0; fine && result == CUDA_SUCCESS && i < graph->count; i++) {
        struct CUgraphNode_st *node = order[i];
        struct places before = {NULL, 0};
        for (size_t e = 0; fine && e < node->before_count; e++)
            if (node->before[e].node->place != NOBODY)
                fine = place_add(&before, node->before[e].node->place);
        if (fine && !before.count && entry != NOBODY)
            fine = place_add(&before, entry);
        if (!fine) {
            free(before.list);
        } else if (node->child) {
            uint32_t start;
            fine = join(layout, before, &start);
            if (fine)
                result = lay(layout, node->child, start, &node->place);
        } else {
            node->place = add(layout, node, before);
            fine = node->place != NOBODY;
        }
        if (fine && !followed[i] && node->place != NOBODY)
            fine = place_add(&ends, node->place);
    }
    free(followed);
    free(order);
    if (result == CUDA_SUCCESS && fine) {
        fine = join(layout, ends, exit);
        if (*exit == NOBODY)
            *exit = entry; /* an empty graph ends where it begins */
    } else {
        free(ends.list);
    }
    return result != CUDA_SUCCESS ? result : fine ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

static uint32_t choose_lanes(struct sim_step *steps, size_t count) {
    uint32_t tails[LANES], lanes = 0;
    for (size_t i = 0; i < count; i++) {
        struct sim_step *step = &steps[i];
        uint32_t lane = NOBODY;
        for (uint32_t e = 0; e < step->before_count && lane == NOBODY; e++)
            if (tails[steps[step->before[e]].lane] == step->before[e])
                lane = steps[step->before[e]].lane;
        if (lane == NOBODY)
            lane = lanes < LANES ? lanes++ : (uint32_t)(i % LANES);
        step->lane = lane;
        tails[lane] = (uint32_t)i;
    }
    for (uint32_t lane = 0; lane < lanes; lane++)
        steps[tails[lane]].tail = true;
    return lanes;
}

CUresult sim_steps_make(struct CUgraph_st *graph, struct sim_step **steps, size_t *count, uint32_t *lanes) {
    struct layout layout = {NULL, 0, 0};
    uint32_t exit;
    CUresult result = lay(&layout, graph, NOBODY, &exit);
    if (result != CUDA_SUCCESS) {
        sim_steps_free(layout.steps, layout.count);
        return result;
    }
    uint32_t needed = choose_lanes(layout.steps, layout.count);
    *steps = layout.steps;
    *count = layout.count;
    if (lanes)
        *lanes = needed;
    return CUDA_SUCCESS;
}

struct CUgraph_st *sim_graph_of_steps(const struct sim_step *steps, size_t count) {
    struct CUgraph_st *graph = sim_graph_make();
    CUgraphNode *nodes = calloc(count + 1, sizeof(CUgraphNode));
    bool fine = graph && nodes;
    for (size_t i = 0; fine && i < count; i++) {
        struct sim_edge *edges = calloc(steps[i].before_count + 1, sizeof *edges);
        struct sim_job nothing = {.kind = SIM_OP_MARK, .node = CU_GRAPH_NODE_TYPE_EMPTY};
        struct sim_content *content = sim_content_share(steps[i].content);
        fine = edges && (content || sim_content_of_job(&nothing, &content) == CUDA_SUCCESS);
        for (uint32_t e = 0; fine && e < steps[i].before_count; e++)
            edges[e].node = nodes[steps[i].before[e]];
        fine = fine && sim_graph_add(graph, steps[i].type, content, NULL, edges, steps[i].before_count,
                                     &nodes[i]) == CUDA_SUCCESS;
        free(edges);
    }
    free(nodes);
    if (fine)
        return graph;
    if (graph)
        sim_graph_end(graph);
    return NULL;
}
