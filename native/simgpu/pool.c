/*
 * Stream-ordered pools: chunks of the card's memory, cut into pieces.
 *
 * A pool grows by multiples of 32 MiB (by whole pages where the card has no more than that). A piece that was
 * freed in a stream can be had again by that stream at once, and by others when the stream has got there.
 * Chunks that are free go back to the card when work is waited for, as far as the pool's threshold allows.
 */
#include "pool.h"

#include <stdlib.h>

#define CHUNK_BYTES ((uint64_t)32 << 20)
#define PIECE_ALIGNMENT 512U

enum piece_state { PIECE_FREE, PIECE_USED, PIECE_LEAVING };

struct sim_piece {
    struct sim_node node;              /* among those that leave, by number */
    struct sim_piece *next, *previous; /* in the chunk, by address */
    struct sim_chunk *chunk;
    CUdeviceptr address;
    uint64_t bytes;
    enum piece_state state;
    CUstream lane; /* in which it was freed */
};

struct sim_chunk {
    struct sim_chunk *next;
    struct CUmemPoolHandle_st *pool;
    CUdeviceptr address;
    uint64_t bytes;
    struct sim_piece *first;
};

static struct sim_node *pools, *leaving;
static CUmemoryPool defaults[SIM_CARDS + 1], currents[SIM_CARDS + 1]; /* by card; the last is the host's */

static size_t place_of(uint32_t card) {
    return card == SIM_NO_CARD ? SIM_CARDS : card;
}

bool sim_pool_is(CUmemoryPool pool) {
    return sim_tree_has(pools, pool) && !pool->destroyed;
}

CUmemoryPool sim_piece_pool(const struct sim_range *range) {
    CUmemoryPool pool = ((struct sim_piece *)range->of)->chunk->pool;
    return pool->destroyed ? NULL : pool;
}

CUmemoryPool sim_pool_make(const CUmemPoolProps *properties, uint32_t card) {
    CUmemoryPool pool = calloc(1, sizeof *pool);
    if (pool) {
        *pool = (struct CUmemPoolHandle_st){
            .card = card, .device = properties->location.id, .properties = *properties, .reuse = {1, 1, 1}};
        pool->node = (struct sim_node){.start = (uint64_t)(uintptr_t)pool, .bytes = 1};
        sim_tree_put(&pools, &pool->node);
    }
    return pool;
}

CUmemoryPool sim_pool_default(uint32_t card, CUdevice device) {
    CUmemoryPool *found = &defaults[place_of(card)];
    if (!*found) {
        CUmemPoolProps properties = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED};
        properties.location.type =
            card == SIM_NO_CARD ? CU_MEM_LOCATION_TYPE_HOST : CU_MEM_LOCATION_TYPE_DEVICE;
        properties.location.id = device;
        *found = sim_pool_make(&properties, card);
        if (*found)
            (*found)->is_default = true;
    }
    return *found;
}

CUmemoryPool sim_pool_current(uint32_t card, CUdevice device) {
    CUmemoryPool current = currents[place_of(card)];
    return current ? current : sim_pool_default(card, device);
}

void sim_pool_set_current(uint32_t card, CUmemoryPool pool) {
    currents[place_of(card)] = pool;
}

/* ---- chunks ---- */

static bool is_empty(const struct sim_chunk *chunk) {
    return chunk->first->state == PIECE_FREE && !chunk->first->next;
}

static struct sim_chunk *add_chunk(CUmemoryPool pool, uint64_t bytes) {
    uint64_t most = pool->properties.maxSize;
    struct sim_chunk *chunk = calloc(1, sizeof *chunk);
    struct sim_piece *piece = calloc(1, sizeof *piece);
    bool on_card = pool->card != SIM_NO_CARD;
    bool allowed = chunk && piece && (!most || (bytes <= most && pool->reserved <= most - bytes));
    bool taken = allowed && (!on_card || sim_pages_take(pool->card, bytes));
    CUdeviceptr address = taken ? sim_map_pages(bytes) : 0;
    if (!address) {
        if (taken && on_card)
            sim_pages_give(pool->card, bytes);
        free(chunk);
        free(piece);
        return NULL;
    }
    *piece = (struct sim_piece){.chunk = chunk, .address = address, .bytes = bytes};
    *chunk = (struct sim_chunk){
        .next = pool->chunks, .pool = pool, .address = address, .bytes = bytes, .first = piece};
    pool->chunks = chunk;
    pool->reserved += bytes;
    if (pool->reserved > pool->reserved_high)
        pool->reserved_high = pool->reserved;
    return chunk;
}

static void end_chunk(struct sim_chunk **link) {
    struct sim_chunk *chunk = *link;
    CUmemoryPool pool = chunk->pool;
    *link = chunk->next;
    pool->reserved -= chunk->bytes;
    sim_unmap_pages(chunk->address, chunk->bytes);
    if (pool->card != SIM_NO_CARD)
        sim_pages_give(pool->card, chunk->bytes);
    free(chunk->first);
    free(chunk);
}

void sim_pool_trim(CUmemoryPool pool, uint64_t keep) {
    for (struct sim_chunk **link = &pool->chunks; *link;) {
        bool more_than_kept = pool->reserved - (*link)->bytes >= keep;
        if (is_empty(*link) && more_than_kept)
            end_chunk(link);
        else
            link = &(*link)->next;
    }
}

void sim_pools_trim(uint32_t wholly) {
    for (struct sim_node *node = sim_tree_from(pools, 0); node;
         node = sim_tree_from(pools, node->start + 1)) {
        CUmemoryPool pool = (CUmemoryPool)node;
        if (pool->chunks)
            sim_pool_trim(pool, pool->card == wholly ? 0 : pool->threshold);
    }
}

