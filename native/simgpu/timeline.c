/*
 * The model of GPU time; see timeline.h for what it promises.
 *
 * The timeline moves from event to event: at each one, operations that have run out end, those whose turn has
 * come start, and the time to the next event is the smallest that anything has left. Entries are linked by
 * index, so that the struct means the same in every process that maps it; index 0 is nobody.
 */
#include "timeline.h"

#include <string.h>
#include <time.h>

enum sim_op_state { SIM_OP_FREE = 0, SIM_OP_QUEUED, SIM_OP_RUNNING, SIM_OP_ENDED };

#define NEVER UINT64_MAX

uint64_t sim_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

uint64_t sim_wave_ns(uint32_t sms, uint64_t blocks, uint32_t per_sm, uint64_t block_ns) {
    uint64_t at_once = (uint64_t)sms * (per_sm ? per_sm : 1);
    if (!at_once)
        at_once = 1;
    uint64_t waves = blocks ? (blocks - 1) / at_once + 1 : 1;
    return block_ns && waves > NEVER / 2 / block_ns ? NEVER / 2 : waves * block_ns;
}

/* Entries */

static struct sim_op_entry *find(const struct sim_timeline *timeline, sim_op op) {
    uint32_t index = (uint32_t)op;
    if (!index || index >= SIM_TIMELINE_OPS)
        return NULL;
    struct sim_op_entry *entry = (struct sim_op_entry *)&timeline->ops[index];
    return entry->state != SIM_OP_FREE && entry->generation == (uint32_t)(op >> 32) ? entry : NULL;
}

static sim_op name_of(const struct sim_timeline *timeline, uint32_t index) {
    return index ? (uint64_t)timeline->ops[index].generation << 32 | index : 0;
}

static uint32_t take_op(struct sim_timeline *timeline) {
    uint32_t index = timeline->free_op;
    if (index)
        timeline->free_op = timeline->ops[index].next;
    else if (timeline->fresh_op < SIM_TIMELINE_OPS)
        index = timeline->fresh_op++;
    else
        return 0;
    uint32_t generation = timeline->ops[index].generation + 1;
    memset(&timeline->ops[index], 0, sizeof timeline->ops[index]);
    timeline->ops[index].generation = generation;
    return index;
}

static void free_op(struct sim_timeline *timeline, uint32_t index) {
    timeline->ops[index].state = SIM_OP_FREE;
    timeline->ops[index].next = timeline->free_op;
    timeline->free_op = index;
}

static void free_stream(struct sim_timeline *timeline, uint32_t index) {
    struct sim_stream_entry *stream = &timeline->streams[index];
    uint32_t *link = &timeline->processes[stream->process].streams;
    while (*link && *link != index)
        link = &timeline->streams[*link].next;
    if (*link)
        *link = stream->next;
    memset(stream, 0, sizeof *stream);
    stream->next = timeline->free_stream;
    timeline->free_stream = index;
}

void sim_timeline_init(struct sim_timeline *timeline, uint32_t sms) {
    timeline->sms = sms ? sms : 1;
    timeline->fresh_op = 1;
    timeline->fresh_stream = 1;
}

/* One step of the model */

/* Sequence of the first operation in a stream of `kind` among the process's, or NEVER. */
static uint64_t first_sequence(const struct sim_timeline *timeline, uint32_t process, uint32_t kind) {
    uint64_t first = NEVER;
    for (uint32_t at = timeline->processes[process].streams; at; at = timeline->streams[at].next) {
        const struct sim_stream_entry *stream = &timeline->streams[at];
        if (stream->kind == kind && stream->head && timeline->ops[stream->head].sequence < first)
            first = timeline->ops[stream->head].sequence;
    }
    return first;
}

static bool may_start(const struct sim_timeline *timeline, const struct sim_stream_entry *stream) {
    const struct sim_op_entry *op = &timeline->ops[stream->head];
    if (op->after && !sim_op_done(timeline, op->after))
        return false;
    /* Streams are first-in first-out, so the heads tell whether anything earlier is left. */
    if (stream->kind == SIM_STREAM_LEGACY)
        return first_sequence(timeline, stream->process, SIM_STREAM_BLOCKING) > op->sequence;
    if (stream->kind == SIM_STREAM_BLOCKING)
        return first_sequence(timeline, stream->process, SIM_STREAM_LEGACY) > op->sequence;
    return true;
}

