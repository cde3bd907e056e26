/* The ledger's file: made complete or not at all, believed only after a check, mapped without holes that
 * fault. */
#include "ledger_parts.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "sys.h"
#include "vcuda/abi_check.h"

static uint64_t file_bytes_for(uint32_t slot_count) {
    return sizeof(struct vcuda_ledger) + (uint64_t)slot_count * sizeof(struct vcuda_slot);
}

static enum vcuda_ledger_status write_new(int fd, const struct vcuda_ledger *header) {
    ssize_t written = sys_pwrite(fd, header, sizeof *header, 0);
    if (written >= 0 && written < (ssize_t)sizeof *header)
        errno = ENOSPC;
    /* Slots stay a hole until their first owner comes; the umask must not keep the container's user out. */
    if (written == (ssize_t)sizeof *header && ftruncate(fd, (off_t)header->file_bytes) == 0 &&
        fchmod(fd, 0666) == 0)
        return VCUDA_LEDGER_OK;
    return errno == ENOSPC || errno == EDQUOT ? VCUDA_LEDGER_NO_SPACE : VCUDA_LEDGER_MISSING;
}

enum vcuda_ledger_status vcuda_ledger_create(const char *path, uint32_t slot_count) {
    if (slot_count == 0)
        slot_count = VCUDA_DEFAULT_SLOTS;
    if (slot_count > VCUDA_MAX_SLOTS) {
        errno = EINVAL;
        return VCUDA_LEDGER_GARBAGE;
    }
    char draft[300];
    if (snprintf(draft, sizeof draft, "%s.%d.new", path, (int)getpid()) >= (int)sizeof draft) {
        errno = ENAMETOOLONG;
        return VCUDA_LEDGER_MISSING;
    }
    unlink(draft); /* of a namesake that was killed here */
    int fd = sys_open(draft, O_RDWR | O_CREAT | O_EXCL);
    if (fd < 0)
        return errno == ENOSPC || errno == EDQUOT ? VCUDA_LEDGER_NO_SPACE : VCUDA_LEDGER_MISSING;
    struct vcuda_ledger header;
    memset(&header, 0, sizeof header);
    header.magic = VCUDA_LEDGER_MAGIC;
    header.abi_major = VCUDA_ABI_MAJOR;
    header.abi_minor = VCUDA_ABI_MINOR;
    header.header_bytes = sizeof header;
    header.file_bytes = file_bytes_for(slot_count);
    header.slot_count = slot_count;
    header.slot_bytes = sizeof(struct vcuda_slot);
    header.created_ns = sys_clock_ns(CLOCK_REALTIME);
    enum vcuda_ledger_status status = write_new(fd, &header);
    if (status == VCUDA_LEDGER_OK && rename(draft, path) != 0)
        status = VCUDA_LEDGER_MISSING;
    int error = errno;
    sys_close(fd);
    if (status != VCUDA_LEDGER_OK)
        unlink(draft);
    errno = error;
    return status;
}

/* Whether a header read from the file can be believed; the file's true size is given. */
static enum vcuda_ledger_status check(const struct vcuda_ledger *header, uint64_t file_bytes,
                                      struct vcuda_ledger_map *map) {
    if (file_bytes < sizeof *header)
        return VCUDA_LEDGER_TRUNCATED;
    if (header->magic != VCUDA_LEDGER_MAGIC)
        return VCUDA_LEDGER_GARBAGE;
    map->other_major = header->abi_major;
    map->other_minor = header->abi_minor;
    if (header->abi_major != VCUDA_ABI_MAJOR)
        return VCUDA_LEDGER_VERSION;
    if (header->header_bytes < sizeof *header || header->header_bytes % 64 != 0 ||
        header->header_bytes > 65536 || header->slot_bytes < sizeof(struct vcuda_slot) ||
        header->slot_bytes % 64 != 0 || header->slot_bytes > 65536 || header->slot_count == 0 ||
        header->slot_count > VCUDA_MAX_SLOTS)
        return VCUDA_LEDGER_GARBAGE;
    uint64_t needed = header->header_bytes + (uint64_t)header->slot_count * header->slot_bytes;
    if (header->file_bytes != needed)
        return VCUDA_LEDGER_GARBAGE;
    return file_bytes < needed ? VCUDA_LEDGER_TRUNCATED : VCUDA_LEDGER_OK;
}

/* For file systems without fallocate: writing what is there already has the same effect. The first 64 bytes
 * of header and slots, and the whole of them, end in a byte that is always 0, and they are shorter than two
 * pages. */
