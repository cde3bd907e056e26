/*
 * The ledger's protocol: slots owned through file locks, charges made under a lease.
 * The invariants and the interleavings behind each step: docs/decisions/0001-ledger.md.
 *
 * All atomics are sequentially consistent unless named relaxed: the proof leans on one total order, and on x86-64
 * the read-modify-writes cost the same either way.
 */
#include "ledger.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "sys.h"
#include "vcuda/abi_check.h"

/* Marked instants at which tests kill or stop the process. */
#ifdef VCUDA_LEDGER_POINTS
void vcuda_ledger_point(const char *name);
#define POINT(name) vcuda_ledger_point(name)
#else
#define POINT(name) ((void)0)
#endif

#define BYTES_MASK ((uint64_t)VCUDA_MAX_BYTES)
#define VERSION_ONE ((uint64_t)1 << 44)

/* The lock word: 0 = free, else slot + 1 in bits 48-63, "somebody sleeps" in bit 47, a ticket below. */
#define LOCK_SLOT_SHIFT 48
#define LOCK_SLEEPERS ((uint64_t)1 << 47)
#define LOCK_TICKET_MASK (LOCK_SLEEPERS - 1)
#define SPINS 100

/* Lock bytes lie far beyond the file's end, so that no reader of the file trips over them. */
#define SLOT_LOCK_BASE ((int64_t)1 << 40)

