/*
 * The tables of metering: streams and contexts. Nothing is allocated: fixed tables, whose pages cost
 * nothing until they are used. A full table of streams gives up the record of one that has nothing
 * outstanding; it is made anew when it is used again.
 */
#include "limiter.h"
#include "meter_parts.h"

#include <string.h>

struct vcuda_stream_entry vcuda_stream_entries[VCUDA_STREAM_ENTRIES];
struct vcuda_context_meter vcuda_context_meters[VCUDA_CONTEXTS];
__thread struct vcuda_here vcuda_here;
uint32_t vcuda_epoch = 1;
vcuda_lock vcuda_meter_lock;

static struct vcuda_stream_meter meters[VCUDA_STREAMS];
static struct vcuda_stream_meter *free_meters;
static uint32_t fresh_meters, hand, contexts_high;
static struct vcuda_slot_card nowhere; /* launches on a card that is not granted */

/* ---- visits ---- */

bool vcuda_visit(struct vcuda_visit *visit, CUcontext context) {
    CUcontext current = NULL;
    visit->pushed = false;
    if (vcuda_real.cuCtxGetCurrent(&current) != CUDA_SUCCESS)
        return false;
    if (current != context) {
        if (vcuda_real.cuCtxPushCurrent_v2(context) != CUDA_SUCCESS)
            return false;
        visit->pushed = true;
    }
    vcuda_depth++;
    visit->mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    if (vcuda_real.cuThreadExchangeStreamCaptureMode(&visit->mode) != CUDA_SUCCESS)
        visit->mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    return true;
}

void vcuda_leave(const struct vcuda_visit *visit) {
    CUstreamCaptureMode mode = visit->mode;
    CUcontext context;
    vcuda_real.cuThreadExchangeStreamCaptureMode(&mode);
    vcuda_depth--;
    if (visit->pushed)
        vcuda_real.cuCtxPopCurrent_v2(&context);
}

enum vcuda_capturing vcuda_meter_captures(CUstream stream, bool ptsz) {
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    CUresult result = vcuda_real.cuStreamIsCapturing(vcuda_stream_of(stream, ptsz), &status);
    if (result == CUDA_ERROR_NOT_FOUND) /* a driver that has no captures */
        return VCUDA_CAPTURES_NOT;
    if (result != CUDA_SUCCESS)
        return VCUDA_CAPTURES_UNKNOWN;
    if (status != CU_STREAM_CAPTURE_STATUS_NONE)
        return VCUDA_CAPTURES;
    bool graphics = __atomic_load_n(&vcuda_graphics_captures, __ATOMIC_RELAXED) > 0;
    return graphics ? VCUDA_CAPTURES_UNKNOWN : VCUDA_CAPTURES_NOT;
}

/* ---- contexts ---- */

/* A primary context can be had from its device; asking keeps it no longer than it is kept already. */
static bool is_primary(CUcontext context, CUdevice device) {
    CUcontext primary = NULL;
    unsigned int flags;
    int active = 0;
    if (vcuda_real.cuDevicePrimaryCtxGetState(device, &flags, &active) != CUDA_SUCCESS || !active ||
        vcuda_real.cuDevicePrimaryCtxRetain(&primary, device) != CUDA_SUCCESS)
        return false;
    if (vcuda_real.cuDevicePrimaryCtxRelease_v2(device) == CUDA_ERROR_NOT_FOUND)
        vcuda_real.cuDevicePrimaryCtxRelease(device);
    return primary == context;
}

static uint32_t multiprocessors(CUdevice device) {
    int count = 0;
    CUresult result =
        vcuda_real.cuDeviceGetAttribute(&count, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device);
    return result == CUDA_SUCCESS && count > 0 ? (uint32_t)count : 1;
}

struct vcuda_context_meter *vcuda_context_meter(struct vcuda_share *share, CUcontext context, bool make) {
    unsigned long long id = 0;
    struct vcuda_context_meter *room = NULL;
    CUdevice device;
    if (vcuda_real.cuCtxGetId(context, &id) != CUDA_SUCCESS)
        id = 0;
    for (uint32_t i = 0; i < contexts_high; i++) {
        struct vcuda_context_meter *each = &vcuda_context_meters[i];
        if (each->context == context && each->id != id)
            vcuda_context_forget(each);
        if (each->context == context)
            return each;
        if (!each->context && !room)
            room = each;
    }
    if (!make || vcuda_real.cuCtxGetDevice(&device) != CUDA_SUCCESS)
        return NULL;
    if (!room && contexts_high < VCUDA_CONTEXTS)
        room = &vcuda_context_meters[contexts_high++];
    if (!room)
        return NULL;
    vcuda_meter_read_at_exit();
    *room = (struct vcuda_context_meter){.context = context,
                                         .id = id,
                                         .device = device,
                                         .primary = is_primary(context, device),
                                         .card = vcuda_card_of(share, device),
                                         .sms = multiprocessors(device),
                                         .events_left = VCUDA_EVENTS_FREE};
    return room;
}

