/*
 * Promises, and a program that keeps them: PROMISE(name) { ... } registers a test; the program runs all of
 * them, or those that its arguments name, each in a process of its own. Exit status 0, 1 for a broken
 * promise, 77 when the single promise that was asked for could not be tried here; why is on standard output.
 */
#ifndef VCUDA_TESTS_CHECK_H
#define VCUDA_TESTS_CHECK_H

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define SKIPPED 77
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED true /* its own memory and stack leave no room for experiments with ours */
#else
#define SANITIZED false
#endif

#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                          \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

#define CHECK_EQUAL(found, expected)                                                                         \
    do {                                                                                                     \
        uint64_t found_ = (uint64_t)(found), expected_ = (uint64_t)(expected);                               \
        if (found_ != expected_) {                                                                           \
            fprintf(stderr, "%s:%d: %s is %" PRIu64 ", not %" PRIu64 "\n", __FILE__, __LINE__, #found,       \
                    found_, expected_);                                                                      \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

#define SKIP(...)                                                                                            \
    do {                                                                                                     \
        printf("skipped: " __VA_ARGS__);                                                                     \
        printf("\n");                                                                                        \
        exit(SKIPPED);                                                                                       \
    } while (0)

struct promise {
    const char *name;
    void (*keep)(void);
};
static struct promise promises[100];
static int promise_count;

#define PROMISE(name)                                                                                        \
    static void name(void);                                                                                  \
    __attribute__((constructor)) static void register_##name(void) {                                         \
        promises[promise_count++] = (struct promise){#name, name};                                           \
    }                                                                                                        \
    static void name(void)

/* A child that does not outlive its parent. */
static inline pid_t start(void (*run)(void *), void *data) {
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        run(data);
        exit(0);
    }
    return child;
}

/* Whether the child ended by itself with 0. */
static inline bool ended_well(pid_t child) {
    int status;
    while (waitpid(child, &status, 0) < 0)
        CHECK(errno == EINTR);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static inline void kill_and_wait(pid_t child) {
    CHECK(child > 0);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
}

static void keep_in_child(void *data) {
    setpgid(0, 0); /* with all that it starts */
    ((struct promise *)data)->keep();
}

static inline int keep_promises(int argc, char **argv) {
    int worst = 0;
    for (int i = 0; i < promise_count; i++) {
        bool wanted = argc < 2;
        for (int argument = 1; argument < argc; argument++)
            wanted |= strcmp(argv[argument], promises[i].name) == 0;
        if (!wanted)
            continue;
        pid_t child = start(keep_in_child, &promises[i]);
        int status;
        waitpid(child, &status, 0);
        kill(-child, SIGKILL);
        int code = WIFEXITED(status) ? WEXITSTATUS(status) : 1;
        if (code != 0 && code != SKIPPED)
            fprintf(stderr, "broken: %s (%s %d)\n", promises[i].name, WIFEXITED(status) ? "status" : "signal",
                    WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
        if (code != 0 && (code != SKIPPED || argc == 2))
            worst = code;
    }
    return worst;
}

#endif
