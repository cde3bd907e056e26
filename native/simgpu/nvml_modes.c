/*
 * NVML of the simulated machine: modes of a card. All are what a data-centre card has after installation, and
 * none can be set: the functions that would set them answer NVML_ERROR_NOT_SUPPORTED.
 */
#include "nvml_common.h"

#define DISABLED NVML_FEATURE_DISABLED
#define ENABLED NVML_FEATURE_ENABLED

SIM_ANSWER(nvmlDeviceGetPersistenceMode, nvmlEnableState_t, ENABLED)
SIM_ANSWER(nvmlDeviceGetComputeMode, nvmlComputeMode_t, NVML_COMPUTEMODE_DEFAULT)
SIM_ANSWER(nvmlDeviceGetDisplayMode, nvmlEnableState_t, DISABLED)
SIM_ANSWER(nvmlDeviceGetDisplayActive, nvmlEnableState_t, DISABLED)
SIM_ANSWER(nvmlDeviceGetVirtualizationMode, nvmlGpuVirtualizationMode_t, NVML_GPU_VIRTUALIZATION_MODE_NONE)
SIM_ANSWER_PENDING(nvmlDeviceGetEccMode, nvmlEnableState_t, sim_board_has_ecc(&card), ENABLED)
SIM_ANSWER_IF(nvmlDeviceGetDefaultEccMode, nvmlEnableState_t, sim_board_has_ecc(&card), ENABLED)
SIM_ANSWER_PENDING(nvmlDeviceGetMigMode, unsigned int, card.mig_capable, NVML_DEVICE_MIG_DISABLE)
SIM_ANSWER_PENDING(nvmlDeviceGetGpuOperationMode, nvmlGpuOperationMode_t, false, NVML_GOM_ALL_ON)
SIM_ANSWER_PENDING(nvmlDeviceGetDriverModel, nvmlDriverModel_t, false, NVML_DRIVER_WDDM) /* Windows */
SIM_ANSWER_PENDING(nvmlDeviceGetDriverModel_v2, nvmlDriverModel_t, false, NVML_DRIVER_WDDM)

SIM_EXPORT nvmlReturn_t nvmlDeviceGetAPIRestriction(nvmlDevice_t device, nvmlRestrictedAPI_t apiType,
                                                    nvmlEnableState_t *isRestricted) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, isRestricted, &card);
    if (result != NVML_SUCCESS)
        return result;
    if ((int)apiType < 0 || apiType >= NVML_RESTRICTED_API_COUNT)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (apiType == NVML_RESTRICTED_API_SET_AUTO_BOOSTED_CLOCKS)
        return NVML_ERROR_NOT_SUPPORTED;
    *isRestricted = ENABLED;
    return NVML_SUCCESS;
}

/* The GPU's own firmware processor: since Turing, and in use since then on data-centre cards. */

SIM_EXPORT nvmlReturn_t nvmlDeviceGetGspFirmwareVersion(nvmlDevice_t device, char *version) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, version, &card);
    if (result != NVML_SUCCESS)
        return result;
    if (10 * card.major + card.minor < 75)
        return NVML_ERROR_NOT_SUPPORTED;
    snprintf(version, NVML_GSP_FIRMWARE_VERSION_BUF_SIZE, "%s", sim_nvml_driver_version());
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetGspFirmwareMode(nvmlDevice_t device, unsigned int *isEnabled,
                                                     unsigned int *defaultMode) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, isEnabled, &card);
    if (result != NVML_SUCCESS)
        return result;
    if (!defaultMode)
        return NVML_ERROR_INVALID_ARGUMENT;
    *isEnabled = *defaultMode = 10 * card.major + card.minor >= 75;
    return NVML_SUCCESS;
}

/* MIG: none of the cards is partitioned */

SIM_ANSWER(nvmlDeviceIsMigDeviceHandle, unsigned int, 0)
SIM_ANSWER(nvmlDeviceGetMaxMigDeviceCount, unsigned int, card.mig_capable ? 7 : 0)

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index,
                                                            nvmlDevice_t *migDevice) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, migDevice, &card);
    if (result != NVML_SUCCESS)
        return result;
    if (!card.mig_capable)
        return NVML_ERROR_NOT_SUPPORTED;
    return index >= 7 ? NVML_ERROR_INVALID_ARGUMENT : NVML_ERROR_NOT_FOUND;
}

/* Accounting is off, so there is nobody to account for. */

SIM_ANSWER(nvmlDeviceGetAccountingMode, nvmlEnableState_t, DISABLED)
SIM_ANSWER(nvmlDeviceGetAccountingBufferSize, unsigned int, 4000)

