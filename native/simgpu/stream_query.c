/*
 * What streams say of themselves: flags, priority, number, context, device, attributes.
 */
#include "work.h"

#include <string.h>

enum asked { FLAGS, PRIORITY, ID, CONTEXT, DEVICE };

static CUresult ask(CUstream handle, bool ptsz, enum asked what, void *answer) {
    if (!answer)
        return CUDA_ERROR_INVALID_VALUE;
    SIM_ENTER(handle, ptsz);
    (void)context;
    switch (what) {
    case FLAGS:
        *(unsigned int *)answer = stream->flags;
        break;
    case PRIORITY:
        *(int *)answer = stream->priority;
        break;
    case ID:
        *(unsigned long long *)answer = stream->id;
        break;
    case CONTEXT:
        *(CUcontext *)answer = stream->context;
        break;
    case DEVICE:
        *(CUdevice *)answer = stream->context->device;
        break;
    }
    return sim_stream_leave(stream, CUDA_SUCCESS);
}

SIM_EXPORT CUresult cuStreamGetPriority(CUstream hStream, int *priority) {
    return ask(hStream, false, PRIORITY, priority);
}
SIM_EXPORT CUresult cuStreamGetPriority_ptsz(CUstream hStream, int *priority) {
    return ask(hStream, true, PRIORITY, priority);
}
SIM_EXPORT CUresult cuStreamGetId(CUstream hStream, unsigned long long *streamId) {
    return ask(hStream, false, ID, streamId);
}
SIM_EXPORT CUresult cuStreamGetId_ptsz(CUstream hStream, unsigned long long *streamId) {
    return ask(hStream, true, ID, streamId);
}
SIM_EXPORT CUresult cuStreamGetFlags(CUstream hStream, unsigned int *flags) {
    return ask(hStream, false, FLAGS, flags);
}
SIM_EXPORT CUresult cuStreamGetFlags_ptsz(CUstream hStream, unsigned int *flags) {
    return ask(hStream, true, FLAGS, flags);
}
SIM_EXPORT CUresult cuStreamGetDevice(CUstream hStream, CUdevice *device) {
    return ask(hStream, false, DEVICE, device);
}
SIM_EXPORT CUresult cuStreamGetDevice_ptsz(CUstream hStream, CUdevice *device) {
    return ask(hStream, true, DEVICE, device);
}
SIM_EXPORT CUresult cuStreamGetCtx(CUstream hStream, CUcontext *pctx) {
    return ask(hStream, false, CONTEXT, pctx);
}
SIM_EXPORT CUresult cuStreamGetCtx_ptsz(CUstream hStream, CUcontext *pctx) {
    return ask(hStream, true, CONTEXT, pctx);
}

static CUresult contexts_of(CUstream handle, bool ptsz, CUcontext *context, CUgreenCtx *green) {
    if (green)
        *green = NULL; /* there are no green contexts */
    return ask(handle, ptsz, CONTEXT, context);
}

SIM_EXPORT CUresult cuStreamGetCtx_v2(CUstream hStream, CUcontext *pCtx, CUgreenCtx *pGreenCtx) {
    return contexts_of(hStream, false, pCtx, pGreenCtx);
}
SIM_EXPORT CUresult cuStreamGetCtx_v2_ptsz(CUstream hStream, CUcontext *pCtx, CUgreenCtx *pGreenCtx) {
    return contexts_of(hStream, true, pCtx, pGreenCtx);
}

SIM_EXPORT CUresult cuStreamGetGreenCtx(CUstream hStream, CUgreenCtx *phCtx) {
    CUcontext context;
    if (!phCtx)
        return CUDA_ERROR_INVALID_VALUE;
    return contexts_of(hStream, false, &context, phCtx);
}

SIM_EXPORT CUresult cuCtxGetStreamPriorityRange(int *leastPriority, int *greatestPriority) {
    SIM_BEGIN_IN(context);
    (void)context;
    if (leastPriority)
        *leastPriority = 0;
    if (greatestPriority)
        *greatestPriority = SIM_PRIORITY_GREATEST;
    return CUDA_SUCCESS;
}

/* ---- attributes ---- */

static bool is_attribute(CUstreamAttrID attribute) {
    return attribute == CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW ||
           attribute == CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY ||
           attribute == CU_LAUNCH_ATTRIBUTE_PRIORITY ||
           attribute == CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN_MAP ||
           attribute == CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN ||
           attribute == CU_LAUNCH_ATTRIBUTE_NVLINK_UTIL_CENTRIC_SCHEDULING;
}

static CUresult get_attribute(CUstream handle, bool ptsz, CUstreamAttrID attribute,
                              CUstreamAttrValue *value) {
    if (!value || !is_attribute(attribute))
        return CUDA_ERROR_INVALID_VALUE;
    SIM_ENTER(handle, ptsz);
    (void)context;
    *value = stream->attributes[attribute];
    if (attribute == CU_LAUNCH_ATTRIBUTE_PRIORITY)
        value->priority = stream->priority;
    else if (attribute == CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY && !value->syncPolicy)
        value->syncPolicy = CU_SYNC_POLICY_AUTO;
    return sim_stream_leave(stream, CUDA_SUCCESS);
}

static CUresult set_attribute(CUstream handle, bool ptsz, CUstreamAttrID attribute,
                              const CUstreamAttrValue *value) {
    if (!value || !is_attribute(attribute))
        return CUDA_ERROR_INVALID_VALUE;
    SIM_ENTER(handle, ptsz);
    (void)context;
    if (attribute == CU_LAUNCH_ATTRIBUTE_PRIORITY)
        stream->priority = value->priority;
    stream->attributes[attribute] = *value;
    return sim_stream_leave(stream, CUDA_SUCCESS);
}

static CUresult copy_attributes(CUstream to, CUstream from, bool ptsz) {
    struct CUstream_st *source;
    SIM_ENTER(to, ptsz);
    CUresult result = sim_stream_find(context, from, ptsz, &source);
    if (result == CUDA_SUCCESS) {
        memmove(stream->attributes, source->attributes, sizeof stream->attributes);
        stream->priority = source->priority;
    }
    return sim_stream_leave(stream, result);
}

SIM_EXPORT CUresult cuStreamGetAttribute(CUstream hStream, CUstreamAttrID attr, CUstreamAttrValue *value) {
    return get_attribute(hStream, false, attr, value);
}
SIM_EXPORT CUresult cuStreamGetAttribute_ptsz(CUstream hStream, CUstreamAttrID attr,
                                              CUstreamAttrValue *value) {
    return get_attribute(hStream, true, attr, value);
}
SIM_EXPORT CUresult cuStreamSetAttribute(CUstream hStream, CUstreamAttrID attr,
                                         const CUstreamAttrValue *param) {
    return set_attribute(hStream, false, attr, param);
}
SIM_EXPORT CUresult cuStreamSetAttribute_ptsz(CUstream hStream, CUstreamAttrID attr,
                                              const CUstreamAttrValue *param) {
    return set_attribute(hStream, true, attr, param);
}
SIM_EXPORT CUresult cuStreamCopyAttributes(CUstream dstStream, CUstream srcStream) {
    return copy_attributes(dstStream, srcStream, false);
}
SIM_EXPORT CUresult cuStreamCopyAttributes_ptsz(CUstream dstStream, CUstream srcStream) {
    return copy_attributes(dstStream, srcStream, true);
}
