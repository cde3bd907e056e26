/*
 * Captures: how many streams of this process capture, so that a launch need not ask while none does.
 *
 * The count may be too high, which costs a question per launch, but never too low: it grows before a capture
 * begins and shrinks after the driver has said that the stream captures no more.
 */
#include "meter.h"

static void grow(void) {
    __atomic_fetch_add(&vcuda_captures, 1, __ATOMIC_SEQ_CST);
}

static void shrink(void) {
    uint32_t count = __atomic_load_n(&vcuda_captures, __ATOMIC_RELAXED);
    while (count && !__atomic_compare_exchange_n(&vcuda_captures, &count, count - 1, false, __ATOMIC_SEQ_CST,
                                                 __ATOMIC_RELAXED))
        ;
}

#define BEGIN(name, parameters, arguments)                                                                   \
    VCUDA_EXPORT CUresult name parameters {                                                                  \
        if (!vcuda_share())                                                                                  \
            return vcuda_real.name arguments;                                                                \
        grow();                                                                                              \
        CUresult result = vcuda_real.name arguments;                                                         \
        if (result != CUDA_SUCCESS)                                                                          \
            shrink();                                                                                        \
        return result;                                                                                       \
    }
BEGIN(cuStreamBeginCapture, (CUstream hStream), (hStream))
BEGIN(cuStreamBeginCapture_ptsz, (CUstream hStream), (hStream))
BEGIN(cuStreamBeginCapture_v2, (CUstream hStream, CUstreamCaptureMode mode), (hStream, mode))
BEGIN(cuStreamBeginCapture_v2_ptsz, (CUstream hStream, CUstreamCaptureMode mode), (hStream, mode))

#define TO_GRAPH_PARAMETERS                                                                                  \
    (CUstream hStream, CUgraph hGraph, const CUgraphNode *dependencies,                                      \
     const CUgraphEdgeData *dependencyData, size_t numDependencies, CUstreamCaptureMode mode)
#define TO_GRAPH_ARGUMENTS (hStream, hGraph, dependencies, dependencyData, numDependencies, mode)
BEGIN(cuStreamBeginCaptureToGraph, TO_GRAPH_PARAMETERS, TO_GRAPH_ARGUMENTS)
BEGIN(cuStreamBeginCaptureToGraph_ptsz, TO_GRAPH_PARAMETERS, TO_GRAPH_ARGUMENTS)

#define RECAPTURE_PARAMETERS                                                                                 \
    (CUstream hStream, CUstreamCaptureMode mode, CUgraph hGraph, CUgraphRecaptureCallback callbackFunc,      \
     void *userData)
#define RECAPTURE_ARGUMENTS (hStream, mode, hGraph, callbackFunc, userData)
BEGIN(cuStreamBeginRecaptureToGraph, RECAPTURE_PARAMETERS, RECAPTURE_ARGUMENTS)
BEGIN(cuStreamBeginRecaptureToGraph_ptsz, RECAPTURE_PARAMETERS, RECAPTURE_ARGUMENTS)

/* A capture that was invalidated lasts until it is ended; one that another stream began is not ended here. */
static bool captures(CUstream stream, bool ptsz) {
    return vcuda_meter_captures(stream, ptsz) != VCUDA_CAPTURES_NOT;
}

#define END(name, parameters, arguments, ptsz)                                                               \
    VCUDA_EXPORT CUresult name parameters {                                                                  \
        if (!vcuda_share())                                                                                  \
            return vcuda_real.name arguments;                                                                \
        bool before = captures(hStream, ptsz);                                                               \
        CUresult result = vcuda_real.name arguments;                                                         \
        if (before && !captures(hStream, ptsz))                                                              \
            shrink();                                                                                        \
        return result;                                                                                       \
    }
END(cuStreamEndCapture, (CUstream hStream, CUgraph *phGraph), (hStream, phGraph), false)
END(cuStreamEndCapture_ptsz, (CUstream hStream, CUgraph *phGraph), (hStream, phGraph), true)

/* Work for a graphics queue: which streams such a capture is in cannot be asked, so meanwhile none is
 * measured. */
#define TO_GRAPHICS(name, parameters, arguments, change)                                                     \
    VCUDA_EXPORT CUresult name parameters {                                                                  \
        CUresult result = vcuda_real.name arguments;                                                         \
        if (result == CUDA_SUCCESS)                                                                          \
            __atomic_fetch_add(&vcuda_graphics_captures, change, __ATOMIC_SEQ_CST);                          \
        return result;                                                                                       \
    }
#define CIG_PARAMETERS (CUstream hStream, CUstreamCigCaptureParams * streamCigCaptureParams)
#define CIG_ARGUMENTS (hStream, streamCigCaptureParams)
TO_GRAPHICS(cuStreamBeginCaptureToCig, CIG_PARAMETERS, CIG_ARGUMENTS, 1)
TO_GRAPHICS(cuStreamBeginCaptureToCig_ptsz, CIG_PARAMETERS, CIG_ARGUMENTS, 1)
TO_GRAPHICS(cuStreamEndCaptureToCig, (CUstream hStream), (hStream), -1)
TO_GRAPHICS(cuStreamEndCaptureToCig_ptsz, (CUstream hStream), (hStream), -1)
