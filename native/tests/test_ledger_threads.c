/*
 * Threads of one process, with one slot, beside another process: the limit holds, what fits is granted, and a
 * fork in the midst of it all takes nothing along. Made to be run under ThreadSanitizer, too.
 *
 * build: native/shim/ledger.c native/shim/ledger_file.c native/shim/ledger_slots.c native/shim/bucket.c
 */
#include "ledger_puppet.h"

#include <pthread.h>

#define THREADS 8
#define ROUNDS 2000
#define LIMIT ((uint64_t)1000)

static struct vcuda_ledger_map map;
static int64_t held;

static void *reserve_and_release(void *data) {
    uint64_t random = (uint64_t)(uintptr_t)data + 1;
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t bytes = 1 + random_of(&random) % (LIMIT / 2);
        if (!reserve(&map, bytes, LIMIT))
            continue;
        int64_t now = __atomic_add_fetch(&held, (int64_t)bytes, __ATOMIC_SEQ_CST);
        CHECK(now <= (int64_t)LIMIT);
        __atomic_sub_fetch(&held, (int64_t)bytes, __ATOMIC_SEQ_CST);
        release(&map, bytes);
    }
    return NULL;
}

static void *keep_within_ones_part(void *unused) {
    (void)unused;
    for (int round = 0; round < ROUNDS; round++) {
        CHECK(reserve(&map, LIMIT / THREADS, LIMIT));
        release(&map, LIMIT / THREADS);
    }
    return NULL;
}

static void run(void *(*thread)(void *)) {
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++)
        CHECK_EQUAL(pthread_create(&threads[i], NULL, thread, (void *)i), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
}

PROMISE(threads_of_one_process_share_its_slot_and_the_limit) {
    map = attached(new_ledger(0));
    run(reserve_and_release);
    CHECK_EQUAL(used(&map), 0);
    for (uint32_t kind = 0; kind < VCUDA_KINDS; kind++)
        CHECK_EQUAL(vcuda_ledger_slot(&map, 0)->cards[CARD].bytes[kind], 0);
}

PROMISE(threads_that_keep_within_their_parts_are_never_refused) {
    map = attached(new_ledger(0));
    run(keep_within_ones_part);
    CHECK_EQUAL(used(&map), 0);
}

static void *attach_and_close(void *unused) {
    (void)unused;
    for (int round = 0; round < 100; round++) {
        struct vcuda_ledger_map own = attached(ledger_path);
        CHECK(reserve(&own, 1, LIMIT));
        vcuda_ledger_close(&own);
    }
    return NULL;
}

PROMISE(threads_may_attach_at_once) {
    new_ledger(0);
    run(attach_and_close);
    struct vcuda_ledger_map reader = attached(ledger_path);
    vcuda_ledger_reclaim(&reader);
    CHECK_EQUAL(used(&reader), 0);
}

static bool over;

#define CHILDREN 40
static pid_t children[CHILDREN];

static void *fork_and_fork(void *unused) {
    (void)unused;
    for (int i = 0; i < CHILDREN; i++) {
        children[i] = fork();
        if (children[i] == 0)
            wait_for_ever(NULL);
        sleep_ms(1);
    }
    __atomic_store_n(&over, true, __ATOMIC_SEQ_CST);
    return NULL;
}

static void *attach_until_over(void *unused) {
    (void)unused;
    while (!__atomic_load_n(&over, __ATOMIC_SEQ_CST)) {
        struct vcuda_ledger_map own = attached(ledger_path);
        CHECK(reserve(&own, 1, LIMIT));
        vcuda_ledger_close(&own);
    }
    return NULL;
}

PROMISE(a_child_forked_while_another_thread_attaches_keeps_no_slot) {
    new_ledger(16);
    pthread_t forking, attaching;
    CHECK_EQUAL(pthread_create(&attaching, NULL, attach_until_over, NULL), 0);
    CHECK_EQUAL(pthread_create(&forking, NULL, fork_and_fork, NULL), 0);
    pthread_join(forking, NULL);
    pthread_join(attaching, NULL);
    struct vcuda_ledger_map reader;
    CHECK_EQUAL(vcuda_ledger_open(&reader, ledger_path, true), VCUDA_LEDGER_OK);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < reader.slot_count; i++)
        kept += vcuda_ledger_alive(&reader, i);
    for (int i = 0; i < CHILDREN; i++)
        kill_and_wait(children[i]); /* until now they all lived */
    CHECK_EQUAL(kept, 0);
}

int main(int argc, char **argv) {
    return keep_promises(argc, argv);
}
