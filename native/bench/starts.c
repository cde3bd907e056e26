/*
 * Many processes that call cuInit at the same instant: `starts PROCESSES` prints the milliseconds from that
 * instant to the last one's return, and to the middle one's; then, of each call, the microseconds of CPU time
 * and the page faults, on average. CPU time depends less than the rest on what else the machine does.
 */
#ifndef __CUDA_API_VERSION_INTERNAL
#define __CUDA_API_VERSION_INTERNAL
#endif
#include <cuda.h>
#include <linux/futex.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MOST 1000

struct shared {
    uint32_t ready, go, failed;
    uint64_t cpu_ns, faults; /* of all */
    uint64_t start_ns, took_ns[MOST];
};

static uint64_t now_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static uint64_t faults(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (uint64_t)(usage.ru_minflt + usage.ru_majflt);
}

static int compare(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* A process of its own: what `starts PROCESSES` runs, with the shared memory as its standard input. */
static int child(int index) {
    struct shared *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, 0, 0);
    if (shared == MAP_FAILED)
        return 1;
    __atomic_fetch_add(&shared->ready, 1, __ATOMIC_SEQ_CST);
    while (!__atomic_load_n(&shared->go, __ATOMIC_SEQ_CST))
        syscall(SYS_futex, &shared->go, FUTEX_WAIT, 0, NULL, NULL, 0);
    uint64_t cpu_before = now_ns(CLOCK_PROCESS_CPUTIME_ID), faults_before = faults();
    CUresult result = cuInit(0);
    uint64_t cpu_ns = now_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu_before;
    shared->took_ns[index] = now_ns(CLOCK_MONOTONIC) - shared->start_ns;
    __atomic_fetch_add(&shared->cpu_ns, cpu_ns, __ATOMIC_SEQ_CST);
    __atomic_fetch_add(&shared->faults, faults() - faults_before, __ATOMIC_SEQ_CST);
    if (result != CUDA_SUCCESS)
        __atomic_fetch_add(&shared->failed, 1, __ATOMIC_SEQ_CST);
    /* Nobody leaves before the last one has come: all are alive at once. */
    __atomic_fetch_add(&shared->ready, 1, __ATOMIC_SEQ_CST);
    return pause();
}

int main(int argc, char **argv) {
    extern char **environ;
    static pid_t pids[MOST];
    if (argc == 3 && strcmp(argv[1], "child") == 0)
        return child(atoi(argv[2]));
    int count = argc == 2 ? atoi(argv[1]) : 0;
    if (count < 1 || count > MOST) {
        fprintf(stderr, "usage: starts PROCESSES\n");
        return 2;
    }
    int memory = memfd_create("starts", 0);
    if (memory < 0 || ftruncate(memory, sizeof(struct shared)) != 0 || dup2(memory, 0) != 0)
        return 1;
    struct shared *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    if (shared == MAP_FAILED)
        return 1;
    for (int i = 0; i < count; i++) {
        char number[16];
        snprintf(number, sizeof number, "%d", i);
        char *command[] = {argv[0], "child", number, NULL};
        if (posix_spawn(&pids[i], "/proc/self/exe", NULL, NULL, command, environ) != 0)
            return 1;
    }
    while (__atomic_load_n(&shared->ready, __ATOMIC_SEQ_CST) < (uint32_t)count)
        usleep(1000);
    usleep(20000); /* until all sleep */
    shared->start_ns = now_ns(CLOCK_MONOTONIC);
    __atomic_store_n(&shared->go, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, &shared->go, FUTEX_WAKE, count, NULL, NULL, 0);
    while (__atomic_load_n(&shared->ready, __ATOMIC_SEQ_CST) < 2 * (uint32_t)count)
        usleep(1000);
    for (int i = 0; i < count; i++)
        kill(pids[i], 9);
    while (wait(NULL) > 0)
        ;
    qsort(shared->took_ns, (size_t)count, sizeof *shared->took_ns, compare);
    printf("%.3f %.3f %.2f %.2f\n", (double)shared->took_ns[count - 1] / 1e6,
           (double)shared->took_ns[count / 2] / 1e6, (double)shared->cpu_ns / 1e3 / count,
           (double)shared->faults / count);
    return shared->failed != 0;
}
