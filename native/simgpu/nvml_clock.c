/*
 * NVML of the simulated machine: clocks and performance states.
 *
 * A card on which somebody has a context runs at its highest clocks; one at rest at its lowest. Nothing
 * changes clocks: the model of time knows one speed.
 */
#include "nvml_common.h"

static bool is_memory(nvmlClockType_t type) {
    return type == NVML_CLOCK_MEM;
}

static nvmlReturn_t clock_of(nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock, bool highest) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, clock, &card);
    if (result != NVML_SUCCESS)
        return result;
    if ((int)type < 0 || type >= NVML_CLOCK_COUNT)
        return NVML_ERROR_INVALID_ARGUMENT;
    uint32_t sm = highest ? card.max_sm_mhz : sim_board_sm_mhz(&card);
    if (is_memory(type))
        *clock = highest ? sim_board(&card)->memory_mhz : sim_board_memory_mhz(&card);
    else
        *clock = type == NVML_CLOCK_VIDEO ? sm * 9 / 10 : sm;
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, nvmlClockType_t type,
                                               unsigned int *clock) {
    return clock_of(device, type, clock, false);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, nvmlClockType_t type,
                                                  unsigned int *clock) {
    return clock_of(device, type, clock, true);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMaxCustomerBoostClock(nvmlDevice_t device, nvmlClockType_t clockType,
                                                           unsigned int *clockMHz) {
    return clock_of(device, clockType, clockMHz, true);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetApplicationsClock(nvmlDevice_t device, nvmlClockType_t clockType,
                                                       unsigned int *clockMHz) {
    return clockType == NVML_CLOCK_VIDEO ? NVML_ERROR_NOT_SUPPORTED
                                         : clock_of(device, clockType, clockMHz, true);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetDefaultApplicationsClock(nvmlDevice_t device, nvmlClockType_t clockType,
                                                              unsigned int *clockMHz) {
    return nvmlDeviceGetApplicationsClock(device, clockType, clockMHz);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetClock(nvmlDevice_t device, nvmlClockType_t clockType,
                                           nvmlClockId_t clockId, unsigned int *clockMHz) {
    switch (clockId) {
    case NVML_CLOCK_ID_CURRENT:
        return clock_of(device, clockType, clockMHz, false);
    case NVML_CLOCK_ID_APP_CLOCK_TARGET:
    case NVML_CLOCK_ID_APP_CLOCK_DEFAULT:
    case NVML_CLOCK_ID_CUSTOMER_BOOST_MAX:
        return clock_of(device, clockType, clockMHz, true);
    default:
        return NVML_ERROR_INVALID_ARGUMENT;
    }
}

/* Fill a list of at most *count entries, telling how long it should be. */
static nvmlReturn_t put_list(unsigned int *count, unsigned int *out, unsigned int from, unsigned int step,
                             unsigned int entries) {
    unsigned int room = out ? *count : 0;
    *count = entries;
    if (room < entries)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned int i = 0; i < entries; i++)
        out[i] = from - i * step;
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetSupportedMemoryClocks(nvmlDevice_t device, unsigned int *count,
                                                           unsigned int *clocksMHz) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, count, &card);
    if (result != NVML_SUCCESS)
        return result;
    unsigned int highest = sim_board(&card)->memory_mhz;
    bool two = sim_board(&card)->idle == SIM_IDLE_P8;
    return put_list(count, clocksMHz, highest, highest - 405, two ? 2 : 1);
}

/* In steps of 15 MHz, highest first. */
SIM_EXPORT nvmlReturn_t nvmlDeviceGetSupportedGraphicsClocks(nvmlDevice_t device, unsigned int memoryClockMHz,
                                                             unsigned int *count, unsigned int *clocksMHz) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, count, &card);
    if (result != NVML_SUCCESS)
        return result;
    const struct sim_board *board = sim_board(&card);
    if (memoryClockMHz != board->memory_mhz && (board->idle != SIM_IDLE_P8 || memoryClockMHz != 405))
        return NVML_ERROR_NOT_FOUND;
    unsigned int highest = memoryClockMHz == board->memory_mhz ? card.max_sm_mhz : 645;
    return put_list(count, clocksMHz, highest, 15, (highest - board->idle_sm_mhz) / 15 + 1);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetAutoBoostedClocksEnabled(nvmlDevice_t device,
                                                              nvmlEnableState_t *isEnabled,
                                                              nvmlEnableState_t *defaultIsEnabled) {
    (void)defaultIsEnabled;
    nvmlReturn_t result = sim_nvml_check(device, isEnabled);
    return result == NVML_SUCCESS ? NVML_ERROR_NOT_SUPPORTED : result;
}

/* Performance states */

static nvmlPstates_t state_of(const struct sim_nvml_card *card) {
    return sim_board_at_rest(card) && sim_board(card)->idle == SIM_IDLE_P8 ? NVML_PSTATE_8 : NVML_PSTATE_0;
}

SIM_ANSWER(nvmlDeviceGetPerformanceState, nvmlPstates_t, state_of(&card))
SIM_ANSWER(nvmlDeviceGetPowerState, nvmlPstates_t, state_of(&card))

SIM_EXPORT nvmlReturn_t nvmlDeviceGetSupportedPerformanceStates(nvmlDevice_t device, nvmlPstates_t *pstates,
                                                                unsigned int size) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, pstates, &card);
    if (result != NVML_SUCCESS)
        return result;
    unsigned int room = size / sizeof *pstates, found = 0;
    if (room < 2)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    pstates[found++] = NVML_PSTATE_0;
    if (sim_board(&card)->idle == SIM_IDLE_P8)
        pstates[found++] = NVML_PSTATE_8;
    while (found < room)
        pstates[found++] = NVML_PSTATE_UNKNOWN;
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMinMaxClockOfPState(nvmlDevice_t device, nvmlClockType_t type,
                                                         nvmlPstates_t pstate, unsigned int *minClockMHz,
                                                         unsigned int *maxClockMHz) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, minClockMHz, &card);
    if (result != NVML_SUCCESS)
        return result;
    if (!maxClockMHz || (int)type < 0 || type >= NVML_CLOCK_COUNT)
        return NVML_ERROR_INVALID_ARGUMENT;
    const struct sim_board *board = sim_board(&card);
    bool low = pstate == NVML_PSTATE_8;
    if (pstate != NVML_PSTATE_0 && !(low && board->idle == SIM_IDLE_P8))
        return NVML_ERROR_NOT_SUPPORTED;
    if (is_memory(type)) {
        *minClockMHz = *maxClockMHz = low ? 405 : board->memory_mhz;
    } else {
        *minClockMHz = board->idle_sm_mhz;
        *maxClockMHz = low ? 645 : card.max_sm_mhz;
    }
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetDynamicPstatesInfo(nvmlDevice_t device,
                                                        nvmlGpuDynamicPstatesInfo_t *pDynamicPstatesInfo) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, pDynamicPstatesInfo, &card);
    if (result != NVML_SUCCESS)
        return result;
    memset(pDynamicPstatesInfo, 0, sizeof *pDynamicPstatesInfo);
    unsigned int percents[] = {card.sm_percent, card.memory_percent};
    for (unsigned int i = 0; i < 2; i++) {
        pDynamicPstatesInfo->utilization[i].bIsPresent = 1;
        pDynamicPstatesInfo->utilization[i].percentage = percents[i];
    }
    return NVML_SUCCESS;
}

