/*
 * What the files of memory know of one another.
 *
 * One lock, sim_memory_lock, guards all of it in this process. It is taken before the machine's; with it held
 * nothing of work is called (sim_submit_job, sim_context_synchronize, ...). Actions take it, so it is held
 * only shortly.
 */
#ifndef SIM_MEMORY_H
#define SIM_MEMORY_H

#include "driver.h"

void sim_memory_lock(void);
void sim_memory_unlock(void);

/* ---- what lies where (address.c); lock held ---- */

/* Sorted by start, no two overlap. Handles are kept in such trees too: start is the pointer, bytes 1. */
struct sim_node {
    uint64_t start, bytes;
    struct sim_node *left, *right;
    uint32_t priority;
};

void sim_tree_put(struct sim_node **root, struct sim_node *node);
void sim_tree_drop(struct sim_node **root, const struct sim_node *node);
/* The one that `address` lies in, or NULL. */
struct sim_node *sim_tree_at(struct sim_node *root, uint64_t address);
/* The first that ends after `address`. */
struct sim_node *sim_tree_from(struct sim_node *root, uint64_t address);
/* Whether a pointer is a live handle in this tree. */
bool sim_tree_has(struct sim_node *root, const void *handle);

enum sim_memory_kind {
    SIM_MEMORY_LINEAR,     /* cuMemAlloc; of: its block */
    SIM_MEMORY_MANAGED,    /* cuMemAllocManaged; of: its block */
    SIM_MEMORY_INTERNAL,   /* the driver's own in a context; of: its block */
    SIM_MEMORY_HOST,       /* cuMemHostAlloc */
    SIM_MEMORY_REGISTERED, /* cuMemHostRegister */
    SIM_MEMORY_MAPPED,     /* cuMemMap; of: its handle */
    SIM_MEMORY_POOLED,     /* cuMemAllocAsync; of: its piece of a pool */
    SIM_MEMORY_GRAPH,      /* sim_memory_back */
    SIM_MEMORY_IPC,        /* cuIpcOpenMemHandle; of: the import */
};

/* Memory that a program knows by its address. */
struct sim_range {
    struct sim_node node;
    enum sim_memory_kind kind;
    struct CUctx_st *context; /* in which it was made; NULL: the process's */
    uint32_t card;
    CUdevice device;
    unsigned int flags; /* of the call that made it */
    uint64_t id;        /* CU_POINTER_ATTRIBUTE_BUFFER_ID */
    int sync_memops;
    uint32_t opened; /* of IPC: how often */
    bool leaving;    /* freed in a stream that has not got there yet */
    int read_mostly, preferred,
        prefetched; /* cuMemAdvise and cuMemPrefetchAsync: remembered, a device each */
    void *of;
};

/* The range that an address lies in, or NULL; and one that begins there. */
struct sim_range *sim_range_at(CUdeviceptr address);
struct sim_range *sim_range_from(CUdeviceptr address);
struct sim_range *sim_range_put(const struct sim_range *range); /* a copy, with a fresh id; NULL: no memory */
void sim_range_drop(struct sim_range *range);
/* Whether [address, address + bytes) is memory that the card may read, or write, without holes; in `host`
 * whether it is all the host's. */
bool sim_range_covers(CUdeviceptr address, uint64_t bytes, bool written, bool *host);
bool sim_kind_is_host(enum sim_memory_kind kind);
/* Whether memory will be there when a graph is launched: addresses of sim_address_reserve. */
bool sim_range_expected(CUdeviceptr address, uint64_t bytes);

/* Memory behind addresses: a fresh readable mapping of whole pages, and its end. 0 where there is none. */
CUdeviceptr sim_map_pages(uint64_t bytes);
void sim_unmap_pages(CUdeviceptr address, uint64_t bytes);
/* The same without access to it, and without pages. */
CUdeviceptr sim_map_nothing(uint64_t bytes, uint64_t alignment);
/* Put nothing behind addresses again, and keep them. */
void sim_hide_pages(CUdeviceptr address, uint64_t bytes);

/* Up to the next multiple; `to` is a power of two. UINT64_MAX where that is out of range. */
static inline uint64_t sim_round_up(uint64_t bytes, uint64_t to) {
    return bytes > UINT64_MAX - to ? UINT64_MAX : (bytes + to - 1) & ~(to - 1);
}

