/*
 * The timeline's promises, each checked on a clock that the test sets. Exits 0 when all hold; else names the
 * line.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "timeline.h"

#define MS 1000000U
#define START (1000U * (uint64_t)MS)

#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                          \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

static struct sim_timeline timeline;

static void reset(void) {
    memset(&timeline, 0, sizeof timeline);
    sim_timeline_init(&timeline, 80);
}

static sim_op put(uint32_t stream, enum sim_op_kind kind, uint64_t at, uint64_t duration, uint32_t sms,
                  sim_op after) {
    struct sim_work work = {at, duration, after, sms, kind, true};
    return sim_submit(&timeline, stream, &work);
}

static uint64_t end_of(sim_op op) {
    return sim_op_end_ns(&timeline, op);
}

static void a_stream_is_first_in_first_out(void) {
    reset();
    uint32_t stream = sim_stream_open(&timeline, 0, SIM_STREAM_NONBLOCKING);
    sim_op first = put(stream, SIM_OP_KERNEL, START, 5 * MS, 0, 0);
    sim_op second = put(stream, SIM_OP_KERNEL, START + MS, 3 * MS, 0, 0);
    CHECK(sim_op_eta_ns(&timeline, second) == START + 8 * MS);
    sim_timeline_advance(&timeline, START + 7 * MS);
    CHECK(end_of(first) == START + 5 * MS && !sim_op_done(&timeline, second));
    sim_timeline_advance(&timeline, START + 8 * MS);
    CHECK(end_of(second) == START + 8 * MS && sim_op_start_ns(&timeline, second) == START + 5 * MS);
    CHECK(timeline.processes[0].busy_ns == 8 * MS && timeline.busy_ns == 8 * MS);
    CHECK(timeline.processes[0].kernels == 2);
}

static void who_looks_when_changes_nothing(void) {
    uint64_t ends[2];
    for (int often = 0; often < 2; often++) {
        reset();
        uint32_t one = sim_stream_open(&timeline, 0, SIM_STREAM_NONBLOCKING);
        uint32_t two = sim_stream_open(&timeline, 1, SIM_STREAM_NONBLOCKING);
        put(one, SIM_OP_KERNEL, START, 9 * MS, 0, 0);
        sim_op last = put(two, SIM_OP_KERNEL, START + 100, 7 * MS + 3, 0, 0);
        for (uint64_t at = START; often && at < START + 30 * MS; at += 12345)
            sim_timeline_advance(&timeline, at);
        sim_timeline_advance(&timeline, START + 40 * MS);
        ends[often] = end_of(last);
    }
    CHECK(ends[0] && ends[0] == ends[1]);
}

static void streams_of_a_process_overlap_where_the_sms_suffice(void) {
    reset();
    uint32_t one = sim_stream_open(&timeline, 0, SIM_STREAM_NONBLOCKING);
    uint32_t two = sim_stream_open(&timeline, 0, SIM_STREAM_NONBLOCKING);
    sim_op a = put(one, SIM_OP_KERNEL, START, 4 * MS, 40, 0);
    sim_op b = put(two, SIM_OP_KERNEL, START, 4 * MS, 40, 0);
    sim_op c = put(one, SIM_OP_KERNEL, START, 4 * MS, 60, 0);
    sim_op d = put(two, SIM_OP_KERNEL, START, 4 * MS, 60, 0);
    sim_timeline_advance(&timeline, START + 20 * MS);
    CHECK(end_of(a) == START + 4 * MS && end_of(b) == START + 4 * MS);
    CHECK(end_of(c) == START + 8 * MS && end_of(d) == START + 12 * MS);
    CHECK(timeline.busy_ns == 12 * MS);
}

static void processes_take_turns_of_two_milliseconds(void) {
    reset();
    uint32_t one = sim_stream_open(&timeline, 3, SIM_STREAM_NONBLOCKING);
    uint32_t two = sim_stream_open(&timeline, 7, SIM_STREAM_NONBLOCKING);
    sim_op a = put(one, SIM_OP_KERNEL, START, 6 * MS, 1, 0); /* even though both would fit side by side */
    sim_op b = put(two, SIM_OP_KERNEL, START, 3 * MS, 1, 0);
    sim_timeline_advance(&timeline, START + 20 * MS);
    CHECK(end_of(b) == START + 7 * MS && end_of(a) == START + 9 * MS);
    CHECK(timeline.processes[3].busy_ns == 6 * MS && timeline.processes[7].busy_ns == 3 * MS);
    CHECK(timeline.busy_ns == 9 * MS);
}

