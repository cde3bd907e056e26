/* The tables of records: open addressing, linear probing, tombstones cleared when a table is rebuilt. */
#include "record.h"

#include <stddef.h>
#include <string.h>
#include <sys/mman.h>

#define EMPTY 0
#define TOMBSTONE UINT64_MAX
#define FIRST_CAPACITY 64

static struct vcuda_table *all_tables;

static uint64_t slot_of(const struct vcuda_table *table, uint64_t key) {
    return (key * 0x9e3779b97f4a7c15u) >> 20 & (table->capacity - 1); /* Fibonacci hashing */
}

/* Read without the lock, as a hint that there is nothing to be found. */
static void set_used(struct vcuda_table *table, uint32_t used) {
    __atomic_store_n(&table->used, used, __ATOMIC_RELAXED);
}

static void list(struct vcuda_table *table) {
    table->listed = true;
    table->next = __atomic_load_n(&all_tables, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(&all_tables, &table->next, table, false, __ATOMIC_RELEASE,
                                        __ATOMIC_RELAXED))
        ;
}

static void insert(struct vcuda_table *table, const struct vcuda_record *record) {
    uint64_t slot = slot_of(table, record->key);
    while (table->records[slot].key != EMPTY && table->records[slot].key != TOMBSTONE)
        slot = (slot + 1) & (table->capacity - 1);
    if (table->records[slot].key == EMPTY)
        table->filled++;
    table->records[slot] = *record;
    set_used(table, table->used + 1);
}

static bool rebuild(struct vcuda_table *table) {
    /* Twice the live records at least, so that a table full of tombstones is merely cleaned. */
    uint64_t capacity = FIRST_CAPACITY;
    while (capacity < (uint64_t)table->used * 4)
        capacity *= 2;
    struct vcuda_record *fresh =
        mmap(NULL, capacity * sizeof *fresh, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (fresh == MAP_FAILED)
        return false;
    struct vcuda_record *old = table->records;
    uint64_t old_capacity = table->capacity;
    if (!table->listed)
        list(table);
    table->records = fresh;
    table->capacity = capacity;
    set_used(table, 0);
    table->filled = 0;
    for (uint64_t slot = 0; slot < old_capacity; slot++)
        if (old[slot].key != EMPTY && old[slot].key != TOMBSTONE)
            insert(table, &old[slot]);
    if (old)
        munmap(old, old_capacity * sizeof *old);
    return true;
}

bool vcuda_table_put(struct vcuda_table *table, const struct vcuda_record *record) {
    if ((uint64_t)table->filled * 4 >= table->capacity * 3 && !rebuild(table) &&
        table->filled + 1 >= table->capacity)
        return false;
    insert(table, record);
    return true;
}

struct vcuda_record *vcuda_table_find(struct vcuda_table *table, uint64_t key) {
    if (table->capacity == 0 || key == EMPTY || key == TOMBSTONE)
        return NULL;
    uint64_t slot = slot_of(table, key);
    while (table->records[slot].key != key) {
        if (table->records[slot].key == EMPTY)
            return NULL;
        slot = (slot + 1) & (table->capacity - 1);
    }
    return &table->records[slot];
}

void vcuda_table_remove(struct vcuda_table *table, struct vcuda_record *record) {
    /* The end of a run needs no tombstone: allocate-and-free in a loop leaves the table clean. */
    uint64_t slot = (uint64_t)(record - table->records);
    if (table->records[(slot + 1) & (table->capacity - 1)].key == EMPTY) {
        record->key = EMPTY;
        table->filled--;
    } else {
        record->key = TOMBSTONE;
    }
    set_used(table, table->used - 1);
}

bool vcuda_record_put(struct vcuda_table *table, const struct vcuda_record *record) {
    vcuda_lock_take(&table->lock);
    bool put = vcuda_table_put(table, record);
    vcuda_lock_give(&table->lock);
    return put;
}

bool vcuda_record_take(struct vcuda_table *table, uint64_t key, struct vcuda_record *record) {
    vcuda_lock_take(&table->lock);
    struct vcuda_record *found = vcuda_table_find(table, key);
    if (found) {
        *record = *found;
        vcuda_table_remove(table, found);
    }
    vcuda_lock_give(&table->lock);
    return found != NULL;
}

bool vcuda_record_read(struct vcuda_table *table, uint64_t key, struct vcuda_record *record) {
    vcuda_lock_take(&table->lock);
    struct vcuda_record *found = vcuda_table_find(table, key);
    if (found)
        *record = *found;
    vcuda_lock_give(&table->lock);
    return found != NULL;
}

/* Threads are dealt out to the parts in the order in which they come. */
static uint32_t own_part(void) {
    static uint32_t dealt;
    static __thread uint32_t part; /* 0 = not given yet */
    if (part == 0)
        part = __atomic_fetch_add(&dealt, 1, __ATOMIC_RELAXED) % VCUDA_SHARDS + 1;
    return part - 1;
}

bool vcuda_shards_put(struct vcuda_shards *shards, const struct vcuda_record *record) {
    return vcuda_record_put(&shards->part[own_part()].table, record);
}

bool vcuda_shards_take(struct vcuda_shards *shards, uint64_t key, struct vcuda_record *record) {
    uint32_t own = own_part();
    for (uint32_t i = 0; i < VCUDA_SHARDS; i++) {
        struct vcuda_table *table = &shards->part[(own + i) % VCUDA_SHARDS].table;
        /* A part that is empty is passed by: whoever may take an object was told of it after it had been put.
         */
        if (__atomic_load_n(&table->used, __ATOMIC_RELAXED) && vcuda_record_take(table, key, record))
            return true;
    }
    return false;
}

void vcuda_table_sweep(struct vcuda_table *table, bool (*visit)(struct vcuda_record *, void *), void *data) {
    vcuda_lock_take(&table->lock);
    for (uint64_t slot = 0; slot < table->capacity; slot++) {
        struct vcuda_record *record = &table->records[slot];
        if (record->key != EMPTY && record->key != TOMBSTONE && visit(record, data))
            vcuda_table_remove(table, record);
    }
    vcuda_lock_give(&table->lock);
}

void vcuda_records_forget(void) {
    struct vcuda_table *table = __atomic_load_n(&all_tables, __ATOMIC_ACQUIRE);
    for (; table; table = table->next) {
        table->lock = (vcuda_lock){0};
        set_used(table, 0);
        table->filled = 0;
        if (table->records)
            memset(table->records, 0, table->capacity * sizeof *table->records);
    }
}