static void end_head(struct sim_timeline *timeline, uint32_t at) {
    struct sim_stream_entry *stream = &timeline->streams[at];
    uint32_t index = stream->head;
    struct sim_op_entry *op = &timeline->ops[index];
    if (!op->start_ns)
        op->start_ns = timeline->now_ns;
    op->end_ns = timeline->now_ns;
    op->state = SIM_OP_ENDED;
    if (op->kind == SIM_OP_KERNEL)
        timeline->processes[stream->process].kernels++;
    stream->head = op->next;
    if (!stream->head)
        stream->tail = 0;
    stream->pending--;
    if (!op->references)
        free_op(timeline, index);
}

/* End and start what needs no time, until nothing changes; what a kernel needs beside that is its process's
 * slice. */
static void settle(struct sim_timeline *timeline) {
    for (bool changed = true; changed;) {
        changed = false;
        for (uint32_t process = 0; process < timeline->processes_high; process++) {
            for (uint32_t at = timeline->processes[process].streams, next; at; at = next) {
                struct sim_stream_entry *stream = &timeline->streams[at];
                next = stream->next;
                struct sim_op_entry *op = &timeline->ops[stream->head];
                if (stream->head && op->state == SIM_OP_QUEUED && op->kind != SIM_OP_KERNEL &&
                    may_start(timeline, stream)) {
                    op->state = SIM_OP_RUNNING;
                    op->start_ns = timeline->now_ns;
                }
                if (stream->head && op->state == SIM_OP_RUNNING && !op->left_ns && op->kind != SIM_OP_GATE) {
                    end_head(timeline, at);
                    changed = true;
                }
                if (stream->closing && !stream->head)
                    free_stream(timeline, at);
            }
        }
    }
}

static bool has_kernel(const struct sim_timeline *timeline, uint32_t process) {
    for (uint32_t at = timeline->processes[process].streams; at; at = timeline->streams[at].next) {
        const struct sim_stream_entry *stream = &timeline->streams[at];
        const struct sim_op_entry *op = &timeline->ops[stream->head];
        if (stream->head && op->kind == SIM_OP_KERNEL &&
            (op->state == SIM_OP_RUNNING || may_start(timeline, stream)))
            return true;
    }
    return false;
}

/* Decide whose slice it is; returns whether another process waits for it to end, false also where nobody has
 * one. */
static bool take_turns(struct sim_timeline *timeline, bool *anybody) {
    uint32_t count = timeline->processes_high, other = count;
    bool mine = timeline->turn < count && has_kernel(timeline, timeline->turn);
    for (uint32_t i = 1; i < count && other == count; i++) {
        uint32_t process = (timeline->turn + i) % count;
        if (has_kernel(timeline, process))
            other = process;
    }
    *anybody = mine || other < count;
    if (mine && (other == count || timeline->now_ns < timeline->slice_end_ns)) {
        if (timeline->now_ns >= timeline->slice_end_ns) /* alone: it goes on */
            timeline->slice_end_ns = timeline->now_ns + SIM_SLICE_NS;
        return other < count;
    }
    if (other == count)
        return false;
    timeline->turn = other;
    timeline->slice_end_ns = timeline->now_ns + SIM_SLICE_NS;
    return mine;
}

