/*
 * Values in memory that a stream writes or waits for. Each is a gate: the worker writes, or looks until the
 * value is there, so that a program may wait with plain loads for what its stream writes.
 */
#include "work.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

/* Copy within this process without a fault where an address is not mapped; false then. */
static bool copy(uint64_t remote, void *local, size_t bytes, bool write) {
    struct iovec here = {local, bytes}, there = {(void *)(uintptr_t)remote, bytes};
    ssize_t done = write ? process_vm_writev(getpid(), &here, 1, &there, 1, 0)
                         : process_vm_readv(getpid(), &here, 1, &there, 1, 0);
    if (done >= 0 || (errno != ENOSYS && errno != EPERM))
        return done == (ssize_t)bytes;
    if (write) /* a sandbox forbids the call: trust the address */
        memcpy(there.iov_base, local, bytes);
    else
        memcpy(local, there.iov_base, bytes);
    return true;
}

static bool is_wide(const CUstreamBatchMemOpParams *operation) {
    if (operation->operation == CU_STREAM_MEM_OP_ATOMIC_REDUCTION)
        return operation->atomicReduction.dataType == CU_STREAM_ATOMIC_REDUCTION_UNSIGNED_64;
    return operation->operation == CU_STREAM_MEM_OP_WAIT_VALUE_64 ||
           operation->operation == CU_STREAM_MEM_OP_WRITE_VALUE_64;
}

static bool is_there(void *data) {
    const CUstreamBatchMemOpParams *wait = data;
    uint64_t found = 0, wanted = is_wide(wait) ? wait->waitValue.value64 : wait->waitValue.value;
    if (!copy(wait->waitValue.address, &found, is_wide(wait) ? 8 : 4, false))
        return true; /* what is waited for can never come: go on rather than hang */
    switch (wait->waitValue.flags & 3) {
    case CU_STREAM_WAIT_VALUE_EQ:
        return found == wanted;
    case CU_STREAM_WAIT_VALUE_AND:
        return (found & wanted) != 0;
    case CU_STREAM_WAIT_VALUE_NOR:
        return is_wide(wait) ? ~(found | wanted) != 0 : (uint32_t)~(found | wanted) != 0;
    default:
        return is_wide(wait) ? (int64_t)(found - wanted) >= 0 : (int32_t)(found - wanted) >= 0;
    }
}

static void write_value(void *data) {
    CUstreamBatchMemOpParams *write = data;
    uint64_t value = is_wide(write) ? write->writeValue.value64 : write->writeValue.value;
    copy(write->writeValue.address, &value, is_wide(write) ? 8 : 4, true);
}

static void reduce(void *data) {
    const CUstreamBatchMemOpParams *operation = data;
    size_t bytes = is_wide(operation) ? 8 : 4;
    uint64_t value = 0, operand = operation->atomicReduction.value;
    if (!copy(operation->atomicReduction.address, &value, bytes, false))
        return;
    if (operation->atomicReduction.reductionOp == CU_STREAM_ATOMIC_REDUCTION_OP_OR)
        value |= operand;
    else if (operation->atomicReduction.reductionOp == CU_STREAM_ATOMIC_REDUCTION_OP_AND)
        value &= operand;
    else
        value += operand;
    copy(operation->atomicReduction.address, &value, bytes, true);
}

static bool is_usable(CUdeviceptr address, size_t bytes) {
    unsigned char content[8];
    return address && address % bytes == 0 && copy(address, content, bytes, false);
}

