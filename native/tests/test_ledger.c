/*
 * The ledger's promises where nothing races: charges, slots, and what becomes of them when processes fork,
 * execute another program, die and start again. Those of races are in test_ledger_points.c, _race.c and
 * _crash.c.
 *
 * build: native/shim/ledger.c native/shim/ledger_file.c native/shim/ledger_slots.c native/shim/bucket.c
 */
#include "ledger_puppet.h"

#include <fcntl.h>
#include <sys/stat.h>

#define LIMIT (1000 * MIB)

/* Sees the sums without a slot. */
static struct vcuda_ledger_map observer(const char *path) {
    struct vcuda_ledger_map map;
    CHECK_EQUAL(vcuda_ledger_open(&map, path, true), VCUDA_LEDGER_OK);
    return map;
}

PROMISE(a_charge_is_admitted_to_the_byte) {
    struct vcuda_ledger_map map = attached(new_ledger(0));
    CHECK(reserve(&map, LIMIT - 1, LIMIT));
    CHECK(!reserve(&map, 2, LIMIT));
    CHECK(reserve(&map, 1, LIMIT));
    CHECK(!reserve(&map, 1, LIMIT));
    CHECK(reserve(&map, 0, LIMIT));
    CHECK_EQUAL(used(&map), LIMIT);
    release(&map, LIMIT);
    CHECK_EQUAL(used(&map), 0);
    const struct vcuda_slot_card *own = &vcuda_ledger_slot(&map, 0)->cards[CARD];
    CHECK_EQUAL(own->refused, 2);
    CHECK_EQUAL(own->refused_bytes, 1);
    CHECK_EQUAL(own->peak_bytes, LIMIT);
}

PROMISE(cards_and_kinds_are_counted_apart) {
    struct vcuda_ledger_map map = attached(new_ledger(0));
    for (uint32_t card = 0; card < VCUDA_MAX_CARDS; card++)
        for (uint32_t kind = 0; kind < VCUDA_KINDS; kind++)
            CHECK(vcuda_ledger_reserve(&map, card, kind, 100 * card + kind, LIMIT));
    for (uint32_t card = 0; card < VCUDA_MAX_CARDS; card++) {
        CHECK_EQUAL(vcuda_ledger_used(&map, card), 800 * card + 28);
        for (uint32_t kind = 0; kind < VCUDA_KINDS; kind++)
            CHECK_EQUAL(vcuda_ledger_slot(&map, 0)->cards[card].bytes[kind], 100 * card + kind);
    }
}

PROMISE(numbers_beyond_the_word_are_refused_and_spoil_nothing) {
    struct vcuda_ledger_map map = attached(new_ledger(0));
    CHECK(!reserve(&map, VCUDA_MAX_BYTES + 1, VCUDA_MAX_BYTES));
    CHECK(!reserve(&map, UINT64_MAX, VCUDA_MAX_BYTES));
    CHECK(!reserve(&map, 1, VCUDA_MAX_BYTES + 1));
    CHECK(!reserve(&map, 1, UINT64_MAX));
    CHECK(!vcuda_ledger_reserve(&map, VCUDA_MAX_CARDS, VCUDA_KIND_LINEAR, 1, LIMIT));
    CHECK(!vcuda_ledger_reserve(&map, UINT32_MAX, VCUDA_KIND_LINEAR, 1, LIMIT));
    vcuda_ledger_charge(&map, UINT32_MAX, VCUDA_KIND_LINEAR, 1);
    vcuda_ledger_release(&map, UINT32_MAX, VCUDA_KIND_LINEAR, 1);
    CHECK_EQUAL(used(&map), 0);
    CHECK(reserve(&map, VCUDA_MAX_BYTES, VCUDA_MAX_BYTES));
    vcuda_ledger_charge(&map, CARD, VCUDA_KIND_POOL, 12345); /* saturates */
    CHECK_EQUAL(used(&map), VCUDA_MAX_BYTES);
    release(&map, UINT64_MAX);
    CHECK_EQUAL(used(&map), 0);
    CHECK(reserve(&map, 1, LIMIT));
    CHECK_EQUAL(used(&map), 1);
}

