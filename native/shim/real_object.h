/* An object (program or library) as it lies in memory, and its dynamic symbols. */
#ifndef VCUDA_REAL_OBJECT_H
#define VCUDA_REAL_OBJECT_H

#include <link.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct vcuda_object {
    uintptr_t base;
    const ElfW(Phdr) * segments;
    unsigned int segment_count;
    ElfW(Sym) * symbols;
    const char *strings, *soname; /* soname: NULL where it has none */
    const uint32_t *gnu_hash, *sysv_hash;
    const ElfW(Dyn) * dynamic;
};

/* False for objects without dynamic symbols. */
bool vcuda_object_open(struct vcuda_object *object, const struct dl_phdr_info *info);
/* This library itself. */
const struct vcuda_object *vcuda_object_self(void);
/* A symbol that the object defines, or NULL. */
ElfW(Sym) * vcuda_object_symbol(const struct vcuda_object *object, const char *name);
/* Whether the object names a library as one that it needs. */
bool vcuda_object_needs(const struct vcuda_object *object, const char *name);
bool vcuda_object_holds(const struct vcuda_object *object, const void *address);

static inline void *vcuda_object_address(const struct vcuda_object *object, const ElfW(Sym) * symbol) {
    return symbol ? (void *)(object->base + symbol->st_value) : NULL; /* NOLINT(performance-no-int-to-ptr) */
}

#endif