/* ---- pages of a card (block.c) ---- */

bool sim_pages_take(uint32_t card, uint64_t bytes);
void sim_pages_give(uint32_t card, uint64_t bytes);

enum sim_heap_class { SIM_HEAP_DATA, SIM_HEAP_MANAGED, SIM_HEAP_INTERNAL, SIM_HEAP_CLASSES };

/* Whole pages, in which one large or several small allocations lie. */
struct sim_block {
    struct sim_block *next, *previous;
    struct CUctx_st *context;
    enum sim_heap_class class;
    CUdeviceptr address;
    uint64_t bytes;
    int fd;             /* the file behind it, once another process may open it; -1 */
    uint64_t shared_id; /* the machine's entry for it; 0 = none */
    bool small;
    uint32_t free_units, longest; /* of small ones: units free; no run is longer than `longest` */
    uint64_t taken[];             /* of small ones: a bit for each unit */
};

/* Lock held. `*block` is what to hand to sim_heap_free. */
/* CUDA_ERROR_CONTEXT_IS_DESTROYED where the context has ended meanwhile. */
CUresult sim_heap_allocate(struct CUctx_st *context, enum sim_heap_class class, uint64_t bytes,
                           CUdeviceptr *address, struct sim_block **block);
void sim_heap_free(struct sim_block *block, CUdeviceptr address, uint64_t bytes);
/* Put a file behind the block, the data included, for other processes. */
bool sim_block_share(struct sim_block *block);
/* What does not show pages to the program (arrays) shares them by its sum: account for `bytes` more or less.
 */
bool sim_heap_charge(struct CUctx_st *context, uint64_t bytes);
void sim_heap_discharge(struct CUctx_st *context, uint64_t bytes);
void sim_heap_end(struct CUctx_st *context);

/* ---- memory that several processes may have (share.c); lock held ---- */

/* What the last page of such a file says. */
struct sim_note {
    uint64_t magic, id, bytes;
    uint32_t card;                  /* UINT32_MAX: the host's */
    CUmemAllocationProp properties; /* of cuMemCreate; no handle type: not from there */
};

/* A file with room for note->bytes, and the note; -1. And the note of a file that somebody passed. */
int sim_memory_file_make(const struct sim_note *note);
bool sim_backing_read(int fd, struct sim_note *note);

/* Uses of the machine's entry within this process: it is left with the last. */
bool sim_use_made(uint64_t id); /* after sim_shared_make */
bool sim_use_open(uint64_t id);
void sim_use_close(uint64_t id);
void sim_use_forget(
    uint64_t id); /* nobody else has opened it: as if it had not been made; the pages are kept */

/* ---- what ends with a context ---- */

void sim_arrays_context_ends(struct CUctx_st *context);
void sim_pools_context_ends(struct CUctx_st *context);
void sim_ipc_context_ends(struct CUctx_st *context);
void sim_host_context_ends(struct CUctx_st *context);

/* ---- freeing, of what cuMemFree takes (memory.c); no lock held ---- */

/* False where the address is none of that; `leaving`: the end of a cuMemFreeAsync, else not of such memory.
 */
bool sim_memory_free(CUdeviceptr address, bool leaving);

/* ---- pools (pool.c), for cuMemFree ---- */

/* Lock held: give a piece back at once. */
void sim_piece_free(struct sim_range *range);

/* ---- for pointer attributes; lock held ---- */

/* The reserved addresses around one, of cuMemAddressReserve (mapping.c). */
bool sim_reservation_at(CUdeviceptr address, CUdeviceptr *start, uint64_t *bytes);
/* The pool that a piece is of (pool.c). */
CUmemoryPool sim_piece_pool(const struct sim_range *range);

/* ---- arrays (array.c), for copies; lock held ---- */

struct sim_array_view {
    unsigned char *data;
    uint64_t width_bytes, height, depth; /* at least 1 each */
    uint64_t row_bytes, slice_bytes;
    uint64_t element_bytes;
    uint32_t card;
};
bool sim_array_view(CUarray array, struct sim_array_view *view);

#endif