static uint64_t load(const uint64_t *word) {
    return __atomic_load_n(word, __ATOMIC_SEQ_CST);
}
static uint64_t load_relaxed(const uint64_t *word) {
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}
static void add_relaxed(uint64_t *word, uint64_t amount) {
    __atomic_fetch_add(word, amount, __ATOMIC_RELAXED);
}
static bool swap_if(uint64_t *word, uint64_t *expected, uint64_t desired) {
    return __atomic_compare_exchange_n(word, expected, desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
static uint64_t version_of(uint64_t word) {
    return word & ~BYTES_MASK;
}
static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* ---- the file ---- */

static uint64_t file_bytes_for(uint32_t slot_count) {
    return sizeof(struct vcuda_ledger) + (uint64_t)slot_count * sizeof(struct vcuda_slot);
}

enum vcuda_ledger_status vcuda_ledger_create(const char *path, uint32_t slot_count) {
    if (slot_count == 0)
        slot_count = VCUDA_DEFAULT_SLOTS;
    if (slot_count > VCUDA_MAX_SLOTS) {
        errno = EINVAL;
        return VCUDA_LEDGER_GARBAGE;
    }
    char draft[300];
    if (snprintf(draft, sizeof draft, "%s.new", path) >= (int)sizeof draft) {
        errno = ENAMETOOLONG;
        return VCUDA_LEDGER_MISSING;
    }
    int fd = sys_open(draft, O_RDWR | O_CREAT | O_TRUNC);
    if (fd < 0)
        return VCUDA_LEDGER_MISSING;
    struct vcuda_ledger header;
    memset(&header, 0, sizeof header);
    header.magic = VCUDA_LEDGER_MAGIC;
    header.abi_major = VCUDA_ABI_MAJOR;
    header.abi_minor = VCUDA_ABI_MINOR;
    header.header_bytes = sizeof header;
    header.file_bytes = file_bytes_for(slot_count);
    header.slot_count = slot_count;
    header.slot_bytes = sizeof(struct vcuda_slot);
    header.created_ns = sys_clock_ns(CLOCK_REALTIME);
    /* Slots stay a hole until their first owner comes; the umask must not keep the container's user out. */
    bool written = write(fd, &header, sizeof header) == (ssize_t)sizeof header &&
                   ftruncate(fd, (off_t)header.file_bytes) == 0 && fchmod(fd, 0666) == 0;
    int error = errno;
    close(fd);
    if (written && rename(draft, path) == 0)
        return VCUDA_LEDGER_OK;
    if (written)
        error = errno;
    unlink(draft);
    errno = error;
    return error == ENOSPC ? VCUDA_LEDGER_NO_SPACE : VCUDA_LEDGER_MISSING;
}

/* Whether a header read from the file can be believed; the file's true size is given. */
static enum vcuda_ledger_status check(const struct vcuda_ledger *header, uint64_t file_bytes,
                                      struct vcuda_ledger_map *map) {
    if (file_bytes < sizeof *header)
        return VCUDA_LEDGER_TRUNCATED;
    if (header->magic != VCUDA_LEDGER_MAGIC)
        return VCUDA_LEDGER_GARBAGE;
    map->other_major = header->abi_major;
    map->other_minor = header->abi_minor;
    if (header->abi_major != VCUDA_ABI_MAJOR)
        return VCUDA_LEDGER_VERSION;
    if (header->header_bytes < sizeof *header || header->header_bytes % 64 != 0 ||
        header->header_bytes > 65536 || header->slot_bytes < sizeof(struct vcuda_slot) ||
        header->slot_bytes % 64 != 0 || header->slot_bytes > 65536 || header->slot_count == 0 ||
        header->slot_count > VCUDA_MAX_SLOTS)
        return VCUDA_LEDGER_GARBAGE;
    uint64_t needed = header->header_bytes + (uint64_t)header->slot_count * header->slot_bytes;
    if (header->file_bytes != needed)
        return VCUDA_LEDGER_GARBAGE;
    return file_bytes < needed ? VCUDA_LEDGER_TRUNCATED : VCUDA_LEDGER_OK;
}

/* Opens, checks and maps; on success *fd_out stays open for the caller to close. */
static enum vcuda_ledger_status map_file(struct vcuda_ledger_map *map, const char *path, bool writable,
                                         int *fd_out) {
    memset(map, 0, sizeof *map);
    map->slot = -1;
    if (strlen(path) >= sizeof map->path) {
        errno = ENAMETOOLONG;
        return VCUDA_LEDGER_MISSING;
    }
    strcpy(map->path, path);
    int fd = sys_open(path, (writable ? O_RDWR : O_RDONLY) | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        return writable && (errno == EROFS || errno == EACCES) ? VCUDA_LEDGER_READ_ONLY : VCUDA_LEDGER_MISSING;
    enum vcuda_ledger_status status = VCUDA_LEDGER_MISSING;
    struct stat st;
    struct vcuda_ledger header;
    if (sys_fstat(fd, &st) != 0)
        goto fail;
    status = VCUDA_LEDGER_GARBAGE;
    if (!S_ISREG(st.st_mode))
        goto fail;
    ssize_t got = pread(fd, &header, sizeof header, 0);
    status = check(&header, got < (ssize_t)sizeof header ? 0 : (uint64_t)st.st_size, map);
    if (status != VCUDA_LEDGER_OK)
        goto fail;
    /* A hole in the header would fault on a full disk; the slots are allocated by their owners. */
    if (writable && sys_fallocate(fd, 0, header.header_bytes) != 0 && errno == ENOSPC) {
        status = VCUDA_LEDGER_NO_SPACE;
        goto fail;
    }
    map->map_bytes = header.file_bytes;
    void *memory = mmap(NULL, map->map_bytes, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) {
        status = VCUDA_LEDGER_MISSING;
        goto fail;
    }
    madvise(memory, map->map_bytes, MADV_DONTFORK);
    map->header = memory;
    map->slots = (char *)memory + header.header_bytes;
    map->slot_count = header.slot_count;
    map->slot_bytes = header.slot_bytes;
    map->device = (uint64_t)st.st_dev;
    map->inode = (uint64_t)st.st_ino;
    *fd_out = fd;
    return VCUDA_LEDGER_OK;
fail:;
    int error = errno;
    close(fd);
    errno = error;
    return status;
}

enum vcuda_ledger_status vcuda_ledger_open(struct vcuda_ledger_map *map, const char *path, bool writable) {
    int fd;
    enum vcuda_ledger_status status = map_file(map, path, writable, &fd);
    if (status == VCUDA_LEDGER_OK)
        close(fd);
    return status;
}

void vcuda_ledger_close(struct vcuda_ledger_map *map) {
    if (map->header)
        munmap(map->header, map->map_bytes);
    map->header = NULL;
    map->slot = -1;
}

/* ---- slots ---- */

struct vcuda_slot *vcuda_ledger_slot(const struct vcuda_ledger_map *map, uint32_t index) {
    if (index >= map->slot_count)
        return NULL;
    return (struct vcuda_slot *)(map->slots + (uint64_t)index * map->slot_bytes);
}

static uint32_t slots_high(const struct vcuda_ledger_map *map) {
    uint32_t high = __atomic_load_n(&map->header->slots_high, __ATOMIC_SEQ_CST);
    return high < map->slot_count ? high : map->slot_count;
}

static bool lock_slot(int fd, uint32_t index) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = SLOT_LOCK_BASE + index, .l_len = 1};
    return sys_file_lock(fd, F_OFD_SETLK, &lock) == 0;
}

static void unlock_slot(int fd, uint32_t index) {
    struct flock lock = {.l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = SLOT_LOCK_BASE + index, .l_len = 1};
    sys_file_lock(fd, F_OFD_SETLK, &lock);
}

/* A second open file of the ledger: its view of the locks is that of a stranger. */
static int open_stranger(const struct vcuda_ledger_map *map, int flags) {
    int fd = sys_open(map->path, flags | O_NOCTTY | O_NONBLOCK);
    struct stat st;
    if (fd >= 0 && (sys_fstat(fd, &st) != 0 || (uint64_t)st.st_dev != map->device ||
                    (uint64_t)st.st_ino != map->inode)) {
        close(fd);
        errno = ESTALE;
        return -1;
    }
    return fd;
}

static bool alive(int fd, uint32_t index) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = SLOT_LOCK_BASE + index, .l_len = 1};
    /* If the kernel cannot say, the owner lives: memory is never given twice. */
    return sys_file_lock(fd, F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

bool vcuda_ledger_alive(const struct vcuda_ledger_map *map, uint32_t index) {
    int fd = open_stranger(map, O_RDONLY);
    if (fd < 0)
        return true;
    bool result = alive(fd, index);
    close(fd);
    return result;
}

/* Empties a slot whose file lock the caller holds; its totals go to the card's. */
static void empty_slot(const struct vcuda_ledger_map *map, struct vcuda_slot *slot, bool was_in_use) {
    for (uint32_t card = 0; card < VCUDA_MAX_CARDS; card++) {
        struct vcuda_slot_card *own = &slot->cards[card];
        struct vcuda_ledger_card *all = &map->header->cards[card];
        uint64_t word = load(&own->word);
        bool held = (word & BYTES_MASK) != 0;
        /* The version must not repeat for a thief who still has the old owner in view. */
        while (!swap_if(&own->word, &word, version_of(word) + VERSION_ONE))
            ;
        for (uint32_t kind = 0; kind < VCUDA_KINDS; kind++)
            __atomic_store_n(&own->bytes[kind], 0, __ATOMIC_RELAXED);
        add_relaxed(&all->ended_gpu_ns, __atomic_exchange_n(&own->gpu_ns, 0, __ATOMIC_RELAXED));
        add_relaxed(&all->ended_launches, __atomic_exchange_n(&own->launches, 0, __ATOMIC_RELAXED));
        add_relaxed(&all->ended_wait_ns, __atomic_exchange_n(&own->wait_ns, 0, __ATOMIC_RELAXED));
        add_relaxed(&all->ended_refused, __atomic_exchange_n(&own->refused, 0, __ATOMIC_RELAXED));
        own->waits = own->refused_bytes = own->peak_bytes = 0;
        if (was_in_use && held) {
            add_relaxed(&all->reclaimed, 1);
            __atomic_store_n(&all->reclaimed_ns, sys_clock_ns(CLOCK_MONOTONIC), __ATOMIC_RELAXED);
        }
    }
    __atomic_store_n(&slot->in_use, 0, __ATOMIC_SEQ_CST);
}

static bool holds_anything(const struct vcuda_slot *slot) {
    if (__atomic_load_n(&slot->in_use, __ATOMIC_SEQ_CST))
        return true;
    for (uint32_t card = 0; card < VCUDA_MAX_CARDS; card++)
        if (load(&slot->cards[card].word) & BYTES_MASK)
            return true;
    return false;
}

uint32_t vcuda_ledger_reclaim(const struct vcuda_ledger_map *map) {
    int fd = -1;
    uint32_t emptied = 0;
    for (uint32_t index = 0; index < slots_high(map); index++) {
        struct vcuda_slot *slot = vcuda_ledger_slot(map, index);
        if ((int)index == map->slot || !holds_anything(slot))
            continue;
        if (fd < 0 && (fd = open_stranger(map, O_RDWR)) < 0)
            return 0;
        if (!lock_slot(fd, index))
            continue;
        if (holds_anything(slot)) {
            POINT("reclaim");
            empty_slot(map, slot, true);
            emptied++;
        }
        unlock_slot(fd, index);
    }
    if (fd >= 0)
        close(fd);
    return emptied;
}

/* Field 22 of /proc/self/stat: clock ticks from boot to the process's start; 0 if it cannot be read. */
static uint64_t own_start_ticks(void) {
    char text[512];
    int fd = sys_open("/proc/self/stat", O_RDONLY);
    if (fd < 0)
        return 0;
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    if (got <= 0)
        return 0;
    text[got] = 0;
    const char *field = strrchr(text, ')'); /* the name before it may hold anything */
    for (int number = 2; field && number < 22; number++)
        field = strchr(field + 1, ' ');
    return field ? strtoull(field + 1, NULL, 10) : 0;
}

static uint64_t own_pid_namespace(void) {
    char text[64];
    ssize_t got = readlink("/proc/self/ns/pid", text, sizeof text - 1); /* "pid:[4026531836]" */
    if (got <= 0)
        return 0;
    text[got] = 0;
    const char *number = strchr(text, '[');
    return number ? strtoull(number + 1, NULL, 10) : 0;
}

static void name_self(char comm[16]) {
    memset(comm, 0, 16);
    int fd = sys_open("/proc/self/comm", O_RDONLY);
    if (fd < 0)
        return;
    ssize_t got = read(fd, comm, 15);
    close(fd);
    comm[got > 0 && comm[got - 1] == '\n' ? got - 1 : 15] = 0;
}

static bool take_slot(struct vcuda_ledger_map *map, int fd, uint32_t index, enum vcuda_ledger_status *status) {
    if (!lock_slot(fd, index)) {
        if (errno != EAGAIN && errno != EACCES)
            *status = VCUDA_LEDGER_NO_LOCKS;
        return false;
    }
    POINT("slot locked");
    struct vcuda_slot *slot = vcuda_ledger_slot(map, index);
    uint64_t offset = (uint64_t)((char *)slot - (char *)map->header);
    if (sys_fallocate(fd, offset, sizeof *slot) != 0 && errno == ENOSPC) {
        *status = VCUDA_LEDGER_NO_SPACE;
        unlock_slot(fd, index);
        return false;
    }
    empty_slot(map, slot, slot->in_use != 0);
    map->generation = __atomic_add_fetch(&slot->generation, 1, __ATOMIC_SEQ_CST);
    slot->pid = (int32_t)getpid();
    slot->pid_ns = own_pid_namespace();
    slot->start_ticks = own_start_ticks();
    name_self(slot->comm);
    slot->attach_ns = sys_clock_ns(CLOCK_MONOTONIC);
    uint32_t high = __atomic_load_n(&map->header->slots_high, __ATOMIC_SEQ_CST);
    while (high < index + 1 && !__atomic_compare_exchange_n(&map->header->slots_high, &high, index + 1, false,
                                                            __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        ;
    POINT("slot counted");
    __atomic_store_n(&slot->in_use, 1, __ATOMIC_SEQ_CST);
    map->slot = (int)index;
    return true;
}

enum vcuda_ledger_status vcuda_ledger_attach(struct vcuda_ledger_map *map, const char *path) {
    int fd;
    enum vcuda_ledger_status status = map_file(map, path, true, &fd);
    if (status != VCUDA_LEDGER_OK)
        return status;
    status = VCUDA_LEDGER_FULL;
    /* First the slots that say they are free, so that many starting at once seldom try each other's; then all. */
    for (int pass = 0; pass < 2 && map->slot < 0 && status == VCUDA_LEDGER_FULL; pass++) {
        uint32_t high = slots_high(map);
        for (uint32_t index = 0; index < map->slot_count && status == VCUDA_LEDGER_FULL; index++) {
            struct vcuda_slot *slot = vcuda_ledger_slot(map, index);
            if (pass == 0 && index < high && __atomic_load_n(&slot->in_use, __ATOMIC_SEQ_CST))
                continue;
            if (take_slot(map, fd, index, &status))
                break;
        }
    }
    int error = errno;
    close(fd); /* the mapping keeps the open file, and with it the lock, for as long as this process lives */
    if (map->slot >= 0)
        return VCUDA_LEDGER_OK;
    vcuda_ledger_close(map);
    errno = error;
    return status;
}

/* ---- the lease ---- */

/* Unique among the acquisitions that any waiter can have in view: the slot's generation, then a count. */
static uint64_t next_ticket(const struct vcuda_ledger_map *map) {
    static uint64_t count;
    uint64_t ticket = (map->generation << 32) + __atomic_add_fetch(&count, 1, __ATOMIC_RELAXED);
    return ((uint64_t)(map->slot + 1) << LOCK_SLOT_SHIFT) | (ticket & LOCK_TICKET_MASK);
}

/* Bumps the fence of the holder named in a lock word, so that it cannot commit on what it has summed. */
static void fence(const struct vcuda_ledger_map *map, uint32_t card, uint64_t lock_word) {
    uint32_t index = (uint32_t)(lock_word >> LOCK_SLOT_SHIFT);
    struct vcuda_slot *slot = index ? vcuda_ledger_slot(map, index - 1) : NULL;
    if (slot)
        __atomic_fetch_add(&slot->cards[card].word, VERSION_ONE, __ATOMIC_SEQ_CST);
}

/* The low half of a lock word, which changes with every acquisition; what sleepers watch. */
static const void *futex_of(const uint64_t *lock) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return lock;
#else
    return (const char *)lock + 4;
#endif
}

__attribute__((noinline)) static void lease_acquire_slow(const struct vcuda_ledger_map *map, uint32_t card,
                                                         uint64_t mine) {
    uint64_t *lock = &map->header->cards[card].lock;
    uint64_t seen = 0, seen_since = 0;
    for (int round = 0;; round++) {
        uint64_t word = load(lock);
        if (word == 0) {
            /* Whoever has slept cannot know that nobody else sleeps. */
            if (swap_if(lock, &word, round > SPINS ? mine | LOCK_SLEEPERS : mine))
                return;
            continue;
        }
        if (round < SPINS) {
            relax();
            continue;
        }
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
        if (!(word & LOCK_SLEEPERS)) {
            if (!swap_if(lock, &word, word | LOCK_SLEEPERS))
                continue;
            word |= LOCK_SLEEPERS;
        }
        sys_futex_wait(futex_of(lock), (uint32_t)word, VCUDA_LEASE_NS - (now - seen_since));
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

static struct vcuda_slot_card *own_card(const struct vcuda_ledger_map *map, uint32_t card) {
    return &vcuda_ledger_slot(map, (uint32_t)map->slot)->cards[card];
}

static void note_charge(struct vcuda_slot_card *own, enum vcuda_kind kind, uint64_t bytes, uint64_t word) {
    add_relaxed(&own->bytes[kind], bytes);
    if ((word & BYTES_MASK) > load_relaxed(&own->peak_bytes))
        __atomic_store_n(&own->peak_bytes, word & BYTES_MASK, __ATOMIC_RELAXED);
}

enum attempt { CHARGED, DOES_NOT_FIT, LEASE_LOST };

static enum attempt attempt(const struct vcuda_ledger_map *map, struct vcuda_slot_card *own, uint32_t card,
                            uint64_t bytes, uint64_t limit, uint64_t *after) {
    /* The fence is read before the lease is taken: a thief raises it after, so no theft goes unseen. */
    uint64_t fence_version = version_of(load(&own->word));
    uint64_t lease = lease_acquire(map, card);
    uint64_t used = vcuda_ledger_used(map, card);
    bool fits = used <= limit && bytes <= limit - used;
    POINT("summed");
    uint64_t word = load(&own->word);
    enum attempt result = fits ? CHARGED : DOES_NOT_FIT;
    /* A sum made while the lease was another's may be too large as well as too small: believe neither. */
    while (version_of(word) == fence_version && fits && !swap_if(&own->word, &word, word + bytes))
        ;
    if (version_of(word) != fence_version)
        result = LEASE_LOST;
    *after = word + bytes;
    POINT("charged");
    lease_release(map, card, lease);
    return result;
}

bool vcuda_ledger_try_reserve(const struct vcuda_ledger_map *map, uint32_t card, enum vcuda_kind kind,
                              uint64_t bytes, uint64_t limit) {
    if (card >= VCUDA_MAX_CARDS || bytes > VCUDA_MAX_BYTES || limit > VCUDA_MAX_BYTES)
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
        vcuda_ledger_reclaim(map);
        swept = true;
    }
}

void vcuda_ledger_count_refusal(const struct vcuda_ledger_map *map, uint32_t card, uint64_t bytes) {
    struct vcuda_slot_card *own = own_card(map, card);
    add_relaxed(&own->refused, 1);
    __atomic_store_n(&own->refused_bytes, bytes, __ATOMIC_RELAXED);
}

bool vcuda_ledger_reserve(const struct vcuda_ledger_map *map, uint32_t card, enum vcuda_kind kind, uint64_t bytes,
                          uint64_t limit) {
    if (vcuda_ledger_try_reserve(map, card, kind, bytes, limit))
        return true;
    vcuda_ledger_count_refusal(map, card, bytes);
    return false;
}

void vcuda_ledger_charge(const struct vcuda_ledger_map *map, uint32_t card, enum vcuda_kind kind, uint64_t bytes) {
    struct vcuda_slot_card *own = own_card(map, card);
    uint64_t word = load(&own->word), next;
    do {
        uint64_t room = VCUDA_MAX_BYTES - (word & BYTES_MASK);
        next = word + (bytes < room ? bytes : room);
    } while (!swap_if(&own->word, &word, next));
    note_charge(own, kind, bytes, next);
}

void vcuda_ledger_release(const struct vcuda_ledger_map *map, uint32_t card, enum vcuda_kind kind, uint64_t bytes) {
    struct vcuda_slot_card *own = own_card(map, card);
    /* The kind first: a reader then never sees kinds sum to more than the word by a release. */
    __atomic_fetch_sub(&own->bytes[kind], bytes, __ATOMIC_RELAXED);
    uint64_t word = load(&own->word), next;
    do {
        uint64_t held = word & BYTES_MASK;
        next = version_of(word) | (held >= bytes ? held - bytes : 0);
    } while (!swap_if(&own->word, &word, next));
}