static void an_idle_process_gives_its_slice_up(void) {
    reset();
    uint32_t one = sim_stream_open(&timeline, 0, SIM_STREAM_NONBLOCKING);
    uint32_t two = sim_stream_open(&timeline, 1, SIM_STREAM_NONBLOCKING);
    put(one, SIM_OP_KERNEL, START, MS / 2, 0, 0);
    sim_op b = put(two, SIM_OP_KERNEL, START, MS, 0, 0);
    sim_timeline_advance(&timeline, START + 20 * MS);
    CHECK(end_of(b) == START + MS + MS / 2);
}

static void a_stream_is_full_at_1024(void) {
    reset();
    uint32_t stream = sim_stream_open(&timeline, 0, SIM_STREAM_NONBLOCKING);
    for (int i = 0; i < SIM_STREAM_PENDING; i++)
        CHECK(put(stream, SIM_OP_KERNEL, START, MS, 0, 0));
    CHECK(!put(stream, SIM_OP_KERNEL, START, MS, 0, 0));
    CHECK(sim_timeline_next_ns(&timeline) == START + MS);
    CHECK(put(stream, SIM_OP_KERNEL, START + MS, MS, 0, 0));
}

static void copies_pass_kernels_and_marks_take_no_time(void) {
    reset();
    uint32_t one = sim_stream_open(&timeline, 0, SIM_STREAM_NONBLOCKING);
    uint32_t two = sim_stream_open(&timeline, 0, SIM_STREAM_NONBLOCKING);
    put(one, SIM_OP_KERNEL, START, 10 * MS, 0, 0);
    sim_op copy = put(two, SIM_OP_COPY, START, 3 * MS, 0, 0);
    sim_op mark = put(two, SIM_OP_MARK, START, 77, 0, 0);
    sim_timeline_advance(&timeline, START + 5 * MS);
    CHECK(end_of(copy) == START + 3 * MS && end_of(mark) == START + 3 * MS);
    CHECK(timeline.processes[0].copy_ns == 3 * MS);
}

static void an_operation_waits_for_another_stream(void) {
    reset();
    uint32_t one = sim_stream_open(&timeline, 0, SIM_STREAM_NONBLOCKING);
    uint32_t two = sim_stream_open(&timeline, 1, SIM_STREAM_NONBLOCKING);
    sim_op a = put(one, SIM_OP_KERNEL, START, 5 * MS, 0, 0);
    sim_op b = put(two, SIM_OP_KERNEL, START, MS, 0, a);
    CHECK(sim_op_eta_ns(&timeline, b) <= START + 6 * MS && sim_op_eta_ns(&timeline, b) > START);
    sim_timeline_advance(&timeline, START + 20 * MS);
    CHECK(end_of(b) == START + 6 * MS);
}

static void the_legacy_stream_and_blocking_streams_wait_for_each_other(void) {
    reset();
    uint32_t legacy = sim_stream_open(&timeline, 0, SIM_STREAM_LEGACY);
    uint32_t blocking = sim_stream_open(&timeline, 0, SIM_STREAM_BLOCKING);
    uint32_t free_of_it = sim_stream_open(&timeline, 0, SIM_STREAM_NONBLOCKING);
    sim_op a = put(blocking, SIM_OP_KERNEL, START, 4 * MS, 1, 0);
    sim_op b = put(legacy, SIM_OP_KERNEL, START, 4 * MS, 1, 0);
    sim_op c = put(blocking, SIM_OP_KERNEL, START, 4 * MS, 1, 0);
    sim_op d = put(free_of_it, SIM_OP_KERNEL, START, 4 * MS, 1, 0);
    sim_timeline_advance(&timeline, START + 20 * MS);
    CHECK(end_of(a) == START + 4 * MS && end_of(b) == START + 8 * MS && end_of(c) == START + 12 * MS);
    CHECK(end_of(d) == START + 4 * MS);
}

