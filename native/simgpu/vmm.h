/* What the two files of virtual memory management know of each other: vmm.c (memory) and mapping.c
 * (addresses). */
#ifndef SIM_VMM_H
#define SIM_VMM_H

#include "memory.h"

#define SIM_NO_CARD UINT32_MAX /* memory of the host */

/* What a handle stands for. */
struct sim_physical {
    struct sim_node node; /* start: its own address */
    uint32_t card;
    int fd; /* the file behind it, once other processes may have it; -1 */
    uint64_t bytes, shared_id;
    char *home;
    CUmemAllocationProp properties;
    uint32_t references, mappings;
};

/* `of` of a range of SIM_MEMORY_MAPPED, whose `flags` are the access. */
struct sim_mapping {
    struct sim_physical *physical;
    CUdeviceptr address;
    uint64_t bytes, offset;
    CUmemAccess_flags access;
    uint32_t readers, writers; /* ordinals that may, a bit each */
    bool host_reads, host_writes;
};

/* Lock held for all of these. */
struct sim_physical *sim_physical_of(CUmemGenericAllocationHandle handle);
/* End it, if nothing refers to it any more. */
void sim_physical_settle(struct sim_physical *physical);
/* Show the physical memory's pages where a mapping of it is, with the access that was set. */
bool sim_physical_show(const struct sim_physical *physical, const struct sim_mapping *mapping);
int sim_mapping_protection(const struct sim_mapping *mapping);
/* Show all mappings anew: something else is behind the home. */
void sim_mappings_follow(const struct sim_physical *physical);
/* The card of a location, SIM_NO_CARD for the host's. */
CUresult sim_location_check(const CUmemLocation *location, uint32_t *card);

#endif
