/*
 * The tables of records: they hold what a naive list holds, whatever is put, taken and swept in which order;
 * they say so when memory for a larger one cannot be had; a forked child finds them empty.
 *
 * build: native/shim/record.c
 */
#include "check.h"
#include "record.h"

#include <pthread.h>
#include <sys/resource.h>

#define MOST 4000

static uint64_t random_of(uint64_t *state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1d;
}

/* The naive model: what is there, in no order. */
static struct vcuda_record model[MOST];
static uint32_t model_count;

static struct vcuda_record *in_model(uint64_t key) {
    for (uint32_t i = 0; i < model_count; i++)
        if (model[i].key == key)
            return &model[i];
    return NULL;
}

static bool same(const struct vcuda_record *one, const struct vcuda_record *other) {
    return one->key == other->key && one->bytes == other->bytes && one->size == other->size &&
           one->owner == other->owner && one->card == other->card && one->kind == other->kind &&
           one->count == other->count;
}

static struct vcuda_record made_up(uint64_t key, uint64_t *random) {
    return (struct vcuda_record){.key = key,
                                 .bytes = random_of(random),
                                 .size = random_of(random),
                                 .owner = random_of(random) % 4,
                                 .card = (int16_t)(random_of(random) % 16),
                                 .kind = (uint16_t)(random_of(random) % 8),
                                 .count = (uint32_t)random_of(random)};
}

static bool of_owner_2(struct vcuda_record *record, void *data) {
    CHECK(in_model(record->key) != NULL);
    ++*(uint32_t *)data;
    return record->owner == 2;
}

static void forget_owner_2_in_model(void) {
    for (uint32_t i = 0; i < model_count;)
        if (model[i].owner == 2)
            model[i] = model[--model_count];
        else
            i++;
}

/* Keys as addresses are: multiples of `step`, few enough to meet again and again. */
static void compare(struct vcuda_table *table, uint64_t seed, uint64_t step, uint32_t keys, uint32_t rounds) {
    uint64_t random = seed;
    for (uint32_t round = 0; round < rounds; round++) {
        uint64_t key = (1 + random_of(&random) % keys) * step;
        struct vcuda_record *known = in_model(key), record;
        switch (random_of(&random) % 8) {
        case 0:
        case 1:
        case 2:
            record = made_up(key, &random);
            if (!known && model_count < MOST) {
                CHECK(vcuda_record_put(table, &record));
                model[model_count++] = record;
            }
            break;
        case 3:
        case 4:
            CHECK(vcuda_record_take(table, key, &record) == (known != NULL));
            if (known) {
                CHECK(same(&record, known));
                *known = model[--model_count];
            }
            break;
        case 5:
            CHECK(vcuda_record_read(table, key, &record) == (known != NULL));
            CHECK(!known || same(&record, known));
            break;
        default:
            if (random_of(&random) % 500 == 0) {
                uint32_t seen = 0;
                vcuda_table_sweep(table, of_owner_2, &seen);
                CHECK_EQUAL(seen, model_count);
                forget_owner_2_in_model();
            }
        }
        CHECK_EQUAL(table->used, model_count);
    }
}

PROMISE(a_table_holds_what_was_put_and_not_taken) {
    for (uint64_t seed = 1; seed <= 6; seed++) {
        struct vcuda_table table = {0};
        model_count = 0;
        compare(&table, seed, seed % 2 ? 512 : 2 << 20, seed < 4 ? 100 : 3000, 30000);
    }
}

PROMISE(no_key_is_found_that_means_nothing) {
    struct vcuda_table table = {0};
    struct vcuda_record record = {.key = 5};
    CHECK(!vcuda_record_read(&table, 5, &record));
    CHECK(vcuda_record_put(&table, &record));
    CHECK(!vcuda_record_read(&table, 0, &record));
    CHECK(!vcuda_record_take(&table, UINT64_MAX, &record)); /* as tombstones are marked */
    CHECK(vcuda_record_take(&table, 5, &record));
    CHECK(!vcuda_record_take(&table, 5, &record));
}

