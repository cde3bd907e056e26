/*
 * Graphs: nodes and what they do, executable graphs, the memory that graphs allocate, and captures.
 */
#ifndef SIM_GRAPH_H
#define SIM_GRAPH_H

#include "module.h"

/* ---- what a node does (graph_content.c): never changed once made, shared between a graph and what came of
 * it ---- */

struct sim_graph_block;

struct sim_content {
    uint32_t references;
    CUgraphNodeParams params;      /* with pointers into what this keeps */
    struct sim_job job;            /* of kernels, copies and memsets */
    struct sim_launch launch;      /* of kernels */
    void *kept;                    /* parameters of a kernel; operations on values; access descriptions */
    struct sim_graph_block *block; /* of allocations */
    bool described;                /* params are known: not of a copy that a capture recorded */
};

/* Make one of parameters, checked; the lock is not held. For allocations params->alloc.dptr is set. Child
 * graphs are the caller's. */
CUresult sim_content_make(CUgraphNodeParams *params, struct sim_content **content);
/* Lock held. Of a launch, for captures; of any other piece of work. */
CUresult sim_content_of_launch(const struct sim_launch *launch, const struct sim_job *job, CUfunction handle,
                               void **parameters, void **extra, struct sim_content **content);
CUresult sim_content_of_job(const struct sim_job *job, struct sim_content **content);
struct sim_content *sim_content_share(struct sim_content *content);
void sim_content_drop(struct sim_content *content);

/* ---- graphs (graph.c) ---- */

struct sim_edge {
    CUgraphNode node;
    CUgraphEdgeData data;
};

struct CUgraphNode_st {
    struct CUgraph_st *graph;
    struct CUgraphNode_st *next; /* of its graph, in the order of making */
    uint64_t number, origin;     /* never used twice; origin: of the node that this is a clone of */
    uint32_t local, place;       /* place: scratch, in walks over the graph */
    CUgraphNodeType type;
    struct sim_content *content; /* NULL: nothing to do */
    struct CUgraph_st *child;
    struct sim_edge *before;
    size_t before_count;
    CUlaunchAttributeValue *attributes; /* of kernels, by number; NULL: none was set */
};

struct CUgraph_st {
    uint64_t id;
    struct CUgraphNode_st *first, *last, *parent; /* parent: the node that it is the child graph of */
    size_t count;
    uint32_t last_local;
    uint32_t instances;      /* executable graphs of one with allocations: at most one */
    bool allocates;          /* has allocation nodes: it cannot be cloned, and nothing of it removed */
    struct sim_owned *owned; /* user objects */
};

/* Lock held in all of these. */
struct CUgraph_st *sim_graph_make(void);
void sim_graph_end(struct CUgraph_st *graph);
/* A copy with handles of its own; NULL: no memory. */
struct CUgraph_st *sim_graph_copy(const struct CUgraph_st *graph);
/* A new last node; the content and the child become its own where it succeeds. */
CUresult sim_graph_add(struct CUgraph_st *graph, CUgraphNodeType type, struct sim_content *content,
                       struct CUgraph_st *child, const struct sim_edge *before, size_t count,
                       CUgraphNode *node);
/* Edges of the arrays that calls pass; checks that the nodes are the graph's and none is there twice. */
CUresult sim_graph_edges(const struct CUgraph_st *graph, const CUgraphNode *nodes,
                         const CUgraphEdgeData *data, size_t count, struct sim_edge **edges);
bool sim_edge_add(struct sim_edge **edges, size_t *count, const struct sim_edge *edge);
/* Nodes in an order in which each comes after those it depends on; CUDA_ERROR_INVALID_VALUE where there is
 * none. */
CUresult sim_graph_order(struct CUgraph_st *graph, CUgraphNode **order);
/* Whether a graph or one below it has nodes of a type. */
bool sim_graph_has(const struct CUgraph_st *graph, CUgraphNodeType type);

