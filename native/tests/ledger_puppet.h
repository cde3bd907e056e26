/*
 * Puppets: processes with a slot in a ledger that do what the test tells them, one step at a time, and that
 * can be made to kill or stop themselves at a marked point of the ledger's code (where it was built with
 * those).
 */
#ifndef VCUDA_TESTS_LEDGER_PUPPET_H
#define VCUDA_TESTS_LEDGER_PUPPET_H

#include "ledger_common.h"

#define PATIENCE_MS 20000 /* no promise depends on it: a puppet that takes longer is stuck */

enum order {
    NOTHING,
    ATTACH,
    RESERVE,
    RESERVE_UNSETTLED,
    SETTLE,
    CHARGE,
    RELEASE,
    RECLAIM,
    FORK,
    EXEC,
    VFORK,
    LEAVE
};

struct puppet {
    pid_t pid;
    const char *path;
    struct vcuda_ledger_map *map; /* the puppet's own, readable by all */
    enum order order;             /* NOTHING: the last one was obeyed */
    uint64_t argument, limit, result;
    uint64_t took_ns; /* to obey the last order */
    pid_t child;
    char point[32]; /* where to raise `signal`, once */
    int signal;
    uint32_t thefts; /* of leases, by this puppet */
};

static struct puppet *this_puppet;

#ifdef VCUDA_LEDGER_POINTS
void vcuda_ledger_point(const char *name);
void vcuda_ledger_point(const char *name) {
    struct puppet *puppet = this_puppet;
    if (!puppet)
        return;
    if (strcmp(name, "fenced") == 0)
        puppet->thefts++;
    if (puppet->signal && strcmp(name, puppet->point) == 0) {
        int signal = puppet->signal;
        puppet->signal = 0;
        kill(getpid(), signal);
    }
}
#endif

/* Long enough for any test, and no longer: a test that fails leaves nobody behind. */
static inline void wait_for_ever(void *unused) {
    (void)unused;
    alarm(100);
    for (;;)
        pause();
}

static inline uint64_t obey(struct puppet *puppet) {
    pid_t child;
    switch (puppet->order) {
    case ATTACH:
        return vcuda_ledger_attach(puppet->map, puppet->path);
    case RESERVE:
        return reserve(puppet->map, puppet->argument, puppet->limit);
    case RESERVE_UNSETTLED:
        return vcuda_ledger_reserve_as(puppet->map, CARD, VCUDA_KIND_LINEAR, puppet->argument, puppet->limit,
                                       VCUDA_UNSETTLED);
    case SETTLE:
        vcuda_ledger_settle(puppet->map, CARD, puppet->argument);
        return 0;
    case CHARGE:
        vcuda_ledger_charge(puppet->map, CARD, VCUDA_KIND_POOL, puppet->argument);
        return 0;
    case RELEASE:
        release(puppet->map, puppet->argument);
        return 0;
    case RECLAIM:
        return vcuda_ledger_reclaim(puppet->map);
    case FORK: /* without exec */
        child = fork();
        if (child == 0)
            wait_for_ever(NULL);
        puppet->child = child;
        return 0;
    case VFORK: /* the child shares the memory until it is another program */
        child = vfork();
        if (child == 0) {
            execl("/bin/sleep", "sleep", "100", (char *)NULL);
            _exit(1);
        }
        puppet->child = child;
        return 0;
    case EXEC:
        puppet->order = NOTHING;
        execl("/bin/sleep", "sleep", "100", (char *)NULL);
        _exit(1);
    case LEAVE:
        puppet->order = NOTHING;
        _exit(0);
    case NOTHING:
        break;
    }
    return 0;
}

static inline void dance(void *data) {
    struct puppet *puppet = data;
    this_puppet = puppet;
    for (;;) {
        while (__atomic_load_n(&puppet->order, __ATOMIC_ACQUIRE) == NOTHING)
            sleep_ms(1);
        uint64_t began = now_ns();
        puppet->result = obey(puppet);
        puppet->took_ns = now_ns() - began;
        __atomic_store_n(&puppet->order, NOTHING, __ATOMIC_RELEASE);
    }
}

static inline void tell(struct puppet *puppet, enum order order, uint64_t argument, uint64_t limit) {
    CHECK(puppet->order == NOTHING);
    puppet->argument = argument;
    puppet->limit = limit;
    __atomic_store_n(&puppet->order, order, __ATOMIC_RELEASE);
}

/* Waits until the last order was obeyed; its result. */
static inline uint64_t answer_of(struct puppet *puppet) {
    for (int waited = 0; __atomic_load_n(&puppet->order, __ATOMIC_ACQUIRE) != NOTHING; waited++) {
        CHECK(waited < PATIENCE_MS);
        CHECK(waitpid(puppet->pid, NULL, WNOHANG) == 0);
        sleep_ms(1);
    }
    return puppet->result;
}

static inline uint64_t ask(struct puppet *puppet, enum order order, uint64_t argument, uint64_t limit) {
    tell(puppet, order, argument, limit);
    return answer_of(puppet);
}

/* A puppet that has no slot yet. */
static inline struct puppet *new_puppet(const char *path) {
    struct puppet *puppet = shared_memory(sizeof *puppet);
    puppet->path = path;
    puppet->map = shared_memory(sizeof *puppet->map);
    puppet->pid = start(dance, puppet);
    return puppet;
}

static inline struct puppet *attached_puppet(const char *path) {
    struct puppet *puppet = new_puppet(path);
    CHECK_EQUAL(ask(puppet, ATTACH, 0, 0), VCUDA_LEDGER_OK);
    return puppet;
}

/* Make the puppet raise `signal` at the next `point` that it passes. */
static inline void arm(struct puppet *puppet, const char *point, int signal) {
    snprintf(puppet->point, sizeof puppet->point, "%s", point);
    puppet->signal = signal;
}

/* Waits until the puppet has stopped or died of what it was armed with. */
static inline void await_signal(struct puppet *puppet) {
    int status;
    CHECK(waitpid(puppet->pid, &status, WUNTRACED) == puppet->pid);
    CHECK(WIFSTOPPED(status) || WIFSIGNALED(status));
}

/* Let a stopped puppet go on. */
static inline void resume(struct puppet *puppet) {
    kill(puppet->pid, SIGCONT);
}

static inline void kill_child(struct puppet *puppet) {
    CHECK(puppet->child > 0);
    kill(puppet->child, SIGKILL);
}

static inline void put_away(struct puppet *puppet) {
    kill_and_wait(puppet->pid);
    if (puppet->child > 0)
        kill(puppet->child, SIGKILL);
}

#endif