/* Its events and streams are gone, or soon will be. */
void vcuda_context_forget(struct vcuda_context_meter *context) {
    while (context->streams) {
        struct vcuda_stream_meter *meter = context->streams;
        vcuda_stream_detach(meter);
        meter->outstanding = 0;
        vcuda_stream_free(meter);
    }
    memset(context, 0, sizeof *context);
}

/* ---- streams ---- */

static void bump_epoch(void) {
    uint32_t next = vcuda_epoch + 1;
    __atomic_store_n(&vcuda_epoch, next ? next : 1, __ATOMIC_RELAXED);
}

void vcuda_stream_detach(struct vcuda_stream_meter *meter) {
    if (!meter->key)
        return;
    for (uint64_t probe = 0; probe < VCUDA_PROBES; probe++) {
        struct vcuda_stream_entry *entry =
            &vcuda_stream_entries[(vcuda_mix(meter->key) + probe) % VCUDA_STREAM_ENTRIES];
        if (entry->key == meter->key)
            __atomic_store_n(&entry->key, 0, __ATOMIC_RELEASE);
    }
    if ((uintptr_t)meter->stream <= 2)
        bump_epoch();
    meter->key = 0;
}

void vcuda_stream_free(struct vcuda_stream_meter *meter) {
    struct vcuda_stream_meter **link = &meter->context->streams;
    while (*link != meter)
        link = &(*link)->next;
    *link = meter->next;
    meter->next = free_meters;
    free_meters = meter;
}

static struct vcuda_stream_meter *take_meter(struct vcuda_share *share) {
    struct vcuda_stream_meter *meter = free_meters;
    if (meter) {
        free_meters = meter->next;
        return meter;
    }
    if (fresh_meters < VCUDA_STREAMS)
        return &meters[fresh_meters++];
    for (int tries = 0; tries < VCUDA_STREAMS; tries++) {
        meter = &meters[hand++ % VCUDA_STREAMS];
        if (meter->outstanding || meter->recording.state)
            continue;
        vcuda_meter_settle(share, meter, VCUDA_NOTHING);
        vcuda_meter_refund(share, meter);
        vcuda_stream_detach(meter);
        vcuda_stream_free(meter);
        free_meters = meter->next;
        return meter;
    }
    return NULL;
}

static struct vcuda_stream_meter *add_meter(struct vcuda_share *share, CUcontext context, CUstream stream,
                                            uint64_t key) {
    struct vcuda_context_meter *home = vcuda_context_meter(share, context, true);
    struct vcuda_stream_entry *room = NULL;
    for (uint64_t probe = 0; probe < VCUDA_PROBES; probe++) {
        struct vcuda_stream_entry *entry =
            &vcuda_stream_entries[(vcuda_mix(key) + probe) % VCUDA_STREAM_ENTRIES];
        if (entry->key == key)
            return entry->meter;
        if (!entry->key && !room)
            room = entry;
    }
    if (!room) { /* a crowded neighbourhood: the first makes way if it can */
        room = &vcuda_stream_entries[vcuda_mix(key) % VCUDA_STREAM_ENTRIES];
        if (room->meter->outstanding || room->meter->recording.state)
            return NULL;
        vcuda_meter_settle(share, room->meter, VCUDA_NOTHING);
        vcuda_meter_refund(share, room->meter);
        struct vcuda_stream_meter *old = room->meter;
        vcuda_stream_detach(old);
        vcuda_stream_free(old);
    }
    struct vcuda_stream_meter *meter = home ? take_meter(share) : NULL;
    if (!meter)
        return NULL;
    *meter = (struct vcuda_stream_meter){
        .key = key,
        .stream = stream,
        .context = home,
        .next = home->streams,
        .card = home->card,
        .thread = stream == CU_STREAM_PER_THREAD ? &vcuda_here : NULL,
        .interruptions = __atomic_load_n(&vcuda_interruptions, __ATOMIC_RELAXED),
        .use = home->card >= 0 ? vcuda_own_slot_card(share, home->card) : &nowhere};
    home->streams = meter;
    room->meter = meter;
    __atomic_store_n(&room->key, key, __ATOMIC_RELEASE); /* pairs with vcuda_meter_find */
    return meter;
}

