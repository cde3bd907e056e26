/*
 * NVML of the simulated machine: how cards are joined. PCI Express to the host, NVLink to each other on SXM
 * boards, and where a card is near.
 *
 * Two cards each sit behind a PCIe switch (0 and 1, 2 and 3, ...), all under one host bridge, near all
 * processors. On SXM boards of Volta each link goes to another card, in turns; of later ones to a switch. A
 * card that is the only one of its NVLink generation has its links down.
 */
#include <sched.h>
#include <unistd.h>

#include "nvml_common.h"

SIM_ANSWER(nvmlDeviceGetMaxPcieLinkGeneration, unsigned int, board->pcie_generation)
SIM_ANSWER(nvmlDeviceGetGpuMaxPcieLinkGeneration, unsigned int, board->pcie_generation)
SIM_ANSWER(nvmlDeviceGetCurrPcieLinkGeneration, unsigned int,
           sim_board_at_rest(&card) && board->idle == SIM_IDLE_P8 ? 1 : board->pcie_generation)
SIM_ANSWER(nvmlDeviceGetMaxPcieLinkWidth, unsigned int, 16)
SIM_ANSWER(nvmlDeviceGetCurrPcieLinkWidth, unsigned int, 16)
SIM_ANSWER(nvmlDeviceGetPcieLinkMaxSpeed, unsigned int, board->pcie_generation)   /* the codes count alike */
SIM_ANSWER(nvmlDeviceGetPcieSpeed, unsigned int, 1000U << board->pcie_generation) /* MT/s of a lane */

/* KB/s over the last interval: while copies run they take three quarters of what the bus could carry. */
SIM_EXPORT nvmlReturn_t nvmlDeviceGetPcieThroughput(nvmlDevice_t device, nvmlPcieUtilCounter_t counter,
                                                    unsigned int *value) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, value, &card);
    if (result != NVML_SUCCESS)
        return result;
    if ((int)counter < 0 || counter >= NVML_PCIE_UTIL_COUNT)
        return NVML_ERROR_INVALID_ARGUMENT;
    *value = (1500000U << sim_board(&card)->pcie_generation) / 100 * card.memory_percent;
    return NVML_SUCCESS;
}

/* Processors and memory that are near */

