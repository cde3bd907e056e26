/*
 * NVML of the simulated machine: events. There is one kind that happens, the loss of a card, XID 79: the GPU
 * has fallen off the bus. A set reports it once for each time that a card is lost; a card that was lost
 * already when it was registered cannot be registered.
 *
 * A waiting thread looks at the machine every 20 ms: nobody tells it.
 */
#include <stdatomic.h>
#include <stddef.h>
#include <time.h>

#include "nvml_common.h"

#define XID_OFF_THE_BUS 79
#define LOOK_NS 20000000

#define SETS 256

struct nvmlEventSet_st {
    _Atomic bool in_use;
    unsigned long long types[SIM_NVML_CARDS]; /* that were asked for */
    bool reported[SIM_NVML_CARDS];            /* the card is lost, and that has been said */
};

static struct nvmlEventSet_st sets[SETS];

static const unsigned long long supported = nvmlEventTypeSingleBitEccError | nvmlEventTypeDoubleBitEccError |
                                            nvmlEventTypePState | nvmlEventTypeXidCriticalError |
                                            nvmlEventTypeClock;

static bool is_set(const struct nvmlEventSet_st *set) {
    uintptr_t offset = (uintptr_t)set - (uintptr_t)sets;
    return offset < sizeof sets && offset % sizeof *sets == 0 && set->in_use;
}

SIM_EXPORT nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set) {
    if (!sim_nvml_initialised())
        return NVML_ERROR_UNINITIALIZED;
    if (!set)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (int i = 0; i < SETS; i++) {
        bool no = false;
        if (!atomic_compare_exchange_strong(&sets[i].in_use, &no, true))
            continue;
        memset(sets[i].types, 0, sizeof sets[i].types);
        memset(sets[i].reported, 0, sizeof sets[i].reported);
        *set = &sets[i];
        return NVML_SUCCESS;
    }
    return NVML_ERROR_INSUFFICIENT_RESOURCES;
}

SIM_EXPORT nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) {
    if (!sim_nvml_initialised())
        return NVML_ERROR_UNINITIALIZED;
    if (!is_set(set))
        return NVML_ERROR_INVALID_ARGUMENT;
    set->in_use = false;
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device,
                                                         unsigned long long *eventTypes) {
    nvmlReturn_t result = sim_nvml_check(device, eventTypes);
    if (result == NVML_SUCCESS)
        *eventTypes = supported;
    return result;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long eventTypes,
                                                 nvmlEventSet_t set) {
    struct sim_nvml_card card;
    nvmlReturn_t result = sim_nvml_look(device, set, &card);
    if (result != NVML_SUCCESS)
        return result;
    if (!is_set(set))
        return NVML_ERROR_INVALID_ARGUMENT;
    if (eventTypes & ~supported)
        return NVML_ERROR_NOT_SUPPORTED;
    set->types[card.index] |= eventTypes;
    return NVML_SUCCESS;
}

/* The first card of the set that was lost since it was last looked at. */
static bool find_event(nvmlEventSet_t set, nvmlEventData_t *data) {
    for (uint32_t index = 0; index < SIM_NVML_CARDS; index++) {
        struct sim_nvml_card card;
        if (!(set->types[index] & nvmlEventTypeXidCriticalError) || !sim_nvml_read(index, &card))
            continue;
        bool report = card.lost && !set->reported[index];
        set->reported[index] = card.lost;
        if (report) {
            *data = (nvmlEventData_t){.device = sim_nvml_handle(index),
                                      .eventType = nvmlEventTypeXidCriticalError,
                                      .eventData = XID_OFF_THE_BUS,
                                      .gpuInstanceId = 0xffffffffU,
                                      .computeInstanceId = 0xffffffffU};
            return true;
        }
    }
    return false;
}

static uint64_t monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

SIM_EXPORT nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data,
                                            unsigned int timeoutms) {
    if (!sim_nvml_initialised())
        return NVML_ERROR_UNINITIALIZED;
    if (!is_set(set) || !data)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (uint64_t until = monotonic_ns() + (uint64_t)timeoutms * 1000000;;) {
        if (find_event(set, data))
            return NVML_SUCCESS;
        uint64_t now = monotonic_ns();
        if (now >= until)
            return NVML_ERROR_TIMEOUT;
        uint64_t left = until - now < LOOK_NS ? until - now : LOOK_NS;
        struct timespec pause = {.tv_nsec = (long)left};
        nanosleep(&pause, NULL);
    }
}

/* The first version's struct ends before the instance ids. */
SIM_EXPORT nvmlReturn_t nvmlEventSetWait(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeoutms) {
    nvmlEventData_t found;
    nvmlReturn_t result = nvmlEventSetWait_v2(set, data ? &found : NULL, timeoutms);
    if (result == NVML_SUCCESS)
        memcpy(data, &found, offsetof(nvmlEventData_t, gpuInstanceId));
    return result;
}
