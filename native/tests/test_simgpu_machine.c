/*
 * The simulated machine: who sees which cards, how processes come and go, and what they leave behind.
 *
 * build: native/simgpu/machine.c native/simgpu/models.c native/simgpu/timeline.c
 * build: build/native/sim/libcuda.so.1
 */
#include "simgpu.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <time.h>

static void hold(void *data) {
    CUcontext context;
    CUdeviceptr at;
    OK(cuInit(0));
    OK(cuCtxCreate_v2(&context, 0, 0));
    OK(cuMemAlloc_v2(&at, *(uint64_t *)data));
    *(uint64_t *)data = 0;
    pause();
}

/* Memory that children write to. */
static uint64_t *shared_words(size_t count) {
    void *at = mmap(NULL, count * 8, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    return at;
}

static void wait_for_zero(const uint64_t *word) {
    while (__atomic_load_n(word, __ATOMIC_ACQUIRE))
        usleep(1000);
}

PROMISE(a_forked_child_has_no_cuda_and_its_parent_keeps_it) {
    CUdeviceptr at;
    on_v100();
    pid_t child = fork();
    if (child == 0) {
        int count;
        CHECK_EQUAL(cuInit(0), CUDA_ERROR_NOT_INITIALIZED);
        CHECK_EQUAL(cuDeviceGetCount(&count), CUDA_ERROR_NOT_INITIALIZED);
        CHECK_EQUAL(cuMemAlloc_v2(&at, 1), CUDA_ERROR_NOT_INITIALIZED);
        exit(0);
    }
    CHECK(ended_well(child));
    OK(cuMemAlloc_v2(&at, GIB));
    CHECK_EQUAL(used_of(0), V100_CONTEXT + GIB);
}

static void allocate_twelve(void *data) {
    CUcontext context;
    CUdeviceptr at;
    (void)data;
    OK(cuInit(0));
    OK(cuCtxCreate_v2(&context, 0, 0));
    OK(cuMemAlloc_v2(&at, 12 * GIB));
}

PROMISE(memory_of_the_dead_is_there_for_who_needs_it) {
    uint64_t *bytes = shared_words(1);
    *bytes = 12 * GIB;
    fresh_machine("V100-SXM2-16GB");
    pid_t holder = start(hold, bytes);
    wait_for_zero(bytes);
    CHECK_EQUAL(used_of(0), V100_CONTEXT + 12 * GIB);
    kill_and_wait(holder);
    CHECK(ended_well(start(allocate_twelve, NULL))); /* nobody has looked at the machine in between */
    CHECK_EQUAL(used_of(0), 0);
    CHECK_EQUAL(card_at(0)->peak_bytes, V100_CONTEXT + 12 * GIB);
}

PROMISE(a_child_of_a_process_does_not_keep_its_memory) {
    uint64_t *words = shared_words(2);
    words[0] = words[1] = 1;
    fresh_machine("V100-SXM2-16GB");
    pid_t parent = fork();
    if (parent == 0) {
        CUcontext context;
        CUdeviceptr at;
        OK(cuInit(0));
        OK(cuCtxCreate_v2(&context, 0, 0));
        OK(cuMemAlloc_v2(&at, GIB));
        pid_t child = fork();
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, 0);
            words[1] = (uint64_t)getpid();
            __atomic_store_n(&words[0], 0, __ATOMIC_RELEASE);
            pause();
        }
        pause();
    }
    wait_for_zero(&words[0]);
    CHECK_EQUAL(used_of(0), V100_CONTEXT + GIB);
    kill_and_wait(parent);
    CHECK_EQUAL(used_of(0), 0);
    kill((pid_t)words[1], SIGKILL);
}

static void take_turns(void *data) {
    uint64_t *failures = data;
    CUcontext context;
    CUdeviceptr at[16];
    uint64_t seed = (uint64_t)getpid() * 0x9E3779B97F4A7C15U;
    if (cuInit(0) != CUDA_SUCCESS || cuCtxCreate_v2(&context, 0, 0) != CUDA_SUCCESS) {
        __atomic_add_fetch(failures, 1, __ATOMIC_RELAXED);
        return;
    }
    for (int round = 0; round < 50; round++) {
        for (int i = 0; i < 16; i++) {
            seed = seed * 6364136223846793005U + 1442695040888963407U;
            if (cuMemAlloc_v2(&at[i], (seed >> 40) + 1) != CUDA_SUCCESS ||
                cuMemsetD8_v2(at[i], 1, 1) != CUDA_SUCCESS)
                __atomic_add_fetch(failures, 1, __ATOMIC_RELAXED);
        }
        for (int i = 0; i < 16; i++)
            if (cuMemFree_v2(at[i]) != CUDA_SUCCESS)
                __atomic_add_fetch(failures, 1, __ATOMIC_RELAXED);
    }
}