static nvmlReturn_t near_cpus(nvmlDevice_t device, unsigned int cpuSetSize, unsigned long *cpuSet) {
    nvmlReturn_t result = sim_nvml_check(device, cpuSet);
    if (result != NVML_SUCCESS)
        return result;
    long cpus = sysconf(_SC_NPROCESSORS_CONF);
    const unsigned int bits = 8 * sizeof *cpuSet;
    memset(cpuSet, 0, cpuSetSize * sizeof *cpuSet);
    for (long cpu = 0; cpu < cpus && (unsigned long)cpu < (unsigned long)cpuSetSize * bits; cpu++)
        cpuSet[(unsigned long)cpu / bits] |= 1UL << ((unsigned long)cpu % bits);
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetCpuAffinity(nvmlDevice_t device, unsigned int cpuSetSize,
                                                 unsigned long *cpuSet) {
    return near_cpus(device, cpuSetSize, cpuSet);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetCpuAffinityWithinScope(nvmlDevice_t device, unsigned int cpuSetSize,
                                                            unsigned long *cpuSet,
                                                            nvmlAffinityScope_t scope) {
    return scope > NVML_AFFINITY_SCOPE_SOCKET ? NVML_ERROR_INVALID_ARGUMENT
                                              : near_cpus(device, cpuSetSize, cpuSet);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetMemoryAffinity(nvmlDevice_t device, unsigned int nodeSetSize,
                                                    unsigned long *nodeSet, nvmlAffinityScope_t scope) {
    nvmlReturn_t result = sim_nvml_check(device, nodeSet);
    if (result != NVML_SUCCESS)
        return result;
    if (!nodeSetSize || scope > NVML_AFFINITY_SCOPE_SOCKET)
        return NVML_ERROR_INVALID_ARGUMENT;
    memset(nodeSet, 0, nodeSetSize * sizeof *nodeSet);
    nodeSet[0] = 1;
    return NVML_SUCCESS;
}

SIM_ANSWER(nvmlDeviceGetNumaNodeId, unsigned int, 0)

SIM_EXPORT nvmlReturn_t nvmlDeviceSetCpuAffinity(nvmlDevice_t device) {
    return sim_nvml_check(device, device); /* all processors are near: nothing to change */
}

SIM_EXPORT nvmlReturn_t nvmlDeviceClearCpuAffinity(nvmlDevice_t device) {
    return sim_nvml_check(device, device);
}

/* Cards that are near */

static nvmlGpuTopologyLevel_t level_between(uint32_t one, uint32_t other) {
    return one == other           ? NVML_TOPOLOGY_INTERNAL
           : one / 2 == other / 2 ? NVML_TOPOLOGY_SINGLE
                                  : NVML_TOPOLOGY_HOSTBRIDGE;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t device1, nvmlDevice_t device2,
                                                            nvmlGpuTopologyLevel_t *pathInfo) {
    nvmlReturn_t result = sim_nvml_check(device1, pathInfo);
    if (result == NVML_SUCCESS)
        result = sim_nvml_check(device2, pathInfo);
    if (result == NVML_SUCCESS)
        *pathInfo = level_between((uint32_t)sim_nvml_index(device1), (uint32_t)sim_nvml_index(device2));
    return result;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetTopologyNearestGpus(nvmlDevice_t device, nvmlGpuTopologyLevel_t level,
                                                         unsigned int *count, nvmlDevice_t *deviceArray) {
    nvmlReturn_t result = sim_nvml_check(device, count);
    if (result != NVML_SUCCESS)
        return result;
    unsigned int room = deviceArray ? *count : 0, found = 0;
    uint32_t self = (uint32_t)sim_nvml_index(device);
    for (int other = 0; other < sim_nvml_card_count(); other++) {
        if ((uint32_t)other == self || level_between(self, (uint32_t)other) != level)
            continue;
        if (found < room)
            deviceArray[found] = sim_nvml_handle((uint32_t)other);
        found++;
    }
    *count = deviceArray && found > room ? room : found;
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlSystemGetTopologyGpuSet(unsigned int cpuNumber, unsigned int *count,
                                                    nvmlDevice_t *deviceArray) {
    if (!sim_nvml_initialised())
        return NVML_ERROR_UNINITIALIZED;
    if (!count || (long)cpuNumber >= sysconf(_SC_NPROCESSORS_CONF))
        return NVML_ERROR_INVALID_ARGUMENT;
    unsigned int room = deviceArray ? *count : 0;
    int cards = sim_nvml_card_count();
    for (unsigned int i = 0; i < room && (int)i < cards; i++)
        deviceArray[i] = sim_nvml_handle(i);
    *count = cards > 0 ? (unsigned int)cards : 0;
    return NVML_SUCCESS;
}

/* NVLink */

static bool has_switch(const struct sim_board *board) {
    return board->link_version >= 3;
}

/* Look at a link of a card; NVML_ERROR_NOT_SUPPORTED where the card has none at all. */
static nvmlReturn_t look_at_link(nvmlDevice_t device, unsigned int link, const void *out,
                                 struct sim_nvml_card *card) {
    nvmlReturn_t result = sim_nvml_look(device, out, card);
    if (result != NVML_SUCCESS)
        return result;
    if (link >= NVML_NVLINK_MAX_LINKS)
        return NVML_ERROR_INVALID_ARGUMENT;
    return link < sim_board(card)->links ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

uint32_t sim_nvml_peers(const struct sim_nvml_card *card, uint32_t peers[SIM_NVML_CARDS]) {
    uint32_t found = 0;
    int cards = sim_board(card)->links ? sim_nvml_card_count() : 0;
    for (uint32_t index = 0; (int)index < cards; index++) {
        struct sim_nvml_card other;
        if (index == card->index || !sim_nvml_read(index, &other) ||
            sim_board(&other)->link_version != sim_board(card)->link_version)
            continue;
        if (peers)
            peers[found] = index;
        found++;
    }
    return found;
}

static bool linked(const struct sim_nvml_card *card) {
    return sim_nvml_peers(card, NULL) > 0;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t device, unsigned int link,
                                                 nvmlEnableState_t *isActive) {
    struct sim_nvml_card card;
    nvmlReturn_t result = look_at_link(device, link, isActive, &card);
    if (result == NVML_SUCCESS)
        *isActive = linked(&card) ? NVML_FEATURE_ENABLED : NVML_FEATURE_DISABLED;
    return result;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetNvLinkVersion(nvmlDevice_t device, unsigned int link,
                                                   unsigned int *version) {
    struct sim_nvml_card card;
    nvmlReturn_t result = look_at_link(device, link, version, &card);
    if (result == NVML_SUCCESS)
        *version = sim_board(&card)->link_version;
    return result;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetNvLinkCapability(nvmlDevice_t device, unsigned int link,
                                                      nvmlNvLinkCapability_t capability,
                                                      unsigned int *capResult) {
    struct sim_nvml_card card;
    nvmlReturn_t result = look_at_link(device, link, capResult, &card);
    if (result != NVML_SUCCESS)
        return result;
    if ((int)capability < 0 || capability >= NVML_NVLINK_CAP_COUNT)
        return NVML_ERROR_INVALID_ARGUMENT;
    *capResult = capability != NVML_NVLINK_CAP_SLI_BRIDGE;
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlDevice_t device, unsigned int link,
                                                            nvmlPciInfo_t *pci) {
    struct sim_nvml_card card;
    nvmlReturn_t result = look_at_link(device, link, pci, &card);
    if (result != NVML_SUCCESS)
        return result;
    uint32_t peers[SIM_NVML_CARDS], count = sim_nvml_peers(&card, peers);
    if (!count)
        return NVML_ERROR_NOT_SUPPORTED;
    if (!has_switch(sim_board(&card)))
        return nvmlDeviceGetPciInfo_v3(sim_nvml_handle(peers[link % count]), pci);
    memset(pci, 0, sizeof *pci);
    pci->bus = 0xc0 + link % 6;
    pci->pciDeviceId = 0x1af110de;
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "0000:%02X:00.0", pci->bus & 0xff);
    snprintf(pci->busId, sizeof pci->busId, "00000000:%02X:00.0", pci->bus & 0xff);
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetNvLinkRemoteDeviceType(nvmlDevice_t device, unsigned int link,
                                                            nvmlIntNvLinkDeviceType_t *type) {
    struct sim_nvml_card card;
    nvmlReturn_t result = look_at_link(device, link, type, &card);
    if (result != NVML_SUCCESS)
        return result;
    if (!linked(&card))
        return NVML_ERROR_NOT_SUPPORTED;
    *type = has_switch(sim_board(&card)) ? NVML_NVLINK_DEVICE_TYPE_SWITCH : NVML_NVLINK_DEVICE_TYPE_GPU;
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetNvLinkErrorCounter(nvmlDevice_t device, unsigned int link,
                                                        nvmlNvLinkErrorCounter_t counter,
                                                        unsigned long long *counterValue) {
    struct sim_nvml_card card;
    nvmlReturn_t result = look_at_link(device, link, counterValue, &card);
    if (result != NVML_SUCCESS)
        return result;
    if ((int)counter < 0 || counter >= NVML_NVLINK_ERROR_COUNT)
        return NVML_ERROR_INVALID_ARGUMENT;
    *counterValue = 0;
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetP2PStatus(nvmlDevice_t device1, nvmlDevice_t device2,
                                               nvmlGpuP2PCapsIndex_t p2pIndex,
                                               nvmlGpuP2PStatus_t *p2pStatus) {
    struct sim_nvml_card one, other;
    nvmlReturn_t result = sim_nvml_look(device1, p2pStatus, &one);
    if (result == NVML_SUCCESS)
        result = sim_nvml_look(device2, p2pStatus, &other);
    if (result != NVML_SUCCESS)
        return result;
    if ((int)p2pIndex < 0 || p2pIndex >= NVML_P2P_CAPS_INDEX_UNKNOWN)
        return NVML_ERROR_INVALID_ARGUMENT;
    bool by_link = linked(&one) && sim_board(&one)->link_version == sim_board(&other)->link_version;
    bool needs_link = p2pIndex == NVML_P2P_CAPS_INDEX_NVLINK || p2pIndex == NVML_P2P_CAPS_INDEX_ATOMICS;
    *p2pStatus =
        sim_board(&one)->brand == NVML_BRAND_GEFORCE_RTX || sim_board(&other)->brand == NVML_BRAND_GEFORCE_RTX
            ? NVML_P2P_STATUS_GPU_NOT_SUPPORTED
        : needs_link && !by_link ? NVML_P2P_STATUS_NOT_SUPPORTED
                                 : NVML_P2P_STATUS_OK;
    return NVML_SUCCESS;
}

/* The fabric manager's business begins with Hopper's switches; it has nothing to say here. */
SIM_EXPORT nvmlReturn_t nvmlDeviceGetGpuFabricInfo(nvmlDevice_t device, nvmlGpuFabricInfo_t *info) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, info, &card);
    if (result == NVML_SUCCESS)
        *info = (nvmlGpuFabricInfo_t){.status = NVML_SUCCESS, .state = NVML_GPU_FABRIC_STATE_NOT_SUPPORTED};
    return result;
}
