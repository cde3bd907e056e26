/* Copies: the calls. All of them are CUDA_MEMCPY3D in the end. */
#include "copy.h"

#include <stdint.h>

#define SYNC(is_ptds) ((struct sim_copy_mode){.ptsz = (is_ptds), .synchronous = true})
#define ASYNC(is_ptsz) ((struct sim_copy_mode){.stream = hStream, .ptsz = (is_ptsz)})

/* ---- one row ---- */

static CUDA_MEMCPY3D row(size_t bytes) {
    return (CUDA_MEMCPY3D){.srcMemoryType = CU_MEMORYTYPE_UNIFIED,
                           .dstMemoryType = CU_MEMORYTYPE_UNIFIED,
                           .WidthInBytes = bytes,
                           .Height = 1,
                           .Depth = 1};
}

static void to_address(CUDA_MEMCPY3D *copy, CUmemorytype type, CUdeviceptr address) {
    copy->dstMemoryType = type;
    copy->dstDevice = address;
    copy->dstHost = (void *)(uintptr_t)address;
}

static void from_address(CUDA_MEMCPY3D *copy, CUmemorytype type, CUdeviceptr address) {
    copy->srcMemoryType = type;
    copy->srcDevice = address;
    copy->srcHost = (const void *)(uintptr_t)address;
}

static CUresult linear(CUmemorytype to, CUdeviceptr dst, CUmemorytype from, CUdeviceptr src, size_t bytes,
                       struct sim_copy_mode mode, struct CUctx_st *context) {
    CUDA_MEMCPY3D copy = row(bytes);
    to_address(&copy, to, dst);
    from_address(&copy, from, src);
    return sim_copy(context, &copy, mode);
}

#define ADDRESS(pointer) ((CUdeviceptr)(uintptr_t)(pointer))
/* A call in its two flavours; `body` is evaluated with `context` at hand. */
#define SYNC_CALL(name, suffix, parameters, ...)                                                             \
    SIM_EXPORT CUresult name parameters {                                                                    \
        SIM_BEGIN_IN(context);                                                                               \
        const struct sim_copy_mode mode = SYNC(false);                                                       \
        __VA_ARGS__                                                                                          \
    }                                                                                                        \
    SIM_EXPORT CUresult name##suffix parameters {                                                            \
        SIM_BEGIN_IN(context);                                                                               \
        const struct sim_copy_mode mode = SYNC(true);                                                        \
        __VA_ARGS__                                                                                          \
    }
#define ASYNC_CALL(name, parameters, ...)                                                                    \
    SIM_EXPORT CUresult name parameters {                                                                    \
        SIM_BEGIN_IN(context);                                                                               \
        const struct sim_copy_mode mode = ASYNC(false);                                                      \
        __VA_ARGS__                                                                                          \
    }                                                                                                        \
    SIM_EXPORT CUresult name##_ptsz parameters {                                                             \
        SIM_BEGIN_IN(context);                                                                               \
        const struct sim_copy_mode mode = ASYNC(true);                                                       \
        __VA_ARGS__                                                                                          \
    }

#define UNIFIED                                                                                              \
    return linear(CU_MEMORYTYPE_UNIFIED, dst, CU_MEMORYTYPE_UNIFIED, src, ByteCount, mode, context);
SYNC_CALL(cuMemcpy, _ptds, (CUdeviceptr dst, CUdeviceptr src, size_t ByteCount), UNIFIED)
ASYNC_CALL(cuMemcpyAsync, (CUdeviceptr dst, CUdeviceptr src, size_t ByteCount, CUstream hStream), UNIFIED)

#define TO_DEVICE                                                                                            \
    return linear(CU_MEMORYTYPE_DEVICE, dstDevice, CU_MEMORYTYPE_HOST, ADDRESS(srcHost), ByteCount, mode,    \
                  context);
