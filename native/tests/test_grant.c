/*
 * The grant's reader: a grant is believed whole or refused whole, with one line that says what is wrong.
 *
 * build: native/shim/grant.c -Wl,-z,now
 */
#include "check.h"
#include "grant.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

static char path[200];
static pid_t maker;

static void remove_file(void) {
    if (getpid() == maker)
        remove(path);
}

static void write_file(const void *content, size_t bytes) {
    const char *directory = getenv("TMPDIR");
    snprintf(path, sizeof path, "%s/grant-%d", directory ? directory : "/tmp", (int)getpid());
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && write(fd, content, bytes) == (ssize_t)bytes);
    close(fd);
    maker = getpid();
    atexit(remove_file);
}

static struct vcuda_grant sound(uint32_t cards) {
    struct vcuda_grant grant;
    memset(&grant, 0, sizeof grant);
    grant.magic = VCUDA_GRANT_MAGIC;
    grant.abi_major = VCUDA_ABI_MAJOR;
    grant.abi_minor = VCUDA_ABI_MINOR;
    grant.header_bytes = offsetof(struct vcuda_grant, cards);
    grant.card_count = cards;
    grant.card_bytes = sizeof(struct vcuda_grant_card);
    grant.file_bytes = grant.header_bytes + (uint64_t)cards * grant.card_bytes;
    strcpy(grant.name, "test");
    for (uint32_t i = 0; i < cards && i < VCUDA_MAX_CARDS; i++) {
        snprintf(grant.cards[i].uuid, sizeof grant.cards[i].uuid, "%s-%032u", i % 2 ? "MIG" : "GPU", i);
        grant.cards[i].memory_bytes = (uint64_t)1 << 30;
        grant.cards[i].core_ppm = 300000;
        grant.cards[i].core_max_ppm = VCUDA_PPM;
    }
    return grant;
}

static void expect(const struct vcuda_grant *grant, size_t bytes, enum vcuda_grant_status status,
                   const char *part_of_why) {
    char why[200] = "";
    CHECK_EQUAL(vcuda_grant_check(grant, bytes, NULL, 0), status);
    CHECK_EQUAL(vcuda_grant_check(grant, bytes, why, sizeof why), status);
    if (!strstr(why, part_of_why))
        fprintf(stderr, "'%s' does not say '%s'\n", why, part_of_why);
    CHECK(strstr(why, part_of_why) != NULL);
    CHECK(strchr(why, '\n') == NULL);
    /* The same from a file. */
    struct vcuda_grant_map map;
    write_file(grant, bytes);
    CHECK_EQUAL(vcuda_grant_open(&map, path, why, sizeof why), status);
    CHECK((map.header != NULL) == (status == VCUDA_GRANT_OK));
    vcuda_grant_close(&map);
}

PROMISE(a_sound_grant_is_believed) {
    for (uint32_t cards = 1; cards <= VCUDA_MAX_CARDS; cards++) {
        struct vcuda_grant grant = sound(cards);
        expect(&grant, grant.file_bytes, VCUDA_GRANT_OK, "");
        expect(&grant, sizeof grant, VCUDA_GRANT_OK, ""); /* longer than it says: of a later minor version */
    }
    struct vcuda_grant grant = sound(2);
    struct vcuda_grant_map map;
    write_file(&grant, grant.file_bytes);
    CHECK_EQUAL(vcuda_grant_open(&map, path, NULL, 0), VCUDA_GRANT_OK);
    CHECK_EQUAL(map.card_count, 2);
    CHECK(memcmp(vcuda_grant_card(&map, 1), &grant.cards[1], sizeof grant.cards[1]) == 0);
}

PROMISE(a_truncated_grant_is_refused_at_each_length) {
    struct vcuda_grant grant = sound(3);
    for (size_t bytes = 0; bytes < grant.file_bytes; bytes += bytes < 300 ? 1 : 97)
        expect(&grant, bytes, VCUDA_GRANT_TRUNCATED, "truncated");
}

