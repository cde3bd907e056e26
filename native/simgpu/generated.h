/*
 * What stubs.py makes of NVIDIA's headers, beside a stub for each function. No header of NVIDIA's is included
 * here: the stubs declare every function of theirs without parameters.
 */
#ifndef SIM_GENERATED_H
#define SIM_GENERATED_H

#include <stddef.h>

/* One version of a function, as cuGetProcAddress finds it: sorted by name, then by version. */
struct sim_proc {
    const char *name;
    int version;                 /* of CUDA, in which it came */
    void *function, *per_thread; /* per_thread: NULL where there is no such variant */
};

struct sim_error {
    int number;
    const char *name, *text;
};

extern const struct sim_proc sim_procs[];
extern const size_t sim_proc_count;
extern const struct sim_error sim_errors[];
extern const size_t sim_error_count;

#endif
