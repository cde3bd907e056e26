/*
 * Virtual memory management: physical memory that is made, mapped at reserved addresses and let go of in any
 * order.
 *
 * What cuMemCreate makes has a home mapping, which shows the program nothing; cuMemMap shows the same pages
 * at the program's addresses. The memory goes with the last reference and the last mapping. What has been
 * exported is a file in memory that importers map too, and is the card's until the last process has let go of
 * it.
 */
#include "vmm.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static struct sim_node *handles;

static bool on_host(CUmemLocationType type) {
    return type == CU_MEM_LOCATION_TYPE_HOST || type == CU_MEM_LOCATION_TYPE_HOST_NUMA ||
           type == CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT;
}

CUresult sim_location_check(const CUmemLocation *location, uint32_t *card) {
    *card = SIM_NO_CARD;
    if (location->type == CU_MEM_LOCATION_TYPE_DEVICE)
        return sim_card_of(location->id, card);
    return on_host(location->type) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult properties_check(const CUmemAllocationProp *properties, uint32_t *card) {
    if (properties->type != CU_MEM_ALLOCATION_TYPE_PINNED)
        return CUDA_ERROR_INVALID_VALUE;
    if (properties->requestedHandleTypes & ~(unsigned int)CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
        return CUDA_ERROR_NOT_SUPPORTED;
    return sim_location_check(&properties->location, card);
}

struct sim_physical *sim_physical_of(CUmemGenericAllocationHandle handle) {
    struct sim_physical *physical = (struct sim_physical *)(uintptr_t)handle;
    return sim_tree_has(handles, physical) && physical->references ? physical : NULL;
}

/* ---- making and ending ---- */

/* `fd`: the file behind it, or -1 for memory of this process alone. Takes no pages. */
static struct sim_physical *make(const CUmemAllocationProp *properties, uint32_t card, uint64_t bytes,
                                 int fd) {
    struct sim_physical *physical = calloc(1, sizeof *physical);
    if (!physical)
        return NULL;
    int flags = MAP_SHARED | MAP_NORESERVE | (fd < 0 ? MAP_ANONYMOUS : 0);
    void *home = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (home == MAP_FAILED) {
        free(physical);
        return NULL;
    }
    madvise(home, bytes, MADV_DONTFORK);
    *physical = (struct sim_physical){.node = {.start = (uint64_t)(uintptr_t)physical, .bytes = 1},
                                      .card = card,
                                      .bytes = bytes,
                                      .home = home,
                                      .properties = *properties,
                                      .references = 1,
                                      .fd = fd};
    sim_tree_put(&handles, &physical->node);
    return physical;
}

void sim_physical_settle(struct sim_physical *physical) {
    if (physical->references || physical->mappings)
        return;
    munmap(physical->home, physical->bytes);
    if (physical->fd >= 0)
        close(physical->fd);
    if (physical->shared_id)
        sim_use_close(physical->shared_id);
    else if (physical->card != SIM_NO_CARD)
        sim_pages_give(physical->card, physical->bytes);
    sim_tree_drop(&handles, &physical->node);
    free(physical);
}

SIM_EXPORT CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size,
                                const CUmemAllocationProp *prop, unsigned long long flags) {
    SIM_BEGIN();
    uint32_t card;
    if (!handle || !prop || flags || !size || size % SIM_PAGE_BYTES)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = properties_check(prop, &card);
    if (result != CUDA_SUCCESS)
        return result;
    if (size > (uint64_t)1 << 46)
        return CUDA_ERROR_OUT_OF_MEMORY;
    sim_memory_lock();
    struct sim_physical *made = NULL;
    bool taken = card == SIM_NO_CARD || sim_pages_take(card, size);
    if (taken)
        made = make(prop, card, size, -1);
    if (taken && !made && card != SIM_NO_CARD)
        sim_pages_give(card, size);
    sim_memory_unlock();
    if (!made)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *handle = (CUmemGenericAllocationHandle)(uintptr_t)made;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    SIM_BEGIN();
    sim_memory_lock();
    struct sim_physical *physical = sim_physical_of(handle);
    if (physical) {
        physical->references--;
        sim_physical_settle(physical);
    }
    sim_memory_unlock();
    return physical ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_EXPORT CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *addr) {
    SIM_BEGIN();
    if (!handle)
        return CUDA_ERROR_INVALID_VALUE;
    sim_memory_lock();
    const struct sim_range *range = sim_range_at((CUdeviceptr)(uintptr_t)addr);
    bool found = range && range->kind == SIM_MEMORY_MAPPED;
    if (found) {
        struct sim_physical *physical = ((struct sim_mapping *)range->of)->physical;
        physical->references++;
        *handle = (CUmemGenericAllocationHandle)(uintptr_t)physical;
    }
    sim_memory_unlock();
    return found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_EXPORT CUresult cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp *prop,
                                                           CUmemGenericAllocationHandle handle) {
    SIM_BEGIN();
    if (!prop)
        return CUDA_ERROR_INVALID_VALUE;
    sim_memory_lock();
    const struct sim_physical *physical = sim_physical_of(handle);
    if (physical)
        *prop = physical->properties;
    sim_memory_unlock();
    return physical ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_EXPORT CUresult cuMemGetAllocationGranularity(size_t *granularity, const CUmemAllocationProp *prop,
                                                  CUmemAllocationGranularity_flags option) {
    SIM_BEGIN();
    uint32_t card;
    if (!granularity || !prop ||
        (option != CU_MEM_ALLOC_GRANULARITY_MINIMUM && option != CU_MEM_ALLOC_GRANULARITY_RECOMMENDED))
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = properties_check(prop, &card);
    if (result == CUDA_SUCCESS)
        *granularity = SIM_PAGE_BYTES;
    return result;
}

/* ---- other processes ---- */

bool sim_physical_show(const struct sim_physical *physical, const struct sim_mapping *mapping) {
    void *at = (void *)(uintptr_t)mapping->address;
    /* A shared mapping that is moved from a size of 0 is not moved but doubled. */
    void *shown =
        mremap(physical->home + mapping->offset, 0, mapping->bytes, MREMAP_MAYMOVE | MREMAP_FIXED, at);
    return shown == at && mprotect(at, mapping->bytes, sim_mapping_protection(mapping)) == 0;
}

/* Put a file behind what was this process's alone; its mappings follow. */
static bool move_to_file(struct sim_physical *physical, const struct sim_note *note) {
    int fd = sim_memory_file_make(note);
    if (fd < 0 || !physical->bytes)
        return false;
    static const unsigned char zeros[4096];
    for (uint64_t at = 0; at < physical->bytes; at += sizeof zeros) {
        if (memcmp((char *)physical->home + at, zeros, sizeof zeros) != 0 &&
            pwrite(fd, (char *)physical->home + at, sizeof zeros, (off_t)at) != (ssize_t)sizeof zeros) {
            close(fd);
            return false;
        }
    }
    if (mmap(physical->home, physical->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE,
             fd, 0) != physical->home) {
        close(fd);
        return false;
    }
    madvise(physical->home, physical->bytes, MADV_DONTFORK);
    physical->fd = fd;
    sim_mappings_follow(physical);
    return true;
}

static CUresult export_fd(struct sim_physical *physical, int *fd) {
    if (!(physical->properties.requestedHandleTypes & CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR))
        return CUDA_ERROR_INVALID_VALUE;
    if (physical->fd < 0) {
        struct sim_note note = {
            .bytes = physical->bytes, .card = physical->card, .properties = physical->properties};
        if (physical->card != SIM_NO_CARD) {
            sim_machine_lock();
            note.id = sim_shared_make(physical->card, physical->bytes);
            sim_machine_unlock();
            if (!note.id || !sim_use_made(note.id))
                return CUDA_ERROR_OUT_OF_MEMORY;
        }
        if (!move_to_file(physical, &note)) {
            sim_use_forget(note.id);
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        physical->shared_id = note.id;
    }
    *fd = dup(physical->fd);
    return *fd < 0 ? CUDA_ERROR_OPERATING_SYSTEM : CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuMemExportToShareableHandle(void *shareableHandle, CUmemGenericAllocationHandle handle,
                                                 CUmemAllocationHandleType handleType,
                                                 unsigned long long flags) {
    SIM_BEGIN();
    int fd;
    if (!shareableHandle || flags)
        return CUDA_ERROR_INVALID_VALUE;
    if (handleType != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
        return CUDA_ERROR_NOT_SUPPORTED;
    sim_synchronize_all(); /* nothing is to write while the data moves behind the file */
    sim_memory_lock();
    struct sim_physical *physical = sim_physical_of(handle);
    CUresult result = physical ? export_fd(physical, &fd) : CUDA_ERROR_INVALID_VALUE;
    sim_memory_unlock();
    if (result == CUDA_SUCCESS)
        memcpy(shareableHandle, &fd, sizeof fd);
    return result;
}

/* The ordinal by which this process knows a card that another one's memory is on. */
static bool ordinal_of(uint32_t card, int *ordinal) {
    for (CUdevice device = 0; device < sim_device_count(); device++) {
        uint32_t found;
        if (sim_card_of(device, &found) == CUDA_SUCCESS && found == card) {
            *ordinal = device;
            return true;
        }
    }
    return false;
}

SIM_EXPORT CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *osHandle,
                                                   CUmemAllocationHandleType shHandleType) {
    SIM_BEGIN();
    struct sim_note note;
    int passed = (int)(intptr_t)osHandle;
    if (!handle)
        return CUDA_ERROR_INVALID_VALUE;
    if (shHandleType != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
        return CUDA_ERROR_NOT_SUPPORTED;
    if (!sim_backing_read(passed, &note) || !note.properties.requestedHandleTypes)
        return CUDA_ERROR_INVALID_VALUE;
    bool host = note.card == SIM_NO_CARD;
    if (!host && !ordinal_of(note.card, &note.properties.location.id))
        return CUDA_ERROR_INVALID_DEVICE;
    int fd = dup(passed);
    if (fd < 0)
        return CUDA_ERROR_OPERATING_SYSTEM;
    sim_memory_lock();
    struct sim_physical *made = NULL;
    bool opened = host || sim_use_open(note.id);
    if (opened)
        made = make(&note.properties, note.card, note.bytes, fd);
    if (made)
        made->shared_id = note.id;
    else if (opened && !host)
        sim_use_close(note.id);
    sim_memory_unlock();
    if (!made) {
        close(fd);
        return opened ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_INVALID_VALUE;
    }
    *handle = (CUmemGenericAllocationHandle)(uintptr_t)made;
    return CUDA_SUCCESS;
}
