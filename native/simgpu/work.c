/*
 * Work that ends with something to do in this process: submitting it, noticing its end, and doing it once, in
 * order.
 *
 * What has ended on the model is moved, in the order of the ends, to one queue; one thread at a time runs
 * what is in the queue, the others wait for it. Only gates (host functions, waits for values) are the
 * worker's: a thread that is started with the first of them. It sleeps until the model's next instant, and
 * looks every 100 us only while a gate waits for something that no one announces.
 */
#include "work.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <time.h>

#define POLL_NS 100000U
#define REAP_NS 10000000U

struct deferred {
    struct deferred *next;
    CUhostFn function;
    void *data;
};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;           /* a gate was opened, or an action has run */
    pthread_cond_t submitted;         /* for the worker: there may be a gate to open */
    struct CUstream_st *busy;         /* streams with something pending */
    struct sim_pending *first, *last; /* ended, not yet run */
    uint64_t given, ran, sequence, reaped_ns;
    struct deferred *deferred; /* calls of the program's, for when the lock is let go of */
    uint32_t gates;
    bool running, worker;
} state = {.lock = PTHREAD_MUTEX_INITIALIZER};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static _Thread_local bool inside_action, inside_worker;

static void make_conditions(void) {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&state.changed, &attributes);
    pthread_cond_init(&state.submitted, &attributes);
    pthread_condattr_destroy(&attributes);
}

/* A child has neither the parent's threads nor its work. What it inherits is not freed: it may be half made.
 */
static void forked(void) {
    pthread_mutex_init(&state.lock, NULL);
    make_conditions();
    state.busy = NULL;
    state.deferred = NULL;
    state.first = state.last = NULL;
    state.given = state.ran = 0;
    state.gates = 0;
    state.running = state.worker = false;
    inside_action = inside_worker = false;
    sim_handles_forget();
    sim_streams_forget();
    sim_modules_forget();
    sim_events_forget();
    sim_captures_forget();
    sim_execs_forget();
    sim_graph_memory_forget();
}

static void set_up(void) {
    make_conditions();
    pthread_atfork(NULL, NULL, forked);
}

void sim_work_lock(void) {
    pthread_once(&once, set_up);
    pthread_mutex_lock(&state.lock);
}

void sim_work_unlock(void) {
    struct deferred *call = state.deferred;
    state.deferred = NULL;
    pthread_mutex_unlock(&state.lock);
    while (call) {
        struct deferred *next = call->next;
        call->function(call->data);
        free(call);
        call = next;
    }
}

void sim_defer(CUhostFn function, void *data) {
    struct deferred *call = malloc(sizeof *call);
    if (!call) /* the program's object stays as it is */
        return;
    *call = (struct deferred){state.deferred, function, data};
    state.deferred = call;
}

bool sim_in_callback(void) {
    return inside_worker;
}

/* Timers of a thread may be late by its slack, by default 50 us, which is more than many a kernel lasts. */
static void sleep_until(pthread_cond_t *condition, uint64_t instant_ns) {
    struct timespec instant = {(time_t)(instant_ns / 1000000000U), (long)(instant_ns % 1000000000U)};
    if (instant_ns == SIM_NEVER) {
        pthread_cond_wait(condition, &state.lock);
    } else {
        int slack = prctl(PR_GET_TIMERSLACK);
        prctl(PR_SET_TIMERSLACK, 1UL);
        pthread_cond_timedwait(condition, &state.lock, &instant);
        if (slack > 0)
            prctl(PR_SET_TIMERSLACK, (unsigned long)slack);
    }
}

static struct sim_timeline *timeline_of(uint32_t card) {
    return &sim_machine()->cards[card].timeline;
}

/* ---- what has ended ---- */

static bool earlier(const struct sim_pending *one, const struct sim_pending *other) {
    return one->end_ns < other->end_ns || (one->end_ns == other->end_ns && one->sequence < other->sequence);
}

static struct sim_pending *merge(struct sim_pending *one, struct sim_pending *other) {
    struct sim_pending *head = NULL, **link = &head;
    while (one && other) {
        struct sim_pending **from = earlier(one, other) ? &one : &other;
        *link = *from;
        *from = (*from)->next;
        link = &(*link)->next;
    }
    *link = one ? one : other;
    return head;
}

static struct sim_pending *pop(struct CUstream_st *stream) {
    struct sim_pending *pending = stream->first;
    stream->first = pending->next;
    if (!stream->first)
        stream->last = NULL;
    pending->next = NULL;
    return pending;
}

/* Take those at the head of a stream that have ended, in order; the machine's lock is held. */
static struct sim_pending *take_ended(struct CUstream_st *stream, struct sim_timeline *timeline) {
    struct sim_pending *head = NULL, **link = &head;
    while (stream->first && !stream->first->gate && sim_op_done(timeline, stream->first->op)) {
        struct sim_pending *pending = pop(stream);
        pending->end_ns = sim_op_end_ns(timeline, pending->op);
        sim_op_release(timeline, pending->op);
        *link = pending;
        link = &pending->next;
    }
    return head;
}

