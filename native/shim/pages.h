/*
 * Which pages of a card a set of allocations occupies.
 *
 * Drivers hand out device memory in pages (2 MiB), and put several small allocations into one. What an
 * allocation costs is therefore the pages that it covers and nobody else did; the address that the driver
 * returned tells which they are. Pages covered whole need no record: nobody else can be in them.
 */
#ifndef VCUDA_PAGES_H
#define VCUDA_PAGES_H

#include <stdbool.h>
#include <stdint.h>

#define VCUDA_PAGES_FAILED UINT64_MAX

/* Add an allocation; returns the bytes of the pages that are newly covered, or VCUDA_PAGES_FAILED (no
 * memory). */
uint64_t vcuda_pages_cover(int card, uint64_t page_bytes, uint64_t address, uint64_t bytes);
/* Take one away; returns the bytes of the pages that are no longer covered. */
uint64_t vcuda_pages_uncover(uint64_t page_bytes, uint64_t address, uint64_t bytes);
/* Whether some page that is covered already may have room for `bytes` more. */
bool vcuda_pages_have_room(int card, uint64_t page_bytes, uint64_t bytes);

#endif
