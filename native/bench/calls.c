/*
 * What calls cost: `calls CASE THREADS PROCESSES SECONDS` prints nanoseconds per call (for allocations: per
 * pair of allocation and free) as the calling thread sees it, the least of many short batches with one
 * caller, else the mean.
 *
 * Run with the empty driver, with and without the shim: the difference is the shim's. Cases:
 *   launch  launch-default  launch-ex  launch-mixed  graph-launch  alloc  alloc-small  info  dlsym
 */
#ifndef __CUDA_API_VERSION_INTERNAL
#define __CUDA_API_VERSION_INTERNAL
#endif
#include <cuda.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BATCH 2000
#define REFILL_US                                                                                            \
    20000 /* after a batch of launches, of 2 us of GPU time each, a share of 30 % is full again */

static void must(CUresult result, const char *what) {
    if (result != CUDA_SUCCESS) {
        fprintf(stderr, "calls: %s: error %d\n", what, (int)result);
        exit(1);
    }
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* ---- the cases ---- */

struct caller {
    CUcontext context;
    CUstream stream[4];
    CUfunction function;
    void *handle;
};

static void launch_on(const struct caller *self, CUstream stream, unsigned int blocks) {
    must(cuLaunchKernel(self->function, blocks, 1, 1, 128, 1, 1, 0, stream, NULL, NULL), "cuLaunchKernel");
}
static void launch(const struct caller *self, unsigned int i) {
    (void)i;
    launch_on(self, self->stream[0], 64);
}
static void launch_default(const struct caller *self, unsigned int i) {
    (void)i;
    launch_on(self, NULL, 64);
}
/* Sixteen kinds of kernel on four streams. */
static void launch_mixed(const struct caller *self, unsigned int i) {
    launch_on(self, self->stream[i % 4], 1U << i % 16);
}
static void launch_ex(const struct caller *self, unsigned int i) {
    CUlaunchConfig config = {64, 1, 1, 128, 1, 1, 0, self->stream[0], NULL, 0};
    (void)i;
    must(cuLaunchKernelEx(&config, self->function, NULL, NULL), "cuLaunchKernelEx");
}
static void graph_launch(const struct caller *self, unsigned int i) {
    (void)i;
    must(cuGraphLaunch((CUgraphExec)self->function, self->stream[0]), "cuGraphLaunch");
}
static void alloc_bytes(size_t bytes) {
    CUdeviceptr address;
    must(cuMemAlloc_v2(&address, bytes), "cuMemAlloc");
    must(cuMemFree_v2(address), "cuMemFree");
}
static void alloc(const struct caller *self, unsigned int i) {
    (void)self, (void)i;
    alloc_bytes((size_t)2 << 20);
}
static void alloc_small(const struct caller *self, unsigned int i) {
    (void)self, (void)i;
    alloc_bytes(4096);
}
static void info(const struct caller *self, unsigned int i) {
    size_t free_bytes, total_bytes;
    (void)self, (void)i;
    must(cuMemGetInfo_v2(&free_bytes, &total_bytes), "cuMemGetInfo");
}
static void look_up(const struct caller *self, unsigned int i) {
    (void)i;
    if (!dlsym(self->handle, "strlen"))
        exit(1);
}

static const struct {
    const char *name;
    void (*call)(const struct caller *, unsigned int);
} cases[] = {
    {"launch", launch},
    {"launch-default", launch_default},
    {"launch-ex", launch_ex},
    {"launch-mixed", launch_mixed},
    {"graph-launch", graph_launch},
    {"alloc", alloc},
    {"alloc-small", alloc_small},
    {"info", info},
    {"dlsym", look_up},
};

/* ---- callers ---- */

struct shared {
    uint32_t ready, go;
    uint64_t calls, ns;
};
static struct shared *shared;
static void (*call)(const struct caller *, unsigned int);
static uint64_t duration_ns;
static useconds_t pause_us;
static uint32_t callers;

static void prepare(struct caller *self) {
    must(cuCtxCreate_v2(&self->context, 0, 0), "cuCtxCreate");
    for (int i = 0; i < 4; i++)
        must(cuStreamCreate(&self->stream[i], CU_STREAM_NON_BLOCKING), "cuStreamCreate");
    must(cuModuleGetFunction(&self->function, NULL, "spin"), "cuModuleGetFunction");
    self->handle = dlopen("libc.so.6", RTLD_NOW);
}

/* The least of many batches: what the call costs when nothing else happens on this machine. */
static double alone(const struct caller *self) {
    double least = 1e9;
    for (uint64_t end = now_ns() + duration_ns; now_ns() < end;) {
        uint64_t start = now_ns();
        for (unsigned int i = 0; i < BATCH; i++)
            call(self, i);
        double ns = (double)(now_ns() - start) / BATCH;
        least = ns < least ? ns : least;
        if (pause_us)
            usleep(pause_us);
    }
    return least;
}

/* All at once: the mean over all callers. */
static void together(const struct caller *self) {
    uint64_t calls = 0;
    __atomic_fetch_add(&shared->ready, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&shared->ready, __ATOMIC_SEQ_CST) < callers)
        usleep(100);
    uint64_t start = now_ns(), end = start + duration_ns;
    while (now_ns() < end)
        for (int i = 0; i < 100; i++, calls++)
            call(self, (unsigned int)i);
    __atomic_fetch_add(&shared->calls, calls, __ATOMIC_SEQ_CST);
    __atomic_fetch_add(&shared->ns, now_ns() - start, __ATOMIC_SEQ_CST);
}

static void *thread(void *context) {
    struct caller self = {0};
    must(cuCtxSetCurrent(context), "cuCtxSetCurrent");
    prepare(&self);
    together(&self);
    return NULL;
}

static void process(int threads) {
    struct caller self = {0};
    pthread_t ids[64];
    must(cuInit(0), "cuInit");
    prepare(&self);
    for (int i = 1; i < threads; i++)
        if (pthread_create(&ids[i], NULL, thread, self.context) != 0)
            exit(1);
    together(&self);
    for (int i = 1; i < threads; i++)
        pthread_join(ids[i], NULL);
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: calls CASE THREADS PROCESSES SECONDS\n");
        return 2;
    }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (strcmp(cases[i].name, argv[1]) == 0)
            call = cases[i].call;
    if (strstr(argv[1], "launch"))
        pause_us = REFILL_US;
    int threads = atoi(argv[2]), processes = atoi(argv[3]);
    duration_ns = (uint64_t)(atof(argv[4]) * 1e9);
    if (!call || threads < 1 || threads > 64 || processes < 1 || processes > 64) {
        fprintf(stderr, "calls: no such case, or too many callers\n");
        return 2;
    }
    callers = (uint32_t)(threads * processes);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        return 1;
    if (callers == 1) {
        struct caller self = {0};
        must(cuInit(0), "cuInit");
        prepare(&self);
        printf("%.2f\n", alone(&self));
        return 0;
    }
    for (int i = 1; i < processes; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            process(threads);
            _exit(0);
        }
        if (pid < 0)
            return 1;
    }
    process(threads);
    int status, failed = 0;
    while (wait(&status) > 0)
        failed |= status;
    printf("%.2f\n", (double)shared->ns / (double)shared->calls);
    return failed != 0;
}