/* Start the kernels of the process in turn that fit beside those that run. */
static void start_kernels(struct sim_timeline *timeline) {
    uint32_t taken = 0;
    struct sim_timeline_process *process = &timeline->processes[timeline->turn];
    for (uint32_t at = process->streams; at; at = timeline->streams[at].next) {
        const struct sim_op_entry *op = &timeline->ops[timeline->streams[at].head];
        if (timeline->streams[at].head && op->kind == SIM_OP_KERNEL && op->state == SIM_OP_RUNNING)
            taken += op->sms;
    }
    while (taken < timeline->sms) { /* in the order of submission */
        struct sim_op_entry *best = NULL;
        for (uint32_t at = process->streams; at; at = timeline->streams[at].next) {
            const struct sim_stream_entry *stream = &timeline->streams[at];
            struct sim_op_entry *op = &timeline->ops[stream->head];
            if (stream->head && op->kind == SIM_OP_KERNEL && op->state == SIM_OP_QUEUED &&
                (!best || op->sequence < best->sequence) && may_start(timeline, stream))
                best = op;
        }
        if (!best || (taken && taken + best->sms > timeline->sms))
            break;
        best->state = SIM_OP_RUNNING;
        best->start_ns = timeline->now_ns;
        taken += best->sms;
    }
}

/* Runs now: a copy, or a kernel of the process in turn. */
static bool progresses(const struct sim_timeline *timeline, const struct sim_stream_entry *stream) {
    const struct sim_op_entry *op = &timeline->ops[stream->head];
    return stream->head && op->state == SIM_OP_RUNNING && op->kind != SIM_OP_GATE &&
           (op->kind != SIM_OP_KERNEL || stream->process == timeline->turn);
}

static void sample(struct sim_timeline *timeline, uint64_t from_ns, uint64_t to_ns, int process,
                   bool copying) {
    while (from_ns < to_ns) {
        uint64_t index = from_ns / SIM_SAMPLE_NS, end = (index + 1) * SIM_SAMPLE_NS;
        uint64_t part = (end < to_ns ? end : to_ns) - from_ns;
        struct sim_sample *slot = &timeline->samples[index % SIM_SAMPLES];
        if (slot->index != index) {
            memset(slot, 0, sizeof *slot);
            slot->index = index;
        }
        if (process >= 0) {
            slot->busy_ns += part;
            slot->process_busy_ns[process] += (uint32_t)part;
        }
        if (copying)
            slot->copy_ns += part;
        from_ns += part;
    }
}

/* Bring everything that can happen at now_ns about; returns the next instant at which something ends. */
static uint64_t step(struct sim_timeline *timeline, bool *kernel) {
    bool waiting, anybody;
    settle(timeline);
    waiting = take_turns(timeline, &anybody);
    *kernel = anybody;
    uint64_t next = NEVER;
    if (anybody) {
        start_kernels(timeline);
        if (waiting)
            next = timeline->slice_end_ns;
    }
    for (uint32_t process = 0; process < timeline->processes_high; process++) {
        for (uint32_t at = timeline->processes[process].streams; at; at = timeline->streams[at].next) {
            if (!progresses(timeline, &timeline->streams[at]))
                continue;
            uint64_t left = timeline->ops[timeline->streams[at].head].left_ns;
            if (left < NEVER - timeline->now_ns && timeline->now_ns + left < next)
                next = timeline->now_ns + left;
        }
    }
    return next;
}

static void pass(struct sim_timeline *timeline, uint64_t to_ns, bool kernel) {
    uint64_t elapsed = to_ns - timeline->now_ns;
    bool copying = false;
    for (uint32_t process = 0; process < timeline->processes_high; process++) {
        bool copies = false;
        for (uint32_t at = timeline->processes[process].streams; at; at = timeline->streams[at].next) {
            if (!progresses(timeline, &timeline->streams[at]))
                continue;
            struct sim_op_entry *op = &timeline->ops[timeline->streams[at].head];
            op->left_ns -= elapsed < op->left_ns ? elapsed : op->left_ns;
            copies |= op->kind == SIM_OP_COPY;
        }
        if (copies)
            timeline->processes[process].copy_ns += elapsed;
        copying |= copies;
    }
    if (copying)
        timeline->copy_ns += elapsed;
    if (kernel) {
        timeline->busy_ns += elapsed;
        timeline->processes[timeline->turn].busy_ns += elapsed;
    }
    if (kernel || copying)
        sample(timeline, timeline->now_ns, to_ns, kernel ? (int)timeline->turn : -1, copying);
    timeline->now_ns = to_ns;
}

