/* What the workload launches: kernels that spin on the card's clock, of a wanted length whatever their grid.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cores.h"

#define THREADS 256    /* of a block */
#define LEAST_NS 20000 /* of the heavy tail */
#define MOST_NS 100000000
#define PER_MODULE 500 /* functions */
#define FUNCTIONS 200000

/* Waits for its parameter's nanoseconds. */
#define SPIN_BODY                                                                                            \
    "(.param .u64 duration) {\n"                                                                             \
    "  .reg .u64 %now, %end;\n  .reg .pred %more;\n"                                                         \
    "  ld.param.u64 %end, [duration];\n  mov.u64 %now, %globaltimer;\n"                                      \
    "  add.u64 %end, %end, %now;\n"                                                                          \
    "again:\n  mov.u64 %now, %globaltimer;\n  setp.lt.u64 %more, %now, %end;\n"                              \
    "  @%more bra again;\n  ret;\n}\n"
static const char head[] = ".version 6.0\n.target sm_50\n.address_size 64\n";

struct driver driver;

static CUcontext context;
static CUfunction *functions;
static unsigned int resident; /* blocks that the card holds at once */

uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

void sleep_until(uint64_t at_ns) {
    struct timespec at = {(time_t)(at_ns / 1000000000), (long)(at_ns % 1000000000)};
    while (!stopped && clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR)
        continue;
}

void must(CUresult result, const char *what) {
    const char *name = "unknown";
    if (result == CUDA_SUCCESS)
        return;
    driver.cuGetErrorName(result, &name);
    fprintf(stderr, "cores: %s: %s\n", what, name);
    exit(1);
}

/* ---- setting up ---- */

static void load(uint32_t first, uint32_t count) {
    size_t room = sizeof head + count * (sizeof SPIN_BODY + 64), at = 0;
    char *text = malloc(room), name[32];
    CUmodule module;
    if (!text)
        exit(1);
    at = (size_t)snprintf(text, room, "%s", head);
    for (uint32_t i = first; i < first + count; i++)
        at += (size_t)snprintf(text + at, room - at, ".visible .entry spin%u%s", i, SPIN_BODY);
    MUST(driver.cuModuleLoadData(&module, text));
    free(text);
    for (uint32_t i = first; i < first + count; i++) {
        snprintf(name, sizeof name, "spin%u", i);
        MUST(driver.cuModuleGetFunction(&functions[i], module, name));
    }
}

CUcontext work_context(void) {
    return context;
}

#if defined(__x86_64__)
__asm__(".symver dlopen, dlopen@GLIBC_2.2.5");
__asm__(".symver dlsym, dlsym@GLIBC_2.2.5");
#endif
static void find_driver(void) {
    static const struct {
        const char *name;
        size_t offset;
    } functions_of[] = {
#define PLACE(name) {#name, offsetof(struct driver, name)},
        CORES_DRIVER(PLACE)};
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    for (size_t i = 0; library && i < sizeof functions_of / sizeof *functions_of; i++) {
        void **to = (void **)((char *)&driver + functions_of[i].offset);
        *to = dlsym(library, functions_of[i].name);
        if (!*to && strcmp(functions_of[i].name, "cuLaunchKernelEx") != 0) /* younger than the others */
            library = NULL;
    }
    if (library)
        return;
    fprintf(stderr, "cores: libcuda.so.1 is not there, or too old\n");
    exit(1);
}

void work_set_up(void) {
    CUdevice device;
    int processors, each;
    find_driver();
    MUST(driver.cuInit(0));
    MUST(driver.cuDeviceGet(&device, 0));
    MUST(driver.cuDevicePrimaryCtxRetain(&context, device));
    MUST(driver.cuCtxSetCurrent(context));
    if (options.functions > FUNCTIONS || !(functions = calloc(options.functions, sizeof *functions)))
        exit(1);
    for (uint32_t at = 0; at < options.functions; at += PER_MODULE)
        load(at, options.functions - at < PER_MODULE ? options.functions - at : PER_MODULE);
    MUST(driver.cuDeviceGetAttribute(&processors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device));
    MUST(driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(&each, functions[0], THREADS, 0));
    resident = (unsigned int)(processors * each);
    if (strcmp(options.mode, "cooperative") == 0 && options.blocks > resident)
        options.blocks = resident; /* they must all be there at once */
    account->blocks = options.blocks;
}

/* ---- what comes next ---- */

static uint64_t draw(uint64_t *state) {
    *state = *state * 6364136223846793005U + 1442695040888963407U;
    return *state >> 32;
}

/* Of every factor of ten in length the kernels together take the same time: P(length > x) = LEAST / x. */
static uint64_t from_heavy_tail(uint64_t *turn) {
    uint64_t length = (uint64_t)((double)LEAST_NS * 4294967296.0 / ((double)draw(turn) + 1));
    return length < MOST_NS ? length : MOST_NS;
}

void work_next(struct kernel *kernel, uint64_t *turn) {
    static uint32_t at;
    uint64_t wanted = options.mix           ? from_heavy_tail(turn)
                      : options.lengths > 1 ? options.lengths_ns[draw(turn) % options.lengths]
                                            : options.lengths_ns[0];
    /* Blocks that do not fit at once come in waves, one after the other. */
    uint64_t waves = (options.blocks + resident - 1) / resident;
    kernel->function =
        functions[options.functions > 1 ? __atomic_fetch_add(&at, 1, __ATOMIC_RELAXED) % options.functions
                                        : 0];
    kernel->blocks = options.blocks;
    kernel->threads = THREADS;
    kernel->spin_ns = wanted / waves ? wanted / waves : 1;
    kernel->length_ns = kernel->spin_ns * waves;
    kernel->parameters[0] = &kernel->spin_ns;
}

void work_launched(uint64_t kernels, uint64_t length_ns) {
    __atomic_fetch_add(&account->launched, 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&account->kernels, kernels, __ATOMIC_RELAXED);
    __atomic_fetch_add(&account->work_ns, length_ns, __ATOMIC_RELAXED);
    uint64_t longest = __atomic_load_n(&account->longest_ns, __ATOMIC_RELAXED);
    while (longest < length_ns && !__atomic_compare_exchange_n(&account->longest_ns, &longest, length_ns,
                                                               true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        continue;
}