static void a_gate_holds_its_stream(void) {
    reset();
    uint32_t stream = sim_stream_open(&timeline, 0, SIM_STREAM_NONBLOCKING);
    sim_op kernel = put(stream, SIM_OP_KERNEL, START, MS, 0, 0);
    sim_op gate = put(stream, SIM_OP_GATE, START, 0, 0, 0);
    sim_op after = put(stream, SIM_OP_KERNEL, START, MS, 0, 0);
    CHECK(!sim_op_at_gate(&timeline, gate) && sim_op_eta_ns(&timeline, after) == UINT64_MAX);
    sim_timeline_advance(&timeline, START + 5 * MS);
    CHECK(sim_op_done(&timeline, kernel) && sim_op_at_gate(&timeline, gate));
    sim_op_open(&timeline, gate, START + 6 * MS);
    sim_timeline_advance(&timeline, START + 9 * MS);
    CHECK(end_of(gate) == START + 6 * MS && end_of(after) == START + 7 * MS);
}

static void a_dead_process_leaves_the_card_to_others(void) {
    reset();
    uint32_t one = sim_stream_open(&timeline, 0, SIM_STREAM_NONBLOCKING);
    uint32_t two = sim_stream_open(&timeline, 1, SIM_STREAM_NONBLOCKING);
    put(one, SIM_OP_KERNEL, START, 1000000ULL * MS, 0, 0);
    sim_op b = put(two, SIM_OP_KERNEL, START, 3 * MS, 0, 0);
    sim_timeline_drop(&timeline, 0, START + MS);
    sim_timeline_advance(&timeline, START + 20 * MS);
    CHECK(end_of(b) == START + 4 * MS);
    CHECK(!timeline.processes[0].busy_ns && !timeline.processes[0].streams);
    for (int round = 0; round < 3 * SIM_TIMELINE_STREAMS; round++) { /* and its streams to later ones */
        uint32_t stream = sim_stream_open(&timeline, 0, SIM_STREAM_NONBLOCKING);
        CHECK(stream && put(stream, SIM_OP_KERNEL, START + 20 * MS, MS, 0, 0));
        sim_timeline_drop(&timeline, 0, START + 20 * MS);
    }
}

static void utilisation_is_that_of_the_last_whole_interval(void) {
    reset();
    uint64_t interval = 600, begin = interval * SIM_SAMPLE_NS;
    uint32_t stream = sim_stream_open(&timeline, 2, SIM_STREAM_NONBLOCKING);
    sim_timeline_advance(&timeline, begin);
    put(stream, SIM_OP_KERNEL, begin, SIM_SAMPLE_NS / 4, 0, 0);
    sim_timeline_advance(&timeline, begin + SIM_SAMPLE_NS / 2);
    CHECK(sim_utilisation(&timeline, begin + SIM_SAMPLE_NS / 2) == 0); /* not yet: NVML's delay */
    sim_timeline_advance(&timeline, begin + SIM_SAMPLE_NS + 1);
    CHECK(sim_utilisation(&timeline, begin + SIM_SAMPLE_NS + 1) == 25);
    CHECK(sim_process_utilisation(&timeline, 2, interval) == 25);
    CHECK(sim_utilisation(&timeline, begin + 2 * (uint64_t)SIM_SAMPLE_NS + 1) == 0);
}

static void durations_go_by_waves(void) {
    CHECK(sim_wave_ns(80, 1, 2, 10) == 10);
    CHECK(sim_wave_ns(80, 160, 2, 10) == 10);
    CHECK(sim_wave_ns(80, 161, 2, 10) == 20);
}

int main(void) {
    a_stream_is_first_in_first_out();
    who_looks_when_changes_nothing();
    streams_of_a_process_overlap_where_the_sms_suffice();
    processes_take_turns_of_two_milliseconds();
    an_idle_process_gives_its_slice_up();
    a_stream_is_full_at_1024();
    copies_pass_kernels_and_marks_take_no_time();
    an_operation_waits_for_another_stream();
    the_legacy_stream_and_blocking_streams_wait_for_each_other();
    a_gate_holds_its_stream();
    a_dead_process_leaves_the_card_to_others();
    utilisation_is_that_of_the_last_whole_interval();
    durations_go_by_waves();
    return 0;
}
