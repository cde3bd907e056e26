/*
 * A program that keeps a card at work in a given way: `cores OPTION=VALUE...`.
 *
 * It sets up, prints `ready PID...`, waits for a line on standard input, works until it is told to stop
 * (SIGTERM, or the end of standard input, or seconds=), prints what it did as one line of JSON, and waits for
 * the end of standard input, so that whoever counts the card's time can look once more. Options:
 *
 *   mode=sync|queue|streams4|graph|cooperative|launchex|ptds|service
 *   ns=N[,N...]   length of a kernel; of several, each launch draws one      mix=1   lengths from a heavy
 * tail blocks=N      of its grid       functions=N  different kernels      processes=N  that do the same
 *   seed=N        seconds=S         rest=AFTER,FOR  pause once, in seconds from the start
 *   pace=PART     mode=sync: work so much of the time, by its own will      period=S  mode=service
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cores.h"

#define PROCESSES 64

struct options options = {.mode = "sync",
                          .lengths_ns = {1000000},
                          .lengths = 1,
                          .seed = 1,
                          .blocks = 640,
                          .functions = 1,
                          .processes = 1,
                          .period = 0.02};
struct account *account;
volatile sig_atomic_t stopped;

static pid_t children[PROCESSES];

/* ---- the command line ---- */

static bool read_lengths(const char *text) {
    char *end;
    for (options.lengths = 0; options.lengths < LENGTHS; text = end + 1) {
        options.lengths_ns[options.lengths++] = strtoull(text, &end, 10);
        if (end == text || !options.lengths_ns[options.lengths - 1])
            return false;
        if (*end != ',')
            return *end == 0;
    }
    return false;
}

static bool read_number(const char *name, const char *text) {
    static const struct {
        const char *name;
        uint32_t *to;
    } numbers[] = {
        {"blocks", &options.blocks}, {"functions", &options.functions}, {"processes", &options.processes}};
    char *end;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        if (strcmp(name, numbers[i].name) == 0) {
            *numbers[i].to = (uint32_t)strtoul(text, &end, 10);
            return !*end && *numbers[i].to;
        }
    }
    static const struct {
        const char *name;
        double *to;
    } reals[] = {{"seconds", &options.seconds}, {"pace", &options.pace}, {"period", &options.period}};
    for (size_t i = 0; i < sizeof reals / sizeof *reals; i++) {
        if (strcmp(name, reals[i].name) == 0) {
            *reals[i].to = strtod(text, &end);
            return !*end && *reals[i].to > 0;
        }
    }
    return false;
}

static bool read_rest(const char *text) {
    char *end;
    options.rest_after = strtod(text, &end);
    if (*end != ',')
        return false;
    options.rest_for = strtod(end + 1, &end);
    return !*end && options.rest_after >= 0 && options.rest_for > 0;
}

static bool read_option(char *argument) {
    char *value = strchr(argument, '=');
    if (!value)
        return false;
    *value++ = 0;
    if (strcmp(argument, "mode") == 0)
        return mode_of(options.mode = value) != NULL;
    if (strcmp(argument, "ns") == 0)
        return read_lengths(value);
    if (strcmp(argument, "mix") == 0)
        return (options.mix = strcmp(value, "1") == 0);
    if (strcmp(argument, "seed") == 0)
        return (options.seed = strtoull(value, NULL, 10)) != 0;
    if (strcmp(argument, "rest") == 0)
        return read_rest(value);
    return read_number(argument, value) && options.processes <= PROCESSES;
}

/* ---- one process ---- */

bool go_on(void (*drain)(void)) {
    uint64_t began = account->began_ns, now = options.seconds > 0 || options.rest_for > 0 ? now_ns() : 0;
    if (options.rest_for > 0 && !account->resumed_ns && now > began + (uint64_t)(options.rest_after * 1e9)) {
        drain();
        sleep_until(began + (uint64_t)((options.rest_after + options.rest_for) * 1e9));
        account->resumed_ns = now_ns();
    }
    return !stopped && (options.seconds <= 0 || now < began + (uint64_t)(options.seconds * 1e9));
}

/* Sleeps until every process may start. */
__attribute__((noreturn)) static void work(int start) {
    char byte;
    work_set_up();
    __atomic_store_n(&account->ready, 1, __ATOMIC_RELEASE);
    if (read(start, &byte, 1) != 0) /* the end of the pipe is the sign */
        exit(1);
    account->began_ns = now_ns();
    mode_of(options.mode)();
    account->ended_ns = now_ns();
    __atomic_store_n(&account->ready, 2, __ATOMIC_RELEASE);
    for (;;) /* the card's count of this process ends with it */
        pause();
}

