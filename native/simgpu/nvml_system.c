/* NVML of the simulated machine: the library itself, versions, error texts, and finding a card. */
#include <stdlib.h>

#include "nvml_common.h"

#include <fcntl.h>
#include <unistd.h>

static int initialised;              /* nvmlInit counts, as NVIDIA's does */
static char handles[SIM_NVML_CARDS]; /* a handle is an address in here */

bool sim_nvml_initialised(void) {
    return __atomic_load_n(&initialised, __ATOMIC_ACQUIRE) > 0;
}

int sim_nvml_index(const struct nvmlDevice_st *device) {
    uintptr_t offset = (uintptr_t)device - (uintptr_t)handles;
    return offset < SIM_NVML_CARDS && (int)offset < sim_nvml_card_count() ? (int)offset : -1;
}

struct nvmlDevice_st *sim_nvml_handle(uint32_t index) {
    return (struct nvmlDevice_st *)(void *)&handles[index];
}

SIM_EXPORT nvmlReturn_t nvmlInitWithFlags(unsigned int flags) {
    int count = sim_nvml_card_count();
    if (count < 0 || (count == 0 && !(flags & NVML_INIT_FLAG_NO_GPUS)))
        return NVML_ERROR_DRIVER_NOT_LOADED;
    __atomic_add_fetch(&initialised, 1, __ATOMIC_ACQ_REL);
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlInit_v2(void) {
    return nvmlInitWithFlags(0);
}

SIM_EXPORT nvmlReturn_t nvmlInit(void) {
    return nvmlInitWithFlags(0);
}

SIM_EXPORT nvmlReturn_t nvmlShutdown(void) {
    if (!sim_nvml_initialised())
        return NVML_ERROR_UNINITIALIZED;
    __atomic_sub_fetch(&initialised, 1, __ATOMIC_ACQ_REL);
    return NVML_SUCCESS;
}

static const struct {
    nvmlReturn_t code;
    const char *text;
} errors[] = {
    {NVML_SUCCESS, "Success"},
    {NVML_ERROR_UNINITIALIZED, "Uninitialized"},
    {NVML_ERROR_INVALID_ARGUMENT, "Invalid Argument"},
    {NVML_ERROR_NOT_SUPPORTED, "Not Supported"},
    {NVML_ERROR_NO_PERMISSION, "Insufficient Permissions"},
    {NVML_ERROR_ALREADY_INITIALIZED, "Already Initialized"},
    {NVML_ERROR_NOT_FOUND, "Not Found"},
    {NVML_ERROR_INSUFFICIENT_SIZE, "Insufficient Size"},
    {NVML_ERROR_INSUFFICIENT_POWER, "Insufficient External Power"},
    {NVML_ERROR_DRIVER_NOT_LOADED, "Driver Not Loaded"},
    {NVML_ERROR_TIMEOUT, "Timeout"},
    {NVML_ERROR_IRQ_ISSUE, "Interrupt Request Issue"},
    {NVML_ERROR_LIBRARY_NOT_FOUND, "NVML Shared Library Not Found"},
    {NVML_ERROR_FUNCTION_NOT_FOUND, "Function Not Found"},
    {NVML_ERROR_CORRUPTED_INFOROM, "Corrupted infoROM"},
    {NVML_ERROR_GPU_IS_LOST, "GPU is lost"},
    {NVML_ERROR_RESET_REQUIRED, "GPU requires reset"},
    {NVML_ERROR_OPERATING_SYSTEM, "GPU access blocked by the operating system"},
    {NVML_ERROR_LIB_RM_VERSION_MISMATCH, "Driver/library version mismatch"},
    {NVML_ERROR_IN_USE, "In use by another client"},
    {NVML_ERROR_MEMORY, "Insufficient Memory"},
    {NVML_ERROR_NO_DATA, "No data"},
    {NVML_ERROR_INSUFFICIENT_RESOURCES, "Insufficient Resources"},
    {NVML_ERROR_ARGUMENT_VERSION_MISMATCH, "Argument version mismatch"},
};

SIM_EXPORT const char *nvmlErrorString(nvmlReturn_t result) {
    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++)
        if (errors[i].code == result)
            return errors[i].text;
    return "Unknown Error";
}

SIM_EXPORT nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    return sim_nvml_initialised() ? sim_nvml_text(version, length, sim_nvml_driver_version())
                                  : NVML_ERROR_UNINITIALIZED;
}

/* NVML's version is that of its API's major and the driver: nvidia-smi asks that this be its own. */
SIM_EXPORT nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length) {
    char text[96];
    snprintf(text, sizeof text, "%d.%s", sim_nvml_cuda_version() / 1000, sim_nvml_driver_version());
    return sim_nvml_text(version, length, text);
}

