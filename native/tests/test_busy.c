/*
 * The union of busy times: what it promises, on numbers chosen by hand, and against a bitmap on random ones.
 * build: native/shim/busy.c
 */
#include "busy.h"

#include <stdlib.h>
#include <string.h>

#include "check.h"

static struct vcuda_busy busy;

static void reset(void) {
    memset(&busy, 0, sizeof busy);
}

PROMISE(time_counts_once) {
    reset();
    CHECK(vcuda_busy_add(&busy, 100, 200) == 100);
    CHECK(vcuda_busy_add(&busy, 150, 250) == 50);
    CHECK(vcuda_busy_add(&busy, 120, 180) == 0);
    CHECK(vcuda_busy_add(&busy, 300, 400) == 100);
    CHECK(vcuda_busy_add(&busy, 50, 450) == 150);
    CHECK(busy.count == 1 && busy.span[0].from == 50 && busy.span[0].to == 450 && busy.span[0].busy == 400);
}

PROMISE(neighbours_become_one) {
    reset();
    CHECK(vcuda_busy_add(&busy, 100, 200) == 100);
    CHECK(vcuda_busy_add(&busy, 200, 300) == 100);
    CHECK(vcuda_busy_add(&busy, 0, 100) == 100);
    CHECK(busy.count == 1 && busy.span[0].from == 0 && busy.span[0].to == 300);
}

PROMISE(nothing_is_nothing) {
    reset();
    CHECK(vcuda_busy_add(&busy, 100, 100) == 0);
    CHECK(vcuda_busy_add(&busy, 100, 50) == 0);
    CHECK(busy.count == 0);
}

/* A kernel of ten seconds, known when it ends, beside ten thousand short ones that were half of the time. */
PROMISE(late_interval_counts_what_the_others_left) {
    reset();
    uint64_t sum = 0;
    for (uint64_t i = 0; i < 10000; i++)
        sum += vcuda_busy_add(&busy, 1000000 * i, 1000000 * i + 500000);
    CHECK(sum == 10000 * (uint64_t)500000);
    sum += vcuda_busy_add(&busy, 0, 10000 * (uint64_t)1000000);
    CHECK(sum == 10000 * (uint64_t)1000000);
}

PROMISE(agrees_with_a_bitmap_while_spans_suffice) {
    enum { LENGTH = 2000 };
    static unsigned char map[LENGTH];
    srand(1);
    for (int round = 0; round < 2000; round++) {
        reset();
        memset(map, 0, sizeof map);
        for (int i = 0; i < VCUDA_BUSY_SPANS; i++) {
            uint64_t from = (uint64_t)(rand() % (LENGTH - 200)), to = from + (uint64_t)(rand() % 200),
                     fresh = 0;
            for (uint64_t at = from; at < to; at++) {
                fresh += !map[at];
                map[at] = 1;
            }
            CHECK(vcuda_busy_add(&busy, from, to) == fresh);
        }
    }
}

int main(int argc, char **argv) {
    return keep_promises(argc, argv);
}