/* Why clocks are not higher: the card rests, or nothing holds them back. */

static unsigned long long reasons(const struct sim_nvml_card *card) {
    return sim_board_at_rest(card) ? nvmlClocksEventReasonGpuIdle : nvmlClocksEventReasonNone;
}

#define EVERY_REASON ((unsigned long long)nvmlClocksEventReasonAll)

SIM_ANSWER(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, reasons(&card))
SIM_ANSWER(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, reasons(&card))
SIM_ANSWER(nvmlDeviceGetSupportedClocksEventReasons, unsigned long long, EVERY_REASON)
SIM_ANSWER(nvmlDeviceGetSupportedClocksThrottleReasons, unsigned long long, EVERY_REASON)
SIM_ANSWER(nvmlDeviceGetAdaptiveClockInfoStatus, unsigned int, NVML_ADAPTIVE_CLOCKING_INFO_STATUS_DISABLED)

SIM_EXPORT nvmlReturn_t nvmlDeviceGetViolationStatus(nvmlDevice_t device, nvmlPerfPolicyType_t perfPolicyType,
                                                     nvmlViolationTime_t *violTime) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, violTime, &card);
    if (result != NVML_SUCCESS)
        return result;
    if ((int)perfPolicyType < 0 || perfPolicyType >= NVML_PERF_POLICY_COUNT)
        return NVML_ERROR_INVALID_ARGUMENT;
    *violTime = (nvmlViolationTime_t){.referenceTime = card.since_ns / 1000, .violationTime = 0};
    return NVML_SUCCESS;
}
