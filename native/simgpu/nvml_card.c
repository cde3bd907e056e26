/* NVML of the simulated machine: which card it is. Names, ids, bus address, board, versions of its firmware.
 */
#include <stdlib.h>

#include "nvml_common.h"

#define VENDOR 0x10de

/* A function that answers with a text made of `card` and `board` by a format. */
#define TEXT(function, has, ...)                                                                             \
    SIM_EXPORT nvmlReturn_t function(nvmlDevice_t device, char *out, unsigned int length) {                  \
        struct sim_nvml_card card;                                                                           \
        nvmlReturn_t result = sim_nvml_look(device, out, &card);                                             \
        if (result != NVML_SUCCESS)                                                                          \
            return result;                                                                                   \
        const struct sim_board *board = sim_board(&card);                                                    \
        char text[96];                                                                                       \
        if (!(has))                                                                                          \
            return NVML_ERROR_NOT_SUPPORTED;                                                                 \
        snprintf(text, sizeof text, __VA_ARGS__);                                                            \
        return sim_nvml_text(out, length, text);                                                             \
    }

/* A number of the card's own that stays with it: the beginning of its UUID. */
static unsigned long long own_number(const struct sim_nvml_card *card) {
    return strtoull(card->uuid + sizeof "GPU-" - 1, NULL, 16); /* ends at the next dash */
}

TEXT(nvmlDeviceGetName, board, "%s", card.name)
TEXT(nvmlDeviceGetUUID, board, "%s", card.uuid)
TEXT(nvmlDeviceGetSerial, board->cooling == SIM_PASSIVE, "%013llu", 320000000000ULL + own_number(&card))
TEXT(nvmlDeviceGetBoardPartNumber, board, "%s", board->part)
TEXT(nvmlDeviceGetVbiosVersion, board, "%s", board->vbios)
TEXT(nvmlDeviceGetInforomImageVersion, board, "%s", board->inforom)

SIM_ANSWER(nvmlDeviceGetIndex, unsigned int, card.index)
SIM_ANSWER(nvmlDeviceGetMinorNumber, unsigned int, card.index)
SIM_ANSWER(nvmlDeviceGetBrand, nvmlBrandType_t, board->brand)
SIM_ANSWER(nvmlDeviceGetBoardId, unsigned int, card.pci_bus << 8)
SIM_ANSWER(nvmlDeviceGetMultiGpuBoard, unsigned int, 0)
SIM_ANSWER_IF(nvmlDeviceGetModuleId, unsigned int, board->links, card.index)
SIM_ANSWER(nvmlDeviceGetNumGpuCores, unsigned int, sim_board_cores(&card))
SIM_ANSWER(nvmlDeviceGetMemoryBusWidth, unsigned int, board->bus_bits)
SIM_ANSWER(nvmlDeviceGetIrqNum, unsigned int, 64 + card.index)
SIM_ANSWER(nvmlDeviceGetBusType, nvmlBusType_t, NVML_BUS_TYPE_PCIE)
SIM_ANSWER(nvmlDeviceGetInforomConfigurationChecksum, unsigned int, (unsigned int)own_number(&card))

static nvmlDeviceArchitecture_t architecture(const struct sim_nvml_card *card) {
    uint32_t capability = 10 * card->major + card->minor;
    return capability >= 100  ? NVML_DEVICE_ARCH_BLACKWELL
           : capability >= 90 ? NVML_DEVICE_ARCH_HOPPER
           : capability == 89 ? NVML_DEVICE_ARCH_ADA
           : capability >= 80 ? NVML_DEVICE_ARCH_AMPERE
           : capability == 75 ? NVML_DEVICE_ARCH_TURING
           : capability >= 70 ? NVML_DEVICE_ARCH_VOLTA
                              : NVML_DEVICE_ARCH_PASCAL;
}
SIM_ANSWER(nvmlDeviceGetArchitecture, nvmlDeviceArchitecture_t, architecture(&card))

SIM_EXPORT nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, major, &card);
    if (result != NVML_SUCCESS)
        return result;
    if (!minor)
        return NVML_ERROR_INVALID_ARGUMENT;
    *major = (int)card.major;
    *minor = (int)card.minor;
    return NVML_SUCCESS;
}