PROMISE(many_processes_share_one_card_and_its_count_is_right) {
    uint64_t *failures = shared_words(1);
    pid_t processes[20];
    fresh_machine("H200");
    for (int i = 0; i < 20; i++)
        processes[i] = start(take_turns, failures);
    for (int i = 0; i < 20; i++)
        CHECK(ended_well(processes[i]));
    CHECK_EQUAL(*failures, 0);
    CHECK_EQUAL(used_of(0), 0);
}

/* Kills at random instants: of processes that are in the middle of the machine's lists as often as not. */
PROMISE(a_kill_at_any_instant_leaves_the_machine_whole) {
    uint64_t *failures = shared_words(1);
    pid_t processes[8];
    fresh_machine("H200");
    for (int i = 0; i < 8; i++)
        processes[i] = start(take_turns, failures);
    for (int kills = 0; kills < 150; kills++) {
        int victim = kills % 8;
        usleep((useconds_t)(kills * 7919 % 3000));
        kill_and_wait(processes[victim]);
        processes[victim] = start(take_turns, failures);
        if (kills % 10 == 0)
            used_of(0); /* its count and the sum of what each holds are the same */
    }
    for (int i = 0; i < 8; i++)
        kill_and_wait(processes[i]);
    CHECK_EQUAL(*failures, 0);
    CHECK_EQUAL(used_of(0), 0);
}

static void init_only(void *data) {
    uint64_t *words = data;
    while (__atomic_load_n(&words[0], __ATOMIC_ACQUIRE))
        sched_yield();
    if (cuInit(0) == CUDA_SUCCESS)
        __atomic_add_fetch(&words[1], 1, __ATOMIC_RELAXED);
    __atomic_add_fetch(&words[2], 1, __ATOMIC_RELAXED);
    pause();
}

PROMISE(two_hundred_processes_join_at_once) {
    uint64_t *words = shared_words(3);
    pid_t processes[200];
    fresh_machine("V100-SXM2-16GB");
    words[0] = 1;
    for (int i = 0; i < 200; i++)
        processes[i] = start(init_only, words);
    __atomic_store_n(&words[0], 0, __ATOMIC_RELEASE);
    while (__atomic_load_n(&words[2], __ATOMIC_ACQUIRE) < 200)
        usleep(1000);
    CHECK_EQUAL(words[1], 200);
    uint32_t numbers = 0;
    card_at(0);
    struct sim_machine *machine = sim_machine();
    for (uint32_t i = 0; i < SIM_PROCESSES; i++)
        numbers += machine->processes[i].in_use;
    CHECK_EQUAL(numbers, 200);
    for (int i = 0; i < 200; i++)
        kill_and_wait(processes[i]);
    sim_machine_lock();
    CHECK_EQUAL(sim_machine_reap(), 200);
    sim_machine_unlock();
}

PROMISE(visible_devices_are_as_documented) {
    static const struct {
        const char *visible;
        int count;
        const char *first;
    } cases[] = {
        {"0,1,2", 3, "Tesla V100-SXM2-16GB"},
        {"2,0", 2, "NVIDIA H100 80GB HBM3"},
        {"1,7,0", 1, "Tesla T4"},
        {"1, 0", 2, "Tesla T4"},
        {"0,0", 0, NULL},
        {"-1", 0, NULL},
        {"", 0, NULL},
        {"GPU-zz", 0, NULL},
    };
    fresh_machine("V100-16GB,T4,h100");
    card_at(0);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        pid_t child = fork();
        if (child == 0) {
            char name[100];
            int count;
            setenv("CUDA_VISIBLE_DEVICES", cases[i].visible, 1);
            CHECK_EQUAL(cuInit(0), cases[i].count ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE);
            if (cases[i].count) {
                OK(cuDeviceGetCount(&count));
                CHECK_EQUAL(count, cases[i].count);
                OK(cuDeviceGetName(name, sizeof name, 0));
                CHECK(strcmp(name, cases[i].first) == 0);
            }
            exit(0);
        }
        CHECK(ended_well(child));
    }
    char prefix[16];
    const unsigned char *uuid = card_at(1)->uuid;
    snprintf(prefix, sizeof prefix, "GPU-%02x%02x%02x", uuid[0], uuid[1], uuid[2]);
    setenv("CUDA_VISIBLE_DEVICES", prefix, 1);
    OK(cuInit(0));
    CUuuid found;
    OK(cuDeviceGetUuid_v2(&found, 0));
    CHECK(memcmp(found.bytes, uuid, 16) == 0);
}

