/*
 * cuGetProcAddress: the driver chooses, by version and kind of default stream, and answers as it will. Where
 * its answer is one of the functions that we stand in front of, the program gets ours.
 *
 * A driver's answer is mostly the function that it exports under some variant of the name; then there is no
 * doubt which. A driver may answer with a pointer of its own instead: then the variant is the newest one that
 * the version asked for, and the driver, know.
 */
#include "real.h"

#include <string.h>

/* A driver may find its functions by name as programs do, and so find ours. */
static bool is_answer(unsigned int index, const void *address) {
    return vcuda_is_drivers(index, address) || address == vcuda_hook_of(index);
}

/* The hooked variant of `symbol` that `address` is, whatever version it came with. */
static int exported_as(const char *symbol, const void *address) {
    size_t length = strlen(symbol);
    for (unsigned int i = vcuda_first_from(symbol); i < VCUDA_FUNCTIONS; i++) {
        const char *name = vcuda_name_of(i);
        if (strncmp(name, symbol, length) != 0)
            break;
        if ((name[length] == 0 || name[length] == '_') && vcuda_hooks(i) && is_answer(i, address))
            return (int)i;
    }
    return -1;
}

static const struct vcuda_version *first_of(const char *symbol) {
    unsigned int low = 0, high = vcuda_version_count;
    while (low < high) {
        unsigned int middle = (low + high) / 2;
        if (strcmp(vcuda_versions[middle].base, symbol) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return &vcuda_versions[low];
}

/* The newest variant of `symbol` that `version` has and the driver exports; of the kind of default stream
 * that is asked for, where there are two. -1 where none is hooked. */
static int known_as(const char *symbol, int version, cuuint64_t flags) {
    bool wanted = flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM;
    const struct vcuda_version *end = vcuda_versions + vcuda_version_count;
    int best = -1, since = 0;
    for (const struct vcuda_version *at = first_of(symbol); at < end && strcmp(at->base, symbol) == 0; at++) {
        bool per_thread = vcuda_name[at->index].flags & VCUDA_PER_THREAD;
        if (at->since > version || !vcuda_hooks(at->index) || !vcuda_driver_address(at->index))
            continue;
        if (at->since > since || per_thread == wanted) {
            best = at->index;
            since = at->since;
        }
    }
    return best;
}

/* Asked for a version that this library has not been built for, the driver may answer with a variant that it
 * does not know. So it is, unless the driver gives the same for the newest known version. */
static bool is_known(const char *symbol, const void *address, int version, cuuint64_t flags) {
    void *known = NULL;
    CUdriverProcAddressQueryResult status;
    if (version <= CUDA_VERSION)
        return true;
    CUresult result = vcuda_real.cuGetProcAddress_v2(symbol, &known, CUDA_VERSION, flags, &status);
    return result == CUDA_SUCCESS && known == address;
}

static void answer_with_hook(const char *symbol, void **pfn, int version, cuuint64_t flags) {
    if (!symbol || !pfn || !*pfn)
        return;
    int index = known_as(symbol, version, flags);
    if (index < 0 || !is_answer((unsigned int)index, *pfn)) {
        int exported = exported_as(symbol, *pfn);
        if (exported >= 0)
            index = exported;
        else if (index >= 0 && !is_known(symbol, *pfn, version, flags))
            index = -1;
    }
    if (index >= 0)
        *pfn = vcuda_hook_of((unsigned int)index);
}

VCUDA_EXPORT CUresult cuGetProcAddress(const char *symbol, void **pfn, int cudaVersion, cuuint64_t flags) {
    CUresult result = vcuda_real.cuGetProcAddress(symbol, pfn, cudaVersion, flags);
    if (result == CUDA_SUCCESS)
        answer_with_hook(symbol, pfn, cudaVersion, flags);
    return result;
}

VCUDA_EXPORT CUresult cuGetProcAddress_v2(const char *symbol, void **pfn, int cudaVersion, cuuint64_t flags,
                                          CUdriverProcAddressQueryResult *symbolStatus) {
    CUresult result = vcuda_real.cuGetProcAddress_v2(symbol, pfn, cudaVersion, flags, symbolStatus);
    if (result == CUDA_SUCCESS)
        answer_with_hook(symbol, pfn, cudaVersion, flags);
    return result;
}
