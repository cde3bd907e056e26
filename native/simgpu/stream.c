/*
 * Streams: which there are, and what the calls that submit to one have in common.
 */
#include "work.h"

#include <stdlib.h>
#include <string.h>

static uint64_t last_id, last_thread;

/* ---- per-thread default streams go with their thread ---- */

static _Thread_local uint64_t this_thread;
static pthread_key_t thread_key;
static pthread_once_t thread_once = PTHREAD_ONCE_INIT;
static struct CUstream_st *thread_streams; /* of all threads and contexts */

static void thread_ends(void *thread) {
    sim_work_lock();
    for (struct CUstream_st *stream = thread_streams, *next; stream; stream = next) {
        next = stream->next_thread;
        if (stream->thread != (uint64_t)(uintptr_t)thread || stream->destroyed)
            continue;
        sim_stream_end(stream);
        sim_stream_settle(stream);
        next = thread_streams; /* the lock may have been let go of: from the start */
    }
    sim_work_unlock();
}

static void make_key(void) {
    pthread_key_create(&thread_key, thread_ends);
}

static uint64_t thread_number(void) {
    if (!this_thread) {
        pthread_once(&thread_once, make_key);
        this_thread = __atomic_add_fetch(&last_thread, 1, __ATOMIC_RELAXED);
        pthread_setspecific(thread_key, (void *)(uintptr_t)this_thread);
    }
    return this_thread;
}

/* ---- making and ending ---- */

static struct CUstream_st *open_stream(struct CUctx_st *context, enum sim_stream_kind kind, uint64_t thread) {
    struct CUstream_st *stream = calloc(1, sizeof *stream);
    if (!stream)
        return NULL;
    sim_machine_lock();
    stream->lane =
        sim_stream_open(&sim_machine()->cards[context->card].timeline, (uint32_t)sim_machine_self(), kind);
    sim_machine_unlock();
    if (!stream->lane) {
        free(stream);
        return NULL;
    }
    stream->context = context;
    stream->card = context->card;
    stream->kind = kind;
    stream->thread = thread;
    stream->id = ++last_id;
    stream->next = context->streams;
    context->streams = stream;
    if (thread) {
        stream->next_thread = thread_streams;
        thread_streams = stream;
    }
    return stream;
}

struct CUstream_st *sim_stream_hidden(struct CUctx_st *context) {
    return open_stream(context, SIM_STREAM_NONBLOCKING, 0);
}

static struct CUstream_st *default_stream(struct CUctx_st *context, uint64_t thread) {
    enum sim_stream_kind kind = thread ? SIM_STREAM_BLOCKING : SIM_STREAM_LEGACY;
    for (struct CUstream_st *stream = context->streams; stream; stream = stream->next)
        if (!stream->destroyed && (thread ? stream->thread == thread : stream->kind == SIM_STREAM_LEGACY))
            return stream;
    struct CUstream_st *stream = open_stream(context, kind, thread);
    if (stream && !thread)
        context->legacy = stream->lane;
    return stream;
}

void sim_stream_settle(struct CUstream_st *stream) {
    if (!stream->destroyed || stream->users || stream->busy)
        return;
    if (stream->context) {
        struct CUstream_st **link = &stream->context->streams;
        while (*link && *link != stream)
            link = &(*link)->next;
        if (*link)
            *link = stream->next;
    }
    if (stream->thread) {
        struct CUstream_st **link = &thread_streams;
        while (*link != stream)
            link = &(*link)->next_thread;
        *link = stream->next_thread;
    }
    free(stream->tips);
    free((void *)stream->tip_nodes);
    free((void *)stream->tip_data);
    free(stream);
}

static void nothing(void *data) {
    (void)data;
}

void sim_stream_end(struct CUstream_st *stream) {
    /* A last piece of work that is remembered, so that cuCtxSynchronize still waits for what was submitted.
     */
    struct sim_job end = {.kind = SIM_OP_MARK, .action.run = nothing};
    struct sim_timeline *timeline = &sim_machine()->cards[stream->card].timeline;
    sim_handle_drop(stream);
    sim_machine_lock();
    uint32_t pending = sim_stream_pending(timeline, stream->lane);
    sim_machine_unlock();
    if (stream->context && pending && pending < SIM_STREAM_PENDING)
        sim_put(stream, &end, NULL, 0, false, NULL);
    sim_machine_lock();
    sim_stream_close(timeline, stream->lane);
    sim_machine_unlock();
    stream->destroyed = true;
}

void sim_streams_forget(void) {
    thread_streams = NULL;
    this_thread = 0;
}

/* ---- finding ---- */