PROMISE(a_charge_beyond_the_limit_is_counted_and_blocks_others) {
    struct vcuda_ledger_map map = attached(new_ledger(0));
    vcuda_ledger_charge(&map, CARD, VCUDA_KIND_POOL, LIMIT + 5);
    CHECK_EQUAL(used(&map), LIMIT + 5);
    CHECK(!reserve(&map, 0, LIMIT));
    vcuda_ledger_release(&map, CARD, VCUDA_KIND_POOL, 6);
    CHECK(reserve(&map, 1, LIMIT));
}

PROMISE(a_reader_charges_nothing) {
    new_ledger(0);
    struct vcuda_ledger_map map = observer(ledger_path);
    CHECK(!reserve(&map, 1, LIMIT));
    vcuda_ledger_charge(&map, CARD, VCUDA_KIND_POOL, 1);
    release(&map, 1);
    CHECK_EQUAL(used(&map), 0);
    vcuda_ledger_close(&map);
    vcuda_ledger_close(&map);
    struct puppet *puppet = attached_puppet(ledger_path);
    CHECK_EQUAL(ask(puppet, RESERVE, 100, LIMIT), true);
    kill_and_wait(puppet->pid);
    CHECK_EQUAL(vcuda_ledger_open(&map, ledger_path, false), VCUDA_LEDGER_OK);
    CHECK_EQUAL(vcuda_ledger_reclaim(&map), 0); /* the file cannot be written through this map */
    CHECK_EQUAL(used(&map), 100);
}

PROMISE(a_lowered_limit_holds_at_once) {
    struct vcuda_ledger_map map = attached(new_ledger(0));
    CHECK(reserve(&map, 100, LIMIT));
    CHECK(!reserve(&map, 1, 50));
    release(&map, 60);
    CHECK(reserve(&map, 10, 50));
    CHECK(!reserve(&map, 1, 50));
}

PROMISE(a_killed_process_gives_its_memory_back) {
    new_ledger(0);
    struct puppet *puppet = attached_puppet(ledger_path);
    struct vcuda_ledger_map map = attached(ledger_path);
    CHECK_EQUAL(ask(puppet, RESERVE, LIMIT - 10, LIMIT), true);
    CHECK(!reserve(&map, 11, LIMIT));
    kill_and_wait(puppet->pid);
    CHECK(reserve(&map, LIMIT, LIMIT));
    CHECK_EQUAL(used(&map), LIMIT);
    CHECK_EQUAL(map.header->cards[CARD].reclaimed, 1);
    CHECK(map.header->cards[CARD].reclaimed_ns != 0);
}

PROMISE(so_does_one_that_exits) {
    new_ledger(0);
    struct puppet *puppet = attached_puppet(ledger_path);
    struct vcuda_ledger_map map = attached(ledger_path);
    CHECK_EQUAL(ask(puppet, RESERVE, LIMIT, LIMIT), true);
    tell(puppet, LEAVE, 0, 0);
    CHECK(ended_well(puppet->pid));
    CHECK(reserve(&map, LIMIT, LIMIT));
}

PROMISE(a_process_that_starts_takes_back_what_the_dead_held) {
    new_ledger(0);
    struct puppet *first = attached_puppet(ledger_path), *second = attached_puppet(ledger_path);
    CHECK_EQUAL(ask(first, RESERVE, 7, LIMIT), true);
    CHECK_EQUAL(ask(second, RESERVE, 8, LIMIT), true);
    kill_and_wait(first->pid);
    kill_and_wait(second->pid);
    struct vcuda_ledger_map map = attached(ledger_path);
    CHECK_EQUAL(used(&map), 0);
    CHECK_EQUAL(map.slot, 0);
    CHECK_EQUAL(map.generation, 2);
}

PROMISE(and_finds_it_among_many_of_the_living) {
    new_ledger(0);
    struct puppet *puppets[12];
    for (int i = 0; i < 12; i++)
        puppets[i] = attached_puppet(ledger_path);
    CHECK_EQUAL(ask(puppets[7], RESERVE, 8, LIMIT), true);
    kill_and_wait(puppets[7]->pid);
    struct vcuda_ledger_map map = attached(ledger_path);
    CHECK_EQUAL(used(&map), 0);
    CHECK_EQUAL(map.slot, 7);
}