void sim_timeline_advance(struct sim_timeline *timeline, uint64_t now_ns) {
    for (;;) {
        bool kernel = false;
        uint64_t next = step(timeline, &kernel);
        /* An end that falls on now_ns itself is brought about too: the next round's step does it. */
        uint64_t to = next < now_ns ? next : now_ns;
        if (to <= timeline->now_ns)
            return;
        pass(timeline, to, kernel);
    }
}

/* Streams and operations */

uint32_t sim_stream_open(struct sim_timeline *timeline, uint32_t process, enum sim_stream_kind kind) {
    if (process >= SIM_TIMELINE_PROCESSES)
        return 0;
    uint32_t index = timeline->free_stream;
    if (index)
        timeline->free_stream = timeline->streams[index].next;
    else if (timeline->fresh_stream < SIM_TIMELINE_STREAMS)
        index = timeline->fresh_stream++;
    else
        return 0;
    struct sim_timeline_process *owner = &timeline->processes[process];
    timeline->streams[index] = (struct sim_stream_entry){.in_use = 1, .process = process, .kind = kind};
    timeline->streams[index].next = owner->streams;
    owner->streams = index;
    if (process >= timeline->processes_high)
        timeline->processes_high = process + 1;
    return index;
}

static struct sim_stream_entry *stream_at(const struct sim_timeline *timeline, uint32_t stream) {
    if (!stream || stream >= SIM_TIMELINE_STREAMS || !timeline->streams[stream].in_use)
        return NULL;
    return (struct sim_stream_entry *)&timeline->streams[stream];
}

void sim_stream_close(struct sim_timeline *timeline, uint32_t stream) {
    struct sim_stream_entry *entry = stream_at(timeline, stream);
    if (entry && !entry->head)
        free_stream(timeline, stream);
    else if (entry)
        entry->closing = 1;
}

uint32_t sim_stream_pending(const struct sim_timeline *timeline, uint32_t stream) {
    const struct sim_stream_entry *entry = stream_at(timeline, stream);
    return entry ? entry->pending : 0;
}

sim_op sim_stream_last(const struct sim_timeline *timeline, uint32_t stream) {
    const struct sim_stream_entry *entry = stream_at(timeline, stream);
    return entry ? name_of(timeline, entry->tail) : 0;
}

sim_op sim_submit(struct sim_timeline *timeline, uint32_t stream, const struct sim_work *work) {
    sim_timeline_advance(timeline, work->submit_ns);
    struct sim_stream_entry *entry = stream_at(timeline, stream);
    if (!entry || entry->closing || entry->pending >= SIM_STREAM_PENDING)
        return 0;
    uint32_t index = take_op(timeline);
    if (!index)
        return 0;
    struct sim_op_entry *op = &timeline->ops[index];
    bool timed = work->kind == SIM_OP_KERNEL || work->kind == SIM_OP_COPY;
    op->left_ns = timed ? (work->duration_ns < NEVER / 2 ? work->duration_ns : NEVER / 2) : 0;
    op->sequence = ++timeline->sequence;
    op->after = work->after;
    op->stream = stream;
    op->sms = work->sms && work->sms < timeline->sms ? work->sms : timeline->sms;
    op->references = work->keep;
    op->kind = (uint8_t)work->kind;
    op->state = SIM_OP_QUEUED;
    if (entry->tail)
        timeline->ops[entry->tail].next = index;
    else
        entry->head = index;
    entry->tail = index;
    entry->pending++;
    sim_op name = name_of(timeline, index);
    /* What the card was idle for starts at its submission, not when somebody next looks. */
    sim_timeline_advance(timeline, timeline->now_ns);
    return name;
}

bool sim_op_done(const struct sim_timeline *timeline, sim_op op) {
    const struct sim_op_entry *entry = find(timeline, op);
    return !entry || entry->state == SIM_OP_ENDED;
}

uint64_t sim_op_start_ns(const struct sim_timeline *timeline, sim_op op) {
    const struct sim_op_entry *entry = find(timeline, op);
    return entry ? entry->start_ns : 0;
}

