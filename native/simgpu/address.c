/*
 * The address space of the cards, which is this process's own, and what the program knows in it.
 *
 * Ranges are kept in a treap: a search tree by address that random priorities keep balanced.
 */
#include "memory.h"

#include <stdlib.h>
#include <sys/mman.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct sim_node *ranges;
static struct sim_node *expected; /* addresses that the driver has reserved for memory to come */

void sim_memory_lock(void) {
    pthread_mutex_lock(&lock);
}

void sim_memory_unlock(void) {
    pthread_mutex_unlock(&lock);
}

/* ---- trees ---- */

static uint32_t next_priority(void) {
    static uint32_t state = 2463534242U; /* xorshift; under the lock */
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
}

/* Everything below `start`, and the rest. */
static void split(struct sim_node *tree, uint64_t start, struct sim_node **below, struct sim_node **rest) {
    while (tree) {
        if (tree->start < start) {
            *below = tree;
            below = &tree->right;
            tree = tree->right;
        } else {
            *rest = tree;
            rest = &tree->left;
            tree = tree->left;
        }
    }
    *below = *rest = NULL;
}

static struct sim_node *join(struct sim_node *below, struct sim_node *rest) {
    struct sim_node *root = NULL, **link = &root;
    while (below && rest) {
        if (below->priority > rest->priority) {
            *link = below;
            link = &below->right;
            below = below->right;
        } else {
            *link = rest;
            link = &rest->left;
            rest = rest->left;
        }
    }
    *link = below ? below : rest;
    return root;
}

void sim_tree_put(struct sim_node **root, struct sim_node *node) {
    node->priority = next_priority();
    while (*root && (*root)->priority >= node->priority)
        root = node->start < (*root)->start ? &(*root)->left : &(*root)->right;
    split(*root, node->start, &node->left, &node->right);
    *root = node;
}

void sim_tree_drop(struct sim_node **root, const struct sim_node *node) {
    while (*root && *root != node)
        root = node->start < (*root)->start ? &(*root)->left : &(*root)->right;
    if (*root)
        *root = join(node->left, node->right);
}

struct sim_node *sim_tree_from(struct sim_node *root, uint64_t address) {
    struct sim_node *found = NULL;
    while (root) {
        if (root->start + root->bytes > address) {
            found = root;
            root = root->left;
        } else {
            root = root->right;
        }
    }
    return found;
}

struct sim_node *sim_tree_at(struct sim_node *root, uint64_t address) {
    struct sim_node *found = sim_tree_from(root, address);
    return found && found->start <= address ? found : NULL;
}

bool sim_tree_has(struct sim_node *root, const void *handle) {
    const struct sim_node *found = sim_tree_at(root, (uint64_t)(uintptr_t)handle);
    return found && found->start == (uint64_t)(uintptr_t)handle;
}

/* ---- ranges ---- */

struct sim_range *sim_range_from(CUdeviceptr address) {
    return (struct sim_range *)sim_tree_from(ranges, address);
}

struct sim_range *sim_range_at(CUdeviceptr address) {
    return (struct sim_range *)sim_tree_at(ranges, address);
}

struct sim_range *sim_range_put(const struct sim_range *range) {
    static uint64_t ids;
    struct sim_range *made = malloc(sizeof *made);
    if (made) {
        /* What is registered here still was unmapped by the program without a word. */
        for (struct sim_range *stale = sim_range_from(range->node.start);
             stale && stale->node.start < range->node.start + range->node.bytes;
             stale = sim_range_from(range->node.start))
            sim_range_drop(stale);
        *made = *range;
        made->id = ++ids;
        sim_tree_put(&ranges, &made->node);
    }
    return made;
}

void sim_range_drop(struct sim_range *range) {
    sim_tree_drop(&ranges, &range->node);
    free(range);
}

bool sim_kind_is_host(enum sim_memory_kind kind) {
    return kind == SIM_MEMORY_HOST || kind == SIM_MEMORY_REGISTERED;
}

/* What is only mapped may not be touched before access has been set. */
static bool may_touch(const struct sim_range *range, bool written) {
    return range->kind != SIM_MEMORY_MAPPED ||
           (written ? range->flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE : range->flags != 0);
}

bool sim_range_covers(CUdeviceptr address, uint64_t bytes, bool written, bool *host) {
    uint64_t end = address + bytes;
    *host = true;
    if (!address || end < address)
        return false;
    do {
        const struct sim_range *range = sim_range_at(address);
        if (!range || !may_touch(range, written))
            return false;
        *host = *host && sim_kind_is_host(range->kind);
        address = range->node.start + range->node.bytes;
    } while (address < end);
    return true;
}

/* ---- address space ---- */

