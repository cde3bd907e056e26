/*
 * The system calls of cuInit, counted: `traced PROCESSES` has so many processes call it in step, each making
 * one system call before any makes its next, and prints how many they made together: of all kinds, and of
 * some.
 *
 * In step they meet wherever they can, more than on any machine of many cores.
 */
#include <cuda.h>
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MOST 500
#define SKIPPED 77 /* as in check.h */

static const struct {
    const char *name;
    uint64_t number;
} kinds[] = {
    {"openat", SYS_openat},     {"readlinkat", SYS_readlinkat},
    {"fcntl", SYS_fcntl},       {"fallocate", SYS_fallocate},
#ifdef SYS_readlink
    {"readlink", SYS_readlink},
#endif
};
#define KINDS (sizeof kinds / sizeof *kinds)

static uint64_t total, of_kind[KINDS];

static void count(pid_t pid) {
    struct __ptrace_syscall_info info;
    if (ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof info, &info) < 0 || info.op != PTRACE_SYSCALL_INFO_ENTRY)
        return;
    total++;
    for (size_t i = 0; i < KINDS; i++)
        of_kind[i] += info.entry.nr == kinds[i].number;
}

/* Stops before and after, for the counting to begin and end. */
static void child(void) {
    if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0)
        _exit(SKIPPED);
    raise(SIGSTOP);
    CUresult result = cuInit(0);
    if (result != CUDA_SUCCESS)
        _exit(1);
    raise(SIGSTOP);
    pause();
}

/* How a process that was let go comes to its next stop. */
enum progress { MOVED, AT_THE_END, ENDED };

static enum progress await(pid_t pid, int *exit_status) {
    int status;
    if (waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status)) {
        *exit_status = WIFEXITED(status) ? WEXITSTATUS(status) : 1;
        return ENDED;
    }
    if (WSTOPSIG(status) == (SIGTRAP | 0x80))
        count(pid);
    return WSTOPSIG(status) == SIGSTOP ? AT_THE_END : MOVED;
}

/* Lead all of them to their next stop of their own, in step; the exit status of one that ends before, or 0.
 */
static int lead(const pid_t *pids, int processes) {
    static bool done[MOST];
    int exit_status = 0;
    for (int left = processes; left > 0;)
        for (int i = 0; i < processes; i++) {
            if (done[i])
                continue;
            if (ptrace(PTRACE_SYSCALL, pids[i], NULL, NULL) != 0)
                return SKIPPED;
            enum progress progress = await(pids[i], &exit_status);
            if (progress == ENDED)
                return exit_status ? exit_status : 1;
            done[i] = progress == AT_THE_END;
            left -= done[i];
        }
    return 0;
}

int main(int argc, char **argv) {
    static pid_t pids[MOST];
    int processes = argc == 2 ? atoi(argv[1]) : 0;
    if (processes < 1 || processes > MOST) {
        fprintf(stderr, "usage: traced PROCESSES\n");
        return 2;
    }
    for (int i = 0; i < processes; i++) {
        pids[i] = fork();
        if (pids[i] == 0)
            child();
    }
    int result = 0;
    for (int i = 0; result == 0 && i < processes; i++)
        if (await(pids[i], &result) == AT_THE_END &&
            ptrace(PTRACE_SETOPTIONS, pids[i], NULL, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL) != 0)
            result = SKIPPED;
    result = result ? result : lead(pids, processes);
    for (int i = 0; i < processes; i++)
        kill(pids[i], SIGKILL);
    if (result == SKIPPED)
        printf("processes cannot be traced here\n");
    if (result)
        return result;
    printf("{\"all\": %llu", (unsigned long long)total);
    for (size_t i = 0; i < KINDS; i++)
        printf(", \"%s\": %llu", kinds[i].name, (unsigned long long)of_kind[i]);
    printf("}\n");
    return 0;
}
