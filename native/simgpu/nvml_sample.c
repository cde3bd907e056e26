/* NVML of the simulated machine: utilisation over time, and of the engines that nothing here uses. */
#include "nvml_common.h"

/* Samples: the whole intervals of the card's timeline, newer than what the caller has seen */

static bool sample_value(const struct sim_nvml_card *card, const struct sim_nvml_sample *sample,
                         nvmlSamplingType_t type, unsigned int *value) {
    switch (type) {
    case NVML_GPU_UTILIZATION_SAMPLES:
        *value = sample->sm_percent;
        return true;
    case NVML_MEMORY_UTILIZATION_SAMPLES:
        *value = sample->memory_percent;
        return true;
    case NVML_ENC_UTILIZATION_SAMPLES:
    case NVML_DEC_UTILIZATION_SAMPLES:
        *value = 0;
        return true;
    case NVML_TOTAL_POWER_SAMPLES:
        *value = sim_board_power_mw(card);
        return true;
    case NVML_PROCESSOR_CLK_SAMPLES:
        *value = sim_board_sm_mhz(card);
        return true;
    case NVML_MEMORY_CLK_SAMPLES:
        *value = sim_board_memory_mhz(card);
        return true;
    default:
        return false;
    }
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetSamples(nvmlDevice_t device, nvmlSamplingType_t type,
                                             unsigned long long lastSeenTimeStamp,
                                             nvmlValueType_t *sampleValType, unsigned int *sampleCount,
                                             nvmlSample_t *samples) {
    struct sim_nvml_card card;
    struct sim_nvml_sample past[SIM_NVML_SAMPLES];
    nvmlReturn_t result = sim_nvml_look(device, sampleCount, &card);
    if (result != NVML_SUCCESS)
        return result;
    if (!sampleValType || (int)type < 0 || type >= NVML_SAMPLINGTYPE_COUNT)
        return NVML_ERROR_INVALID_ARGUMENT;
    unsigned int known = sim_nvml_samples(card.index, past), room = *sampleCount, found = 0, value;
    if (known && !sample_value(&card, &past[0], type, &value))
        return NVML_ERROR_NOT_SUPPORTED;
    *sampleValType = NVML_VALUE_TYPE_UNSIGNED_INT;
    if (!samples) {
        *sampleCount = SIM_NVML_SAMPLES; /* the most there can be */
        return NVML_SUCCESS;
    }
    for (unsigned int i = 0; i < known && found < room; i++) {
        if (past[i].end_us <= lastSeenTimeStamp)
            continue;
        card.sm_percent = past[i].sm_percent; /* power goes with it */
        sample_value(&card, &past[i], type, &value);
        samples[found++] = (nvmlSample_t){.timeStamp = past[i].end_us, .sampleValue.uiVal = value};
    }
    *sampleCount = found;
    return found ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}

/* Processes: the newer forms of what nvml_use.c answers */

SIM_EXPORT nvmlReturn_t nvmlDeviceGetProcessesUtilizationInfo(nvmlDevice_t device,
                                                              nvmlProcessesUtilizationInfo_t *info) {
    nvmlProcessUtilizationSample_t samples[SIM_NVML_PROCESSES];
    if (!info)
        return sim_nvml_check(device, info);
    if (info->version != nvmlProcessesUtilizationInfo_v1)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    unsigned int count = SIM_NVML_PROCESSES, room = info->procUtilArray ? info->processSamplesCount : 0;
    nvmlReturn_t result = nvmlDeviceGetProcessUtilization(device, samples, &count, info->lastSeenTimeStamp);
    if (result != NVML_SUCCESS)
        return result;
    info->processSamplesCount = count;
    if (count > room)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned int i = 0; i < count; i++)
        info->procUtilArray[i] = (nvmlProcessUtilizationInfo_v1_t){
            .timeStamp = samples[i].timeStamp, .pid = samples[i].pid, .smUtil = samples[i].smUtil};
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetRunningProcessDetailList(nvmlDevice_t device,
                                                              nvmlProcessDetailList_t *list) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, list, &card);
    if (result != NVML_SUCCESS)
        return result;
    if (list->version != nvmlProcessDetailList_v1)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (list->mode > NVML_PROCESS_MODE_MPS)
        return NVML_ERROR_INVALID_ARGUMENT;
    unsigned int room = list->procArray ? list->numProcArrayEntries : 0;
    unsigned int found = list->mode == NVML_PROCESS_MODE_COMPUTE ? card.process_count : 0;
    list->numProcArrayEntries = found;
    if (found > room)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned int i = 0; i < found; i++)
        list->procArray[i] = (nvmlProcessDetail_v1_t){.pid = (unsigned int)card.processes[i].pid,
                                                      .usedGpuMemory = card.processes[i].used_bytes,
                                                      .gpuInstanceId = 0xffffffffU,
                                                      .computeInstanceId = 0xffffffffU};
    return NVML_SUCCESS;
}

