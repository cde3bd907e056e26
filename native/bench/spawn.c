/*
 * What it takes to run a program: `spawn SECONDS PRELOAD PROGRAM [ARGUMENT...]` runs it with and without
 * PRELOAD by turns and prints the milliseconds that it took, as medians: without, with, and of each pair's
 * difference.
 */
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>

#define MOST 20000

static double now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static double run(char **command, char **environment) {
    double start = now_ms();
    pid_t pid;
    int status;
    if (posix_spawnp(&pid, command[0], NULL, NULL, command, environment) != 0 ||
        waitpid(pid, &status, 0) != pid || status != 0) {
        fprintf(stderr, "spawn: %s failed\n", command[0]);
        exit(1);
    }
    return now_ms() - start;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *values, int count) {
    qsort(values, (size_t)count, sizeof *values, compare);
    return values[count / 2];
}

int main(int argc, char **argv) {
    extern char **environ;
    static double without[MOST], with[MOST], added[MOST];
    static char *preloaded[1024], preload[4096];
    int count = 0, variables = 0;
    if (argc < 4) {
        fprintf(stderr, "usage: spawn SECONDS PRELOAD PROGRAM [ARGUMENT...]\n");
        return 2;
    }
    while (environ[variables] && variables < 1000) {
        preloaded[variables] = environ[variables];
        variables++;
    }
    snprintf(preload, sizeof preload, "LD_PRELOAD=%s", argv[2]);
    preloaded[variables] = preload;
    for (double end = now_ms() + atof(argv[1]) * 1e3; now_ms() < end && count < MOST; count++) {
        /* Who goes first changes, so that neither has the other's warm caches to itself. */
        if (count % 2)
            with[count] = run(argv + 3, preloaded);
        without[count] = run(argv + 3, environ);
        if (count % 2 == 0)
            with[count] = run(argv + 3, preloaded);
        added[count] = with[count] - without[count];
    }
    double each = median(added, count);
    printf("%.4f %.4f %.4f\n", median(without, count), median(with, count), each);
    return 0;
}
