/*
 * The grant: reading what the container may use.
 *
 * A grant that is broken in any way is refused as a whole; nothing of it is believed. Nothing here prints;
 * `why` gets one line that says what is wrong, for the one who prints.
 */
#ifndef VCUDA_GRANT_H
#define VCUDA_GRANT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vcuda/abi.h"

enum vcuda_grant_status {
    VCUDA_GRANT_OK = 0,
    VCUDA_GRANT_MISSING,    /* no such file */
    VCUDA_GRANT_UNREADABLE, /* there, but cannot be opened, read or mapped */
    VCUDA_GRANT_TRUNCATED,
    VCUDA_GRANT_GARBAGE, /* not a grant, or fields that contradict each other */
    VCUDA_GRANT_VERSION, /* of another ABI version */
    VCUDA_GRANT_VALUE,   /* a limit, share or name out of its range */
};

struct vcuda_grant_map {
    const struct vcuda_grant *header;
    size_t map_bytes;
    uint32_t card_count;
    uint32_t card_bytes;
    const char *cards;
};

/* Check the `bytes` at `data` as the content of a grant file. `why` may be NULL. */
enum vcuda_grant_status vcuda_grant_check(const void *data, size_t bytes, char *why, size_t why_bytes);

/* Map and check a grant. */
enum vcuda_grant_status vcuda_grant_open(struct vcuda_grant_map *map, const char *path, char *why,
                                         size_t why_bytes);
void vcuda_grant_close(struct vcuda_grant_map *map);

static inline const struct vcuda_grant_card *vcuda_grant_card(const struct vcuda_grant_map *map,
                                                              uint32_t card) {
    return (const struct vcuda_grant_card *)(map->cards + (size_t)card * map->card_bytes);
}

#endif
