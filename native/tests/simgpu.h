/*
 * What the tests of the simulated driver's memory share: a machine of their own each, and the machine's own
 * count beside what the driver says.
 */
#ifndef SIMGPU_TESTS_H
#define SIMGPU_TESTS_H

#ifndef __CUDA_API_VERSION_INTERNAL
#define __CUDA_API_VERSION_INTERNAL
#endif
#include <cuda.h>
#include <sys/stat.h>

#include "check.h"
#include "machine.h"

#define KIB ((uint64_t)1 << 10)
#define MIB ((uint64_t)1 << 20)
#define GIB ((uint64_t)1 << 30)
#define PAGE (2 * MIB)
#define V100_TOTAL (16384 * MIB)
#define V100_RESERVED (224 * MIB)
#define V100_CONTEXT (306 * MIB)

#define OK(call) CHECK_EQUAL(call, CUDA_SUCCESS)

/* A machine that nobody else has, beneath the one that the environment names. */
static inline void fresh_machine(const char *cards) {
    const char *parent = getenv("SIMGPU_DIR");
    char path[512];
    snprintf(path, sizeof path, "%s/%d", parent ? parent : "/tmp/simgpu-tests", (int)getpid());
    setenv("SIMGPU_DIR", path, 1);
    setenv("SIMGPU_CARDS", cards, 1);
}

/* A fresh machine of one V100, and a current context on it. */
static inline CUcontext on_v100(void) {
    CUcontext context;
    fresh_machine("V100-SXM2-16GB");
    OK(cuInit(0));
    OK(cuCtxCreate_v2(&context, 0, 0));
    return context;
}

static inline struct sim_card *card_at(uint32_t index) {
    const char *why;
    struct sim_machine *machine = sim_machine_open(&why);
    CHECK(machine && index < machine->card_count);
    return &machine->cards[index];
}

/* Bytes of the card that living processes hold, by the machine's count, which the driver's has to equal. */
static inline uint64_t used_of(uint32_t index) {
    struct sim_card *card = card_at(index);
    sim_machine_lock();
    sim_machine_reap();
    uint64_t used = card->used_bytes, held = 0;
    for (int i = 0; i < SIM_PROCESSES; i++)
        held += card->held[i];
    sim_machine_unlock();
    CHECK_EQUAL(held, used);
    return used;
}

/* The same without the one context that on_v100 makes. */
static inline uint64_t data_bytes(void) {
    return used_of(0) - V100_CONTEXT;
}

#endif