static void leave_busy(struct CUstream_st **link) {
    struct CUstream_st *stream = *link;
    *link = stream->next_busy;
    stream->next_busy = NULL;
    stream->busy = false;
    sim_stream_settle(stream);
}

static void give(struct sim_pending *list) {
    if (!list)
        return;
    if (state.last)
        state.last->next = list;
    else
        state.first = list;
    for (; list; list = list->next) {
        state.given++;
        state.last = list;
    }
}

/* Run what has ended; returns when everything that had ended at the call has run, by whomever. */
static void run_given(void) {
    uint64_t upto = state.given;
    if (inside_action)
        return;
    while (state.ran < upto) {
        if (state.running) {
            pthread_cond_wait(&state.changed, &state.lock);
            continue;
        }
        struct sim_pending *pending = state.first;
        state.first = pending->next;
        if (!state.first)
            state.last = NULL;
        state.running = inside_action = true;
        sim_work_unlock();
        if (pending->action.run)
            pending->action.run(pending->action.data);
        free(pending);
        sim_work_lock();
        state.running = inside_action = false;
        state.ran++;
        pthread_cond_broadcast(&state.changed);
    }
}

uint64_t sim_look(uint32_t card, sim_op op) {
    uint64_t until = 0, now = sim_now_ns();
    struct sim_pending *ended = NULL;
    struct CUstream_st *done = NULL;
    sim_machine_lock();
    if (now > state.reaped_ns + REAP_NS) { /* the work of a process that was killed is nobody's to wait for */
        state.reaped_ns = now;
        sim_machine_reap();
    }
    sim_timeline_advance(timeline_of(card), now);
    for (struct CUstream_st **link = &state.busy; *link;) {
        struct CUstream_st *stream = *link;
        struct sim_timeline *timeline = timeline_of(stream->card);
        if (stream->card != card)
            sim_timeline_advance(timeline, now);
        ended = merge(ended, take_ended(stream, timeline));
        if (stream->first) {
            link = &stream->next_busy;
            continue;
        }
        *link = stream->next_busy;
        stream->next_busy = done;
        done = stream;
    }
    if (!sim_op_done(timeline_of(card), op))
        until = sim_op_eta_ns(timeline_of(card), op);
    sim_machine_unlock();
    while (done)
        leave_busy(&done);
    give(ended);
    run_given();
    return until;
}

void sim_wait(uint32_t card, sim_op op) {
    uint64_t until;
    while ((until = sim_look(card, op)) != 0)
        sleep_until(&state.changed, until);
}

sim_op sim_last(const struct CUstream_st *stream) {
    if (stream->destroyed)
        return stream->last ? stream->last->op : 0;
    sim_machine_lock();
    sim_op last = sim_stream_last(timeline_of(stream->card), stream->lane);
    sim_machine_unlock();
    return last;
}

uint64_t sim_ended_ns(uint32_t card, sim_op op) {
    sim_machine_lock();
    uint64_t end_ns = sim_op_end_ns(timeline_of(card), op);
    sim_machine_unlock();
    return end_ns;
}

void sim_let_go(uint32_t card, sim_op op) {
    sim_machine_lock();
    sim_op_release(timeline_of(card), op);
    sim_machine_unlock();
}

/* ---- the worker ---- */

/* A gate that stands open to be run, or NULL and when to look again. */
static struct CUstream_st *find_gate(uint64_t *until) {
    struct CUstream_st *found = NULL;
    uint64_t now = sim_now_ns();
    bool polls = false;
    *until = SIM_NEVER;
    for (struct CUstream_st *stream = state.busy; stream && !found; stream = stream->next_busy) {
        struct sim_pending *gate = stream->first;
        if (!gate || !gate->gate)
            continue;
        struct sim_timeline *timeline = timeline_of(stream->card);
        sim_machine_lock();
        sim_timeline_advance(timeline, now);
        bool at_gate = sim_op_at_gate(timeline, gate->op);
        sim_machine_unlock();
        if (at_gate && (!gate->ready || gate->ready(gate->action.data)))
            found = stream;
        polls |= at_gate;
    }
    for (struct CUstream_st *stream = state.busy; stream && !found; stream = stream->next_busy) {
        sim_machine_lock();
        uint64_t next = sim_timeline_next_ns(timeline_of(stream->card));
        sim_machine_unlock();
        *until = next < *until ? next : *until;
    }
    if (polls && now + POLL_NS < *until)
        *until = now + POLL_NS;
    return found;
}

static void open_gate(struct CUstream_st *stream) {
    stream->users++;
    sim_look(stream->card, 0); /* what ended before the gate was reached has run before its function does */
    struct sim_pending *gate = pop(stream);
    state.gates--;
    sim_work_unlock();
    if (gate->action.run)
        gate->action.run(gate->action.data);
    sim_machine_lock();
    sim_op_open(timeline_of(stream->card), gate->op, sim_now_ns());
    sim_op_release(timeline_of(stream->card), gate->op);
    sim_machine_unlock();
    free(gate);
    sim_work_lock();
    stream->users--;
    if (!stream->busy)
        sim_stream_settle(stream);
    pthread_cond_broadcast(&state.changed);
}

