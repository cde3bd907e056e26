/*
 * The ledger's slots: who owns one, and what becomes of it when the owner is gone.
 *
 * An owner holds the lock on the slot's owner byte until it dies. Whoever prepares or tidies a slot holds its
 * claim byte meanwhile, so that two never do it at once. What the dead have charged is taken back without any
 * lock: it must not depend on a process that may be stopped.
 */
#include "bucket.h"
#include "ledger_parts.h"

#include <errno.h>
#include <linux/magic.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/statfs.h>
#include <sys/vfs.h>

#include "lock.h"
#include "sys.h"

/* Lock bytes lie far beyond the file's end, so that no reader of the file trips over them. */
#define OWNER_BYTES ((uint64_t)1 << 40)
#define CLAIM_BYTES (OWNER_BYTES + VCUDA_MAX_SLOTS)

#define MOST_SPREAD 64 /* slots that are passed by at most where others are at work */
#define FREE_ONE ((uint32_t)1 << FREE_BITS)
#define FREE_MASK (FREE_ONE - 1)

#define BUSY_TRIES 50 /* a slot that is being prepared or tidied is waited for, 1 ms each time */

/* ---- locks ---- */

static bool set_lock(int fd, short type, uint64_t byte) {
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)byte, .l_len = 1};
    return sys_file_lock(fd, F_OFD_SETLK, &lock) == 0;
}