SYNC_CALL(cuMemcpyHtoD_v2, _ptds, (CUdeviceptr dstDevice, const void *srcHost, size_t ByteCount), TO_DEVICE)
ASYNC_CALL(cuMemcpyHtoDAsync_v2,
           (CUdeviceptr dstDevice, const void *srcHost, size_t ByteCount, CUstream hStream), TO_DEVICE)

#define TO_HOST                                                                                              \
    return linear(CU_MEMORYTYPE_HOST, ADDRESS(dstHost), CU_MEMORYTYPE_DEVICE, srcDevice, ByteCount, mode,    \
                  context);
SYNC_CALL(cuMemcpyDtoH_v2, _ptds, (void *dstHost, CUdeviceptr srcDevice, size_t ByteCount), TO_HOST)
ASYNC_CALL(cuMemcpyDtoHAsync_v2, (void *dstHost, CUdeviceptr srcDevice, size_t ByteCount, CUstream hStream),
           TO_HOST)

#define WITHIN                                                                                               \
    return linear(CU_MEMORYTYPE_DEVICE, dstDevice, CU_MEMORYTYPE_DEVICE, srcDevice, ByteCount, mode, context);
SYNC_CALL(cuMemcpyDtoD_v2, _ptds, (CUdeviceptr dstDevice, CUdeviceptr srcDevice, size_t ByteCount), WITHIN)
ASYNC_CALL(cuMemcpyDtoDAsync_v2,
           (CUdeviceptr dstDevice, CUdeviceptr srcDevice, size_t ByteCount, CUstream hStream), WITHIN)

#define PEER                                                                                                 \
    if (!sim_is_context(dstContext) || !sim_is_context(srcContext))                                          \
        return CUDA_ERROR_INVALID_CONTEXT;                                                                   \
    WITHIN
SYNC_CALL(cuMemcpyPeer, _ptds,
          (CUdeviceptr dstDevice, CUcontext dstContext, CUdeviceptr srcDevice, CUcontext srcContext,
           size_t ByteCount),
          PEER)
ASYNC_CALL(cuMemcpyPeerAsync,
           (CUdeviceptr dstDevice, CUcontext dstContext, CUdeviceptr srcDevice, CUcontext srcContext,
            size_t ByteCount, CUstream hStream),
           PEER)

/* ---- one row of a one-dimensional array ---- */

static void to_array(CUDA_MEMCPY3D *copy, CUarray array, size_t offset) {
    copy->dstMemoryType = CU_MEMORYTYPE_ARRAY;
    copy->dstArray = array;
    copy->dstXInBytes = offset;
}

static void from_array(CUDA_MEMCPY3D *copy, CUarray array, size_t offset) {
    copy->srcMemoryType = CU_MEMORYTYPE_ARRAY;
    copy->srcArray = array;
    copy->srcXInBytes = offset;
}

#define ARRAY_COPY(destination, source)                                                                      \
    CUDA_MEMCPY3D copy = row(ByteCount);                                                                     \
    destination;                                                                                             \
    source;                                                                                                  \
    return sim_copy(context, &copy, mode);
#define TO_ARRAY to_array(&copy, dstArray, dstOffset)
#define FROM_ARRAY from_array(&copy, srcArray, srcOffset)

SYNC_CALL(cuMemcpyDtoA_v2, _ptds,
          (CUarray dstArray, size_t dstOffset, CUdeviceptr srcDevice, size_t ByteCount),
          ARRAY_COPY(TO_ARRAY, from_address(&copy, CU_MEMORYTYPE_DEVICE, srcDevice)))
SYNC_CALL(cuMemcpyAtoD_v2, _ptds,
          (CUdeviceptr dstDevice, CUarray srcArray, size_t srcOffset, size_t ByteCount),
          ARRAY_COPY(to_address(&copy, CU_MEMORYTYPE_DEVICE, dstDevice), FROM_ARRAY))
SYNC_CALL(cuMemcpyHtoA_v2, _ptds, (CUarray dstArray, size_t dstOffset, const void *srcHost, size_t ByteCount),
          ARRAY_COPY(TO_ARRAY, from_address(&copy, CU_MEMORYTYPE_HOST, ADDRESS(srcHost))))
