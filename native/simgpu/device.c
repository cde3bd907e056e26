/* Devices: what this process sees of the machine's cards, in the order of CUDA_VISIBLE_DEVICES. */
#include "driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The card behind `device`, where `result` has somewhere to go; returns from the calling function if not. */
#define LOOK_UP(device, result)                                                                              \
    SIM_BEGIN();                                                                                             \
    uint32_t index;                                                                                          \
    CUresult found = (result) ? sim_card_of(device, &index) : CUDA_ERROR_INVALID_VALUE;                      \
    if (found != CUDA_SUCCESS)                                                                               \
        return found;                                                                                        \
    const struct sim_card *card = &sim_machine()->cards[index]

SIM_EXPORT CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    LOOK_UP(ordinal, device);
    (void)card;
    *device = ordinal;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDeviceGetCount(int *count) {
    SIM_BEGIN();
    if (!count)
        return CUDA_ERROR_INVALID_VALUE;
    *count = sim_device_count();
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDeviceGetName(char *name, int len, CUdevice dev) {
    LOOK_UP(dev, name);
    if (len <= 0)
        return CUDA_ERROR_INVALID_VALUE;
    snprintf(name, (size_t)len, "%s", card->model.nvml_name);
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice dev) {
    LOOK_UP(dev, uuid);
    memcpy(uuid->bytes, card->uuid, sizeof uuid->bytes);
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice dev) {
    LOOK_UP(dev, uuid);
    memcpy(uuid->bytes, card->uuid, sizeof uuid->bytes);
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDeviceGetLuid(char *luid, unsigned int *deviceNodeMask, CUdevice dev) {
    LOOK_UP(dev, luid && deviceNodeMask);
    (void)card;
    return CUDA_ERROR_NOT_SUPPORTED; /* Windows has these */
}

SIM_EXPORT CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice dev) {
    LOOK_UP(dev, bytes);
    *bytes = sim_card_total_bytes(card);
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDeviceTotalMem(unsigned int *bytes, CUdevice dev) {
    LOOK_UP(dev, bytes);
    uint64_t total = sim_card_total_bytes(card);
    *bytes = total > UINT32_MAX ? UINT32_MAX : (unsigned int)total;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDeviceComputeCapability(int *major, int *minor, CUdevice dev) {
    LOOK_UP(dev, major && minor);
    *major = (int)card->model.major;
    *minor = (int)card->model.minor;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDeviceGetPCIBusId(char *pciBusId, int len, CUdevice dev) {
    LOOK_UP(dev, pciBusId);
    (void)card;
    if (len < 13)
        return CUDA_ERROR_INVALID_VALUE;
    snprintf(pciBusId, (size_t)len, "0000:%02X:00.0", index + 1);
    return CUDA_SUCCESS;
}

/* [domain:]bus:device[.function], in hexadecimal; what is left out is 0. */
static bool parse_bus_id(const char *text, unsigned long *domain, unsigned long *bus, unsigned long *rest) {
    unsigned long fields[3];
    size_t count = 0;
    char *end;
    do {
        fields[count++] = strtoul(text, &end, 16);
        if (end == text)
            return false;
        text = end + 1;
    } while (*end == ':' && count < 3);
    unsigned long function = *end == '.' ? strtoul(text, &end, 16) : 0;
    if (count < 2 || *end)
        return false;
    *domain = count == 3 ? fields[0] : 0;
    *bus = fields[count - 2];
    *rest = fields[count - 1] | function;
    return true;
}

SIM_EXPORT CUresult cuDeviceGetByPCIBusId(CUdevice *dev, const char *pciBusId) {
    SIM_BEGIN();
    unsigned long domain, bus, rest;
    if (!dev || !pciBusId || !parse_bus_id(pciBusId, &domain, &bus, &rest))
        return CUDA_ERROR_INVALID_VALUE;
    for (CUdevice ordinal = 0; ordinal < sim_device_count(); ordinal++) {
        uint32_t index;
        if (sim_card_of(ordinal, &index) == CUDA_SUCCESS && !domain && bus == index + 1 && !rest) {
            *dev = ordinal;
            return CUDA_SUCCESS;
        }
    }
    return CUDA_ERROR_INVALID_DEVICE;
}

SIM_EXPORT CUresult cuDeviceGetExecAffinitySupport(int *pi, CUexecAffinityType type, CUdevice dev) {
    LOOK_UP(dev, pi);
    (void)card;
    (void)type;
    *pi = 0;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDeviceGetTexture1DLinearMaxWidth(size_t *maxWidthInElements, CUarray_format format,
                                                       unsigned numChannels, CUdevice dev) {
    LOOK_UP(dev, maxWidthInElements);
    (void)card;
    (void)format;
    if (numChannels != 1 && numChannels != 2 && numChannels != 4)
        return CUDA_ERROR_INVALID_VALUE;
    *maxWidthInElements = 268435456;
    return CUDA_SUCCESS;
}

/* ---- pairs of devices ---- */

static CUresult both(CUdevice one, CUdevice other, bool *same) {
    uint32_t first, second;
    CUresult result = sim_card_of(one, &first);
    if (result == CUDA_SUCCESS)
        result = sim_card_of(other, &second);
    if (result == CUDA_SUCCESS)
        *same = first == second;
    return result;
}

SIM_EXPORT CUresult cuDeviceCanAccessPeer(int *canAccessPeer, CUdevice dev, CUdevice peerDev) {
    SIM_BEGIN();
    bool same;
    CUresult result = canAccessPeer ? both(dev, peerDev, &same) : CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        *canAccessPeer = !same;
    return result;
}

SIM_EXPORT CUresult cuDeviceGetP2PAttribute(int *value, CUdevice_P2PAttribute attrib, CUdevice srcDevice,
                                            CUdevice dstDevice) {
    SIM_BEGIN();
    bool same;
    CUresult result = value ? both(srcDevice, dstDevice, &same) : CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS)
        return result;
    if (same)
        return CUDA_ERROR_INVALID_DEVICE;
    switch (attrib) {
    case CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK:
    case CU_DEVICE_P2P_ATTRIBUTE_ONLY_PARTIAL_NATIVE_ATOMIC_SUPPORTED:
        *value = 0;
        return CUDA_SUCCESS;
    case CU_DEVICE_P2P_ATTRIBUTE_ACCESS_SUPPORTED:
    case CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED:
    case CU_DEVICE_P2P_ATTRIBUTE_CUDA_ARRAY_ACCESS_SUPPORTED:
        *value = 1;
        return CUDA_SUCCESS;
    }
    return CUDA_ERROR_INVALID_VALUE;
}