static struct vcuda_stream_meter *look_up(uint64_t key) {
    for (uint64_t probe = 0; probe < VCUDA_PROBES; probe++) {
        struct vcuda_stream_entry *entry =
            &vcuda_stream_entries[(vcuda_mix(key) + probe) % VCUDA_STREAM_ENTRIES];
        if (__atomic_load_n(&entry->key, __ATOMIC_ACQUIRE) == key)
            return entry->meter;
    }
    return NULL;
}

static uint64_t key_of(CUstream stream, CUcontext context) {
    if ((uintptr_t)stream > 2)
        return (uint64_t)(uintptr_t)stream;
    uint64_t key = (uint64_t)(uintptr_t)context * 0x9e3779b97f4a7c15;
    if (stream == CU_STREAM_PER_THREAD)
        key = (key ^ (uint64_t)(uintptr_t)&vcuda_here) * 0xbf58476d1ce4e5b9;
    return key | (uint64_t)1 << 63; /* no address of a program's */
}

struct vcuda_stream_meter *vcuda_meter_known(CUstream stream) {
    return (uintptr_t)stream > 2 ? look_up(key_of(stream, NULL)) : NULL;
}

struct vcuda_stream_meter *vcuda_meter_get(struct vcuda_share *share, CUstream stream, bool ptsz) {
    CUstream handle = vcuda_stream_of(stream, ptsz);
    bool own = (uintptr_t)handle <= 2; /* of the current context, and perhaps of this thread */
    CUcontext context = NULL;
    struct vcuda_stream_meter *meter = vcuda_meter_known(handle);
    if (meter)
        return meter;
    uint32_t epoch = __atomic_load_n(&vcuda_epoch, __ATOMIC_RELAXED);
    /* A stream's context is the stream's, whatever the thread's is; drivers before 9.2 cannot tell. */
    if (own || vcuda_real.cuStreamGetCtx(handle, &context) != CUDA_SUCCESS || !context)
        if (vcuda_real.cuCtxGetCurrent(&context) != CUDA_SUCCESS || !context)
            return NULL;
    uint64_t key = key_of(handle, context);
    meter = look_up(key);
    if (!meter) {
        vcuda_lock_take(&vcuda_meter_lock); /* nobody waits for the GPU with it held */
        struct vcuda_visit visit;
        if (vcuda_visit(&visit, context)) {
            meter = add_meter(share, context, handle, key);
            vcuda_leave(&visit);
        }
        vcuda_lock_give(&vcuda_meter_lock);
    }
    if (meter && own) {
        if (vcuda_here.epoch != epoch)
            vcuda_here = (struct vcuda_here){.epoch = epoch};
        *(handle == CU_STREAM_LEGACY ? &vcuda_here.legacy : &vcuda_here.per_thread) = meter;
    }
    return meter;
}

void vcuda_meter_interrupt(CUstream stream, bool ptsz) {
    CUstream handle = vcuda_stream_of(stream, ptsz);
    struct vcuda_stream_meter *meter = vcuda_meter_find(stream, ptsz);
    if (!meter)
        meter = vcuda_meter_known(handle);
    /* A stream in which nothing has been launched yet: what is launched there will be held up all the same.
     */
    if (!meter && !__atomic_load_n(&vcuda_captures, __ATOMIC_RELAXED) && vcuda_share())
        meter = vcuda_meter_get(vcuda_share(), stream, ptsz);
    if (meter)
        __atomic_store_n(&meter->interrupted, true, __ATOMIC_RELAXED);
    if (handle == CU_STREAM_LEGACY)
        __atomic_fetch_add(&vcuda_interruptions, 1, __ATOMIC_RELAXED);
}

/* ---- a forked child ---- */

void vcuda_meter_forget_process(void) {
    vcuda_meter_lock = (vcuda_lock){0};
    vcuda_captures = 0;
    vcuda_graphics_captures = 0;
    memset(vcuda_stream_entries, 0, sizeof vcuda_stream_entries);
    memset(vcuda_context_meters, 0, sizeof vcuda_context_meters);
    free_meters = NULL;
    fresh_meters = contexts_high = 0;
    vcuda_limiter_forget_process();
    bump_epoch();
}
