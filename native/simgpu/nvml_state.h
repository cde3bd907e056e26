/*
 * What NVML's functions need of the simulated machine: plain copies, taken under its lock by nvml_state.c,
 * the one file of this library that knows how the machine is kept.
 */
#ifndef SIM_NVML_STATE_H
#define SIM_NVML_STATE_H

#include <stdbool.h>
#include <stdint.h>

#define SIM_NVML_CARDS 16
#define SIM_NVML_PROCESSES 256
#define SIM_NVML_SAMPLES 32
#define SIM_EXPORT __attribute__((visibility("default")))

struct sim_nvml_process {
    int32_t pid;
    uint64_t pid_namespace; /* in which it has that pid, until nvml_pids.c has told the caller's */
    uint64_t used_bytes;
    uint32_t sm_percent;
};

struct sim_nvml_card {
    uint32_t index;
    char name[64], uuid[64];
    uint64_t total_bytes, used_bytes;
    uint64_t reserved_bytes;    /* the driver's own, part of neither used nor free */
    uint32_t sms, major, minor; /* compute capability */
    uint32_t max_sm_mhz, bandwidth_gbs;
    uint32_t pci_device_id, pci_domain, pci_bus;
    bool mig_capable, lost;
    uint32_t sm_percent, memory_percent; /* of the last sample interval */
    uint64_t busy_ns, since_ns;          /* of the card's life, the time that a kernel ran */
    uint32_t process_count;
    struct sim_nvml_process processes[SIM_NVML_PROCESSES];
};

/* One interval of the card's life. */
struct sim_nvml_sample {
    uint64_t end_us; /* wall clock */
    uint32_t sm_percent, memory_percent;
};

/* How many cards the machine has; -1 where its state cannot be had. */
int sim_nvml_card_count(void);
/* Copy card `index` as it is now. */
bool sim_nvml_read(uint32_t index, struct sim_nvml_card *card);
/* The whole intervals that are remembered, oldest first; returns how many. */
uint32_t sim_nvml_samples(uint32_t index, struct sim_nvml_sample samples[SIM_NVML_SAMPLES]);
/* The driver's version and the CUDA version that goes with it (1000 * major + 10 * minor). */
const char *sim_nvml_driver_version(void);
int sim_nvml_cuda_version(void);

/* nvml_pids.c: make the pids of a card's processes the caller's; those that it cannot see are left out. */
void sim_nvml_tell_pids(struct sim_nvml_card *card);

/* nvml_system.c */
bool sim_nvml_initialised(void);
/* The card's index behind a handle, or -1. */
struct nvmlDevice_st;
int sim_nvml_index(const struct nvmlDevice_st *device);
struct nvmlDevice_st *sim_nvml_handle(uint32_t index);

#endif
