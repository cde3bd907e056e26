/*
 * The driver behind the shim: which objects of the process are drivers, and where their functions are.
 *
 * Symbols are read where the objects lie in memory: nothing here goes through dlsym, allocates, or changes
 * what dlerror says. The one call into the dynamic linker, dlopen, is made when a function of the driver is
 * really called.
 */
#ifndef VCUDA_REAL_H
#define VCUDA_REAL_H

#include "hooks.h"

/* ---- the generated table: names in the order of the members of struct vcuda_real, sorted ---- */

enum {
    VCUDA_NVML = 1,         /* of NVML, not of the driver */
    VCUDA_HOOKED = 2,       /* there is a handler */
    VCUDA_HOOKED_WHOLE = 4, /* ... even where every card is granted whole */
    VCUDA_PER_THREAD = 8,   /* _ptds, _ptsz */
};
struct vcuda_name {
    uint16_t offset; /* in vcuda_names */
    uint16_t flags;
};
extern const char vcuda_names[];
extern const struct vcuda_name vcuda_name[VCUDA_FUNCTIONS];

/* For cuGetProcAddress: what a name stood for since a version of CUDA. Sorted by base, then version. */
#define VCUDA_BASE_BYTES 44
struct vcuda_version {
    char base[VCUDA_BASE_BYTES];
    uint16_t since; /* 11030 = 11.3 */
    uint16_t index;
};
extern const struct vcuda_version vcuda_versions[];
extern const unsigned int vcuda_version_count;

static inline const char *vcuda_name_of(unsigned int index) {
    return vcuda_names + vcuda_name[index].offset;
}

/* The place of a name in the table, or -1. */
int vcuda_index_of(const char *name);
/* The first place whose name is not less than `name`, VCUDA_FUNCTIONS if there is none. */
unsigned int vcuda_first_from(const char *name);

/* ---- addresses ---- */

/* Whether a hook is in force in this process, by its grant. */
bool vcuda_hooks(unsigned int index);
/* What this library defines as `name`; of a hooked name, the handler. Not subject to other preloaded
 * libraries. */
void *vcuda_own_address(const char *name);
static inline void *vcuda_hook_of(unsigned int index) {
    return vcuda_own_address(vcuda_name_of(index));
}
/* The driver's own function, if the driver is loaded and has it; loads nothing. */
void *vcuda_driver_address(unsigned int index);
/* Whether `address` is this function in any loaded driver. */
bool vcuda_is_drivers(unsigned int index, const void *address);
/* The function's address, now also in vcuda_real; NULL where the driver lacks it or is not to be had. */
void *vcuda_real_find(unsigned int index);

/* Have our own symbol table hide the handlers of hooks that are not in force, so that libc passes them by. */
void vcuda_step_aside(void);
/* Have the drivers' symbol tables lead to the hooks, for who finds them there before us; with `load`, also of
 * drivers that are not loaded yet. */
void vcuda_redirect_drivers(bool load);

/* ---- objects ---- */

/* What the program meets first when it looks for a name. */
enum vcuda_definer { VCUDA_NOBODY, VCUDA_OURSELVES, VCUDA_DRIVER, VCUDA_ANOTHER };
/* The first object in load order that defines `name`, after the one that holds the address `after` if that is
 * not NULL. `index` is the name's place in the table, or -1 for a function of the dynamic linker, whose
 * driver is libc. */
enum vcuda_definer vcuda_first_definer(const char *name, int index, const void *after);

/* The dynamic linker's interface as libc has it, found without asking it. Members are NULL where libc has
 * none. */
struct vcuda_genuine {
    void *(*dlsym)(void *handle, const char *name);
    void *(*dlvsym)(void *handle, const char *name, const char *version);
    void *(*dlopen)(const char *file, int mode);
};
const struct vcuda_genuine *vcuda_genuine(void);
bool vcuda_is_genuine(const void *address);

#endif
