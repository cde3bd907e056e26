/* The machine's file: how it is made and found, who lives in it, and what becomes of the dead. See machine.h.
 */
#include "machine.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "pidns.h"

#define MAGIC 0x3175706753494d53U /* "SMISgpu1" */
#define VERSION 2
#define DEFAULT_CARDS "V100-SXM2-16GB"
#define DEFAULT_DRIVER "575.57.08"
#define DEFAULT_CUDA 12090
#define HOLD_BYTES 4096 /* of the mapping that keeps a process's lock on its byte */
#define WAITED ((uint32_t)1 << 31)
#define SPINS 200
#define PATIENCE_NS 3000000

static pthread_mutex_t opening = PTHREAD_MUTEX_INITIALIZER;
static struct sim_machine *machine;
static int self = -1;
static char file[PATH_MAX + 16];
static dev_t device; /* of the file, to know it again */
static ino_t inode;
static uint32_t own_name; /* of this process, as owner of the machine's lock */

/* ---- the environment ---- */

static bool set(const char *name, const char **value) {
    *value = getenv(name);
    return *value && **value;
}

const char *sim_machine_directory(void) {
    static _Thread_local char path[PATH_MAX];
    const char *value;
    if (set("SIMGPU_DIR", &value))
        snprintf(path, sizeof path, "%s", value);
    else if (set("XDG_RUNTIME_DIR", &value))
        snprintf(path, sizeof path, "%s/simgpu", value);
    else
        snprintf(path, sizeof path, "/tmp/simgpu-%u", (unsigned int)geteuid());
    return path;
}

/* Which driver came with which CUDA, so that one of SIMGPU_DRIVER and SIMGPU_CUDA is enough. */
static const struct {
    const char *driver;
    uint32_t cuda;
} releases[] = {
    {"470.256.02", 11040}, {"510.108.03", 11060}, {"515.105.01", 11070}, {"520.61.05", 11080},
    {"525.147.05", 12000}, {"530.41.03", 12010},  {"535.261.03", 12020}, {"545.23.08", 12030},
    {"550.163.01", 12040}, {"555.42.06", 12050},  {"560.35.05", 12060},  {"565.57.01", 12070},
    {"570.124.06", 12080}, {"575.57.08", 12090},  {"580.65.06", 13000},
};

static void choose_versions(struct sim_machine *made) {
    const char *driver = NULL, *cuda = NULL;
    bool has_driver = set("SIMGPU_DRIVER", &driver), has_cuda = set("SIMGPU_CUDA", &cuda);
    made->cuda_version = has_cuda ? (uint32_t)strtoul(cuda, NULL, 10) : DEFAULT_CUDA;
    if (!has_driver)
        driver = DEFAULT_DRIVER;
    for (size_t i = 0; i < sizeof releases / sizeof releases[0]; i++) {
        if (!has_driver && releases[i].cuda <= made->cuda_version)
            driver = releases[i].driver;
        if (!has_cuda && has_driver && strtoul(releases[i].driver, NULL, 10) <= strtoul(driver, NULL, 10))
            made->cuda_version = releases[i].cuda;
    }
    snprintf(made->driver_version, sizeof made->driver_version, "%s", driver);
}

/* ---- making the file ---- */

/* The same directory and place in it give the same card its UUID again: a hash (FNV-1a) of both. */
static void name_card(struct sim_card *card, const char *directory, uint32_t index) {
    char where[PATH_MAX], text[PATH_MAX + 96];
    if (!realpath(directory, where))
        snprintf(where, sizeof where, "%s", directory);
    for (int half = 0; half < 2; half++) {
        int length = snprintf(text, sizeof text, "%d %s %u %s", half, where, index, card->model.name);
        uint64_t hash = 0xcbf29ce484222325U;
        for (int i = 0; i < length; i++)
            hash = (hash ^ (unsigned char)text[i]) * 0x100000001b3U;
        hash ^= hash >> 29;
        memcpy(card->uuid + 8 * half, &hash, sizeof hash);
    }
    card->uuid[6] = (unsigned char)((card->uuid[6] & 0x0f) | 0x40); /* as a random UUID is marked */
    card->uuid[8] = (unsigned char)((card->uuid[8] & 0x3f) | 0x80);
}

