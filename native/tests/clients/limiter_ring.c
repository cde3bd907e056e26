/*
 * One of several processes in a ring: `limiter_ring FILE PLACE PLACES ROUNDS`. In each round its stream waits
 * for the word that the process before has written, runs kernels, and writes the word that the next one waits
 * for. The words are in FILE, which all of them map and register with the driver. Everything is submitted at
 * once; prints a line when all rounds have come to their end.
 */
#include <fcntl.h>
#include <sys/mman.h>

#include "launch_work.h"

#define FILE_BYTES 4096

int main(int argc, char **argv) {
    CUdeviceptr word;
    if (argc < 5)
        return 2;
    uint32_t place = (uint32_t)atoi(argv[2]), places = (uint32_t)atoi(argv[3]),
             rounds = (uint32_t)atoi(argv[4]);
    int fd = open(argv[1], O_RDWR | O_CREAT, 0600);
    if (fd < 0 || ftruncate(fd, FILE_BYTES))
        return 2;
    void *shared = mmap(NULL, FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (shared == MAP_FAILED)
        return 2;
    set_up();
    MUST(cuMemHostRegister_v2(shared, FILE_BYTES, CU_MEMHOSTREGISTER_DEVICEMAP));
    MUST(cuMemHostGetDevicePointer_v2(&word, shared, 0));
    for (uint32_t round = 0; round < rounds; round++) {
        MUST(cuStreamWaitValue32_v2(streams[0], word, round * places + place, CU_STREAM_WAIT_VALUE_GEQ));
        for (unsigned int i = 0; i < 3; i++)
            launch_blocks(streams[0], 1U << (round + i) % 4, 50 * US);
        MUST(cuStreamWriteValue32_v2(streams[0], word, round * places + place + 1, 0));
    }
    MUST(cuStreamSynchronize(streams[0]));
    MUST(cuMemHostUnregister(shared));
    printf("%u rounds\n", rounds);
    return 0;
}
