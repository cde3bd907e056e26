/*
 * simgpu-stat: the simulated machine as JSON, for tests and tools. Looks only, and joins nothing.
 *
 * `simgpu-stat SECONDS` looks again and again, a line each time, until its output is closed. A card's now_ns
 * is the instant (CLOCK_MONOTONIC) as of which its counts are exact, however late the look was.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "machine.h"

static void print_uuid(const unsigned char *u) {
    printf("GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1], u[2], u[3],
           u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
}

/* Processes that hold nothing and have run nothing on this card are no processes of it. */
static void print_processes(const struct sim_machine *machine, const struct sim_card *card) {
    const char *separator = "";
    for (uint32_t i = 0; i < machine->processes_high; i++) {
        const struct sim_timeline_process *work = &card->timeline.processes[i];
        if (!machine->processes[i].in_use || (!card->held[i] && !work->kernels && !work->busy_ns))
            continue;
        printf("%s{\"pid\": %d, \"used\": %llu, \"busy_ns\": %llu, \"kernels\": %llu}", separator,
               machine->processes[i].pid, (unsigned long long)card->held[i],
               (unsigned long long)work->busy_ns, (unsigned long long)work->kernels);
        separator = ", ";
    }
}

static void print_card(const struct sim_machine *machine, uint32_t index, const char *separator) {
    const struct sim_card *card = &machine->cards[index];
    printf("%s%s{\"index\": %u, \"uuid\": \"", index ? "," : "", separator, index);
    print_uuid(card->uuid);
    printf("\", \"name\": \"%s\", \"total\": %llu, \"reserved\": %llu, \"used\": %llu, \"peak\": %llu, "
           "\"now_ns\": %llu, \"busy_ns\": %llu, \"lost\": %s, \"processes\": [",
           card->model.name, (unsigned long long)card->model.memory_bytes,
           (unsigned long long)card->model.reserved_bytes, (unsigned long long)card->used_bytes,
           (unsigned long long)card->peak_bytes, (unsigned long long)card->timeline.now_ns,
           (unsigned long long)card->timeline.busy_ns, card->lost ? "true" : "false");
    print_processes(machine, card);
    printf("]}");
}

static void look(struct sim_machine *machine, const char *separator) {
    sim_machine_lock();
    sim_machine_reap();
    for (uint32_t i = 0; i < machine->card_count; i++)
        sim_timeline_advance(&machine->cards[i].timeline, sim_now_ns());
    printf("{\"driver\": \"%s\", \"cuda\": %u, \"cards\": [", machine->driver_version, machine->cuda_version);
    for (uint32_t i = 0; i < machine->card_count; i++)
        print_card(machine, i, separator);
    printf("%s]}\n", *separator == ' ' ? "" : "\n");
    sim_machine_unlock();
}

/* At whole multiples of the interval, whatever a look takes. */
static void look_every(struct sim_machine *machine, uint64_t interval_ns) {
    uint64_t next_ns = sim_now_ns();
    for (;;) {
        look(machine, " ");
        if (fflush(stdout) != 0)
            return;
        uint64_t now_ns = sim_now_ns();
        next_ns += interval_ns;
        if (next_ns < now_ns)
            next_ns = now_ns;
        struct timespec until = {(time_t)(next_ns / 1000000000), (long)(next_ns % 1000000000)};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
    }
}

int main(int argc, char **argv) {
    static char text[1 << 20]; /* nothing is written while the machine is locked: a reader may be slow */
    double seconds = argc == 2 ? strtod(argv[1], NULL) : 0;
    const char *why;
    if (argc > 2 || (argc == 2 && !(seconds >= 0.001 && seconds <= 3600))) {
        fprintf(stderr, "usage: simgpu-stat [SECONDS, 0.001 to 3600]\n");
        return 2;
    }
    setvbuf(stdout, text, _IOFBF, sizeof text);
    struct sim_machine *machine = sim_machine_open(&why);
    if (!machine) {
        fprintf(stderr, "simgpu-stat: %s (%s)\n", why, sim_machine_directory());
        return 1;
    }
    if (seconds > 0)
        look_every(machine, (uint64_t)(seconds * 1e9));
    else
        look(machine, "\n  ");
    return 0;
}
