/*
 * Fat binaries: a container of images for several architectures, of which the best for the card is read.
 * Their layout is not documented; it is as public tools that take such files apart describe it. Entries may
 * be compressed: LZ4 blocks are unpacked, of other kinds only the architecture is known, and any kernel name
 * is taken for theirs.
 */
#include "image.h"

#include <stdlib.h>
#include <string.h>

#define WRAPPER_MAGIC "\xb1\x43\x62\x46" /* fatbinary_section.h of the CUDA toolkit declares the wrapper */
#define CONTAINER_MAGIC "\x50\xed\x55\xba"
#define COMPRESSED_LZ4 0x2000U
#define COMPRESSED_ZSTD 0x8000U
#define SIZE_LIMIT ((uint64_t)1 << 32)

enum { KIND_PTX = 1, KIND_ELF = 2 };

struct wrapper {
    uint32_t magic, version;
    const unsigned char *data;
    const void *more;
};

struct container {
    uint32_t magic;
    uint16_t version, header_bytes;
    uint64_t bytes; /* of what follows the header */
};

struct item {
    uint16_t kind, version;
    uint32_t header_bytes;
    uint64_t bytes; /* of the payload, with its padding */
    uint32_t packed_bytes, options;
    uint16_t minor, major;
    uint32_t arch, name_offset, name_bytes;
    uint64_t flags, reserved, unpacked_bytes;
};

bool sim_is_fatbin(const void *at) {
    return sim_begins(at, WRAPPER_MAGIC, 4) || sim_begins(at, CONTAINER_MAGIC, 4);
}

/* An LZ4 block: runs of literals, each followed by a copy of what came before. */
static bool unpack(const unsigned char *from, size_t from_bytes, unsigned char *to, size_t to_bytes) {
    size_t in = 0, out = 0;
    while (in < from_bytes) {
        unsigned int token = from[in++];
        size_t literals = token >> 4, match = (token & 15) + 4;
        for (unsigned int more = literals == 15 ? 255 : 0; more == 255 && in < from_bytes;)
            literals += more = from[in++];
        if (literals > from_bytes - in || literals > to_bytes - out)
            return false;
        memcpy(to + out, from + in, literals);
        in += literals;
        out += literals;
        if (out == to_bytes || from_bytes - in < 2)
            break;
        size_t distance = (size_t)from[in] | (size_t)from[in + 1] << 8;
        in += 2;
        for (unsigned int more = match == 19 ? 255 : 0; more == 255 && in < from_bytes;)
            match += more = from[in++];
        if (!distance || distance > out || match > to_bytes - out)
            return false;
        for (size_t i = 0; i < match; i++, out++)
            to[out] = to[out - distance];
    }
    return out == to_bytes;
}

/* Whether one entry serves the card better than another: machine code before PTX, then the nearer
 * architecture. */
static bool better(const struct item *one, const struct item *other) {
    if (one->kind != other->kind)
        return one->kind == KIND_ELF;
    return one->arch > other->arch;
}

static bool serves(const struct item *item, struct sim_target target) {
    if (item->kind == KIND_PTX)
        return item->arch <= target.arch;
    return item->kind == KIND_ELF && item->arch / 10 == target.arch / 10 && item->arch <= target.arch;
}

static CUresult read_item(const struct item *item, const unsigned char *payload, struct sim_target target,
                          struct sim_image *image) {
    size_t bytes = item->bytes;
    unsigned char *whole = NULL;
    if (item->flags & (COMPRESSED_LZ4 | COMPRESSED_ZSTD)) {
        bytes = item->unpacked_bytes;
        whole = item->flags & COMPRESSED_LZ4 && bytes && bytes < SIZE_LIMIT
                    ? aligned_alloc(16, (bytes + 15) & ~(size_t)15)
                    : NULL;
        if (!whole || item->packed_bytes > item->bytes ||
            !unpack(payload, item->packed_bytes, whole, bytes)) {
            free(whole);
            image->opaque = true;
            image->arch = item->arch;
            image->ptx_version = image->binary_version = (int)item->arch;
            return CUDA_SUCCESS;
        }
    } else if (item->kind == KIND_ELF) { /* an ELF file's tables are read in place, and are to be aligned */
        whole = bytes < SIZE_LIMIT ? aligned_alloc(16, (bytes + 15) & ~(size_t)15) : NULL;
        if (!whole)
            return CUDA_ERROR_OUT_OF_MEMORY;
        memcpy(whole, payload, bytes);
    }
    if (whole)
        payload = whole;
    CUresult result = item->kind == KIND_ELF ? sim_cubin_read(payload, bytes, target, image)
                                             : sim_ptx_read((const char *)payload, bytes, target, image);
    free(whole);
    return result;
}

CUresult sim_fatbin_read(const unsigned char *at, size_t bytes, struct sim_target target,
                         struct sim_image *image) {
    struct container container;
    struct item best = {0};
    const unsigned char *payload = NULL;
    if (sim_begins(at, WRAPPER_MAGIC, 4)) {
        struct wrapper wrapper;
        if (bytes ? bytes < sizeof wrapper : !sim_is_readable(at, sizeof wrapper))
            return CUDA_ERROR_INVALID_IMAGE;
        memcpy(&wrapper, at, sizeof wrapper);
        at = wrapper.data;
        bytes = 0;
        if (!sim_is_readable(at, sizeof container) || !sim_begins(at, CONTAINER_MAGIC, 4))
            return CUDA_ERROR_INVALID_IMAGE;
    }
    if (bytes && bytes < sizeof container)
        return CUDA_ERROR_INVALID_IMAGE;
    memcpy(&container, at, sizeof container);
    uint64_t whole = container.header_bytes + container.bytes;
    if (container.header_bytes < sizeof container || container.bytes > SIZE_LIMIT ||
        (bytes ? whole > bytes : !sim_is_readable(at, whole)))
        return CUDA_ERROR_INVALID_IMAGE;
    for (uint64_t offset = container.header_bytes; offset + sizeof(struct item) <= whole;) {
        struct item item;
        memcpy(&item, at + offset, sizeof item);
        if (item.header_bytes < sizeof item || item.header_bytes > whole - offset ||
            item.bytes > whole - offset - item.header_bytes)
            return CUDA_ERROR_INVALID_IMAGE;
        if (serves(&item, target) && (!payload || better(&item, &best))) {
            best = item;
            payload = at + offset + item.header_bytes;
        }
        offset += item.header_bytes + item.bytes;
    }
    if (!payload)
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    CUresult result = read_item(&best, payload, target, image);
    image->code_bytes = container.bytes;
    return result;
}
