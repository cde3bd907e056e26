/*
 * Virtual memory management, pools and IPC of the simulated driver: what is charged, when it ends, and what
 * other processes see.
 *
 * build: native/simgpu/machine.c native/simgpu/models.c native/simgpu/timeline.c
 * build: build/native/sim/libcuda.so.1
 */
#include "simgpu.h"

#include <fcntl.h>
#include <sys/socket.h>

static CUmemAllocationProp properties(bool exportable) {
    CUmemAllocationProp made = {.type = CU_MEM_ALLOCATION_TYPE_PINNED};
    made.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    made.requestedHandleTypes =
        exportable ? CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR : CU_MEM_HANDLE_TYPE_NONE;
    return made;
}

static CUmemAccessDesc access_of(CUmemAccess_flags flags) {
    CUmemAccessDesc made = {.flags = flags};
    made.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    return made;
}

static CUmemGenericAllocationHandle physical(size_t bytes, bool exportable) {
    CUmemGenericAllocationHandle handle;
    CUmemAllocationProp wanted = properties(exportable);
    OK(cuMemCreate(&handle, bytes, &wanted, 0));
    return handle;
}

static CUdeviceptr mapped(CUmemGenericAllocationHandle handle, size_t bytes) {
    CUdeviceptr at;
    CUmemAccessDesc access = access_of(CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
    OK(cuMemAddressReserve(&at, bytes, 0, 0, 0));
    OK(cuMemMap(at, bytes, 0, handle, 0));
    OK(cuMemSetAccess(at, bytes, &access, 1));
    return at;
}

static unsigned int word_at(CUdeviceptr at) {
    unsigned int word;
    OK(cuMemcpyDtoH_v2(&word, at, sizeof word));
    return word;
}

PROMISE(physical_memory_ends_with_its_last_reference_and_mapping) {
    on_v100();
    CUmemGenericAllocationHandle handle = physical(4 * MIB, false), again;
    CHECK_EQUAL(data_bytes(), 4 * MIB);
    CUdeviceptr at = mapped(handle, 4 * MIB);
    OK(cuMemsetD32_v2(at, 77, 100));
    OK(cuMemRelease(handle));
    CHECK_EQUAL(cuMemRelease(handle), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(data_bytes(), 4 * MIB);
    OK(cuMemRetainAllocationHandle(&again, (void *)(uintptr_t)(at + 100)));
    OK(cuMemUnmap(at, 4 * MIB));
    CHECK_EQUAL(data_bytes(), 4 * MIB);
    OK(cuMemMap(at, 2 * MIB, 0, again, 0));
    CHECK_EQUAL(cuMemsetD32_v2(at, 1, 1), CUDA_ERROR_INVALID_VALUE); /* no access has been set */
    CUmemAccessDesc access = access_of(CU_MEM_ACCESS_FLAGS_PROT_READ);
    OK(cuMemSetAccess(at, 2 * MIB, &access, 1));
    CHECK_EQUAL(word_at(at), 77);
    OK(cuMemRelease(again));
    OK(cuMemUnmap(at, 2 * MIB));
    CHECK_EQUAL(data_bytes(), 0);
    CHECK_EQUAL(cuMemAddressFree(at, 2 * MIB), CUDA_ERROR_INVALID_VALUE);
    OK(cuMemAddressFree(at, 4 * MIB));
}

PROMISE(two_mappings_of_one_memory_show_the_same) {
    on_v100();
    CUmemGenericAllocationHandle handle = physical(6 * MIB, false);
    CUdeviceptr one = mapped(handle, 6 * MIB), other = mapped(handle, 6 * MIB);
    OK(cuMemsetD32_v2(one + 4 * MIB, 5, 10));
    CHECK_EQUAL(word_at(other + 4 * MIB), 5);
    CHECK_EQUAL(data_bytes(), 6 * MIB);
}

PROMISE(copies_may_cross_from_one_mapping_to_the_next) {
    on_v100();
    CUmemGenericAllocationHandle first = physical(PAGE, false), second = physical(PAGE, false);
    CUdeviceptr at;
    CUmemAccessDesc access = access_of(CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
    OK(cuMemAddressReserve(&at, 3 * PAGE, 0, 0, 0));
    OK(cuMemMap(at, PAGE, 0, first, 0));
    OK(cuMemMap(at + PAGE, PAGE, 0, second, 0));
    OK(cuMemSetAccess(at, 2 * PAGE, &access, 1));
    OK(cuMemsetD8_v2(at, 9, 2 * PAGE));
    CHECK_EQUAL(word_at(at + PAGE - 2), 0x09090909);
    CHECK_EQUAL(cuMemsetD8_v2(at, 9, 2 * PAGE + 1), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuMemUnmap(at, 3 * PAGE), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuMemAddressFree(at, 3 * PAGE), CUDA_ERROR_INVALID_VALUE);
    OK(cuMemUnmap(at, 2 * PAGE));
}

PROMISE(wrong_ways_to_make_and_map_are_refused) {
    on_v100();
    CUmemGenericAllocationHandle handle;
    CUmemAllocationProp wanted = properties(false);
    CUdeviceptr at;
    CHECK_EQUAL(cuMemCreate(&handle, PAGE + 1, &wanted, 0), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuMemCreate(&handle, 0, &wanted, 0), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuMemCreate(&handle, V100_TOTAL, &wanted, 0), CUDA_ERROR_OUT_OF_MEMORY);
    wanted.location.id = 3;
    CHECK_EQUAL(cuMemCreate(&handle, PAGE, &wanted, 0), CUDA_ERROR_INVALID_DEVICE);
    CHECK_EQUAL(cuMemMap(0x200000, PAGE, 0, 12345, 0), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuMemRelease(12345), CUDA_ERROR_INVALID_VALUE);
    handle = physical(PAGE, false);
    OK(cuMemAddressReserve(&at, PAGE, 0, 0, 0));
    CHECK_EQUAL(cuMemMap(at, 2 * PAGE, 0, handle, 0), CUDA_ERROR_INVALID_VALUE);
    OK(cuMemMap(at, PAGE, 0, handle, 0));
    CHECK_EQUAL(cuMemMap(at, PAGE, 0, handle, 0), CUDA_ERROR_INVALID_VALUE);
    CUmemAccessDesc access = access_of(CU_MEM_ACCESS_FLAGS_PROT_READ);
    OK(cuMemSetAccess(at, PAGE, &access, 1));
    CHECK_EQUAL(cuMemsetD8_v2(at, 1, 1), CUDA_ERROR_INVALID_VALUE);
    int fd;
    CHECK_EQUAL(cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
                CUDA_ERROR_INVALID_VALUE);
}

PROMISE(host_locations_cost_the_card_nothing_and_need_no_context) {
    fresh_machine("V100-SXM2-16GB");
    OK(cuInit(0));
    CUmemGenericAllocationHandle handle;
    CUmemAllocationProp wanted = properties(true);
    wanted.location.type = CU_MEM_LOCATION_TYPE_HOST_NUMA;
    OK(cuMemCreate(&handle, 4 * MIB, &wanted, 0));
    CUdeviceptr at = mapped(handle, 4 * MIB);
    *(int *)(uintptr_t)at = 5;
    CHECK_EQUAL(used_of(0), 0);
    OK(cuMemUnmap(at, 4 * MIB));
    OK(cuMemRelease(handle));
}

/* ---- between processes ---- */

static void send_fd(int to, int fd) {
    char byte = 0, control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec data = {&byte, 1};
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    *header =
        (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof fd)};
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    CHECK_EQUAL(sendmsg(to, &message, 0), 1);
}

static int receive_fd(int from) {
    char byte, control[CMSG_SPACE(sizeof(int))];
    int fd;
    struct iovec data = {&byte, 1};
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    CHECK_EQUAL(recvmsg(from, &message, 0), 1);
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    return fd;
}

static void context_on(CUcontext *context) {
    OK(cuInit(0));
    OK(cuCtxCreate_v2(context, 0, 0));
}

static int wires[2];

static void say(int to, const void *data, size_t bytes) {
    CHECK_EQUAL(write(to, data, bytes), bytes);
}

static void hear(int from, void *data, size_t bytes) {
    CHECK_EQUAL(recv(from, data, bytes, MSG_WAITALL), bytes);
}

static void export_and_wait(void *unused) {
    CUcontext context;
    char byte;
    int fd;
    (void)unused;
    context_on(&context);
    CUmemGenericAllocationHandle handle = physical(4 * MIB, true);
    CUdeviceptr at = mapped(handle, 4 * MIB);
    OK(cuMemsetD32_v2(at, 41, MIB));
    OK(cuCtxSynchronize());
    OK(cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
    CHECK_EQUAL(word_at(at + 4 * MIB - 4), 41);
    send_fd(wires[1], fd);
    hear(wires[1], &byte, 1);
    CHECK_EQUAL(word_at(at), 42);
    say(wires[1], &byte, 1);
    pause();
}

PROMISE(exported_memory_outlives_its_maker_and_is_counted_once) {
    CUcontext context;
    char byte = 0;
    fresh_machine("V100-SXM2-16GB");
    CHECK_EQUAL(socketpair(AF_UNIX, SOCK_STREAM, 0, wires), 0);
    pid_t maker = start(export_and_wait, NULL);
    close(wires[1]);
    context_on(&context);
    int fd = receive_fd(wires[0]);
    CUmemGenericAllocationHandle handle;
    OK(cuMemImportFromShareableHandle(&handle, (void *)(intptr_t)fd,
                                      CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
    close(fd);
    CUdeviceptr at = mapped(handle, 4 * MIB);
    CHECK_EQUAL(word_at(at + 4 * MIB - 4), 41);
    OK(cuMemsetD32_v2(at, 42, 1));
    OK(cuCtxSynchronize());
    CHECK_EQUAL(used_of(0), 2 * V100_CONTEXT + 4 * MIB);
    say(wires[0], &byte, 1);
    hear(wires[0], &byte, 1);
    kill_and_wait(maker);
    CHECK_EQUAL(used_of(0), V100_CONTEXT + 4 * MIB);
    CHECK_EQUAL(word_at(at), 42);
    OK(cuMemRelease(handle));
    OK(cuMemUnmap(at, 4 * MIB));
    CHECK_EQUAL(used_of(0), V100_CONTEXT);
    OK(cuCtxDestroy_v2(context));
    CHECK_EQUAL(cuMemImportFromShareableHandle(&handle, (void *)(intptr_t)0,
                                               CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
                CUDA_ERROR_INVALID_VALUE);
}

static void share_and_wait(void *unused) {
    CUcontext context;
    CUdeviceptr small, large;
    CUipcMemHandle handles[2];
    char byte;
    (void)unused;
    context_on(&context);
    OK(cuMemAlloc_v2(&small, 512));
    OK(cuMemAlloc_v2(&small, 1000));
    OK(cuMemAlloc_v2(&large, 3 * MIB));
    OK(cuMemsetD32_v2(small, 1, 250));
    OK(cuMemsetD32_v2(large, 2, 3 * MIB / 4));
    OK(cuIpcGetMemHandle(&handles[0], small));
    OK(cuIpcGetMemHandle(&handles[1], large));
    CUdeviceptr own;
    CHECK_EQUAL(cuIpcOpenMemHandle_v2(&own, handles[0], CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS),
                CUDA_ERROR_INVALID_CONTEXT);
    say(wires[1], handles, sizeof handles);
    hear(wires[1], &byte, 1);
    CHECK_EQUAL(word_at(small + 4), 11);
    CHECK_EQUAL(word_at(large), 12);
    OK(cuMemFree_v2(large));
    OK(cuMemFree_v2(small));
    say(wires[1], &byte, 1);
    pause();
}

PROMISE(ipc_handles_show_other_processes_the_same_memory) {
    CUcontext context;
    CUipcMemHandle handles[2];
    CUdeviceptr small, again, large;
    char byte = 0;
    fresh_machine("V100-SXM2-16GB");
    CHECK_EQUAL(socketpair(AF_UNIX, SOCK_STREAM, 0, wires), 0);
    pid_t maker = start(share_and_wait, NULL);
    close(wires[1]);
    context_on(&context);
    hear(wires[0], handles, sizeof handles);
    OK(cuIpcOpenMemHandle_v2(&small, handles[0], CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS));
    OK(cuIpcOpenMemHandle_v2(&again, handles[0], CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS));
    CHECK_EQUAL(small, again);
    OK(cuIpcOpenMemHandle_v2(&large, handles[1], CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS));
    CHECK_EQUAL(used_of(0), 2 * V100_CONTEXT + 3 * PAGE);
    CHECK_EQUAL(word_at(small), 1);
    CHECK_EQUAL(word_at(large + 3 * MIB - 4), 2);
    OK(cuMemsetD32_v2(small + 4, 11, 1));
    OK(cuMemsetD32_v2(large, 12, 1));
    OK(cuCtxSynchronize());
    say(wires[0], &byte, 1);
    hear(wires[0], &byte, 1);
    CHECK_EQUAL(used_of(0), 2 * V100_CONTEXT + 3 * PAGE); /* freed there, but still open here */
    kill_and_wait(maker);
    CHECK_EQUAL(word_at(large), 12);
    OK(cuIpcCloseMemHandle(small));
    OK(cuIpcCloseMemHandle(small));
    CHECK_EQUAL(cuIpcCloseMemHandle(small), CUDA_ERROR_INVALID_VALUE);
    OK(cuIpcCloseMemHandle(large));
    CHECK_EQUAL(used_of(0), V100_CONTEXT);
    CHECK_EQUAL(cuIpcOpenMemHandle_v2(&small, handles[0], 1), CUDA_ERROR_INVALID_VALUE);
}

int main(int argc, char **argv) {
    return keep_promises(argc, argv);
}
