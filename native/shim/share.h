/*
 * The share of this process: its grant and its slot in the ledger, found once, at cuInit.
 *
 * Promises: without a grant nothing is found and nothing is paid; with a broken one CUDA does not initialise,
 * one line on stderr says why, and the rest of the process runs; a forked child starts without a share of its
 * own.
 */
#ifndef VCUDA_SHARE_H
#define VCUDA_SHARE_H

#include <stdbool.h>

#include "grant.h"
#include "hooks.h"
#include "ledger.h"

#define VCUDA_MAX_DEVICES 64
#define VCUDA_PAGE_BYTES ((uint64_t)2 << 20) /* granularity of device memory where the grant gives none */

/* What the share's failures look like to a program. */
#define VCUDA_ERROR_INIT CUDA_ERROR_SYSTEM_NOT_READY

struct vcuda_share {
    struct vcuda_grant_map grant;
    struct vcuda_ledger_map ledger;
    int granted;                       /* devices that are; 0 = CUDA is not available here */
    bool whole;                        /* every card is granted whole: metered, not limited */
    const uint32_t *alive;             /* 1 here, 0 in a forked child: on a page that fork wipes */
    int8_t card_of[VCUDA_MAX_DEVICES]; /* by CUdevice; -1 = not granted */
};

extern struct vcuda_share *vcuda_share_attached;

/* The share that memory is accounted to, or NULL: no grant, not yet initialised, or a forked child. */
static inline struct vcuda_share *vcuda_share(void) {
    struct vcuda_share *share = __atomic_load_n(&vcuda_share_attached, __ATOMIC_ACQUIRE);
    return __builtin_expect(share != NULL, 1) && *share->alive ? share : NULL;
}

/* As vcuda_share, but NULL too where the cards are whole and so nothing is limited. */
static inline struct vcuda_share *vcuda_limited_share(void) {
    struct vcuda_share *share = vcuda_share();
    return share && !share->whole ? share : NULL;
}

/* Find the grant and take a slot before the driver is initialised: if that fails, it never is. CUDA_SUCCESS
 * also where there is no grant. */
CUresult vcuda_share_prepare(void);
/* Find the granted cards after the driver has been initialised. */
CUresult vcuda_share_attach(void);

/* Whether this process has a grant, and whether it is for whole cards alone: which names are to be hooked.
 * Costs a few system calls the first time; a broken grant counts as a limited one. */
enum vcuda_mode { VCUDA_MODE_NONE, VCUDA_MODE_WHOLE, VCUDA_MODE_LIMITED };
enum vcuda_mode vcuda_share_mode(void);

/* A read-only view for a process that only looks (NVML): false where there is no sound grant and ledger. */
struct vcuda_view {
    struct vcuda_grant_map grant;
    struct vcuda_ledger_map ledger;
};
bool vcuda_share_view(const struct vcuda_view **view);
/* The card's index in the view's grant by NVML UUID text, or -1. */
int vcuda_view_card(const struct vcuda_view *view, const char *uuid);

/* Index into the grant's and ledger's cards, or -1 where the device is not granted. */
static inline int vcuda_card_of(const struct vcuda_share *share, CUdevice device) {
    return device >= 0 && device < VCUDA_MAX_DEVICES ? share->card_of[device] : -1;
}

/* The current context's card. An error of the driver's is passed on through *error. */
int vcuda_current_card(const struct vcuda_share *share, CUresult *error);

static inline const struct vcuda_grant_card *vcuda_share_grant(const struct vcuda_share *share, int card) {
    return vcuda_grant_card(&share->grant, (uint32_t)card);
}

static inline uint64_t vcuda_page_bytes(const struct vcuda_share *share, int card) {
    uint64_t page = vcuda_share_grant(share, card)->page_bytes;
    return page ? page : VCUDA_PAGE_BYTES;
}

static inline struct vcuda_slot_card *vcuda_own_slot_card(const struct vcuda_share *share, int card) {
    return &vcuda_ledger_slot(&share->ledger, (uint32_t)share->ledger.slot)->cards[card];
}

/* Charge, against the card's limit as the grant states it now; how: see vcuda_ledger_reserve_as. */
static inline bool vcuda_reserve_as(const struct vcuda_share *share, int card, enum vcuda_kind kind,
                                    uint64_t bytes, unsigned int how) {
    uint64_t limit = __atomic_load_n(&vcuda_share_grant(share, card)->memory_bytes, __ATOMIC_RELAXED);
    return vcuda_ledger_reserve_as(&share->ledger, (uint32_t)card, kind, bytes,
                                   limit < VCUDA_MAX_BYTES ? limit : VCUDA_MAX_BYTES, how);
}
static inline bool vcuda_reserve(const struct vcuda_share *share, int card, enum vcuda_kind kind,
                                 uint64_t bytes) {
    return vcuda_reserve_as(share, card, kind, bytes, 0);
}
static inline void vcuda_settle(const struct vcuda_share *share, int card, uint64_t bytes) {
    if (bytes)
        vcuda_ledger_settle(&share->ledger, (uint32_t)card, bytes);
}
static inline void vcuda_release(const struct vcuda_share *share, int card, enum vcuda_kind kind,
                                 uint64_t bytes) {
    if (bytes)
        vcuda_ledger_release(&share->ledger, (uint32_t)card, kind, bytes);
}
/* Count a refused allocation and answer as a full card does. */
CUresult vcuda_refuse(const struct vcuda_share *share, int card, uint64_t bytes);

/* Calls into the driver from within a handler may come back through our own names: they are not charged
 * twice. */
extern __thread int vcuda_depth;

static inline uint64_t vcuda_round_up(uint64_t bytes, uint64_t step) {
    return bytes > VCUDA_MAX_BYTES ? VCUDA_MAX_BYTES + 1 : (bytes + step - 1) / step * step;
}

#endif
