/* NVML of the simulated machine: how a card is used, its memory, its time and its processes. */
#include "nvml_common.h"

#define NO_INSTANCE 0xffffffffU
#define MIB ((unsigned long long)1 << 20)

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, memory, &card);
    if (result == NVML_SUCCESS) {
        memory->total = card.total_bytes;
        memory->used = card.used_bytes + card.reserved_bytes; /* version 1 counts the driver's own as used */
        memory->free = card.total_bytes - memory->used;
    }
    return result;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, memory, &card);
    if (result != NVML_SUCCESS)
        return result;
    if (memory->version != nvmlMemory_v2)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    memory->total = card.total_bytes;
    memory->reserved = card.reserved_bytes;
    memory->used = card.used_bytes;
    memory->free = card.total_bytes - card.used_bytes - card.reserved_bytes;
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, nvmlBAR1Memory_t *memory) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, memory, &card);
    if (result == NVML_SUCCESS) {
        unsigned long long total = 256 * MIB;
        while (total < card.total_bytes) /* data-centre cards map all of their memory, in a power of two */
            total *= 2;
        *memory = (nvmlBAR1Memory_t){.bar1Total = total, .bar1Used = 2 * MIB, .bar1Free = total - 2 * MIB};
    }
    return result;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *utilization) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, utilization, &card);
    if (result == NVML_SUCCESS)
        *utilization = (nvmlUtilization_t){card.sm_percent, card.memory_percent};
    return result;
}

#define LIST(function, type, compute, ...)                                                                   \
    SIM_EXPORT nvmlReturn_t function(nvmlDevice_t device, unsigned int *count, type *infos) {                \
        struct sim_nvml_card card;                                                                           \
        nvmlReturn_t result = sim_nvml_look(device, count, &card);                                           \
        if (result != NVML_SUCCESS)                                                                          \
            return result;                                                                                   \
        if (*count && !infos)                                                                                \
            return NVML_ERROR_INVALID_ARGUMENT;                                                              \
        unsigned int found = (compute) ? card.process_count : 0, room = *count;                              \
        *count = found;                                                                                      \
        if (found > room)                                                                                    \
            return NVML_ERROR_INSUFFICIENT_SIZE;                                                             \
        for (unsigned int i = 0; i < found; i++)                                                             \
            infos[i] =                                                                                       \
                (type){(unsigned int)card.processes[i].pid, card.processes[i].used_bytes __VA_ARGS__};       \
        return NVML_SUCCESS;                                                                                 \
    }
#define WITH_INSTANCES , NO_INSTANCE, NO_INSTANCE

LIST(nvmlDeviceGetComputeRunningProcesses, nvmlProcessInfo_v1_t, true, )
LIST(nvmlDeviceGetComputeRunningProcesses_v2, nvmlProcessInfo_v2_t, true, WITH_INSTANCES)
LIST(nvmlDeviceGetComputeRunningProcesses_v3, nvmlProcessInfo_t, true, WITH_INSTANCES)
LIST(nvmlDeviceGetGraphicsRunningProcesses, nvmlProcessInfo_v1_t, false, )
LIST(nvmlDeviceGetGraphicsRunningProcesses_v2, nvmlProcessInfo_v2_t, false, WITH_INSTANCES)
LIST(nvmlDeviceGetGraphicsRunningProcesses_v3, nvmlProcessInfo_t, false, WITH_INSTANCES)
LIST(nvmlDeviceGetMPSComputeRunningProcesses, nvmlProcessInfo_v1_t, false, )
LIST(nvmlDeviceGetMPSComputeRunningProcesses_v2, nvmlProcessInfo_v2_t, false, WITH_INSTANCES)
LIST(nvmlDeviceGetMPSComputeRunningProcesses_v3, nvmlProcessInfo_t, false, WITH_INSTANCES)

/* One sample per process that has used the card in the last whole interval, of that interval's end. */
SIM_EXPORT nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device,
                                                        nvmlProcessUtilizationSample_t *samples,
                                                        unsigned int *count,
                                                        unsigned long long lastSeenTimeStamp) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, count, &card);
    if (result != NVML_SUCCESS)
        return result;
    struct sim_nvml_sample past[SIM_NVML_SAMPLES];
    uint32_t known = sim_nvml_samples(card.index, past);
    uint64_t end_us = known ? past[known - 1].end_us : 0;
    unsigned int room = samples ? *count : 0, found = 0;
    for (uint32_t i = 0; i < card.process_count && end_us > lastSeenTimeStamp; i++) {
        if (!card.processes[i].sm_percent)
            continue;
        if (found < room)
            samples[found] = (nvmlProcessUtilizationSample_t){.pid = (unsigned int)card.processes[i].pid,
                                                              .timeStamp = end_us,
                                                              .smUtil = card.processes[i].sm_percent};
        found++;
    }
    *count = samples ? found : SIM_NVML_PROCESSES;
    if (!samples || found > room)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    return found ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}
