/*
 * What holds a stream up without being a kernel: waits for other work or for values in memory, host
 * functions, copies. The time between two measured launches is then not all kernels', and the meter is told
 * so. Fills are left out: the card's cores do them.
 *
 * One line for each function of the driver; an audit test compares them with the rules of native/hooks.
 */
#include "meter.h"

#define STALL(name, parameters, arguments, stream, ptsz)                                                     \
    VCUDA_EXPORT CUresult name parameters {                                                                  \
        if (vcuda_share())                                                                                   \
            vcuda_meter_interrupt(stream, ptsz);                                                             \
        return vcuda_real.name arguments;                                                                    \
    }

STALL(cuStreamWaitEvent, (CUstream hStream, CUevent hEvent, unsigned int Flags), (hStream, hEvent, Flags),
      hStream, false)
STALL(cuStreamWaitEvent_ptsz, (CUstream hStream, CUevent hEvent, unsigned int Flags),
      (hStream, hEvent, Flags), hStream, true)
STALL(cuStreamWaitValue32, (CUstream stream, CUdeviceptr addr, cuuint32_t value, unsigned int flags),
      (stream, addr, value, flags), stream, false)
STALL(cuStreamWaitValue32_ptsz, (CUstream stream, CUdeviceptr addr, cuuint32_t value, unsigned int flags),
      (stream, addr, value, flags), stream, true)
STALL(cuStreamWaitValue32_v2, (CUstream stream, CUdeviceptr addr, cuuint32_t value, unsigned int flags),
      (stream, addr, value, flags), stream, false)
STALL(cuStreamWaitValue32_v2_ptsz, (CUstream stream, CUdeviceptr addr, cuuint32_t value, unsigned int flags),
      (stream, addr, value, flags), stream, true)
STALL(cuStreamWaitValue64, (CUstream stream, CUdeviceptr addr, cuuint64_t value, unsigned int flags),
      (stream, addr, value, flags), stream, false)
STALL(cuStreamWaitValue64_ptsz, (CUstream stream, CUdeviceptr addr, cuuint64_t value, unsigned int flags),
      (stream, addr, value, flags), stream, true)
STALL(cuStreamWaitValue64_v2, (CUstream stream, CUdeviceptr addr, cuuint64_t value, unsigned int flags),
      (stream, addr, value, flags), stream, false)
STALL(cuStreamWaitValue64_v2_ptsz, (CUstream stream, CUdeviceptr addr, cuuint64_t value, unsigned int flags),
      (stream, addr, value, flags), stream, true)
STALL(cuStreamBatchMemOp,
      (CUstream stream, unsigned int count, CUstreamBatchMemOpParams *paramArray, unsigned int flags),
      (stream, count, paramArray, flags), stream, false)
STALL(cuStreamBatchMemOp_ptsz,
      (CUstream stream, unsigned int count, CUstreamBatchMemOpParams *paramArray, unsigned int flags),
      (stream, count, paramArray, flags), stream, true)
STALL(cuStreamBatchMemOp_v2,
      (CUstream stream, unsigned int count, CUstreamBatchMemOpParams *paramArray, unsigned int flags),
      (stream, count, paramArray, flags), stream, false)
STALL(cuStreamBatchMemOp_v2_ptsz,
      (CUstream stream, unsigned int count, CUstreamBatchMemOpParams *paramArray, unsigned int flags),
      (stream, count, paramArray, flags), stream, true)
STALL(cuWaitExternalSemaphoresAsync,
      (const CUexternalSemaphore *extSemArray, const CUDA_EXTERNAL_SEMAPHORE_WAIT_PARAMS *paramsArray,
       unsigned int numExtSems, CUstream stream),
      (extSemArray, paramsArray, numExtSems, stream), stream, false)
STALL(cuWaitExternalSemaphoresAsync_ptsz,
      (const CUexternalSemaphore *extSemArray, const CUDA_EXTERNAL_SEMAPHORE_WAIT_PARAMS *paramsArray,
       unsigned int numExtSems, CUstream stream),
      (extSemArray, paramsArray, numExtSems, stream), stream, true)
STALL(cuLaunchHostFunc, (CUstream hStream, CUhostFn fn, void *userData), (hStream, fn, userData), hStream,
      false)
STALL(cuLaunchHostFunc_ptsz, (CUstream hStream, CUhostFn fn, void *userData), (hStream, fn, userData),
      hStream, true)
STALL(cuLaunchHostFunc_v2, (CUstream hStream, CUhostFn fn, void *userData, unsigned int syncMode),
      (hStream, fn, userData, syncMode), hStream, false)
STALL(cuLaunchHostFunc_v2_ptsz, (CUstream hStream, CUhostFn fn, void *userData, unsigned int syncMode),
      (hStream, fn, userData, syncMode), hStream, true)
