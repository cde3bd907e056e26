/* What plain clients of the driver API have in common: a call that fails ends them, and they can be led step
 * by step. */
#ifndef VCUDA_TESTS_CLIENT_H
#define VCUDA_TESTS_CLIENT_H

#include <cuda.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static inline void must(CUresult result, const char *what) {
    const char *name = "unknown";
    if (result == CUDA_SUCCESS)
        return;
    cuGetErrorName(result, &name);
    fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, name);
    exit(1);
}
#define MUST(call) must(call, #call)

/* Say that a step is done, and wait for a line on standard input. */
static inline void step(const char *name) {
    char line[16];
    printf("%s\n", name);
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin))
        exit(2);
}

#endif