SYNC_CALL(cuMemcpyAtoH_v2, _ptds, (void *dstHost, CUarray srcArray, size_t srcOffset, size_t ByteCount),
          ARRAY_COPY(to_address(&copy, CU_MEMORYTYPE_HOST, ADDRESS(dstHost)), FROM_ARRAY))
SYNC_CALL(cuMemcpyAtoA_v2, _ptds,
          (CUarray dstArray, size_t dstOffset, CUarray srcArray, size_t srcOffset, size_t ByteCount),
          ARRAY_COPY(TO_ARRAY, FROM_ARRAY))
ASYNC_CALL(cuMemcpyHtoAAsync_v2,
           (CUarray dstArray, size_t dstOffset, const void *srcHost, size_t ByteCount, CUstream hStream),
           ARRAY_COPY(TO_ARRAY, from_address(&copy, CU_MEMORYTYPE_HOST, ADDRESS(srcHost))))
ASYNC_CALL(cuMemcpyAtoHAsync_v2,
           (void *dstHost, CUarray srcArray, size_t srcOffset, size_t ByteCount, CUstream hStream),
           ARRAY_COPY(to_address(&copy, CU_MEMORYTYPE_HOST, ADDRESS(dstHost)), FROM_ARRAY))

/* ---- two and three dimensions ---- */

static CUDA_MEMCPY3D of_2d(const CUDA_MEMCPY2D *c) {
    return (CUDA_MEMCPY3D){
        .srcXInBytes = c->srcXInBytes,
        .srcY = c->srcY,
        .srcMemoryType = c->srcMemoryType,
        .srcHost = c->srcHost,
        .srcDevice = c->srcDevice,
        .srcArray = c->srcArray,
        .srcPitch = c->srcPitch,
        .dstXInBytes = c->dstXInBytes,
        .dstY = c->dstY,
        .dstMemoryType = c->dstMemoryType,
        .dstHost = c->dstHost,
        .dstDevice = c->dstDevice,
        .dstArray = c->dstArray,
        .dstPitch = c->dstPitch,
        .WidthInBytes = c->WidthInBytes,
        .Height = c->Height,
        .Depth = 1,
    };
}

#define COPY_2D                                                                                              \
    if (!pCopy)                                                                                              \
        return CUDA_ERROR_INVALID_VALUE;                                                                     \
    CUDA_MEMCPY3D copy = of_2d(pCopy);                                                                       \
    return sim_copy(context, &copy, mode);
SYNC_CALL(cuMemcpy2D_v2, _ptds, (const CUDA_MEMCPY2D *pCopy), COPY_2D)
SYNC_CALL(cuMemcpy2DUnaligned_v2, _ptds, (const CUDA_MEMCPY2D *pCopy), COPY_2D)
ASYNC_CALL(cuMemcpy2DAsync_v2, (const CUDA_MEMCPY2D *pCopy, CUstream hStream), COPY_2D)

#define COPY_3D return pCopy ? sim_copy(context, pCopy, mode) : CUDA_ERROR_INVALID_VALUE;
SYNC_CALL(cuMemcpy3D_v2, _ptds, (const CUDA_MEMCPY3D *pCopy), COPY_3D)
ASYNC_CALL(cuMemcpy3DAsync_v2, (const CUDA_MEMCPY3D *pCopy, CUstream hStream), COPY_3D)