CUresult sim_values_check(unsigned int count, const CUstreamBatchMemOpParams *operations,
                          unsigned int flags) {
    if (!count || count > 256 || !operations || flags)
        return CUDA_ERROR_INVALID_VALUE;
    for (unsigned int i = 0; i < count; i++) {
        const CUstreamBatchMemOpParams *operation = &operations[i];
        size_t bytes = is_wide(operation) ? 8 : 4;
        bool usable = true;
        switch (operation->operation) {
        case CU_STREAM_MEM_OP_WAIT_VALUE_32:
        case CU_STREAM_MEM_OP_WAIT_VALUE_64:
            usable = is_usable(operation->waitValue.address, bytes) &&
                     !(operation->waitValue.flags & ~(3U | (unsigned int)CU_STREAM_WAIT_VALUE_FLUSH));
            break;
        case CU_STREAM_MEM_OP_WRITE_VALUE_32:
        case CU_STREAM_MEM_OP_WRITE_VALUE_64:
            usable = is_usable(operation->writeValue.address, bytes) && operation->writeValue.flags <= 1;
            break;
        case CU_STREAM_MEM_OP_ATOMIC_REDUCTION:
            usable = is_usable(operation->atomicReduction.address, bytes);
            break;
        case CU_STREAM_MEM_OP_FLUSH_REMOTE_WRITES:
        case CU_STREAM_MEM_OP_BARRIER:
            break;
        default:
            usable = false;
        }
        if (!usable)
            return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

CUresult sim_values_put(struct CUstream_st *stream, const CUstreamBatchMemOpParams *operation, sim_op after,
                        sim_op *op) {
    struct sim_job job = {.kind = SIM_OP_GATE};
    bool (*ready)(void *) = NULL;
    *(CUstreamBatchMemOpParams *)job.action.data = *operation;
    switch (operation->operation) {
    case CU_STREAM_MEM_OP_WAIT_VALUE_32:
    case CU_STREAM_MEM_OP_WAIT_VALUE_64:
        ready = is_there;
        break;
    case CU_STREAM_MEM_OP_WRITE_VALUE_32:
    case CU_STREAM_MEM_OP_WRITE_VALUE_64:
        job.action.run = write_value;
        break;
    case CU_STREAM_MEM_OP_ATOMIC_REDUCTION:
        job.action.run = reduce;
        break;
    default:
        job.kind = SIM_OP_MARK;
    }
    return sim_put(stream, &job, ready, after, false, op);
}

/* ---- the calls ---- */

static CUresult batch(CUstream handle, bool ptsz, unsigned int count,
                      const CUstreamBatchMemOpParams *operations, unsigned int flags) {
    CUresult result = sim_values_check(count, operations, flags);
    if (result != CUDA_SUCCESS)
        return result;
    SIM_ENTER(handle, ptsz);
    (void)context;
    if (stream->capture)
        return sim_stream_leave(stream, sim_capture_values(stream, count, operations));
    result = sim_capture_refuse(stream);
    for (unsigned int i = 0; i < count && result == CUDA_SUCCESS; i++)
        result = sim_values_put(stream, &operations[i], 0, NULL);
    return sim_stream_leave(stream, result);
}

static CUresult one(CUstream handle, bool ptsz, CUstreamBatchMemOpType type, CUdeviceptr address,
                    uint64_t value, unsigned int flags) {
    CUstreamBatchMemOpParams operation = {
        .writeValue = {type, address, {0}, flags, 0}}; /* waits have the same fields */
    if (is_wide(&operation))
        operation.writeValue.value64 = value;
    else
        operation.writeValue.value = (cuuint32_t)value;
    return batch(handle, ptsz, 1, &operation, 0);
}

/* Three ABI versions and the per-thread variants of the later two do the same. */
#define VALUE_CALLS(name, bits, type)                                                                        \
    SIM_EXPORT CUresult name(CUstream stream, CUdeviceptr addr, cuuint##bits##_t value,                      \
                             unsigned int flags) {                                                           \
        return one(stream, false, type, addr, value, flags);                                                 \
    }                                                                                                        \
    SIM_EXPORT CUresult name##_ptsz(CUstream stream, CUdeviceptr addr, cuuint##bits##_t value,               \
                                    unsigned int flags) {                                                    \
        return one(stream, true, type, addr, value, flags);                                                  \
    }                                                                                                        \
    SIM_EXPORT CUresult name##_v2(CUstream stream, CUdeviceptr addr, cuuint##bits##_t value,                 \
                                  unsigned int flags) {                                                      \
        return one(stream, false, type, addr, value, flags);                                                 \
    }                                                                                                        \
    SIM_EXPORT CUresult name##_v2_ptsz(CUstream stream, CUdeviceptr addr, cuuint##bits##_t value,            \
                                       unsigned int flags) {                                                 \
        return one(stream, true, type, addr, value, flags);                                                  \
    }

VALUE_CALLS(cuStreamWaitValue32, 32, CU_STREAM_MEM_OP_WAIT_VALUE_32)
VALUE_CALLS(cuStreamWriteValue32, 32, CU_STREAM_MEM_OP_WRITE_VALUE_32)
VALUE_CALLS(cuStreamWaitValue64, 64, CU_STREAM_MEM_OP_WAIT_VALUE_64)
VALUE_CALLS(cuStreamWriteValue64, 64, CU_STREAM_MEM_OP_WRITE_VALUE_64)

SIM_EXPORT CUresult cuStreamBatchMemOp(CUstream stream, unsigned int count,
                                       CUstreamBatchMemOpParams *paramArray, unsigned int flags) {
    return batch(stream, false, count, paramArray, flags);
}
SIM_EXPORT CUresult cuStreamBatchMemOp_ptsz(CUstream stream, unsigned int count,
                                            CUstreamBatchMemOpParams *paramArray, unsigned int flags) {
    return batch(stream, true, count, paramArray, flags);
}
SIM_EXPORT CUresult cuStreamBatchMemOp_v2(CUstream stream, unsigned int count,
                                          CUstreamBatchMemOpParams *paramArray, unsigned int flags) {
    return batch(stream, false, count, paramArray, flags);
}
SIM_EXPORT CUresult cuStreamBatchMemOp_v2_ptsz(CUstream stream, unsigned int count,
                                               CUstreamBatchMemOpParams *paramArray, unsigned int flags) {
    return batch(stream, true, count, paramArray, flags);
}
