/*
 * A client of the driver API in C, linked with libcuda.so.1 as any program of that kind is.
 *
 * It knows nothing of vcuda. Commands and answers are those of script.py: one command per line on standard
 * input, one JSON object per line on standard output, work in between.
 */
#include <cuda.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)
#define STAMP_WORDS 512
#define WORK_BYTES (4 * MIB)
#define MAX_BLOCKS 16384

/* Waits for a number of nanoseconds; on a real card too. */
static const char spin_ptx[] =
    ".version 6.0\n.target sm_50\n.address_size 64\n"
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

struct block {
    CUdeviceptr at;
    size_t bytes;
};

static struct block held[MAX_BLOCKS];
static int held_count;
static long worked, wrong;

static void must(CUresult result, const char *what) {
    const char *name = "unknown";
    if (result == CUDA_SUCCESS)
        return;
    cuGetErrorName(result, &name);
    fprintf(stderr, "driver_api: %s: %s\n", what, name);
    exit(1);
}

static size_t free_bytes(size_t *total) {
    size_t available = 0;
    must(cuMemGetInfo(&available, total), "cuMemGetInfo");
    return available;
}

/* 0 when the driver is out of memory; any other refusal ends the program. */
static int allocate(CUdeviceptr *at, size_t bytes) {
    CUresult result = cuMemAlloc(at, bytes);
    if (result == CUDA_ERROR_OUT_OF_MEMORY)
        return 0;
    must(result, "cuMemAlloc");
    return 1;
}

static void stamp(unsigned long long *words, long seed) {
    for (int i = 0; i < STAMP_WORDS; i++)
        words[i] = (unsigned long long)getpid() << 32 | (unsigned long long)seed;
}

static int same(CUdeviceptr at, const unsigned long long *want) {
    unsigned long long got[STAMP_WORDS];
    must(cuMemcpyDtoH(got, at, sizeof got), "cuMemcpyDtoH");
    return memcmp(got, want, sizeof got) == 0;
}

static void put(CUdeviceptr at, const unsigned long long *words) {
    must(cuMemcpyHtoD(at, words, STAMP_WORDS * sizeof *words), "cuMemcpyHtoD");
}

static CUdeviceptr tail(const struct block *block) {
    return block->at + block->bytes - STAMP_WORDS * sizeof(unsigned long long);
}

/* Whether memory could be had; data that does not come back is counted. */
static int work(CUfunction spin) {
    unsigned long long words[STAMP_WORDS], duration_ns = 200000;
    void *arguments[] = {&duration_ns};
    CUdeviceptr at;
    if (!allocate(&at, WORK_BYTES))
        return 0;
    stamp(words, worked);
    put(at, words);
    must(cuLaunchKernel(spin, 1, 1, 1, 1, 1, 1, 0, NULL, arguments, NULL), "cuLaunchKernel");
    must(cuCtxSynchronize(), "cuCtxSynchronize");
    wrong += !same(at, words);
    must(cuMemFree(at), "cuMemFree");
    worked++;
    return 1;
}

static int spoiled(void) {
    unsigned long long words[STAMP_WORDS];
    int count = 0;
    for (int i = 0; i < held_count; i++) {
        stamp(words, i);
        count += !same(held[i].at, words) || !same(tail(&held[i]), words);
    }
    return count;
}

static void fill(void) {
    static const size_t sizes[] = {256 * MIB, 32 * MIB, 2 * MIB};
    unsigned long long words[STAMP_WORDS];
    size_t sum = 0, total;
    for (int s = 0; s < 3; s++) {
        CUdeviceptr at;
        while (held_count < MAX_BLOCKS && allocate(&at, sizes[s])) {
            held[held_count] = (struct block){at, sizes[s]};
            stamp(words, held_count);
            put(at, words);
            put(tail(&held[held_count++]), words);
            sum += sizes[s];
        }
    }
    printf("{\"event\": \"filled\", \"held\": %zu, \"blocks\": %d, \"free\": %zu, \"spoiled\": %d, "
           "\"worked\": %ld, \"wrong\": %ld}\n",
           sum, held_count, free_bytes(&total), spoiled(), worked, wrong);
}

static void give_back(CUfunction spin) {
    size_t total;
    int again;
    wrong += spoiled();
    while (held_count > 0)
        must(cuMemFree(held[--held_count].at), "cuMemFree");
    again = work(spin);
    printf("{\"event\": \"freed\", \"again\": %s, \"free\": %zu, \"worked\": %ld, \"wrong\": %ld}\n",
           again ? "true" : "false", free_bytes(&total), worked, wrong);
}

/* Works until a command is there. Returns 0 at the end of standard input. */
static int next_command(CUfunction spin, char *line, size_t size) {
    size_t length = 0;
    struct pollfd input = {.fd = 0, .events = POLLIN};
    for (;;) {
        if (poll(&input, 1, 50) == 0) {
            if (held_count == 0) /* else its share is full: it waits */
                work(spin);
            continue;
        }
        if (length + 1 == size || read(0, line + length, 1) != 1)
            return 0;
        if (line[length] == '\n') {
            line[length] = 0;
            return 1;
        }
        length++;
    }
}

int main(void) {
    CUdevice device;
    CUcontext context;
    CUmodule module;
    CUfunction spin;
    size_t available, total;
    int version = 0;
    char line[64];

    setvbuf(stdout, NULL, _IOLBF, 0);
    must(cuInit(0), "cuInit");
    must(cuDriverGetVersion(&version), "cuDriverGetVersion");
    must(cuDeviceGet(&device, 0), "cuDeviceGet");
    must(cuDevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain");
    must(cuCtxSetCurrent(context), "cuCtxSetCurrent");
    must(cuModuleLoadData(&module, spin_ptx), "cuModuleLoadData");
    must(cuModuleGetFunction(&spin, module, "spin"), "cuModuleGetFunction");
    available = free_bytes(&total);
    printf("{\"event\": \"ready\", \"client\": \"C, driver API %d.%d\", \"pid\": %d, \"total\": %zu, \"free\": %zu}\n",
           version / 1000, version % 1000 / 10, (int)getpid(), total, available);
    while (next_command(spin, line, sizeof line) && strcmp(line, "end") != 0) {
        if (strcmp(line, "tell") == 0)
            printf("{\"event\": \"told\", \"free\": %zu, \"worked\": %ld, \"wrong\": %ld}\n", free_bytes(&total),
                   worked, wrong);
        else if (strcmp(line, "fill") == 0)
            fill();
        else if (strcmp(line, "free") == 0)
            give_back(spin);
    }
    printf("{\"event\": \"ended\", \"worked\": %ld, \"wrong\": %ld}\n", worked, wrong);
    return 0;
}
