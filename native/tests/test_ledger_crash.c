/*
 * Processes are killed at random instants while they reserve and release, some by others, some by themselves
 * at a marked point of the ledger's code, some after they were stopped for a while with whatever they held.
 * Each is replaced. Shown:
 *   - a request is never refused: each process keeps within its part of the limit, so whatever is refused was
 *     refused for the sake of the dead;
 *   - whenever all pause, the ledger's bytes are, to the byte, those of the living;
 *   - afterwards every slot of the table can be taken;
 *   - nobody is held up for long by the dead or the stopped: see `waited`.
 *
 * Arguments: kills (500).
 *
 * build: native/shim/ledger.c native/shim/ledger_file.c native/shim/ledger_slots.c native/shim/bucket.c
 * build: -DVCUDA_LEDGER_POINTS
 */
#include "ledger_common.h"

#include <fcntl.h>

#define WORKERS 8
#define SLOTS 16
#define PART (100 * MIB)
#define LIMIT (WORKERS * PART)
#define BOUND_NS 100000000
#define PATIENCE_MS 20000

struct worker {
    struct vcuda_ledger_map map;
    uint64_t held;
    int doom; /* points still to be passed before it kills or stops itself; 0 = never */
    int doom_signal;
    bool attached, paused;
    bool interrupted; /* stopped and continued in this step: it is others that must not wait */
    uint64_t longest_ns, longest_waited_ns;
    uint32_t late; /* waits beyond the bound */
} __attribute__((aligned(64)));

struct scene {
    bool pause;
    uint64_t steps, refused;
    uint64_t stall_ns; /* how long, all told, a process that only sleeps was kept from running */
    struct worker workers[WORKERS];
};

static struct scene *scene;
static struct worker *self;

void vcuda_ledger_point(const char *name);
void vcuda_ledger_point(const char *name) {
    (void)name;
    if (self && self->doom && --self->doom == 0) {
        self->interrupted = true;
        kill(getpid(), self->doom_signal);
    }
}