/* A pool that was destroyed goes with its last piece. */
static void settle(CUmemoryPool pool) {
    if (!pool->destroyed)
        return;
    sim_pool_trim(pool, 0);
    if (!pool->chunks) {
        sim_tree_drop(&pools, &pool->node);
        free(pool);
    }
}

void sim_pool_destroy(CUmemoryPool pool) {
    size_t place = place_of(pool->card);
    if (currents[place] == pool)
        currents[place] = NULL;
    pool->destroyed = true;
    settle(pool);
}

/* ---- pieces ---- */

static void stop_leaving(struct sim_piece *piece) {
    sim_tree_drop(&leaving, &piece->node);
    piece->chunk->pool->leaving--;
}

static void swallow_next(struct sim_piece *piece) {
    struct sim_piece *next = piece->next;
    piece->bytes += next->bytes;
    piece->next = next->next;
    if (piece->next)
        piece->next->previous = piece;
    free(next);
}

/* Nobody's any more. */
static void set_free(struct sim_piece *piece) {
    CUmemoryPool pool = piece->chunk->pool;
    pool->used -= piece->bytes;
    piece->state = PIECE_FREE;
    if (piece->next && piece->next->state == PIECE_FREE)
        swallow_next(piece);
    if (piece->previous && piece->previous->state == PIECE_FREE)
        swallow_next(piece->previous);
    settle(pool);
}

static bool may_have(const struct sim_piece *piece, CUstream lane) {
    return piece->state == PIECE_FREE || (piece->state == PIECE_LEAVING && piece->lane == lane);
}

static struct sim_piece *best_fit(CUmemoryPool pool, uint64_t bytes, CUstream lane) {
    struct sim_piece *best = NULL;
    for (const struct sim_chunk *chunk = pool->chunks; chunk; chunk = chunk->next)
        for (struct sim_piece *piece = chunk->first; piece; piece = piece->next)
            if (piece->bytes >= bytes && (!best || piece->bytes < best->bytes) && may_have(piece, lane))
                best = piece;
    return best;
}

/* Cut off what lies behind the first `bytes`: a piece of the same state, by the same number where it leaves.
 */
static bool cut(struct sim_piece *piece, uint64_t bytes) {
    struct sim_piece *rest = calloc(1, sizeof *rest);
    if (!rest)
        return false;
    *rest = *piece;
    rest->previous = piece;
    rest->address += bytes;
    rest->bytes -= bytes;
    if (rest->next)
        rest->next->previous = rest;
    piece->next = rest;
    piece->bytes = bytes;
    if (piece->state == PIECE_LEAVING) {
        sim_tree_drop(&leaving, &piece->node);
        sim_tree_put(&leaving, &rest->node);
    }
    return true;
}

/* Make it the program's: `bytes` of it. */
static bool take(struct sim_piece *piece, uint64_t bytes) {
    CUmemoryPool pool = piece->chunk->pool;
    bool counted = piece->state == PIECE_LEAVING, cut_off = piece->bytes > bytes;
    if (cut_off && !cut(piece, bytes))
        return false;
    if (counted && !cut_off)
        stop_leaving(piece);
    piece->state = PIECE_USED;
    pool->used += counted ? 0 : piece->bytes;
    if (pool->used > pool->used_high)
        pool->used_high = pool->used;
    return true;
}

CUresult sim_pool_allocate(CUmemoryPool pool, struct CUctx_st *context, uint64_t bytes, CUstream lane,
                           bool grow, CUdeviceptr *address) {
    uint64_t needed = sim_round_up(bytes, PIECE_ALIGNMENT);
    if (bytes > (uint64_t)1 << 46)
        return CUDA_ERROR_OUT_OF_MEMORY;
    struct sim_piece *piece = best_fit(pool, needed, lane);
    if (!piece && grow) {
        struct sim_chunk *chunk = add_chunk(pool, sim_round_up(needed, CHUNK_BYTES));
        if (!chunk)
            chunk = add_chunk(pool, sim_round_up(needed, SIM_PAGE_BYTES));
        piece = chunk ? chunk->first : NULL;
    }
    if (!piece || !take(piece, needed))
        return CUDA_ERROR_OUT_OF_MEMORY;
    struct sim_range range = {.node = {.start = piece->address, .bytes = bytes},
                              .kind = SIM_MEMORY_POOLED,
                              .context = context,
                              .card = pool->card,
                              .device = pool->device,
                              .of = piece};
    if (!sim_range_put(&range)) {
        set_free(piece);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *address = piece->address;
    return CUDA_SUCCESS;
}

uint64_t sim_piece_leave(struct sim_range *range, CUstream lane) {
    static uint64_t numbers;
    struct sim_piece *piece = range->of;
    sim_range_drop(range);
    piece->state = PIECE_LEAVING;
    piece->lane = lane;
    piece->node = (struct sim_node){.start = ++numbers, .bytes = 1};
    sim_tree_put(&leaving, &piece->node);
    piece->chunk->pool->leaving++;
    return piece->node.start;
}

void sim_piece_left(uint64_t number) {
    struct sim_piece *piece = (struct sim_piece *)sim_tree_at(leaving, number);
    if (piece) {
        stop_leaving(piece);
        set_free(piece);
    }
}

void sim_piece_free(struct sim_range *range) {
    struct sim_piece *piece = range->of;
    sim_range_drop(range);
    set_free(piece);
}

void sim_pools_context_ends(struct CUctx_st *context) {
    struct sim_range *next;
    sim_memory_lock();
    for (struct sim_range *range = sim_range_from(0); range; range = next) {
        next = sim_range_from(range->node.start + range->node.bytes);
        if (range->kind == SIM_MEMORY_POOLED && range->context == context)
            sim_piece_free(range);
    }
    sim_pools_trim(context->card);
    sim_memory_unlock();
}
