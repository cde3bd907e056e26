/*
 * Pages of a card, and small allocations inside them.
 *
 * An allocation of more than SMALL_BYTES has whole pages to itself. Smaller ones share pages of 2 MiB with
 * others of their context and class, in units of 512 bytes, first fit. A page is the card's again with its
 * last allocation.
 */
#include "memory.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define UNIT_BYTES 512U
#define UNITS ((uint32_t)(SIM_PAGE_BYTES / UNIT_BYTES))
#define SMALL_BYTES ((uint64_t)1 << 20)
#define NOWHERE UINT32_MAX

struct sim_heap {
    struct sim_block *blocks[SIM_HEAP_CLASSES]; /* small ones with room, and large ones */
    struct sim_block *full[SIM_HEAP_CLASSES];   /* small ones without */
    uint64_t summed, charged; /* what shares pages by its sum, and the pages taken for that */
};

bool sim_pages_take(uint32_t card, uint64_t bytes) {
    sim_machine_lock();
    bool taken = sim_card_take(card, bytes);
    sim_machine_unlock();
    return taken;
}

void sim_pages_give(uint32_t card, uint64_t bytes) {
    sim_machine_lock();
    sim_card_give(card, bytes);
    sim_machine_unlock();
}

static struct sim_heap *heap_of(struct CUctx_st *context) {
    if (!context->heap)
        context->heap = calloc(1, sizeof *context->heap);
    return context->heap;
}

/* ---- lists ---- */

static void link_in(struct sim_block **list, struct sim_block *block) {
    block->previous = NULL;
    block->next = *list;
    if (*list)
        (*list)->previous = block;
    *list = block;
}

static void link_out(struct sim_block **list, struct sim_block *block) {
    if (block->previous)
        block->previous->next = block->next;
    else
        *list = block->next;
    if (block->next)
        block->next->previous = block->previous;
}

static struct sim_block **list_of(struct sim_block *block) {
    struct sim_heap *heap = block->context->heap;
    return block->small && !block->free_units ? &heap->full[block->class] : &heap->blocks[block->class];
}

/* ---- units ---- */

static void mark(struct sim_block *block, uint32_t first, uint32_t count, bool taken) {
    for (uint32_t unit = first; unit < first + count; unit++) {
        uint64_t bit = (uint64_t)1 << (unit % 64);
        block->taken[unit / 64] = taken ? block->taken[unit / 64] | bit : block->taken[unit / 64] & ~bit;
    }
    block->free_units = taken ? block->free_units - count : block->free_units + count;
}

/* The first unit from `unit` on that is taken or not, as asked. */
static uint32_t next_unit(const struct sim_block *block, uint32_t unit, bool taken) {
    while (unit < UNITS) {
        uint64_t word = taken ? block->taken[unit / 64] : ~block->taken[unit / 64];
        word >>= unit % 64;
        if (word)
            return unit + (uint32_t)__builtin_ctzll(word);
        unit = (unit / 64 + 1) * 64;
    }
    return UNITS;
}

static uint32_t find_run(struct sim_block *block, uint32_t count) {
    uint32_t longest = 0;
    if (block->longest < count)
        return NOWHERE;
    for (uint32_t from = next_unit(block, 0, false); from < UNITS;) {
        uint32_t to = next_unit(block, from, true);
        if (to - from >= count)
            return from;
        longest = to - from > longest ? to - from : longest;
        from = next_unit(block, to, false);
    }
    block->longest = longest;
    return NOWHERE;
}

static uint32_t units_of(uint64_t bytes) {
    return (uint32_t)((bytes + UNIT_BYTES - 1) / UNIT_BYTES);
}

/* ---- blocks ---- */

