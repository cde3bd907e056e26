/*
 * GPU time: when each piece of work on one card starts and ends.
 *
 * A timeline is a fixed-size struct inside the shared state of the simulated machine, one per card. It has no
 * thread: whoever looks at it advances it first, under the machine's lock, from the instant it has reached to
 * now. What it says depends on the instants at which work was submitted and on nothing else; a slow host
 * makes submissions late, but never makes a kernel longer.
 *
 * The model:
 *   - a stream is a first-in first-out queue of at most SIM_STREAM_PENDING operations;
 *   - kernels of one process's streams run side by side while the card's SMs suffice;
 *   - processes take turns in slices of SIM_SLICE_NS, round robin, while more than one has a kernel that
 * could run; a kernel is interrupted at the end of a slice and goes on in the next;
 *   - copies take their duration on copy engines, whoever's slice it is; marks take no time;
 *   - a gate ends when somebody opens it (host functions, waits for a value in memory);
 *   - the legacy stream waits for what was submitted earlier to the process's blocking streams, and they for
 * it.
 *
 * Not modelled: the cost of a switch between processes, caches, clocks that change, more than one copy at a
 * time sharing a link. All times are CLOCK_MONOTONIC nanoseconds.
 */
#ifndef SIM_TIMELINE_H
#define SIM_TIMELINE_H

#include <stdbool.h>
#include <stdint.h>

#define SIM_STREAM_PENDING 1024 /* a launch blocks when so many are pending on its stream */
#define SIM_SLICE_NS 2000000
#define SIM_SAMPLE_NS 166666667 /* utilisation is that of the last whole interval of 1/6 s, as NVML's */
#define SIM_SAMPLES 32          /* intervals that are remembered */
#define SIM_TIMELINE_PROCESSES 256
#define SIM_TIMELINE_STREAMS 4096 /* of all processes of a card */
#define SIM_TIMELINE_OPS 65536    /* pending, or held by events, of all processes of a card */

enum sim_op_kind {
    SIM_OP_KERNEL = 0,
    SIM_OP_COPY = 1,
    SIM_OP_MARK = 2, /* an event record, a wait for another operation: no duration */
    SIM_OP_GATE = 3, /* ends when sim_op_open is called */
};

enum sim_stream_kind {
    SIM_STREAM_NONBLOCKING = 0,
    SIM_STREAM_BLOCKING = 1, /* synchronises with the process's legacy stream */
    SIM_STREAM_LEGACY = 2,
};

/* An operation's name: index and generation; 0 is no operation, and counts as ended long ago. */
typedef uint64_t sim_op;

/* What is to be submitted. */
struct sim_work {
    uint64_t submit_ns;   /* now, as the submitting thread saw it when it called the driver */
    uint64_t duration_ns; /* alone on the card */
    sim_op after;         /* must have ended before this starts; 0 = nothing. May be another stream's */
    uint32_t sms;         /* SMs that a kernel occupies; 0 = the whole card */
    enum sim_op_kind kind;
    bool keep; /* stays readable after its end until sim_op_release: for events. Else it is forgotten */
};

struct sim_op_entry {
    uint64_t start_ns, end_ns; /* end_ns is set when it has ended */
    uint64_t left_ns;
    uint64_t sequence; /* order of submission on this card */
    uint64_t after;
    uint32_t generation;
    uint32_t next; /* in its stream, or in the list of free entries; 0 = last */
    uint32_t stream;
    uint32_t sms;
    uint32_t references; /* holders beside the queue */
    uint8_t kind, state; /* enum sim_op_kind; the state is timeline.c's own */
    uint8_t pad[2];
};

struct sim_stream_entry {
    uint32_t in_use, process, kind, pending;
    uint32_t head, tail; /* operations; 0 = empty */
    uint32_t next;       /* of its process, or in the list of free ones */
    uint32_t closing;    /* destroyed with work pending: freed when that ends */
};

struct sim_timeline_process {
    uint64_t busy_ns; /* time in which at least one of its kernels ran */
    uint64_t copy_ns;
    uint64_t kernels; /* that have ended */
    uint32_t streams; /* list; 0 = none */
    uint32_t pad0;
};

struct sim_sample {
    uint64_t index; /* interval number: start / SIM_SAMPLE_NS */
    uint64_t busy_ns, copy_ns;
    uint32_t process_busy_ns[SIM_TIMELINE_PROCESSES];
};

