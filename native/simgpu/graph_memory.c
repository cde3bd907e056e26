/*
 * Memory that graphs allocate. An allocation node has its address from the beginning; the pages behind it are
 * taken by the first launch or upload and kept for the next, also when the graph is gone: then for any other
 * graph's. They are given back when the program trims them, or a context of the card ends.
 */
#include "graph.h"

#include <stdlib.h>

struct sim_graph_block {
    struct sim_graph_block *next;
    CUdeviceptr address;
    uint64_t bytes; /* whole pages */
    uint32_t card, references;
    bool backed, used; /* used: allocated by a launch, and not freed */
};

struct figures {
    uint64_t used, used_high, reserved, reserved_high;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct sim_graph_block *blocks;
static struct figures figures[SIM_CARDS];

void sim_graph_memory_forget(void) {
    pthread_mutex_init(&lock, NULL);
    blocks = NULL;
    for (uint32_t card = 0; card < SIM_CARDS; card++)
        figures[card] = (struct figures){0};
}

CUresult sim_graph_block_make(uint32_t card, uint64_t bytes, struct sim_graph_block **out,
                              CUdeviceptr *address) {
    if (!bytes || bytes > (uint64_t)1 << 46)
        return CUDA_ERROR_INVALID_VALUE;
    struct sim_graph_block *block = calloc(1, sizeof *block);
    if (!block)
        return CUDA_ERROR_OUT_OF_MEMORY;
    block->bytes = (bytes + SIM_PAGE_BYTES - 1) / SIM_PAGE_BYTES * SIM_PAGE_BYTES;
    block->card = card;
    block->references = 1;
    block->address = sim_address_reserve(block->bytes, SIM_PAGE_BYTES);
    if (!block->address) {
        free(block);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    pthread_mutex_lock(&lock);
    block->next = blocks;
    blocks = block;
    pthread_mutex_unlock(&lock);
    *out = block;
    *address = block->address;
    return CUDA_SUCCESS;
}

void sim_graph_block_drop(struct sim_graph_block *block) {
    pthread_mutex_lock(&lock);
    block->references--; /* what nobody refers to any more is taken apart where no other lock is held */
    pthread_mutex_unlock(&lock);
}

/* Take a block out of the list, of those that nobody refers to; NULL where there is none. Lock held. */
static struct sim_graph_block *take_orphan(uint32_t card) {
    for (struct sim_graph_block **link = &blocks; *link; link = &(*link)->next) {
        struct sim_graph_block *block = *link;
        if (block->card != card || block->references || block->used)
            continue;
        *link = block->next;
        if (block->backed)
            figures[card].reserved -= block->bytes;
        return block;
    }
    return NULL;
}

static void take_apart(struct sim_graph_block *block) {
    if (block->backed)
        sim_memory_unback(block->card, block->address, block->bytes);
    sim_address_free(block->address, block->bytes);
    free(block);
}

/* Pages that graphs of the past have left serve the next one: as many are given back as are taken, if there
 * are. */
static void reuse(uint32_t card, uint64_t bytes) {
    for (uint64_t given = 0; given < bytes;) {
        pthread_mutex_lock(&lock);
        struct sim_graph_block *block = take_orphan(card);
        pthread_mutex_unlock(&lock);
        if (!block)
            return;
        given += block->backed ? block->bytes : 0;
        take_apart(block);
    }
}

CUresult sim_graph_block_back(struct sim_graph_block *block) {
    pthread_mutex_lock(&lock);
    bool backed = block->backed;
    block->backed = true;
    pthread_mutex_unlock(&lock);
    if (backed)
        return CUDA_SUCCESS;
    reuse(block->card, block->bytes);
    CUresult result = sim_memory_back(block->card, block->address, block->bytes);
    pthread_mutex_lock(&lock);
    struct figures *sum = &figures[block->card];
    if (result == CUDA_SUCCESS) {
        sum->reserved += block->bytes;
        sum->reserved_high = sum->reserved > sum->reserved_high ? sum->reserved : sum->reserved_high;
    } else {
        block->backed = false;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

bool sim_graph_block_used(const struct sim_graph_block *block) {
    pthread_mutex_lock(&lock);
    bool used = block->used;
    pthread_mutex_unlock(&lock);
    return used;
}

void sim_graph_block_use(struct sim_graph_block *block) {
    pthread_mutex_lock(&lock);
    struct figures *sum = &figures[block->card];
    if (!block->used)
        sum->used += block->bytes;
    sum->used_high = sum->used > sum->used_high ? sum->used : sum->used_high;
    block->used = true;
    pthread_mutex_unlock(&lock);
}

static struct sim_graph_block *find(CUdeviceptr address) {
    struct sim_graph_block *block = blocks;
    while (block && block->address != address)
        block = block->next;
    return block;
}

bool sim_graph_block_is(CUdeviceptr address) {
    pthread_mutex_lock(&lock);
    bool found = find(address) != NULL;
    pthread_mutex_unlock(&lock);
    return found;
}

bool sim_graph_memory_free(CUdeviceptr address) {
    pthread_mutex_lock(&lock);
    struct sim_graph_block *block = find(address);
    bool used = block && block->used;
    if (used) {
        block->used = false;
        figures[block->card].used -= block->bytes;
    }
    pthread_mutex_unlock(&lock);
    return used;
}

void sim_graph_memory_trim(uint32_t card) {
    reuse(card, UINT64_MAX);
    for (;;) {
        pthread_mutex_lock(&lock);
        struct sim_graph_block *block = blocks;
        while (block && (block->card != card || block->used || !block->backed))
            block = block->next;
        if (block) {
            block->backed = false;
            figures[card].reserved -= block->bytes;
        }
        pthread_mutex_unlock(&lock);
        if (!block)
            return;
        sim_memory_unback(card, block->address, block->bytes);
    }
}

/* ---- the calls ---- */

SIM_EXPORT CUresult cuDeviceGraphMemTrim(CUdevice device) {
    uint32_t card;
    SIM_BEGIN();
    CUresult result = sim_card_of(device, &card);
    if (result != CUDA_SUCCESS)
        return result;
    sim_synchronize_all(); /* launches that go on still use theirs */
    sim_graph_memory_trim(card);
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDeviceGetGraphMemAttribute(CUdevice device, CUgraphMem_attribute attr, void *value) {
    uint32_t card;
    SIM_BEGIN();
    CUresult result = sim_card_of(device, &card);
    if (result != CUDA_SUCCESS)
        return result;
    if (!value || (unsigned int)attr > CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&lock);
    const struct figures *sum = &figures[card];
    *(cuuint64_t *)value = attr == CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT       ? sum->used
                           : attr == CU_GRAPH_MEM_ATTR_USED_MEM_HIGH        ? sum->used_high
                           : attr == CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT ? sum->reserved
                                                                            : sum->reserved_high;
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuDeviceSetGraphMemAttribute(CUdevice device, CUgraphMem_attribute attr, void *value) {
    uint32_t card;
    SIM_BEGIN();
    CUresult result = sim_card_of(device, &card);
    if (result != CUDA_SUCCESS)
        return result;
    bool high = attr == CU_GRAPH_MEM_ATTR_USED_MEM_HIGH || attr == CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH;
    if (!value || !high || *(const cuuint64_t *)value)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&lock);
    if (attr == CU_GRAPH_MEM_ATTR_USED_MEM_HIGH)
        figures[card].used_high = figures[card].used;
    else
        figures[card].reserved_high = figures[card].reserved;
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}
