/*
 * The simulated machine: its cards and the processes that use them, in one file that all of them map.
 *
 * The file is SIMGPU_DIR/machine; processes with the same directory share one machine. It is made by whoever
 * comes first, from SIMGPU_CARDS (names of cards.csv, separated by commas). A lock guards all of it: a
 * process that is killed with the lock held leaves it to the next, who makes the state whole again.
 *
 * A process is alive while it holds the open-file-description lock on its number's byte of the file, which
 * ends with its mapping, as a real driver's hold on a process ends with its open device. Whoever needs
 * memory, looks at the machine, or joins it reaps the dead first: their memory comes back, their work
 * vanishes.
 */
#ifndef SIM_MACHINE_H
#define SIM_MACHINE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "timeline.h"

#define SIM_EXPORT __attribute__((visibility("default")))
#define SIM_CARDS 16
#define SIM_PROCESSES SIM_TIMELINE_PROCESSES
#define SIM_SHARED 4096
#define SIM_PAGE_BYTES ((uint64_t)2 << 20) /* granularity of device memory */

/* What a model of card is: one row of cards.csv. */
struct sim_model {
    char name[64];           /* as SIMGPU_CARDS has it: V100-SXM2-16GB */
    char nvml_name[64];      /* as NVML prints it: Tesla V100-SXM2-16GB */
    uint64_t memory_bytes;   /* NVML's total */
    uint64_t reserved_bytes; /* the driver's own, part of neither used nor free */
    uint64_t context_bytes;  /* what one context takes */
    uint64_t l2_bytes;
    uint32_t pci_device_id;
    uint32_t sm_count, major, minor; /* compute capability */
    uint32_t max_sm_mhz, threads_per_sm, bandwidth_gbs;
    uint32_t mig_capable;
};

struct sim_card {
    struct sim_model model;
    unsigned char uuid[16];
    uint64_t used_bytes;          /* by all processes, contexts included */
    uint64_t peak_bytes;          /* the most that living processes ever held together */
    uint64_t held[SIM_PROCESSES]; /* by each */
    uint32_t lost;                /* fell off the bus: XID 79 */
    uint32_t pad0;
    struct sim_timeline timeline;
};

struct sim_process {
    uint32_t in_use;
    int32_t pid;            /* in the process's own pid namespace, */
    uint64_t pid_namespace; /* of which this is the number; 0: not known */
    uint64_t generation;
};

/* Memory that other processes may have open too: it outlives its maker for as long as one of them lives. */
struct sim_shared {
    uint64_t bytes; /* 0 = the entry is free */
    uint64_t id;    /* never used twice */
    uint32_t card;
    int32_t payer;                      /* process in whose held[] the bytes are */
    uint64_t users[SIM_PROCESSES / 64]; /* a bit for each process that has it, the payer too */
};

struct sim_machine {
    uint64_t magic;
    uint64_t bytes; /* sizeof this struct: another layout is another version */
    uint32_t version, card_count;
    char driver_version[32]; /* SIMGPU_DRIVER */
    uint32_t cuda_version;   /* SIMGPU_CUDA: 1000 * major + 10 * minor */
    uint32_t processes_high;
    uint32_t lock; /* its owner, and whether somebody waits; see machine.c */
    uint32_t pad0;
    struct sim_process processes[SIM_PROCESSES];
    uint64_t shared_sequence;
    struct sim_shared shared[SIM_SHARED];
    struct sim_card cards[SIM_CARDS];
};

/* Join the machine for looking at it only; NULL and a reason in *why (static text) where that cannot be. */
struct sim_machine *sim_machine_open(const char **why);
/* The machine that this process has joined, or NULL. */
struct sim_machine *sim_machine(void);
/* Become a process of the machine, which can hold memory and submit work; its number, or -1 where there are
 * too many. The same number again for the same process; a forked child has none until it asks. */
int sim_machine_join(void);
/* This process's number, or -1. */
int sim_machine_self(void);

void sim_machine_lock(void);
void sim_machine_unlock(void);

/* All below with the lock held. */

/* Take back what dead processes held; returns how many there were. */
int sim_machine_reap(void);
/* Take whole pages for this process, if they are free; after reaping the dead where they aren't at first. */
bool sim_card_take(uint32_t card, uint64_t bytes);
void sim_card_give(uint32_t card, uint64_t bytes);
uint64_t sim_card_free_bytes(const struct sim_card *card);
/* Bytes that CUDA calls the card's total: what is not the driver's own. */
uint64_t sim_card_total_bytes(const struct sim_card *card);

/* Let other processes open `bytes` that this process has taken; an id, or 0 where there are too many. */
uint64_t sim_shared_make(uint32_t card, uint64_t bytes);
/* This process opens it too; false where it is gone. */
bool sim_shared_open(uint64_t id);
/* This process has no more of it: another user pays from now on, or it is given back to the card. */
void sim_shared_close(uint64_t id);
/* Undo sim_shared_make; the bytes stay this process's. */
void sim_shared_cancel(uint64_t id);

/* The directory of the machine, as the environment says. */
const char *sim_machine_directory(void);

/* ---- models.c ---- */

/* Find a model by its name or alias, in whatever case; false where the table has none. */
bool sim_model_find(const char *name, size_t length, struct sim_model *model);

#endif
