/* Reading an object's dynamic section and symbol tables, as the dynamic linker does. */
#include "real_object.h"

#include <string.h>

/* The dynamic linker replaces offsets by addresses in most objects' dynamic sections, but not in read-only
 * ones. */
static uintptr_t address_of(uintptr_t base, uintptr_t value) {
    return value < base ? base + value : value;
}

/* NOLINTBEGIN(performance-no-int-to-ptr): this is about addresses */
static bool read_dynamic(struct vcuda_object *object, const ElfW(Dyn) * dynamic) {
    uintptr_t base = object->base, soname = 0;
    object->dynamic = dynamic;
    for (; dynamic->d_tag != DT_NULL; dynamic++) {
        uintptr_t value = dynamic->d_un.d_ptr;
        switch (dynamic->d_tag) {
        case DT_SYMTAB:
            object->symbols = (ElfW(Sym) *)address_of(base, value);
            break;
        case DT_STRTAB:
            object->strings = (const char *)address_of(base, value);
            break;
        case DT_GNU_HASH:
            object->gnu_hash = (const uint32_t *)address_of(base, value);
            break;
        case DT_HASH:
            object->sysv_hash = (const uint32_t *)address_of(base, value);
            break;
        case DT_SONAME:
            soname = value;
            break;
        default:
            break;
        }
    }
    if (object->strings && soname)
        object->soname = object->strings + soname;
    return object->symbols && object->strings && (object->gnu_hash || object->sysv_hash);
}

bool vcuda_object_open(struct vcuda_object *object, const struct dl_phdr_info *info) {
    *object = (struct vcuda_object){
        .base = info->dlpi_addr, .segments = info->dlpi_phdr, .segment_count = info->dlpi_phnum};
    for (unsigned int i = 0; i < object->segment_count; i++)
        if (object->segments[i].p_type == PT_DYNAMIC)
            return read_dynamic(object, (const ElfW(Dyn) *)(object->base + object->segments[i].p_vaddr));
    return false;
}

extern const ElfW(Ehdr) __ehdr_start __attribute__((visibility("hidden")));
extern ElfW(Dyn) _DYNAMIC[] __attribute__((visibility("hidden")));

const struct vcuda_object *vcuda_object_self(void) {
    static struct vcuda_object self;
    static int ready; /* whoever comes first fills it; whoever comes at the same time writes the same */
    if (!__atomic_load_n(&ready, __ATOMIC_ACQUIRE)) {
        struct vcuda_object object = {.base = (uintptr_t)&__ehdr_start};
        object.segments = (const ElfW(Phdr) *)(object.base + __ehdr_start.e_phoff);
        object.segment_count = __ehdr_start.e_phnum;
        read_dynamic(&object, _DYNAMIC);
        self = object;
        __atomic_store_n(&ready, 1, __ATOMIC_RELEASE);
    }
    return &self;
}

bool vcuda_object_needs(const struct vcuda_object *object, const char *name) {
    for (const ElfW(Dyn) *entry = object->dynamic; entry->d_tag != DT_NULL; entry++)
        if (entry->d_tag == DT_NEEDED && strcmp(object->strings + entry->d_un.d_val, name) == 0)
            return true;
    return false;
}

bool vcuda_object_holds(const struct vcuda_object *object, const void *address) {
    uintptr_t at = (uintptr_t)address - object->base;
    for (unsigned int i = 0; i < object->segment_count; i++)
        if (object->segments[i].p_type == PT_LOAD && at >= object->segments[i].p_vaddr &&
            at - object->segments[i].p_vaddr < object->segments[i].p_memsz)
            return true;
    return false;
}

static ElfW(Sym) * defined(const struct vcuda_object *object, uint32_t index, const char *name) {
    ElfW(Sym) *symbol = &object->symbols[index];
    bool same = symbol->st_shndx != SHN_UNDEF && symbol->st_value != 0 &&
                strcmp(object->strings + symbol->st_name, name) == 0;
    return same ? symbol : NULL;
}

/* The table: bucket count, first hashed symbol, filter's size and shift, filter, buckets, a hash for each
 * symbol (its lowest bit marks the end of a bucket). */
static ElfW(Sym) * gnu_find(const struct vcuda_object *object, const char *name) {
    const uint32_t *table = object->gnu_hash;
    uint32_t buckets = table[0], first = table[1], filter_size = table[2], shift = table[3], hash = 5381;
    const ElfW(Addr) *filter = (const ElfW(Addr) *)(table + 4);
    const uint32_t *bucket = (const uint32_t *)(filter + filter_size), *chain = bucket + buckets;
    const unsigned int bits = 8 * sizeof *filter;
    for (const char *at = name; *at; at++)
        hash = hash * 33 + (unsigned char)*at;
    ElfW(Addr) word = filter_size ? filter[hash / bits % filter_size] : (ElfW(Addr)) - 1;
    if (!buckets || !(word >> hash % bits & 1) || !(word >> (hash >> shift) % bits & 1))
        return NULL;
    uint32_t index = bucket[hash % buckets];
    if (index < first)
        return NULL;
    for (;; index++) {
        uint32_t other = chain[index - first];
        ElfW(Sym) *symbol = (other | 1) == (hash | 1) ? defined(object, index, name) : NULL;
        if (symbol || (other & 1))
            return symbol;
    }
}

static ElfW(Sym) * sysv_find(const struct vcuda_object *object, const char *name) {
    const uint32_t *table = object->sysv_hash;
    uint32_t buckets = table[0], hash = 0;
    for (const char *at = name; *at; at++) {
        hash = (hash << 4) + (unsigned char)*at;
        hash = (hash ^ (hash >> 24 & 0xf0)) & 0x0fffffff;
    }
    for (uint32_t index = buckets ? table[2 + hash % buckets] : 0; index;
         index = table[2 + buckets + index]) {
        ElfW(Sym) *symbol = defined(object, index, name);
        if (symbol)
            return symbol;
    }
    return NULL;
}
/* NOLINTEND(performance-no-int-to-ptr) */

ElfW(Sym) * vcuda_object_symbol(const struct vcuda_object *object, const char *name) {
    return object->gnu_hash ? gnu_find(object, name) : sysv_find(object, name);
}