PROMISE(allocating_and_freeing_in_a_loop_needs_no_more_memory) {
    struct vcuda_table table = {0};
    struct vcuda_record record = {.key = 0};
    for (uint64_t i = 1; i <= 100000; i++) {
        record.key = i << 21;
        CHECK(vcuda_record_put(&table, &record));
        if (i > 10) {
            CHECK(vcuda_record_take(&table, (i - 10) << 21, &record));
        }
    }
    CHECK_EQUAL(table.capacity, 64);
    CHECK_EQUAL(table.used, 10);
}

PROMISE(a_table_that_cannot_grow_says_so_and_keeps_what_it_has) {
    if (SANITIZED)
        SKIP("a sanitizer needs memory for itself");
    struct vcuda_table table = {0};
    struct vcuda_record record = {.key = 1};
    CHECK(vcuda_record_put(&table, &record));
    struct rlimit none = {0, 0};
    CHECK_EQUAL(setrlimit(RLIMIT_AS, &none), 0);
    uint64_t put = 1;
    for (record.key = 2; vcuda_record_put(&table, &record); record.key++)
        put++;
    CHECK_EQUAL(put, table.capacity - 1); /* a search ends at the first empty place */
    for (uint64_t key = 1; key <= put; key++)
        CHECK(vcuda_record_read(&table, key, &record));
    CHECK(!vcuda_record_read(&table, put + 1, &record));
    struct vcuda_table other = {0};
    CHECK(!vcuda_record_put(&other, &record));
}

PROMISE(a_forked_child_finds_its_tables_empty) {
    static struct vcuda_table first, second;
    struct vcuda_record record = {.key = 77};
    CHECK(vcuda_record_put(&first, &record) && vcuda_record_put(&second, &record));
    vcuda_lock_take(&second.lock); /* by a thread that the child does not have */
    pid_t child = fork();
    if (child == 0) {
        vcuda_records_forget();
        CHECK(!vcuda_record_read(&first, 77, &record) && !vcuda_record_read(&second, 77, &record));
        CHECK(vcuda_record_put(&second, &record) && vcuda_record_take(&second, 77, &record));
        _exit(0);
    }
    CHECK(ended_well(child));
    vcuda_lock_give(&second.lock);
    CHECK(vcuda_record_read(&second, 77, &record));
}

#define THREADS 20
static struct vcuda_shards shards;
static pthread_barrier_t barrier;

static void *put_and_take_each_others(void *data) {
    uint64_t own = (uint64_t)(uintptr_t)data, other = (own + 1) % THREADS;
    struct vcuda_record record = {.owner = own};
    for (uint64_t round = 0; round < 50; round++) {
        for (uint64_t i = 1; i <= 40; i++) {
            record.key = (own << 32 | i) << 9;
            CHECK(vcuda_shards_put(&shards, &record));
        }
        pthread_barrier_wait(&barrier);
        for (uint64_t i = 1; i <= 40; i++) {
            struct vcuda_record taken;
            CHECK(vcuda_shards_take(&shards, (other << 32 | i) << 9, &taken));
            CHECK_EQUAL(taken.owner, other);
            CHECK(!vcuda_shards_take(&shards, (other << 32 | i) << 9, &taken));
        }
        pthread_barrier_wait(&barrier);
    }
    return NULL;
}

PROMISE(any_thread_takes_what_any_other_put_and_only_once) {
    pthread_t threads[THREADS];
    pthread_barrier_init(&barrier, NULL, THREADS);
    for (uintptr_t i = 0; i < THREADS; i++)
        CHECK_EQUAL(pthread_create(&threads[i], NULL, put_and_take_each_others, (void *)i), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < VCUDA_SHARDS; i++)
        CHECK_EQUAL(shards.part[i].table.used, 0);
}

int main(int argc, char **argv) {
    return keep_promises(argc, argv);
}
