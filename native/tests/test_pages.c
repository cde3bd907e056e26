/*
 * Pages: what allocations are charged for is what a naive driver would take for them, page by page, in
 * whichever order they come and go.
 *
 * build: native/shim/pages.c native/shim/record.c
 */
#include "check.h"
#include "pages.h"

#include <pthread.h>
#include <sys/resource.h>

#define PAGE ((uint64_t)2 << 20)
#define PAGES 64
#define SLICE 512
#define MOST 300

static uint64_t random_of(uint64_t *state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1d;
}

PROMISE(an_allocation_alone_costs_the_pages_that_it_touches) {
    CHECK_EQUAL(vcuda_pages_cover(0, PAGE, 10 * PAGE, 1), PAGE);
    CHECK_EQUAL(vcuda_pages_uncover(PAGE, 10 * PAGE, 1), PAGE);
    CHECK_EQUAL(vcuda_pages_cover(0, PAGE, 10 * PAGE, PAGE), PAGE);
    CHECK_EQUAL(vcuda_pages_uncover(PAGE, 10 * PAGE, PAGE), PAGE);
    CHECK_EQUAL(vcuda_pages_cover(0, PAGE, 10 * PAGE, PAGE + 1), 2 * PAGE);
    CHECK_EQUAL(vcuda_pages_uncover(PAGE, 10 * PAGE, PAGE + 1), 2 * PAGE);
    CHECK_EQUAL(vcuda_pages_cover(0, PAGE, 10 * PAGE + PAGE / 2, PAGE), 2 * PAGE);
    CHECK_EQUAL(vcuda_pages_uncover(PAGE, 10 * PAGE + PAGE / 2, PAGE), 2 * PAGE);
    CHECK_EQUAL(vcuda_pages_cover(0, PAGE, 11 * PAGE - SLICE, SLICE), PAGE);
    CHECK_EQUAL(vcuda_pages_uncover(PAGE, 11 * PAGE - SLICE, SLICE), PAGE);
    CHECK_EQUAL(vcuda_pages_cover(0, PAGE, 0, 1), PAGE); /* a strange driver's first address */
    CHECK_EQUAL(vcuda_pages_uncover(PAGE, 0, 1), PAGE);
    CHECK_EQUAL(vcuda_pages_cover(0, PAGE, PAGE, 0), 0);
}

PROMISE(two_that_share_a_page_pay_once) {
    CHECK_EQUAL(vcuda_pages_cover(0, PAGE, PAGE, SLICE), PAGE);
    CHECK_EQUAL(vcuda_pages_cover(0, PAGE, PAGE + SLICE, SLICE), 0);
    CHECK_EQUAL(vcuda_pages_uncover(PAGE, PAGE, SLICE), 0);
    CHECK_EQUAL(vcuda_pages_uncover(PAGE, PAGE + SLICE, SLICE), PAGE);
}

PROMISE(room_is_seen_on_the_right_card_and_in_pages_paid_for) {
    CHECK(!vcuda_pages_have_room(3, PAGE, 1));
    vcuda_pages_cover(3, PAGE, 5 * PAGE, PAGE - SLICE);
    CHECK(vcuda_pages_have_room(3, PAGE, SLICE));
    CHECK(!vcuda_pages_have_room(3, PAGE, SLICE + 1));
    CHECK(!vcuda_pages_have_room(4, PAGE, SLICE));
    CHECK(!vcuda_pages_have_room(3, PAGE, 0));
    CHECK(!vcuda_pages_have_room(3, PAGE, PAGE));
    vcuda_pages_uncover(PAGE, 5 * PAGE, PAGE - SLICE);
    CHECK(!vcuda_pages_have_room(3, PAGE, SLICE));
}

struct allocation {
    uint64_t address, bytes;
};

/* The naive driver: every slice of its memory, taken or not. */
static bool taken[PAGES * PAGE / SLICE];

static uint64_t pages_taken(void) {
    uint64_t pages = 0, per_page = PAGE / SLICE;
    for (uint64_t page = 0; page < PAGES; page++)
        pages += memchr(&taken[page * per_page], true, per_page) != NULL;
    return pages;
}

