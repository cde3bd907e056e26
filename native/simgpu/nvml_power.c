/* NVML of the simulated machine: power, energy, temperature and fans. */
#include "nvml_common.h"

SIM_ANSWER(nvmlDeviceGetPowerUsage, unsigned int, sim_board_power_mw(&card))
SIM_ANSWER(nvmlDeviceGetPowerManagementMode, nvmlEnableState_t, NVML_FEATURE_ENABLED)
SIM_ANSWER(nvmlDeviceGetPowerManagementLimit, unsigned int, board->power_w * 1000U)
SIM_ANSWER(nvmlDeviceGetPowerManagementDefaultLimit, unsigned int, board->power_w * 1000U)
SIM_ANSWER(nvmlDeviceGetEnforcedPowerLimit, unsigned int, board->power_w * 1000U)
SIM_ANSWER(nvmlDeviceGetPowerSource, nvmlPowerSource_t, NVML_POWER_SOURCE_AC)
/* Since Volta. */
SIM_ANSWER_IF(nvmlDeviceGetTotalEnergyConsumption, unsigned long long, card.major >= 7,
              sim_board_energy_mj(&card))

SIM_EXPORT nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device,
                                                                     unsigned int *minLimit,
                                                                     unsigned int *maxLimit) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, minLimit, &card);
    if (result != NVML_SUCCESS)
        return result;
    if (!maxLimit)
        return NVML_ERROR_INVALID_ARGUMENT;
    *minLimit = sim_board(&card)->power_min_w * 1000U;
    *maxLimit = sim_board(&card)->power_w * 1000U;
    return NVML_SUCCESS;
}

/* Temperature */

SIM_EXPORT nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t sensorType,
                                                 unsigned int *temp) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, temp, &card);
    if (result != NVML_SUCCESS)
        return result;
    if (sensorType != NVML_TEMPERATURE_GPU)
        return NVML_ERROR_INVALID_ARGUMENT;
    *temp = sim_board_temperature_c(&card);
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_t *temperature) {
    unsigned int degrees = 0;
    if (temperature && temperature->version != nvmlTemperature_v1)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    nvmlReturn_t result = temperature ? nvmlDeviceGetTemperature(device, temperature->sensorType, &degrees)
                                      : NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS)
        temperature->temperature = (int)degrees;
    return result;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device,
                                                          nvmlTemperatureThresholds_t thresholdType,
                                                          unsigned int *temp) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, temp, &card);
    if (result != NVML_SUCCESS)
        return result;
    const struct sim_board *board = sim_board(&card);
    unsigned int degrees = 0;
    switch (thresholdType) {
    case NVML_TEMPERATURE_THRESHOLD_SHUTDOWN:
        degrees = board->shutdown_c;
        break;
    case NVML_TEMPERATURE_THRESHOLD_SLOWDOWN:
        degrees = board->slowdown_c;
        break;
    case NVML_TEMPERATURE_THRESHOLD_GPU_MAX:
        degrees = board->max_c;
        break;
    case NVML_TEMPERATURE_THRESHOLD_MEM_MAX:
        degrees = board->memory_max_c;
        break;
    default:
        if ((int)thresholdType < 0 || thresholdType >= NVML_TEMPERATURE_THRESHOLD_COUNT)
            return NVML_ERROR_INVALID_ARGUMENT;
    }
    if (!degrees)
        return NVML_ERROR_NOT_SUPPORTED;
    *temp = degrees;
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMarginTemperature(nvmlDevice_t device,
                                                       nvmlMarginTemperature_t *marginTempInfo) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, marginTempInfo, &card);
    if (result != NVML_SUCCESS)
        return result;
    if (marginTempInfo->version != nvmlMarginTemperature_v1)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (card.major < 9) /* Hopper brought it */
        return NVML_ERROR_NOT_SUPPORTED;
    marginTempInfo->marginTemperature = (int)sim_board(&card)->max_c - (int)sim_board_temperature_c(&card);
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetThermalSettings(nvmlDevice_t device, unsigned int sensorIndex,
                                                     nvmlGpuThermalSettings_t *pThermalSettings) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, pThermalSettings, &card);
    if (result != NVML_SUCCESS)
        return result;
    if (sensorIndex != 0 && sensorIndex != NVML_THERMAL_TARGET_ALL)
        return NVML_ERROR_INVALID_ARGUMENT;
    memset(pThermalSettings, 0, sizeof *pThermalSettings);
    pThermalSettings->count = 1;
    pThermalSettings->sensor[0].controller = NVML_THERMAL_CONTROLLER_GPU_INTERNAL;
    pThermalSettings->sensor[0].target = NVML_THERMAL_TARGET_GPU;
    pThermalSettings->sensor[0].defaultMaxTemp = sim_board(&card)->slowdown_c;
    pThermalSettings->sensor[0].currentTemp = (int)sim_board_temperature_c(&card);
    return NVML_SUCCESS;
}

/* Fans: the server's, where the card is cooled passively */

static unsigned int fan_percent(const struct sim_nvml_card *card) {
    return sim_board_at_rest(card) ? 0 : 30 + card->sm_percent * 40 / 100;
}

SIM_ANSWER(nvmlDeviceGetNumFans, unsigned int, board->cooling == SIM_FANS ? 2 : 0)
SIM_ANSWER_IF(nvmlDeviceGetFanSpeed, unsigned int, board->cooling == SIM_FANS, fan_percent(&card))

SIM_EXPORT nvmlReturn_t nvmlDeviceGetFanSpeed_v2(nvmlDevice_t device, unsigned int fan, unsigned int *speed) {
    nvmlReturn_t result = nvmlDeviceGetFanSpeed(device, speed);
    return result == NVML_SUCCESS && fan > 1 ? NVML_ERROR_INVALID_ARGUMENT : result;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetTargetFanSpeed(nvmlDevice_t device, unsigned int fan,
                                                    unsigned int *targetSpeed) {
    return nvmlDeviceGetFanSpeed_v2(device, fan, targetSpeed);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMinMaxFanSpeed(nvmlDevice_t device, unsigned int *minSpeed,
                                                    unsigned int *maxSpeed) {
    nvmlReturn_t result = nvmlDeviceGetFanSpeed(device, minSpeed);
    if (result != NVML_SUCCESS)
        return result;
    if (!maxSpeed)
        return NVML_ERROR_INVALID_ARGUMENT;
    *minSpeed = 30;
    *maxSpeed = 100;
    return NVML_SUCCESS;
}