SIM_EXPORT nvmlReturn_t nvmlDeviceGetAccountingPids(nvmlDevice_t device, unsigned int *count,
                                                    unsigned int *pids) {
    (void)pids;
    nvmlReturn_t result = sim_nvml_check(device, count);
    if (result == NVML_SUCCESS)
        *count = 0;
    return result;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetAccountingStats(nvmlDevice_t device, unsigned int pid,
                                                     nvmlAccountingStats_t *stats) {
    (void)pid;
    nvmlReturn_t result = sim_nvml_check(device, stats);
    return result == NVML_SUCCESS ? NVML_ERROR_NOT_SUPPORTED : result;
}

/* Confidential computing: not here */

SIM_EXPORT nvmlReturn_t nvmlSystemGetConfComputeCapabilities(nvmlConfComputeSystemCaps_t *capabilities) {
    if (!sim_nvml_initialised())
        return NVML_ERROR_UNINITIALIZED;
    if (!capabilities)
        return NVML_ERROR_INVALID_ARGUMENT;
    *capabilities = (nvmlConfComputeSystemCaps_t){.cpuCaps = NVML_CC_SYSTEM_CPU_CAPS_NONE,
                                                  .gpusCaps = NVML_CC_SYSTEM_GPUS_CC_NOT_CAPABLE};
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlSystemGetConfComputeState(nvmlConfComputeSystemState_t *state) {
    if (!sim_nvml_initialised())
        return NVML_ERROR_UNINITIALIZED;
    if (!state)
        return NVML_ERROR_INVALID_ARGUMENT;
    *state = (nvmlConfComputeSystemState_t){.environment = NVML_CC_SYSTEM_ENVIRONMENT_UNAVAILABLE,
                                            .ccFeature = NVML_CC_SYSTEM_FEATURE_DISABLED,
                                            .devToolsMode = NVML_CC_SYSTEM_DEVTOOLS_MODE_OFF};
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlSystemGetConfComputeGpusReadyState(unsigned int *isAcceptingWork) {
    if (!sim_nvml_initialised())
        return NVML_ERROR_UNINITIALIZED;
    return isAcceptingWork ? NVML_ERROR_NOT_SUPPORTED : NVML_ERROR_INVALID_ARGUMENT;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetConfComputeMemSizeInfo(nvmlDevice_t device,
                                                            nvmlConfComputeMemSizeInfo_t *memInfo) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, memInfo, &card);
    if (result == NVML_SUCCESS)
        *memInfo = (nvmlConfComputeMemSizeInfo_t){.unprotectedMemSizeKib = card.total_bytes >> 10};
    return result;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetConfComputeProtectedMemoryUsage(nvmlDevice_t device,
                                                                     nvmlMemory_t *memory) {
    nvmlReturn_t result = sim_nvml_check(device, memory);
    if (result == NVML_SUCCESS)
        *memory = (nvmlMemory_t){0};
    return result;
}

/* No virtual GPUs, no licences, no units of S-class servers, no excluded cards */

SIM_EXPORT nvmlReturn_t nvmlDeviceGetGridLicensableFeatures_v4(nvmlDevice_t device,
                                                               nvmlGridLicensableFeatures_t *features) {
    nvmlReturn_t result = sim_nvml_check(device, features);
    if (result == NVML_SUCCESS)
        memset(features, 0, sizeof *features);
    return result;
}

static nvmlReturn_t none_of(nvmlDevice_t device, unsigned int *count) {
    nvmlReturn_t result = sim_nvml_check(device, count);
    if (result == NVML_SUCCESS)
        *count = 0;
    return result;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetSupportedVgpus(nvmlDevice_t device, unsigned int *vgpuCount,
                                                    nvmlVgpuTypeId_t *vgpuTypeIds) {
    (void)vgpuTypeIds;
    return none_of(device, vgpuCount);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetCreatableVgpus(nvmlDevice_t device, unsigned int *vgpuCount,
                                                    nvmlVgpuTypeId_t *vgpuTypeIds) {
    (void)vgpuTypeIds;
    return none_of(device, vgpuCount);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetActiveVgpus(nvmlDevice_t device, unsigned int *vgpuCount,
                                                 nvmlVgpuInstance_t *vgpuInstances) {
    (void)vgpuInstances;
    return none_of(device, vgpuCount);
}

static nvmlReturn_t none(unsigned int *count) {
    if (!sim_nvml_initialised())
        return NVML_ERROR_UNINITIALIZED;
    if (!count)
        return NVML_ERROR_INVALID_ARGUMENT;
    *count = 0;
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlUnitGetCount(unsigned int *unitCount) {
    return none(unitCount);
}

SIM_EXPORT nvmlReturn_t nvmlGetExcludedDeviceCount(unsigned int *deviceCount) {
    return none(deviceCount);
}

SIM_EXPORT nvmlReturn_t nvmlSystemGetHicVersion(unsigned int *hwbcCount, nvmlHwbcEntry_t *hwbcEntries) {
    (void)hwbcEntries;
    return none(hwbcCount);
}
