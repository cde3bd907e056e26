/* simgpu-stat: the simulated machine as JSON, for tests and tools. Looks only, and joins nothing. */
#include <stdio.h>

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

static void print_card(const struct sim_machine *machine, uint32_t index) {
    const struct sim_card *card = &machine->cards[index];
    printf("%s\n  {\"index\": %u, \"uuid\": \"", index ? "," : "", index);
    print_uuid(card->uuid);
    printf("\", \"name\": \"%s\", \"total\": %llu, \"reserved\": %llu, \"used\": %llu, \"peak\": %llu, "
           "\"busy_ns\": %llu, \"lost\": %s, \"processes\": [",
           card->model.name, (unsigned long long)card->model.memory_bytes,
           (unsigned long long)card->model.reserved_bytes, (unsigned long long)card->used_bytes,
           (unsigned long long)card->peak_bytes, (unsigned long long)card->timeline.busy_ns,
           card->lost ? "true" : "false");
    print_processes(machine, card);
    printf("]}");
}

int main(void) {
    static char text[1 << 20]; /* nothing is written while the machine is locked: a reader may be slow */
    const char *why;
    setvbuf(stdout, text, _IOFBF, sizeof text);
    struct sim_machine *machine = sim_machine_open(&why);
    if (!machine) {
        fprintf(stderr, "simgpu-stat: %s (%s)\n", why, sim_machine_directory());
        return 1;
    }
    sim_machine_lock();
    sim_machine_reap();
    for (uint32_t i = 0; i < machine->card_count; i++)
        sim_timeline_advance(&machine->cards[i].timeline, sim_now_ns());
    printf("{\"driver\": \"%s\", \"cuda\": %u, \"cards\": [", machine->driver_version, machine->cuda_version);
    for (uint32_t i = 0; i < machine->card_count; i++)
        print_card(machine, i);
    printf("\n]}\n");
    sim_machine_unlock();
    return 0;
}