uint64_t sim_op_end_ns(const struct sim_timeline *timeline, sim_op op) {
    const struct sim_op_entry *entry = find(timeline, op);
    return entry && entry->state == SIM_OP_ENDED ? entry->end_ns : 0;
}

bool sim_op_at_gate(const struct sim_timeline *timeline, sim_op op) {
    const struct sim_op_entry *entry = find(timeline, op);
    return entry && entry->kind == SIM_OP_GATE && entry->state == SIM_OP_RUNNING;
}

void sim_op_open(struct sim_timeline *timeline, sim_op op, uint64_t now_ns) {
    sim_timeline_advance(timeline, now_ns);
    if (sim_op_at_gate(timeline, op)) {
        end_head(timeline, find(timeline, op)->stream);
        sim_timeline_advance(timeline, timeline->now_ns);
    }
}

void sim_op_release(struct sim_timeline *timeline, sim_op op) {
    struct sim_op_entry *entry = find(timeline, op);
    if (!entry || !entry->references)
        return;
    entry->references--;
    if (!entry->references && entry->state == SIM_OP_ENDED)
        free_op(timeline, (uint32_t)op);
}

uint64_t sim_op_eta_ns(const struct sim_timeline *timeline, sim_op op) {
    const struct sim_op_entry *entry = find(timeline, op);
    if (!entry || entry->state == SIM_OP_ENDED)
        return timeline->now_ns;
    uint64_t eta = timeline->now_ns;
    for (uint32_t at = timeline->streams[entry->stream].head; at; at = timeline->ops[at].next) {
        const struct sim_op_entry *ahead = &timeline->ops[at];
        if (ahead->kind == SIM_OP_GATE)
            return NEVER;
        eta = ahead->left_ns < NEVER - eta ? eta + ahead->left_ns : NEVER;
        if (ahead == entry)
            break;
    }
    /* What it waits for elsewhere, or its turn, is not in that sum: never answer "now" for what has not
     * ended. */
    uint64_t next = sim_timeline_next_ns(timeline);
    return eta > timeline->now_ns ? eta : next;
}

uint64_t sim_timeline_next_ns(const struct sim_timeline *timeline) {
    uint64_t next = NEVER;
    bool others = false;
    for (uint32_t process = 0; process < timeline->processes_high; process++) {
        others |= process != timeline->turn && has_kernel(timeline, process);
        for (uint32_t at = timeline->processes[process].streams; at; at = timeline->streams[at].next) {
            if (!progresses(timeline, &timeline->streams[at]))
                continue;
            uint64_t left = timeline->ops[timeline->streams[at].head].left_ns;
            if (left < NEVER - timeline->now_ns && timeline->now_ns + left < next)
                next = timeline->now_ns + left;
        }
    }
    return others && timeline->slice_end_ns < next ? timeline->slice_end_ns : next;
}

void sim_timeline_drop(struct sim_timeline *timeline, uint32_t process, uint64_t now_ns) {
    if (process >= SIM_TIMELINE_PROCESSES)
        return;
    sim_timeline_advance(timeline, now_ns);
    while (timeline->processes[process].streams) {
        uint32_t at = timeline->processes[process].streams;
        for (uint32_t op = timeline->streams[at].head, next; op; op = next) {
            next = timeline->ops[op].next;
            free_op(timeline, op);
        }
        free_stream(timeline, at);
    }
    /* Events that had ended are held by nobody any more; those of an imported event then read as ended long
     * ago. */
    for (uint32_t index = 1; index < timeline->fresh_op; index++) {
        struct sim_op_entry *op = &timeline->ops[index];
        if (op->state == SIM_OP_ENDED && !timeline->streams[op->stream].in_use)
            free_op(timeline, index);
    }
    memset(&timeline->processes[process], 0, sizeof timeline->processes[process]);
    for (uint32_t i = 0; i < SIM_SAMPLES; i++)
        timeline->samples[i].process_busy_ns[process] = 0;
    sim_timeline_advance(timeline, timeline->now_ns);
}

/* Repair */