PROMISE(a_damaged_machine_is_an_error_and_no_crash) {
    char path[600];
    fresh_machine("V100-SXM2-16GB");
    const char *why;
    pid_t child = fork();
    if (child == 0)
        exit(sim_machine_open(&why) ? 0 : 1);
    CHECK(ended_well(child));
    snprintf(path, sizeof path, "%s/machine", getenv("SIMGPU_DIR"));
    struct stat status;
    CHECK(stat(path, &status) == 0);
    CHECK_EQUAL(status.st_mode & 0777, 0600);
    CHECK(status.st_blocks * 512 < 1000000); /* sparse */
    CHECK(freopen("/dev/null", "w", stderr));
    for (int damage = 0; damage < 3; damage++) {
        int fd = open(path, O_RDWR);
        CHECK(fd >= 0);
        if (damage == 0)
            CHECK_EQUAL(pwrite(fd, "garbage!", 8, 0), 8);
        else
            CHECK_EQUAL(ftruncate(fd, damage == 1 ? 1000 : 0), 0);
        close(fd);
        CHECK_EQUAL(cuInit(0), CUDA_ERROR_SYSTEM_NOT_READY);
    }
    unlink(path);
    setenv("SIMGPU_CARDS", "V100-SXM2-16GB,Z9000", 1);
    CHECK_EQUAL(cuInit(0), CUDA_ERROR_SYSTEM_NOT_READY);
    setenv("SIMGPU_CARDS", "a100", 1);
    OK(cuInit(0));
}

PROMISE(faults_come_when_they_are_asked_for) {
    CUcontext context;
    CUdeviceptr at;
    struct timespec before, after;
    setenv("SIMGPU_FAULTS",
           "cuMemAlloc_v2:oom@2,cuMemFree*:slow=30ms,cuCtxSynchronize:700,cuMemAllocHost_v2:ecc@1+", 1);
    fresh_machine("V100-SXM2-16GB");
    OK(cuInit(0));
    OK(cuCtxCreate_v2(&context, 0, 0));
    OK(cuMemAlloc_v2(&at, 100));
    CHECK_EQUAL(cuMemAlloc_v2(&at, 100), CUDA_ERROR_OUT_OF_MEMORY);
    OK(cuMemAlloc_v2(&at, 100));
    clock_gettime(CLOCK_MONOTONIC, &before);
    OK(cuMemFree_v2(at));
    clock_gettime(CLOCK_MONOTONIC, &after);
    CHECK((after.tv_sec - before.tv_sec) * 1000000000 + after.tv_nsec - before.tv_nsec >= 30000000);
    CHECK_EQUAL(cuCtxSynchronize(), CUDA_ERROR_ILLEGAL_ADDRESS);
    void *host;
    CHECK_EQUAL(cuMemAllocHost_v2(&host, 1), CUDA_ERROR_ECC_UNCORRECTABLE);
    CHECK_EQUAL(cuMemAllocHost_v2(&host, 1), CUDA_ERROR_ECC_UNCORRECTABLE);
}

PROMISE(a_lost_card_answers_nothing_more) {
    CUcontext context;
    setenv("SIMGPU_FAULTS", "card1:lost", 1);
    fresh_machine("T4,T4");
    OK(cuInit(0));
    OK(cuCtxCreate_v2(&context, 0, 0));
    CHECK_EQUAL(cuCtxCreate_v2(&context, 0, 1), CUDA_ERROR_UNKNOWN);
}

PROMISE(devices_are_what_the_table_says) {
    int value;
    char bus[20];
    size_t bytes;
    CUdevice device;
    fresh_machine("V100-SXM2-16GB,A100-SXM4-80GB");
    OK(cuInit(0));
    OK(cuDeviceGet(&device, 1));
    OK(cuDeviceGetAttribute(&value, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device));
    CHECK_EQUAL(value, 108);
    OK(cuDeviceGetAttribute(&value, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device));
    CHECK_EQUAL(value, 8);
    OK(cuDeviceGetAttribute(&value, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, device));
    CHECK_EQUAL(value, 163 * 1024);
    OK(cuDeviceTotalMem_v2(&bytes, 0));
    CHECK_EQUAL(bytes, V100_TOTAL - V100_RESERVED);
    OK(cuDeviceGetPCIBusId(bus, sizeof bus, device));
    CHECK(strcmp(bus, "0000:02:00.0") == 0);
    OK(cuDeviceGetByPCIBusId(&device, "0000:01:00.0"));
    CHECK_EQUAL(device, 0);
    OK(cuDeviceCanAccessPeer(&value, 0, 1));
    CHECK_EQUAL(value, 1);
    CHECK_EQUAL(cuDeviceGet(&device, 2), CUDA_ERROR_INVALID_DEVICE);
    CHECK_EQUAL(cuDeviceGetAttribute(&value, (CUdevice_attribute)9999, 0), CUDA_ERROR_INVALID_VALUE);
    for (int attribute = 1; attribute <= 161; attribute++)
        OK(cuDeviceGetAttribute(&value, (CUdevice_attribute)attribute, 0));
}

int main(int argc, char **argv) {
    return keep_promises(argc, argv);
}