static CUresult make(struct CUctx_st *context, enum sim_heap_class class, uint64_t bytes, bool small,
                     struct sim_block **made) {
    struct sim_block *block = calloc(1, sizeof *block + (small ? UNITS / 8 : 0));
    if (!block || !sim_pages_take(context->card, bytes)) {
        free(block);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *block = (struct sim_block){.context = context, .class = class, .bytes = bytes, .fd = -1, .small = small};
    block->address = sim_map_pages(bytes);
    if (!block->address) {
        sim_pages_give(context->card, bytes);
        free(block);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    block->free_units = block->longest = small ? UNITS : 0;
    link_in(&context->heap->blocks[class], block);
    *made = block;
    return CUDA_SUCCESS;
}

/* The block is in no list any more. */
static void end(struct sim_block *block) {
    sim_unmap_pages(block->address, block->bytes);
    if (block->fd >= 0)
        close(block->fd);
    if (block->shared_id)
        sim_use_close(block->shared_id);
    else
        sim_pages_give(block->context->card, block->bytes);
    free(block);
}

CUresult sim_heap_allocate(struct CUctx_st *context, enum sim_heap_class class, uint64_t bytes,
                           CUdeviceptr *address, struct sim_block **block) {
    if (!sim_is_context(context))
        return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    struct sim_heap *heap = heap_of(context);
    if (!heap)
        return CUDA_ERROR_OUT_OF_MEMORY;
    if (bytes > SMALL_BYTES) {
        CUresult result = make(context, class, sim_round_up(bytes, SIM_PAGE_BYTES), false, block);
        if (result == CUDA_SUCCESS)
            *address = (*block)->address;
        return result;
    }
    uint32_t count = units_of(bytes), first = NOWHERE;
    struct sim_block *found = heap->blocks[class];
    for (; found; found = found->next)
        if (found->small && (first = find_run(found, count)) != NOWHERE)
            break;
    if (!found) {
        CUresult result = make(context, class, SIM_PAGE_BYTES, true, &found);
        if (result != CUDA_SUCCESS)
            return result;
        first = 0;
    }
    link_out(list_of(found), found);
    mark(found, first, count, true);
    link_in(list_of(found), found);
    *address = found->address + (uint64_t)first * UNIT_BYTES;
    *block = found;
    return CUDA_SUCCESS;
}

void sim_heap_free(struct sim_block *block, CUdeviceptr address, uint64_t bytes) {
    link_out(list_of(block), block);
    if (block->small) {
        mark(block, (uint32_t)((address - block->address) / UNIT_BYTES), units_of(bytes), false);
        block->longest = block->free_units;
    }
    if (block->small && block->free_units < UNITS)
        link_in(list_of(block), block);
    else
        end(block);
}

/* Copy what isn't zero: pages that nobody has touched cost the host nothing, and are to stay so. */
static bool copy_out(int fd, const unsigned char *data, uint64_t bytes) {
    static const unsigned char zeros[4096];
    for (uint64_t at = 0; at < bytes; at += sizeof zeros) {
        if (memcmp(data + at, zeros, sizeof zeros) == 0)
            continue;
        if (pwrite(fd, data + at, sizeof zeros, (off_t)at) != (ssize_t)sizeof zeros)
            return false;
    }
    return true;
}

bool sim_block_share(struct sim_block *block) {
    if (block->shared_id)
        return true;
    sim_machine_lock();
    uint64_t id = sim_shared_make(block->context->card, block->bytes);
    sim_machine_unlock();
    if (!id || !sim_use_made(id))
        return false;
    void *at = (void *)(uintptr_t)block->address;
    struct sim_note note = {.id = id, .bytes = block->bytes, .card = block->context->card};
    block->fd = sim_memory_file_make(&note);
    if (block->fd >= 0 && copy_out(block->fd, at, block->bytes) &&
        mmap(at, block->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, block->fd,
             0) == at) {
        madvise(at, block->bytes, MADV_DONTFORK);
        block->shared_id = id;
        return true;
    }
    if (block->fd >= 0)
        close(block->fd);
    block->fd = -1;
    sim_use_forget(id); /* the pages stay this block's */
    return false;
}

/* ---- what shares pages by its sum ---- */

bool sim_heap_charge(struct CUctx_st *context, uint64_t bytes) {
    struct sim_heap *heap = sim_is_context(context) ? heap_of(context) : NULL;
    if (!heap)
        return false;
    uint64_t wanted = sim_round_up(heap->summed + bytes, SIM_PAGE_BYTES);
    if (wanted > heap->charged && !sim_pages_take(context->card, wanted - heap->charged))
        return false;
    heap->summed += bytes;
    heap->charged = wanted;
    return true;
}

void sim_heap_discharge(struct CUctx_st *context, uint64_t bytes) {
    struct sim_heap *heap = context->heap;
    heap->summed -= bytes;
    uint64_t wanted = sim_round_up(heap->summed, SIM_PAGE_BYTES);
    sim_pages_give(context->card, heap->charged - wanted);
    heap->charged = wanted;
}

void sim_heap_end(struct CUctx_st *context) {
    struct sim_heap *heap = context->heap;
    if (!heap)
        return;
    for (int class = 0; class < SIM_HEAP_CLASSES; class++) {
        struct sim_block **lists[] = {&heap->blocks[class], &heap->full[class]};
        for (int list = 0; list < 2; list++) {
            while (*lists[list]) {
                struct sim_block *block = *lists[list];
                *lists[list] = block->next;
                end(block);
            }
        }
    }
    sim_pages_give(context->card, heap->charged);
    free(heap);
    context->heap = NULL;
}