/* Engines for video and pictures, which are idle */

#define ENGINE(function, has)                                                                                \
    SIM_EXPORT nvmlReturn_t function(nvmlDevice_t device, unsigned int *utilization,                         \
                                     unsigned int *samplingPeriodUs) {                                       \
        struct sim_nvml_card card;                                                                           \
        nvmlReturn_t result = sim_nvml_look(device, utilization, &card);                                     \
        if (result != NVML_SUCCESS)                                                                          \
            return result;                                                                                   \
        if (!samplingPeriodUs)                                                                               \
            return NVML_ERROR_INVALID_ARGUMENT;                                                              \
        if (!(has))                                                                                          \
            return NVML_ERROR_NOT_SUPPORTED;                                                                 \
        *utilization = 0;                                                                                    \
        *samplingPeriodUs = 167000;                                                                          \
        return NVML_SUCCESS;                                                                                 \
    }

ENGINE(nvmlDeviceGetEncoderUtilization, true)
ENGINE(nvmlDeviceGetDecoderUtilization, true)
ENGINE(nvmlDeviceGetJpgUtilization, card.major >= 8)
ENGINE(nvmlDeviceGetOfaUtilization, card.major >= 8)

SIM_EXPORT nvmlReturn_t nvmlDeviceGetEncoderStats(nvmlDevice_t device, unsigned int *sessionCount,
                                                  unsigned int *averageFps, unsigned int *averageLatency) {
    nvmlReturn_t result = sim_nvml_check(device, sessionCount);
    if (result != NVML_SUCCESS)
        return result;
    if (!averageFps || !averageLatency)
        return NVML_ERROR_INVALID_ARGUMENT;
    *sessionCount = *averageFps = *averageLatency = 0;
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetEncoderSessions(nvmlDevice_t device, unsigned int *sessionCount,
                                                     nvmlEncoderSessionInfo_t *sessionInfos) {
    (void)sessionInfos;
    nvmlReturn_t result = sim_nvml_check(device, sessionCount);
    if (result == NVML_SUCCESS)
        *sessionCount = 0;
    return result;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetEncoderCapacity(nvmlDevice_t device, nvmlEncoderType_t encoderQueryType,
                                                     unsigned int *encoderCapacity) {
    nvmlReturn_t result = sim_nvml_check(device, encoderCapacity);
    if (result != NVML_SUCCESS)
        return result;
    if ((int)encoderQueryType < 0 || encoderQueryType > NVML_ENCODER_QUERY_AV1)
        return NVML_ERROR_INVALID_ARGUMENT;
    *encoderCapacity = 100;
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetFBCStats(nvmlDevice_t device, nvmlFBCStats_t *fbcStats) {
    nvmlReturn_t result = sim_nvml_check(device, fbcStats);
    if (result == NVML_SUCCESS)
        *fbcStats = (nvmlFBCStats_t){0};
    return result;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetFBCSessions(nvmlDevice_t device, unsigned int *sessionCount,
                                                 nvmlFBCSessionInfo_t *sessionInfo) {
    (void)sessionInfo;
    nvmlReturn_t result = sim_nvml_check(device, sessionCount);
    if (result == NVML_SUCCESS)
        *sessionCount = 0;
    return result;
}

/* GPU performance monitoring samples what this model lacks. */
SIM_EXPORT nvmlReturn_t nvmlGpmQueryDeviceSupport(nvmlDevice_t device, nvmlGpmSupport_t *gpmSupport) {
    nvmlReturn_t result = sim_nvml_check(device, gpmSupport);
    if (result != NVML_SUCCESS)
        return result;
    if (gpmSupport->version != NVML_GPM_SUPPORT_VERSION)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    gpmSupport->isSupportedDevice = 0;
    return NVML_SUCCESS;
}
