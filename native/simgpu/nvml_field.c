/*
 * NVML of the simulated machine: field values, the answers that have a number rather than a function. Each
 * value has a status of its own; a field that is not answered here is NVML_ERROR_NOT_SUPPORTED.
 */
#include <time.h>

#include "nvml_common.h"

static void put_uint(nvmlFieldValue_t *field, unsigned int value) {
    field->valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
    field->value.uiVal = value;
}

static void put_long(nvmlFieldValue_t *field, unsigned long long value) {
    field->valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
    field->value.ullVal = value;
}

static nvmlReturn_t put_uint_if(bool has, nvmlFieldValue_t *field, unsigned int value) {
    put_uint(field, value);
    return has ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

static nvmlReturn_t put_long_if(bool has, nvmlFieldValue_t *field, unsigned long long value) {
    put_long(field, value);
    return has ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

/* MB/s of one NVLink, by version. */
static unsigned int link_mbps(const struct sim_board *board) {
    static const unsigned int speeds[] = {0, 20000, 25781, 25000, 26562, 53125};
    return speeds[board->link_version < 6 ? board->link_version : 5];
}

static nvmlReturn_t ecc_field(const struct sim_nvml_card *card, nvmlFieldValue_t *field) {
    bool ecc = sim_board_has_ecc(card);
    if (field->fieldId <= NVML_FI_DEV_ECC_PENDING)
        return put_uint_if(ecc, field, NVML_FEATURE_ENABLED);
    return put_long_if(ecc, field, 0);
}

static nvmlReturn_t link_field(const struct sim_nvml_card *card, nvmlFieldValue_t *field) {
    const struct sim_board *board = sim_board(card);
    bool linked = sim_nvml_peers(card, NULL) > 0, on = linked && field->scopeId < board->links;
    switch (field->fieldId) {
    case NVML_FI_DEV_NVLINK_LINK_COUNT:
        return put_uint_if(board->links, field, board->links);
    case NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON:
        return put_uint_if(linked, field, link_mbps(board));
    case NVML_FI_DEV_NVLINK_GET_SPEED:
        return put_uint_if(on, field, link_mbps(board));
    case NVML_FI_DEV_NVLINK_GET_STATE:
        return put_uint_if(field->scopeId < board->links, field, on);
    case NVML_FI_DEV_NVLINK_GET_VERSION:
        return put_uint_if(field->scopeId < board->links, field, board->link_version);
    case NVML_FI_DEV_NVSWITCH_CONNECTED_LINK_COUNT:
        return put_uint_if(board->links, field, board->link_version >= 3 && linked ? board->links : 0);
    case NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL:
    case NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL:
    case NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL:
    case NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL:
    case NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX:
    case NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX:
    case NVML_FI_DEV_NVLINK_THROUGHPUT_RAW_TX:
    case NVML_FI_DEV_NVLINK_THROUGHPUT_RAW_RX:
        return put_long_if(board->links, field, 0);
    default:
        return NVML_ERROR_NOT_SUPPORTED;
    }
}

static nvmlReturn_t power_field(const struct sim_nvml_card *card, nvmlFieldValue_t *field) {
    const struct sim_board *board = sim_board(card);
    if (field->scopeId != NVML_POWER_SCOPE_GPU) /* modules have sensors of their own on Grace alone */
        return NVML_ERROR_NOT_SUPPORTED;
    switch (field->fieldId) {
    case NVML_FI_DEV_POWER_AVERAGE:
    case NVML_FI_DEV_POWER_INSTANT:
        put_uint(field, sim_board_power_mw(card));
        return NVML_SUCCESS;
    case NVML_FI_DEV_POWER_MIN_LIMIT:
        put_uint(field, board->power_min_w * 1000U);
        return NVML_SUCCESS;
    case NVML_FI_DEV_POWER_MAX_LIMIT:
    case NVML_FI_DEV_POWER_DEFAULT_LIMIT:
    case NVML_FI_DEV_POWER_CURRENT_LIMIT:
    case NVML_FI_DEV_POWER_REQUESTED_LIMIT:
        put_uint(field, board->power_w * 1000U);
        return NVML_SUCCESS;
    case NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION:
    case NVML_FI_DEV_ENERGY:
        return put_long_if(card->major >= 7, field, sim_board_energy_mj(card));
    default:
        return NVML_ERROR_NOT_SUPPORTED;
    }
}

static nvmlReturn_t other_field(const struct sim_nvml_card *card, nvmlFieldValue_t *field) {
    bool ecc = sim_board_has_ecc(card);
    switch (field->fieldId) {
    case NVML_FI_DEV_RETIRED_SBE:
    case NVML_FI_DEV_RETIRED_DBE:
    case NVML_FI_DEV_RETIRED_PENDING:
    case NVML_FI_DEV_RETIRED_PENDING_SBE:
    case NVML_FI_DEV_RETIRED_PENDING_DBE:
        return put_uint_if(ecc && card->major < 8, field, 0);
    case NVML_FI_DEV_REMAPPED_COR:
    case NVML_FI_DEV_REMAPPED_UNC:
    case NVML_FI_DEV_REMAPPED_PENDING:
    case NVML_FI_DEV_REMAPPED_FAILURE:
        return put_uint_if(ecc && card->major >= 8, field, 0);
    case NVML_FI_DEV_MEMORY_TEMP: /* boards with HBM have the sensor, some later than Volta's first too */
        return put_uint_if(sim_board(card)->memory_max_c, field, sim_board_temperature_c(card) + 3);
    case NVML_FI_DEV_GPU_TEMP:
        put_uint(field, sim_board_temperature_c(card));
        return NVML_SUCCESS;
    case NVML_FI_DEV_PERF_POLICY_POWER:
    case NVML_FI_DEV_PERF_POLICY_THERMAL:
    case NVML_FI_DEV_PERF_POLICY_SYNC_BOOST:
    case NVML_FI_DEV_PERF_POLICY_BOARD_LIMIT:
    case NVML_FI_DEV_PERF_POLICY_LOW_UTILIZATION:
    case NVML_FI_DEV_PERF_POLICY_RELIABILITY:
    case NVML_FI_DEV_PERF_POLICY_TOTAL_APP_CLOCKS:
    case NVML_FI_DEV_PERF_POLICY_TOTAL_BASE_CLOCKS:
        put_long(field, 0);
        return NVML_SUCCESS;
    case NVML_FI_DEV_PCIE_REPLAY_COUNTER:
    case NVML_FI_DEV_PCIE_REPLAY_ROLLOVER_COUNTER:
        put_uint(field, 0);
        return NVML_SUCCESS;
    case NVML_FI_DEV_IS_RESETLESS_MIG_SUPPORTED:
        put_uint(field, card->mig_capable && card->major >= 9);
        return NVML_SUCCESS;
    default:
        return NVML_ERROR_NOT_SUPPORTED;
    }
}

static bool is_power(unsigned int id) {
    return (id >= NVML_FI_DEV_POWER_AVERAGE && id <= NVML_FI_DEV_POWER_REQUESTED_LIMIT) ||
           id == NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION;
}

static nvmlReturn_t answer(const struct sim_nvml_card *card, nvmlFieldValue_t *field) {
    if (field->fieldId == 0 || field->fieldId >= NVML_FI_MAX)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (field->fieldId <= NVML_FI_DEV_ECC_DBE_AGG_CBU)
        return ecc_field(card, field);
    if (is_power(field->fieldId))
        return power_field(card, field);
    nvmlReturn_t result = other_field(card, field);
    return result == NVML_ERROR_NOT_SUPPORTED ? link_field(card, field) : result;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int valuesCount,
                                                 nvmlFieldValue_t *values) {
    struct sim_nvml_card card;
    struct timespec now;
    nvmlReturn_t result = sim_nvml_look(device, values, &card);
    if (result != NVML_SUCCESS)
        return result;
    if (valuesCount < 1)
        return NVML_ERROR_INVALID_ARGUMENT;
    clock_gettime(CLOCK_REALTIME, &now);
    for (int i = 0; i < valuesCount; i++) {
        values[i].timestamp = (long long)now.tv_sec * 1000000 + now.tv_nsec / 1000;
        values[i].latencyUsec = 0;
        values[i].nvmlReturn = answer(&card, &values[i]);
    }
    return NVML_SUCCESS;
}