/* Time that this process was ready to run and another ran instead: second field of schedstat. */
static uint64_t time_in_queue_ns(void) {
    static int fd = -1;
    char text[100];
    if (fd < 0)
        fd = open("/proc/self/schedstat", O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? 0 : pread(fd, text, sizeof text - 1, 0);
    if (got <= 0)
        return 0;
    text[got] = 0;
    char *second = strchr(text, ' ');
    return second ? strtoull(second, NULL, 10) : 0;
}

/* Sleeps 1 ms, again and again: what it sleeps longer is a machine that stood still, or was busy elsewhere.
 */
static void watch_for_stalls(void *unused) {
    (void)unused;
    for (;;) {
        uint64_t before = now_ns();
        sleep_ms(1);
        uint64_t late = now_ns() - before;
        if (late > 5000000)
            scene->stall_ns += late;
    }
}

static void work(void *data) {
    self = data;
    uint64_t random = now_ns() | 1;
    memset(&self->map, 0, sizeof self->map);
    self->held = 0;
    self->interrupted = false;
    CHECK_EQUAL(vcuda_ledger_attach(&self->map, ledger_path), VCUDA_LEDGER_OK);
    __atomic_store_n(&self->attached, true, __ATOMIC_SEQ_CST);
    for (;;) {
        if (__atomic_load_n(&scene->pause, __ATOMIC_SEQ_CST)) {
            __atomic_store_n(&self->paused, true, __ATOMIC_SEQ_CST);
            sleep_ms(1);
            continue;
        }
        __atomic_store_n(&self->paused, false, __ATOMIC_SEQ_CST);
        if (self->held && random_of(&random) % 2) {
            uint64_t bytes = 1 + random_of(&random) % self->held;
            release(&self->map, bytes);
            self->held -= bytes;
        } else if (self->held < PART) {
            uint64_t bytes = 1 + random_of(&random) % (PART - self->held);
            uint64_t queued = time_in_queue_ns(), stalled = scene->stall_ns, began = now_ns();
            bool granted = reserve(&self->map, bytes, LIMIT);
            uint64_t took = now_ns() - began;
            if (granted)
                self->held += bytes;
            else
                __atomic_add_fetch(&scene->refused, 1, __ATOMIC_SEQ_CST);
            /* What remains when the machine's own slowness is taken off. */
            uint64_t excused = time_in_queue_ns() - queued + scene->stall_ns - stalled;
            uint64_t waited = took > excused ? took - excused : 0;
            if (self->interrupted)
                took = waited = 0;
            self->interrupted = false;
            if (took > self->longest_ns)
                self->longest_ns = took;
            if (waited > self->longest_waited_ns)
                self->longest_waited_ns = waited;
            self->late += waited > BOUND_NS;
        }
        __atomic_add_fetch(&scene->steps, 1, __ATOMIC_RELAXED);
        if (random_of(&random) % 4 == 0)
            sched_yield();
    }
}

static pid_t pids[WORKERS];

static void employ(int index) {
    scene->workers[index].attached = scene->workers[index].paused = false;
    scene->workers[index].doom = 0;
    pids[index] = start(work, &scene->workers[index]);
}

/* The kernel has let go of the dead process's lock, even if somebody was just looking into /proc at it. */
static void await_end_of(const struct vcuda_ledger_map *observer, const struct vcuda_ledger_map *dead) {
    if (dead->slot < 0)
        return;
    const struct vcuda_slot *slot = vcuda_ledger_slot(observer, (uint32_t)dead->slot);
    for (int waited = 0;
         slot->generation == dead->generation && vcuda_ledger_alive(observer, (uint32_t)dead->slot);
         waited++) {
        CHECK(waited < PATIENCE_MS);
        sleep_ms(1);
    }
}

static void compare_with_the_living(const struct vcuda_ledger_map *observer) {
    scene->pause = true;
    uint64_t held = 0;
    for (int i = 0; i < WORKERS; i++) {
        for (int waited = 0; !__atomic_load_n(&scene->workers[i].paused, __ATOMIC_SEQ_CST); waited++) {
            CHECK(waited < PATIENCE_MS);
            CHECK(waitpid(pids[i], NULL, WNOHANG) == 0);
            sleep_ms(1);
        }
        held += scene->workers[i].held;
    }
    vcuda_ledger_reclaim(observer);
    CHECK_EQUAL(used(observer), held);
    for (int i = 0; i < WORKERS; i++)
        scene->workers[i].paused = false;
    scene->pause = false;
}

/* Kills one worker in one of the ways there are, and employs another in its place. */
static void kill_one(const struct vcuda_ledger_map *observer, uint64_t *random) {
    int index = (int)(random_of(random) % WORKERS), status;
    struct worker *victim = &scene->workers[index];
    uint64_t way = random_of(random) % 4;
    if (way == 0) { /* at a marked point */
        victim->doom_signal = SIGKILL;
        victim->doom = 1 + (int)(random_of(random) % 12);
    } else if (way == 1) { /* stopped at a marked point for longer than a lease, then killed */
        victim->doom_signal = SIGSTOP;
        victim->doom = 1 + (int)(random_of(random) % 12);
        for (int waited = 0; waitpid(pids[index], &status, WNOHANG | WUNTRACED) == 0 && waited < 100;
             waited++)
            sleep_ms(1);
        sleep_ms((long)(random_of(random) % 40));
        if (random_of(random) % 2) { /* it may also live on */
            victim->doom = 0;
            kill(pids[index], SIGCONT);
            return;
        }
        kill(pids[index], SIGKILL);
    } else { /* at any instant, perhaps while it starts */
        for (uint64_t spins = random_of(random) % 20000; spins; spins--)
            __asm__ volatile("");
        kill(pids[index], SIGKILL);
    }
    for (int waited = 0; waitpid(pids[index], NULL, WNOHANG) == 0; waited++) {
        if (waited > 200) /* had passed its last point */
            kill(pids[index], SIGKILL);
        sleep_ms(1);
    }
    await_end_of(observer, &victim->map);
    employ(index);
}

int main(int argc, char **argv) {
    int kills = argc > 1 ? atoi(argv[1]) : 500;
    uint64_t random = now_ns() | 1;
    printf("seed %" PRIu64 "\n", random);
    scene = shared_memory(sizeof *scene);
    new_ledger(SLOTS);
    struct vcuda_ledger_map observer;
    CHECK_EQUAL(vcuda_ledger_open(&observer, ledger_path, true), VCUDA_LEDGER_OK);
    pid_t watch = start(watch_for_stalls, NULL);
    for (int i = 0; i < WORKERS; i++)
        employ(i);
    for (int killed = 0; killed < kills; killed++) {
        kill_one(&observer, &random);
        if (killed % 20 == 19)
            compare_with_the_living(&observer);
    }
    compare_with_the_living(&observer);
    CHECK_EQUAL(scene->refused, 0);
    uint64_t longest = 0, waited = 0, late = 0;
    for (int i = 0; i < WORKERS; i++) {
        const struct worker *worker = &scene->workers[i];
        longest = worker->longest_ns > longest ? worker->longest_ns : longest;
        waited = worker->longest_waited_ns > waited ? worker->longest_waited_ns : waited;
        late += worker->late;
        kill_and_wait(pids[i]);
        await_end_of(&observer, &worker->map);
    }
    kill_and_wait(watch);
    struct vcuda_ledger_map all[SLOTS], none;
    for (int i = 0; i < SLOTS; i++)
        all[i] = attached(ledger_path);
    CHECK_EQUAL(vcuda_ledger_attach(&none, ledger_path), VCUDA_LEDGER_FULL);
    CHECK_EQUAL(used(&all[0]), 0);
    printf("%d kills, %" PRIu64 " steps, longest wait %.1f ms, of which %.1f ms not the machine's\n", kills,
           scene->steps, (double)longest / 1e6, (double)waited / 1e6);
    CHECK_EQUAL(late, 0);
    return 0;
}
