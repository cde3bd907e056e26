/* cuInit: the door. Behind it every process of the container has its share, or has no CUDA. */
#include "share.h"

VCUDA_EXPORT CUresult cuInit(unsigned int Flags) {
    CUresult result = vcuda_share_prepare();
    if (result != CUDA_SUCCESS)
        return result;
    result = vcuda_real.cuInit(Flags);
    return result == CUDA_SUCCESS ? vcuda_share_attach() : result;
}