PROMISE(each_wrong_value_is_refused_and_named) {
    struct {
        size_t offset, bytes;
        uint64_t value;
        enum vcuda_grant_status status;
        const char *why;
    } wrong[] = {
#define HEAD(field, value, status, why)                                                                      \
    {offsetof(struct vcuda_grant, field), sizeof((struct vcuda_grant *)0)->field, value, status, why}
#define OF_CARD(field, value)                                                                                \
    {offsetof(struct vcuda_grant, cards) + 256 + offsetof(struct vcuda_grant_card, field),                   \
     sizeof((struct vcuda_grant_card *)0)->field, value, VCUDA_GRANT_VALUE, "card 1 of the grant"}
        HEAD(magic, 0, VCUDA_GRANT_GARBAGE, "not a grant"),
        HEAD(magic, VCUDA_LEDGER_MAGIC, VCUDA_GRANT_GARBAGE, "not a grant"),
        HEAD(abi_major, 2, VCUDA_GRANT_VERSION, "ABI version 2.1, this library 1.1"),
        HEAD(abi_major, 0, VCUDA_GRANT_VERSION, "ABI version 0.1"),
        HEAD(header_bytes, 0, VCUDA_GRANT_GARBAGE, "contradicts itself"),
        HEAD(header_bytes, 255, VCUDA_GRANT_GARBAGE, "contradicts itself"),
        HEAD(header_bytes, 257, VCUDA_GRANT_GARBAGE, "contradicts itself"),
        HEAD(header_bytes, UINT32_MAX, VCUDA_GRANT_GARBAGE, "contradicts itself"),
        HEAD(header_bytes, 65536, VCUDA_GRANT_GARBAGE, "contradicts itself"), /* file_bytes says less */
        HEAD(card_bytes, 0, VCUDA_GRANT_GARBAGE, "contradicts itself"),
        HEAD(card_bytes, UINT32_MAX - 7, VCUDA_GRANT_GARBAGE, "contradicts itself"),
        HEAD(card_count, 0, VCUDA_GRANT_GARBAGE, "contradicts itself"),
        HEAD(card_count, VCUDA_MAX_CARDS + 1, VCUDA_GRANT_GARBAGE, "contradicts itself"),
        HEAD(card_count, UINT32_MAX, VCUDA_GRANT_GARBAGE, "contradicts itself"),
        HEAD(card_count, 3, VCUDA_GRANT_GARBAGE, "contradicts itself"),
        HEAD(file_bytes, 0, VCUDA_GRANT_GARBAGE, "contradicts itself"),
        OF_CARD(memory_bytes, 0),
        OF_CARD(memory_bytes, (uint64_t)-1),
        OF_CARD(memory_bytes, (uint64_t)-(1 << 30)),
        OF_CARD(memory_bytes, VCUDA_MAX_BYTES + (uint64_t)1),
        OF_CARD(core_ppm, 0),
        OF_CARD(core_ppm, VCUDA_PPM + 1),
        OF_CARD(core_ppm, UINT32_MAX),
        OF_CARD(core_max_ppm, 299999),
        OF_CARD(core_max_ppm, UINT32_MAX),
        OF_CARD(priority, (uint32_t)-2),
        OF_CARD(priority, 2),
        OF_CARD(context_bytes, (uint64_t)-1),
        OF_CARD(page_bytes, 3),
        OF_CARD(page_bytes, (uint64_t)1 << 33),
        OF_CARD(pool_chunk_bytes, (uint64_t)-1),
        OF_CARD(uuid, 0),
        OF_CARD(uuid, 'X'),
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct vcuda_grant grant = sound(2);
        size_t bytes = wrong[i].bytes > 8 ? 1 : wrong[i].bytes;
        memcpy((char *)&grant + wrong[i].offset, &wrong[i].value, bytes);
        expect(&grant, sizeof grant, wrong[i].status, wrong[i].why);
    }
}

PROMISE(a_name_without_end_or_with_a_line_break_is_refused) {
    struct vcuda_grant grant = sound(1);
    memset(grant.cards[0].uuid, 'G', sizeof grant.cards[0].uuid);
    memcpy(grant.cards[0].uuid, "GPU-", 4);
    expect(&grant, sizeof grant, VCUDA_GRANT_VALUE, "no UUID");
    grant = sound(1);
    strcpy(grant.cards[0].uuid, "GPU-1\n2");
    expect(&grant, sizeof grant, VCUDA_GRANT_VALUE, "no UUID");
    grant = sound(1);
    memset(grant.name, 'n', sizeof grant.name);
    expect(&grant, sizeof grant, VCUDA_GRANT_GARBAGE, "contradicts itself");
}

PROMISE(a_card_is_named_once) {
    struct vcuda_grant grant = sound(3);
    memcpy(grant.cards[2].uuid, grant.cards[0].uuid, sizeof grant.cards[0].uuid);
    expect(&grant, sizeof grant, VCUDA_GRANT_VALUE, "twice");
}

