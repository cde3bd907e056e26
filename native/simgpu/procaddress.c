/*
 * cuGetProcAddress: a function by its base name, as of a version of CUDA. Functions that are newer than the
 * simulated CUDA are not there.
 */
#include "generated.h"
#include "work.h"

#include <string.h>

#define KNOWN_FLAGS (CU_GET_PROC_ADDRESS_LEGACY_STREAM | CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM)
#define CUDA_13 13000

/* The first entry of a name, or NULL. */
static const struct sim_proc *first_of(const char *name) {
    size_t low = 0, high = sim_proc_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (strcmp(sim_procs[middle].name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low < sim_proc_count && strcmp(sim_procs[low].name, name) == 0 ? &sim_procs[low] : NULL;
}

static CUdriverProcAddressQueryResult find(const char *name, int version, int driver, cuuint64_t flags,
                                           void **found) {
    const struct sim_proc *end = sim_procs + sim_proc_count;
    CUdriverProcAddressQueryResult status = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    *found = NULL;
    for (const struct sim_proc *proc = first_of(name); proc && proc < end && strcmp(proc->name, name) == 0;
         proc++) {
        if (proc->version > driver)
            break;
        if (proc->version > version)
            return *found ? status : CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT;
        bool per_thread = (flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM) && proc->per_thread;
        *found = per_thread ? proc->per_thread : proc->function;
        status = CU_GET_PROC_ADDRESS_SUCCESS;
    }
    return status;
}

/* May be asked before cuInit: what the machine is set to is known when it has been made. */
static int driver_version(void) {
    int version = 0;
    return cuDriverGetVersion(&version) == CUDA_SUCCESS && version ? version : CUDA_VERSION;
}

static CUresult get(const char *symbol, void **pfn, int version, cuuint64_t flags,
                    CUdriverProcAddressQueryResult *status) {
    int driver = driver_version();
    if (!symbol || !pfn || (flags & ~(cuuint64_t)KNOWN_FLAGS) || version < 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (version > driver &&
        driver >= CUDA_13) /* from CUDA 13 on an error; drivers before find what they have */
        return CUDA_ERROR_INVALID_VALUE;
    CUdriverProcAddressQueryResult found = find(symbol, version, driver, flags, pfn);
    if (status)
        *status = found;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuGetProcAddress_v2(const char *symbol, void **pfn, int cudaVersion, cuuint64_t flags,
                                        CUdriverProcAddressQueryResult *symbolStatus) {
    return get(symbol, pfn, cudaVersion, flags, symbolStatus);
}

SIM_EXPORT CUresult cuGetProcAddress(const char *symbol, void **pfn, int cudaVersion, cuuint64_t flags) {
    CUresult result = get(symbol, pfn, cudaVersion, flags, NULL);
    return result == CUDA_SUCCESS && !*pfn ? CUDA_ERROR_NOT_FOUND : result;
}

/* Tables of functions that are nobody's but the driver's and its run-time library's: there are none. */
SIM_EXPORT CUresult cuGetExportTable(const void **ppExportTable, const CUuuid *pExportTableId) {
    if (!ppExportTable || !pExportTableId)
        return CUDA_ERROR_INVALID_VALUE;
    *ppExportTable = NULL;
    return CUDA_ERROR_NOT_FOUND;
}