/* Whether another open file holds the byte. */
static bool held(int fd, uint64_t byte) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)byte, .l_len = 1};
    /* If the kernel cannot say, the owner lives: memory is never given twice. */
    return sys_file_lock(fd, F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

static bool owned(int fd, uint32_t index) {
    return held(fd, OWNER_BYTES + index);
}

/* A second open file of the ledger: its view of the locks is that of a stranger. */
static int open_stranger(const struct vcuda_ledger_map *map, int flags) {
    int fd = sys_open(map->path, flags | O_NOCTTY | O_NONBLOCK);
    struct stat st;
    if (fd >= 0 && (sys_fstat(fd, &st) != 0 || (uint64_t)st.st_dev != map->device ||
                    (uint64_t)st.st_ino != map->inode)) {
        sys_close(fd);
        errno = ESTALE;
        return -1;
    }
    return fd;
}

bool vcuda_ledger_alive(const struct vcuda_ledger_map *map, uint32_t index) {
    int fd = open_stranger(map, O_RDONLY);
    if (fd < 0)
        return true;
    bool result = owned(fd, index);
    sys_close(fd);
    return result;
}

/* A number that differs between processes and calls. */
static uint32_t chance(uint32_t more) {
    uint64_t seed = sys_clock_ns(CLOCK_MONOTONIC) ^ (uint64_t)getpid() << 32 ^ more;
    return (uint32_t)(seed * 0x9e3779b97f4a7c15u >> 40);
}

/* ---- the dead ---- */

/* Takes back what a slot without an owner has charged on one card. The word is read before the owner is
 * looked for: an owner that comes in between raises the fence first, and the swap fails. */
static bool take_back(const struct vcuda_ledger_map *map, int fd, uint32_t index, uint32_t card) {
    uint64_t *word = &vcuda_ledger_slot(map, index)->cards[card].word;
    struct vcuda_ledger_card *all = &map->header->cards[card];
    uint64_t seen = load(word);
    while (seen & BYTES_MASK) {
        POINT("charge seen");
        if (owned(fd, index))
            return false;
        POINT("found dead");
        /* Before the bytes are free: who gets them may find the driver still at work on the dead. */
        store_relaxed(&all->reclaimed_ns, sys_clock_ns(CLOCK_MONOTONIC));
        if (swap_if(word, &seen, fence_of(seen) + FENCE_ONE)) {
            add_relaxed(&all->reclaimed, 1);
            return true;
        }
    }
    return false;
}

/* Most are 0: hundreds that start at once are not to meet over the card's totals for nothing. */
static void hand_on(uint64_t *total, uint64_t *of_slot) {
    if (load_relaxed(of_slot))
        add_relaxed(total, __atomic_exchange_n(of_slot, 0, __ATOMIC_RELAXED));
}

/* What a dead process has paid for and cannot have run goes back to the container: launches that waited, and
 * what is longer than the time since its last launch went. */
static void give_back(struct vcuda_ledger_card *all, struct vcuda_slot_card *own) {
    uint64_t owed = __atomic_exchange_n(&own->owed_ns, 0, __ATOMIC_RELAXED);
    uint64_t held = load_relaxed(&own->held_ns);
    uint64_t since = sys_clock_ns(CLOCK_MONOTONIC) - load_relaxed(&own->active_ns);
    if (owed > VCUDA_DEBT_NS || held > owed)
        return;
    uint64_t may_have_run = owed - held < since ? owed - held : since;
    vcuda_bucket_correct(&all->bucket, -(int64_t)(owed - may_have_run));
}

/* Empties a slot that the caller has claimed and that has no owner; its totals go to the card's. */
static void empty(const struct vcuda_ledger_map *map, int fd, uint32_t index) {
    struct vcuda_slot *slot = vcuda_ledger_slot(map, index);
    for (uint32_t card = 0; card < VCUDA_MAX_CARDS; card++) {
        struct vcuda_slot_card *own = &slot->cards[card];
        struct vcuda_ledger_card *all = &map->header->cards[card];
        take_back(map, fd, index, card);
        /* The fence must not repeat for a thief, or a reclaimer, that still has the old owner in view. */
        __atomic_fetch_add(&own->word, FENCE_ONE, __ATOMIC_SEQ_CST);
        for (uint32_t kind = 0; kind < VCUDA_KINDS; kind++)
            store_relaxed(&own->bytes[kind], 0);
        hand_on(&all->ended_gpu_ns, &own->gpu_ns);
        hand_on(&all->ended_launches, &own->launches);
        hand_on(&all->ended_wait_ns, &own->wait_ns);
        hand_on(&all->ended_refused, &own->refused);
        if (load_relaxed(&own->owed_ns))
            give_back(all, own);
        store_relaxed(&own->wakeups, 0);
        store_relaxed(&own->active_ns, 0);
        store_relaxed(&own->held_ns, 0);
        store_relaxed(&own->unsettled, 0);
        store_relaxed(&own->waits, 0);
        store_relaxed(&own->refused_bytes, 0);
        store_relaxed(&own->peak_bytes, 0);
    }
    POINT("emptied");
    __atomic_store_n(&slot->charged, 0, __ATOMIC_SEQ_CST);
    __atomic_store_n(&slot->in_use, 0, __ATOMIC_SEQ_CST);
}

/* A slot has become free. Counted in any case: whoever has just found all to be in use is to notice. */
static void note_free(const struct vcuda_ledger_map *map, uint32_t index) {
    uint32_t seen = __atomic_load_n(first_free(map), __ATOMIC_SEQ_CST), next;
    do {
        uint32_t low = seen & FREE_MASK;
        next = ((seen & ~FREE_MASK) + FREE_ONE) | (index < low ? index : low);
    } while (!__atomic_compare_exchange_n(first_free(map), &seen, next, false, __ATOMIC_SEQ_CST,
                                          __ATOMIC_SEQ_CST));
}

/* Makes a dead process's slot look free; left for later where somebody is at it. */
static bool tidy(const struct vcuda_ledger_map *map, int fd, uint32_t index) {
    if (!__atomic_load_n(&vcuda_ledger_slot(map, index)->in_use, __ATOMIC_SEQ_CST) ||
        !set_lock(fd, F_WRLCK, CLAIM_BYTES + index))
        return false;
    POINT("tidying");
    bool dead = !owned(fd, index);
    if (dead) {
        empty(map, fd, index);
        note_free(map, index);
    }
    set_lock(fd, F_UNLCK, CLAIM_BYTES + index);
    return dead;
}

static bool holds_bytes(const struct vcuda_slot *slot, uint32_t card) {
    if (card != EVERY_CARD)
        return load(&slot->cards[card].word) & BYTES_MASK;
    for (card = 0; card < VCUDA_MAX_CARDS; card++)
        if (load(&slot->cards[card].word) & BYTES_MASK)
            return true;
    return false;
}

static bool in_use(const struct vcuda_slot *slot) {
    return __atomic_load_n(&slot->in_use, __ATOMIC_SEQ_CST);
}

/* Takes back what a slot's owner left, if it is dead. */
static bool reclaim_slot(const struct vcuda_ledger_map *map, int fd, uint32_t index) {
    bool took = false;
    for (uint32_t card = 0; card < VCUDA_MAX_CARDS; card++)
        took |= take_back(map, fd, index, card);
    return tidy(map, fd, index) || took;
}

uint32_t vcuda_ledger_reclaim_card(const struct vcuda_ledger_map *map, uint32_t card) {
    int fd = -1;
    uint32_t emptied = 0;
    if (!map->writable)
        return 0;
    for (uint32_t index = 0; index < slots_high(map); index++) {
        const struct vcuda_slot *slot = vcuda_ledger_slot(map, index);
        if ((int)index == map->slot || !(holds_bytes(slot, card) || (card == EVERY_CARD && in_use(slot))))
            continue;
        if (fd < 0 && (fd = open_stranger(map, O_RDWR)) < 0)
            return 0;
        emptied += !owned(fd, index) && reclaim_slot(map, fd, index);
    }
    if (fd >= 0)
        sys_close(fd);
    return emptied;
}

uint32_t vcuda_ledger_reclaim(const struct vcuda_ledger_map *map) {
    return vcuda_ledger_reclaim_card(map, EVERY_CARD);
}

/* Those who have charged something, and are gone. Most groups of slots have no such owner. */
static void reclaim_charged(const struct vcuda_ledger_map *map, int fd) {
    uint64_t groups = load(charged_groups(map));
    for (uint32_t group = 0; groups; group++, groups >>= 1)
        for (uint32_t index = group; groups & 1 && index < slots_high(map); index += GROUPS)
            if (load(&vcuda_ledger_slot(map, index)->charged) && !owned(fd, index))
                reclaim_slot(map, fd, index);
}

/* Whether to look for the dead who charged nothing: one of those who start within a millisecond does. */
static bool has_to_look(const struct vcuda_ledger_map *map) {
    uint64_t now = sys_clock_ns(CLOCK_MONOTONIC) >> 20, last = load(looked(map));
    return now != last && swap_if(looked(map), &last, now);
}

/* What a process does that starts: it looks at the slots whose owners have charged something. The kernel
 * looks at all locks to answer for one, so among hundreds that start at once, and hold nothing yet, only some
 * look at the others, and at few of them, from a place that chance gives. */
#define PATIENCE 4
static void reclaim_some(const struct vcuda_ledger_map *map, int fd) {
    reclaim_charged(map, fd);
    uint32_t high = slots_high(map), patience = PATIENCE;
    if (high == 0 || !has_to_look(map))
        return;
    uint32_t first = chance(0) % high;
    for (uint32_t step = 0; step < high && patience > 0; step++) {
        uint32_t index = (first + step) % high;
        if (!in_use(vcuda_ledger_slot(map, index)))
            continue;
        if (owned(fd, index))
            patience--;
        else
            reclaim_slot(map, fd, index);
    }
}

/* ---- forks ---- */

/*
 * A child that is forked while a slot is being taken would inherit the open file, and keep its parent's slot
 * alive after the parent's death. So a fork waits for the end of that, but not for ever: a handler of a
 * signal that came in the midst of it may fork too. A descriptor that is kept (see attach) is closed in the
 * child.
 */
#define FORK_TRIES 4000 /* 50 us between two */
#define KEPT 8

static vcuda_lock open_file;  /* held while there is a descriptor with an owner's lock */
static __thread bool forking; /* this thread holds it */
static int kept_fds[KEPT];    /* plus one, 0 = none */

static void pause_us(long us) {
    struct timespec pause = {0, us * 1000};
    syscall(SYS_nanosleep, &pause, NULL);
}

static void before_fork(void) {
    forking = vcuda_lock_try(&open_file);
    for (int tries = 0; !forking && tries < FORK_TRIES; tries++) {
        pause_us(50);
        forking = vcuda_lock_try(&open_file);
    }
}

static void after_fork_in_parent(void) {
    if (!forking)
        return;
    forking = false;
    vcuda_lock_give(&open_file);
}

static void after_fork_in_child(void) {
    forking = false;
    open_file = (vcuda_lock){0};
    for (int i = 0; i < KEPT; i++) {
        if (kept_fds[i])
            sys_close(kept_fds[i] - 1);
        kept_fds[i] = 0;
    }
}

static bool keep(struct vcuda_ledger_map *map, int fd) {
    for (int i = 0; i < KEPT; i++)
        if (!kept_fds[i]) {
            /* Out of the way of programs that expect the lowest numbers. */
            int high = (int)syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 500);
            if (high >= 0) {
                sys_close(fd);
                fd = high;
            }
            kept_fds[i] = fd + 1;
            map->kept_fd = fd;
            return true;
        }
    return false;
}

