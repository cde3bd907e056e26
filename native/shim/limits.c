/*
 * What a program has a context keep for its kernels: stack, heap, printf's queue. The driver's defaults are
 * in the cost of a context; what is asked for beyond them is charged when it is asked for, though a driver
 * may take it later, with the first kernel that needs it. The launch queues of kernels that launch kernels
 * are not charged: what they take is the driver's secret.
 */
#include "memory.h"

/* key: context and limit; bytes: charged; size: the driver's default; owner: the context. */
static struct vcuda_table limits;
/* Around reading a limit, setting it, and charging the difference. */
static vcuda_lock limits_lock;

void vcuda_limits_forget_process(void) {
    limits_lock = (vcuda_lock){0};
}

static uint64_t attribute(CUdevice device, CUdevice_attribute which) {
    int value = 0;
    return vcuda_real.cuDeviceGetAttribute(&value, which, device) == CUDA_SUCCESS && value > 0
               ? (uint64_t)value
               : 0;
}

/* What `value` takes beyond the default. A stack is kept for every thread that can be resident at once. */
static uint64_t cost(struct vcuda_share *share, int card, CUdevice device, CUlimit limit, uint64_t value,
                     uint64_t standard) {
    uint64_t each = value > standard ? value - standard : 0, count = 1;
    if (each && limit == CU_LIMIT_STACK_SIZE)
        count = attribute(device, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT) *
                attribute(device, CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR);
    uint64_t bytes = count && each > VCUDA_MAX_BYTES / count ? VCUDA_MAX_BYTES + 1 : each * count;
    return vcuda_round_up(bytes, vcuda_page_bytes(share, card));
}

static bool takes_memory(CUlimit limit) {
    return limit == CU_LIMIT_STACK_SIZE || limit == CU_LIMIT_PRINTF_FIFO_SIZE ||
           limit == CU_LIMIT_MALLOC_HEAP_SIZE;
}

/* Caller holds limits_lock. `record` is this limit's, `card` and `device` the current context's. */
static CUresult set(struct vcuda_share *share, int card, CUdevice device, CUlimit limit, size_t value,
                    struct vcuda_record *record) {
    uint64_t wanted = cost(share, card, device, limit, value, record->size), before = record->bytes;
    if (wanted > before && !vcuda_reserve_or_settle(share, card, VCUDA_KIND_CONTEXT, wanted - before))
        return vcuda_refuse(share, card, wanted - before);
    CUresult result = vcuda_real.cuCtxSetLimit(limit, value);
    size_t now = value;
    if (result == CUDA_SUCCESS && vcuda_real.cuCtxGetLimit(&now, limit) == CUDA_SUCCESS) {
        record->bytes = cost(share, card, device, limit, now, record->size);
        if (record->bytes > wanted &&
            record->bytes > before) /* rounded up: paid, or to be seen as beyond the limit */
            vcuda_ledger_charge(&share->ledger, (uint32_t)card, VCUDA_KIND_CONTEXT,
                                record->bytes - (wanted > before ? wanted : before));
    }
    uint64_t most = wanted > before ? wanted : before;
    if (record->bytes < most)
        vcuda_release(share, card, VCUDA_KIND_CONTEXT, most - record->bytes);
    return result;
}

VCUDA_EXPORT CUresult cuCtxSetLimit(CUlimit limit, size_t value) {
    struct vcuda_share *share = vcuda_limited_share();
    CUcontext context = NULL;
    CUdevice device;
    size_t standard = 0;
    if (!share || vcuda_depth || !takes_memory(limit) ||
        vcuda_real.cuCtxGetCurrent(&context) != CUDA_SUCCESS || !context ||
        vcuda_real.cuCtxGetDevice(&device) != CUDA_SUCCESS || vcuda_card_of(share, device) < 0)
        return vcuda_real.cuCtxSetLimit(limit, value);
    struct vcuda_record record;
    uint64_t key =
        (uint64_t)(uintptr_t)context + (uint64_t)limit; /* handles are addresses, 16 bytes apart at least */
    vcuda_lock_take(&limits_lock);
    CUresult result = CUDA_SUCCESS;
    if (!vcuda_record_take(&limits, key, &record)) {
        int card = vcuda_card_of(share, device);
        result = vcuda_real.cuCtxGetLimit(&standard, limit);
        record = (struct vcuda_record){
            .key = key, .size = standard, .card = (int16_t)card, .owner = (uint64_t)(uintptr_t)context};
    }
    if (result == CUDA_SUCCESS) {
        result = set(share, record.card, device, limit, value, &record);
        vcuda_record_put(&limits,
                         &record); /* if it fails, what was charged stays so until the process ends */
    }
    vcuda_lock_give(&limits_lock);
    return result;
}

struct ending {
    struct vcuda_share *share;
    uint64_t context;
};

static bool goes_along(struct vcuda_record *record, void *data) {
    struct ending *ending = data;
    if (record->owner != ending->context)
        return false;
    vcuda_release(ending->share, record->card, VCUDA_KIND_CONTEXT, record->bytes);
    return true;
}

void vcuda_limits_forget_context(struct vcuda_share *share, CUcontext context) {
    struct ending ending = {share, (uint64_t)(uintptr_t)context};
    if (context)
        vcuda_table_sweep(&limits, goes_along, &ending);
}
