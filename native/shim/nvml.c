/*
 * What NVML tells a program of its card: the share's memory and the share's processes, as if that were the
 * card.
 *
 * A program that only looks (nvidia-smi, gpustat) never initialises CUDA: the grant and the ledger are read
 * through a read-only view, and no slot is taken. The driver is asked first every time, so its errors are its
 * own. BAR1 and all that is not said here are the card's. Cards granted whole are shown as they are; of a
 * card that is not granted the memory is the card's and the processes are nobody's.
 *
 * Process ids are those of the caller's pid namespace; a process of the share that lives in another namespace
 * has no name here and is left out of the lists, while its bytes count.
 */
#ifndef NVML_NO_UNVERSIONED_FUNC_DEFS
#define NVML_NO_UNVERSIONED_FUNC_DEFS /* nvml.h is to declare the old names, not to rename them */
#endif
#include "memory.h"
#include "sys.h"

#define NO_INSTANCE 0xffffffffU /* gpuInstanceId where the card is not partitioned */

/* The card behind a handle in the view: -1 not granted, or granted whole, as `*shown` says. */
static int card_of(nvmlDevice_t device, const struct vcuda_view **view, bool *shown) {
    char uuid[96];
    *shown =
        vcuda_share_view(view) && vcuda_real.nvmlDeviceGetUUID(device, uuid, sizeof uuid) == NVML_SUCCESS;
    if (!*shown)
        return -1;
    int card = vcuda_view_card(*view, uuid);
    if (card >= 0 && vcuda_grant_card(&(*view)->grant, (uint32_t)card)->flags & VCUDA_CARD_WHOLE)
        *shown = false;
    return *shown ? card : -1;
}

/* Memory */

/* What the share's living processes have. A dead one's charge stays in the ledger until somebody needs the
 * room, who may write; here it is left out, as the driver leaves it out. */
static uint64_t living_bytes(const struct vcuda_view *view, int card) {
    uint32_t high = __atomic_load_n(&view->ledger.header->slots_high, __ATOMIC_ACQUIRE);
    uint64_t sum = 0;
    for (uint32_t index = 0; index < high && index < view->ledger.slot_count; index++) {
        uint64_t bytes = vcuda_slot_used(vcuda_ledger_slot(&view->ledger, index), (uint32_t)card);
        if (bytes && vcuda_ledger_alive(&view->ledger, index))
            sum += bytes;
    }
    return sum;
}

static void show_memory(const struct vcuda_view *view, int card, unsigned long long *total,
                        unsigned long long *free, unsigned long long *used) {
    uint64_t limit =
        __atomic_load_n(&vcuda_grant_card(&view->grant, (uint32_t)card)->memory_bytes, __ATOMIC_RELAXED);
    uint64_t own = living_bytes(view, card);
    if (limit < *total)
        *total = limit;
    *used = own < *total ? own : *total;
    if (*total - *used < *free)
        *free = *total - *used;
}

VCUDA_EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    const struct vcuda_view *view;
    bool shown;
    nvmlReturn_t result = vcuda_real.nvmlDeviceGetMemoryInfo(device, memory);
    int card = result == NVML_SUCCESS ? card_of(device, &view, &shown) : -1;
    if (card >= 0)
        show_memory(view, card, &memory->total, &memory->free, &memory->used);
    return result;
}

VCUDA_EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory) {
    const struct vcuda_view *view;
    bool shown;
    nvmlReturn_t result = vcuda_real.nvmlDeviceGetMemoryInfo_v2(device, memory);
    int card = result == NVML_SUCCESS ? card_of(device, &view, &shown) : -1;
    if (card >= 0) {
        memory->reserved = 0; /* the driver's own reserve is no part of the share */
        show_memory(view, card, &memory->total, &memory->free, &memory->used);
    }
    return result;
}

/* Processes */

