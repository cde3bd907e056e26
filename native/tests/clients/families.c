/*
 * fork, vfork, exec and threads around CUDA: `families WAY`. Prints one line a step and waits for a line
 * after it.
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client.h"

#define MIB ((size_t)1 << 20)

static CUdeviceptr hold(size_t bytes) {
    CUdevice device;
    CUcontext context;
    CUdeviceptr at;
    MUST(cuInit(0));
    MUST(cuDeviceGet(&device, 0));
    MUST(cuDevicePrimaryCtxRetain(&context, device));
    MUST(cuCtxSetCurrent(context));
    MUST(cuMemAlloc(&at, bytes));
    return at;
}

/* A child that goes on without exec has no CUDA, and its end takes nothing of its parent's. */
static void forked(void) {
    CUdeviceptr at = hold(4 * MIB), more;
    step("parent holds");
    pid_t child = fork();
    if (child == 0) {
        CUresult result = cuMemAlloc(&more, 2 * MIB);
        step(result == CUDA_SUCCESS ? "child was given memory" : "child has no CUDA");
        _exit(0);
    }
    waitpid(child, NULL, 0);
    step("child gone");
    MUST(cuMemAlloc(&more, 2 * MIB));
    step("parent goes on");
    MUST(cuMemFree(more));
    MUST(cuMemFree(at));
    step("parent freed");
}

/* A child that comes before CUDA is initialised has its own. */
static void forked_early(void) {
    int ready[2];
    char byte = 0;
    if (pipe(ready))
        exit(1);
    pid_t child = fork();
    if (child == 0) {
        hold(6 * MIB);
        if (write(ready[1], &byte, 1) != 1)
            _exit(1);
        pause();
        _exit(0);
    }
    hold(4 * MIB);
    if (read(ready[0], &byte, 1) != 1)
        exit(1);
    step("both hold");
    kill(child, 9);
    waitpid(child, NULL, 0);
    step("child killed");
}

/* Between vfork and exec the child runs in its parent's memory; it must not take its parent's share along. */
static void vforked(void) {
    CUdeviceptr at = hold(4 * MIB);
    pid_t child = vfork();
    if (child == 0) {
        execl("/bin/true", "true", (char *)NULL);
        _exit(127);
    }
    int status = 1;
    waitpid(child, &status, 0);
    if (status)
        exit(1);
    step("parent holds after vfork and exec");
    MUST(cuMemFree(at));
    step("parent freed");
}

/* exec keeps the pid and loses everything else. */
static void executed(char *self) {
    hold(4 * MIB);
    step("holds");
    execl(self, self, "after", (char *)NULL);
    exit(127);
}

static void after(void) {
    step("a new program of the same pid");
    hold(2 * MIB);
    step("holds anew");
}

static void *work(void *data) {
    CUcontext context = *(CUcontext *)data;
    CUdeviceptr at[16];
    MUST(cuCtxSetCurrent(context));
    for (int round = 0; round < 200; round++) {
        for (int i = 0; i < 16; i++)
            MUST(cuMemAlloc(&at[i], (size_t)(1 + (round + i) % 5) * MIB / 2));
        for (int i = 0; i < 16; i++)
            MUST(cuMemFree(at[(i + round) % 16]));
    }
    return NULL;
}

static void threads(void) {
    CUdeviceptr at = hold(4 * MIB);
    CUcontext context;
    pthread_t thread[8];
    MUST(cuCtxGetCurrent(&context));
    for (int i = 0; i < 8; i++)
        pthread_create(&thread[i], NULL, work, &context);
    for (int i = 0; i < 8; i++)
        pthread_join(thread[i], NULL);
    step("eight threads have allocated and freed");
    MUST(cuMemFree(at));
    step("freed");
}

int main(int argc, char **argv) {
    const char *way = argc > 1 ? argv[1] : "";
    if (!strcmp(way, "fork"))
        forked();
    else if (!strcmp(way, "fork-early"))
        forked_early();
    else if (!strcmp(way, "vfork"))
        vforked();
    else if (!strcmp(way, "exec"))
        executed(argv[0]);
    else if (!strcmp(way, "after"))
        after();
    else if (!strcmp(way, "threads"))
        threads();
    else
        return 2;
    return 0;
}
