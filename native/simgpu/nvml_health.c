/* NVML of the simulated machine: errors of memory and bus. There have been none; a card is well, or it is
 * lost. */
#include "nvml_common.h"

#define CORRECTED NVML_MEMORY_ERROR_TYPE_CORRECTED

static nvmlReturn_t look_for_ecc(nvmlDevice_t device, const void *result, int error, int counter,
                                 struct sim_nvml_card *card) {
    nvmlReturn_t status = sim_nvml_look(device, result, card);
    if (status != NVML_SUCCESS)
        return status;
    if (error < 0 || error >= NVML_MEMORY_ERROR_TYPE_COUNT || counter < 0 ||
        counter >= NVML_ECC_COUNTER_TYPE_COUNT)
        return NVML_ERROR_INVALID_ARGUMENT;
    return sim_board_has_ecc(card) ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, nvmlMemoryErrorType_t errorType,
                                                    nvmlEccCounterType_t counterType,
                                                    unsigned long long *eccCounts) {
    struct sim_nvml_card card;
    nvmlReturn_t result = look_for_ecc(device, eccCounts, (int)errorType, (int)counterType, &card);
    if (result == NVML_SUCCESS)
        *eccCounts = 0;
    return result;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetDetailedEccErrors(nvmlDevice_t device, nvmlMemoryErrorType_t errorType,
                                                       nvmlEccCounterType_t counterType,
                                                       nvmlEccErrorCounts_t *eccCounts) {
    struct sim_nvml_card card;
    nvmlReturn_t result = look_for_ecc(device, eccCounts, (int)errorType, (int)counterType, &card);
    if (result == NVML_SUCCESS)
        *eccCounts = (nvmlEccErrorCounts_t){0};
    return result;
}

/* Since Ampere the counters are of DRAM and SRAM; before, of each kind of on-chip memory. */
static bool counts(const struct sim_nvml_card *card, nvmlMemoryLocation_t location,
                   nvmlMemoryErrorType_t error) {
    bool sram = card->major >= 8 || (card->major == 7 && card->minor == 5);
    switch (location) {
    case NVML_MEMORY_LOCATION_DRAM:
        return true;
    case NVML_MEMORY_LOCATION_SRAM:
        return sram;
    case NVML_MEMORY_LOCATION_CBU:
        return !sram && error != CORRECTED;
    case NVML_MEMORY_LOCATION_TEXTURE_SHM:
        return false;
    default:
        return !sram;
    }
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMemoryErrorCounter(nvmlDevice_t device, nvmlMemoryErrorType_t errorType,
                                                        nvmlEccCounterType_t counterType,
                                                        nvmlMemoryLocation_t locationType,
                                                        unsigned long long *count) {
    struct sim_nvml_card card;
    nvmlReturn_t result = look_for_ecc(device, count, (int)errorType, (int)counterType, &card);
    if (result != NVML_SUCCESS)
        return result;
    if ((int)locationType < 0 || locationType >= NVML_MEMORY_LOCATION_COUNT)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (!counts(&card, locationType, errorType))
        return NVML_ERROR_NOT_SUPPORTED;
    *count = 0;
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetSramEccErrorStatus(nvmlDevice_t device,
                                                        nvmlEccSramErrorStatus_t *status) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, status, &card);
    if (result != NVML_SUCCESS)
        return result;
    if (status->version != nvmlEccSramErrorStatus_v1)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (card.major < 8 || !sim_board_has_ecc(&card))
        return NVML_ERROR_NOT_SUPPORTED;
    *status = (nvmlEccSramErrorStatus_t){.version = status->version};
    return NVML_SUCCESS;
}

/* Broken memory: pages are retired before Ampere, rows are remapped since. */

static bool remaps(const struct sim_nvml_card *card) {
    return card->major >= 8 && sim_board_has_ecc(card);
}

static bool retires(const struct sim_nvml_card *card) {
    return card->major < 8 && sim_board_has_ecc(card);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetRetiredPages_v2(nvmlDevice_t device, nvmlPageRetirementCause_t cause,
                                                     unsigned int *pageCount, unsigned long long *addresses,
                                                     unsigned long long *timestamps) {
    (void)addresses;
    (void)timestamps;
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, pageCount, &card);
    if (result != NVML_SUCCESS)
        return result;
    if ((int)cause < 0 || cause >= NVML_PAGE_RETIREMENT_CAUSE_COUNT)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (!retires(&card))
        return NVML_ERROR_NOT_SUPPORTED;
    *pageCount = 0;
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetRetiredPages(nvmlDevice_t device, nvmlPageRetirementCause_t cause,
                                                  unsigned int *pageCount, unsigned long long *addresses) {
    return nvmlDeviceGetRetiredPages_v2(device, cause, pageCount, addresses, NULL);
}

SIM_ANSWER_IF(nvmlDeviceGetRetiredPagesPendingStatus, nvmlEnableState_t, retires(&card),
              NVML_FEATURE_DISABLED)

SIM_EXPORT nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned int *corrRows,
                                                  unsigned int *uncRows, unsigned int *isPending,
                                                  unsigned int *failureOccurred) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, corrRows, &card);
    if (result != NVML_SUCCESS)
        return result;
    if (!uncRows || !isPending || !failureOccurred)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (!remaps(&card))
        return NVML_ERROR_NOT_SUPPORTED;
    *corrRows = *uncRows = *isPending = *failureOccurred = 0;
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetRowRemapperHistogram(nvmlDevice_t device,
                                                          nvmlRowRemapperHistogramValues_t *values) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, values, &card);
    if (result != NVML_SUCCESS)
        return result;
    if (!remaps(&card))
        return NVML_ERROR_NOT_SUPPORTED;
    /* All banks have all their spare rows: a bank for each 64 MiB. */
    *values = (nvmlRowRemapperHistogramValues_t){.max = (unsigned int)(card.total_bytes >> 26)};
    return NVML_SUCCESS;
}

SIM_ANSWER(nvmlDeviceGetPcieReplayCounter, unsigned int, 0)