PROMISE(what_the_dead_did_is_added_up_once) {
    new_ledger(0);
    struct vcuda_ledger_map map = attached(ledger_path);
    for (int life = 1; life <= 3; life++) {
        struct puppet *puppet = attached_puppet(ledger_path);
        struct vcuda_slot_card *own = &vcuda_ledger_slot(&map, 1)->cards[CARD];
        own->gpu_ns = 1000;
        own->launches = 10;
        own->wait_ns = 100;
        CHECK_EQUAL(ask(puppet, RESERVE, 1, 0), false);
        kill_and_wait(puppet->pid);
        CHECK_EQUAL(vcuda_ledger_reclaim(&map), 1);
        CHECK_EQUAL(vcuda_ledger_reclaim(&map), 0);
        const struct vcuda_ledger_card *all = &map.header->cards[CARD];
        CHECK_EQUAL(all->ended_gpu_ns, 1000 * life);
        CHECK_EQUAL(all->ended_launches, 10 * life);
        CHECK_EQUAL(all->ended_wait_ns, 100 * life);
        CHECK_EQUAL(all->ended_refused, life);
        CHECK_EQUAL(own->gpu_ns + own->launches + own->wait_ns + own->refused + own->peak_bytes, 0);
    }
}

PROMISE(a_forked_child_does_not_keep_its_parents_slot) {
    new_ledger(0);
    struct puppet *puppet = attached_puppet(ledger_path);
    CHECK_EQUAL(ask(puppet, RESERVE, LIMIT, LIMIT), true);
    ask(puppet, FORK, 0, 0);
    kill_and_wait(puppet->pid);
    CHECK_EQUAL(kill(puppet->child, 0), 0);
    struct vcuda_ledger_map map = attached(ledger_path);
    CHECK(reserve(&map, LIMIT, LIMIT));
    kill_child(puppet);
}

PROMISE(a_childs_death_leaves_its_parents_slot) {
    new_ledger(0);
    struct puppet *puppet = attached_puppet(ledger_path);
    CHECK_EQUAL(ask(puppet, RESERVE, LIMIT, LIMIT), true);
    ask(puppet, FORK, 0, 0);
    kill_child(puppet);
    ask(puppet, VFORK, 0, 0);
    struct vcuda_ledger_map map = attached(ledger_path);
    kill_child(puppet);
    CHECK(!reserve(&map, 1, LIMIT));
    CHECK(vcuda_ledger_alive(&map, 0));
    put_away(puppet);
}

PROMISE(a_program_that_is_replaced_by_another_gives_its_memory_back) {
    new_ledger(0);
    struct puppet *puppet = attached_puppet(ledger_path);
    struct vcuda_ledger_map map = attached(ledger_path);
    CHECK_EQUAL(ask(puppet, RESERVE, LIMIT, LIMIT), true);
    ask(puppet, EXEC, 0, 0);
    for (int waited = 0; vcuda_ledger_alive(&map, 0); waited++) {
        CHECK(waited < PATIENCE_MS); /* the image is replaced a moment after the order was read */
        sleep_ms(1);
    }
    CHECK_EQUAL(kill(puppet->pid, 0), 0);
    CHECK(reserve(&map, LIMIT, LIMIT));
    put_away(puppet);
}

PROMISE(a_vforked_program_does_not_keep_its_parents_slot) {
    new_ledger(0);
    struct puppet *puppet = attached_puppet(ledger_path);
    CHECK_EQUAL(ask(puppet, RESERVE, LIMIT, LIMIT), true);
    ask(puppet, VFORK, 0, 0);
    kill_and_wait(puppet->pid);
    CHECK_EQUAL(kill(puppet->child, 0), 0);
    struct vcuda_ledger_map map = attached(ledger_path);
    CHECK(reserve(&map, LIMIT, LIMIT));
    kill_child(puppet);
}

PROMISE(closing_every_descriptor_does_not_lose_the_slot) {
    new_ledger(0);
    struct vcuda_ledger_map map = attached(ledger_path);
    if (map.kept_fd >= 0)
        SKIP("on this file system a mapping does not keep a lock, and the descriptor is kept");
    CHECK(reserve(&map, LIMIT, LIMIT));
    for (int fd = 3; fd < 1024; fd++)
        close(fd);
    struct puppet *puppet = attached_puppet(ledger_path);
    CHECK_EQUAL(ask(puppet, RESERVE, 1, LIMIT), false);
    CHECK_EQUAL(puppet->map->slot, 1);
    put_away(puppet);
}