/* The caller holds open_file. */
static void unmap(struct vcuda_ledger_map *map) {
    if (map->header)
        munmap(map->header, map->map_bytes);
    map->header = NULL;
    map->slot = -1;
    for (int i = 0; map->kept_fd >= 0 && i < KEPT; i++)
        if (kept_fds[i] == map->kept_fd + 1) {
            kept_fds[i] = 0;
            sys_close(map->kept_fd);
        }
    map->kept_fd = -1;
}

void vcuda_ledger_close(struct vcuda_ledger_map *map) {
    vcuda_lock_take(&open_file);
    unmap(map);
    vcuda_lock_give(&open_file);
}

/* ---- taking a slot ---- */

/* From /proc/self/stat: the name, and field 22, clock ticks from boot to the process's start. Left empty and
 * 0 where they cannot be read. */
static uint64_t read_stat(char *comm, size_t comm_bytes) {
    char text[512];
    memset(comm, 0, comm_bytes);
    int fd = sys_open("/proc/self/stat", O_RDONLY);
    if (fd < 0)
        return 0;
    ssize_t got = sys_pread(fd, text, sizeof text - 1, 0);
    sys_close(fd);
    text[got > 0 ? got : 0] = 0;
    const char *name = strchr(text, '('), *field = strrchr(text, ')'); /* what is between may hold anything */
    if (!name || !field)
        return 0;
    size_t length = (size_t)(field - name - 1);
    memcpy(comm, name + 1, length < comm_bytes ? length : comm_bytes - 1);
    for (int number = 2; field && number < 22; number++)
        field = strchr(field + 1, ' ');
    return field ? strtoull(field + 1, NULL, 10) : 0;
}

