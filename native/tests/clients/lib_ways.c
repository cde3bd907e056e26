/* The ways in that go by name at run time. Not linked with the driver. */
#include <string.h>

#include "ways.h"

int ways_run(const char *way, unsigned long long share_bytes);
void ways_where(const char *way, const char *name);
void ways_proc(const char *door, const char *symbol, int version, unsigned long long flags);
int ways_race(void);

typedef CUresult get_proc_v1(const char *, void **, int, cuuint64_t);
typedef CUresult get_proc_v2(const char *, void **, int, cuuint64_t, CUdriverProcAddressQueryResult *);

/* "cuMemAlloc_v2" as cuGetProcAddress knows it. */
static void base_of(const char *name, char *base) {
    strcpy(base, name);
    char *suffix = strstr(base, "_v2");
    if (suffix)
        *suffix = 0;
}

static void *driver(int mode) {
    return dlopen("libcuda.so.1", mode);
}

/* cuGetProcAddress, got from the driver's handle or from itself. */
static void *by_proc(const char *way, const char *name) {
    char base[64];
    void *address = NULL, *door = dlsym(driver(RTLD_NOW), "cuGetProcAddress");
    CUdriverProcAddressQueryResult status = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    cuuint64_t flags = strstr(way, "per-thread") ? CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM
                                                 : CU_GET_PROC_ADDRESS_LEGACY_STREAM;
    base_of(name, base);
    if (strncmp(way, "proc-v1", 7) == 0) {
        if (((get_proc_v1 *)door)(base, &address, 11030, flags) != CUDA_SUCCESS)
            return NULL;
        return address;
    }
    door = dlsym(driver(RTLD_NOW), "cuGetProcAddress_v2");
    if (strncmp(way, "proc-of-proc", 12) == 0 &&
        ((get_proc_v2 *)door)("cuGetProcAddress", &door, 12000, flags, &status) != CUDA_SUCCESS)
        return NULL;
    if (((get_proc_v2 *)door)(base, &address, 12000, flags, &status) != CUDA_SUCCESS ||
        status != CU_GET_PROC_ADDRESS_SUCCESS)
        return NULL;
    return address;
}

static void *get(const char *way, const char *name) {
    if (strncmp(way, "proc", 4) == 0)
        return by_proc(way, name);
    if (strncmp(way, "dlsym", 5) == 0)
        return dlsym(driver(RTLD_NOW), name);
    if (strncmp(way, "dlvsym", 6) == 0)
        return dlvsym(driver(RTLD_NOW), name, "CUDA");
    if (strncmp(way, "default", 7) == 0) {
        driver(RTLD_NOW | RTLD_GLOBAL);
        return dlsym(RTLD_DEFAULT, name);
    }
    if (strncmp(way, "program", 7) == 0) {
        driver(RTLD_NOW | RTLD_GLOBAL);
        return dlsym(dlopen(NULL, RTLD_NOW), name);
    }
    if (strncmp(way, "deepbind", 8) == 0)
        return dlsym(driver(RTLD_NOW | RTLD_DEEPBIND), name);
    if (strncmp(way, "libc", 4) == 0) { /* dlsym itself, fetched from libc by its handle */
        void *(*other)(void *, const char *) =
            (void *(*)(void *, const char *))dlsym(dlopen("libc.so.6", RTLD_NOW), "dlsym");
        return other ? other(driver(RTLD_NOW), name) : NULL;
    }
    return NULL;
}

int ways_run(const char *way, unsigned long long share_bytes) {
    struct api api;
    if (strstr(way, "after-init")) {
        CUresult (*init)(unsigned int) = (CUresult (*)(unsigned int))dlsym(driver(RTLD_NOW), "cuInit");
        if (!init || init(0) != CUDA_SUCCESS)
            return 3;
    }
#define GET(name)                                                                                            \
    api.name = (__typeof__(name) *)get(way, #name);                                                          \
    if (!api.name) {                                                                                         \
        printf("{\"missing\": \"%s\"}\n", #name);                                                            \
        return 2;                                                                                            \
    }
    FUNCTIONS(GET)
    return scenario(&api, share_bytes);
}

void ways_where(const char *way, const char *name) {
    dlerror();
    print_place(get(way, name));
    const char *error = dlerror();
    puts(error ? error : "no error");
}

/* What cuGetProcAddress (door: its exported name) answers: the result, the symbol's status, and where that
 * is. */
void ways_proc(const char *door, const char *symbol, int version, unsigned long long flags) {
    void *address = NULL, *function = dlsym(driver(RTLD_NOW), door);
    CUdriverProcAddressQueryResult status = CU_GET_PROC_ADDRESS_SUCCESS;
    if (!function) {
        puts("no door");
        return;
    }
    int result = strcmp(door, "cuGetProcAddress") == 0
                     ? (int)((get_proc_v1 *)function)(symbol, &address, version, flags)
                     : (int)((get_proc_v2 *)function)(symbol, &address, version, flags, &status);
    printf("%d %d ", result, (int)status);
    print_place(address);
}

/* Many threads come in at once: how many of them are told of a card as large as the first one's. */
#define RACERS 16

static pthread_barrier_t start;

static void *race(void *data) {
    size_t *total = data;
    pthread_barrier_wait(&start);
    CUresult (*init)(unsigned int) = (CUresult (*)(unsigned int))get("dlsym", "cuInit");
    __typeof__(cuDeviceTotalMem_v2) *ask =
        (__typeof__(cuDeviceTotalMem_v2) *)get("dlsym", "cuDeviceTotalMem_v2");
    if (!init || !ask || init(0) != CUDA_SUCCESS || ask(total, 0) != CUDA_SUCCESS)
        *total = 0;
    return NULL;
}

int ways_race(void) {
    pthread_t threads[RACERS];
    size_t totals[RACERS];
    int alike = 0;
    pthread_barrier_init(&start, NULL, RACERS);
    for (int i = 0; i < RACERS; i++)
        pthread_create(&threads[i], NULL, race, &totals[i]);
    for (int i = 0; i < RACERS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < RACERS; i++)
        alike += totals[i] == totals[0];
    printf("%d %zu\n", alike, totals[0]);
    return 0;
}