STALL(cuStreamAddCallback, (CUstream hStream, CUstreamCallback callback, void *userData, unsigned int flags),
      (hStream, callback, userData, flags), hStream, false)
STALL(cuStreamAddCallback_ptsz,
      (CUstream hStream, CUstreamCallback callback, void *userData, unsigned int flags),
      (hStream, callback, userData, flags), hStream, true)
STALL(cuMemcpyAsync, (CUdeviceptr dst, CUdeviceptr src, size_t ByteCount, CUstream hStream),
      (dst, src, ByteCount, hStream), hStream, false)
STALL(cuMemcpyAsync_ptsz, (CUdeviceptr dst, CUdeviceptr src, size_t ByteCount, CUstream hStream),
      (dst, src, ByteCount, hStream), hStream, true)
STALL(cuMemcpyPeerAsync,
      (CUdeviceptr dstDevice, CUcontext dstContext, CUdeviceptr srcDevice, CUcontext srcContext,
       size_t ByteCount, CUstream hStream),
      (dstDevice, dstContext, srcDevice, srcContext, ByteCount, hStream), hStream, false)
STALL(cuMemcpyPeerAsync_ptsz,
      (CUdeviceptr dstDevice, CUcontext dstContext, CUdeviceptr srcDevice, CUcontext srcContext,
       size_t ByteCount, CUstream hStream),
      (dstDevice, dstContext, srcDevice, srcContext, ByteCount, hStream), hStream, true)
STALL(cuMemcpyHtoDAsync,
      (CUdeviceptr_v1 dstDevice, const void *srcHost, unsigned int ByteCount, CUstream hStream),
      (dstDevice, srcHost, ByteCount, hStream), hStream, false)
STALL(cuMemcpyHtoDAsync_v2, (CUdeviceptr dstDevice, const void *srcHost, size_t ByteCount, CUstream hStream),
      (dstDevice, srcHost, ByteCount, hStream), hStream, false)
STALL(cuMemcpyHtoDAsync_v2_ptsz,
      (CUdeviceptr dstDevice, const void *srcHost, size_t ByteCount, CUstream hStream),
      (dstDevice, srcHost, ByteCount, hStream), hStream, true)
STALL(cuMemcpyDtoHAsync, (void *dstHost, CUdeviceptr_v1 srcDevice, unsigned int ByteCount, CUstream hStream),
      (dstHost, srcDevice, ByteCount, hStream), hStream, false)
STALL(cuMemcpyDtoHAsync_v2, (void *dstHost, CUdeviceptr srcDevice, size_t ByteCount, CUstream hStream),
      (dstHost, srcDevice, ByteCount, hStream), hStream, false)
STALL(cuMemcpyDtoHAsync_v2_ptsz, (void *dstHost, CUdeviceptr srcDevice, size_t ByteCount, CUstream hStream),
      (dstHost, srcDevice, ByteCount, hStream), hStream, true)
STALL(cuMemcpyDtoDAsync,
      (CUdeviceptr_v1 dstDevice, CUdeviceptr_v1 srcDevice, unsigned int ByteCount, CUstream hStream),
      (dstDevice, srcDevice, ByteCount, hStream), hStream, false)
STALL(cuMemcpyDtoDAsync_v2,
      (CUdeviceptr dstDevice, CUdeviceptr srcDevice, size_t ByteCount, CUstream hStream),
      (dstDevice, srcDevice, ByteCount, hStream), hStream, false)
STALL(cuMemcpyDtoDAsync_v2_ptsz,
      (CUdeviceptr dstDevice, CUdeviceptr srcDevice, size_t ByteCount, CUstream hStream),
      (dstDevice, srcDevice, ByteCount, hStream), hStream, true)
STALL(cuMemcpyHtoAAsync,
      (CUarray dstArray, unsigned int dstOffset, const void *srcHost, unsigned int ByteCount,
       CUstream hStream),
      (dstArray, dstOffset, srcHost, ByteCount, hStream), hStream, false)
STALL(cuMemcpyHtoAAsync_v2,
      (CUarray dstArray, size_t dstOffset, const void *srcHost, size_t ByteCount, CUstream hStream),
      (dstArray, dstOffset, srcHost, ByteCount, hStream), hStream, false)
STALL(cuMemcpyHtoAAsync_v2_ptsz,
      (CUarray dstArray, size_t dstOffset, const void *srcHost, size_t ByteCount, CUstream hStream),
      (dstArray, dstOffset, srcHost, ByteCount, hStream), hStream, true)
