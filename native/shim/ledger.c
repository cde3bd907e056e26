/*
 * The ledger's charges, made under a lease that can be stolen.
 * The invariants and the interleavings behind each step: docs/decisions/0001-ledger.md.
 */
#include "ledger_parts.h"

#include "sys.h"

/* The lock word: 0 = free, else slot + 1 in bits 48-63, "somebody sleeps" in bit 47, a ticket below. */
#define LOCK_SLOT_SHIFT 48
#define LOCK_SLEEPERS ((uint64_t)1 << 47)
#define LOCK_TICKET_MASK (LOCK_SLEEPERS - 1)
#define SPINS 10           /* looks at a lock word before sleeping */
#define NAP_NS 1000000     /* before looking again */
#define SETTLE_NS 40000000 /* for so long at most others are waited for that may give something back */
#define PAUSES 64          /* between two looks, of up to 140 cycles each */

/* A few microseconds: whoever looks takes the lock's cache line from those who use it, and a core that
 * charges many times in a row has all it needs at hand. Looking at once and often made eight processes three
 * times as slow. */
static void relax(void) {
    for (int i = 0; i < PAUSES; i++) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ volatile("yield");
#endif
    }
}

/* ---- the lease ---- */

/* Unique among the acquisitions that any waiter can have in view: the slot's generation, then a count. Each
 * thread draws counts by the thousand, so that threads that charge at once do not meet over them as well. */
#define TICKETS 1024
static uint64_t next_ticket(const struct vcuda_ledger_map *map) {
    static uint64_t drawn;
    static __thread uint64_t count;
    if (count % TICKETS == 0)
        count = __atomic_fetch_add(&drawn, TICKETS, __ATOMIC_RELAXED);
    uint64_t ticket = (map->generation << 32) + ++count;
    return ((uint64_t)(map->slot + 1) << LOCK_SLOT_SHIFT) | (ticket & LOCK_TICKET_MASK);
}

/* Bumps the fence of the holder named in a lock word, so that it cannot commit on what it has summed. */
static void fence(const struct vcuda_ledger_map *map, uint32_t card, uint64_t lock_word) {
    uint32_t index = (uint32_t)(lock_word >> LOCK_SLOT_SHIFT);
    struct vcuda_slot *slot = index ? vcuda_ledger_slot(map, index - 1) : NULL;
    if (slot)
        __atomic_fetch_add(&slot->cards[card].word, FENCE_ONE, __ATOMIC_SEQ_CST);
}

/* The low half of a lock word, which changes with every acquisition; what sleepers watch. */
static const void *futex_of(const uint64_t *lock) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return lock;
#else
    return (const char *)lock + 4;
#endif
}

/* The word that was found, 0 if the lease was taken. */
static uint64_t spin(uint64_t *lock, uint64_t mine) {
    uint64_t word = 0;
    for (int spins = 0; spins < SPINS; spins++) {
        word = load(lock);
        if (word == 0 && swap_if(lock, &word, mine))
            return 0;
        relax();
    }
    return word;
}

__attribute__((noinline)) static void lease_acquire_slow(const struct vcuda_ledger_map *map, uint32_t card,
                                                         uint64_t mine) {
    uint64_t *lock = &map->header->cards[card].lock;
    uint64_t seen = 0, seen_since = 0, word;
    while ((word = spin(lock, mine)) != 0) {
        uint64_t now = sys_clock_ns(CLOCK_MONOTONIC);
        if ((word & ~LOCK_SLEEPERS) != seen) {
            seen = word & ~LOCK_SLEEPERS;
            seen_since = now;
        }
        if (now - seen_since >= VCUDA_LEASE_NS) {
            /* Fence first: were we killed between the two, a fenced holder merely tries again. */
            fence(map, card, word);
            POINT("fenced");
            if (swap_if(lock, &word, mine | LOCK_SLEEPERS))
                return;
            continue;
        }
        if (!(word & LOCK_SLEEPERS) && !swap_if(lock, &word, word | LOCK_SLEEPERS))
            continue;
        mine |= LOCK_SLEEPERS; /* whoever has slept cannot know that nobody else sleeps */
        uint64_t left = VCUDA_LEASE_NS - (now - seen_since);
        /* Not for the rest of the lease: others may pass, again and again, and whoever was woken may be
         * killed. */
        sys_futex_wait(futex_of(lock), (uint32_t)word, left < NAP_NS ? left : NAP_NS);
    }
}

static uint64_t lease_acquire(const struct vcuda_ledger_map *map, uint32_t card) {
    uint64_t mine = next_ticket(map);
    uint64_t expected = 0;
    if (__builtin_expect(!swap_if(&map->header->cards[card].lock, &expected, mine), 0))
        lease_acquire_slow(map, card, mine);
    POINT("lease taken");
    return mine;
}

