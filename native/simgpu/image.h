/*
 * What the simulated driver reads out of a program's images: PTX text, ELF cubins, and fat binaries of both.
 * Kernels are not executed, so their code is not looked at; names, parameters and sizes are.
 */
#ifndef SIM_IMAGE_H
#define SIM_IMAGE_H

#include "driver.h"

struct sim_parameter {
    uint32_t offset, bytes;
};

struct sim_entry {
    char *name;
    struct sim_parameter *parameters;
    uint32_t parameter_count;
    uint32_t registers, shared_bytes, constant_bytes, local_bytes, max_threads;
    bool spins; /* waits on the card's clock for as many nanoseconds as its first parameter says */
};

struct sim_global {
    char *name;
    uint64_t offset, bytes; /* within the image's data */
    bool managed;
};

struct sim_image {
    struct sim_entry *entries;
    struct sim_global *globals;
    size_t entry_count, global_count;
    uint64_t code_bytes; /* of the card's memory */
    uint64_t data_bytes; /* of them, global variables */
    unsigned char *data; /* first values of the first value_bytes of them; the others begin as zeros */
    uint64_t value_bytes;
    uint32_t arch;                   /* 10 * major + minor, of the code */
    int ptx_version, binary_version; /* as cuFuncGetAttribute tells them */
    bool opaque; /* its names cannot be read: any kernel name is taken for one of its own */
};

/* What the card and the driver can run: 10 * major + minor, and the newest PTX version, likewise. */
struct sim_target {
    uint32_t arch, ptx_version;
};

/* Read an image; `bytes` is its size where that is known, else 0. CUDA_ERROR_INVALID_IMAGE, _INVALID_PTX,
 * _UNSUPPORTED_PTX_VERSION, _NO_BINARY_FOR_GPU, _OUT_OF_MEMORY. */
CUresult sim_image_read(const void *at, size_t bytes, struct sim_target target, struct sim_image **image);
void sim_image_free(struct sim_image *image);

/* For the readers of each kind. */
CUresult sim_ptx_read(const char *text, size_t bytes, struct sim_target target, struct sim_image *image);
CUresult sim_cubin_read(const unsigned char *at, size_t bytes, struct sim_target target,
                        struct sim_image *image);
CUresult sim_fatbin_read(const unsigned char *at, size_t bytes, struct sim_target target,
                         struct sim_image *image);
bool sim_is_cubin(const void *at);
bool sim_is_fatbin(const void *at);
/* New last elements, zeroed but for a copy of the name; NULL where memory is out. */
struct sim_entry *sim_image_entry(struct sim_image *image, const char *name, size_t length);
struct sim_global *sim_image_global(struct sim_image *image, const char *name, size_t length);
bool sim_entry_parameter(struct sim_entry *entry, uint32_t index, uint32_t offset, uint32_t bytes);
/* Whether an image begins with these bytes; reads no further than the first that differs. */
bool sim_begins(const void *at, const char *magic, size_t bytes);
/* Whether a range of this process can be read. */
bool sim_is_readable(const void *at, size_t bytes);

#endif
