/*
 * What functions and kernels say of themselves, and what may be set of them.
 */
#include "module.h"

#define DEFAULT_SHARED_BYTES 49152 /* static and dynamic together, unless a function asks for more */

/* Take the lock with the function behind a handle, a kernel's too: held after success only. */
static CUresult enter(CUfunction handle, struct CUfunc_st **function) {
    struct CUctx_st *context = NULL;
    CUresult result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    bool current = sim_current(&context) == CUDA_SUCCESS;
    sim_work_lock();
    if (!current && !sim_handle_is(handle, SIM_HANDLE_FUNCTION))
        result =
            sim_handle_is(handle, SIM_HANDLE_KERNEL) ? CUDA_ERROR_INVALID_CONTEXT : CUDA_ERROR_INVALID_HANDLE;
    else
        result = sim_function_of(context, handle, function);
    if (result != CUDA_SUCCESS)
        sim_work_unlock();
    return result;
}

/* The same for what does not depend on a context. */
static CUresult enter_entry(const void *handle, const void *answer, struct sim_entry **entry) {
    CUresult result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    sim_work_lock();
    if (sim_handle_is(handle, SIM_HANDLE_FUNCTION))
        *entry = ((CUfunction)handle)->entry;
    else if (sim_handle_is(handle, SIM_HANDLE_KERNEL))
        *entry = ((CUkernel)handle)->entry;
    else
        result = CUDA_ERROR_INVALID_HANDLE;
    if (result == CUDA_SUCCESS && !answer)
        result = CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS)
        sim_work_unlock();
    return result;
}

static CUresult leave(CUresult result) {
    sim_work_unlock();
    return result;
}

static int device_attribute(CUdevice device, CUdevice_attribute attribute) {
    int value = 0;
    cuDeviceGetAttribute(&value, attribute, device);
    return value;
}

/* ---- attributes ---- */

static CUresult get_attribute(const struct CUfunc_st *function, CUfunction_attribute attribute, int *value) {
    const struct sim_entry *entry = function->entry;
    int shared = (int)entry->shared_bytes;
    switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
        *value = (int)entry->max_threads;
        break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
        *value = shared;
        break;
    case CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES:
        *value = (int)entry->constant_bytes;
        break;
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:
        *value = (int)entry->local_bytes;
        break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS:
        *value = (int)entry->registers;
        break;
    case CU_FUNC_ATTRIBUTE_PTX_VERSION:
        *value = function->module->image->ptx_version;
        break;
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION:
        *value = function->module->image->binary_version;
        break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
        *value = function->max_dynamic_shared;
        if (*value < 0)
            *value = shared < DEFAULT_SHARED_BYTES ? DEFAULT_SHARED_BYTES - shared : 0;
        break;
    case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
        *value = function->carveout;
        break;
    case CU_FUNC_ATTRIBUTE_CLUSTER_SIZE_MUST_BE_SET:
        *value = 0;
        break;
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH:
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_HEIGHT:
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_DEPTH:
        *value = function->cluster[attribute - CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH];
        break;
    case CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED:
        *value = function->nonportable_cluster;
        break;
    case CU_FUNC_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE:
        *value = function->cluster_policy;
        break;
    default:
        if ((int)attribute < 0 || attribute >= CU_FUNC_ATTRIBUTE_MAX)
            return CUDA_ERROR_INVALID_VALUE;
        *value = 0;
    }
    return CUDA_SUCCESS;
}