PROMISE(a_later_minor_version_with_larger_parts_is_read) {
    static char file[65536 + VCUDA_MAX_CARDS * 65536];
    struct vcuda_grant grant = sound(VCUDA_MAX_CARDS);
    grant.abi_minor = 7;
    grant.header_bytes = 65536;
    grant.card_bytes = 65536;
    grant.file_bytes = sizeof file;
    memcpy(file, &grant, offsetof(struct vcuda_grant, cards));
    for (uint32_t i = 0; i < VCUDA_MAX_CARDS; i++)
        memcpy(file + grant.header_bytes + i * grant.card_bytes, &grant.cards[i], sizeof grant.cards[i]);
    write_file(file, sizeof file);
    struct vcuda_grant_map map;
    CHECK_EQUAL(vcuda_grant_open(&map, path, NULL, 0), VCUDA_GRANT_OK);
    CHECK(strcmp(vcuda_grant_card(&map, 15)->uuid, grant.cards[15].uuid) == 0);
}

PROMISE(what_is_no_file_is_refused) {
    struct vcuda_grant_map map;
    char why[200];
    CHECK_EQUAL(vcuda_grant_open(&map, "/nonexistent/grant", why, sizeof why), VCUDA_GRANT_MISSING);
    CHECK(strstr(why, "/nonexistent/grant") != NULL);
    CHECK_EQUAL(vcuda_grant_open(&map, "/", why, sizeof why), VCUDA_GRANT_UNREADABLE);
    CHECK_EQUAL(vcuda_grant_open(&map, "/dev/null", why, sizeof why), VCUDA_GRANT_UNREADABLE);
    write_file("", 0);
    remove(path);
    CHECK_EQUAL(mkfifo(path, 0600), 0); /* nobody writes: must not be waited for */
    CHECK_EQUAL(vcuda_grant_open(&map, path, why, sizeof why), VCUDA_GRANT_UNREADABLE);
}

static void *open_it(void *result) {
    *(int *)result = vcuda_grant_open(&(struct vcuda_grant_map){0}, path, NULL, 0);
    return NULL;
}

PROMISE(a_thread_with_the_smallest_stack_can_read_it) {
    if (SANITIZED)
        SKIP("a sanitizer needs more of the stack than the smallest has");
    struct vcuda_grant grant = sound(VCUDA_MAX_CARDS);
    write_file(&grant, sizeof grant);
    pthread_attr_t attributes;
    pthread_t thread;
    int result = -1;
    pthread_attr_init(&attributes);
    CHECK_EQUAL(pthread_attr_setstacksize(&attributes, 16384), 0);
    CHECK_EQUAL(pthread_create(&thread, &attributes, open_it, &result), 0);
    pthread_join(thread, NULL);
    CHECK_EQUAL(result, VCUDA_GRANT_OK);
}

static void change_in_place(void *unused) {
    (void)unused;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    struct vcuda_grant *grant = mmap(NULL, sizeof *grant, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(grant != MAP_FAILED);
    for (uint32_t i = 0;; i++) {
        __atomic_add_fetch(&grant->generation, 1, __ATOMIC_SEQ_CST); /* odd: at work */
        __atomic_store_n(&grant->cards[0].core_ppm, i % 2 ? 900000 : 100000, __ATOMIC_SEQ_CST);
        __atomic_store_n(&grant->cards[0].core_max_ppm, i % 2 ? 900000 : 100000, __ATOMIC_SEQ_CST);
        __atomic_add_fetch(&grant->generation, 1, __ATOMIC_SEQ_CST);
        nanosleep(&(struct timespec){0, 100000}, NULL);
    }
}

PROMISE(a_change_in_place_is_never_taken_for_a_contradiction) {
    struct vcuda_grant grant = sound(1);
    grant.cards[0].core_ppm = grant.cards[0].core_max_ppm = 100000;
    write_file(&grant, sizeof grant);
    pid_t writer = start(change_in_place, NULL);
    for (int i = 0; i < 3000; i++) {
        struct vcuda_grant_map map;
        CHECK_EQUAL(vcuda_grant_open(&map, path, NULL, 0), VCUDA_GRANT_OK);
        vcuda_grant_close(&map);
    }
    kill_and_wait(writer);
}

PROMISE(a_writer_that_was_killed_at_work_stops_nobody) {
    struct vcuda_grant grant = sound(1);
    grant.generation = 5;
    write_file(&grant, sizeof grant);
    struct vcuda_grant_map map;
    CHECK_EQUAL(vcuda_grant_open(&map, path, NULL, 0), VCUDA_GRANT_OK);
    grant.cards[0].core_max_ppm = 1;
    write_file(&grant, sizeof grant);
    CHECK_EQUAL(vcuda_grant_open(&map, path, NULL, 0), VCUDA_GRANT_VALUE);
}

int main(int argc, char **argv) {
    return keep_promises(argc, argv);
}