static void *map(uint64_t bytes, uint64_t alignment, int protection) {
    static _Atomic uint64_t hint; /* below the last one: aligned, and most likely free */
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    if (!bytes || bytes > (uint64_t)1 << 46 || alignment > (uint64_t)1 << 40)
        return NULL;
    uint64_t wanted = hint > bytes ? (hint - bytes) & ~(alignment - 1) : 0;
    char *at = mmap((void *)(uintptr_t)wanted, bytes, protection, flags, -1, 0);
    if (at == MAP_FAILED)
        return NULL;
    if ((uintptr_t)at & (alignment - 1)) {
        munmap(at, bytes);
        char *wide = mmap(NULL, bytes + alignment, protection, flags, -1, 0);
        if (wide == MAP_FAILED)
            return NULL;
        at = (char *)(((uintptr_t)wide + alignment - 1) & ~(uintptr_t)(alignment - 1));
        if (at > wide)
            munmap(wide, (size_t)(at - wide));
        if (wide + alignment > at)
            munmap(at + bytes, (size_t)(wide + alignment - at));
    }
    hint = (uintptr_t)at;
    madvise(at, bytes, MADV_DONTFORK); /* a child has no part in the card's memory */
    return at;
}

CUdeviceptr sim_map_pages(uint64_t bytes) {
    return (CUdeviceptr)(uintptr_t)map(sim_round_up(bytes, SIM_PAGE_BYTES), SIM_PAGE_BYTES,
                                       PROT_READ | PROT_WRITE);
}

void sim_unmap_pages(CUdeviceptr address, uint64_t bytes) {
    munmap((void *)(uintptr_t)address, sim_round_up(bytes, SIM_PAGE_BYTES));
}

void sim_hide_pages(CUdeviceptr address, uint64_t bytes) {
    void *at = (void *)(uintptr_t)address;
    if (mmap(at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == at)
        madvise(at, bytes, MADV_DONTFORK);
}

CUdeviceptr sim_map_nothing(uint64_t bytes, uint64_t alignment) {
    if (alignment < SIM_PAGE_BYTES)
        alignment = SIM_PAGE_BYTES;
    if (alignment & (alignment - 1))
        return 0;
    return (CUdeviceptr)(uintptr_t)map(sim_round_up(bytes, SIM_PAGE_BYTES), alignment, PROT_NONE);
}

CUdeviceptr sim_address_reserve(uint64_t bytes, uint64_t alignment) {
    struct sim_node *node = calloc(1, sizeof *node);
    CUdeviceptr address = node ? sim_map_nothing(bytes, alignment) : 0;
    if (!address) {
        free(node);
        return 0;
    }
    node->start = address;
    node->bytes = sim_round_up(bytes, SIM_PAGE_BYTES);
    sim_memory_lock();
    sim_tree_put(&expected, node);
    sim_memory_unlock();
    return address;
}

void sim_address_free(CUdeviceptr address, uint64_t bytes) {
    sim_memory_lock();
    struct sim_node *node = sim_tree_at(expected, address);
    if (node)
        sim_tree_drop(&expected, node);
    sim_memory_unlock();
    free(node);
    sim_unmap_pages(address, bytes);
}

bool sim_range_expected(CUdeviceptr address, uint64_t bytes) {
    const struct sim_node *node = sim_tree_at(expected, address);
    return node && bytes <= node->start + node->bytes - address;
}

CUresult sim_memory_back(uint32_t card, CUdeviceptr address, uint64_t bytes) {
    bytes = sim_round_up(bytes, SIM_PAGE_BYTES);
    CUresult result = CUDA_ERROR_INVALID_VALUE; /* there is something already */
    sim_memory_lock();
    const struct sim_range *there = sim_range_from(address);
    if (!there || there->node.start >= address + bytes) {
        struct sim_range range = {
            .node = {.start = address, .bytes = bytes}, .kind = SIM_MEMORY_GRAPH, .card = card};
        struct sim_range *made = NULL;
        bool taken = sim_pages_take(card, bytes);
        result = CUDA_ERROR_OUT_OF_MEMORY;
        if (taken && mprotect((void *)(uintptr_t)address, bytes, PROT_READ | PROT_WRITE) == 0)
            made = sim_range_put(&range);
        if (made)
            result = CUDA_SUCCESS;
        else if (taken)
            sim_pages_give(card, bytes);
    }
    sim_memory_unlock();
    return result;
}

void sim_memory_unback(uint32_t card, CUdeviceptr address, uint64_t bytes) {
    bytes = sim_round_up(bytes, SIM_PAGE_BYTES);
    sim_memory_lock();
    struct sim_range *range = sim_range_at(address);
    if (range && range->kind == SIM_MEMORY_GRAPH && range->node.start == address &&
        range->node.bytes == bytes) {
        sim_range_drop(range);
        sim_hide_pages(address, bytes);
        sim_pages_give(card, bytes);
    }
    sim_memory_unlock();
}