static CUresult set_attribute(struct CUfunc_st *function, CUfunction_attribute attribute, int value) {
    int most = device_attribute(function->module->context->device,
                                CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
    switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
        if (value < 0 || value > most - (int)function->entry->shared_bytes)
            return CUDA_ERROR_INVALID_VALUE;
        function->max_dynamic_shared = value;
        return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
        if (value < -1 || value > 100)
            return CUDA_ERROR_INVALID_VALUE;
        function->carveout = value;
        return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH:
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_HEIGHT:
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_DEPTH:
        if (value < 0 || value > 16)
            return CUDA_ERROR_INVALID_VALUE;
        function->cluster[attribute - CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH] = value;
        return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED:
        function->nonportable_cluster = value != 0;
        return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE:
        function->cluster_policy = value;
        return CUDA_SUCCESS;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

SIM_EXPORT CUresult cuFuncGetAttribute(int *pi, CUfunction_attribute attrib, CUfunction hfunc) {
    struct CUfunc_st *function;
    CUresult result = pi ? enter(hfunc, &function) : CUDA_ERROR_INVALID_VALUE;
    return result == CUDA_SUCCESS ? leave(get_attribute(function, attrib, pi)) : result;
}

SIM_EXPORT CUresult cuFuncSetAttribute(CUfunction hfunc, CUfunction_attribute attrib, int value) {
    struct CUfunc_st *function;
    CUresult result = enter(hfunc, &function);
    return result == CUDA_SUCCESS ? leave(set_attribute(function, attrib, value)) : result;
}

/* A kernel's attributes are those of its function on the device: in the current context if that is the
 * device's. */
static CUresult enter_on(CUkernel kernel, CUdevice device, struct CUfunc_st **function) {
    struct CUctx_st *context;
    CUresult result = sim_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    if (context->device != device)
        return CUDA_ERROR_INVALID_DEVICE;
    sim_work_lock();
    result = sim_handle_is(kernel, SIM_HANDLE_KERNEL) ? sim_function_of(context, (CUfunction)kernel, function)
                                                      : CUDA_ERROR_INVALID_HANDLE;
    if (result != CUDA_SUCCESS)
        sim_work_unlock();
    return result;
}

SIM_EXPORT CUresult cuKernelGetAttribute(int *pi, CUfunction_attribute attrib, CUkernel kernel,
                                         CUdevice dev) {
    struct CUfunc_st *function;
    CUresult result = pi ? enter_on(kernel, dev, &function) : CUDA_ERROR_INVALID_VALUE;
    return result == CUDA_SUCCESS ? leave(get_attribute(function, attrib, pi)) : result;
}

SIM_EXPORT CUresult cuKernelSetAttribute(CUfunction_attribute attrib, int val, CUkernel kernel,
                                         CUdevice dev) {
    struct CUfunc_st *function;
    CUresult result = enter_on(kernel, dev, &function);
    return result == CUDA_SUCCESS ? leave(set_attribute(function, attrib, val)) : result;
}

static CUresult set_cache(const void *handle, CUfunc_cache config) {
    struct sim_entry *entry;
    if ((unsigned int)config > CU_FUNC_CACHE_PREFER_EQUAL)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = enter_entry(handle, handle, &entry);
    return result == CUDA_SUCCESS ? leave(CUDA_SUCCESS) : result;
}

SIM_EXPORT CUresult cuFuncSetCacheConfig(CUfunction hfunc, CUfunc_cache config) {
    return set_cache(hfunc, config);
}
SIM_EXPORT CUresult cuKernelSetCacheConfig(CUkernel kernel, CUfunc_cache config, CUdevice dev) {
    (void)dev;
    return set_cache(kernel, config);
}
SIM_EXPORT CUresult cuFuncSetSharedMemConfig(CUfunction hfunc, CUsharedconfig config) {
    return (unsigned int)config > CU_SHARED_MEM_CONFIG_EIGHT_BYTE_BANK_SIZE
               ? CUDA_ERROR_INVALID_VALUE
               : set_cache(hfunc, CU_FUNC_CACHE_PREFER_NONE);
}

/* ---- names, modules, parameters ---- */

static CUresult get_name(const void *handle, const char **name) {
    struct sim_entry *entry;
    CUresult result = enter_entry(handle, name, &entry);
    if (result != CUDA_SUCCESS)
        return result;
    *name = entry->name;
    return leave(CUDA_SUCCESS);
}

SIM_EXPORT CUresult cuFuncGetName(const char **name, CUfunction hfunc) {
    return get_name(hfunc, name);
}
SIM_EXPORT CUresult cuKernelGetName(const char **name, CUkernel hfunc) {
    return get_name(hfunc, name);
}

static CUresult get_parameter(const void *handle, size_t index, size_t *offset, size_t *bytes) {
    struct sim_entry *entry;
    CUresult result = enter_entry(handle, offset, &entry);
    if (result != CUDA_SUCCESS)
        return result;
    if (index >= entry->parameter_count)
        return leave(CUDA_ERROR_INVALID_VALUE);
    *offset = entry->parameters[index].offset;
    if (bytes)
        *bytes = entry->parameters[index].bytes;
    return leave(CUDA_SUCCESS);
}

SIM_EXPORT CUresult cuFuncGetParamInfo(CUfunction func, size_t paramIndex, size_t *paramOffset,
                                       size_t *paramSize) {
    return get_parameter(func, paramIndex, paramOffset, paramSize);
}
SIM_EXPORT CUresult cuKernelGetParamInfo(CUkernel kernel, size_t paramIndex, size_t *paramOffset,
                                         size_t *paramSize) {
    return get_parameter(kernel, paramIndex, paramOffset, paramSize);
}

static CUresult count_parameters(const void *handle, size_t *count) {
    struct sim_entry *entry;
    CUresult result = enter_entry(handle, count, &entry);
    if (result != CUDA_SUCCESS)
        return result;
    *count = entry->parameter_count;
    return leave(CUDA_SUCCESS);
}

SIM_EXPORT CUresult cuFuncGetParamCount(CUfunction func, size_t *paramCount) {
    return count_parameters(func, paramCount);
}
SIM_EXPORT CUresult cuKernelGetParamCount(CUkernel kernel, size_t *paramCount) {
    return count_parameters(kernel, paramCount);
}

SIM_EXPORT CUresult cuFuncGetModule(CUmodule *hmod, CUfunction hfunc) {
    struct CUfunc_st *function;
    CUresult result = hmod ? enter(hfunc, &function) : CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS)
        return result;
    *hmod = function->module;
    return leave(CUDA_SUCCESS);
}

SIM_EXPORT CUresult cuFuncIsLoaded(CUfunctionLoadingState *state, CUfunction function) {
    struct sim_entry *entry;
    CUresult result = enter_entry(function, state, &entry);
    if (result != CUDA_SUCCESS)
        return result;
    *state = CU_FUNCTION_LOADING_STATE_LOADED;
    return leave(CUDA_SUCCESS);
}

SIM_EXPORT CUresult cuFuncLoad(CUfunction function) {
    struct sim_entry *entry;
    CUresult result = enter_entry(function, function, &entry);
    return result == CUDA_SUCCESS ? leave(CUDA_SUCCESS) : result;
}
