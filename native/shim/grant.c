/* The grant: mapping and checking. The node side may change limits later, in place; sizes and names stay. */
#include "grant.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "sys.h"
#include "vcuda/abi_check.h"

#define MOST_BYTES                                                                                           \
    (65536 + (size_t)VCUDA_MAX_CARDS * 65536) /* the largest grant that the check lets pass                  \
                                               */
#define WRITER_TRIES 50                       /* a change in place is waited for, 1 ms each time */

#define SAY(...) (void)(why && snprintf(why, why_bytes, __VA_ARGS__))

static bool printable(const char *text, size_t bytes) {
    size_t length = strnlen(text, bytes);
    if (length == bytes)
        return false;
    for (size_t i = 0; i < length; i++)
        if (text[i] < 0x20 || text[i] > 0x7e)
            return false;
    return true;
}

static enum vcuda_grant_status check_card(const struct vcuda_grant_card *card, uint32_t index, char *why,
                                          size_t why_bytes) {
    if (!printable(card->uuid, sizeof card->uuid) ||
        (strncmp(card->uuid, "GPU-", 4) != 0 && strncmp(card->uuid, "MIG-", 4) != 0)) {
        SAY("card %u of the grant has no UUID of the form GPU-... or MIG-...", index);
        return VCUDA_GRANT_VALUE;
    }
    if (card->memory_bytes == 0 || card->memory_bytes > VCUDA_MAX_BYTES) {
        SAY("card %u of the grant has a memory limit of %llu bytes; 1 to %llu are allowed", index,
            (unsigned long long)card->memory_bytes, (unsigned long long)VCUDA_MAX_BYTES);
        return VCUDA_GRANT_VALUE;
    }
    if (card->core_ppm == 0 || card->core_ppm > VCUDA_PPM || card->core_max_ppm < card->core_ppm ||
        card->core_max_ppm > VCUDA_PPM) {
        SAY("card %u of the grant has a core share of %u ppm with a ceiling of %u; 1 <= share <= ceiling <= "
            "%u",
            index, card->core_ppm, card->core_max_ppm, VCUDA_PPM);
        return VCUDA_GRANT_VALUE;
    }
    if (card->priority < -1 || card->priority > 1) {
        SAY("card %u of the grant has priority %d; -1, 0 and 1 are allowed", index, card->priority);
        return VCUDA_GRANT_VALUE;
    }
    if (card->context_bytes > VCUDA_MAX_BYTES || card->pool_chunk_bytes > VCUDA_MAX_BYTES ||
        card->page_bytes > ((uint64_t)1 << 32) || (card->page_bytes & (card->page_bytes - 1)) != 0) {
        SAY("card %u of the grant has a calibration out of range", index);
        return VCUDA_GRANT_VALUE;
    }
    return VCUDA_GRANT_OK;
}

enum vcuda_grant_status vcuda_grant_check(const void *data, size_t bytes, char *why, size_t why_bytes) {
    struct vcuda_grant header; /* a copy: the data need not be aligned */
    if (bytes < offsetof(struct vcuda_grant, cards)) {
        SAY("the grant is truncated: %zu bytes", bytes);
        return VCUDA_GRANT_TRUNCATED;
    }
    memcpy(&header, data, offsetof(struct vcuda_grant, cards));
    if (header.magic != VCUDA_GRANT_MAGIC) {
        SAY("this is not a grant");
        return VCUDA_GRANT_GARBAGE;
    }
    if (header.abi_major != VCUDA_ABI_MAJOR) {
        SAY("the grant has ABI version %u.%u, this library %u.%u: install the same version of vcuda on both "
            "sides",
            header.abi_major, header.abi_minor, VCUDA_ABI_MAJOR, VCUDA_ABI_MINOR);
        return VCUDA_GRANT_VERSION;
    }
    if (header.header_bytes < offsetof(struct vcuda_grant, cards) || header.header_bytes > 65536 ||
        header.header_bytes % 8 != 0 || header.card_bytes < sizeof(struct vcuda_grant_card) ||
        header.card_bytes > 65536 || header.card_bytes % 8 != 0 || header.card_count == 0 ||
        header.card_count > VCUDA_MAX_CARDS || !printable(header.name, sizeof header.name)) {
        SAY("the grant's header contradicts itself");
        return VCUDA_GRANT_GARBAGE;
    }
    uint64_t needed = header.header_bytes + (uint64_t)header.card_count * header.card_bytes;
    if (header.file_bytes < needed) {
        SAY("the grant's header contradicts itself");
        return VCUDA_GRANT_GARBAGE;
    }
    if (bytes < needed) {
        SAY("the grant is truncated: %zu bytes of %llu", bytes, (unsigned long long)needed);
        return VCUDA_GRANT_TRUNCATED;
    }
    char uuids[VCUDA_MAX_CARDS][VCUDA_UUID_SIZE];
    for (uint32_t index = 0; index < header.card_count; index++) {
        struct vcuda_grant_card card;
        memcpy(&card, (const char *)data + header.header_bytes + (size_t)index * header.card_bytes,
               sizeof card);
        enum vcuda_grant_status status = check_card(&card, index, why, why_bytes);
        if (status != VCUDA_GRANT_OK)
            return status;
        memcpy(uuids[index], card.uuid, sizeof card.uuid);
        for (uint32_t other = 0; other < index; other++)
            if (strcmp(uuids[other], uuids[index]) == 0) {
                SAY("the grant names card %s twice", uuids[index]);
                return VCUDA_GRANT_VALUE;
            }
    }
    return VCUDA_GRANT_OK;
}

