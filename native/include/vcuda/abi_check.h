/* Fails the build when a field of the shared files moves. Included once by every C program that maps them. */
#ifndef VCUDA_ABI_CHECK_H
#define VCUDA_ABI_CHECK_H

#include <stddef.h>

#include "vcuda/abi.h"

#define VCUDA_AT(type, field, offset)                                                                        \
    _Static_assert(offsetof(struct type, field) == (offset), #type "." #field " has moved")

VCUDA_AT(vcuda_grant_card, memory_bytes, 64);
VCUDA_AT(vcuda_grant_card, core_ppm, 72);
VCUDA_AT(vcuda_grant_card, priority, 80);
VCUDA_AT(vcuda_grant_card, context_bytes, 88);
VCUDA_AT(vcuda_grant_card, slice_ppm, 112);
VCUDA_AT(vcuda_grant_card, slice_ns, 136);
_Static_assert(sizeof(struct vcuda_grant_card) == 256, "vcuda_grant_card has grown");

VCUDA_AT(vcuda_grant, abi_major, 8);
VCUDA_AT(vcuda_grant, header_bytes, 12);
VCUDA_AT(vcuda_grant, generation, 24);
VCUDA_AT(vcuda_grant, card_count, 32);
VCUDA_AT(vcuda_grant, name, 48);
VCUDA_AT(vcuda_grant, cards, 256);

VCUDA_AT(vcuda_slot_card, unsettled, 8);
VCUDA_AT(vcuda_slot_card, bytes, 64);
VCUDA_AT(vcuda_slot_card, gpu_ns, 128);
VCUDA_AT(vcuda_slot_card, refused, 160);
_Static_assert(sizeof(struct vcuda_slot_card) == 192, "vcuda_slot_card has grown");

VCUDA_AT(vcuda_slot, pid, 12);
VCUDA_AT(vcuda_slot, comm, 32);
VCUDA_AT(vcuda_slot, cards, 64);
_Static_assert(sizeof(struct vcuda_slot) == 64 + 16 * 192, "vcuda_slot has grown");

VCUDA_AT(vcuda_ledger_card, bucket, 64);
VCUDA_AT(vcuda_ledger_card, active_ns, 96);
VCUDA_AT(vcuda_bucket, rate_ppm, 24);
VCUDA_AT(vcuda_ledger_card, reclaimed_ns, 256);
_Static_assert(sizeof(struct vcuda_ledger_card) == 320, "vcuda_ledger_card has grown");

VCUDA_AT(vcuda_ledger, abi_major, 8);
VCUDA_AT(vcuda_ledger, slot_count, 24);
VCUDA_AT(vcuda_ledger, slots_high, 40);
VCUDA_AT(vcuda_ledger, cards, 128);

#undef VCUDA_AT
#endif
