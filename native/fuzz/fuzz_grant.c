/*
 * libFuzzer's way into the grant's reader: any bytes are refused with a line of text, or are a grant whose
 * values are all within their bounds. An input that begins with an odd byte is a list of patches to a sound
 * grant, so that the checks behind the first ones are reached.
 *
 * build: native/shim/grant.c
 */
#include "grant.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MOST 20000

static struct vcuda_grant sound(void) {
    struct vcuda_grant grant;
    memset(&grant, 0, sizeof grant);
    grant.magic = VCUDA_GRANT_MAGIC;
    grant.abi_major = VCUDA_ABI_MAJOR;
    grant.header_bytes = offsetof(struct vcuda_grant, cards);
    grant.card_count = 4;
    grant.card_bytes = sizeof(struct vcuda_grant_card);
    grant.file_bytes = sizeof grant;
    for (uint32_t i = 0; i < VCUDA_MAX_CARDS; i++) {
        snprintf(grant.cards[i].uuid, sizeof grant.cards[i].uuid, "GPU-%u", i);
        grant.cards[i].memory_bytes = (uint64_t)1 << 30;
        grant.cards[i].core_ppm = grant.cards[i].core_max_ppm = VCUDA_PPM;
    }
    return grant;
}

/* Each patch: two bytes of offset, one of length, the value. */
static void patch(struct vcuda_grant *grant, const uint8_t *data, size_t size) {
    while (size >= 3) {
        size_t offset = (size_t)(data[0] | data[1] << 8) % sizeof *grant, length = data[2] % 9;
        data += 3;
        size -= 3;
        length = length < size ? length : size;
        length = length < sizeof *grant - offset ? length : sizeof *grant - offset;
        memcpy((char *)grant + offset, data, length);
        data += length;
        size -= length;
    }
}

static void insist(int condition) {
    if (!condition)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    /* Of the very size, so that a read beyond its end is seen, and at an odd address. */
    struct vcuda_grant patched = sound();
    const void *content = data;
    size_t bytes = size;
    if (size && data[0] % 2) {
        patch(&patched, data + 1, size - 1);
        content = &patched;
        bytes = sizeof patched;
    }
    char *copy = malloc(bytes + 1), why[120];
    insist(copy != NULL && bytes < MOST);
    memcpy(copy + 1, content, bytes);
    memset(why, 'x', sizeof why);
    enum vcuda_grant_status status = vcuda_grant_check(copy + 1, bytes, why, sizeof why);
    insist(status == vcuda_grant_check(copy + 1, bytes, NULL, 0));
    if (status != VCUDA_GRANT_OK) {
        insist(strnlen(why, sizeof why) < sizeof why && why[0] && !strchr(why, '\n'));
    } else {
        struct vcuda_grant head;
        memcpy(&head, copy + 1, offsetof(struct vcuda_grant, cards));
        insist(head.card_count >= 1 && head.card_count <= VCUDA_MAX_CARDS);
        for (uint32_t i = 0; i < head.card_count; i++) {
            struct vcuda_grant_card card;
            memcpy(&card, copy + 1 + head.header_bytes + (size_t)i * head.card_bytes, sizeof card);
            insist(card.memory_bytes >= 1 && card.memory_bytes <= VCUDA_MAX_BYTES);
            insist(card.core_ppm >= 1 && card.core_ppm <= card.core_max_ppm &&
                   card.core_max_ppm <= VCUDA_PPM);
            insist(memchr(card.uuid, 0, sizeof card.uuid) != NULL);
        }
    }
    free(copy);
    return 0;
}