static CUDA_MEMCPY3D of_peer(const CUDA_MEMCPY3D_PEER *c) {
    return (CUDA_MEMCPY3D){
        .srcXInBytes = c->srcXInBytes,
        .srcY = c->srcY,
        .srcZ = c->srcZ,
        .srcLOD = c->srcLOD,
        .srcMemoryType = c->srcMemoryType,
        .srcHost = c->srcHost,
        .srcDevice = c->srcDevice,
        .srcArray = c->srcArray,
        .srcPitch = c->srcPitch,
        .srcHeight = c->srcHeight,
        .dstXInBytes = c->dstXInBytes,
        .dstY = c->dstY,
        .dstZ = c->dstZ,
        .dstLOD = c->dstLOD,
        .dstMemoryType = c->dstMemoryType,
        .dstHost = c->dstHost,
        .dstDevice = c->dstDevice,
        .dstArray = c->dstArray,
        .dstPitch = c->dstPitch,
        .dstHeight = c->dstHeight,
        .WidthInBytes = c->WidthInBytes,
        .Height = c->Height,
        .Depth = c->Depth,
    };
}

#define COPY_PEER                                                                                            \
    if (!pCopy)                                                                                              \
        return CUDA_ERROR_INVALID_VALUE;                                                                     \
    CUDA_MEMCPY3D copy = of_peer(pCopy);                                                                     \
    return sim_copy(context, &copy, mode);
SYNC_CALL(cuMemcpy3DPeer, _ptds, (const CUDA_MEMCPY3D_PEER *pCopy), COPY_PEER)
ASYNC_CALL(cuMemcpy3DPeerAsync, (const CUDA_MEMCPY3D_PEER *pCopy, CUstream hStream), COPY_PEER)

/* ---- several at once ---- */

struct batch {
    CUdeviceptr *to, *from;
    size_t *sizes, count;
    const CUmemcpyAttributes *attributes;
    const size_t *attribute_starts;
    size_t attribute_count;
};

static CUresult batch_check(const struct batch *batch) {
    if (!batch->to || !batch->from || !batch->sizes || !batch->count || !batch->attributes ||
        !batch->attribute_starts || !batch->attribute_count || batch->attribute_count > batch->count ||
        batch->attribute_starts[0])
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 1; i < batch->attribute_count; i++)
        if (batch->attribute_starts[i] <= batch->attribute_starts[i - 1] ||
            batch->attribute_starts[i] >= batch->count)
            return CUDA_ERROR_INVALID_VALUE;
    return CUDA_SUCCESS;
}

static CUresult copy_batch(struct CUctx_st *context, const struct batch *batch, size_t *failed,
                           struct sim_copy_mode mode) {
    if (failed)
        *failed = SIZE_MAX; /* the whole, unless one is to blame */
    CUresult result = batch_check(batch);
    for (size_t i = 0; i < batch->count && result == CUDA_SUCCESS; i++) {
        result = linear(CU_MEMORYTYPE_UNIFIED, batch->to[i], CU_MEMORYTYPE_UNIFIED, batch->from[i],
                        batch->sizes[i], mode, context);
        if (result != CUDA_SUCCESS && failed)
            *failed = i;
    }
    return result;
}

#define COPY_BATCH(fail)                                                                                     \
    const struct batch batch = {dsts, srcs, sizes, count, attrs, attrsIdxs, numAttrs};                       \
    return copy_batch(context, &batch, fail, mode);
ASYNC_CALL(cuMemcpyBatchAsync,
           (CUdeviceptr * dsts, CUdeviceptr *srcs, size_t *sizes, size_t count, CUmemcpyAttributes *attrs,
            size_t *attrsIdxs, size_t numAttrs, size_t *failIdx, CUstream hStream),
           COPY_BATCH(failIdx))
ASYNC_CALL(cuMemcpyBatchAsync_v2,
           (CUdeviceptr * dsts, CUdeviceptr *srcs, size_t *sizes, size_t count, CUmemcpyAttributes *attrs,
            size_t *attrsIdxs, size_t numAttrs, CUstream hStream),
           COPY_BATCH(NULL))
ASYNC_CALL(cuMemcpyWithAttributesAsync,
           (CUdeviceptr dst, CUdeviceptr src, size_t size, CUmemcpyAttributes *attr, CUstream hStream),
           if (!attr) return CUDA_ERROR_INVALID_VALUE;
           return linear(CU_MEMORYTYPE_UNIFIED, dst, CU_MEMORYTYPE_UNIFIED, src, size, mode, context);)

