/*
 * libFuzzer's way into the ledger: whatever a file holds, opening it, taking a slot and accounting in it
 * crash nobody, and what one process is granted stays within the limit. An input that begins with an odd byte
 * is a list of patches to a sound ledger, so that more than the check of the header is reached.
 *
 * build: native/shim/ledger.c native/shim/ledger_file.c native/shim/ledger_slots.c native/shim/bucket.c
 */
#include "ledger.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define SLOTS 3
#define LIMIT ((uint64_t)1000)

struct sound {
    struct vcuda_ledger header;
    struct vcuda_slot slots[SLOTS];
};

static void insist(int condition) {
    if (!condition)
        abort();
}

static void make_sound(struct sound *sound) {
    memset(sound, 0, sizeof *sound);
    sound->header.magic = VCUDA_LEDGER_MAGIC;
    sound->header.abi_major = VCUDA_ABI_MAJOR;
    sound->header.header_bytes = sizeof sound->header;
    sound->header.file_bytes = sizeof *sound;
    sound->header.slot_count = SLOTS;
    sound->header.slot_bytes = sizeof(struct vcuda_slot);
    sound->header.slots_high = SLOTS;
}

/* Each patch: two bytes of offset, one of length, the value. */
static void patch(struct sound *sound, const uint8_t *data, size_t size) {
    while (size >= 3) {
        size_t offset = (size_t)(data[0] | data[1] << 8) % sizeof *sound, length = data[2] % 9;
        data += 3;
        size -= 3;
        length = length < size ? length : size;
        length = length < sizeof *sound - offset ? length : sizeof *sound - offset;
        memcpy((char *)sound + offset, data, length);
        data += length;
        size -= length;
    }
}

/* A file without a name, that is, with one below /proc. */
static const char *write_file(const void *content, size_t bytes) {
    static int fd = -1;
    static char path[40];
    if (fd < 0) {
        fd = memfd_create("ledger", MFD_CLOEXEC);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    insist(fd >= 0 && ftruncate(fd, 0) == 0);
    insist(pwrite(fd, content, bytes, 0) == (ssize_t)bytes);
    return path;
}

static void account(struct vcuda_ledger_map *map) {
    /* What the dead held is gone once nothing else is left; a lock that nobody holds is waited for, but not
     * each time: that would be all the fuzzer does. */
    if (map->generation % 64)
        map->header->cards[0].lock = 0;
    (void)vcuda_ledger_reclaim(map);
    struct vcuda_slot *own = vcuda_ledger_slot(map, (uint32_t)map->slot);
    insist(own != NULL && vcuda_slot_used(own, 0) == 0 && vcuda_ledger_used(map, 0) == 0);
    uint64_t held = 0;
    for (uint32_t i = 0; i < map->slot_count; i++)
        vcuda_ledger_slot(map, i)->cards[0].unsettled = 0; /* else refusals wait for it */
    for (int i = 0; i < 6; i++)
        held += vcuda_ledger_reserve(map, 0, VCUDA_KIND_LINEAR, 300, LIMIT) ? 300 : 0;
    insist(held == 900 && vcuda_ledger_used(map, 0) == 900);
    insist(!vcuda_ledger_reserve_as(map, 0, VCUDA_KIND_LINEAR, 300, LIMIT, VCUDA_UNSETTLED | VCUDA_AT_ONCE));
    vcuda_ledger_charge(map, 0, VCUDA_KIND_POOL, 500);
    vcuda_ledger_release(map, 0, VCUDA_KIND_LINEAR, 900);
    insist(vcuda_ledger_used(map, 0) == 500);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct sound sound;
    const char *path;
    if (size && data[0] % 2) {
        make_sound(&sound);
        patch(&sound, data + 1, size - 1);
        path = write_file(&sound, sizeof sound);
    } else {
        path = write_file(data, size);
    }
    struct vcuda_ledger_map reader, map;
    enum vcuda_ledger_status status = vcuda_ledger_open(&reader, path, false);
    if (status == VCUDA_LEDGER_OK) {
        for (uint32_t card = 0; card < VCUDA_MAX_CARDS; card++)
            (void)vcuda_ledger_used(&reader, card);
        insist(!vcuda_ledger_alive(&reader, 0));
        insist(vcuda_ledger_slot(&reader, reader.slot_count) == NULL);
    }
    insist(vcuda_ledger_attach(&map, path) == status);
    if (status == VCUDA_LEDGER_OK) {
        account(&map);
        vcuda_ledger_close(&reader);
    }
    vcuda_ledger_close(&map);
    return 0;
}
