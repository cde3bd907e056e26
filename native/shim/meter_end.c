/*
 * The ends of streams, of contexts and of the process: what was measured is read while it can be, the rest is
 * taken to cost what is expected. A stream's record outlives it until its samples are read.
 */
#include <stdlib.h>

#include "meter_parts.h"

void vcuda_meter_stream_ends(struct vcuda_share *share, CUstream stream) {
    struct vcuda_visit visit;
    struct vcuda_stream_meter *meter = vcuda_meter_known(stream);
    if (!meter)
        return;
    vcuda_lock_take(&vcuda_meter_lock); /* nobody waits for the driver with it held */
    struct vcuda_sample *last = NULL;
    bool visits = vcuda_visit(&visit, meter->context->context);
    if (visits) {
        vcuda_meter_harvest(share, meter->context);
        last = vcuda_meter_tail(meter);
    }
    vcuda_lock_give(&vcuda_meter_lock);
    if (last)
        vcuda_meter_record_tail(last);
    if (visits)
        vcuda_leave(&visit);
    vcuda_lock_take(&meter->recording); /* until nobody else records in it */
    vcuda_lock_take(&vcuda_meter_lock);
    vcuda_meter_settle(share, meter, VCUDA_NOTHING);
    vcuda_meter_refund(share, meter);
    vcuda_stream_detach(meter);
    vcuda_lock_give(&meter->recording);
    if (!meter->outstanding)
        vcuda_stream_free(meter);
    vcuda_lock_give(&vcuda_meter_lock);
}

/* What can be read is read; what is launched and not in a sample is taken to cost what is expected. Lock
 * held. */
static void close_books(struct vcuda_share *share, struct vcuda_context_meter *context) {
    struct vcuda_visit visit;
    if (vcuda_visit(&visit, context->context)) {
        vcuda_meter_harvest(share, context);
        vcuda_leave(&visit);
    }
    for (struct vcuda_stream_meter *meter = context->streams; meter; meter = meter->next)
        vcuda_meter_settle(share, meter, VCUDA_NOTHING);
}

/* Of the work that goes on, only what is expected of it is known, and events end with their context. */
static void account_unread(struct vcuda_share *share, struct vcuda_context_meter *context) {
    for (uint32_t i = 0; i < context->samples; i++) {
        const struct vcuda_sample *sample = &context->sample[context->order[i]];
        uint64_t own = vcuda_sample_cost_ns(sample);
        vcuda_meter_account(share, context->card, sample->expected_ns + own * (1 + sample->unknown),
                            sample->charged_ns);
    }
    for (struct vcuda_stream_meter *meter = context->streams; meter; meter = meter->next)
        vcuda_meter_refund(share, meter);
}

static bool is_meant(const struct vcuda_context_meter *context, CUcontext which, CUdevice device) {
    if (!context->context)
        return false;
    return which ? context->context == which : context->primary && context->device == device;
}

static void ends(struct vcuda_share *share, CUcontext which, CUdevice device) {
    vcuda_lock_take(&vcuda_meter_lock);
    for (int i = 0; i < VCUDA_CONTEXTS; i++)
        if (is_meant(&vcuda_context_meters[i], which, device))
            close_books(share, &vcuda_context_meters[i]);
    vcuda_lock_give(&vcuda_meter_lock);
}

static void forget(struct vcuda_share *share, CUcontext which, CUdevice device) {
    vcuda_lock_take(&vcuda_meter_lock);
    for (int i = 0; i < VCUDA_CONTEXTS; i++)
        if (is_meant(&vcuda_context_meters[i], which, device)) {
            account_unread(share, &vcuda_context_meters[i]);
            vcuda_context_forget(&vcuda_context_meters[i]);
        }
    vcuda_lock_give(&vcuda_meter_lock);
    vcuda_meter_elsewhere();
}

void vcuda_meter_context_ends(struct vcuda_share *share, CUcontext context) {
    if (context)
        ends(share, context, 0);
}

void vcuda_meter_forget_context(struct vcuda_share *share, CUcontext context) {
    if (context)
        forget(share, context, 0);
}

void vcuda_meter_primary_ends(struct vcuda_share *share, CUdevice device) {
    ends(share, NULL, device);
}

void vcuda_meter_forget_primary(struct vcuda_share *share, CUdevice device) {
    forget(share, NULL, device);
}

/* At exit the driver is still there, and knows what was not asked for yet; what goes on then is cut short. */
static void at_exit(void) {
    struct vcuda_share *share = vcuda_share();
    CUcontext current = NULL;
    if (!share || !vcuda_meter_try())
        return;
    vcuda_real.cuCtxGetCurrent(&current);
    for (int i = 0; i < VCUDA_CONTEXTS; i++) {
        struct vcuda_context_meter *context = &vcuda_context_meters[i];
        unsigned int flags;
        int active = 0;
        /* Any other context may have gone unseen. */
        if (context->context && context->primary)
            vcuda_real.cuDevicePrimaryCtxGetState(context->device, &flags, &active);
        if (context->context && (active || context->context == current))
            close_books(share, context);
    }
    vcuda_lock_give(&vcuda_meter_lock);
}

void vcuda_meter_read_at_exit(void) {
    static bool once;
    if (!__atomic_exchange_n(&once, true, __ATOMIC_RELAXED))
        atexit(at_exit);
}
