/*
 * How programs are caught that ask for an entry point by name: what dlsym and dlvsym answer for hooked names.
 *
 * The rule: what a program would have got without us decides. If that is the driver's own function, it gets
 * the hook; if it is somebody else's of the same name, or nothing, it gets that. The question is answered on
 * behalf of the caller, whose place in the search order RTLD_NEXT and RTLD_DEFAULT depend on: where libc must
 * see the caller itself, the answer is "not decided", and entry_x86_64.c and its like jump to libc's function
 * in the caller's name.
 */
#include "entry.h"

#include <string.h>

#include "real.h"
#include "share.h"

#define PSEUDO_DEFAULT ((void *)0)
#define PSEUDO_NEXT ((void *)-1)

static void *ask(void *handle, const char *name, const char *version) {
    const struct vcuda_genuine *linker = vcuda_genuine();
    return version ? linker->dlvsym(handle, name, version) : linker->dlsym(handle, name);
}

static struct vcuda_answer decided(void *value) {
    return (struct vcuda_answer){value, 1};
}

static const struct vcuda_answer undecided = {NULL, 0};

/* Our own definition is what libc finds, or would find. */
static struct vcuda_answer ourselves(unsigned int index, void *handle, const char *name,
                                     const char *version) {
    if (!vcuda_hooks(index)) {
        vcuda_step_aside(); /* then libc finds what it would without us */
        bool pseudo = handle == PSEUDO_DEFAULT || handle == PSEUDO_NEXT;
        return pseudo ? undecided : decided(ask(handle, name, version));
    }
    if (vcuda_driver_address(index))
        return decided(vcuda_hook_of(index));
    /* No driver, or one that lacks this: NULL then, with libc's own message for dlerror. */
    return decided(ask(PSEUDO_NEXT, name, version));
}

/* Names sought in an order that depends on the caller. Where the driver may come first, libc is to say so
 * itself: the driver's own symbol table then leads it to the hook. */
static struct vcuda_answer by_order(unsigned int index, void *handle, const char *name, const char *version,
                                    const void *caller) {
    switch (vcuda_first_definer(name, (int)index, handle == PSEUDO_NEXT ? caller : NULL)) {
    case VCUDA_OURSELVES:
        return ourselves(index, handle, name, version);
    case VCUDA_DRIVER:
        if (vcuda_hooks(index))
            vcuda_redirect_drivers(false);
        return undecided;
    default:
        return undecided;
    }
}

static struct vcuda_answer by_handle(unsigned int index, void *handle, const char *name,
                                     const char *version) {
    void *value = ask(handle, name, version);
    if (value && value == vcuda_hook_of(index))
        return ourselves(index, handle, name, version);
    if (value && vcuda_hooks(index) && vcuda_is_drivers(index, value))
        return decided(vcuda_hook_of(index));
    return decided(value);
}

/* Whoever gets libc's dlsym past us gets the driver's functions from it: so ours is given out instead. */
static struct vcuda_answer linker_function(void *handle, const char *name, const char *version,
                                           const void *caller) {
    bool ours = strcmp(name, "dlsym") == 0 || strcmp(name, "dlvsym") == 0 || strcmp(name, "dlopen") == 0;
    if (!ours || vcuda_share_mode() == VCUDA_MODE_NONE)
        return undecided;
    if (handle == PSEUDO_DEFAULT || handle == PSEUDO_NEXT) {
        enum vcuda_definer first = vcuda_first_definer(name, -1, handle == PSEUDO_NEXT ? caller : NULL);
        return first == VCUDA_ANOTHER || first == VCUDA_NOBODY ? undecided : decided(vcuda_own_address(name));
    }
    void *value = ask(handle, name, version);
    return decided(value && vcuda_is_genuine(value) ? vcuda_own_address(name) : value);
}

struct vcuda_answer vcuda_entry_answer(void *handle, const char *name, const void *caller,
                                       const char *version) {
    if (!vcuda_genuine()->dlsym)
        return undecided;
    if (name[0] == 'd')
        return linker_function(handle, name, version, caller);
    int index = vcuda_index_of(name);
    if (index < 0 || !(vcuda_name[index].flags & VCUDA_HOOKED))
        return undecided;
    if (handle == PSEUDO_DEFAULT || handle == PSEUDO_NEXT)
        return by_order((unsigned int)index, handle, name, version, caller);
    return by_handle((unsigned int)index, handle, name, version);
}

/* A library that is opened with RTLD_DEEPBIND looks for names in its own dependencies first, so finds the
 * driver before us, and possibly while it is being opened. */
void vcuda_entry_deepbind(void) {
    if (vcuda_share_mode() != VCUDA_MODE_NONE)
        vcuda_redirect_drivers(true);
}

/* Before glibc 2.34, who calls dlsym brings libdl along; without it there is nothing that could be found. */
static void *nothing(void) {
    return NULL;
}

void vcuda_entry_find_genuine(void) {
    const struct vcuda_genuine *linker = vcuda_genuine();
    if (linker->dlsym) {
        __atomic_store_n(&vcuda_entry_dlsym, (void *)linker->dlsym, __ATOMIC_RELAXED);
        __atomic_store_n(&vcuda_entry_dlvsym, (void *)linker->dlvsym, __ATOMIC_RELAXED);
        __atomic_store_n(&vcuda_entry_dlopen, (void *)linker->dlopen, __ATOMIC_RELAXED);
    } else {
        __atomic_store_n(&vcuda_entry_dlsym, (void *)nothing, __ATOMIC_RELAXED);
        __atomic_store_n(&vcuda_entry_dlvsym, (void *)nothing, __ATOMIC_RELAXED);
        __atomic_store_n(&vcuda_entry_dlopen, (void *)nothing, __ATOMIC_RELAXED);
    }
}
