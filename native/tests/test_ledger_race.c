/*
 * Many processes reserve and release at random against one limit, and four things are shown:
 *   - at no instant do they hold more than the limit: each adds what it got to one common counter after it
 * got it, and takes it off before it gives it back, so that the counter never shows more than the ledger
 * allows;
 *   - an observer that only reads sees the same;
 *   - no request is refused that fits at every instant between its question and its answer: each step is
 * stamped from a common clock that only counts, and the refusals are checked afterwards against all the
 * stamps;
 *   - what always fits is never refused: half of the time each process keeps within its own part of the
 * limit.
 *
 * Arguments: seconds (1), processes (16).
 *
 * build: native/shim/ledger.c native/shim/ledger_file.c native/shim/ledger_slots.c native/shim/bucket.c
 */
#include "ledger_common.h"

#define LIMIT (64 * 1024 * MIB)
#define MOST_STEPS 20000 /* per process; the log is then full, and the race goes on without it */
#define MOST_PROCESSES 64
#define HELD_AT_ONCE 4

struct step {
    uint64_t asked, answered; /* stamps */
    int64_t bytes;            /* got (> 0), given back (< 0), or refused: see below */
    bool refused;
};

struct race {
    int64_t held __attribute__((aligned(64)));
    uint64_t stamp __attribute__((aligned(64)));
    int ready;
    bool over __attribute__((aligned(64)));
    int64_t highest;
    uint64_t refused, granted;
    uint32_t steps[MOST_PROCESSES];
    struct step log[MOST_PROCESSES][MOST_STEPS];
};

static struct race *race;
static int processes;

static uint64_t stamp(void) {
    return __atomic_fetch_add(&race->stamp, 1, __ATOMIC_SEQ_CST);
}

static void note(int self, struct step step) {
    step.answered = stamp();
    if (race->steps[self] < MOST_STEPS)
        race->log[self][race->steps[self]++] = step;
}

static bool get(const struct vcuda_ledger_map *map, int self, uint64_t bytes) {
    struct step step = {.asked = stamp(), .bytes = (int64_t)bytes};
    step.refused = !reserve(map, bytes, LIMIT);
    if (!step.refused) {
        int64_t held = __atomic_add_fetch(&race->held, (int64_t)bytes, __ATOMIC_SEQ_CST);
        CHECK(held <= (int64_t)LIMIT);
    }
    note(self, step);
    __atomic_fetch_add(step.refused ? &race->refused : &race->granted, 1, __ATOMIC_RELAXED);
    return !step.refused;
}

static void give(const struct vcuda_ledger_map *map, int self, uint64_t bytes) {
    __atomic_sub_fetch(&race->held, (int64_t)bytes, __ATOMIC_SEQ_CST);
    struct step step = {.asked = stamp(), .bytes = -(int64_t)bytes};
    release(map, bytes);
    note(self, step);
}

static void wait_for_all(void) {
    __atomic_add_fetch(&race->ready, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&race->ready, __ATOMIC_SEQ_CST) < processes)
        sched_yield();
}

/* On few cores a process would else do thousands of steps alone before another comes to run. */
static void mingle(uint64_t *random) {
    if (random_of(random) % 4 == 0)
        sched_yield();
}

static void run(void *data) {
    int self = *(int *)data;
    struct vcuda_ledger_map map = attached(ledger_path);
    uint64_t random = 88172645463325252u + (uint64_t)self, held[HELD_AT_ONCE] = {0};
    uint64_t part = LIMIT / (uint64_t)processes / HELD_AT_ONCE;
    wait_for_all();
    while (!__atomic_load_n(&race->over, __ATOMIC_RELAXED)) {
        mingle(&random);
        int i = (int)(random_of(&random) % HELD_AT_ONCE);
        if (held[i]) {
            give(&map, self, held[i]);
            held[i] = 0;
            continue;
        }
        uint64_t bytes = 1 + random_of(&random) % (part * 6);
        if (get(&map, self, bytes))
            held[i] = bytes;
    }
    for (int i = 0; i < HELD_AT_ONCE; i++)
        if (held[i])
            give(&map, self, held[i]);
}