struct sim_timeline {
    uint64_t now_ns;  /* reached so far; 0 = never advanced */
    uint64_t busy_ns; /* time in which a kernel of any process ran */
    uint64_t copy_ns;
    uint64_t sequence;
    uint64_t slice_end_ns;
    uint32_t sms;
    uint32_t turn; /* process that has the slice */
    uint32_t free_op, fresh_op;
    uint32_t free_stream, fresh_stream;
    uint32_t processes_high; /* processes below this index have had streams */
    uint32_t pad0;
    struct sim_sample samples[SIM_SAMPLES];
    struct sim_timeline_process processes[SIM_TIMELINE_PROCESSES];
    struct sim_stream_entry streams[SIM_TIMELINE_STREAMS];
    struct sim_op_entry ops[SIM_TIMELINE_OPS];
};

/* CLOCK_MONOTONIC. */
uint64_t sim_now_ns(void);

/* Everything below is called with the machine's lock held. A timeline of zeros, set up once. */
void sim_timeline_init(struct sim_timeline *timeline, uint32_t sms);

/* Bring the model to `now_ns`; earlier instants than it has reached change nothing. */
void sim_timeline_advance(struct sim_timeline *timeline, uint64_t now_ns);

/* A stream of process number `process`; 0 where there are no more. Destroying leaves pending work to end. */
uint32_t sim_stream_open(struct sim_timeline *timeline, uint32_t process, enum sim_stream_kind kind);
void sim_stream_close(struct sim_timeline *timeline, uint32_t stream);
uint32_t sim_stream_pending(const struct sim_timeline *timeline, uint32_t stream);
/* The last operation submitted and not yet ended, or 0. */
sim_op sim_stream_last(const struct sim_timeline *timeline, uint32_t stream);

/* Advance to work->submit_ns and queue. 0 where the queue is full: sleep until sim_timeline_next_ns, try
 * again. */
sim_op sim_submit(struct sim_timeline *timeline, uint32_t stream, const struct sim_work *work);

/* Whether it has ended (true for 0 and for forgotten ones), and its times; end_ns is 0 until it has. */
bool sim_op_done(const struct sim_timeline *timeline, sim_op op);
uint64_t sim_op_start_ns(const struct sim_timeline *timeline, sim_op op);
uint64_t sim_op_end_ns(const struct sim_timeline *timeline, sim_op op);
/* Whether a gate is at the head of its stream, all that it waits for ended: time to run its host function. */
bool sim_op_at_gate(const struct sim_timeline *timeline, sim_op op);
void sim_op_open(struct sim_timeline *timeline, sim_op op, uint64_t now_ns);
/* Let go of an operation submitted with keep. */
void sim_op_release(struct sim_timeline *timeline, sim_op op);

/* The earliest instant at which `op` can end, as things are: sleep until then, advance, look again.
 * UINT64_MAX where a gate must be opened first. */
uint64_t sim_op_eta_ns(const struct sim_timeline *timeline, sim_op op);
/* The next instant at which anything changes by itself; UINT64_MAX when idle. */
uint64_t sim_timeline_next_ns(const struct sim_timeline *timeline);

/* The process is gone: its streams and work vanish, its totals start at 0 for the next owner of the number.
 */
void sim_timeline_drop(struct sim_timeline *timeline, uint32_t process, uint64_t now_ns);

/* Somebody was killed while changing it: drop what hangs together no longer, so that the rest goes on. */
void sim_timeline_repair(struct sim_timeline *timeline);

/* Percent of the last whole sample interval before `now_ns` in which a kernel (a copy) ran. */
uint32_t sim_utilisation(const struct sim_timeline *timeline, uint64_t now_ns);
uint32_t sim_copy_utilisation(const struct sim_timeline *timeline, uint64_t now_ns);
/* The same of one process, for the interval number `index` (a time / SIM_SAMPLE_NS). */
uint32_t sim_process_utilisation(const struct sim_timeline *timeline, uint32_t process, uint64_t index);

/* How long `blocks` blocks take that cost `block_ns` each, `per_sm` of them at a time on an SM: in whole
 * waves. */
uint64_t sim_wave_ns(uint32_t sms, uint64_t blocks, uint32_t per_sm, uint64_t block_ns);

#endif
