/*
 * Pids as the caller of NVML has them. A real driver knows the kernel's own number of each process and tells
 * it as the asking process's pid namespace has it; who cannot be seen from there is not told of. Here each
 * process has left its pid and its namespace, and a namespace's parent finds it in /proc.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nvml_state.h"
#include "pidns.h"

/* Where a process was found before, to look there first: all of /proc takes its time. */
static int32_t found_before[SIM_NVML_PROCESSES];

/* The pid of a process in its own, innermost namespace; 0 where it has ended. */
static int32_t inner_pid(int32_t process) {
    char path[64], line[256];
    int32_t pid = 0;
    snprintf(path, sizeof path, "/proc/%d/status", process);
    FILE *status = fopen(path, "re");
    while (status && !pid && fgets(line, sizeof line, status)) {
        const char *last = strncmp(line, "NSpid:", 6) == 0 ? strrchr(line, '\t') : NULL;
        if (last)
            pid = (int32_t)strtol(last, NULL, 10);
    }
    if (status)
        fclose(status);
    return pid;
}

static bool is(int32_t process, const struct sim_nvml_process *wanted) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/ns/pid", process);
    return sim_pid_namespace(path) == wanted->pid_namespace && inner_pid(process) == wanted->pid;
}

/* The pid here of a process of another namespace; 0 where it cannot be seen from here. */
static int32_t pid_here(const struct sim_nvml_process *wanted, uint32_t index) {
    int32_t before = __atomic_load_n(&found_before[index], __ATOMIC_RELAXED);
    if (before && is(before, wanted))
        return before;
    DIR *all = opendir("/proc");
    int32_t found = 0;
    const struct dirent *each = all ? readdir(all) : NULL;
    for (; each && !found; each = readdir(all)) {
        int32_t process = (int32_t)strtol(each->d_name, NULL, 10); /* 0: not a process */
        if (process > 0 && is(process, wanted))
            found = process;
    }
    if (all)
        closedir(all);
    __atomic_store_n(&found_before[index], found, __ATOMIC_RELAXED);
    return found;
}

void sim_nvml_tell_pids(struct sim_nvml_card *card) {
    uint64_t own = sim_pid_namespace("/proc/self/ns/pid");
    uint32_t kept = 0;
    for (uint32_t i = 0; i < card->process_count; i++) {
        struct sim_nvml_process process = card->processes[i];
        if (own && process.pid_namespace && process.pid_namespace != own)
            process.pid = pid_here(&process, i);
        if (process.pid)
            card->processes[kept++] = process;
    }
    card->process_count = kept;
}