static bool touch(int fd, uint64_t offset) {
    char byte = 0;
    if (sys_pread(fd, &byte, 1, offset) == 1 && sys_pwrite(fd, &byte, 1, offset) == 1)
        return true;
    return errno != ENOSPC && errno != EDQUOT;
}

bool vcuda_ledger_allocate(int fd, uint64_t offset, uint64_t bytes, uint64_t stride, uint32_t count) {
    int result;
    do
        result = sys_fallocate(fd, offset, (count - 1) * stride + bytes);
    while (result != 0 && errno == EINTR);
    if (result == 0)
        return true;
    if (errno != EOPNOTSUPP)
        return errno != ENOSPC && errno != EDQUOT;
    for (; count > 0; count--, offset += stride)
        if (!touch(fd, offset + 63) || !touch(fd, offset + bytes - 1))
            return false;
    return true;
}

/* A path that is good wherever the process goes: the file is opened again to ask who is alive. */
static bool keep_path(struct vcuda_ledger_map *map, const char *path) {
    size_t used = 0;
    if (path[0] != '/' && getcwd(map->path, sizeof map->path - 1)) {
        used = strlen(map->path);
        map->path[used++] = '/';
    }
    size_t length = strlen(path);
    if (used + length >= sizeof map->path) {
        errno = ENAMETOOLONG;
        return false;
    }
    memcpy(map->path + used, path, length + 1);
    return true;
}

enum vcuda_ledger_status vcuda_ledger_map_file(struct vcuda_ledger_map *map, const char *path, bool writable,
                                               int *fd_out) {
    memset(map, 0, sizeof *map);
    map->slot = map->kept_fd = -1;
    if (!keep_path(map, path))
        return VCUDA_LEDGER_MISSING;
    int fd = sys_open(path, (writable ? O_RDWR : O_RDONLY) | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        return writable && (errno == EROFS || errno == EACCES) ? VCUDA_LEDGER_READ_ONLY
                                                               : VCUDA_LEDGER_MISSING;
    enum vcuda_ledger_status status = VCUDA_LEDGER_MISSING;
    struct stat st;
    struct vcuda_ledger header; /* of which the first fields are enough */
    const ssize_t fields = offsetof(struct vcuda_ledger, charged_groups);
    if (sys_fstat(fd, &st) != 0)
        goto fail;
    status = VCUDA_LEDGER_GARBAGE;
    if (!S_ISREG(st.st_mode))
        goto fail;
    ssize_t got = sys_pread(fd, &header, fields, 0);
    status = check(&header, got < fields ? 0 : (uint64_t)st.st_size, map);
    if (status != VCUDA_LEDGER_OK)
        goto fail;
    /* Before anybody has taken a slot; the slots are allocated by their owners. */
    if (writable && header.slots_high == 0 && !vcuda_ledger_allocate(fd, 0, header.header_bytes, 0, 1)) {
        status = VCUDA_LEDGER_NO_SPACE;
        goto fail;
    }
    map->map_bytes = header.file_bytes;
    void *memory = mmap(NULL, map->map_bytes, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) {
        status = VCUDA_LEDGER_MISSING;
        goto fail;
    }
    if (writable) /* a reader holds no lock that a child must not keep alive, and its view goes on in the
                     child */
        madvise(memory, map->map_bytes, MADV_DONTFORK);
    map->header = memory;
    map->writable = writable;
    map->slots = (char *)memory + header.header_bytes;
    map->slot_count = header.slot_count;
    map->slot_bytes = header.slot_bytes;
    map->device = (uint64_t)st.st_dev;
    map->inode = (uint64_t)st.st_ino;
    *fd_out = fd;
    return VCUDA_LEDGER_OK;
fail:;
    int error = errno;
    sys_close(fd);
    errno = error;
    return status;
}

enum vcuda_ledger_status vcuda_ledger_open(struct vcuda_ledger_map *map, const char *path, bool writable) {
    int fd;
    enum vcuda_ledger_status status = vcuda_ledger_map_file(map, path, writable, &fd);
    if (status == VCUDA_LEDGER_OK)
        sys_close(fd);
    return status;
}

struct vcuda_slot *vcuda_ledger_slot(const struct vcuda_ledger_map *map, uint32_t index) {
    if (index >= map->slot_count)
        return NULL;
    return (struct vcuda_slot *)(map->slots + (uint64_t)index * map->slot_bytes);
}
