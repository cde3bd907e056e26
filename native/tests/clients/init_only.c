/* Asks for CUDA, says what it was told, and goes on without it: `init_only [times]`. */
#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    int times = argc > 1 ? atoi(argv[1]) : 1;
    for (int i = 0; i < times; i++)
        printf("cuInit: %d\n", (int)cuInit(0));
    size_t free_bytes = 0, total_bytes = 0;
    CUdevice device;
    CUcontext context;
    if (cuDeviceGet(&device, 0) == CUDA_SUCCESS &&
        cuDevicePrimaryCtxRetain(&context, device) == CUDA_SUCCESS &&
        cuCtxSetCurrent(context) == CUDA_SUCCESS && cuMemGetInfo(&free_bytes, &total_bytes) == CUDA_SUCCESS)
        printf("total: %zu\n", total_bytes);
    printf("went on\n");
    return 7;
}
