/* cuInit: joining the machine, and which of its cards this process sees. */
#include "driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum state { FRESH, READY, FORKED };

static _Atomic int state = FRESH;
static uint32_t visible[SIM_CARDS]; /* by ordinal */
static int visible_count;

CUresult sim_initialised(void) {
    return state == READY ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
}

int sim_device_count(void) {
    return visible_count;
}

CUresult sim_card_of(CUdevice device, uint32_t *card) {
    if (device < 0 || device >= visible_count)
        return CUDA_ERROR_INVALID_DEVICE;
    *card = visible[device];
    return CUDA_SUCCESS;
}

/* The card that one word of CUDA_VISIBLE_DEVICES means: an index, or the beginning of one card's UUID; -1. */
static int card_named(const struct sim_machine *machine, const char *word, size_t length) {
    char text[48], uuid[48];
    int found = -1;
    if (!length || length >= sizeof text)
        return -1;
    memcpy(text, word, length);
    text[length] = 0;
    if (strncasecmp(text, "GPU-", 4) != 0) {
        char *end;
        long index = strtol(text, &end, 10);
        return *end || index < 0 || index >= (long)machine->card_count ? -1 : (int)index;
    }
    for (uint32_t i = 0; i < machine->card_count; i++) {
        const unsigned char *u = machine->cards[i].uuid;
        snprintf(uuid, sizeof uuid,
                 "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1], u[2],
                 u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
        if (strncasecmp(uuid, text, length) != 0)
            continue;
        if (found >= 0)
            return -1;
        found = (int)i;
    }
    return found;
}

/* The list ends at the first word that is no card; a card named twice makes it empty. As NVIDIA documents it.
 */
static void choose_visible(const struct sim_machine *machine) {
    const char *list = getenv("CUDA_VISIBLE_DEVICES");
    visible_count = 0;
    if (!list) {
        for (uint32_t i = 0; i < machine->card_count; i++)
            visible[visible_count++] = i;
        return;
    }
    while (*list) {
        list += strspn(list, " ");
        const char *comma = strchr(list, ',');
        size_t length = comma ? (size_t)(comma - list) : strlen(list);
        size_t trimmed = length;
        while (trimmed && list[trimmed - 1] == ' ')
            trimmed--;
        int card = card_named(machine, list, trimmed);
        if (card < 0)
            return;
        for (int i = 0; i < visible_count; i++) {
            if (visible[i] == (uint32_t)card) {
                visible_count = 0;
                return;
            }
        }
        visible[visible_count++] = (uint32_t)card;
        list = comma ? comma + 1 : "";
    }
}

static void forked(void) {
    if (state == READY)
        state = FORKED; /* as NVIDIA's driver: what the parent has begun cannot be gone on with */
}

static CUresult start(void) {
    const char *why = NULL;
    const struct sim_machine *machine = sim_machine_open(&why);
    if (!machine) {
        fprintf(stderr, "simgpu: %s (%s)\n", why, sim_machine_directory());
        return CUDA_ERROR_SYSTEM_NOT_READY;
    }
    choose_visible(machine);
    if (!visible_count)
        return CUDA_ERROR_NO_DEVICE;
    if (sim_machine_join() < 0) {
        fprintf(stderr, "simgpu: no room for one more process (%d at most)\n", SIM_PROCESSES);
        return CUDA_ERROR_SYSTEM_NOT_READY;
    }
    sim_lose_cards();
    pthread_atfork(NULL, NULL, forked);
    state = READY;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuInit(unsigned int Flags) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    CUresult result = sim_fault(__func__);
    if (result != CUDA_SUCCESS)
        return result;
    if (Flags)
        return CUDA_ERROR_INVALID_VALUE;
    if (state == FORKED)
        return CUDA_ERROR_NOT_INITIALIZED;
    pthread_mutex_lock(&lock);
    result = state == READY ? CUDA_SUCCESS : start();
    pthread_mutex_unlock(&lock);
    return result;
}

SIM_EXPORT CUresult cuDriverGetVersion(int *driverVersion) {
    const struct sim_machine *machine = sim_machine_open(NULL);
    if (!driverVersion)
        return CUDA_ERROR_INVALID_VALUE;
    if (!machine)
        return CUDA_ERROR_SYSTEM_NOT_READY;
    *driverVersion = (int)machine->cuda_version;
    return CUDA_SUCCESS;
}