/* ---- executable graphs (graph_exec.c) ---- */

/* One node of the whole, child graphs laid out flat, in an order in which it can be submitted. */
struct sim_step {
    uint64_t origin; /* number of the graph's node */
    CUgraphNodeType type;
    struct sim_content *content;
    bool disabled, tail; /* tail: the last of its lane */
    uint32_t lane;       /* 0 = the stream of the launch */
    uint32_t *before, before_count;
    sim_op op; /* of the launch that goes on */
};

struct CUgraphExec_st {
    uint64_t id;
    struct CUgraphExec_st *next;
    cuuint64_t flags;
    struct sim_step *steps;
    size_t count;
    uint32_t lane_count, users;
    bool destroyed;
    struct CUstream_st **lanes; /* of the context that it was last launched in; [0] unused */
    struct CUctx_st *context;
    struct CUgraph_st *graph; /* what it was made of, if that allocates */
    struct sim_owned *owned;  /* user objects, the graph's and those of graphs below it */
    uint32_t card;
    sim_op last; /* the end of its last launch */
};

/* Lay a graph out; the lock is held. */
CUresult sim_steps_make(struct CUgraph_st *graph, struct sim_step **steps, size_t *count, uint32_t *lanes);
void sim_steps_free(struct sim_step *steps, size_t count);
/* The step of a graph's node, or NULL. */
struct sim_step *sim_step_of(const struct CUgraphExec_st *exec, CUgraphNode node);
/* A graph with the steps as nodes, for captures of a launch. */
struct CUgraph_st *sim_graph_of_steps(const struct sim_step *steps, size_t count);
/* A graph ends; executable ones that came of it stay. */
void sim_execs_graph_ends(const struct CUgraph_st *graph);

/* ---- memory that graphs allocate (graph_memory.c), with a lock of its own ---- */

/* No other lock is held: address space for an allocation. */
CUresult sim_graph_block_make(uint32_t card, uint64_t bytes, struct sim_graph_block **block,
                              CUdeviceptr *address);
void sim_graph_block_drop(struct sim_graph_block *block);
/* Before a launch or an upload: pages behind the block, kept until they are trimmed. No other lock is held.
 */
CUresult sim_graph_block_back(struct sim_graph_block *block);
bool sim_graph_block_used(const struct sim_graph_block *block);
/* A launch allocates the block. */
void sim_graph_block_use(struct sim_graph_block *block);
/* Whether an address begins a block of a graph. */
bool sim_graph_block_is(CUdeviceptr address);

/* ---- captures (capture.c) ---- */

struct sim_capture {
    struct sim_capture *next;
    uint64_t id, thread;
    struct CUgraph_st *graph;
    struct CUctx_st *context;
    struct CUstream_st *origin;
    CUstreamCaptureMode mode;
    bool invalid, given; /* given: the graph is the program's own */
};

/* Lock held. Whether the stream is the legacy one and blocking streams of its context capture. */
bool sim_capture_implicit(const struct CUstream_st *stream);
/* Whether a capture goes on into this graph. */
bool sim_capture_uses(const struct CUgraph_st *graph);
/* Add a node to what the stream captures, after all that the stream stands on. */
/* A launch of an executable graph: a child graph of its steps. */
CUresult sim_capture_exec(struct CUstream_st *stream, const struct CUgraphExec_st *exec);
CUresult sim_capture_add(struct CUstream_st *stream, CUgraphNodeType type, struct sim_content *content,
                         struct CUgraph_st *child, CUgraphNode *node);

/* ---- references to the program's objects (user_object.c); lock held ---- */

void sim_owned_end(struct sim_owned **list);
bool sim_owned_copy(struct sim_owned **to, const struct sim_owned *from);
/* The same once an operation has ended; by the worker. */
void sim_owned_end_after(struct sim_owned **list, struct CUctx_st *context, sim_op op);

#endif