/* Each asks for its part alone, again and again, while the others do too: never refused. */
static void run_fitting(void *data) {
    (void)data;
    struct vcuda_ledger_map map = attached(ledger_path);
    uint64_t part = LIMIT / (uint64_t)processes, random = (uint64_t)getpid();
    wait_for_all();
    while (!__atomic_load_n(&race->over, __ATOMIC_RELAXED)) {
        mingle(&random);
        CHECK(reserve(&map, part, part * (uint64_t)processes));
        int64_t held = __atomic_add_fetch(&race->held, (int64_t)part, __ATOMIC_SEQ_CST);
        CHECK(held <= (int64_t)LIMIT);
        __atomic_fetch_add(&race->granted, 1, __ATOMIC_RELAXED);
        mingle(&random);
        __atomic_sub_fetch(&race->held, (int64_t)part, __ATOMIC_SEQ_CST);
        release(&map, part);
    }
}

static void observe(void *unused) {
    (void)unused;
    while (!__atomic_load_n(&race->over, __ATOMIC_RELAXED)) {
        int64_t held = __atomic_load_n(&race->held, __ATOMIC_SEQ_CST);
        CHECK(held >= 0 && held <= (int64_t)LIMIT);
        if (held > race->highest)
            race->highest = held;
    }
}

static void hold_race(void (*runner)(void *), double seconds) {
    pid_t children[MOST_PROCESSES + 1];
    int numbers[MOST_PROCESSES];
    race->over = false;
    race->ready = 0;
    for (int i = 0; i < processes; i++) {
        numbers[i] = i;
        children[i] = start(runner, &numbers[i]);
    }
    children[processes] = start(observe, NULL);
    sleep_ms((long)(seconds * 1000));
    race->over = true;
    for (int i = 0; i <= processes; i++)
        CHECK(ended_well(children[i]));
    CHECK_EQUAL(race->held, 0);
    struct vcuda_ledger_map map = attached(ledger_path);
    CHECK_EQUAL(used(&map), 0);
    CHECK_EQUAL(map.slot, 0);
    vcuda_ledger_close(&map);
}

/* The most that can have been held at each stamp: what was got counts from the question on, until the answer
 * to its being given back. A refusal is right if at some stamp of its own this left too little. */
static uint64_t check_refusals(void) {
    uint64_t last = race->stamp, refusals = 0; /* the logs are complete up to here */
    for (int self = 0; self < processes; self++)
        if (race->steps[self] == MOST_STEPS && race->log[self][MOST_STEPS - 1].answered < last)
            last = race->log[self][MOST_STEPS - 1].answered;
    int64_t *most = calloc(last + 1, sizeof *most);
    CHECK(most != NULL);
    for (int self = 0; self < processes; self++)
        for (uint32_t i = 0; i < race->steps[self]; i++) {
            const struct step *step = &race->log[self][i];
            uint64_t at = step->bytes > 0 ? step->asked : step->answered;
            if (!step->refused && at <= last)
                most[at] += step->bytes;
        }
    for (uint64_t at = 1; at <= last; at++)
        most[at] += most[at - 1];
    for (int self = 0; self < processes; self++)
        for (uint32_t i = 0; i < race->steps[self]; i++) {
            const struct step *step = &race->log[self][i];
            if (!step->refused || step->answered > last)
                continue;
            int64_t peak = 0;
            for (uint64_t at = step->asked; at <= step->answered; at++)
                if (most[at] > peak)
                    peak = most[at];
            CHECK(peak + step->bytes > (int64_t)LIMIT);
            refusals++;
        }
    free(most);
    return refusals;
}

int main(int argc, char **argv) {
    double seconds = argc > 1 ? atof(argv[1]) : 1;
    processes = argc > 2 ? atoi(argv[2]) : 16;
    CHECK(processes > 0 && processes <= MOST_PROCESSES);
    race = shared_memory(sizeof *race);
    new_ledger(0);
    hold_race(run, seconds / 2);
    uint64_t checked = check_refusals();
    CHECK(checked > 0 && race->granted > 0);
    printf("random: %d processes, %" PRIu64 " granted, %" PRIu64 " refused, %" PRIu64
           " refusals checked, at most %.1f%% held\n",
           processes, race->granted, race->refused, checked, 100.0 * (double)race->highest / (double)LIMIT);
    race->granted = 0;
    hold_race(run_fitting, seconds / 2);
    printf("fitting: %" PRIu64 " granted, none refused\n", race->granted);
    return 0;
}
