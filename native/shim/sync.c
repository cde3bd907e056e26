/*
 * Waits, and the ends of streams: what ran is known afterwards, and what pools gave back.
 *
 * Before a wait the end of what is queued is marked, if that can still be told; after it everything measured
 * is read. A question answered with "not yet" costs nothing here.
 */
#include "memory.h"
#include "meter.h"

static struct vcuda_share *own_share(void) {
    struct vcuda_share *share = vcuda_share();
    return share && !vcuda_depth ? share : NULL;
}

static CUresult waited(struct vcuda_share *share, const struct vcuda_wait *wait, CUresult result) {
    vcuda_meter_waited(share, wait, result);
    vcuda_synchronised();
    return result;
}

#define WAIT(call, ...)                                                                                      \
    do {                                                                                                     \
        struct vcuda_share *share = own_share();                                                             \
        struct vcuda_wait wait = {__VA_ARGS__};                                                              \
        if (!share)                                                                                          \
            return (call);                                                                                   \
        vcuda_meter_wait(share, &wait);                                                                      \
        return waited(share, &wait, (call));                                                                 \
    } while (0)

VCUDA_EXPORT CUresult cuStreamSynchronize(CUstream hStream) {
    WAIT(vcuda_real.cuStreamSynchronize(hStream), .stream = vcuda_stream_of(hStream, false));
}
VCUDA_EXPORT CUresult cuStreamSynchronize_ptsz(CUstream hStream) {
    WAIT(vcuda_real.cuStreamSynchronize_ptsz(hStream), .stream = vcuda_stream_of(hStream, true));
}
VCUDA_EXPORT CUresult cuCtxSynchronize(void) {
    WAIT(vcuda_real.cuCtxSynchronize(), .stream = NULL);
}
VCUDA_EXPORT CUresult cuCtxSynchronize_v2(CUcontext ctx) {
    WAIT(vcuda_real.cuCtxSynchronize_v2(ctx), .context = ctx);
}

/* An event says nothing about what was launched behind it, but that it is not over if it still is there. */
VCUDA_EXPORT CUresult cuEventSynchronize(CUevent hEvent) {
    struct vcuda_share *share = own_share();
    struct vcuda_watch watch;
    if (!share)
        return vcuda_real.cuEventSynchronize(hEvent);
    vcuda_meter_watch(share, &watch);
    CUresult result = vcuda_real.cuEventSynchronize(hEvent);
    if (result == CUDA_SUCCESS) {
        vcuda_meter_watched(share, &watch);
        vcuda_meter_look(share, true);
        vcuda_synchronised();
    }
    return result;
}
VCUDA_EXPORT CUresult cuEventQuery(CUevent hEvent) {
    CUresult result = vcuda_real.cuEventQuery(hEvent);
    struct vcuda_share *share = result == CUDA_SUCCESS ? own_share() : NULL;
    if (share)
        vcuda_meter_look(share, false);
    return result;
}

VCUDA_EXPORT CUresult cuStreamQuery(CUstream hStream) {
    CUresult result = vcuda_real.cuStreamQuery(hStream);
    struct vcuda_share *share = result == CUDA_SUCCESS ? own_share() : NULL;
    if (share)
        vcuda_meter_idle(share, hStream, false);
    return result;
}
VCUDA_EXPORT CUresult cuStreamQuery_ptsz(CUstream hStream) {
    CUresult result = vcuda_real.cuStreamQuery_ptsz(hStream);
    struct vcuda_share *share = result == CUDA_SUCCESS ? own_share() : NULL;
    if (share)
        vcuda_meter_idle(share, hStream, true);
    return result;
}

/* ---- ends ---- */

static void stream_ends(CUstream stream) {
    struct vcuda_share *share = own_share();
    if (share)
        vcuda_meter_stream_ends(share, stream);
}

VCUDA_EXPORT CUresult cuStreamDestroy_v2(CUstream hStream) {
    stream_ends(hStream);
    return vcuda_real.cuStreamDestroy_v2(hStream);
}
VCUDA_EXPORT CUresult cuStreamDestroy(CUstream hStream) {
    stream_ends(hStream);
    return vcuda_real.cuStreamDestroy(hStream);
}

/* ---- another current context ---- */

#define CURRENT(name, parameters, arguments)                                                                 \
    VCUDA_EXPORT CUresult name parameters {                                                                  \
        vcuda_meter_elsewhere();                                                                             \
        return vcuda_real.name arguments;                                                                    \
    }
CURRENT(cuCtxSetCurrent, (CUcontext ctx), (ctx))
CURRENT(cuCtxPushCurrent, (CUcontext ctx), (ctx))
CURRENT(cuCtxPushCurrent_v2, (CUcontext ctx), (ctx))
CURRENT(cuCtxPopCurrent, (CUcontext * pctx), (pctx))
CURRENT(cuCtxPopCurrent_v2, (CUcontext * pctx), (pctx))