CUresult sim_stream_find(struct CUctx_st *context, CUstream handle, bool ptsz, struct CUstream_st **stream) {
    if (!handle || handle == CU_STREAM_LEGACY || handle == CU_STREAM_PER_THREAD) {
        bool per_thread = handle == CU_STREAM_PER_THREAD || (!handle && ptsz);
        *stream = default_stream(context, per_thread ? thread_number() : 0);
        return *stream ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    }
    *stream = handle;
    return sim_handle_is(handle, SIM_HANDLE_STREAM) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult sim_stream_enter(CUstream handle, bool ptsz, struct CUctx_st **context,
                          struct CUstream_st **stream) {
    CUresult result = sim_in_callback() ? CUDA_ERROR_NOT_PERMITTED : sim_current(context);
    if (result != CUDA_SUCCESS)
        return result;
    sim_work_lock();
    result = sim_stream_find(*context, handle, ptsz, stream);
    if (result == CUDA_SUCCESS)
        (*stream)->users++;
    else
        sim_work_unlock();
    return result;
}

CUresult sim_stream_leave(struct CUstream_st *stream, CUresult result) {
    stream->users--;
    sim_stream_settle(stream);
    sim_work_unlock();
    return result;
}

/* ---- for the other part of the driver ---- */

CUresult sim_submit_job(CUstream handle, bool ptsz, const struct sim_job *job) {
    SIM_ENTER(handle, ptsz);
    sim_op op = 0;
    CUresult result;
    (void)context;
    if (stream->capture)
        return sim_stream_leave(stream, sim_capture_job(stream, job));
    result = sim_capture_refuse(stream);
    if (result == CUDA_SUCCESS)
        result = sim_put(stream, job, NULL, 0, false, &op);
    if (result == CUDA_SUCCESS && job->wait)
        sim_wait(stream->card, op);
    return sim_stream_leave(stream, result);
}

CUresult sim_stream_capturing(CUstream handle, bool ptsz, bool *capturing) {
    SIM_ENTER(handle, ptsz);
    (void)context;
    *capturing = stream->capture != NULL;
    return sim_stream_leave(stream, CUDA_SUCCESS);
}

CUresult sim_stream_owner(CUstream handle, bool ptsz, struct CUctx_st **context) {
    struct CUctx_st *current;
    struct CUstream_st *stream;
    if (!handle || handle == CU_STREAM_LEGACY || handle == CU_STREAM_PER_THREAD)
        return sim_current(context);
    CUresult result = sim_stream_enter(handle, ptsz, &current, &stream);
    if (result != CUDA_SUCCESS)
        return result;
    *context = stream->context;
    return sim_stream_leave(stream, CUDA_SUCCESS);
}

CUresult sim_context_synchronize(struct CUctx_st *context) {
    size_t count = 0;
    sim_work_lock();
    for (struct CUstream_st *stream = context->streams; stream; stream = stream->next)
        count++;
    sim_op *ops = malloc((count + 1) * sizeof *ops);
    if (!ops) {
        sim_work_unlock();
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    count = 0;
    for (struct CUstream_st *stream = context->streams; stream; stream = stream->next)
        ops[count++] = sim_last(stream);
    uint32_t card = context->card;
    sim_look(card, 0);
    while (count)
        sim_wait(card, ops[--count]);
    sim_work_unlock();
    free(ops);
    return CUDA_SUCCESS;
}

/* ---- the calls ---- */

static CUresult create(CUstream *handle, unsigned int flags, int priority) {
    SIM_FAULT("cuStreamCreate");
    struct CUctx_st *context;
    CUresult result = sim_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    if (!handle || (flags & ~(unsigned int)CU_STREAM_NON_BLOCKING))
        return CUDA_ERROR_INVALID_VALUE;
    sim_work_lock();
    struct CUstream_st *stream = open_stream(
        context, flags & CU_STREAM_NON_BLOCKING ? SIM_STREAM_NONBLOCKING : SIM_STREAM_BLOCKING, 0);
    if (stream && !sim_handle_put(stream, SIM_HANDLE_STREAM)) {
        sim_stream_end(stream);
        sim_stream_settle(stream);
        stream = NULL;
    }
    if (stream) {
        stream->flags = flags;
        stream->priority = priority > 0                       ? 0
                           : priority < SIM_PRIORITY_GREATEST ? SIM_PRIORITY_GREATEST
                                                              : priority;
        *handle = stream;
    }
    sim_work_unlock();
    return stream ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

SIM_EXPORT CUresult cuStreamCreate(CUstream *phStream, unsigned int Flags) {
    return create(phStream, Flags, 0);
}

SIM_EXPORT CUresult cuStreamCreateWithPriority(CUstream *phStream, unsigned int flags, int priority) {
    return create(phStream, flags, priority);
}

static CUresult destroy(CUstream stream) {
    CUresult result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    sim_work_lock();
    if (!sim_handle_is(stream, SIM_HANDLE_STREAM)) {
        sim_work_unlock();
        return CUDA_ERROR_INVALID_HANDLE;
    }
    stream->users++;
    sim_capture_drop(stream);
    sim_stream_end(stream);
    return sim_stream_leave(stream, CUDA_SUCCESS);
}

SIM_EXPORT CUresult cuStreamDestroy_v2(CUstream hStream) {
    return destroy(hStream);
}

SIM_EXPORT CUresult cuStreamDestroy(CUstream hStream) {
    return destroy(hStream);
}

static CUresult query(CUstream handle, bool ptsz) {
    SIM_FAULT("cuStreamQuery");
    SIM_ENTER(handle, ptsz);
    (void)context;
    CUresult result = sim_capture_refuse(stream);
    if (result == CUDA_SUCCESS && sim_look(stream->card, sim_last(stream)))
        result = CUDA_ERROR_NOT_READY;
    return sim_stream_leave(stream, result);
}

SIM_EXPORT CUresult cuStreamQuery(CUstream hStream) {
    return query(hStream, false);
}
SIM_EXPORT CUresult cuStreamQuery_ptsz(CUstream hStream) {
    return query(hStream, true);
}

static CUresult synchronize(CUstream handle, bool ptsz) {
    SIM_FAULT("cuStreamSynchronize");
    SIM_ENTER(handle, ptsz);
    (void)context;
    CUresult result = sim_capture_refuse(stream);
    if (result == CUDA_SUCCESS)
        sim_wait(stream->card, sim_last(stream));
    result = sim_stream_leave(stream, result);
    if (result == CUDA_SUCCESS)
        sim_pools_synchronised();
    return result;
}

SIM_EXPORT CUresult cuStreamSynchronize(CUstream hStream) {
    return synchronize(hStream, false);
}
SIM_EXPORT CUresult cuStreamSynchronize_ptsz(CUstream hStream) {
    return synchronize(hStream, true);
}