/* The process's name is its first thread's, which can say so without a file of /proc. */
static void name_self(struct vcuda_slot *slot) {
    char name[sizeof slot->comm] = {0};
    if (syscall(SYS_gettid) != slot->pid || syscall(SYS_prctl, PR_GET_NAME, name, 0, 0, 0) != 0)
        read_stat(name, sizeof name);
    memcpy(slot->comm, name, sizeof slot->comm);
}

uint64_t vcuda_own_pid_namespace(void) {
    char text[64];
    ssize_t got = readlink("/proc/self/ns/pid", text, sizeof text - 1); /* "pid:[4026531836]" */
    if (got <= 0)
        return 0;
    text[got] = 0;
    const char *number = strchr(text, '[');
    return number ? strtoull(number + 1, NULL, 10) : 0;
}

/* The kernel makes a process's files of /proc when they are first looked at, which takes longer than any
 * other step here. Readers ask for what they tell only where something is charged. */
void vcuda_ledger_identify(const struct vcuda_ledger_map *map) {
    struct vcuda_slot *slot = vcuda_ledger_slot(map, (uint32_t)map->slot);
    char name[sizeof slot->comm];
    store_relaxed(&slot->pid_ns, vcuda_own_pid_namespace());
    store_relaxed(&slot->start_ticks, read_stat(name, sizeof name));
}

/* How many slots are allocated where the mark is at `high`: some at a time, first of all few. */
static uint32_t allocated_at(uint32_t high) {
    return high == 0 ? 0 : high <= 4 ? 4 : (high + 15) / 16 * 16;
}

/* Every slot below the new mark can be read afterwards without a fault; those below the old one could before.
 * The mark is never raised before all that goes with it is allocated. */