static void stop(int number) {
    (void)number;
    stopped = 1;
}

/* ---- who leads it ---- */

static void print(const struct account *one, pid_t pid) {
    printf(
        "{\"pid\": %d, \"launched\": %llu, \"kernels\": %llu, \"work_ns\": %llu, \"longest_ns\": %llu, "
        "\"began_ns\": %llu, \"ended_ns\": %llu, \"resumed_ns\": %llu, \"first_ns\": %llu, \"blocks\": %u, "
        "\"latency_ns\": [",
        (int)pid, (unsigned long long)one->launched, (unsigned long long)one->kernels,
        (unsigned long long)one->work_ns, (unsigned long long)one->longest_ns,
        (unsigned long long)one->began_ns, (unsigned long long)one->ended_ns,
        (unsigned long long)one->resumed_ns, (unsigned long long)one->first_ns, one->blocks);
    for (uint32_t i = 0; i < one->latencies; i++)
        printf("%s%llu", i ? ", " : "", (unsigned long long)one->latency_ns[i]);
    printf("]}");
}

/* Until all living ones have come so far; false if standard input has ended, or, unless `all`, nobody lives.
 */
static bool wait_for(struct account *accounts, uint32_t state, int timeout_ms) {
    for (;;) {
        uint32_t waited = 0, living = 0;
        for (uint32_t i = 0; i < options.processes; i++) {
            if (children[i] && waitpid(children[i], NULL, WNOHANG) == children[i])
                children[i] = 0;
            living += children[i] != 0;
            waited += children[i] && __atomic_load_n(&accounts[i].ready, __ATOMIC_ACQUIRE) < state;
        }
        if (!waited || stopped)
            return living != 0;
        poll(NULL, 0, timeout_ms);
    }
}

static void signal_children(int number) {
    for (uint32_t i = 0; i < options.processes; i++)
        if (children[i])
            kill(children[i], number);
}

/* Works until the line comes that says so, or the end, or a signal. */
static void wait_for_the_end(struct account *accounts) {
    struct pollfd input = {.fd = 0, .events = POLLIN};
    while (!stopped && poll(&input, 1, 100) == 0) {
        bool any = false;
        for (uint32_t i = 0; i < options.processes; i++)
            any |= children[i] && __atomic_load_n(&accounts[i].ready, __ATOMIC_ACQUIRE) < 2;
        if (!any)
            return;
    }
}

static int lead(struct account *accounts, int start) {
    char line[16];
    if (!wait_for(accounts, 1, 2))
        return 1;
    printf("ready");
    for (uint32_t i = 0; i < options.processes; i++)
        printf(" %d", (int)children[i]);
    printf("\n");
    fflush(stdout);
    bool go = !stopped && read(0, line, sizeof line) > 0;
    close(start);
    if (go)
        wait_for_the_end(accounts);
    signal_children(SIGTERM);
    stopped = 0;
    if (go)
        wait_for(accounts, 2, 2);
    printf("[");
    for (uint32_t i = 0; i < options.processes; i++) {
        printf(i ? ", " : "");
        print(&accounts[i], children[i]);
    }
    printf("]\n");
    fflush(stdout);
    while (read(0, line, sizeof line) > 0)
        continue;
    signal_children(SIGKILL);
    return 0;
}

int main(int argc, char **argv) {
    int start[2];
    for (int i = 1; i < argc; i++) {
        if (!read_option(argv[i])) {
            fprintf(stderr, "cores: %s: no such option, or not a value of it\n", argv[i]);
            return 2;
        }
    }
    struct account *accounts = mmap(NULL, options.processes * sizeof *accounts, PROT_READ | PROT_WRITE,
                                    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct sigaction action = {.sa_handler = stop, .sa_flags = SA_RESTART};
    sigaction(SIGTERM, &action, NULL);
    if (accounts == MAP_FAILED || pipe(start) != 0)
        return 1;
    for (uint32_t i = 0; i < options.processes; i++) {
        children[i] = fork();
        if (children[i] < 0)
            return 1;
        if (children[i] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            close(start[1]);
            account = &accounts[i];
            options.seed += i;
            work(start[0]);
        }
    }
    return lead(accounts, start[1]);
}