/* ---- several of three dimensions ---- */

static CUresult element_bytes(const CUmemcpy3DOperand *operand, uint64_t *bytes) {
    struct sim_array_view view;
    if (operand->type != CU_MEMCPY_OPERAND_TYPE_ARRAY)
        return operand->type == CU_MEMCPY_OPERAND_TYPE_POINTER ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    sim_memory_lock();
    bool known = sim_array_view(operand->op.array.array, &view);
    sim_memory_unlock();
    if (known)
        *bytes = view.element_bytes;
    return known ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

/* Extents and lengths are in elements: those of the array where one side is one, else bytes. */
static CUresult of_operands(const CUDA_MEMCPY3D_BATCH_OP *op, CUDA_MEMCPY3D *copy) {
    uint64_t element = 1;
    CUresult result = element_bytes(&op->src, &element);
    if (result == CUDA_SUCCESS)
        result = element_bytes(&op->dst, &element);
    if (result != CUDA_SUCCESS)
        return result;
    *copy = row(op->extent.width * element);
    copy->Height = op->extent.height;
    copy->Depth = op->extent.depth;
    if (!copy->WidthInBytes || !copy->Height || !copy->Depth)
        return CUDA_ERROR_INVALID_VALUE;
    if (op->src.type == CU_MEMCPY_OPERAND_TYPE_ARRAY) {
        from_array(copy, op->src.op.array.array, op->src.op.array.offset.x * element);
        copy->srcY = op->src.op.array.offset.y;
        copy->srcZ = op->src.op.array.offset.z;
    } else {
        from_address(copy, CU_MEMORYTYPE_UNIFIED, op->src.op.ptr.ptr);
        copy->srcPitch = op->src.op.ptr.rowLength * element;
        copy->srcHeight = op->src.op.ptr.layerHeight;
    }
    if (op->dst.type == CU_MEMCPY_OPERAND_TYPE_ARRAY) {
        to_array(copy, op->dst.op.array.array, op->dst.op.array.offset.x * element);
        copy->dstY = op->dst.op.array.offset.y;
        copy->dstZ = op->dst.op.array.offset.z;
    } else {
        to_address(copy, CU_MEMORYTYPE_UNIFIED, op->dst.op.ptr.ptr);
        copy->dstPitch = op->dst.op.ptr.rowLength * element;
        copy->dstHeight = op->dst.op.ptr.layerHeight;
    }
    return CUDA_SUCCESS;
}

static CUresult copy_operands(struct CUctx_st *context, const CUDA_MEMCPY3D_BATCH_OP *ops, size_t count,
                              unsigned long long flags, size_t *failed, struct sim_copy_mode mode) {
    CUDA_MEMCPY3D copy;
    if (failed)
        *failed = SIZE_MAX;
    CUresult result = ops && count && !flags ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count && result == CUDA_SUCCESS; i++) {
        result = of_operands(&ops[i], &copy);
        if (result == CUDA_SUCCESS)
            result = sim_copy(context, &copy, mode);
        if (result != CUDA_SUCCESS && failed)
            *failed = i;
    }
    return result;
}

ASYNC_CALL(cuMemcpy3DBatchAsync,
           (size_t numOps, CUDA_MEMCPY3D_BATCH_OP *opList, size_t *failIdx, unsigned long long flags,
            CUstream hStream),
           return copy_operands(context, opList, numOps, flags, failIdx, mode);)
ASYNC_CALL(cuMemcpy3DBatchAsync_v2,
           (size_t numOps, CUDA_MEMCPY3D_BATCH_OP *opList, unsigned long long flags, CUstream hStream),
           return copy_operands(context, opList, numOps, flags, NULL, mode);)
ASYNC_CALL(cuMemcpy3DWithAttributesAsync,
           (CUDA_MEMCPY3D_BATCH_OP * op, unsigned long long flags, CUstream hStream),
           return copy_operands(context, op, 1, flags, NULL, mode);)
