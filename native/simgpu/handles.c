/*
 * Which pointers are handles of what, so that a program's stale or invented handle gets an answer instead of
 * a crash. A hash table with open addressing; a dropped entry leaves a mark that later ones may take.
 */
#include "work.h"

#include <stdlib.h>

#define FIRST_SIZE 1024
#define DROPPED ((uintptr_t)1)

struct entry {
    uintptr_t handle; /* 0 = never used */
    enum sim_handle_kind kind;
};

static struct {
    struct entry *entries;
    size_t size, used; /* used: dropped ones included */
} table;

static size_t place(uintptr_t handle, size_t size) {
    return (size_t)((handle >> 4) * UINT64_C(0x9E3779B97F4A7C15) >> 20) & (size - 1);
}

static struct entry *find(uintptr_t handle) {
    if (!table.size || handle <= DROPPED)
        return NULL;
    for (size_t at = place(handle, table.size);; at = (at + 1) & (table.size - 1)) {
        if (table.entries[at].handle == handle)
            return &table.entries[at];
        if (!table.entries[at].handle)
            return NULL;
    }
}

static void insert(struct entry *entries, size_t size, struct entry fresh) {
    size_t at = place(fresh.handle, size);
    while (entries[at].handle)
        at = (at + 1) & (size - 1);
    entries[at] = fresh;
}

static bool grow(void) {
    size_t live = 0;
    for (size_t i = 0; i < table.size; i++)
        live += table.entries[i].handle > DROPPED;
    size_t size = FIRST_SIZE;
    while (size < live * 4)
        size *= 2;
    struct entry *entries = calloc(size, sizeof *entries);
    if (!entries)
        return false;
    for (size_t i = 0; i < table.size; i++)
        if (table.entries[i].handle > DROPPED)
            insert(entries, size, table.entries[i]);
    free(table.entries);
    table.entries = entries;
    table.size = size;
    table.used = live;
    return true;
}

bool sim_handle_put(const void *handle, enum sim_handle_kind kind) {
    if ((table.used + 1) * 2 > table.size && !grow())
        return false;
    insert(table.entries, table.size, (struct entry){(uintptr_t)handle, kind});
    table.used++;
    return true;
}

void sim_handle_drop(const void *handle) {
    struct entry *entry = find((uintptr_t)handle);
    if (entry)
        entry->handle = DROPPED;
}

bool sim_handle_is(const void *handle, enum sim_handle_kind kind) {
    struct entry *entry = find((uintptr_t)handle);
    return entry && entry->kind == kind;
}

void sim_handles_forget(void) {
    table.size = table.used =
        0; /* the parent's memory is left as it is: another thread may have been in it */
    table.entries = NULL;
}