PROMISE(opening_and_closing_the_file_does_not_lose_the_slot) {
    new_ledger(0);
    struct vcuda_ledger_map map = attached(ledger_path);
    for (int i = 0; i < 3; i++) {
        close(open(ledger_path, O_RDWR | O_CLOEXEC));
        struct vcuda_ledger_map other = observer(ledger_path);
        CHECK_EQUAL(vcuda_ledger_reclaim(&other), 0);
        vcuda_ledger_close(&other);
    }
    CHECK(vcuda_ledger_alive(&map, 0));
}

static void attach_in_new_namespace(void *path) {
    struct vcuda_ledger_map map = attached(path);
    CHECK_EQUAL(getpid(), 1);
    CHECK(reserve(&map, 100, LIMIT));
    wait_for_ever(NULL);
}

static void make_namespace(void *path) {
    if (unshare(CLONE_NEWPID) != 0)
        SKIP("a pid namespace cannot be made here: %s", strerror(errno));
    CHECK(ended_well(start(attach_in_new_namespace, path)));
}

PROMISE(two_processes_of_one_pid_in_two_namespaces_have_two_slots) {
    new_ledger(0);
    pid_t first = start(make_namespace, ledger_path), second = start(make_namespace, ledger_path);
    struct vcuda_ledger_map map = observer(ledger_path);
    for (int waited = 0; used(&map) < 200; waited++) {
        int status;
        pid_t ended = waitpid(-1, &status, WNOHANG);
        if (ended > 0 && WIFEXITED(status) && WEXITSTATUS(status) == SKIPPED)
            exit(SKIPPED);
        CHECK(ended == 0 && waited < PATIENCE_MS);
        sleep_ms(1);
    }
    CHECK_EQUAL(vcuda_ledger_slot(&map, 0)->pid, 1);
    CHECK_EQUAL(vcuda_ledger_slot(&map, 1)->pid, 1);
    CHECK(vcuda_ledger_slot(&map, 0)->pid_ns != vcuda_ledger_slot(&map, 1)->pid_ns);
    CHECK_EQUAL(vcuda_ledger_reclaim(&map), 0);
    kill_and_wait(first); /* and with it, by PR_SET_PDEATHSIG, the process in the namespace */
    for (int waited = 0; vcuda_ledger_reclaim(&map) == 0; waited++) {
        CHECK(waited < PATIENCE_MS);
        sleep_ms(1);
    }
    CHECK_EQUAL(used(&map), 100);
    kill_and_wait(second);
}

PROMISE(a_full_table_says_so_and_a_death_makes_room) {
    new_ledger(3);
    struct puppet *puppets[3];
    for (int i = 0; i < 3; i++)
        puppets[i] = attached_puppet(ledger_path);
    struct vcuda_ledger_map map;
    CHECK_EQUAL(vcuda_ledger_attach(&map, ledger_path), VCUDA_LEDGER_FULL);
    CHECK(map.header == NULL && map.slot == -1);
    kill_and_wait(puppets[1]->pid);
    CHECK_EQUAL(vcuda_ledger_attach(&map, ledger_path), VCUDA_LEDGER_OK);
    CHECK_EQUAL(map.slot, 1);
    put_away(puppets[0]);
    put_away(puppets[2]);
}

PROMISE(many_short_lives_use_few_slots) {
    new_ledger(0);
    for (int life = 0; life < 50; life++) {
        struct puppet *puppet = attached_puppet(ledger_path);
        CHECK_EQUAL(ask(puppet, RESERVE, LIMIT, LIMIT), true);
        put_away(puppet);
    }
    struct vcuda_ledger_map map = observer(ledger_path);
    CHECK_EQUAL(map.header->slots_high, 1);
}

PROMISE(a_dead_processs_slot_is_the_next_ones) {
    new_ledger(0);
    struct puppet *puppets[70];
    for (uint32_t i = 0; i < 70; i++) {
        puppets[i] = attached_puppet(ledger_path);
        CHECK_EQUAL(puppets[i]->map->slot, i);
    }
    CHECK_EQUAL(ask(puppets[66], RESERVE, LIMIT, LIMIT), true); /* beyond the first of its group of slots */
    CHECK_EQUAL(ask(puppets[3], RESERVE, 0, LIMIT), true);
    kill_and_wait(puppets[66]->pid);
    kill_and_wait(puppets[3]->pid);
    const int64_t slots[] = {3, 66, 70};
    for (int i = 0; i < 3; i++) {
        struct vcuda_ledger_map map = attached(ledger_path); /* left open: it is to live on */
        CHECK_EQUAL(map.slot, slots[i]);
        CHECK_EQUAL(used(&map), 0);
    }
    for (int i = 0; i < 70; i++)
        if (i != 3 && i != 66)
            put_away(puppets[i]);
}

