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

/* A number of the header, wherever the data lies. */
static uint64_t number_at(const void *data, size_t offset, size_t bytes) {
    uint64_t number = 0; /* both files are little-endian, and so are the machines */
    memcpy(&number, (const char *)data + offset, bytes);
    return number;
}
#define HEADER(field)                                                                                        \
    number_at(data, offsetof(struct vcuda_grant, field), sizeof((struct vcuda_grant *)0)->field)

static bool sound_header(const void *data) {
    const char *name = (const char *)data + offsetof(struct vcuda_grant, name);
    uint64_t header_bytes = HEADER(header_bytes), card_bytes = HEADER(card_bytes), cards = HEADER(card_count);
    return header_bytes >= offsetof(struct vcuda_grant, cards) && header_bytes <= 65536 &&
           header_bytes % 8 == 0 && card_bytes >= sizeof(struct vcuda_grant_card) && card_bytes <= 65536 &&
           card_bytes % 8 == 0 && cards >= 1 && cards <= VCUDA_MAX_CARDS &&
           printable(name, sizeof((struct vcuda_grant *)0)->name) &&
           HEADER(file_bytes) >= header_bytes + cards * card_bytes;
}

enum vcuda_grant_status vcuda_grant_check(const void *data, size_t bytes, char *why, size_t why_bytes) {
    if (bytes < offsetof(struct vcuda_grant, cards)) {
        SAY("the grant is truncated: %zu bytes", bytes);
        return VCUDA_GRANT_TRUNCATED;
    }
    if (HEADER(magic) != VCUDA_GRANT_MAGIC) {
        SAY("this is not a grant");
        return VCUDA_GRANT_GARBAGE;
    }
    if (HEADER(abi_major) != VCUDA_ABI_MAJOR) {
        SAY("the grant has ABI version %u.%u, this library %u.%u: install the same version of vcuda on both "
            "sides",
            (unsigned)HEADER(abi_major), (unsigned)HEADER(abi_minor), VCUDA_ABI_MAJOR, VCUDA_ABI_MINOR);
        return VCUDA_GRANT_VERSION;
    }
    if (!sound_header(data)) {
        SAY("the grant's header contradicts itself");
        return VCUDA_GRANT_GARBAGE;
    }
    uint64_t needed = HEADER(header_bytes) + HEADER(card_count) * HEADER(card_bytes);
    if (bytes < needed) {
        SAY("the grant is truncated: %zu bytes of %llu", bytes, (unsigned long long)needed);
        return VCUDA_GRANT_TRUNCATED;
    }
    const char *first = (const char *)data + HEADER(header_bytes);
    for (uint32_t index = 0; index < HEADER(card_count); index++) {
        struct vcuda_grant_card card; /* a copy: the data need not be aligned */
        memcpy(&card, first + index * HEADER(card_bytes), sizeof card);
        enum vcuda_grant_status status = check_card(&card, index, why, why_bytes);
        if (status != VCUDA_GRANT_OK)
            return status;
        for (uint32_t other = 0; other < index; other++)
            /* A card begins with its UUID. */
            if (strcmp(first + other * HEADER(card_bytes), card.uuid) == 0) {
                SAY("the grant names card %s twice", card.uuid);
                return VCUDA_GRANT_VALUE;
            }
    }
    return VCUDA_GRANT_OK;
}

/* Reads the file while nobody changes it in place. A writer killed at work is not waited for long. */
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

/* Checks a copy, so that a file cut short between two looks cannot make us fault; then maps the file. */
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
    /* It will be read at once: no page faults for that. */
    void *memory = mmap(NULL, map_bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
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
    /* A longer one not on the stack: this may be a thread with a small one. */
    _Alignas(struct vcuda_grant) char usual[sizeof(struct vcuda_grant)];
    char *copy = usual;
    if (bytes > sizeof usual)
        copy = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED) {
        SAY("the grant %s cannot be read: %s", path, strerror(errno));
    } else {
        status = check_and_map(map, fd, copy, bytes, path, why, why_bytes);
        if (copy != usual)
            munmap(copy, bytes);
    }
    sys_close(fd);
    return status;
}

void vcuda_grant_close(struct vcuda_grant_map *map) {
    if (map->header)
        munmap((void *)map->header, map->map_bytes);
    map->header = NULL;
}
