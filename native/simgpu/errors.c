/*
 * Names and texts of errors; and the profiler's switches, which move nothing.
 */
#include "generated.h"
#include "work.h"

static const struct sim_error *find(CUresult error) {
    for (size_t i = 0; i < sim_error_count; i++)
        if (sim_errors[i].number == (int)error)
            return &sim_errors[i];
    return NULL;
}

SIM_EXPORT CUresult cuGetErrorName(CUresult error, const char **pStr) {
    const struct sim_error *found = find(error);
    if (!pStr)
        return CUDA_ERROR_INVALID_VALUE;
    *pStr = found ? found->name : NULL;
    return found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_EXPORT CUresult cuGetErrorString(CUresult error, const char **pStr) {
    const struct sim_error *found = find(error);
    if (!pStr)
        return CUDA_ERROR_INVALID_VALUE;
    *pStr = found ? found->text : NULL;
    return found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_EXPORT CUresult cuProfilerStart(void) {
    struct CUctx_st *context;
    return sim_current(&context);
}

SIM_EXPORT CUresult cuProfilerStop(void) {
    struct CUctx_st *context;
    return sim_current(&context);
}