static void lease_release(const struct vcuda_ledger_map *map, uint32_t card, uint64_t mine) {
    uint64_t *lock = &map->header->cards[card].lock;
    uint64_t expected = mine;
    if (__builtin_expect(swap_if(lock, &expected, 0), 1))
        return;
    expected = mine | LOCK_SLEEPERS;
    if (swap_if(lock, &expected, 0))
        sys_futex_wake(futex_of(lock), 1);
    /* Otherwise the lease was lost, and the lock is another's. */
}

/* ---- charges ---- */

uint64_t vcuda_ledger_used(const struct vcuda_ledger_map *map, uint32_t card) {
    uint64_t sum = 0;
    const char *slot = map->slots;
    for (uint32_t left = slots_high(map); left > 0; left--, slot += map->slot_bytes)
        sum += load(&((const struct vcuda_slot *)slot)->cards[card].word) & BYTES_MASK;
    return sum;
}

uint64_t vcuda_slot_used(const struct vcuda_slot *slot, uint32_t card) {
    return load(&slot->cards[card].word) & BYTES_MASK;
}

/* A reader has no slot to charge, and no ledger more cards than fit. */
static bool can_charge(const struct vcuda_ledger_map *map, uint32_t card) {
    return __builtin_expect(card < VCUDA_MAX_CARDS && map->slot >= 0, 1);
}

static struct vcuda_slot_card *own_card(const struct vcuda_ledger_map *map, uint32_t card) {
    return &vcuda_ledger_slot(map, (uint32_t)map->slot)->cards[card];
}

__attribute__((noinline)) static void announce_first(const struct vcuda_ledger_map *map, uint64_t *charged) {
    vcuda_ledger_identify(map);
    uint64_t group = (uint64_t)1 << (uint32_t)map->slot % GROUPS;
    if (!(load(charged_groups(map)) & group))
        __atomic_fetch_or(charged_groups(map), group, __ATOMIC_SEQ_CST);
    __atomic_store_n(charged, 1, __ATOMIC_SEQ_CST);
}

/* Before the first charge: a slot that says it has none is not searched for what a dead owner left. */
static void announce(const struct vcuda_ledger_map *map) {
    uint64_t *charged = &vcuda_ledger_slot(map, (uint32_t)map->slot)->charged;
    if (__builtin_expect(load_relaxed(charged) == 0, 0))
        announce_first(map, charged);
}

static void note_charge(struct vcuda_slot_card *own, enum vcuda_kind kind, uint64_t bytes, uint64_t word) {
    add_relaxed(&own->bytes[kind], bytes);
    if ((word & BYTES_MASK) > load_relaxed(&own->peak_bytes))
        store_relaxed(&own->peak_bytes, word & BYTES_MASK);
}

static uint64_t raised(uint64_t word, uint64_t bytes) {
    uint64_t room = BYTES_MASK - (word & BYTES_MASK);
    return word + (bytes < room ? bytes : room);
}

/* What processes may give back in a moment: reserved before they knew what the driver would really take. */
static uint64_t unsettled(const struct vcuda_ledger_map *map, uint32_t card) {
    uint64_t sum = 0;
    for (uint32_t index = 0; index < slots_high(map); index++) {
        const struct vcuda_slot_card *each = &vcuda_ledger_slot(map, index)->cards[card];
        uint64_t bytes = load(&each->unsettled), held = load(&each->word) & BYTES_MASK;
        sum += bytes < held ? bytes : held;
    }
    return sum;
}

struct request {
    uint32_t card;
    uint64_t bytes, limit;
    unsigned int how; /* VCUDA_UNSETTLED, VCUDA_AT_ONCE */
};

enum attempt { CHARGED, DOES_NOT_FIT, MAY_FIT_SOON, LEASE_LOST };

static enum attempt look(const struct vcuda_ledger_map *map, const struct request *request) {
    uint64_t used = vcuda_ledger_used(map, request->card);
    if (__builtin_expect(used <= request->limit && request->bytes <= request->limit - used, 1))
        return CHARGED;
    /* What is unsettled first, then the sum: what is given back in between must not be missed in both. */
    uint64_t soon = unsettled(map, request->card);
    used = vcuda_ledger_used(map, request->card);
    uint64_t settled = used - (soon < used ? soon : used);
    return settled <= request->limit && request->bytes <= request->limit - settled ? MAY_FIT_SOON
                                                                                   : DOES_NOT_FIT;
}

static enum attempt attempt(const struct vcuda_ledger_map *map, struct vcuda_slot_card *own,
                            const struct request *request, uint64_t *after) {
    /* The fence is read before the lease is taken: a thief raises it after, so no theft goes unseen. */
    uint64_t fence_before = fence_of(load(&own->word));
    POINT("fence read");
    uint64_t lease = lease_acquire(map, request->card);
    enum attempt result = look(map, request);
    POINT("summed");
    if (request->how & VCUDA_UNSETTLED && result == CHARGED)
        add_relaxed(&own->unsettled, request->bytes);
    uint64_t word = load(&own->word);
    /* A sum made while the lease was another's may be too large as well as too small: believe neither. */
    while (fence_of(word) == fence_before && result == CHARGED &&
           !swap_if(&own->word, &word, raised(word, request->bytes)))
        ;
    bool lost = fence_of(word) != fence_before;
    if (lost && request->how & VCUDA_UNSETTLED && result == CHARGED)
        add_relaxed(&own->unsettled, -request->bytes);
    *after = raised(word, request->bytes);
    POINT("charged");
    lease_release(map, request->card, lease);
    return lost ? LEASE_LOST : result;
}

