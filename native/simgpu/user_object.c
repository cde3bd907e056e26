/*
 * User objects: counted references of the program's, that graphs can hold and give back when they end.
 */
#include "graph.h"

#include <stdlib.h>
#include <string.h>

struct CUuserObject_st {
    void *data;
    CUhostFn destroy;
    uint64_t references;
};

struct sim_owned {
    struct sim_owned *next;
    CUuserObject object;
    unsigned int count;
};

static void release(CUuserObject object, uint64_t count) {
    object->references -= count;
    if (object->references)
        return;
    CUhostFn destroy = object->destroy;
    void *data = object->data;
    sim_handle_drop(object);
    free(object);
    sim_defer(destroy, data);
}

void sim_owned_end(struct sim_owned **list) {
    while (*list) {
        struct sim_owned *owned = *list;
        *list = owned->next;
        release(owned->object, owned->count);
        free(owned);
    }
}

static struct sim_owned *find(struct sim_owned *list, CUuserObject object) {
    while (list && list->object != object)
        list = list->next;
    return list;
}

static bool own(struct sim_owned **list, CUuserObject object, unsigned int count) {
    struct sim_owned *owned = find(*list, object);
    if (!owned) {
        owned = calloc(1, sizeof *owned);
        if (!owned)
            return false;
        *owned = (struct sim_owned){.next = *list, .object = object};
        *list = owned;
    }
    owned->count += count;
    return true;
}

bool sim_owned_copy(struct sim_owned **to, const struct sim_owned *from) {
    for (; from; from = from->next) {
        if (!own(to, from->object, from->count))
            return false;
        from->object->references += from->count;
    }
    return true;
}

static void end_later(void *data) {
    struct sim_owned **list = data;
    sim_work_lock();
    sim_owned_end(list);
    sim_work_unlock();
}

void sim_owned_end_after(struct sim_owned **list, struct CUctx_st *context, sim_op op) {
    struct sim_job gate = {.kind = SIM_OP_GATE, .action.run = end_later};
    struct CUstream_st *stream = *list && context ? sim_stream_hidden(context) : NULL;
    if (stream) {
        memcpy(gate.action.data, list, sizeof *list);
        if (sim_put(stream, &gate, NULL, op, false, NULL) == CUDA_SUCCESS)
            *list = NULL;
        sim_stream_end(stream);
        sim_stream_settle(stream);
    }
    sim_owned_end(list);
}

/* ---- the calls ---- */

SIM_EXPORT CUresult cuUserObjectCreate(CUuserObject *object_out, void *ptr, CUhostFn destroy,
                                       unsigned int initialRefcount, unsigned int flags) {
    SIM_BEGIN();
    if (!object_out || !destroy || !initialRefcount || initialRefcount > INT32_MAX ||
        flags != CU_USER_OBJECT_NO_DESTRUCTOR_SYNC)
        return CUDA_ERROR_INVALID_VALUE;
    CUuserObject object = calloc(1, sizeof *object);
    if (!object)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *object = (struct CUuserObject_st){ptr, destroy, initialRefcount};
    sim_work_lock();
    bool put = sim_handle_put(object, SIM_HANDLE_USER_OBJECT);
    sim_work_unlock();
    if (!put) {
        free(object);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *object_out = object;
    return CUDA_SUCCESS;
}

static CUresult change(CUuserObject object, unsigned int count, bool retain) {
    CUresult result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    sim_work_lock();
    if (!count || count > INT32_MAX || !sim_handle_is(object, SIM_HANDLE_USER_OBJECT) ||
        (!retain && count > object->references))
        result = CUDA_ERROR_INVALID_VALUE;
    else if (retain)
        object->references += count;
    else
        release(object, count);
    sim_work_unlock();
    return result;
}

SIM_EXPORT CUresult cuUserObjectRetain(CUuserObject object, unsigned int count) {
    return change(object, count, true);
}
SIM_EXPORT CUresult cuUserObjectRelease(CUuserObject object, unsigned int count) {
    return change(object, count, false);
}

SIM_EXPORT CUresult cuGraphRetainUserObject(CUgraph graph, CUuserObject object, unsigned int count,
                                            unsigned int flags) {
    SIM_BEGIN();
    CUresult result = CUDA_SUCCESS;
    bool move = flags & CU_GRAPH_USER_OBJECT_MOVE;
    sim_work_lock();
    if (!count || count > INT32_MAX || (flags & ~(unsigned int)CU_GRAPH_USER_OBJECT_MOVE) ||
        !sim_handle_is(graph, SIM_HANDLE_GRAPH) || !sim_handle_is(object, SIM_HANDLE_USER_OBJECT) ||
        (move && count > object->references))
        result = CUDA_ERROR_INVALID_VALUE;
    else if (!own(&graph->owned, object, count))
        result = CUDA_ERROR_OUT_OF_MEMORY;
    else if (!move)
        object->references += count;
    sim_work_unlock();
    return result;
}

SIM_EXPORT CUresult cuGraphReleaseUserObject(CUgraph graph, CUuserObject object, unsigned int count) {
    SIM_BEGIN();
    CUresult result = CUDA_SUCCESS;
    sim_work_lock();
    struct sim_owned *owned = sim_handle_is(graph, SIM_HANDLE_GRAPH) ? find(graph->owned, object) : NULL;
    if (!owned || !count || count > owned->count) {
        result = CUDA_ERROR_INVALID_VALUE;
    } else {
        owned->count -= count;
        if (!owned->count) {
            struct sim_owned **link = &graph->owned;
            while (*link != owned)
                link = &(*link)->next;
            *link = owned->next;
            free(owned);
        }
        release(object, count);
    }
    sim_work_unlock();
    return result;
}
