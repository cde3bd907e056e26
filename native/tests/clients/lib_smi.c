/*
 * A preload for the real nvidia-smi alone, which refuses any NVML that lacks nvmlInternalGetExportTable: here
 * that function answers that there is such a table and gives none, so nvidia-smi does without what it would
 * find there (process lists among it) and asks for all else through the public functions. Neither NVML nor
 * the shim has it.
 */
#include <dlfcn.h>
#include <string.h>

#ifdef __x86_64__
#define FIRST_GLIBC "GLIBC_2.2.5"
#else
#define FIRST_GLIBC "GLIBC_2.17"
#endif

static int no_table(const void **table, const void *id) {
    (void)id;
    if (table)
        *table = NULL;
    return 0;
}

void *dlsym(void *handle, const char *name) {
    static void *(*next)(void *, const char *);
    if (!strcmp(name, "nvmlInternalGetExportTable"))
        return (void *)no_table;
    if (!next)
        next = (void *(*)(void *, const char *))dlvsym(RTLD_NEXT, "dlsym", FIRST_GLIBC);
    return next(handle, name);
}