PROMISE(a_restarted_container_finds_its_old_ledger_as_good_as_new) {
    new_ledger(0);
    struct puppet *puppets[4];
    for (int i = 0; i < 4; i++) {
        puppets[i] = attached_puppet(ledger_path);
        CHECK_EQUAL(ask(puppets[i], RESERVE, LIMIT / 4, LIMIT), true);
    }
    struct vcuda_ledger_map map = observer(ledger_path);
    map.header->cards[CARD].lock = (uint64_t)2 << 48 | 7; /* its holder died with the machine */
    for (int i = 0; i < 4; i++)
        kill_and_wait(puppets[i]->pid);
    struct vcuda_ledger_map again = attached(ledger_path);
    CHECK(reserve(&again, LIMIT, LIMIT));
    CHECK_EQUAL(map.header->cards[CARD].lock, 0);
}

PROMISE(scribbling_in_the_ledger_crashes_nobody_and_opens_no_hole) {
    new_ledger(8);
    uint64_t random = 20260101;
    for (int round = 0; round < 60; round++) {
        struct vcuda_ledger_map map = attached(ledger_path);
        uint64_t *words = (uint64_t *)map.header;
        for (int scribble = 0; scribble < 200; scribble++) /* anything but what makes it a ledger */
            words[6 + random_of(&random) % (map.map_bytes / 8 - 6)] = random_of(&random);
        map.header->slots_high = (uint32_t)random_of(&random);
        map.header->cards[CARD].lock = random_of(&random);
        release(&map, random_of(&random));
        vcuda_ledger_charge(&map, CARD, VCUDA_KIND_POOL, random_of(&random));
        (void)vcuda_ledger_reclaim(&map);
        struct vcuda_slot_card *own = &vcuda_ledger_slot(&map, (uint32_t)map.slot)->cards[CARD];
        own->word = 0;
        map.header->slots_high = 0;
        uint64_t held = 0;
        for (int i = 0; i < 20; i++)
            held += reserve(&map, LIMIT / 4, LIMIT) ? LIMIT / 4 : 0;
        CHECK(held <= LIMIT);
        vcuda_ledger_close(&map);
    }
}

PROMISE(what_was_scribbled_into_a_slot_that_nobody_had_is_nobodys_charge) {
    new_ledger(0);
    struct vcuda_ledger_map map = observer(ledger_path);
    vcuda_ledger_slot(&map, 0)->cards[CARD].word = 100;
    struct vcuda_ledger_map own = attached(ledger_path);
    CHECK_EQUAL(own.slot, 0);
    CHECK_EQUAL(used(&own), 0);
}

PROMISE(a_ledger_is_made_whole_or_not_at_all) {
    const char *path = new_ledger(5);
    struct stat st;
    CHECK_EQUAL(stat(path, &st), 0);
    CHECK_EQUAL(st.st_mode & 07777, 0666);
    CHECK_EQUAL(st.st_size, sizeof(struct vcuda_ledger) + 5 * sizeof(struct vcuda_slot));
    CHECK_EQUAL(vcuda_ledger_create("/nonexistent/ledger", 5), VCUDA_LEDGER_MISSING);
    CHECK_EQUAL(vcuda_ledger_create(path, VCUDA_MAX_SLOTS + 1), VCUDA_LEDGER_GARBAGE);
}

PROMISE(the_umask_keeps_nobody_out) {
    umask(0777);
    struct stat st;
    CHECK_EQUAL(stat(new_ledger(5), &st), 0);
    CHECK_EQUAL(st.st_mode & 07777, 0666);
}

PROMISE(a_relative_path_is_good_after_a_change_of_directory) {
    new_ledger(0);
    char *name = strrchr(ledger_path, '/');
    *name = 0;
    CHECK_EQUAL(chdir(ledger_path), 0);
    *name = '/';
    struct puppet *puppet = attached_puppet(ledger_path);
    CHECK_EQUAL(ask(puppet, RESERVE, LIMIT, LIMIT), true);
    struct vcuda_ledger_map map = attached(name + 1);
    CHECK_EQUAL(chdir("/"), 0);
    kill_and_wait(puppet->pid);
    CHECK(reserve(&map, LIMIT, LIMIT));
}

int main(int argc, char **argv) {
    return keep_promises(argc, argv);
}