/* Follow a stream's queue as far as it can be believed, cut it there, and count it. */
static void mend_queue(struct sim_timeline *timeline, uint32_t at, uint8_t *seen) {
    struct sim_stream_entry *stream = &timeline->streams[at];
    uint32_t *link = &stream->head, last = 0, pending = 0;
    for (uint32_t op = stream->head; op; op = *link) {
        bool inside = op < timeline->fresh_op && !seen[op] && timeline->ops[op].stream == at;
        bool alive = inside && timeline->ops[op].state != SIM_OP_FREE;
        if (!inside || (!alive && last)) {
            *link = 0;
            break;
        }
        if (!alive ||
            timeline->ops[op].state == SIM_OP_ENDED) { /* only a head can be so: it was about to be cut off */
            stream->head = timeline->ops[op].state == SIM_OP_ENDED ? timeline->ops[op].next : 0;
            link = &stream->head;
            continue;
        }
        seen[op] = 1;
        last = op;
        pending++;
        link = &timeline->ops[op].next;
    }
    stream->tail = last;
    stream->pending = pending;
}

void sim_timeline_repair(struct sim_timeline *timeline) {
    static uint8_t seen[SIM_TIMELINE_OPS]; /* under the machine's lock */
    memset(seen, 0, sizeof seen);
    if (timeline->fresh_op > SIM_TIMELINE_OPS || !timeline->fresh_op)
        timeline->fresh_op = SIM_TIMELINE_OPS;
    if (timeline->fresh_stream > SIM_TIMELINE_STREAMS || !timeline->fresh_stream)
        timeline->fresh_stream = SIM_TIMELINE_STREAMS;
    for (uint32_t process = 0; process < SIM_TIMELINE_PROCESSES; process++)
        timeline->processes[process].streams = 0;
    timeline->free_stream = 0;
    timeline->free_op = 0;
    for (uint32_t at = timeline->fresh_stream - 1; at; at--) {
        struct sim_stream_entry *stream = &timeline->streams[at];
        bool in_use = stream->in_use && stream->process < SIM_TIMELINE_PROCESSES;
        uint32_t *list = in_use ? &timeline->processes[stream->process].streams : &timeline->free_stream;
        stream->in_use = in_use;
        stream->next = *list;
        *list = at;
        if (in_use)
            mend_queue(timeline, at, seen);
        if (in_use && stream->process >= timeline->processes_high)
            timeline->processes_high = stream->process + 1;
    }
    for (uint32_t at = timeline->fresh_op - 1; at; at--) {
        struct sim_op_entry *op = &timeline->ops[at];
        bool kept = seen[at] || (op->state == SIM_OP_ENDED && op->references);
        if (!kept)
            free_op(timeline, at);
    }
}

/* Utilisation */

static uint32_t percent(uint64_t part_ns) {
    return part_ns >= SIM_SAMPLE_NS ? 100 : (uint32_t)((part_ns * 100 + SIM_SAMPLE_NS / 2) / SIM_SAMPLE_NS);
}

static const struct sim_sample *sample_at(const struct sim_timeline *timeline, uint64_t index) {
    const struct sim_sample *slot = &timeline->samples[index % SIM_SAMPLES];
    return slot->index == index ? slot : NULL;
}

uint32_t sim_utilisation(const struct sim_timeline *timeline, uint64_t now_ns) {
    const struct sim_sample *slot = sample_at(timeline, now_ns / SIM_SAMPLE_NS - 1);
    return slot ? percent(slot->busy_ns) : 0;
}

uint32_t sim_copy_utilisation(const struct sim_timeline *timeline, uint64_t now_ns) {
    const struct sim_sample *slot = sample_at(timeline, now_ns / SIM_SAMPLE_NS - 1);
    return slot ? percent(slot->copy_ns) : 0;
}

uint32_t sim_process_utilisation(const struct sim_timeline *timeline, uint32_t process, uint64_t index) {
    const struct sim_sample *slot = process < SIM_TIMELINE_PROCESSES ? sample_at(timeline, index) : NULL;
    return slot ? percent(slot->process_busy_ns[process]) : 0;
}
