/*
 * The drivers of this process. A driver is an object of the name that programs open, libcuda.so.1 or
 * libnvidia-ml.so.1, wherever its file lies. The first one in load order is the one that vcuda_real leads to;
 * it is opened by that name when a function is first called, so it is the one that the program's own dlopen
 * would give, and it stays loaded from then on.
 *
 * The dynamic linker's lock, which dl_iterate_phdr holds around its callbacks, guards what is remembered here
 * of the loaded objects.
 */
#include "real.h"

#include <string.h>
#include <sys/mman.h>

#include "real_object.h"
#include "sys.h"

#define MOST_DRIVERS 8

enum kind { KIND_CUDA, KIND_NVML, KIND_LIBC, KINDS };

static const char *const sonames[KINDS] = {"libcuda.so.1", "libnvidia-ml.so.1", "libc.so.6"};

/* What became of each function: 0 not looked up yet, MISSING, or its address in the pinned driver. */
#define MISSING 1
static uintptr_t found[VCUDA_FUNCTIONS];

static enum kind kind_of(unsigned int index) {
    return vcuda_name[index].flags & VCUDA_NVML ? KIND_NVML : KIND_CUDA;
}

static bool is_of_kind(const struct vcuda_object *object, enum kind kind) {
    if (!object->soname)
        return false;
    if (kind == KIND_LIBC && strcmp(object->soname, "libdl.so.2") == 0) /* dlsym's home before glibc 2.34 */
        return true;
    return strcmp(object->soname, sonames[kind]) == 0;
}

/* ---- which drivers are loaded ---- */

static struct {
    unsigned long long loads, unloads; /* as the dynamic linker counted them when we looked */
    bool looked;
    unsigned int count;
    struct vcuda_object object[MOST_DRIVERS];
    enum kind kind[MOST_DRIVERS];
    bool needed[KIND_NVML + 1]; /* by the program itself: never unloaded */
} drivers;

static int remember_driver(struct dl_phdr_info *info, size_t size, void *data) {
    struct vcuda_object object;
    bool *program = data; /* which comes first */
    bool readable = vcuda_object_open(&object, info);
    (void)size;
    for (enum kind kind = KIND_CUDA; kind <= KIND_NVML; kind++) {
        if (*program)
            drivers.needed[kind] = readable && vcuda_object_needs(&object, sonames[kind]);
        if (readable && drivers.count < MOST_DRIVERS && is_of_kind(&object, kind)) {
            drivers.object[drivers.count] = object;
            drivers.kind[drivers.count++] = kind;
        }
    }
    *program = false;
    return 0;
}

/* What a visitor of the drivers is to do, with the linker's lock held. */
struct visit {
    void (*act)(struct visit *visit);
    unsigned int index;
    const void *address;
    void *result;
};

static int visit_drivers(struct dl_phdr_info *info, size_t size, void *data) {
    struct visit *visit = data;
    (void)size;
    if (!drivers.looked || info->dlpi_adds != drivers.loads || info->dlpi_subs != drivers.unloads) {
        bool program = true;
        drivers.count = 0;
        dl_iterate_phdr(remember_driver, &program);
        drivers.loads = info->dlpi_adds;
        drivers.unloads = info->dlpi_subs;
        drivers.looked = true;
    }
    visit->act(visit);
    return 1; /* the first object was enough: the counts are the same in all */
}

static void find_address(struct visit *visit) {
    for (unsigned int i = 0; i < drivers.count; i++)
        if (drivers.kind[i] == kind_of(visit->index)) {
            const struct vcuda_object *driver = &drivers.object[i];
            visit->result =
                vcuda_object_address(driver, vcuda_object_symbol(driver, vcuda_name_of(visit->index)));
            return;
        }
}

void *vcuda_driver_address(unsigned int index) {
    /* What was found once goes first: the driver's symbol table may lead to the hook by now. */
    uintptr_t known = __atomic_load_n(&found[index], __ATOMIC_ACQUIRE);
    if (known)
        return known == MISSING ? NULL : (void *)known; /* NOLINT(performance-no-int-to-ptr) */
    struct visit visit = {.act = find_address, .index = index};
    dl_iterate_phdr(visit_drivers, &visit);
    return visit.result;
}

static void match_address(struct visit *visit) {
    const char *name = vcuda_name_of(visit->index);
    for (unsigned int i = 0; i < drivers.count && !visit->result; i++) {
        const struct vcuda_object *driver = &drivers.object[i];
        if (drivers.kind[i] == kind_of(visit->index) &&
            vcuda_object_address(driver, vcuda_object_symbol(driver, name)) == visit->address)
            visit->result = visit;
    }
}

bool vcuda_is_drivers(unsigned int index, const void *address) {
    if (address == vcuda_driver_address(index))
        return address != NULL;
    struct visit visit = {.act = match_address, .index = index, .address = address};
    dl_iterate_phdr(visit_drivers, &visit);
    return visit.result != NULL;
}

