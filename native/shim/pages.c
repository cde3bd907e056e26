/* Pages that are covered in part, counted by how many allocations share them. */
#include "pages.h"

#include "record.h"

#define SUBALLOCATION 512 /* drivers align small allocations to this */

/* key: page address + 1 (an address may be 0 on a strange driver); size: bytes in use; count: allocations. */
static struct vcuda_table partial_pages;

struct span {
    uint64_t head, tail;           /* pages covered in part; 0 bytes where there is none */
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
    struct vcuda_record *found = vcuda_table_find(&partial_pages, page + 1);
    if (found) {
        found->count++;
        found->size += used_of(bytes);
        return 0;
    }
    struct vcuda_record fresh = {.key = page + 1, .size = used_of(bytes), .card = (int16_t)card, .count = 1};
    return vcuda_table_put(&partial_pages, &fresh) ? 1 : -1;
}

/* Whether the page is no longer covered. */
static bool leave(uint64_t page, uint64_t bytes) {
    struct vcuda_record *found = vcuda_table_find(&partial_pages, page + 1);
    if (!found)
        return false;
    if (--found->count == 0) {
        vcuda_table_remove(&partial_pages, found);
        return true;
    }
    found->size -= used_of(bytes) < found->size ? used_of(bytes) : found->size;
    return false;
}

uint64_t vcuda_pages_cover(int card, uint64_t page_bytes, uint64_t address, uint64_t bytes) {
    struct span span = split(page_bytes, address, bytes);
    uint64_t charged = span.whole_bytes;
    if (!span.head_bytes && !span.tail_bytes)
        return charged;
    vcuda_lock_take(&partial_pages.lock);
    int head = span.head_bytes ? touch(card, span.head, span.head_bytes) : 0;
    int tail = span.tail_bytes && head >= 0 ? touch(card, span.tail, span.tail_bytes) : 0;
    if (tail < 0 && span.head_bytes)
        leave(span.head, span.head_bytes);
    vcuda_lock_give(&partial_pages.lock);
    if (head < 0 || tail < 0)
        return VCUDA_PAGES_FAILED;
    return charged + (uint64_t)(head + tail) * page_bytes;
}

uint64_t vcuda_pages_uncover(uint64_t page_bytes, uint64_t address, uint64_t bytes) {
    struct span span = split(page_bytes, address, bytes);
    uint64_t released = span.whole_bytes;
    if (!span.head_bytes && !span.tail_bytes)
        return released;
    vcuda_lock_take(&partial_pages.lock);
    if (span.head_bytes && leave(span.head, span.head_bytes))
        released += page_bytes;
    if (span.tail_bytes && leave(span.tail, span.tail_bytes))
        released += page_bytes;
    vcuda_lock_give(&partial_pages.lock);
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
    if (bytes && bytes < page_bytes)
        vcuda_table_sweep(&partial_pages, look_for_room, &room);
    return room.found;
}