STALL(cuMemcpyAtoHAsync,
      (void *dstHost, CUarray srcArray, unsigned int srcOffset, unsigned int ByteCount, CUstream hStream),
      (dstHost, srcArray, srcOffset, ByteCount, hStream), hStream, false)
STALL(cuMemcpyAtoHAsync_v2,
      (void *dstHost, CUarray srcArray, size_t srcOffset, size_t ByteCount, CUstream hStream),
      (dstHost, srcArray, srcOffset, ByteCount, hStream), hStream, false)
STALL(cuMemcpyAtoHAsync_v2_ptsz,
      (void *dstHost, CUarray srcArray, size_t srcOffset, size_t ByteCount, CUstream hStream),
      (dstHost, srcArray, srcOffset, ByteCount, hStream), hStream, true)
STALL(cuMemcpy2DAsync, (const CUDA_MEMCPY2D_v1 *pCopy, CUstream hStream), (pCopy, hStream), hStream, false)
STALL(cuMemcpy2DAsync_v2, (const CUDA_MEMCPY2D *pCopy, CUstream hStream), (pCopy, hStream), hStream, false)
STALL(cuMemcpy2DAsync_v2_ptsz, (const CUDA_MEMCPY2D *pCopy, CUstream hStream), (pCopy, hStream), hStream,
      true)
STALL(cuMemcpy3DAsync, (const CUDA_MEMCPY3D_v1 *pCopy, CUstream hStream), (pCopy, hStream), hStream, false)
STALL(cuMemcpy3DAsync_v2, (const CUDA_MEMCPY3D *pCopy, CUstream hStream), (pCopy, hStream), hStream, false)
STALL(cuMemcpy3DAsync_v2_ptsz, (const CUDA_MEMCPY3D *pCopy, CUstream hStream), (pCopy, hStream), hStream,
      true)
STALL(cuMemcpy3DPeerAsync, (const CUDA_MEMCPY3D_PEER *pCopy, CUstream hStream), (pCopy, hStream), hStream,
      false)
STALL(cuMemcpy3DPeerAsync_ptsz, (const CUDA_MEMCPY3D_PEER *pCopy, CUstream hStream), (pCopy, hStream),
      hStream, true)
STALL(cuMemcpyBatchAsync,
      (CUdeviceptr * dsts, CUdeviceptr *srcs, size_t *sizes, size_t count, CUmemcpyAttributes *attrs,
       size_t *attrsIdxs, size_t numAttrs, size_t *failIdx, CUstream hStream),
      (dsts, srcs, sizes, count, attrs, attrsIdxs, numAttrs, failIdx, hStream), hStream, false)
STALL(cuMemcpyBatchAsync_ptsz,
      (CUdeviceptr * dsts, CUdeviceptr *srcs, size_t *sizes, size_t count, CUmemcpyAttributes *attrs,
       size_t *attrsIdxs, size_t numAttrs, size_t *failIdx, CUstream hStream),
      (dsts, srcs, sizes, count, attrs, attrsIdxs, numAttrs, failIdx, hStream), hStream, true)
STALL(cuMemcpyBatchAsync_v2,
      (CUdeviceptr * dsts, CUdeviceptr *srcs, size_t *sizes, size_t count, CUmemcpyAttributes *attrs,
       size_t *attrsIdxs, size_t numAttrs, CUstream hStream),
      (dsts, srcs, sizes, count, attrs, attrsIdxs, numAttrs, hStream), hStream, false)
STALL(cuMemcpyBatchAsync_v2_ptsz,
      (CUdeviceptr * dsts, CUdeviceptr *srcs, size_t *sizes, size_t count, CUmemcpyAttributes *attrs,
       size_t *attrsIdxs, size_t numAttrs, CUstream hStream),
      (dsts, srcs, sizes, count, attrs, attrsIdxs, numAttrs, hStream), hStream, true)
STALL(cuMemcpy3DBatchAsync,
      (size_t numOps, CUDA_MEMCPY3D_BATCH_OP *opList, size_t *failIdx, unsigned long long flags,
       CUstream hStream),
      (numOps, opList, failIdx, flags, hStream), hStream, false)
STALL(cuMemcpy3DBatchAsync_ptsz,
      (size_t numOps, CUDA_MEMCPY3D_BATCH_OP *opList, size_t *failIdx, unsigned long long flags,
       CUstream hStream),
      (numOps, opList, failIdx, flags, hStream), hStream, true)
STALL(cuMemcpy3DBatchAsync_v2,
      (size_t numOps, CUDA_MEMCPY3D_BATCH_OP *opList, unsigned long long flags, CUstream hStream),
      (numOps, opList, flags, hStream), hStream, false)
STALL(cuMemcpy3DBatchAsync_v2_ptsz,
      (size_t numOps, CUDA_MEMCPY3D_BATCH_OP *opList, unsigned long long flags, CUstream hStream),
      (numOps, opList, flags, hStream), hStream, true)
