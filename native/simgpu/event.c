/*
 * Events: instants of a stream, read from the model's clock.
 *
 * An event keeps its operation on the model until somebody has read when it ended; one without timing keeps
 * only the name, which reads as ended once the model has forgotten it.
 */
#include "work.h"

#include <stdlib.h>

#define KNOWN_FLAGS (CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS)

static struct CUevent_st *events;

static bool timed(const struct CUevent_st *event) {
    return !(event->flags & CU_EVENT_DISABLE_TIMING);
}

/* Read the end if it is there. */
static void read_end(struct CUevent_st *event) {
    if (!event->op || !timed(event))
        return;
    uint64_t end_ns = sim_ended_ns(event->card, event->op);
    if (end_ns) {
        sim_let_go(event->card, event->op);
        event->op = 0;
        event->end_ns = end_ns;
    }
}

void sim_event_clear(struct CUevent_st *event) {
    if (event->op && timed(event))
        sim_let_go(event->card, event->op);
    free(event->tips);
    event->tips = NULL;
    event->tip_count = 0;
    event->op = event->capture = 0;
    event->recorded = false;
}

static void free_event(struct CUevent_st *event) {
    sim_event_clear(event);
    sim_handle_drop(event);
    if (event->next)
        event->next->previous = event->previous;
    if (event->previous)
        event->previous->next = event->next;
    else
        events = event->next;
    free(event);
}

static void end_event(struct CUevent_st *event) {
    sim_handle_drop(event);
    event->destroyed = true;
    if (!event->users) /* else somebody records it, and waits for room in a stream */
        free_event(event);
}

void sim_events_sweep(void) {
    for (struct CUevent_st *event = events; event; event = event->next)
        read_end(event);
}

void sim_events_context_ends(struct CUctx_st *context) {
    for (struct CUevent_st *event = events, *next; event; event = next) {
        next = event->next;
        if (event->context == context)
            end_event(event);
    }
}

void sim_events_forget(void) {
    events = NULL;
}

CUresult sim_event_put(struct CUevent_st *event, struct CUstream_st *stream, sim_op after, sim_op *op) {
    struct sim_job mark = {.kind = SIM_OP_MARK};
    sim_op fresh = 0;
    event->users++;
    CUresult result = sim_put(stream, &mark, NULL, after, timed(event), &fresh);
    event->users--;
    if (op)
        *op = fresh;
    if (result == CUDA_SUCCESS) {
        sim_event_clear(event);
        event->card = stream->card;
        event->op = fresh;
        event->recorded = true;
    }
    if (event->destroyed && !event->users)
        free_event(event);
    return result;
}

struct elsewhere {
    uint32_t card;
    sim_op op;
};

static bool ended_elsewhere(void *data) {
    const struct elsewhere *event = data;
    struct sim_timeline *timeline = &sim_machine()->cards[event->card].timeline;
    sim_machine_lock();
    sim_timeline_advance(timeline, sim_now_ns());
    bool done = sim_op_done(timeline, event->op);
    sim_machine_unlock();
    return done;
}

CUresult sim_event_await(struct CUevent_st *event, struct CUstream_st *stream, sim_op *op) {
    struct sim_job job = {.kind = SIM_OP_MARK};
    if (!event->recorded || (timed(event) && !event->op))
        return CUDA_SUCCESS;
    if (event->card == stream->card)
        return sim_put(stream, &job, NULL, event->op, false, op);
    /* Another card has another timeline: a gate, opened when that one has come so far. */
    job.kind = SIM_OP_GATE;
    *(struct elsewhere *)job.action.data = (struct elsewhere){event->card, event->op};
    return sim_put(stream, &job, ended_elsewhere, 0, false, op);
}

/* ---- the calls ---- */

