/*
 * Images: telling their kinds apart, and the lists that the readers of each kind fill.
 */
#include "image.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

bool sim_is_readable(const void *at, size_t bytes) {
    char content[2];
    struct iovec here[1] = {{content, 2}};
    struct iovec there[2] = {{(void *)(uintptr_t)at, 1},
                             {(void *)((uintptr_t)at + (bytes ? bytes - 1 : 0)), 1}};
    if (!at || (uintptr_t)at + bytes < (uintptr_t)at)
        return false;
    ssize_t done = process_vm_readv(getpid(), here, 1, there, 2, 0);
    return done == 2 ||
           (done < 0 && (errno == ENOSYS || errno == EPERM)); /* where the call is forbidden, trust */
}

bool sim_begins(const void *at, const char *magic, size_t bytes) {
    const volatile char *byte = at; /* an image may be a text shorter than that */
    for (size_t i = 0; i < bytes; i++)
        if (byte[i] != magic[i])
            return false;
    return true;
}

static void *grown(void *list, size_t count, size_t size) {
    if (count & (count - 1)) /* room up to the next power of two */
        return list;
    return realloc(list, (count ? 2 * count : 1) * size);
}

struct sim_entry *sim_image_entry(struct sim_image *image, const char *name, size_t length) {
    struct sim_entry *entries = grown(image->entries, image->entry_count, sizeof *entries);
    if (!entries)
        return NULL;
    image->entries = entries;
    struct sim_entry *entry = &entries[image->entry_count];
    memset(entry, 0, sizeof *entry);
    entry->name = strndup(name, length);
    if (!entry->name)
        return NULL;
    entry->max_threads = 1024;
    image->entry_count++;
    return entry;
}

struct sim_global *sim_image_global(struct sim_image *image, const char *name, size_t length) {
    struct sim_global *globals = grown(image->globals, image->global_count, sizeof *globals);
    if (!globals)
        return NULL;
    image->globals = globals;
    struct sim_global *global = &globals[image->global_count];
    memset(global, 0, sizeof *global);
    global->name = strndup(name, length);
    if (!global->name)
        return NULL;
    image->global_count++;
    return global;
}

bool sim_entry_parameter(struct sim_entry *entry, uint32_t index, uint32_t offset, uint32_t bytes) {
    if (index >= 8192)
        return false;
    if (index >= entry->parameter_count) {
        struct sim_parameter *parameters = realloc(entry->parameters, (index + 1) * sizeof *parameters);
        if (!parameters)
            return false;
        memset(parameters + entry->parameter_count, 0,
               (index + 1 - entry->parameter_count) * sizeof *parameters);
        entry->parameters = parameters;
        entry->parameter_count = index + 1;
    }
    entry->parameters[index] = (struct sim_parameter){offset, bytes};
    return true;
}

void sim_image_free(struct sim_image *image) {
    if (!image)
        return;
    for (size_t i = 0; i < image->entry_count; i++) {
        free(image->entries[i].name);
        free(image->entries[i].parameters);
    }
    for (size_t i = 0; i < image->global_count; i++)
        free(image->globals[i].name);
    free(image->entries);
    free(image->globals);
    free(image->data);
    free(image);
}

CUresult sim_image_read(const void *at, size_t bytes, struct sim_target target, struct sim_image **out) {
    struct sim_image *image = calloc(1, sizeof *image);
    CUresult result;
    if (!image)
        return CUDA_ERROR_OUT_OF_MEMORY;
    if (bytes && bytes < 8)
        result = CUDA_ERROR_INVALID_IMAGE;
    else if (sim_is_fatbin(at))
        result = sim_fatbin_read(at, bytes, target, image);
    else if (sim_is_cubin(at))
        result = sim_cubin_read(at, bytes, target, image);
    else
        result = sim_ptx_read(at, bytes, target, image);
    if (result == CUDA_SUCCESS) {
        if (image->code_bytes < image->data_bytes)
            image->code_bytes = image->data_bytes;
        *out = image;
        return CUDA_SUCCESS;
    }
    sim_image_free(image);
    return result;
}
