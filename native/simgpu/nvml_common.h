/* What NVML's functions of the simulator begin with. */
#ifndef SIM_NVML_COMMON_H
#define SIM_NVML_COMMON_H

#define NVML_NO_UNVERSIONED_FUNC_DEFS /* declare the old names too, rather than rename them */
#include <nvml.h>
#include <stdio.h>
#include <string.h>

#include "nvml_board.h"
#include "nvml_state.h"

/* Check the library's state, the handle and the pointers; leaves the card in `card`. */
static inline nvmlReturn_t sim_nvml_look(nvmlDevice_t device, const void *result,
                                         struct sim_nvml_card *card) {
    if (!sim_nvml_initialised())
        return NVML_ERROR_UNINITIALIZED;
    int index = sim_nvml_index(device);
    if (index < 0 || !result || !sim_nvml_read((uint32_t)index, card))
        return NVML_ERROR_INVALID_ARGUMENT;
    return card->lost ? NVML_ERROR_GPU_IS_LOST : NVML_SUCCESS;
}

/* Check only; for answers that are the same on every card. */
static inline nvmlReturn_t sim_nvml_check(nvmlDevice_t device, const void *result) {
    if (!sim_nvml_initialised())
        return NVML_ERROR_UNINITIALIZED;
    return sim_nvml_index(device) < 0 || !result ? NVML_ERROR_INVALID_ARGUMENT : NVML_SUCCESS;
}

static inline nvmlReturn_t sim_nvml_text(char *out, unsigned int length, const char *text) {
    if (!out)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (strlen(text) >= length)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    memcpy(out, text, strlen(text) + 1);
    return NVML_SUCCESS;
}

/* The cards that this one's NVLinks lead to (nvml_link.c); their number. `peers` may be NULL. */
uint32_t sim_nvml_peers(const struct sim_nvml_card *card, uint32_t peers[SIM_NVML_CARDS]);

/* A function whose whole answer is one value, an expression of `card` and `board`. */
#define SIM_ANSWER(function, type, value)                                                                    \
    SIM_EXPORT nvmlReturn_t function(nvmlDevice_t device, type *out) {                                       \
        struct sim_nvml_card card;                                                                           \
        nvmlReturn_t result = sim_nvml_look(device, out, &card);                                             \
        if (result != NVML_SUCCESS)                                                                          \
            return result;                                                                                   \
        const struct sim_board *board = sim_board(&card);                                                    \
        (void)board;                                                                                         \
        *out = (value);                                                                                      \
        return NVML_SUCCESS;                                                                                 \
    }

/* The same where only some cards have it, as `has` says. */
#define SIM_ANSWER_IF(function, type, has, value)                                                            \
    SIM_EXPORT nvmlReturn_t function(nvmlDevice_t device, type *out) {                                       \
        struct sim_nvml_card card;                                                                           \
        nvmlReturn_t result = sim_nvml_look(device, out, &card);                                             \
        if (result != NVML_SUCCESS)                                                                          \
            return result;                                                                                   \
        const struct sim_board *board = sim_board(&card);                                                    \
        (void)board;                                                                                         \
        if (!(has))                                                                                          \
            return NVML_ERROR_NOT_SUPPORTED;                                                                 \
        *out = (value);                                                                                      \
        return NVML_SUCCESS;                                                                                 \
    }

/* A setting and what it will be after the next reboot: nothing here changes. */
#define SIM_ANSWER_PENDING(function, type, has, value)                                                       \
    SIM_EXPORT nvmlReturn_t function(nvmlDevice_t device, type *current, type *pending) {                    \
        struct sim_nvml_card card;                                                                           \
        nvmlReturn_t result = sim_nvml_look(device, device, &card);                                          \
        if (result != NVML_SUCCESS)                                                                          \
            return result;                                                                                   \
        if (!(has))                                                                                          \
            return NVML_ERROR_NOT_SUPPORTED;                                                                 \
        if (!current || !pending)                                                                            \
            return NVML_ERROR_INVALID_ARGUMENT;                                                              \
        *current = *pending = (value);                                                                       \
        return NVML_SUCCESS;                                                                                 \
    }

/* No header of NVIDIA's declares this one; see nvml_system.c. */
nvmlReturn_t nvmlInternalGetExportTable(const void **table, const void *id);

#endif
