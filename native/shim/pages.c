/* Pages that are covered in part, counted by how many allocations share them. */
#include "pages.h"

#include "record.h"

#define SUBALLOCATION 512 /* drivers align small allocations to this */

/* key: page address + 1 (an address may be 0 on a strange driver); size: bytes in use; count: allocations. */
static struct vcuda_shards partial_pages;

struct span {
    uint64_t head, tail; /* pages covered in part; 0 bytes where there is none */
    uint64_t head_bytes, tail_bytes;
    uint64_t whole_bytes;
};

static struct span split(uint64_t page_bytes, uint64_t address, uint64_t bytes) {
    struct span span = {0};
    uint64_t end = address + bytes, mask = page_bytes - 1;
    uint64_t first_whole = (address + mask) & ~mask, last_whole = end & ~mask;
    if (bytes == 0)
        return span;
    if (first_whole > last_whole) { /* inside one page */
        span.head = address & ~mask;
        span.head_bytes = bytes;
        return span;
    }
    span.whole_bytes = last_whole - first_whole;
    if (address != first_whole) {
        span.head = address & ~mask;
        span.head_bytes = first_whole - address;
    }
    if (end != last_whole) {
        span.tail = last_whole;
        span.tail_bytes = end - last_whole;
    }
    return span;
}

static uint64_t used_of(uint64_t bytes) {
    return (bytes + SUBALLOCATION - 1) / SUBALLOCATION * SUBALLOCATION;
}

/* 1 = newly covered, 0 = shared, -1 = no memory for the record. */
static int touch(int card, uint64_t page, uint64_t bytes) {
    struct vcuda_record fresh = {.key = page + 1, .size = used_of(bytes), .card = (int16_t)card, .count = 1};
    struct vcuda_table *table = vcuda_shard(&partial_pages, fresh.key);
    int result = 0;
    vcuda_lock_take(&table->lock);
    struct vcuda_record *found = vcuda_table_find(table, fresh.key);
    if (found) {
        found->count++;
        found->size += used_of(bytes);
    } else {
        result = vcuda_table_put(table, &fresh) ? 1 : -1;
    }
    vcuda_lock_give(&table->lock);
    return result;
}

/* Whether the page is no longer covered. */
static bool leave(uint64_t page, uint64_t bytes) {
    struct vcuda_table *table = vcuda_shard(&partial_pages, page + 1);
    vcuda_lock_take(&table->lock);
    struct vcuda_record *found = vcuda_table_find(table, page + 1);
    bool last = found && --found->count == 0;
    if (last)
        vcuda_table_remove(table, found);
    else if (found)
        found->size -= used_of(bytes) < found->size ? used_of(bytes) : found->size;
    vcuda_lock_give(&table->lock);
    return last;
}

uint64_t vcuda_pages_cover(int card, uint64_t page_bytes, uint64_t address, uint64_t bytes) {
    struct span span = split(page_bytes, address, bytes);
    uint64_t charged = span.whole_bytes;
    if (!span.head_bytes && !span.tail_bytes)
        return charged;
    int head = span.head_bytes ? touch(card, span.head, span.head_bytes) : 0;
    int tail = span.tail_bytes && head >= 0 ? touch(card, span.tail, span.tail_bytes) : 0;
    if (tail < 0 && span.head_bytes)
        leave(span.head, span.head_bytes);
    if (head < 0 || tail < 0)
        return VCUDA_PAGES_FAILED;
    return charged + (uint64_t)(head + tail) * page_bytes;
}

uint64_t vcuda_pages_uncover(uint64_t page_bytes, uint64_t address, uint64_t bytes) {
    struct span span = split(page_bytes, address, bytes);
    uint64_t released = span.whole_bytes;
    if (!span.head_bytes && !span.tail_bytes)
        return released;
    if (span.head_bytes && leave(span.head, span.head_bytes))
        released += page_bytes;
    if (span.tail_bytes && leave(span.tail, span.tail_bytes))
        released += page_bytes;
    return released;
}

struct room {
    int card;
    uint64_t page_bytes, wanted;
    bool found;
};

static bool look_for_room(struct vcuda_record *record, void *data) {
    struct room *room = data;
    if (record->card == room->card && record->size + room->wanted <= room->page_bytes)
        room->found = true;
    return false;
}

bool vcuda_pages_have_room(int card, uint64_t page_bytes, uint64_t bytes) {
    struct room room = {card, page_bytes, used_of(bytes), false};
    for (int i = 0; i < VCUDA_SHARDS && bytes && bytes < page_bytes; i++)
        vcuda_table_sweep(&partial_pages.part[i].table, look_for_room, &room);
    return room.found;
}
