/*
 * A library that is linked with the driver, to be opened in different ways.
 * build: build/native/sim/libcuda.so.1 -Wl,--allow-shlib-undefined -pthread
 */
#include "ways.h"

int linked_run(unsigned long long share_bytes);
void linked_where(const char *name);
void *linked_next(const char *name);

int linked_run(unsigned long long share_bytes) {
    struct api api = {
#define LINKED(name) .name = name,
        FUNCTIONS(LINKED)
#undef LINKED
    };
    return scenario(&api, share_bytes);
}

/* What comes after this library: the driver, which is its dependency. */
void linked_where(const char *name) {
    print_place(dlsym(RTLD_NEXT, name));
}

/* What it calls by itself. */
static void *bound;
__attribute__((constructor)) static void bind(void) {
    bound = (void *)cuMemAlloc_v2;
}
void linked_bound(void);
void linked_bound(void) {
    print_place(bound);
}