SIM_EXPORT CUresult cuEventCreate(CUevent *phEvent, unsigned int Flags) {
    SIM_FAULT("cuEventCreate");
    struct CUctx_st *context;
    CUresult result = sim_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    bool shared = Flags & CU_EVENT_INTERPROCESS;
    if (!phEvent || (Flags & ~(unsigned int)KNOWN_FLAGS) || (shared && !(Flags & CU_EVENT_DISABLE_TIMING)))
        return CUDA_ERROR_INVALID_VALUE;
    struct CUevent_st *event = calloc(1, sizeof *event);
    if (!event)
        return CUDA_ERROR_OUT_OF_MEMORY;
    event->context = context;
    event->flags = Flags;
    event->card = context->card;
    sim_work_lock();
    if (!sim_handle_put(event, SIM_HANDLE_EVENT)) {
        sim_work_unlock();
        free(event);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    event->next = events;
    if (events)
        events->previous = event;
    events = event;
    sim_work_unlock();
    *phEvent = event;
    return CUDA_SUCCESS;
}

static CUresult destroy(CUevent event) {
    CUresult result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    sim_work_lock();
    if (!sim_handle_is(event, SIM_HANDLE_EVENT))
        result = CUDA_ERROR_INVALID_HANDLE;
    else
        end_event(event);
    sim_work_unlock();
    return result;
}

SIM_EXPORT CUresult cuEventDestroy_v2(CUevent hEvent) {
    return destroy(hEvent);
}
SIM_EXPORT CUresult cuEventDestroy(CUevent hEvent) {
    return destroy(hEvent);
}

static CUresult record(CUevent event, CUstream handle, bool ptsz, unsigned int flags) {
    SIM_FAULT("cuEventRecord");
    SIM_ENTER(handle, ptsz);
    (void)context;
    CUresult result;
    bool external = flags & CU_EVENT_RECORD_EXTERNAL;
    if (!sim_handle_is(event, SIM_HANDLE_EVENT) || event->context != stream->context)
        result = CUDA_ERROR_INVALID_HANDLE;
    else if ((flags & ~(unsigned int)CU_EVENT_RECORD_EXTERNAL) || (external && !stream->capture))
        result = CUDA_ERROR_INVALID_VALUE;
    else if (stream->capture)
        result = sim_capture_record(stream, event, external);
    else if ((result = sim_capture_refuse(stream)) == CUDA_SUCCESS)
        result = sim_event_put(event, stream, 0, NULL);
    return sim_stream_leave(stream, result);
}

SIM_EXPORT CUresult cuEventRecord(CUevent hEvent, CUstream hStream) {
    return record(hEvent, hStream, false, CU_EVENT_RECORD_DEFAULT);
}
SIM_EXPORT CUresult cuEventRecord_ptsz(CUevent hEvent, CUstream hStream) {
    return record(hEvent, hStream, true, CU_EVENT_RECORD_DEFAULT);
}
SIM_EXPORT CUresult cuEventRecordWithFlags(CUevent hEvent, CUstream hStream, unsigned int flags) {
    return record(hEvent, hStream, false, flags);
}
SIM_EXPORT CUresult cuEventRecordWithFlags_ptsz(CUevent hEvent, CUstream hStream, unsigned int flags) {
    return record(hEvent, hStream, true, flags);
}

static CUresult await(CUstream handle, bool ptsz, CUevent event, unsigned int flags) {
    SIM_ENTER(handle, ptsz);
    (void)context;
    CUresult result;
    bool external = flags & CU_EVENT_WAIT_EXTERNAL;
    if (!sim_handle_is(event, SIM_HANDLE_EVENT))
        result = CUDA_ERROR_INVALID_HANDLE;
    else if ((flags & ~(unsigned int)CU_EVENT_WAIT_EXTERNAL) || (external && !stream->capture))
        result = CUDA_ERROR_INVALID_VALUE;
    else if (stream->capture || event->capture)
        result = sim_capture_await(stream, event, external);
    else if ((result = sim_capture_refuse(stream)) == CUDA_SUCCESS)
        result = sim_event_await(event, stream, NULL);
    return sim_stream_leave(stream, result);
}

SIM_EXPORT CUresult cuStreamWaitEvent(CUstream hStream, CUevent hEvent, unsigned int Flags) {
    return await(hStream, false, hEvent, Flags);
}
SIM_EXPORT CUresult cuStreamWaitEvent_ptsz(CUstream hStream, CUevent hEvent, unsigned int Flags) {
    return await(hStream, true, hEvent, Flags);
}

/* Take the lock for a look at an event: held after success only. */
static CUresult enter(CUevent event) {
    CUresult result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    sim_work_lock();
    if (!sim_handle_is(event, SIM_HANDLE_EVENT))
        result = CUDA_ERROR_INVALID_HANDLE;
    else if (event->capture) {
        sim_capture_touch(event->capture);
        result = CUDA_ERROR_CAPTURED_EVENT;
    }
    if (result != CUDA_SUCCESS)
        sim_work_unlock();
    return result;
}

SIM_EXPORT CUresult cuEventQuery(CUevent hEvent) {
    SIM_FAULT("cuEventQuery");
    CUresult result = enter(hEvent);
    if (result != CUDA_SUCCESS)
        return result;
    result = sim_look(hEvent->card, hEvent->op) ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
    sim_work_unlock();
    return result;
}

SIM_EXPORT CUresult cuEventSynchronize(CUevent hEvent) {
    SIM_FAULT("cuEventSynchronize");
    CUresult result = enter(hEvent);
    if (result != CUDA_SUCCESS)
        return result;
    sim_wait(hEvent->card, hEvent->op);
    sim_work_unlock();
    sim_pools_synchronised();
    return CUDA_SUCCESS;
}

static CUresult elapsed(float *milliseconds, CUevent start, CUevent end) {
    CUresult result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    if (!milliseconds)
        return CUDA_ERROR_INVALID_VALUE;
    if ((result = enter(start)) != CUDA_SUCCESS)
        return result;
    uint32_t card = start->card;
    sim_look(card, 0);
    if (!sim_handle_is(start, SIM_HANDLE_EVENT) || !sim_handle_is(end, SIM_HANDLE_EVENT) || !timed(start) ||
        !timed(end) || !start->recorded || !end->recorded || start->context != end->context) {
        sim_work_unlock();
        return CUDA_ERROR_INVALID_HANDLE;
    }
    read_end(start);
    read_end(end);
    if (start->capture || end->capture)
        result = CUDA_ERROR_CAPTURED_EVENT;
    else if (start->op || end->op)
        result = CUDA_ERROR_NOT_READY;
    else
        *milliseconds = (float)((double)(int64_t)(end->end_ns - start->end_ns) / 1e6);
    sim_work_unlock();
    return result;
}

SIM_EXPORT CUresult cuEventElapsedTime(float *pMilliseconds, CUevent hStart, CUevent hEnd) {
    return elapsed(pMilliseconds, hStart, hEnd);
}
SIM_EXPORT CUresult cuEventElapsedTime_v2(float *pMilliseconds, CUevent hStart, CUevent hEnd) {
    return elapsed(pMilliseconds, hStart, hEnd);
}
