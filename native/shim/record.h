/*
 * What this process was charged for: one record per live object of the driver's, found by its address or
 * handle.
 *
 * A table is a hash map from a 64-bit key to a small record, with a lock of its own. Tables grow by mapping
 * memory (never through malloc, which a program may have replaced) and never shrink. When memory for a larger
 * table cannot be had, insertion fails and the caller gives the object back: nothing is held without a
 * record.
 */
#ifndef VCUDA_RECORD_H
#define VCUDA_RECORD_H

#include <stdbool.h>
#include <stdint.h>

#include "lock.h"

struct vcuda_record {
    uint64_t key;   /* never 0 */
    uint64_t bytes; /* what is charged */
    uint64_t size;  /* what was asked for: meaning by table */
    uint64_t owner; /* the context or parent object that takes it along when it goes; 0 = none */
    int16_t card;
    uint16_t kind;  /* enum vcuda_kind */
    uint32_t count; /* references, where the object is counted */
};

struct vcuda_table {
    vcuda_lock lock;
    uint32_t used;     /* live records */
    uint32_t filled;   /* live records and tombstones */
    uint64_t capacity; /* a power of two, or 0 */
    struct vcuda_record *records;
    struct vcuda_table *next; /* of all tables that were ever used, for a forked child */
    bool listed;
};

/* Where many threads come at once: a table in parts, each with a lock and a cache line of its own. */
#define VCUDA_SHARDS 16
struct vcuda_shards {
    struct {
        _Alignas(64) struct vcuda_table table;
    } part[VCUDA_SHARDS];
};
/* Records are put where only the putting thread puts: most objects are taken by the thread that made them. */
bool vcuda_shards_put(struct vcuda_shards *shards, const struct vcuda_record *record);
bool vcuda_shards_take(struct vcuda_shards *shards, uint64_t key, struct vcuda_record *record);
/* By key instead, for what several threads share. */
static inline struct vcuda_table *vcuda_shard(struct vcuda_shards *shards, uint64_t key) {
    return &shards->part[key * 0x9e3779b97f4a7c15u >> 60].table;
}

/* The caller holds the table's lock in all of these. */
bool vcuda_table_put(struct vcuda_table *table, const struct vcuda_record *record);
/* Valid until the lock is given or something is put. NULL if there is none. */
struct vcuda_record *vcuda_table_find(struct vcuda_table *table, uint64_t key);
void vcuda_table_remove(struct vcuda_table *table, struct vcuda_record *record);

/* The same under the lock, for single steps. */
bool vcuda_record_put(struct vcuda_table *table, const struct vcuda_record *record);
bool vcuda_record_take(struct vcuda_table *table, uint64_t key, struct vcuda_record *record);
bool vcuda_record_read(struct vcuda_table *table, uint64_t key, struct vcuda_record *record);

/* Walk: `visit` answers true to remove the record it sees. */
void vcuda_table_sweep(struct vcuda_table *table, bool (*visit)(struct vcuda_record *record, void *data),
                       void *data);

/* A forked child has none of its parent's objects. */
void vcuda_records_forget(void);

#endif
