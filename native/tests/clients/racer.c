/*
 * Allocates and frees at random: `racer SEED MOST_MIB ROUNDS` holds at most MOST_MIB at any time. With ROUNDS
 * it says that it is ready, waits for a letter, and ends after so many; with 0 it goes on until its standard
 * input ends. The letter q makes it stop between two calls and print whether it has a context and what it
 * holds in bytes; any other letter makes it go on. Last it prints how often it was refused.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "client.h"

#define MIB ((size_t)1 << 20)
#define BLOCKS 32
#define LARGEST_PAGES 8

static struct {
    CUdeviceptr at;
    size_t bytes;
} held[BLOCKS];
static int has_context;
static size_t sum;
static long refused;

/* Whether to go on. */
static int obey(void) {
    struct pollfd input = {.fd = 0, .events = POLLIN};
    char letter = 0;
    if (poll(&input, 1, 0) == 0)
        return 1;
    if (read(0, &letter, 1) != 1)
        return 0;
    if (letter == 'q') {
        printf("%d %zu\n", has_context, sum);
        fflush(stdout);
        return read(0, &letter, 1) == 1;
    }
    return 1;
}

int main(int argc, char **argv) {
    CUdevice device;
    CUcontext context;
    if (argc < 4)
        return 2;
    unsigned int seed = (unsigned int)atoi(argv[1]);
    size_t most = (size_t)atoi(argv[2]) * MIB;
    long rounds = atol(argv[3]);
    must(cuInit(0), "cuInit");
    must(cuDeviceGet(&device, 0), "cuDeviceGet");
    CUresult retained;
    while ((retained = cuDevicePrimaryCtxRetain(&context, device)) == CUDA_ERROR_OUT_OF_MEMORY && obey())
        usleep(1000); /* the others have it all */
    must(retained, "cuDevicePrimaryCtxRetain");
    must(cuCtxSetCurrent(context), "cuCtxSetCurrent");
    has_context = 1;
    if (rounds) { /* all at once */
        printf("ready\n");
        fflush(stdout);
        if (getchar() == EOF)
            return 0;
    }
    for (long round = 0; (rounds == 0 || round < rounds) && obey(); round++) {
        int slot = rand_r(&seed) % BLOCKS;
        if (held[slot].bytes) {
            must(cuMemFree(held[slot].at), "cuMemFree");
            sum -= held[slot].bytes;
            held[slot].bytes = 0;
            continue;
        }
        size_t bytes = (size_t)(1 + rand_r(&seed) % LARGEST_PAGES) * 2 * MIB;
        if (sum + bytes > most)
            continue;
        CUresult result = cuMemAlloc(&held[slot].at, bytes);
        if (result == CUDA_ERROR_OUT_OF_MEMORY) {
            refused++;
            continue;
        }
        must(result, "cuMemAlloc");
        held[slot].bytes = bytes;
        sum += bytes;
    }
    /* A process that ends with memory gives it back at two instants, to the ledger and to the driver: not
     * here. */
    for (int slot = 0; slot < BLOCKS; slot++)
        if (held[slot].bytes)
            must(cuMemFree(held[slot].at), "cuMemFree");
    must(cuDevicePrimaryCtxRelease(device), "cuDevicePrimaryCtxRelease");
    printf("refused %ld\n", refused);
    return 0;
}