/* The next living process after slot *index that uses `card` and has a pid here; false at the end. */
static bool next_process(const struct vcuda_view *view, int card, uint64_t namespace, uint32_t *index,
                         int *pid, uint64_t *bytes) {
    uint32_t high = __atomic_load_n(&view->ledger.header->slots_high, __ATOMIC_ACQUIRE);
    for (; *index < high && *index < view->ledger.slot_count; (*index)++) {
        const struct vcuda_slot *slot = vcuda_ledger_slot(&view->ledger, *index);
        if (!__atomic_load_n(&slot->in_use, __ATOMIC_ACQUIRE) ||
            (namespace && slot->pid_ns && slot->pid_ns != namespace))
            continue;
        *bytes = vcuda_slot_used(slot, (uint32_t)card);
        *pid = slot->pid;
        if (*bytes && *pid > 0 && vcuda_ledger_alive(&view->ledger, *index)) {
            (*index)++;
            return true;
        }
    }
    return false;
}

static bool is_of_share(const struct vcuda_view *view, int card, uint64_t namespace, unsigned int wanted) {
    uint32_t index = 0;
    uint64_t bytes;
    int pid;
    while (next_process(view, card, namespace, &index, &pid, &bytes))
        if ((unsigned int)pid == wanted)
            return true;
    return false;
}

/* How one version of the lists lays an entry out. */
enum layout { LAYOUT_V1, LAYOUT_V2, LAYOUT_DETAIL };

static void put_process(enum layout layout, void *infos, unsigned int at, int pid, uint64_t bytes) {
    if (layout == LAYOUT_V1)
        ((nvmlProcessInfo_v1_t *)infos)[at] = (nvmlProcessInfo_v1_t){(unsigned int)pid, bytes};
    else if (layout == LAYOUT_V2)
        ((nvmlProcessInfo_v2_t *)infos)[at] =
            (nvmlProcessInfo_v2_t){(unsigned int)pid, bytes, NO_INSTANCE, NO_INSTANCE};
    else
        ((nvmlProcessDetail_v1_t *)infos)[at] =
            (nvmlProcessDetail_v1_t){(unsigned int)pid, bytes, NO_INSTANCE, NO_INSTANCE, 0};
}

