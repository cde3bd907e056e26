/*
 * Allocates and frees the same size again and again: `churn BYTES ROUNDS [async]`. A small size is held once
 * throughout, so that its page is paid for. Says that it is ready, waits for a letter, and prints how often
 * it was refused; then it waits for the end of its standard input.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"

#define SMALL ((size_t)1 << 20)

int main(int argc, char **argv) {
    CUdevice device;
    CUcontext context;
    CUdeviceptr kept, one;
    if (argc < 3)
        return 2;
    size_t bytes = (size_t)atoll(argv[1]);
    long rounds = atol(argv[2]), refused = 0;
    int async = argc > 3 && strcmp(argv[3], "async") == 0;
    must(cuInit(0), "cuInit");
    must(cuDeviceGet(&device, 0), "cuDeviceGet");
    must(cuDevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain");
    must(cuCtxSetCurrent(context), "cuCtxSetCurrent");
    if (async)
        must(cuMemAllocAsync(&kept, bytes, 0), "cuMemAllocAsync");
    else if (bytes < SMALL)
        must(cuMemAlloc(&kept, bytes), "cuMemAlloc");
    printf("ready\n");
    fflush(stdout);
    if (getchar() == EOF)
        return 0;
    for (long round = 0; round < rounds; round++) {
        CUresult result = async ? cuMemAllocAsync(&one, bytes, 0) : cuMemAlloc(&one, bytes);
        if (result == CUDA_ERROR_OUT_OF_MEMORY) {
            refused++;
            continue;
        }
        must(result, "an allocation");
        must(async ? cuMemFreeAsync(one, 0) : cuMemFree(one), "a free");
    }
    printf("refused %ld\n", refused);
    fflush(stdout);
    while (getchar() != EOF)
        ;
    return 0;
}