/* ---- a function is called ---- */

static void find_needed(struct visit *visit) {
    for (unsigned int i = 0; i < drivers.count; i++)
        if (drivers.kind[i] == (enum kind)visit->index && drivers.needed[visit->index])
            visit->result = visit;
}

static bool pin_driver(enum kind kind) {
    static bool pinned[KIND_NVML + 1];
    if (__atomic_load_n(&pinned[kind], __ATOMIC_ACQUIRE))
        return true;
    struct visit visit = {.act = find_needed, .index = kind};
    dl_iterate_phdr(visit_drivers, &visit);
    if (!visit.result) {
        const struct vcuda_genuine *linker = vcuda_genuine();
        /* Two threads that come here at once take two references: neither is ever given back. */
        if (!linker->dlopen || !linker->dlopen(sonames[kind], 1 /* RTLD_LAZY, local */))
            return false;
    }
    __atomic_store_n(&pinned[kind], true, __ATOMIC_RELEASE);
    return true;
}

void *vcuda_real_find(unsigned int index) {
    /* Written to before it is read: one page fault, not two. */
    uintptr_t known = __atomic_fetch_or(&found[index], 0, __ATOMIC_ACQ_REL);
    if (!known) {
        if (!pin_driver(kind_of(index)))
            return NULL; /* asked again with the next call: a driver may turn up */
        void *address = vcuda_driver_address(index);
        known = address ? (uintptr_t)address : MISSING;
        __atomic_store_n(&found[index], known, __ATOMIC_RELEASE);
        if (address) /* struct vcuda_real is pointers alone, in the table's order */
            __atomic_store_n((void **)&vcuda_real + index, address, __ATOMIC_RELAXED);
    }
    return known == MISSING ? NULL : (void *)known; /* NOLINT(performance-no-int-to-ptr) */
}

void *vcuda_own_address(const char *name) {
    const struct vcuda_object *self = vcuda_object_self();
    return vcuda_object_address(self, vcuda_object_symbol(self, name));
}

/* ---- symbol tables, changed: all of this with the linker's lock held ---- */

struct changes {
    const struct vcuda_object *object;
    unsigned int count;
    struct {
        ElfW(Sym) * symbol;
        uintptr_t value;
    } change[VCUDA_FUNCTIONS];
};

static void add_change(struct changes *changes, ElfW(Sym) * symbol, uintptr_t value) {
    changes->change[changes->count].symbol = symbol;
    changes->change[changes->count++].value = value;
}

static int protection_of(const struct vcuda_object *object, uintptr_t address) {
    int protection = PROT_READ;
    for (unsigned int i = 0; i < object->segment_count; i++) {
        const ElfW(Phdr) *segment = &object->segments[i];
        if (segment->p_type == PT_LOAD && address - object->base - segment->p_vaddr < segment->p_memsz)
            protection = (segment->p_flags & PF_R ? PROT_READ : 0) |
                         (segment->p_flags & PF_W ? PROT_WRITE : 0) |
                         (segment->p_flags & PF_X ? PROT_EXEC : 0);
    }
    return protection;
}

static void apply(const struct changes *changes) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), low = UINTPTR_MAX, high = 0;
    for (unsigned int i = 0; i < changes->count; i++) {
        uintptr_t symbol = (uintptr_t)changes->change[i].symbol;
        low = symbol < low ? symbol : low;
        high = symbol > high ? symbol : high;
    }
    if (changes->count == 0)
        return;
    int protection = protection_of(changes->object, low);
    low = low / page * page;
    high = (high + sizeof(ElfW(Sym)) + page - 1) / page * page;
    void *table = (void *)low; /* NOLINT(performance-no-int-to-ptr) */
    /* Old linkers put symbols into one segment with code, which other threads may be running. */
    /* NOLINTBEGIN(clang-analyzer-security.MmapWriteExec) */
    if (mprotect(table, high - low, protection | PROT_WRITE) != 0)
        return;
    for (unsigned int i = 0; i < changes->count; i++)
        __atomic_store_n(&changes->change[i].symbol->st_value, changes->change[i].value, __ATOMIC_RELAXED);
    mprotect(table, high - low, protection);
    /* NOLINTEND(clang-analyzer-security.MmapWriteExec) */
}

static void hide_idle(struct visit *visit) {
    struct changes changes = {.object = vcuda_object_self()};
    (void)visit;
    for (unsigned int index = 0; index < VCUDA_FUNCTIONS; index++) {
        bool idle = (vcuda_name[index].flags & VCUDA_HOOKED) && !vcuda_hooks(index);
        ElfW(Sym) *symbol = idle ? vcuda_object_symbol(changes.object, vcuda_name_of(index)) : NULL;
        if (symbol)
            add_change(&changes, symbol, 0); /* what has no value is not defined */
    }
    apply(&changes);
}