static void *work(void *nothing) {
    (void)nothing;
    uint64_t until;
    inside_worker = true;
    sim_work_lock();
    for (;;) {
        while (!state.gates)
            pthread_cond_wait(&state.submitted, &state.lock);
        sim_look(state.busy ? state.busy->card : 0, 0);
        struct CUstream_st *stream = find_gate(&until);
        if (stream)
            open_gate(stream);
        else if (state.gates)
            sleep_until(&state.submitted, until);
    }
    return NULL;
}

static bool start_worker(void) {
    pthread_t thread;
    pthread_attr_t attributes;
    sigset_t all, before;
    if (state.worker)
        return true;
    sigfillset(&all); /* the program's signals are for its own threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    state.worker = pthread_create(&thread, &attributes, work, NULL) == 0;
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return state.worker;
}

/* ---- submitting ---- */

/* Queue on the model; sleeps while the stream is full. */
static CUresult submit(struct CUstream_st *stream, const struct sim_work *wanted, sim_op *op) {
    struct sim_work work = *wanted;
    for (bool swept = false;;) {
        struct sim_timeline *timeline = timeline_of(stream->card);
        if (stream->destroyed)
            return CUDA_ERROR_INVALID_HANDLE;
        sim_machine_lock();
        *op = sim_submit(timeline, stream->lane, &work);
        bool full = sim_stream_pending(timeline, stream->lane) >= SIM_STREAM_PENDING;
        uint64_t next = sim_timeline_next_ns(timeline);
        sim_machine_unlock();
        if (*op)
            return CUDA_SUCCESS;
        if (!full && swept)
            return CUDA_ERROR_OUT_OF_MEMORY;
        if (full)
            sleep_until(&state.changed, next);
        else
            sim_events_sweep();
        swept = !full;
        sim_look(stream->card, 0);
        work.submit_ns = sim_now_ns();
    }
}

CUresult sim_put(struct CUstream_st *stream, const struct sim_job *job, bool (*ready)(void *data),
                 sim_op after, bool keep, sim_op *op) {
    struct sim_work work = {sim_now_ns(), job->duration_ns, after, job->sms, job->kind, keep};
    struct sim_pending *pending = NULL;
    sim_op name = 0;
    bool gate = job->kind == SIM_OP_GATE;
    if (gate && !start_worker())
        return CUDA_ERROR_OPERATING_SYSTEM;
    if (gate || job->action.run) {
        pending = malloc(sizeof *pending);
        if (!pending)
            return CUDA_ERROR_OUT_OF_MEMORY;
        work.keep = true;
    }
    stream->users++;
    if (state.busy)
        sim_look(stream->card, 0);
    CUresult result = submit(stream, &work, &name);
    stream->users--;
    if (op)
        *op = name;
    if (result != CUDA_SUCCESS || !pending) {
        free(pending);
        return result;
    }
    *pending = (struct sim_pending){.stream = stream, .op = name, .sequence = ++state.sequence, .gate = gate};
    pending->ready = ready;
    pending->action = job->action;
    if (stream->last)
        stream->last->next = pending;
    else
        stream->first = pending;
    stream->last = pending;
    if (!stream->busy) {
        stream->busy = true;
        stream->next_busy = state.busy;
        state.busy = stream;
    }
    if (gate)
        state.gates++;
    if (state.gates)
        pthread_cond_signal(&state.submitted);
    return CUDA_SUCCESS;
}

/* ---- the end of a context ---- */

/* Let go of what waits in a stream: actions run now, gates are to be opened without running anything. */
static struct sim_pending *release_all(struct CUstream_st *stream) {
    struct sim_pending *actions = NULL, **link = &actions, *gates = NULL, *last = NULL;
    while (stream->first) {
        struct sim_pending *pending = pop(stream);
        if (pending->gate) {
            pending->action.run = NULL;
            pending->ready = NULL;
            if (last)
                last->next = pending;
            else
                gates = pending;
            last = pending;
            continue;
        }
        sim_let_go(stream->card, pending->op);
        pending->end_ns = 0; /* so that they run in the order of submission */
        *link = pending;
        link = &pending->next;
    }
    stream->first = gates;
    stream->last = last;
    return actions;
}

void sim_work_context_ends(struct CUctx_st *context) {
    struct sim_pending *actions = NULL;
    sim_work_lock();
    sim_captures_context_ends(context);
    sim_graphs_context_ends(context);
    while (context->streams) {
        struct CUstream_st *stream = context->streams;
        actions = merge(actions, release_all(stream));
        sim_stream_end(stream);
        stream->context = NULL;
        context->streams = stream->next;
        stream->next = NULL;
        sim_stream_settle(stream);
    }
    context->legacy = context->per_thread = 0;
    sim_events_context_ends(context);
    give(actions);
    run_given();
    pthread_cond_broadcast(&state.changed);
    pthread_cond_signal(&state.submitted);
    uint32_t card = context->card;
    sim_work_unlock();
    sim_graph_memory_trim(card);
}
