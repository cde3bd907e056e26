/*
 * Holds memory of card 0 until its standard input closes: `hold MIB [busy]`. When it has it, it prints what
 * it holds on one line; with `busy` it keeps the card at work without a gap from then on: kernels of 5 ms,
 * launched for as long as the driver takes more.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client.h"

static const char spin_ptx[] = ".version 6.0\n.target sm_50\n.address_size 64\n"
                               ".visible .entry spin(.param .u64 duration) {\n"
                               "  .reg .u64 %r<5>; .reg .pred %p;\n"
                               "  ld.param.u64 %r1, [duration];\n"
                               "  mov.u64 %r2, %globaltimer;\n"
                               "again:\n"
                               "  mov.u64 %r3, %globaltimer;\n"
                               "  sub.u64 %r4, %r3, %r2;\n"
                               "  setp.lt.u64 %p, %r4, %r1;\n"
                               "  @%p bra again;\n"
                               "  ret;\n}\n";

static int input_closed(int timeout_ms) {
    struct pollfd input = {.fd = 0, .events = POLLIN};
    char byte;
    return poll(&input, 1, timeout_ms) == 1 && read(0, &byte, 1) <= 0;
}

static void work_until_closed(void) {
    CUmodule module;
    CUfunction spin;
    unsigned long long duration = 5000000;
    void *arguments[] = {&duration};
    must(cuModuleLoadData(&module, spin_ptx), "cuModuleLoadData");
    must(cuModuleGetFunction(&spin, module, "spin"), "cuModuleGetFunction");
    while (!input_closed(0))
        must(cuLaunchKernel(spin, 1, 1, 1, 1, 1, 1, 0, NULL, arguments, NULL), "cuLaunchKernel");
}

int main(int argc, char **argv) {
    size_t bytes = (argc > 1 ? strtoull(argv[1], NULL, 10) : 0) << 20;
    CUdevice device;
    CUcontext context;
    CUdeviceptr memory = 0;
    must(cuInit(0), "cuInit");
    must(cuDeviceGet(&device, 0), "cuDeviceGet");
    must(cuDevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain");
    must(cuCtxSetCurrent(context), "cuCtxSetCurrent");
    if (bytes)
        must(cuMemAlloc(&memory, bytes), "cuMemAlloc");
    printf("holding %zu\n", bytes);
    fflush(stdout);
    if (argc > 2 && !strcmp(argv[2], "busy"))
        work_until_closed();
    else
        while (!input_closed(-1))
            continue;
    return 0;
}