/* Reads the file while nobody changes it in place; a writer that was killed at work is not waited for long.
 */
static ssize_t read_stable(int fd, void *copy, size_t bytes) {
    uint64_t at = offsetof(struct vcuda_grant, generation), before, after;
    for (int tries = 0;; tries++) {
        bool known = sys_pread(fd, &before, sizeof before, at) == (ssize_t)sizeof before;
        ssize_t got = sys_pread(fd, copy, bytes, 0);
        known &= sys_pread(fd, &after, sizeof after, at) == (ssize_t)sizeof after;
        if (!known || tries == WRITER_TRIES || (before == after && before % 2 == 0))
            return got;
        struct timespec pause = {0, 1000000};
        syscall(SYS_nanosleep, &pause, NULL);
    }
}

/* Checks a copy, so that a file cut short between two looks cannot make us fault, and maps what was checked.
 */
static enum vcuda_grant_status check_and_map(struct vcuda_grant_map *map, int fd, char *copy, size_t bytes,
                                             const char *path, char *why, size_t why_bytes) {
    ssize_t got = read_stable(fd, copy, bytes);
    if (got < 0) {
        SAY("the grant %s cannot be read: %s", path, strerror(errno));
        return VCUDA_GRANT_UNREADABLE;
    }
    enum vcuda_grant_status status = vcuda_grant_check(copy, (size_t)got, why, why_bytes);
    if (status != VCUDA_GRANT_OK)
        return status;
    const struct vcuda_grant *header = (const struct vcuda_grant *)copy;
    size_t map_bytes = header->header_bytes + (size_t)header->card_count * header->card_bytes;
    void *memory = mmap(NULL, map_bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) {
        SAY("the grant %s cannot be mapped: %s", path, strerror(errno));
        return VCUDA_GRANT_UNREADABLE;
    }
    map->header = memory;
    map->map_bytes = map_bytes;
    map->card_count = header->card_count;
    map->card_bytes = header->card_bytes;
    map->cards = (const char *)memory + header->header_bytes;
    return VCUDA_GRANT_OK;
}

enum vcuda_grant_status vcuda_grant_open(struct vcuda_grant_map *map, const char *path, char *why,
                                         size_t why_bytes) {
    memset(map, 0, sizeof *map);
    int fd = sys_open(path, O_RDONLY | O_NOCTTY | O_NONBLOCK);
    if (fd < 0) {
        int error = errno;
        SAY("the grant %s cannot be opened: %s", path, strerror(error));
        return error == ENOENT ? VCUDA_GRANT_MISSING : VCUDA_GRANT_UNREADABLE;
    }
    enum vcuda_grant_status status = VCUDA_GRANT_UNREADABLE;
    struct stat st;
    if (sys_fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        SAY("the grant %s is not a file", path);
        sys_close(fd);
        return status;
    }
    size_t bytes = (size_t)st.st_size < MOST_BYTES ? (size_t)st.st_size : MOST_BYTES;
    /* Not on the stack: this may be a thread with a small one. */
    char *copy = mmap(NULL, MOST_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED) {
        SAY("the grant %s cannot be read: %s", path, strerror(errno));
    } else {
        status = check_and_map(map, fd, copy, bytes, path, why, why_bytes);
        munmap(copy, MOST_BYTES);
    }
    sys_close(fd);
    return status;
}

void vcuda_grant_close(struct vcuda_grant_map *map) {
    if (map->header)
        munmap((void *)map->header, map->map_bytes);
    map->header = NULL;
}