/* Fill `infos` with the share's processes, as NVML does: too small a list is told how long it must be. */
static nvmlReturn_t list_share(const struct vcuda_view *view, int card, enum layout layout,
                               unsigned int *count, void *infos) {
    unsigned int room = infos ? *count : 0, found = 0;
    uint64_t namespace = vcuda_own_pid_namespace(), bytes;
    uint32_t index = 0;
    int pid;
    while (card >= 0 && next_process(view, card, namespace, &index, &pid, &bytes)) {
        if (found < room)
            put_process(layout, infos, found, pid, bytes);
        found++;
    }
    *count = found;
    return found > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

static bool is_list(nvmlReturn_t result) {
    return result == NVML_SUCCESS || result == NVML_ERROR_INSUFFICIENT_SIZE;
}

/* The driver is asked how long its list is: that alone shows whether it would have answered. `compute` is
 * false for the lists in which no process of a share stands. */
#define LIST(name, type, layout, compute)                                                                    \
    VCUDA_EXPORT nvmlReturn_t name(nvmlDevice_t device, unsigned int *count, type *infos) {                  \
        const struct vcuda_view *view;                                                                       \
        bool shown;                                                                                          \
        unsigned int probe = 0;                                                                              \
        if (!count || (*count && !infos))                                                                    \
            return vcuda_real.name(device, count, infos);                                                    \
        int card = card_of(device, &view, &shown);                                                           \
        if (!shown)                                                                                          \
            return vcuda_real.name(device, count, infos);                                                    \
        nvmlReturn_t result = vcuda_real.name(device, &probe, NULL);                                         \
        return is_list(result) ? list_share(view, (compute) ? card : -1, layout, count, infos) : result;     \
    }

LIST(nvmlDeviceGetComputeRunningProcesses, nvmlProcessInfo_v1_t, LAYOUT_V1, true)
LIST(nvmlDeviceGetComputeRunningProcesses_v2, nvmlProcessInfo_v2_t, LAYOUT_V2, true)
LIST(nvmlDeviceGetComputeRunningProcesses_v3, nvmlProcessInfo_t, LAYOUT_V2, true)
LIST(nvmlDeviceGetGraphicsRunningProcesses, nvmlProcessInfo_v1_t, LAYOUT_V1, false)
LIST(nvmlDeviceGetGraphicsRunningProcesses_v2, nvmlProcessInfo_v2_t, LAYOUT_V2, false)
LIST(nvmlDeviceGetGraphicsRunningProcesses_v3, nvmlProcessInfo_t, LAYOUT_V2, false)
LIST(nvmlDeviceGetMPSComputeRunningProcesses, nvmlProcessInfo_v1_t, LAYOUT_V1, false)
LIST(nvmlDeviceGetMPSComputeRunningProcesses_v2, nvmlProcessInfo_v2_t, LAYOUT_V2, false)
LIST(nvmlDeviceGetMPSComputeRunningProcesses_v3, nvmlProcessInfo_t, LAYOUT_V2, false)

VCUDA_EXPORT nvmlReturn_t nvmlDeviceGetRunningProcessDetailList(nvmlDevice_t device,
                                                                nvmlProcessDetailList_t *plist) {
    const struct vcuda_view *view;
    bool shown;
    int card = plist ? card_of(device, &view, &shown) : -1;
    if (!plist || !shown)
        return vcuda_real.nvmlDeviceGetRunningProcessDetailList(device, plist);
    nvmlProcessDetailList_t probe = *plist;
    probe.numProcArrayEntries = 0;
    probe.procArray = NULL;
    nvmlReturn_t result = vcuda_real.nvmlDeviceGetRunningProcessDetailList(device, &probe);
    if (!is_list(result))
        return result;
    bool compute = plist->mode == NVML_PROCESS_MODE_COMPUTE || plist->mode == NVML_PROCESS_MODE_ALL;
    return list_share(view, compute ? card : -1, LAYOUT_DETAIL, &plist->numProcArrayEntries,
                      plist->procArray);
}

/* The driver's samples are filtered where they lie: those of the share's processes move to the front. */

VCUDA_EXPORT nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device,
                                                          nvmlProcessUtilizationSample_t *utilization,
                                                          unsigned int *processSamplesCount,
                                                          unsigned long long lastSeenTimeStamp) {
    const struct vcuda_view *view;
    bool shown;
    nvmlReturn_t result = vcuda_real.nvmlDeviceGetProcessUtilization(device, utilization, processSamplesCount,
                                                                     lastSeenTimeStamp);
    if (result != NVML_SUCCESS || !utilization)
        return result;
    int card = card_of(device, &view, &shown);
    if (!shown)
        return result;
    uint64_t namespace = vcuda_own_pid_namespace();
    unsigned int kept = 0;
    for (unsigned int i = 0; i < *processSamplesCount; i++)
        if (card >= 0 && is_of_share(view, card, namespace, utilization[i].pid))
            utilization[kept++] = utilization[i];
    *processSamplesCount = kept;
    return kept ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND; /* as the driver answers when there are no samples */
}

VCUDA_EXPORT nvmlReturn_t
nvmlDeviceGetProcessesUtilizationInfo(nvmlDevice_t device, nvmlProcessesUtilizationInfo_t *procesesUtilInfo) {
    const struct vcuda_view *view;
    bool shown;
    nvmlReturn_t result = vcuda_real.nvmlDeviceGetProcessesUtilizationInfo(device, procesesUtilInfo);
    if (result != NVML_SUCCESS || !procesesUtilInfo->procUtilArray)
        return result;
    int card = card_of(device, &view, &shown);
    if (!shown)
        return result;
    uint64_t namespace = vcuda_own_pid_namespace();
    unsigned int kept = 0;
    nvmlProcessUtilizationInfo_v1_t *samples = procesesUtilInfo->procUtilArray;
    for (unsigned int i = 0; i < procesesUtilInfo->processSamplesCount; i++)
        if (card >= 0 && is_of_share(view, card, namespace, samples[i].pid))
            samples[kept++] = samples[i];
    procesesUtilInfo->processSamplesCount = kept;
    return kept ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}
