/*
 * Functions of the program in a stream, run by the worker: host functions and, older, callbacks. And
 * attaching managed memory to a stream, which only takes its place in the order.
 */
#include "work.h"

struct host_function {
    CUhostFn function;
    void *data;
};

struct callback {
    CUstreamCallback function;
    CUstream stream;
    void *data;
};

static void call_host_function(void *data) {
    const struct host_function *call = data;
    call->function(call->data);
}

static void call_callback(void *data) {
    const struct callback *call = data;
    call->function(call->stream, CUDA_SUCCESS, call->data);
}

CUresult sim_host_put(struct CUstream_st *stream, CUhostFn function, void *data, sim_op after, sim_op *op) {
    struct sim_job job = {.kind = SIM_OP_GATE, .action.run = call_host_function};
    *(struct host_function *)job.action.data = (struct host_function){function, data};
    return sim_put(stream, &job, NULL, after, false, op);
}

static CUresult launch_host(CUstream handle, bool ptsz, CUhostFn function, void *data) {
    if (!function)
        return CUDA_ERROR_INVALID_VALUE;
    SIM_ENTER(handle, ptsz);
    (void)context;
    CUresult result = CUDA_SUCCESS;
    if (stream->capture)
        result = sim_capture_host(stream, function, data);
    else if ((result = sim_capture_refuse(stream)) == CUDA_SUCCESS)
        result = sim_host_put(stream, function, data, 0, NULL);
    return sim_stream_leave(stream, result);
}

SIM_EXPORT CUresult cuLaunchHostFunc(CUstream hStream, CUhostFn fn, void *userData) {
    return launch_host(hStream, false, fn, userData);
}
SIM_EXPORT CUresult cuLaunchHostFunc_ptsz(CUstream hStream, CUhostFn fn, void *userData) {
    return launch_host(hStream, true, fn, userData);
}
SIM_EXPORT CUresult cuLaunchHostFunc_v2(CUstream hStream, CUhostFn fn, void *userData,
                                        unsigned int syncMode) {
    (void)syncMode; /* how a real driver waits for the function: the model knows one way */
    return launch_host(hStream, false, fn, userData);
}
SIM_EXPORT CUresult cuLaunchHostFunc_v2_ptsz(CUstream hStream, CUhostFn fn, void *userData,
                                             unsigned int syncMode) {
    (void)syncMode;
    return launch_host(hStream, true, fn, userData);
}

static CUresult add_callback(CUstream handle, bool ptsz, CUstreamCallback function, void *data,
                             unsigned int flags) {
    if (!function || flags)
        return CUDA_ERROR_INVALID_VALUE;
    SIM_ENTER(handle, ptsz);
    (void)context;
    CUresult result = sim_capture_refuse(stream);
    struct sim_job job = {.kind = SIM_OP_GATE, .action.run = call_callback};
    *(struct callback *)job.action.data = (struct callback){function, handle, data};
    if (result == CUDA_SUCCESS)
        result = sim_put(stream, &job, NULL, 0, false, NULL);
    return sim_stream_leave(stream, result);
}

SIM_EXPORT CUresult cuStreamAddCallback(CUstream hStream, CUstreamCallback callback, void *userData,
                                        unsigned int flags) {
    return add_callback(hStream, false, callback, userData, flags);
}
SIM_EXPORT CUresult cuStreamAddCallback_ptsz(CUstream hStream, CUstreamCallback callback, void *userData,
                                             unsigned int flags) {
    return add_callback(hStream, true, callback, userData, flags);
}

static CUresult attach(CUstream handle, bool ptsz, CUdeviceptr address, unsigned int flags) {
    struct sim_job mark = {.kind = SIM_OP_MARK};
    if (!address ||
        (flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST && flags != CU_MEM_ATTACH_SINGLE))
        return CUDA_ERROR_INVALID_VALUE;
    SIM_ENTER(handle, ptsz);
    (void)context;
    CUresult result = sim_capture_refuse(stream);
    if (result == CUDA_SUCCESS)
        result = sim_put(stream, &mark, NULL, 0, false, NULL);
    return sim_stream_leave(stream, result);
}

SIM_EXPORT CUresult cuStreamAttachMemAsync(CUstream hStream, CUdeviceptr dptr, size_t length,
                                           unsigned int flags) {
    (void)length;
    return attach(hStream, false, dptr, flags);
}
SIM_EXPORT CUresult cuStreamAttachMemAsync_ptsz(CUstream hStream, CUdeviceptr dptr, size_t length,
                                                unsigned int flags) {
    (void)length;
    return attach(hStream, true, dptr, flags);
}
