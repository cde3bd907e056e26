/*
 * Faults on demand, from SIMGPU_FAULTS: a list separated by commas of
 *
 *   FUNCTION:ERROR        every call fails         cuMemAlloc_v2:oom
 *   FUNCTION:ERROR@N      the N-th call fails      cuMemAlloc_v2:oom@3
 *   FUNCTION:ERROR@N+     the N-th and all later   cuLaunchKernel:launch@100+
 *   FUNCTION:slow=TIME    every call takes longer  cuInit:slow=50ms (or us, s)
 *   cardN:lost            the card falls off the bus when a process joins; until the machine's file is
 * removed
 *
 * ERROR is a word of the table below or a number. FUNCTION is a name as exported; a `*` at its end stands for
 * anything. What cannot be understood is said once on standard error, and left out.
 */
#include "driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct fault {
    char function[64];
    bool prefix;
    CUresult result; /* CUDA_SUCCESS: only slow */
    uint64_t slow_ns;
    uint64_t from, to; /* calls, from 1 */
    _Atomic uint64_t calls;
};

#define FAULTS 32
static struct fault faults[FAULTS];
static size_t fault_count;
static uint32_t lost_cards; /* a bit each */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static const struct {
    const char *word;
    CUresult result;
} errors[] = {
    {"oom", CUDA_ERROR_OUT_OF_MEMORY},         {"invalid", CUDA_ERROR_INVALID_VALUE},
    {"unknown", CUDA_ERROR_UNKNOWN},           {"launch", CUDA_ERROR_LAUNCH_FAILED},
    {"illegal", CUDA_ERROR_ILLEGAL_ADDRESS},   {"ecc", CUDA_ERROR_ECC_UNCORRECTABLE},
    {"notready", CUDA_ERROR_SYSTEM_NOT_READY}, {"nodevice", CUDA_ERROR_NO_DEVICE},
    {"unsupported", CUDA_ERROR_NOT_SUPPORTED}, {"timeout", CUDA_ERROR_LAUNCH_TIMEOUT},
};

static bool parse_error(const char *text, size_t length, CUresult *result) {
    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++) {
        if (strlen(errors[i].word) == length && !strncmp(errors[i].word, text, length)) {
            *result = errors[i].result;
            return true;
        }
    }
    char *end;
    unsigned long number = strtoul(text, &end, 10);
    *result = (CUresult)number;
    return length && number && end == text + length;
}

static bool parse_time(const char *text, uint64_t *ns) {
    char *end;
    double number = strtod(text, &end);
    double unit = !strcmp(end, "us") ? 1e3 : !strcmp(end, "ms") ? 1e6 : !strcmp(end, "s") ? 1e9 : 0;
    if (end == text || unit <= 0 || number < 0 || number * unit > 1e12)
        return false;
    *ns = (uint64_t)(number * unit);
    return true;
}

static bool parse_calls(const char *text, struct fault *fault) {
    char *end;
    fault->from = strtoull(text, &end, 10);
    fault->to = *end == '+' ? UINT64_MAX : fault->from;
    return end != text && fault->from && !end[*end == '+'];
}

static bool parse_lost(const char *text) {
    char *end;
    if (strncmp(text, "card", 4) != 0)
        return false;
    unsigned long card = strtoul(text + 4, &end, 10);
    if (end == text + 4 || card >= SIM_CARDS || strcmp(end, ":lost") != 0)
        return false;
    lost_cards |= 1U << card;
    return true;
}

static bool parse(const char *text) {
    if (parse_lost(text))
        return true;
    const char *colon = strchr(text, ':');
    size_t length = colon ? (size_t)(colon - text) : 0;
    if (!length || length >= sizeof faults[0].function || fault_count == FAULTS)
        return false;
    struct fault *fault = &faults[fault_count];
    memset(fault, 0, sizeof *fault);
    memcpy(fault->function, text, length);
    fault->to = UINT64_MAX;
    if (fault->function[length - 1] == '*') {
        fault->function[length - 1] = 0;
        fault->prefix = true;
    }
    const char *what = colon + 1, *at = strchr(what, '@');
    bool understood = strncmp(what, "slow=", 5) == 0
                          ? parse_time(what + 5, &fault->slow_ns)
                          : parse_error(what, at ? (size_t)(at - what) : strlen(what), &fault->result) &&
                                (!at || parse_calls(at + 1, fault));
    fault_count += understood;
    return understood;
}

static void parse_all(void) {
    const char *list = getenv("SIMGPU_FAULTS");
    while (list && *list) {
        char text[128];
        const char *comma = strchr(list, ',');
        size_t length = comma ? (size_t)(comma - list) : strlen(list);
        snprintf(text, sizeof text, "%.*s", (int)(length < sizeof text ? length : sizeof text - 1), list);
        if (length && !parse(text))
            fprintf(stderr, "simgpu: SIMGPU_FAULTS: '%s' is not understood\n", text);
        list = comma ? comma + 1 : "";
    }
}

static bool is_named(const struct fault *fault, const char *function) {
    return fault->prefix ? !strncmp(fault->function, function, strlen(fault->function))
                         : !strcmp(fault->function, function);
}

static void be_slow(uint64_t ns) {
    struct timespec left = {(time_t)(ns / 1000000000U), (long)(ns % 1000000000U)};
    while (nanosleep(&left, &left) != 0) {
    }
}

CUresult sim_fault(const char *function) {
    CUresult result = CUDA_SUCCESS;
    pthread_once(&once, parse_all);
    for (size_t i = 0; i < fault_count; i++) {
        struct fault *fault = &faults[i];
        if (!is_named(fault, function))
            continue;
        uint64_t call = ++fault->calls;
        if (fault->slow_ns)
            be_slow(fault->slow_ns);
        else if (call >= fault->from && call <= fault->to && result == CUDA_SUCCESS)
            result = fault->result;
    }
    return result;
}

void sim_lose_cards(void) {
    struct sim_machine *machine = sim_machine();
    pthread_once(&once, parse_all);
    for (uint32_t i = 0; machine && i < machine->card_count; i++)
        if (lost_cards >> i & 1)
            machine->cards[i].lost = 1;
}