static bool raise_high(const struct vcuda_ledger_map *map, int fd, uint32_t index) {
    uint32_t *high = &map->header->slots_high;
    uint32_t seen = __atomic_load_n(high, __ATOMIC_SEQ_CST);
    uint32_t first = allocated_at(seen), end = allocated_at(index + 1);
    end = end < map->slot_count ? end : map->slot_count;
    if (seen <= index && first < end) {
        uint64_t offset = (uint64_t)(map->slots - (char *)map->header) + (uint64_t)first * map->slot_bytes;
        if (!vcuda_ledger_allocate(fd, offset, sizeof(struct vcuda_slot), map->slot_bytes, end - first))
            return false;
        /* Then none of their owners waits for the file system when it first writes to its own. */
        syscall(SYS_readahead, fd, offset, (size_t)(end - first) * map->slot_bytes);
    }
    while (seen < index + 1 &&
           !__atomic_compare_exchange_n(high, &seen, index + 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        ;
    return true;
}

static bool is_blank(struct vcuda_slot *slot) {
    /* Written to before it is read: one page fault, not two. */
    uint64_t any = __atomic_fetch_or(&slot->generation, 0, __ATOMIC_SEQ_CST);
    const uint64_t *words = (const uint64_t *)slot;
    for (size_t i = 0; i < sizeof *slot / sizeof *words; i++)
        any |= load_relaxed(&words[i]);
    return any == 0;
}

enum taken { TAKEN, OWNED, BUSY, NO_SPACE, NO_LOCKS };

static enum taken take_claimed_slot(struct vcuda_ledger_map *map, int fd, uint32_t index) {
    struct vcuda_slot *slot = vcuda_ledger_slot(map, index);
    bool counted = index < slots_high(map);
    if (counted && owned(fd, index))
        return OWNED;
    if (!raise_high(map, fd, index))
        return NO_SPACE;
    POINT("slot counted");
    /* Whoever owned it once had claimed it, and had raised the mark above it, before. So what was not counted
     * has no owner and is as it was made, unless somebody scribbled in the ledger. */
    bool blank = !counted && is_blank(slot);
    if (!counted && !blank && owned(fd, index))
        return OWNED;
    /* The dead's charge goes before the slot has an owner: it would look like the owner's. */
    if (!blank)
        empty(map, fd, index);
    else
        POINT("emptied");
    if (!set_lock(fd, F_WRLCK, OWNER_BYTES + index))
        return BUSY;
    POINT("slot owned");
    map->generation = __atomic_add_fetch(&slot->generation, 1, __ATOMIC_SEQ_CST);
    slot->pid = (int32_t)getpid();
    slot->pid_ns = slot->start_ticks = 0; /* see vcuda_ledger_identify */
    name_self(slot);
    slot->attach_ns = sys_clock_ns(CLOCK_MONOTONIC);
    __atomic_store_n(&slot->in_use, 1, __ATOMIC_SEQ_CST);
    map->slot = (int)index;
    return TAKEN;
}

static enum taken take_slot(struct vcuda_ledger_map *map, int fd, uint32_t index) {
    if (!set_lock(fd, F_WRLCK, CLAIM_BYTES + index))
        return errno == EAGAIN || errno == EACCES ? BUSY : NO_LOCKS;
    POINT("slot claimed");
    enum taken taken = take_claimed_slot(map, fd, index);
    int error = errno;
    set_lock(fd, F_UNLCK, CLAIM_BYTES + index);
    errno = error;
    return taken;
}

/* The first slot that does not say it is in use: those of the living need not be tried. Slots that nobody has
 * counted yet are holes, not to be read. Where others are at the same slots they are passed by, one the first
 * time, then by steps of chance: many that start at once are not to try each slot one after the other. */
static enum taken take_free_slot(struct vcuda_ledger_map *map, int fd) {
    uint32_t seen = __atomic_load_n(first_free(map), __ATOMIC_SEQ_CST), index = seen & FREE_MASK, spread = 1;
    while (index < map->slot_count) {
        if (index < slots_high(map) && in_use(vcuda_ledger_slot(map, index))) {
            index++;
            continue;
        }
        enum taken taken = take_slot(map, fd, index);
        if (taken == TAKEN && spread == 1) /* all from where it began are in use; kept if one became free */
            __atomic_compare_exchange_n(first_free(map), &seen, (seen & ~FREE_MASK) | (index + 1), false,
                                        __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
        if (taken != OWNED && taken != BUSY)
            return taken;
        index += 1 + chance(index) % spread;
        spread = spread < MOST_SPREAD ? spread * 2 : spread;
    }
    return OWNED;
}

/* Where that leads to none: all. What says that a slot is in use may be out of date, and so may what says
 * from where on there are free ones. */
static enum taken take_one_of_all(struct vcuda_ledger_map *map, int fd) {
    enum taken best = OWNED;
    for (uint32_t index = 0; index < map->slot_count; index++) {
        enum taken taken = take_slot(map, fd, index);
        if (taken == TAKEN)
            note_free(map, index); /* the next one is to begin here */
        if (taken == BUSY)
            best = BUSY;
        else if (taken != OWNED)
            return taken;
    }
    return best;
}

static enum vcuda_ledger_status take_any_slot(struct vcuda_ledger_map *map, int fd) {
    enum taken taken = BUSY;
    /* The header is written to before it is read: one page fault, not two. */
    __atomic_fetch_or(&map->header->slots_high, 0, __ATOMIC_SEQ_CST);
    for (int tries = 0; taken == BUSY && tries < BUSY_TRIES; tries++) {
        if (tries)
            pause_us(1000);
        reclaim_some(map, fd);
        taken = take_free_slot(map, fd);
        if (taken == OWNED || taken == BUSY)
            taken = take_one_of_all(map, fd);
    }
    return taken == TAKEN      ? VCUDA_LEDGER_OK
           : taken == NO_SPACE ? VCUDA_LEDGER_NO_SPACE
           : taken == NO_LOCKS ? VCUDA_LEDGER_NO_LOCKS
                               : VCUDA_LEDGER_FULL;
}

/* Whether a mapping keeps its file open, and so its locks. On overlayfs it does not: what is mapped there is
 * a file beneath. Tried on a byte that nobody else takes for a slot. */
static bool tried_mapping_keeps_locks(const struct vcuda_ledger_map *map, int fd) {
    int stranger = open_stranger(map, O_RDWR);
    if (stranger < 0)
        return false;
    uint64_t byte = CLAIM_BYTES + VCUDA_MAX_SLOTS + ((uint64_t)chance(0) << 16 | chance(1) >> 8);
    bool locked = set_lock(stranger, F_WRLCK, byte);
    void *page = mmap(NULL, 1, PROT_READ, MAP_SHARED, stranger, 0);
    sys_close(stranger);
    bool kept = locked && page != MAP_FAILED && held(fd, byte);
    if (page != MAP_FAILED)
        munmap(page, 1);
    return kept;
}

/* Where ledgers usually are, it is known. */
static bool mapping_keeps_locks(const struct vcuda_ledger_map *map, int fd) {
    struct statfs system;
    if (syscall(SYS_fstatfs, fd, &system) == 0)
        switch (system.f_type) {
        case TMPFS_MAGIC:
        case EXT4_SUPER_MAGIC:
        case XFS_SUPER_MAGIC:
        case BTRFS_SUPER_MAGIC:
            return true;
        default:
            break;
        }
    return tried_mapping_keeps_locks(map, fd);
}

enum vcuda_ledger_status vcuda_ledger_attach(struct vcuda_ledger_map *map, const char *path) {
    int fd;
    vcuda_lock_take(&open_file);
    static bool fork_handlers;
    if (!fork_handlers)
        fork_handlers = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) == 0;
    enum vcuda_ledger_status status = vcuda_ledger_map_file(map, path, true, &fd);
    if (status == VCUDA_LEDGER_OK) {
        status = take_any_slot(map, fd);
        int error = errno;
        bool needed = status == VCUDA_LEDGER_OK && !mapping_keeps_locks(map, fd);
        if (!needed || !keep(map, fd))
            sys_close(fd);
        if (needed && map->kept_fd < 0)
            status = VCUDA_LEDGER_NO_LOCKS;
        if (status != VCUDA_LEDGER_OK)
            unmap(map);
        errno = error;
    }
    vcuda_lock_give(&open_file);
    return status;
}