SIM_EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) {
    if (!version)
        return NVML_ERROR_INVALID_ARGUMENT;
    *version = sim_nvml_cuda_version();
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
    return nvmlSystemGetCudaDriverVersion(version);
}

SIM_EXPORT nvmlReturn_t nvmlSystemGetProcessName(unsigned int pid, char *name, unsigned int length) {
    char path[64], text[1024];
    if (!sim_nvml_initialised())
        return NVML_ERROR_UNINITIALIZED;
    if (!name || !length)
        return NVML_ERROR_INVALID_ARGUMENT;
    snprintf(path, sizeof path, "/proc/%u/cmdline", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    if (got <= 0)
        return NVML_ERROR_NOT_FOUND;
    text[got] = 0; /* the first argument ends at its own NUL */
    snprintf(name, length, "%s", text);
    return NVML_SUCCESS;
}

/* Finding a card */

SIM_EXPORT nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) {
    if (!sim_nvml_initialised())
        return NVML_ERROR_UNINITIALIZED;
    if (!count)
        return NVML_ERROR_INVALID_ARGUMENT;
    int cards = sim_nvml_card_count();
    *count = cards > 0 ? (unsigned int)cards : 0;
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetCount(unsigned int *count) {
    return nvmlDeviceGetCount_v2(count);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    if (!sim_nvml_initialised())
        return NVML_ERROR_UNINITIALIZED;
    int cards = sim_nvml_card_count();
    if (!device || cards <= 0 || index >= (unsigned int)cards)
        return NVML_ERROR_INVALID_ARGUMENT;
    *device = sim_nvml_handle(index);
    return NVML_SUCCESS;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t *device) {
    return nvmlDeviceGetHandleByIndex_v2(index, device);
}

static nvmlReturn_t handle_by(nvmlReturn_t (*get)(nvmlDevice_t, char *, unsigned int), const char *wanted,
                              nvmlDevice_t *device) {
    if (!sim_nvml_initialised())
        return NVML_ERROR_UNINITIALIZED;
    if (!wanted || !device)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (int index = 0; index < sim_nvml_card_count(); index++) {
        char text[96];
        if (get(sim_nvml_handle((uint32_t)index), text, sizeof text) == NVML_SUCCESS &&
            !strcmp(text, wanted)) {
            *device = sim_nvml_handle((uint32_t)index);
            return NVML_SUCCESS;
        }
    }
    return NVML_ERROR_NOT_FOUND;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    return handle_by(nvmlDeviceGetUUID, uuid, device);
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice_t *device) {
    return handle_by(nvmlDeviceGetSerial, serial, device);
}

/* domain:bus:device.function, the domain of any width. */
static bool parse_bus_id(const char *text, unsigned long parts[3]) {
    for (int i = 0; i < 3; i++) {
        char *end;
        parts[i] = strtoul(text, &end, 16);
        if (end == text || (i < 2 && *end != ':'))
            return false;
        text = end + (*end == ':');
    }
    return true;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *pciBusId, nvmlDevice_t *device) {
    unsigned long wanted[3];
    if (!sim_nvml_initialised())
        return NVML_ERROR_UNINITIALIZED;
    if (!pciBusId || !device || !parse_bus_id(pciBusId, wanted))
        return NVML_ERROR_INVALID_ARGUMENT;
    for (int index = 0; index < sim_nvml_card_count(); index++) {
        nvmlPciInfo_t pci;
        if (nvmlDeviceGetPciInfo_v3(sim_nvml_handle((uint32_t)index), &pci) == NVML_SUCCESS &&
            pci.domain == wanted[0] && pci.bus == wanted[1] && pci.device == wanted[2]) {
            *device = sim_nvml_handle((uint32_t)index);
            return NVML_SUCCESS;
        }
    }
    return NVML_ERROR_NOT_FOUND;
}

SIM_EXPORT nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char *pciBusId, nvmlDevice_t *device) {
    return nvmlDeviceGetHandleByPciBusId_v2(pciBusId, device);
}

/*
 * No header has this function, but nvidia-smi refuses an NVML that lacks it. It asks for tables of private
 * functions by an id, and does without where it gets none; nothing of them is imitated here.
 */
SIM_EXPORT nvmlReturn_t nvmlInternalGetExportTable(const void **table, const void *id) {
    if (!table || !id)
        return NVML_ERROR_INVALID_ARGUMENT;
    *table = NULL;
    return NVML_SUCCESS;
}