STALL(cuMemcpyWithAttributesAsync,
      (CUdeviceptr dst, CUdeviceptr src, size_t size, CUmemcpyAttributes *attr, CUstream hStream),
      (dst, src, size, attr, hStream), hStream, false)
STALL(cuMemcpyWithAttributesAsync_ptsz,
      (CUdeviceptr dst, CUdeviceptr src, size_t size, CUmemcpyAttributes *attr, CUstream hStream),
      (dst, src, size, attr, hStream), hStream, true)
STALL(cuMemcpy3DWithAttributesAsync,
      (CUDA_MEMCPY3D_BATCH_OP * op, unsigned long long flags, CUstream hStream), (op, flags, hStream),
      hStream, false)
STALL(cuMemcpy3DWithAttributesAsync_ptsz,
      (CUDA_MEMCPY3D_BATCH_OP * op, unsigned long long flags, CUstream hStream), (op, flags, hStream),
      hStream, true)
STALL(cuMemPrefetchAsync, (CUdeviceptr devPtr, size_t count, CUdevice dstDevice, CUstream hStream),
      (devPtr, count, dstDevice, hStream), hStream, false)
STALL(cuMemPrefetchAsync_ptsz, (CUdeviceptr devPtr, size_t count, CUdevice dstDevice, CUstream hStream),
      (devPtr, count, dstDevice, hStream), hStream, true)
STALL(cuMemPrefetchAsync_v2,
      (CUdeviceptr devPtr, size_t count, CUmemLocation location, unsigned int flags, CUstream hStream),
      (devPtr, count, location, flags, hStream), hStream, false)
STALL(cuMemPrefetchAsync_v2_ptsz,
      (CUdeviceptr devPtr, size_t count, CUmemLocation location, unsigned int flags, CUstream hStream),
      (devPtr, count, location, flags, hStream), hStream, true)
STALL(cuMemPrefetchBatchAsync,
      (CUdeviceptr * dptrs, size_t *sizes, size_t count, CUmemLocation *prefetchLocs, size_t *prefetchLocIdxs,
       size_t numPrefetchLocs, unsigned long long flags, CUstream hStream),
      (dptrs, sizes, count, prefetchLocs, prefetchLocIdxs, numPrefetchLocs, flags, hStream), hStream, false)
STALL(cuMemPrefetchBatchAsync_ptsz,
      (CUdeviceptr * dptrs, size_t *sizes, size_t count, CUmemLocation *prefetchLocs, size_t *prefetchLocIdxs,
       size_t numPrefetchLocs, unsigned long long flags, CUstream hStream),
      (dptrs, sizes, count, prefetchLocs, prefetchLocIdxs, numPrefetchLocs, flags, hStream), hStream, true)
STALL(cuMemDiscardAndPrefetchBatchAsync,
      (CUdeviceptr * dptrs, size_t *sizes, size_t count, CUmemLocation *prefetchLocs, size_t *prefetchLocIdxs,
       size_t numPrefetchLocs, unsigned long long flags, CUstream hStream),
      (dptrs, sizes, count, prefetchLocs, prefetchLocIdxs, numPrefetchLocs, flags, hStream), hStream, false)
STALL(cuMemDiscardAndPrefetchBatchAsync_ptsz,
      (CUdeviceptr * dptrs, size_t *sizes, size_t count, CUmemLocation *prefetchLocs, size_t *prefetchLocIdxs,
       size_t numPrefetchLocs, unsigned long long flags, CUstream hStream),
      (dptrs, sizes, count, prefetchLocs, prefetchLocIdxs, numPrefetchLocs, flags, hStream), hStream, true)
STALL(cuMemBatchDecompressAsync,
      (CUmemDecompressParams * paramsArray, size_t count, unsigned int flags, size_t *errorIndex,
       CUstream stream),
      (paramsArray, count, flags, errorIndex, stream), stream, false)
STALL(cuMemBatchDecompressAsync_ptsz,
      (CUmemDecompressParams * paramsArray, size_t count, unsigned int flags, size_t *errorIndex,
       CUstream stream),
      (paramsArray, count, flags, errorIndex, stream), stream, true)
STALL(cuFabricCpyBatchAsync,
      (size_t numOps, CUDA_FABRIC_COPY_BATCH_OP *opList, unsigned long long flags, CUstream hStream),
      (numOps, opList, flags, hStream), hStream, false)
STALL(cuFabricCpyBatchAsync_ptsz,
      (size_t numOps, CUDA_FABRIC_COPY_BATCH_OP *opList, unsigned long long flags, CUstream hStream),
      (numOps, opList, flags, hStream), hStream, true)