static const char *choose_cards(struct sim_machine *made, const char *directory) {
    const char *list;
    if (!set("SIMGPU_CARDS", &list))
        list = DEFAULT_CARDS;
    while (*list) {
        const char *comma = strchr(list, ',');
        size_t length = comma ? (size_t)(comma - list) : strlen(list);
        if (made->card_count == SIM_CARDS)
            return "SIMGPU_CARDS names more than 16 cards";
        struct sim_card *card = &made->cards[made->card_count];
        if (!sim_model_find(list, length, &card->model))
            return "SIMGPU_CARDS names a card that cards.csv lacks";
        name_card(card, directory, made->card_count);
        sim_timeline_init(&card->timeline, card->model.sm_count);
        made->card_count++;
        list = comma ? comma + 1 : "";
    }
    return NULL;
}

static const char *fill(struct sim_machine *made, const char *directory) {
    choose_versions(made);
    const char *why = choose_cards(made, directory);
    if (why)
        return why;
    made->bytes = sizeof *made;
    made->version = VERSION;
    made->magic = MAGIC;
    return NULL;
}

/* Make the file under another name and rename it, so that nobody sees it half made. The directory is locked.
 */
static const char *make(int directory_fd, const char *directory) {
    int fd = openat(directory_fd, "machine.draft", O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return "the file of the simulated machine cannot be made";
    void *made = MAP_FAILED;
    if (ftruncate(fd, sizeof(struct sim_machine)) == 0)
        made = mmap(NULL, sizeof(struct sim_machine), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    const char *why = "the file of the simulated machine cannot be made";
    if (made != MAP_FAILED) {
        why = fill(made, directory);
        munmap(made, sizeof(struct sim_machine));
        if (!why && renameat(directory_fd, "machine.draft", directory_fd, "machine") != 0)
            why = "the file of the simulated machine cannot be given its name";
    }
    if (why)
        unlinkat(directory_fd, "machine.draft", 0);
    return why;
}

static int open_directory(const char *directory) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s", directory);
    for (char *at = path + 1; *at; at++) {
        if (*at != '/')
            continue;
        *at = 0;
        mkdir(path, 0700);
        *at = '/';
    }
    mkdir(path, 0700);
    return open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static int open_file(const char *directory, const char **why) {
    int directory_fd = open_directory(directory);
    if (directory_fd < 0) {
        *why = "the directory SIMGPU_DIR cannot be made or opened";
        return -1;
    }
    struct stat status;
    const char *chosen;
    bool named = set("SIMGPU_DIR", &chosen) || set("XDG_RUNTIME_DIR", &chosen);
    if (!named && (fstat(directory_fd, &status) != 0 || status.st_uid != geteuid())) {
        *why = "the default directory of the simulated machine belongs to somebody else; set SIMGPU_DIR";
        close(directory_fd);
        return -1;
    }
    *why = NULL;
    int fd = openat(directory_fd, "machine", O_RDWR | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) {
        flock(directory_fd, LOCK_EX); /* until it is closed */
        fd = openat(directory_fd, "machine", O_RDWR | O_CLOEXEC);
        if (fd < 0 && errno == ENOENT && !(*why = make(directory_fd, directory)))
            fd = openat(directory_fd, "machine", O_RDWR | O_CLOEXEC);
    }
    if (fd < 0 && !*why)
        *why = "the file of the simulated machine cannot be opened";
    close(directory_fd);
    return fd;
}

/* ---- who is alive ---- */

/* The machine's file once more; -1 where its name leads elsewhere by now. Not kept open: programs close what
 * they don't know, and a lock asked of a file that took the number would tell lies. */
static int reopen(void) {
    struct stat status;
    int fd = open(file, O_RDWR | O_CLOEXEC);
    if (fd >= 0 && (fstat(fd, &status) != 0 || status.st_dev != device || status.st_ino != inode)) {
        close(fd);
        fd = -1;
    }
    return fd;
}

static struct flock byte_of(uint32_t number) {
    return (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = number, .l_len = 1};
}

static bool is_alive(int fd, uint32_t number) {
    struct flock lock = byte_of(number);
    return fcntl(fd, F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

/* Lock the byte of a number on the file as opened here, which lives on in a mapping that a child does not
 * inherit: the lock ends with this process and with exec, and no earlier, whatever the program closes. */
static bool hold(int fd, uint32_t number) {
    struct flock lock = byte_of(number);
    if (fcntl(fd, F_OFD_SETLK, &lock) != 0)
        return false;
    void *held = mmap(NULL, HOLD_BYTES, PROT_READ, MAP_SHARED, fd, 0);
    return held != MAP_FAILED && madvise(held, HOLD_BYTES, MADV_DONTFORK) == 0;
}

/* A name for the owner of the machine's lock; not the thread's id, which several pid namespaces may have. */
static bool find_name(int fd) {
    uint64_t seed = sim_now_ns() ^ (uint64_t)getpid() << 32;
    for (int tries = 0; tries < 100 && !own_name; tries++) {
        seed = seed * 6364136223846793005U + 1442695040888963407U;
        uint32_t wanted = SIM_PROCESSES + (uint32_t)(seed >> 35);
        if (hold(fd, wanted))
            own_name = wanted;
    }
    return own_name != 0;
}

/* ---- the lock ---- */

/* Whoever had the lock died in the middle of something: derive what can be derived. */
static void repair(void) {
    for (uint32_t i = 0; i < machine->card_count; i++) {
        struct sim_card *card = &machine->cards[i];
        card->used_bytes = 0;
        for (uint32_t process = 0; process < SIM_PROCESSES; process++)
            card->used_bytes += card->held[process];
        if (card->peak_bytes < card->used_bytes)
            card->peak_bytes = card->used_bytes;
        sim_timeline_repair(&card->timeline);
    }
}

static void pause_shortly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* Sleep until the lock is no longer `seen`, or for a while. */
static void wait_for_change(uint32_t *lock, uint32_t seen) {
    struct timespec while_ns = {0, PATIENCE_NS};
    syscall(SYS_futex, lock, FUTEX_WAIT, seen, &while_ns, NULL, 0);
}

static bool owner_died(uint32_t owner) {
    int fd = reopen();
    bool died = fd >= 0 && !is_alive(fd, owner);
    if (fd >= 0)
        close(fd);
    return died;
}

/* The lock is the owner's name, and WAITED if somebody may sleep. Whoever has slept takes it so marked, since
 * it cannot know whether it was the last. An owner that died is noticed by who has waited for it long enough.
 */
static void lock_slowly(uint32_t *lock, uint32_t seen) {
    for (int spins = 0; spins < SPINS && seen; spins++) {
        pause_shortly();
        seen = __atomic_load_n(lock, __ATOMIC_RELAXED);
    }
    for (;;) {
        if (!seen) {
            if (__atomic_compare_exchange_n(lock, &seen, own_name | WAITED, false, __ATOMIC_ACQUIRE,
                                            __ATOMIC_RELAXED))
                return;
            continue;
        }
        if (!(seen & WAITED) && !__atomic_compare_exchange_n(lock, &seen, seen | WAITED, false,
                                                             __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            continue;
        wait_for_change(lock, seen | WAITED);
        uint32_t now = __atomic_load_n(lock, __ATOMIC_RELAXED);
        if (now == (seen | WAITED) && owner_died(seen & ~WAITED) &&
            __atomic_compare_exchange_n(lock, &now, own_name | WAITED, false, __ATOMIC_ACQUIRE,
                                        __ATOMIC_RELAXED)) {
            repair();
            return;
        }
        seen = now;
    }
}

void sim_machine_lock(void) {
    struct sim_machine *shared = sim_machine();
    uint32_t seen = 0;
    if (shared && !__atomic_compare_exchange_n(&shared->lock, &seen, own_name, false, __ATOMIC_ACQUIRE,
                                               __ATOMIC_RELAXED))
        lock_slowly(&shared->lock, seen);
}

void sim_machine_unlock(void) {
    struct sim_machine *shared = sim_machine();
    if (shared && __atomic_exchange_n(&shared->lock, 0, __ATOMIC_RELEASE) & WAITED)
        syscall(SYS_futex, &shared->lock, FUTEX_WAKE, 1, NULL, NULL, 0);
}

/* ---- mapping it ---- */

static bool whole(const struct sim_machine *found) {
    return found->magic == MAGIC && found->version == VERSION && found->bytes == sizeof *found &&
           found->card_count && found->card_count <= SIM_CARDS && found->processes_high <= SIM_PROCESSES &&
           memchr(found->driver_version, 0, sizeof found->driver_version);
}

static struct sim_machine *map(int fd, const char **why) {
    struct stat status;
    if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode) || status.st_size != sizeof(struct sim_machine)) {
        *why = "the file of the simulated machine is damaged, or another version's; remove it";
        return NULL;
    }
    void *found = mmap(NULL, sizeof(struct sim_machine), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (found == MAP_FAILED) {
        *why = "the file of the simulated machine cannot be mapped";
        return NULL;
    }
    if (!whole(found)) {
        munmap(found, sizeof(struct sim_machine));
        *why = "the file of the simulated machine is damaged, or another version's; remove it";
        return NULL;
    }
    madvise(found, sizeof(struct sim_machine), MADV_DONTFORK);
    device = status.st_dev;
    inode = status.st_ino;
    if (!find_name(fd)) {
        munmap(found, sizeof(struct sim_machine));
        *why = "the file of the simulated machine cannot be locked";
        return NULL;
    }
    return found;
}

static void forget_after_fork(void) {
    machine = NULL;
    self = -1;
    own_name = 0;
    opening = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
}

struct sim_machine *sim_machine_open(const char **why) {
    static bool watching;
    const char *unused;
    if (!why)
        why = &unused;
    *why = NULL;
    pthread_mutex_lock(&opening);
    if (!watching)
        watching = pthread_atfork(NULL, NULL, forget_after_fork) == 0;
    if (!machine) {
        const char *directory = sim_machine_directory();
        int fd = open_file(directory, why);
        if (fd >= 0) {
            char whole_path[PATH_MAX];
            snprintf(file, sizeof file, "%s/machine",
                     realpath(directory, whole_path) ? whole_path : directory);
            __atomic_store_n(&machine, map(fd, why), __ATOMIC_RELEASE);
            close(fd);
        }
    }
    struct sim_machine *found = machine;
    pthread_mutex_unlock(&opening);
    return found;
}

struct sim_machine *sim_machine(void) {
    return __atomic_load_n(&machine, __ATOMIC_ACQUIRE);
}

int sim_machine_self(void) {
    return __atomic_load_n(&self, __ATOMIC_ACQUIRE);
}

/* ---- coming and going ---- */

static int first_user(const struct sim_shared *shared) {
    for (int process = 0; process < SIM_PROCESSES; process++)
        if (shared->users[process / 64] >> (process % 64) & 1)
            return process;
    return -1;
}

static void give(uint32_t card, uint32_t process, uint64_t bytes) {
    struct sim_card *of = &machine->cards[card];
    if (bytes > of->held[process])
        bytes = of->held[process];
    of->used_bytes -= bytes < of->used_bytes ? bytes : of->used_bytes;
    of->held[process] -= bytes;
}

/* A process has no more of what several have: somebody else pays, or it goes back to the card. */
static void leave(struct sim_shared *shared, uint32_t process) {
    shared->users[process / 64] &= ~((uint64_t)1 << (process % 64));
    int heir = first_user(shared);
    if (heir < 0) {
        give(shared->card, process, shared->payer == (int32_t)process ? shared->bytes : 0);
        shared->bytes = 0;
    } else if (shared->payer == (int32_t)process) {
        struct sim_card *card = &machine->cards[shared->card];
        uint64_t bytes = shared->bytes < card->held[process] ? shared->bytes : card->held[process];
        shared->payer = heir;
        card->held[heir] += bytes;
        card->held[process] -= bytes;
    }
}

static void bury(uint32_t process) {
    for (uint32_t i = 0; i < SIM_SHARED; i++) {
        struct sim_shared *shared = &machine->shared[i];
        if (!shared->id) /* entries are taken in order: no more behind this one */
            break;
        if (shared->bytes && shared->users[process / 64] >> (process % 64) & 1)
            leave(shared, process);
    }
    for (uint32_t i = 0; i < machine->card_count; i++) {
        give(i, process, UINT64_MAX);
        if (process < machine->cards[i].timeline.processes_high)
            sim_timeline_drop(&machine->cards[i].timeline, process, sim_now_ns());
    }
    machine->processes[process].in_use = 0;
}

int sim_machine_reap(void) {
    int fd = -1, dead = 0, me = sim_machine_self();
    if (!machine)
        return 0;
    for (uint32_t process = 0; process < machine->processes_high; process++) {
        if (!machine->processes[process].in_use || (int)process == me)
            continue;
        if (fd < 0 && (fd = reopen()) < 0)
            return 0;
        if (!is_alive(fd, process)) {
            bury(process);
            dead++;
        }
    }
    if (fd >= 0)
        close(fd);
    return dead;
}

/* Take a free number; -1 where there is none. */
static int settle_down(void) {
    int fd = reopen(), found = -1;
    for (uint32_t process = 0; fd >= 0 && process < SIM_PROCESSES && found < 0; process++)
        if (!machine->processes[process].in_use && hold(fd, process))
            found = (int)process;
    if (fd >= 0)
        close(fd);
    return found;
}

int sim_machine_join(void) {
    if (!sim_machine_open(NULL))
        return -1;
    sim_machine_lock();
    if (self < 0) {
        sim_machine_reap();
        int found = settle_down();
        if (found >= 0) {
            struct sim_process *process = &machine->processes[found];
            process->pid = (int32_t)getpid();
            process->pid_namespace = sim_pid_namespace("/proc/self/ns/pid");
            process->generation++;
            if ((uint32_t)found >= machine->processes_high)
                machine->processes_high = (uint32_t)found + 1;
            process->in_use = 1;
            __atomic_store_n(&self, found, __ATOMIC_RELEASE);
        }
    }
    int number = self;
    sim_machine_unlock();
    return number;
}

/* ---- memory of the cards ---- */

uint64_t sim_card_total_bytes(const struct sim_card *card) {
    return card->model.memory_bytes - card->model.reserved_bytes;
}

uint64_t sim_card_free_bytes(const struct sim_card *card) {
    uint64_t total = sim_card_total_bytes(card);
    return card->used_bytes < total ? total - card->used_bytes : 0;
}

bool sim_card_take(uint32_t card, uint64_t bytes) {
    if (!machine || self < 0 || card >= machine->card_count)
        return false;
    struct sim_card *of = &machine->cards[card];
    if (bytes > sim_card_free_bytes(of))
        sim_machine_reap();
    if (bytes > sim_card_free_bytes(of))
        return false;
    of->held[self] += bytes;
    of->used_bytes += bytes;
    if (of->used_bytes > of->peak_bytes)
        of->peak_bytes = of->used_bytes;
    return true;
}

void sim_card_give(uint32_t card, uint64_t bytes) {
    if (machine && self >= 0 && card < machine->card_count)
        give(card, (uint32_t)self, bytes);
}

static struct sim_shared *find_shared(uint64_t id) {
    struct sim_shared *found = &machine->shared[id % SIM_SHARED];
    return id && found->id == id && found->bytes ? found : NULL;
}

uint64_t sim_shared_make(uint32_t card, uint64_t bytes) {
    if (!machine || self < 0 || !bytes || card >= machine->card_count)
        return 0;
    /* The sequence goes round the table; an entry in use is skipped, and its number with it. */
    for (uint32_t tries = 0; tries < SIM_SHARED; tries++) {
        uint64_t id = machine->shared_sequence++ + SIM_SHARED;
        struct sim_shared *shared = &machine->shared[id % SIM_SHARED];
        if (shared->bytes)
            continue;
        *shared = (struct sim_shared){.id = id, .card = card, .payer = self};
        shared->users[self / 64] = (uint64_t)1 << (self % 64);
        shared->bytes = bytes;
        return id;
    }
    return 0;
}

bool sim_shared_open(uint64_t id) {
    struct sim_shared *shared = machine && self >= 0 ? find_shared(id) : NULL;
    if (shared)
        shared->users[self / 64] |= (uint64_t)1 << (self % 64);
    return shared != NULL;
}

void sim_shared_close(uint64_t id) {
    struct sim_shared *shared = machine && self >= 0 ? find_shared(id) : NULL;
    if (shared)
        leave(shared, (uint32_t)self);
}

void sim_shared_cancel(uint64_t id) {
    struct sim_shared *shared = machine && self >= 0 ? find_shared(id) : NULL;
    if (shared && shared->payer == self)
        shared->bytes = 0;
}