/* Waits a little, and longer each time; false when that has gone on for too long. */
static bool wait_for_others_to_settle(uint64_t *since, uint64_t *nap_ns) {
    uint64_t now = sys_clock_ns(CLOCK_MONOTONIC);
    if (*since == 0)
        *since = now;
    if (now - *since > SETTLE_NS)
        return false;
    struct timespec pause = {0, (long)*nap_ns};
    syscall(SYS_nanosleep, &pause, NULL);
    *nap_ns = *nap_ns < NAP_NS / 4 ? *nap_ns * 2 : *nap_ns;
    return true;
}

static bool reserve(const struct vcuda_ledger_map *map, enum vcuda_kind kind, const struct request *request) {
    if (!can_charge(map, request->card) || request->bytes > VCUDA_MAX_BYTES ||
        request->limit > VCUDA_MAX_BYTES)
        return false;
    struct vcuda_slot_card *own = own_card(map, request->card);
    announce(map);
    uint64_t waits_since = 0, nap_ns = NAP_NS / 64;
    bool swept = false;
    for (;;) {
        uint64_t word;
        enum attempt result = attempt(map, own, request, &word);
        if (__builtin_expect(result == CHARGED, 1)) {
            note_charge(own, kind, request->bytes, word);
            return true;
        }
        if (result == LEASE_LOST)
            continue;
        if (request->bytes > request->limit)
            return false;
        if (!swept) {
            /* Sum again even if nothing was reclaimed here: another may just have done it. */
            vcuda_ledger_reclaim_card(map, request->card);
            swept = true;
        } else if (result == DOES_NOT_FIT || request->how & VCUDA_AT_ONCE ||
                   !wait_for_others_to_settle(&waits_since, &nap_ns)) {
            return false;
        }
    }
}

bool vcuda_ledger_try_reserve(const struct vcuda_ledger_map *map, uint32_t card, enum vcuda_kind kind,
                              uint64_t bytes, uint64_t limit) {
    return reserve(map, kind, &(struct request){card, bytes, limit, 0});
}

bool vcuda_ledger_reserve_as(const struct vcuda_ledger_map *map, uint32_t card, enum vcuda_kind kind,
                             uint64_t bytes, uint64_t limit, unsigned int how) {
    return reserve(map, kind, &(struct request){card, bytes, limit, how});
}

void vcuda_ledger_settle(const struct vcuda_ledger_map *map, uint32_t card, uint64_t bytes) {
    if (can_charge(map, card))
        __atomic_fetch_sub(&own_card(map, card)->unsettled, bytes, __ATOMIC_SEQ_CST);
}

void vcuda_ledger_count_refusal(const struct vcuda_ledger_map *map, uint32_t card, uint64_t bytes) {
    if (!can_charge(map, card))
        return;
    struct vcuda_slot_card *own = own_card(map, card);
    add_relaxed(&own->refused, 1);
    store_relaxed(&own->refused_bytes, bytes);
}

bool vcuda_ledger_reserve(const struct vcuda_ledger_map *map, uint32_t card, enum vcuda_kind kind,
                          uint64_t bytes, uint64_t limit) {
    if (vcuda_ledger_try_reserve(map, card, kind, bytes, limit))
        return true;
    vcuda_ledger_count_refusal(map, card, bytes);
    return false;
}

void vcuda_ledger_charge(const struct vcuda_ledger_map *map, uint32_t card, enum vcuda_kind kind,
                         uint64_t bytes) {
    if (!can_charge(map, card))
        return;
    struct vcuda_slot_card *own = own_card(map, card);
    const struct request request = {card, bytes, UINT64_MAX, 0};
    announce(map);
    uint64_t word;
    /* Under the lease like any other: a sum in which words rise could show what never was, and refuse. */
    while (attempt(map, own, &request, &word) != CHARGED)
        ;
    note_charge(own, kind, bytes, word);
}

void vcuda_ledger_release(const struct vcuda_ledger_map *map, uint32_t card, enum vcuda_kind kind,
                          uint64_t bytes) {
    if (!can_charge(map, card))
        return;
    struct vcuda_slot_card *own = own_card(map, card);
    /* The kind first: a reader then never sees kinds sum to more than the word by a release. */
    __atomic_fetch_sub(&own->bytes[kind], bytes, __ATOMIC_RELAXED);
    uint64_t word = load(&own->word), next;
    do {
        uint64_t held = word & BYTES_MASK;
        next = fence_of(word) | (held >= bytes ? held - bytes : 0);
    } while (!swap_if(&own->word, &word, next));
}
