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
#define SPINS 10       /* looks at a lock word before sleeping */
#define NAP_NS 1000000 /* before looking again */
#define PAUSES 64      /* between two looks, of up to 140 cycles each */

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

static void note_charge(struct vcuda_slot_card *own, enum vcuda_kind kind, uint64_t bytes, uint64_t word) {
    add_relaxed(&own->bytes[kind], bytes);
    if ((word & BYTES_MASK) > load_relaxed(&own->peak_bytes))
        store_relaxed(&own->peak_bytes, word & BYTES_MASK);
}

static uint64_t raised(uint64_t word, uint64_t bytes) {
    uint64_t room = BYTES_MASK - (word & BYTES_MASK);
    return word + (bytes < room ? bytes : room);
}

enum attempt { CHARGED, DOES_NOT_FIT, LEASE_LOST };

static enum attempt attempt(const struct vcuda_ledger_map *map, struct vcuda_slot_card *own, uint32_t card,
                            uint64_t bytes, uint64_t limit, uint64_t *after) {
    /* The fence is read before the lease is taken: a thief raises it after, so no theft goes unseen. */
    uint64_t fence_before = fence_of(load(&own->word));
    POINT("fence read");
    uint64_t lease = lease_acquire(map, card);
    uint64_t used = vcuda_ledger_used(map, card);
    bool fits = used <= limit && bytes <= limit - used;
    POINT("summed");
    uint64_t word = load(&own->word);
    enum attempt result = fits ? CHARGED : DOES_NOT_FIT;
    /* A sum made while the lease was another's may be too large as well as too small: believe neither. */
    while (fence_of(word) == fence_before && fits && !swap_if(&own->word, &word, raised(word, bytes)))
        ;
    if (fence_of(word) != fence_before)
        result = LEASE_LOST;
    *after = raised(word, bytes);
    POINT("charged");
    lease_release(map, card, lease);
    return result;
}

bool vcuda_ledger_try_reserve(const struct vcuda_ledger_map *map, uint32_t card, enum vcuda_kind kind,
                              uint64_t bytes, uint64_t limit) {
    if (!can_charge(map, card) || bytes > VCUDA_MAX_BYTES || limit > VCUDA_MAX_BYTES)
        return false;
    struct vcuda_slot_card *own = own_card(map, card);
    bool swept = false;
    for (;;) {
        uint64_t word;
        enum attempt result = attempt(map, own, card, bytes, limit, &word);
        if (__builtin_expect(result == CHARGED, 1)) {
            note_charge(own, kind, bytes, word);
            return true;
        }
        if (result == LEASE_LOST)
            continue;
        if (swept || bytes > limit)
            return false;
        /* Sum again even if nothing was reclaimed here: another may just have done it. */
        vcuda_ledger_reclaim_card(map, card);
        swept = true;
    }
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
    uint64_t word;
    /* Under the lease like any other: a sum in which words rise could show what never was, and refuse for it.
     */
    while (attempt(map, own, card, bytes, UINT64_MAX, &word) != CHARGED)
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
