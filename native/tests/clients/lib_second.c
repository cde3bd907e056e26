/*
 * A second preloaded library, such as a profiler: it stands in front of some of the driver's functions, and
 * of dlsym, and counts its calls. Like its kin it finds what it stands in front of by RTLD_NEXT, and libc's
 * dlsym by dlvsym.
 */
#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>
#include <dlfcn.h>
#include <string.h>

#ifdef __x86_64__
#define FIRST_GLIBC "GLIBC_2.2.5"
#else
#define FIRST_GLIBC "GLIBC_2.17"
#endif

static int calls;

int second_preload_calls(void);
int second_preload_calls(void) {
    return calls;
}

static void *next_dlsym(void *handle, const char *name) {
    static void *(*next)(void *, const char *);
    if (!next)
        next = (void *(*)(void *, const char *))dlvsym(RTLD_NEXT, "dlsym", FIRST_GLIBC);
    return next(handle, name);
}

CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) {
    static __typeof__(cuMemAlloc_v2) *next;
    if (!next)
        next = (__typeof__(cuMemAlloc_v2) *)next_dlsym(RTLD_NEXT, "cuMemAlloc_v2");
    if (!next) { /* the driver is not in the global scope */
        void *driver = dlopen("libcuda.so.1", RTLD_LAZY);
        next = (__typeof__(cuMemAlloc_v2) *)next_dlsym(driver, "cuMemAlloc_v2");
    }
    calls++;
    return next(address, bytes);
}

void *dlsym(void *handle, const char *name) {
    if (handle != RTLD_NEXT && !strcmp(name, "cuMemAlloc_v2"))
        return (void *)cuMemAlloc_v2;
    return next_dlsym(handle, name);
}
