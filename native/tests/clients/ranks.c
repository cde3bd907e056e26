/*
 * What NCCL and tensor-parallel serving do, in small: `ranks N` forks N processes before CUDA is initialised,
 * one card each in turn. Physical memory is created by a thread that has no context, on the device and on the
 * host, exported, sent to the next rank over a socket, imported and mapped there; and the same with IPC
 * handles.
 *
 * After each step that all ranks have done, rank 0 prints the step's name and waits for a line.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client.h"

#define MIB ((size_t)1 << 20)
#define BLOCK (4 * MIB)
#define MAX_RANKS 16

static int rank, ranks, devices;
static CUdevice device;
static pthread_barrier_t *barrier;
static int sockets[MAX_RANKS][2]; /* [r][0] is read by rank r, [r][1] written by the one before */

static void expect(int holds, const char *what) {
    if (holds)
        return;
    fprintf(stderr, "ranks: rank %d: not so: %s\n", rank, what);
    exit(1);
}
#define EXPECT(condition) expect(condition, #condition)

static void step_together(const char *name) {
    pthread_barrier_wait(barrier);
    if (rank == 0)
        step(name);
    pthread_barrier_wait(barrier);
}

static void send_fd(int to, int fd) {
    char byte = 0, control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec part = {&byte, 1};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    EXPECT(sendmsg(to, &message, 0) == 1);
}

static int receive_fd(int from) {
    int fd = -1;
    char byte, control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec part = {&byte, 1};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    EXPECT(recvmsg(from, &message, 0) == 1);
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    return fd;
}

/* Runs without a context: the device is the one that the properties name. */
static void *create(void *data) {
    CUmemGenericAllocationHandle *made = data;
    CUcontext current = (CUcontext)1;
    MUST(cuCtxGetCurrent(&current));
    EXPECT(current == NULL);
    CUmemAllocationProp on_device = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                     .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                                     .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device}};
    CUmemAllocationProp on_host = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                   .location = {.type = CU_MEM_LOCATION_TYPE_HOST_NUMA, .id = 0}};
    size_t granularity = 0;
    MUST(cuMemGetAllocationGranularity(&granularity, &on_device, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED));
    EXPECT(granularity && BLOCK % granularity == 0);
    MUST(cuMemCreate(&made[0], BLOCK, &on_device, 0));
    MUST(cuMemCreate(&made[1], BLOCK, &on_host, 0));
    return NULL;
}

static CUdeviceptr map(CUmemGenericAllocationHandle handle) {
    CUdeviceptr address;
    CUmemAccessDesc access[MAX_RANKS];
    for (int i = 0; i < devices; i++)
        access[i] = (CUmemAccessDesc){.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = i},
                                      .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    MUST(cuMemAddressReserve(&address, BLOCK, 0, 0, 0));
    MUST(cuMemMap(address, BLOCK, 0, handle, 0));
    MUST(cuMemSetAccess(address, BLOCK, access, (size_t)devices));
    return address;
}

static void unmap(CUdeviceptr address) {
    MUST(cuMemUnmap(address, BLOCK));
    MUST(cuMemAddressFree(address, BLOCK));
}

static void fill(CUdeviceptr at, int value) {
    MUST(cuMemsetD32(at, (unsigned int)value, 1024));
    MUST(cuCtxSynchronize());
}

static int holds(CUdeviceptr at, int value) {
    unsigned int words[1024];
    MUST(cuMemcpyDtoH(words, at, sizeof words));
    return words[0] == (unsigned int)value && words[1023] == (unsigned int)value;
}

static void shared_by_handle(int next, int previous) {
    CUmemGenericAllocationHandle made[2], imported;
    pthread_t thread;
    int fd;
    EXPECT(pthread_create(&thread, NULL, create, made) == 0 && pthread_join(thread, NULL) == 0);
    step_together("created by threads without a context");
    CUdeviceptr own = map(made[0]);
    fill(own, 1000 + rank);
    MUST(cuMemExportToShareableHandle(&fd, made[0], CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
    send_fd(sockets[next][1], fd);
    close(fd);
    fd = receive_fd(sockets[rank][0]);
    MUST(cuMemImportFromShareableHandle(&imported, (void *)(uintptr_t)fd,
                                        CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
    close(fd);
    CUdeviceptr theirs = map(imported);
    pthread_barrier_wait(barrier);
    EXPECT(holds(theirs, 1000 + previous));
    step_together("imported and mapped by the next rank");
    unmap(theirs);
    MUST(cuMemRelease(imported));
    step_together("imports gone");
    unmap(own);
    MUST(cuMemRelease(made[0]));
    MUST(cuMemRelease(made[1]));
    step_together("all released");
}

static void shared_by_ipc(int next, int previous) {
    CUdeviceptr own, theirs;
    CUipcMemHandle handle;
    MUST(cuMemAlloc(&own, BLOCK));
    fill(own, 2000 + rank);
    MUST(cuIpcGetMemHandle(&handle, own));
    EXPECT(write(sockets[next][1], &handle, sizeof handle) == sizeof handle);
    EXPECT(read(sockets[rank][0], &handle, sizeof handle) == sizeof handle);
    MUST(cuIpcOpenMemHandle(&theirs, handle, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS));
    EXPECT(holds(theirs, 2000 + previous));
    step_together("opened by IPC");
    MUST(cuIpcCloseMemHandle(theirs));
    pthread_barrier_wait(barrier);
    MUST(cuMemFree(own));
    step_together("closed and freed");
}

static int live(void) {
    CUcontext context;
    MUST(cuInit(0));
    MUST(cuDeviceGetCount(&devices));
    MUST(cuDeviceGet(&device, rank % devices));
    MUST(cuDevicePrimaryCtxRetain(&context, device));
    MUST(cuCtxSetCurrent(context));
    step_together("started");
    int next = (rank + 1) % ranks, previous = (rank + ranks - 1) % ranks;
    shared_by_handle(next, previous);
    shared_by_ipc(next, previous);
    MUST(cuDevicePrimaryCtxRelease(device));
    pthread_barrier_wait(barrier);
    return 0;
}

int main(int argc, char **argv) {
    ranks = argc > 1 ? atoi(argv[1]) : 2;
    if (ranks < 2 || ranks > MAX_RANKS) {
        fprintf(stderr, "ranks: 2 to %d\n", MAX_RANKS);
        return 2;
    }
    pthread_barrierattr_t shared;
    barrier = mmap(NULL, sizeof *barrier, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pthread_barrierattr_init(&shared);
    pthread_barrierattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(barrier, &shared, (unsigned int)ranks);
    for (int r = 0; r < ranks; r++)
        EXPECT(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets[r]) == 0);
    pid_t children[MAX_RANKS];
    for (int r = 1; r < ranks; r++) {
        children[r] = fork();
        if (children[r] == 0) {
            rank = r;
            exit(live());
        }
    }
    int status = live();
    for (int r = 1; r < ranks; r++) {
        int theirs = 0;
        waitpid(children[r], &theirs, 0);
        status |= theirs;
    }
    return status ? 1 : 0;
}