/* Attributes are those of MIG devices; a whole card has none. */
SIM_EXPORT nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t device, nvmlDeviceAttributes_t *attributes) {
    nvmlReturn_t result = sim_nvml_check(device, attributes);
    return result == NVML_SUCCESS ? NVML_ERROR_NOT_SUPPORTED : result;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetAttributes(nvmlDevice_t device, nvmlDeviceAttributes_t *attributes) {
    return nvmlDeviceGetAttributes_v2(device, attributes);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetInforomVersion(nvmlDevice_t device, nvmlInforomObject_t object,
                                                    char *version, unsigned int length) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, version, &card);
    if (result != NVML_SUCCESS)
        return result;
    bool new = card.major >= 8;
    switch (object) {
    case NVML_INFOROM_OEM:
        return sim_nvml_text(version, length, new ? "2.1" : "1.1");
    case NVML_INFOROM_ECC:
        return sim_board_has_ecc(&card) ? sim_nvml_text(version, length, new ? "6.16" : "5.0")
                                        : NVML_ERROR_NOT_SUPPORTED;
    default:
        return (int)object < 0 || object >= NVML_INFOROM_COUNT ? NVML_ERROR_INVALID_ARGUMENT
                                                               : NVML_ERROR_NOT_SUPPORTED;
    }
}

SIM_EXPORT nvmlReturn_t nvmlDeviceValidateInforom(nvmlDevice_t device) {
    return sim_nvml_check(device, device);
}

/* The bus */

static void pci_legacy(const struct sim_nvml_card *card, nvmlPciInfo_t *pci, bool with_subsystem) {
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "%04X:%02X:00.0", card->pci_domain,
             card->pci_bus & 0xff);
    pci->domain = card->pci_domain;
    pci->bus = card->pci_bus;
    pci->device = 0;
    pci->pciDeviceId = (uint32_t)sim_board(card)->pci_device_id << 16 | VENDOR;
    if (with_subsystem)
        pci->pciSubSystemId = VENDOR;
}

/* The struct has grown with the versions: older callers' ends where the older one's fields do. */
static nvmlReturn_t pci_info(nvmlDevice_t device, nvmlPciInfo_t *pci, int version) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, pci, &card);
    if (result != NVML_SUCCESS)
        return result;
    pci_legacy(&card, pci, version >= 2);
    if (version >= 3)
        snprintf(pci->busId, sizeof pci->busId, "%08X:%02X:00.0", card.pci_domain, card.pci_bus & 0xff);
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetPciInfo(nvmlDevice_t device, nvmlPciInfo_t *pci) {
    return pci_info(device, pci, 1);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v2(nvmlDevice_t device, nvmlPciInfo_t *pci) {
    return pci_info(device, pci, 2);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci) {
    return pci_info(device, pci, 3);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetPciInfoExt(nvmlDevice_t device, nvmlPciInfoExt_t *out) {
    nvmlPciInfo_t pci;
    nvmlReturn_t result = out ? pci_info(device, &pci, 3) : sim_nvml_check(device, out);
    if (result != NVML_SUCCESS)
        return result;
    if (out->version != nvmlPciInfoExt_v1)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    *out = (nvmlPciInfoExt_t){
        .version = out->version,
        .domain = pci.domain,
        .bus = pci.bus,
        .device = pci.device,
        .pciDeviceId = pci.pciDeviceId,
        .pciSubSystemId = pci.pciSubSystemId,
        .baseClass = 3, /* display controller, 3D */
        .subClass = 2,
    };
    memcpy(out->busId, pci.busId, sizeof out->busId);
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceOnSameBoard(nvmlDevice_t device1, nvmlDevice_t device2, int *onSameBoard) {
    nvmlReturn_t result = sim_nvml_check(device1, onSameBoard);
    if (result == NVML_SUCCESS)
        result = sim_nvml_check(device2, onSameBoard);
    if (result == NVML_SUCCESS)
        *onSameBoard = sim_nvml_index(device1) == sim_nvml_index(device2);
    return result;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetHandleByUUIDV(const nvmlUUID_t *uuid, nvmlDevice_t *device) {
    if (!sim_nvml_initialised())
        return NVML_ERROR_UNINITIALIZED;
    if (!uuid || !device)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (uuid->version != nvmlUUID_v1)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    char text[96];
    if (uuid->type == NVML_UUID_TYPE_ASCII) {
        snprintf(text, sizeof text, "%.*s", (int)sizeof uuid->value.str, uuid->value.str);
    } else if (uuid->type == NVML_UUID_TYPE_BINARY) {
        const unsigned char *u = uuid->value.bytes;
        snprintf(text, sizeof text,
                 "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1], u[2],
                 u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
    } else {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    return nvmlDeviceGetHandleByUUID(text, device);
}
