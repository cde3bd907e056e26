/*
 * What the simulated card 0 has been given to do and has done, in one line of JSON: the clock, operations
 * submitted (kernels, copies, events, waits; of all processes, ever), and GPU time. Looks only.
 * build: native/simgpu/machine.c native/simgpu/timeline.c native/simgpu/models.c -Inative/simgpu -Ibuild/gen
 */
#include <stdio.h>

#include "machine.h"

int main(void) {
    const char *why;
    struct sim_machine *machine = sim_machine_open(&why);
    if (!machine) {
        fprintf(stderr, "limiter_stat: %s\n", why);
        return 1;
    }
    sim_machine_lock();
    sim_machine_reap();
    struct sim_timeline *timeline = &machine->cards[0].timeline;
    sim_timeline_advance(timeline, sim_now_ns());
    uint64_t now = timeline->now_ns, operations = timeline->sequence, busy = timeline->busy_ns;
    sim_machine_unlock();
    printf("{\"now_ns\": %llu, \"operations\": %llu, \"busy_ns\": %llu}\n", (unsigned long long)now,
           (unsigned long long)operations, (unsigned long long)busy);
    return 0;
}
