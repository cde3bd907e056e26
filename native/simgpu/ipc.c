/*
 * IPC handles of memory: they name a file in memory of the process that exported it, which others open
 * through /proc and map. Importer and exporter must see each other there: one pid namespace, one user.
 *
 * What is behind a handle is a whole block; several handles into one block are one import with several
 * addresses.
 */
#include "memory.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define IPC_MAGIC 0x6370696d6973U

/* What is in the 64 bytes of a handle. */
struct ticket {
    uint64_t magic, id;
    uint64_t offset, bytes; /* of the allocation in its block */
    int32_t pid, fd;
};
_Static_assert(sizeof(struct ticket) <= sizeof(CUipcMemHandle), "a handle has 64 bytes");

struct import {
    struct sim_node node; /* by number */
    CUdeviceptr address;
    uint64_t bytes;
    uint32_t card, opened;
};

static struct sim_node *imports;

SIM_EXPORT CUresult cuIpcGetMemHandle(CUipcMemHandle *pHandle, CUdeviceptr dptr) {
    SIM_BEGIN_IN(context);
    (void)context;
    struct ticket ticket = {.magic = IPC_MAGIC, .pid = (int32_t)getpid()};
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    if (!pHandle)
        return result;
    sim_synchronize_all(); /* nothing is to write while the data moves behind the file */
    sim_memory_lock();
    const struct sim_range *range = sim_range_at(dptr);
    if (range && range->kind == SIM_MEMORY_LINEAR) {
        struct sim_block *block = range->of;
        result = sim_block_share(block) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
        ticket.id = block->shared_id;
        ticket.fd = block->fd;
        ticket.offset = range->node.start - block->address;
        ticket.bytes = range->node.bytes;
    }
    sim_memory_unlock();
    if (result == CUDA_SUCCESS) {
        memset(pHandle, 0, sizeof *pHandle);
        memcpy(pHandle, &ticket, sizeof ticket);
    }
    return result;
}

/* ---- opening; lock held ---- */

static struct import *find(uint64_t id) {
    return (struct import *)sim_tree_at(imports, id);
}

static void end(struct import *import) {
    sim_unmap_pages(import->address, import->bytes);
    sim_use_close(import->node.start);
    sim_tree_drop(&imports, &import->node);
    free(import);
}

static CUresult import_new(const struct ticket *ticket, struct import **made) {
    char path[64];
    struct sim_note note;
    CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", ticket->pid, ticket->fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    struct import *import = calloc(1, sizeof *import);
    if (!sim_backing_read(fd, &note) || note.id != ticket->id ||
        ticket->offset + ticket->bytes > note.bytes || !sim_use_open(ticket->id)) {
        result = CUDA_ERROR_INVALID_VALUE;
    } else {
        CUdeviceptr address = import ? sim_map_pages(note.bytes) : 0;
        void *at = (void *)(uintptr_t)address;
        if (address && mmap(at, note.bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE,
                            fd, 0) == at) {
            madvise(at, note.bytes, MADV_DONTFORK);
            *import = (struct import){.node = {.start = note.id, .bytes = 1},
                                      .address = address,
                                      .bytes = note.bytes,
                                      .card = note.card};
            sim_tree_put(&imports, &import->node);
            *made = import;
            import = NULL;
            result = CUDA_SUCCESS;
        } else {
            sim_use_close(ticket->id);
        }
    }
    free(import);
    if (fd >= 0)
        close(fd);
    return result;
}

static CUresult open_ticket(struct CUctx_st *context, const struct ticket *ticket, CUdeviceptr *address) {
    struct import *import = find(ticket->id);
    CUresult result = import ? CUDA_SUCCESS : import_new(ticket, &import);
    if (result != CUDA_SUCCESS)
        return result;
    CUdeviceptr at = import->address + ticket->offset;
    struct sim_range *there = sim_range_at(at);
    if (there) { /* opened before: the same address, until it is closed as often */
        there->opened++;
        *address = at;
        return CUDA_SUCCESS;
    }
    struct sim_range range = {.node = {.start = at, .bytes = ticket->bytes},
                              .kind = SIM_MEMORY_IPC,
                              .context = context,
                              .card = import->card,
                              .device = context->device,
                              .of = import,
                              .opened = 1};
    if (ticket->offset + ticket->bytes > import->bytes || !ticket->bytes || !sim_range_put(&range)) {
        if (!import->opened)
            end(import);
        return CUDA_ERROR_INVALID_VALUE;
    }
    import->opened++;
    *address = at;
    return CUDA_SUCCESS;
}

static CUresult open_handle(struct CUctx_st *context, CUdeviceptr *address, const CUipcMemHandle *handle,
                            unsigned int flags) {
    struct ticket ticket;
    memcpy(&ticket, handle, sizeof ticket);
    if (!address || (flags & ~(unsigned int)CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS) || ticket.magic != IPC_MAGIC)
        return CUDA_ERROR_INVALID_VALUE;
    if (ticket.pid == (int32_t)getpid()) /* for other processes only */
        return CUDA_ERROR_INVALID_CONTEXT;
    sim_memory_lock();
    CUresult result = open_ticket(context, &ticket, address);
    sim_memory_unlock();
    return result;
}

SIM_EXPORT CUresult cuIpcOpenMemHandle_v2(CUdeviceptr *pdptr, CUipcMemHandle handle, unsigned int Flags) {
    SIM_BEGIN_IN(context);
    return open_handle(context, pdptr, &handle, Flags);
}

SIM_EXPORT CUresult cuIpcOpenMemHandle(CUdeviceptr *pdptr, CUipcMemHandle handle, unsigned int Flags) {
    SIM_BEGIN_IN(context);
    return open_handle(context, pdptr, &handle, Flags);
}

static void drop_opened(struct sim_range *range) {
    struct import *import = range->of;
    sim_range_drop(range);
    if (!--import->opened)
        end(import);
}

SIM_EXPORT CUresult cuIpcCloseMemHandle(CUdeviceptr dptr) {
    SIM_BEGIN_IN(context);
    (void)context;
    sim_synchronize_all();
    sim_memory_lock();
    struct sim_range *range = sim_range_at(dptr);
    bool found = range && range->kind == SIM_MEMORY_IPC && range->node.start == dptr;
    if (found && !--range->opened)
        drop_opened(range);
    sim_memory_unlock();
    return found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

void sim_ipc_context_ends(struct CUctx_st *context) {
    struct sim_range *next;
    sim_memory_lock();
    for (struct sim_range *range = sim_range_from(0); range; range = next) {
        next = sim_range_from(range->node.start + range->node.bytes);
        if (range->kind == SIM_MEMORY_IPC && range->context == context)
            drop_opened(range);
    }
    sim_memory_unlock();
}
