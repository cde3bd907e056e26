/*
 * The simulated machine as NVML sees it: copies of its cards, taken under its lock, after the dead have been
 * reaped and the model of time has been brought to now. Looking joins nobody: a process that only asks NVML
 * holds no memory and appears in no list.
 */
#include "nvml_state.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "machine.h"

_Static_assert(SIM_NVML_CARDS >= SIM_CARDS && SIM_NVML_PROCESSES >= SIM_PROCESSES,
               "NVML's copies are too small");
_Static_assert(SIM_NVML_SAMPLES >= SIM_SAMPLES, "NVML's copies are too small");

static struct sim_machine *machine_now(void) {
    struct sim_machine *machine = sim_machine();
    const char *why;
    return machine ? machine : sim_machine_open(&why);
}

int sim_nvml_card_count(void) {
    const struct sim_machine *machine = machine_now();
    return machine ? (int)machine->card_count : -1;
}

const char *sim_nvml_driver_version(void) {
    const struct sim_machine *machine = machine_now();
    return machine ? machine->driver_version : "";
}

int sim_nvml_cuda_version(void) {
    const struct sim_machine *machine = machine_now();
    return machine ? (int)machine->cuda_version : 0;
}

static void copy_model(const struct sim_card *from, struct sim_nvml_card *card) {
    const struct sim_model *model = &from->model;
    const unsigned char *u = from->uuid;
    memcpy(card->name, model->nvml_name, sizeof card->name);
    snprintf(card->uuid, sizeof card->uuid,
             "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1], u[2],
             u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
    card->total_bytes = model->memory_bytes;
    card->reserved_bytes = model->reserved_bytes;
    card->sms = model->sm_count;
    card->major = model->major;
    card->minor = model->minor;
    card->max_sm_mhz = model->max_sm_mhz;
    card->pci_device_id = model->pci_device_id;
    card->bandwidth_gbs = model->bandwidth_gbs;
    card->mig_capable = model->mig_capable != 0;
}

static void copy_processes(const struct sim_machine *machine, const struct sim_card *from, uint64_t interval,
                           struct sim_nvml_card *card) {
    card->process_count = 0;
    for (uint32_t i = 0; i < SIM_PROCESSES; i++) {
        if (!machine->processes[i].in_use || !from->held[i])
            continue;
        card->processes[card->process_count++] = (struct sim_nvml_process){
            .pid = machine->processes[i].pid,
            .pid_namespace = machine->processes[i].pid_namespace,
            .used_bytes = from->held[i],
            .sm_percent = sim_process_utilisation(&from->timeline, i, interval),
        };
    }
}

bool sim_nvml_read(uint32_t index, struct sim_nvml_card *card) {
    struct sim_machine *machine = machine_now();
    if (!machine || index >= machine->card_count)
        return false;
    sim_machine_lock();
    sim_machine_reap();
    struct sim_card *from = &machine->cards[index];
    uint64_t now = sim_now_ns();
    sim_timeline_advance(&from->timeline, now);
    card->index = index;
    copy_model(from, card);
    card->pci_domain = 0;
    card->pci_bus = index + 1;
    card->used_bytes = from->used_bytes;
    card->lost = from->lost != 0;
    card->sm_percent = sim_utilisation(&from->timeline, now);
    card->memory_percent = sim_copy_utilisation(&from->timeline, now);
    card->busy_ns = from->timeline.busy_ns;
    card->since_ns = now;
    copy_processes(machine, from, now / SIM_SAMPLE_NS - 1, card);
    sim_machine_unlock();
    sim_nvml_tell_pids(card);
    return true;
}

uint32_t sim_nvml_samples(uint32_t index, struct sim_nvml_sample samples[SIM_NVML_SAMPLES]) {
    struct sim_machine *machine = machine_now();
    if (!machine || index >= machine->card_count)
        return 0;
    struct timespec wall;
    clock_gettime(CLOCK_REALTIME, &wall);
    sim_machine_lock();
    struct sim_timeline *timeline = &machine->cards[index].timeline;
    uint64_t now = sim_now_ns(), wall_ns = (uint64_t)wall.tv_sec * 1000000000 + (uint64_t)wall.tv_nsec;
    sim_timeline_advance(timeline, now);
    uint64_t current = now / SIM_SAMPLE_NS;
    uint32_t count = 0;
    for (uint64_t i = current > SIM_SAMPLES - 1 ? current - (SIM_SAMPLES - 1) : 0; i < current; i++) {
        /* Those who ask for an interval by its own end get that interval: the functions look at the one
         * before. */
        uint64_t end = (i + 1) * SIM_SAMPLE_NS;
        samples[count++] = (struct sim_nvml_sample){
            .end_us = (wall_ns - (now - end)) / 1000,
            .sm_percent = sim_utilisation(timeline, end),
            .memory_percent = sim_copy_utilisation(timeline, end),
        };
    }
    sim_machine_unlock();
    return count;
}
