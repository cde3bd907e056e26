/*
 * What a stream that captures says of its capture, and changing what it stands on.
 */
#include "graph.h"

#include <stdlib.h>
#include <string.h>

/* What v1 to v3 of cuStreamGetCaptureInfo ask for; each may be NULL but the status. */
struct asked {
    CUstreamCaptureStatus *status;
    cuuint64_t *id;
    CUgraph *graph;
    const CUgraphNode **nodes;
    const CUgraphEdgeData **data;
    size_t *count;
};

/* Arrays of the tips that stay until the next question. */
static CUresult show_tips(struct CUstream_st *stream, const struct asked *asked) {
    CUgraphNode *nodes = calloc(stream->tip_count + 1, sizeof *nodes);
    CUgraphEdgeData *data = calloc(stream->tip_count + 1, sizeof *data);
    static const CUgraphEdgeData plain;
    bool lossy = false;
    if (!nodes || !data) {
        free(nodes);
        free(data);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    for (size_t i = 0; i < stream->tip_count; i++) {
        nodes[i] = stream->tips[i].node;
        data[i] = stream->tips[i].data;
        lossy |= memcmp(&data[i], &plain, sizeof plain) != 0;
    }
    free((void *)stream->tip_nodes);
    free((void *)stream->tip_data);
    stream->tip_nodes = nodes;
    stream->tip_data = data;
    if (asked->nodes)
        *asked->nodes = nodes;
    if (asked->data)
        *asked->data = data;
    if (asked->count)
        *asked->count = stream->tip_count;
    return asked->nodes && !asked->data && lossy ? CUDA_ERROR_LOSSY_QUERY : CUDA_SUCCESS;
}

static CUresult get_info(CUstream handle, bool ptsz, const struct asked *asked) {
    if (!asked->status)
        return CUDA_ERROR_INVALID_VALUE;
    SIM_ENTER(handle, ptsz);
    (void)context;
    const struct sim_capture *capture = stream->capture;
    CUresult result = CUDA_SUCCESS;
    if (!capture) {
        /* The legacy stream cannot tell while it would have to wait for streams that capture; they go on. */
        result = sim_capture_implicit(stream) ? CUDA_ERROR_STREAM_CAPTURE_IMPLICIT : CUDA_SUCCESS;
        *asked->status = CU_STREAM_CAPTURE_STATUS_NONE;
        return sim_stream_leave(stream, result);
    }
    *asked->status =
        capture->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    if (capture->invalid)
        return sim_stream_leave(stream, CUDA_SUCCESS);
    if (asked->id)
        *asked->id = capture->id;
    if (asked->graph)
        *asked->graph = capture->graph;
    if (asked->nodes || asked->data || asked->count)
        result = show_tips(stream, asked);
    return sim_stream_leave(stream, result);
}

SIM_EXPORT CUresult cuStreamIsCapturing(CUstream hStream, CUstreamCaptureStatus *captureStatus) {
    return get_info(hStream, false, &(struct asked){.status = captureStatus});
}
SIM_EXPORT CUresult cuStreamIsCapturing_ptsz(CUstream hStream, CUstreamCaptureStatus *captureStatus) {
    return get_info(hStream, true, &(struct asked){.status = captureStatus});
}
SIM_EXPORT CUresult cuStreamGetCaptureInfo(CUstream hStream, CUstreamCaptureStatus *captureStatus_out,
                                           cuuint64_t *id_out) {
    return get_info(hStream, false, &(struct asked){.status = captureStatus_out, .id = id_out});
}
SIM_EXPORT CUresult cuStreamGetCaptureInfo_ptsz(CUstream hStream, CUstreamCaptureStatus *captureStatus_out,
                                                cuuint64_t *id_out) {
    return get_info(hStream, true, &(struct asked){.status = captureStatus_out, .id = id_out});
}
SIM_EXPORT CUresult cuStreamGetCaptureInfo_v2(CUstream hStream, CUstreamCaptureStatus *captureStatus_out,
                                              cuuint64_t *id_out, CUgraph *graph_out,
                                              const CUgraphNode **dependencies_out,
                                              size_t *numDependencies_out) {
    return get_info(
        hStream, false,
        &(struct asked){captureStatus_out, id_out, graph_out, dependencies_out, NULL, numDependencies_out});
}
SIM_EXPORT CUresult cuStreamGetCaptureInfo_v2_ptsz(CUstream hStream, CUstreamCaptureStatus *captureStatus_out,
                                                   cuuint64_t *id_out, CUgraph *graph_out,
                                                   const CUgraphNode **dependencies_out,
                                                   size_t *numDependencies_out) {
    return get_info(
        hStream, true,
        &(struct asked){captureStatus_out, id_out, graph_out, dependencies_out, NULL, numDependencies_out});
}
SIM_EXPORT CUresult cuStreamGetCaptureInfo_v3(CUstream hStream, CUstreamCaptureStatus *captureStatus_out,
                                              cuuint64_t *id_out, CUgraph *graph_out,
                                              const CUgraphNode **dependencies_out,
                                              const CUgraphEdgeData **edgeData_out,
                                              size_t *numDependencies_out) {
    return get_info(hStream, false,
                    &(struct asked){captureStatus_out, id_out, graph_out, dependencies_out, edgeData_out,
                                    numDependencies_out});
}
SIM_EXPORT CUresult cuStreamGetCaptureInfo_v3_ptsz(CUstream hStream, CUstreamCaptureStatus *captureStatus_out,
                                                   cuuint64_t *id_out, CUgraph *graph_out,
                                                   const CUgraphNode **dependencies_out,
                                                   const CUgraphEdgeData **edgeData_out,
                                                   size_t *numDependencies_out) {
    return get_info(hStream, true,
                    &(struct asked){captureStatus_out, id_out, graph_out, dependencies_out, edgeData_out,
                                    numDependencies_out});
}

/* ---- what the stream stands on ---- */

static CUresult change_tips(struct CUstream_st *stream, const CUgraphNode *nodes, const CUgraphEdgeData *data,
                            size_t count, bool set) {
    struct sim_edge *edges;
    if (!stream->capture)
        return CUDA_ERROR_ILLEGAL_STATE;
    if (stream->capture->invalid)
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    CUresult result = sim_graph_edges(stream->capture->graph, nodes, data, count, &edges);
    if (result != CUDA_SUCCESS)
        return result;
    if (set)
        stream->tip_count = 0;
    for (size_t i = 0; i < count && result == CUDA_SUCCESS; i++) {
        bool there = false;
        for (size_t t = 0; t < stream->tip_count; t++)
            there |= stream->tips[t].node == edges[i].node;
        if (!there && !sim_edge_add(&stream->tips, &stream->tip_count, &edges[i]))
            result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    free(edges);
    return result;
}

static CUresult update_tips(CUstream handle, bool ptsz, const CUgraphNode *nodes, const CUgraphEdgeData *data,
                            size_t count, unsigned int flags) {
    if (flags > CU_STREAM_SET_CAPTURE_DEPENDENCIES)
        return CUDA_ERROR_INVALID_VALUE;
    SIM_ENTER(handle, ptsz);
    (void)context;
    return sim_stream_leave(
        stream, change_tips(stream, nodes, data, count, flags == CU_STREAM_SET_CAPTURE_DEPENDENCIES));
}

SIM_EXPORT CUresult cuStreamUpdateCaptureDependencies(CUstream hStream, CUgraphNode *dependencies,
                                                      size_t numDependencies, unsigned int flags) {
    return update_tips(hStream, false, dependencies, NULL, numDependencies, flags);
}
SIM_EXPORT CUresult cuStreamUpdateCaptureDependencies_ptsz(CUstream hStream, CUgraphNode *dependencies,
                                                           size_t numDependencies, unsigned int flags) {
    return update_tips(hStream, true, dependencies, NULL, numDependencies, flags);
}
SIM_EXPORT CUresult cuStreamUpdateCaptureDependencies_v2(CUstream hStream, CUgraphNode *dependencies,
                                                         const CUgraphEdgeData *dependencyData,
                                                         size_t numDependencies, unsigned int flags) {
    return update_tips(hStream, false, dependencies, dependencyData, numDependencies, flags);
}
SIM_EXPORT CUresult cuStreamUpdateCaptureDependencies_v2_ptsz(CUstream hStream, CUgraphNode *dependencies,
                                                              const CUgraphEdgeData *dependencyData,
                                                              size_t numDependencies, unsigned int flags) {
    return update_tips(hStream, true, dependencies, dependencyData, numDependencies, flags);
}