void vcuda_step_aside(void) {
    static bool aside;
    struct visit visit = {.act = hide_idle};
    if (!__atomic_load_n(&aside, __ATOMIC_ACQUIRE))
        dl_iterate_phdr(visit_drivers, &visit);
    __atomic_store_n(&aside, true, __ATOMIC_RELEASE);
}

static void redirect(struct visit *visit) {
    (void)visit;
    for (unsigned int i = 0; i < drivers.count; i++) {
        struct changes changes = {.object = &drivers.object[i]};
        for (unsigned int index = 0; index < VCUDA_FUNCTIONS; index++) {
            /* Only of the driver that vcuda_real leads to are the true addresses known. */
            uintptr_t known = __atomic_load_n(&found[index], __ATOMIC_ACQUIRE);
            if (drivers.kind[i] != kind_of(index) || known <= MISSING || !vcuda_hooks(index))
                continue;
            ElfW(Sym) *symbol = vcuda_object_symbol(changes.object, vcuda_name_of(index));
            if (symbol && changes.object->base + symbol->st_value == known)
                add_change(&changes, symbol, (uintptr_t)vcuda_hook_of(index) - changes.object->base);
        }
        apply(&changes);
    }
}

static void count_kinds(struct visit *visit) {
    bool *loaded = visit->result;
    for (unsigned int i = 0; i < drivers.count; i++)
        loaded[drivers.kind[i]] = true;
}

void vcuda_redirect_drivers(bool load) {
    bool wanted[KINDS] = {load, load};
    struct visit visit = {.act = count_kinds, .result = wanted};
    dl_iterate_phdr(visit_drivers, &visit);
    for (enum kind kind = KIND_CUDA; kind <= KIND_NVML; kind++)
        wanted[kind] = wanted[kind] && pin_driver(kind);
    for (unsigned int index = 0; index < VCUDA_FUNCTIONS; index++)
        if (wanted[kind_of(index)])
            vcuda_real_find(index); /* the true address, before the table loses it */
    visit.act = redirect;
    dl_iterate_phdr(visit_drivers, &visit);
}

/* ---- who defines a name ---- */

struct search {
    const char *name;
    enum kind kind;
    const void *after;
    bool started;
    enum vcuda_definer definer;
};

static int search_object(struct dl_phdr_info *info, size_t size, void *data) {
    struct search *search = data;
    struct vcuda_object object;
    (void)size;
    bool readable = vcuda_object_open(&object, info);
    if (!search->started) {
        search->started = vcuda_object_holds(&object, search->after);
        return 0;
    }
    if (!readable || !vcuda_object_symbol(&object, search->name))
        return 0;
    if (object.base == vcuda_object_self()->base)
        search->definer = VCUDA_OURSELVES;
    else
        search->definer = is_of_kind(&object, search->kind) ? VCUDA_DRIVER : VCUDA_ANOTHER;
    return 1;
}

enum vcuda_definer vcuda_first_definer(const char *name, int index, const void *after) {
    struct search search = {.name = name, .after = after, .started = !after, .definer = VCUDA_NOBODY};
    search.kind = index < 0 ? KIND_LIBC : kind_of((unsigned int)index);
    dl_iterate_phdr(search_object, &search);
    return search.definer;
}

/* ---- libc's dlsym ---- */

static int find_genuine(struct dl_phdr_info *info, size_t size, void *data) {
    struct vcuda_genuine *linker = data;
    struct vcuda_object object;
    (void)size;
    if (!vcuda_object_open(&object, info) || !is_of_kind(&object, KIND_LIBC))
        return 0;
    /* Function pointers, through the type that POSIX has dlsym answer. */
    void *address[3] = {vcuda_object_address(&object, vcuda_object_symbol(&object, "dlsym")),
                        vcuda_object_address(&object, vcuda_object_symbol(&object, "dlvsym")),
                        vcuda_object_address(&object, vcuda_object_symbol(&object, "dlopen"))};
    if (!address[0] || !address[1] || !address[2])
        return 0;
    memcpy(&linker->dlsym, &address[0], sizeof address[0]);
    memcpy(&linker->dlvsym, &address[1], sizeof address[1]);
    memcpy(&linker->dlopen, &address[2], sizeof address[2]);
    return 1;
}

const struct vcuda_genuine *vcuda_genuine(void) {
    static struct vcuda_genuine genuine;
    static int ready;
    if (!__atomic_load_n(&ready, __ATOMIC_ACQUIRE)) {
        struct vcuda_genuine linker = {0};
        if (!dl_iterate_phdr(find_genuine, &linker))
            return &genuine; /* an old libc without libdl: it may come with another library */
        genuine = linker;
        __atomic_store_n(&ready, 1, __ATOMIC_RELEASE);
    }
    return &genuine;
}

bool vcuda_is_genuine(const void *address) {
    const struct vcuda_genuine *linker = vcuda_genuine();
    return address == (void *)linker->dlsym || address == (void *)linker->dlvsym ||
           address == (void *)linker->dlopen;
}