static bool take(struct allocation *wanted, bool value) {
    uint64_t first = wanted->address / SLICE, last = (wanted->address + wanted->bytes - 1) / SLICE;
    for (uint64_t slice = first; value && slice <= last; slice++)
        if (taken[slice])
            return false;
    memset(&taken[first], value, last - first + 1);
    return true;
}

static struct allocation made_up(uint64_t *random) {
    uint64_t sizes[] = {1 + random_of(random) % SLICE, 1 + random_of(random) % PAGE, PAGE,
                        1 + random_of(random) % (4 * PAGE), 2 * PAGE};
    struct allocation wanted = {.bytes = sizes[random_of(random) % 5]};
    uint64_t slices = (wanted.bytes + SLICE - 1) / SLICE, all = PAGES * PAGE / SLICE;
    wanted.address = random_of(random) % (all - slices) * SLICE;
    if (random_of(random) % 2)
        wanted.address &= ~(PAGE - 1);
    return wanted;
}

PROMISE(the_charge_is_what_a_naive_driver_takes) {
    static struct allocation live[MOST];
    uint64_t random = 42, charged = 0;
    int count = 0;
    for (int round = 0; round < 20000; round++) {
        if (count == MOST || (count && random_of(&random) % 2)) {
            int which = (int)(random_of(&random) % (uint64_t)count);
            take(&live[which], false);
            charged -= vcuda_pages_uncover(PAGE, live[which].address, live[which].bytes);
            live[which] = live[--count];
        } else {
            struct allocation wanted = made_up(&random);
            if (!take(&wanted, true))
                continue;
            uint64_t cost = vcuda_pages_cover(0, PAGE, wanted.address, wanted.bytes);
            CHECK(cost != VCUDA_PAGES_FAILED);
            charged += cost;
            live[count++] = wanted;
        }
        if (round % 8 == 0)
            CHECK_EQUAL(charged, pages_taken() * PAGE);
    }
    while (count--)
        charged -= vcuda_pages_uncover(PAGE, live[count].address, live[count].bytes);
    CHECK_EQUAL(charged, 0);
}

PROMISE(without_memory_for_the_record_nothing_is_covered) {
    if (SANITIZED)
        SKIP("a sanitizer needs memory for itself");
    struct rlimit none = {0, 0}, before;
    getrlimit(RLIMIT_AS, &before);
    none.rlim_max = before.rlim_max;
    CHECK_EQUAL(setrlimit(RLIMIT_AS, &none), 0);
    CHECK_EQUAL(vcuda_pages_cover(0, PAGE, PAGE / 2, PAGE), VCUDA_PAGES_FAILED);
    CHECK_EQUAL(setrlimit(RLIMIT_AS, &before), 0);
    CHECK_EQUAL(vcuda_pages_cover(0, PAGE, PAGE / 2, PAGE), 2 * PAGE);
}

static uint64_t charged_by_all;

static void *share_pages(void *data) {
    uint64_t own = (uint64_t)(uintptr_t)data, random = own + 1;
    for (int round = 0; round < 5000; round++) {
        /* Each its own slices of the same few pages. */
        uint64_t page = random_of(&random) % 4, address = page * PAGE + own * SLICE;
        __atomic_fetch_add(&charged_by_all, vcuda_pages_cover(0, PAGE, address, SLICE), __ATOMIC_SEQ_CST);
        __atomic_fetch_sub(&charged_by_all, vcuda_pages_uncover(PAGE, address, SLICE), __ATOMIC_SEQ_CST);
    }
    return NULL;
}

PROMISE(threads_that_share_pages_neither_pay_twice_nor_go_without_paying) {
    pthread_t threads[8];
    for (uintptr_t i = 0; i < 8; i++)
        CHECK_EQUAL(pthread_create(&threads[i], NULL, share_pages, (void *)i), 0);
    for (int i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    CHECK_EQUAL(charged_by_all, 0);
}

int main(int argc, char **argv) {
    return keep_promises(argc, argv);
}
