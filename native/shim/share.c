/* Finding the share: where the grant lies, what to say when it is broken, which device is which card. */
#include "share.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "lock.h"
#include "memory.h"
#include "meter.h"

#ifndef VCUDA_GRANT_DIR
#define VCUDA_GRANT_DIR "/run/vcuda" /* mounted by the node side; wins over any variable */
#endif
#ifndef MADV_WIPEONFORK /* Linux 4.14 */
#define MADV_WIPEONFORK 18
#endif

struct vcuda_share *vcuda_share_attached;
__thread int vcuda_depth;

static struct vcuda_share the_share;
static bool grant_opened;
static vcuda_lock share_lock;

/* One line on stderr, once per process: a program may try cuInit again and again. */
__attribute__((format(printf, 1, 2))) static void say(const char *format, ...) {
    static bool said;
    if (__atomic_exchange_n(&said, true, __ATOMIC_RELAXED))
        return;
    char line[640] = "vcuda: ";
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line + 7, sizeof line - 8, format, arguments);
    va_end(arguments);
    size_t end = 7 + (length < 0 ? 0 : (size_t)length < sizeof line - 8 ? (size_t)length : sizeof line - 9);
    line[end++] = '\n';
    ssize_t ignored = write(2, line, end);
    (void)ignored;
}

/* The directory that holds grant and ledger, or NULL: this process has none. */
static const char *grant_dir(void) {
    if (access(VCUDA_GRANT_DIR, F_OK) == 0)
        return VCUDA_GRANT_DIR;
    const char *dir = getenv("VCUDA_GRANT_DIR");
    return dir && *dir ? dir : NULL;
}

static bool all_whole(const struct vcuda_grant_map *grant) {
    for (uint32_t card = 0; card < grant->card_count; card++)
        if (!(vcuda_grant_card(grant, card)->flags & VCUDA_CARD_WHOLE))
            return false;
    return true;
}

/* DIR/NAME, or false: it is too long. Without printf, whose code would have to be mapped first. */
#define PATH_BYTES 300
static bool path_in(char *path, const char *dir, const char *name) {
    size_t length = strlen(dir), name_bytes = strlen(name) + 1;
    if (length + 1 + name_bytes > PATH_BYTES)
        return false;
    memcpy(path, dir, length + 1);
    path[length] = '/';
    memcpy(path + length + 1, name, name_bytes);
    return true;
}

static bool open_grant_in(const char *dir, struct vcuda_grant_map *grant, char *why, size_t why_bytes) {
    char path[PATH_BYTES];
    if (!path_in(path, dir, "grant")) {
        snprintf(why, why_bytes, "the grant's directory has too long a name");
        return false;
    }
    return vcuda_grant_open(grant, path, why, why_bytes) == VCUDA_GRANT_OK;
}

/* Caller holds share_lock, and has opened the grant. */
static void keep_grant(void) {
    the_share.whole = all_whole(&the_share.grant);
    grant_opened = true;
}

/* Caller holds share_lock. */
static CUresult open_grant(const char *dir) {
    char why[512];
    if (grant_opened || !dir)
        return CUDA_SUCCESS;
    if (!open_grant_in(dir, &the_share.grant, why, sizeof why)) {
        say("%s; CUDA is not available here", why);
        return VCUDA_ERROR_INIT;
    }
    keep_grant();
    return CUDA_SUCCESS;
}

enum vcuda_mode vcuda_share_mode(void) {
    static int known = -1;
    int mode = __atomic_load_n(&known, __ATOMIC_ACQUIRE);
    if (mode >= 0)
        return (enum vcuda_mode)mode;
    /* Kept for cuInit, but where that is at it: the driver it loads may ask this too. */
    bool locked = vcuda_lock_try(&share_lock);
    struct vcuda_grant_map mine, *grant = locked ? &the_share.grant : &mine;
    const char *dir = grant_dir();
    char why[512]; /* cuInit says it */
    bool sound = dir && ((locked && grant_opened) || open_grant_in(dir, grant, why, sizeof why));
    mode = !dir ? VCUDA_MODE_NONE : sound && all_whole(grant) ? VCUDA_MODE_WHOLE : VCUDA_MODE_LIMITED;
    if (sound && locked)
        keep_grant();
    else if (sound)
        vcuda_grant_close(grant);
    if (locked)
        vcuda_lock_give(&share_lock);
    __atomic_store_n(&known, mode, __ATOMIC_RELEASE);
    return (enum vcuda_mode)mode;
}

static void say_ledger(enum vcuda_ledger_status status, const struct vcuda_ledger_map *map, const char *path,
                       int error) {
    switch (status) {
    case VCUDA_LEDGER_MISSING:
        say("the ledger %s cannot be opened: %s; CUDA is not available here", path, strerror(error));
        break;
    case VCUDA_LEDGER_READ_ONLY:
        say("the ledger %s cannot be written: %s; mount it read-write; CUDA is not available here", path,
            strerror(error));
        break;
    case VCUDA_LEDGER_TRUNCATED:
        say("the ledger %s is truncated; CUDA is not available here", path);
        break;
    case VCUDA_LEDGER_VERSION:
        say("the ledger %s has ABI version %u.%u, this library %u.%u: install the same version of vcuda on "
            "both "
            "sides; CUDA is not available here",
            path, map->other_major, map->other_minor, VCUDA_ABI_MAJOR, VCUDA_ABI_MINOR);
        break;
    case VCUDA_LEDGER_FULL:
        say("every slot of the ledger %s is taken by a living process; CUDA is not available to one more",
            path);
        break;
    case VCUDA_LEDGER_NO_SPACE:
        say("the file system of the ledger %s is full; CUDA is not available here", path);
        break;
    case VCUDA_LEDGER_NO_LOCKS:
        say("the file system or kernel has no open-file-description locks (Linux 3.15) for the ledger %s; "
            "CUDA is "
            "not available here",
            path);
        break;
    default:
        say("the ledger %s is not a ledger, or damaged; CUDA is not available here", path);
    }
}

/* "GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx" without its prefix, which for a MIG instance is another. */
static void uuid_text(const CUuuid *uuid, char text[37]) {
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < 16; i++) {
        unsigned char byte = (unsigned char)uuid->bytes[i];
        *text++ = digits[byte >> 4];
        *text++ = digits[byte & 15];
        if (i == 3 || i == 5 || i == 7 || i == 9)
            *text++ = '-';
    }
    *text = 0;
}

static bool driver_knows(CUdevice device, CUuuid *uuid) {
    /* _v2 answers the instance's UUID where the device is a MIG instance; drivers before 11.4 lack it. */
    return vcuda_real.cuDeviceGetUuid_v2(uuid, device) == CUDA_SUCCESS ||
           vcuda_real.cuDeviceGetUuid(uuid, device) == CUDA_SUCCESS;
}

/* Which granted card each device is; answers how many devices are granted. */
static int match_devices(struct vcuda_share *share) {
    int count = 0, granted = 0;
    memset(share->card_of, -1, sizeof share->card_of);
    if (vcuda_real.cuDeviceGetCount(&count) != CUDA_SUCCESS)
        return 0;
    for (int ordinal = 0; ordinal < count && ordinal < VCUDA_MAX_DEVICES; ordinal++) {
        CUdevice device;
        CUuuid uuid;
        char text[37];
        if (vcuda_real.cuDeviceGet(&device, ordinal) != CUDA_SUCCESS || device < 0 ||
            device >= VCUDA_MAX_DEVICES || !driver_knows(device, &uuid))
            continue;
        uuid_text(&uuid, text);
        for (uint32_t card = 0; card < share->grant.card_count; card++)
            if (strcmp(vcuda_grant_card(&share->grant, card)->uuid + 4, text) == 0) {
                share->card_of[device] = (int8_t)card;
                granted++;
            }
    }
    return granted;
}

static void forget_in_child(void) {
    /* The parent's other threads are gone with whatever they held. The ledger's mapping did not come along.
     */
    vcuda_share_attached = NULL;
    the_share.ledger.header = NULL;
    the_share.ledger.slot = -1;
    share_lock = (vcuda_lock){0};
    vcuda_records_forget();
    vcuda_arrays_forget_process();
    vcuda_vmm_forget_process();
    vcuda_pools_forget_process();
    vcuda_graph_memory_forget_process();
    vcuda_modules_forget_process();
    vcuda_contexts_forget_process();
    vcuda_limits_forget_process();
    vcuda_meter_forget_process();
}

static const uint32_t *make_fork_mark(void) {
    uint32_t *mark =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (mark == MAP_FAILED)
        return NULL;
    madvise(mark, 4096, MADV_WIPEONFORK); /* where it is refused, pthread_atfork is left */
    *mark = 1;
    return mark;
}

/* Caller holds share_lock. */
static CUresult enter_ledger(const char *dir) {
    if (the_share.alive && !*the_share.alive) /* a child made by a raw clone, which runs no fork handlers */
        forget_in_child();
    if (!grant_opened || the_share.ledger.header)
        return CUDA_SUCCESS;
    static bool fork_handler;
    if (!fork_handler)
        fork_handler = pthread_atfork(NULL, NULL, forget_in_child) == 0;
    the_share.alive = make_fork_mark();
    char path[PATH_BYTES];
    if (!the_share.alive || !dir || !path_in(path, dir, "ledger")) {
        say("out of memory, or the grant has gone; CUDA is not available here");
        return VCUDA_ERROR_INIT;
    }
    enum vcuda_ledger_status status = vcuda_ledger_attach(&the_share.ledger, path);
    if (status == VCUDA_LEDGER_OK) {
        if (the_share.whole) /* nothing is ever charged there */
            vcuda_ledger_identify(&the_share.ledger);
        return CUDA_SUCCESS;
    }
    say_ledger(status, &the_share.ledger, path, errno);
    return VCUDA_ERROR_INIT;
}

CUresult vcuda_share_prepare(void) {
    vcuda_lock_take(&share_lock);
    const char *dir = grant_dir();
    CUresult result = open_grant(dir);
    if (result == CUDA_SUCCESS)
        result = enter_ledger(dir);
    vcuda_lock_give(&share_lock);
    return result;
}

CUresult vcuda_share_attach(void) {
    CUresult result = CUDA_SUCCESS;
    vcuda_lock_take(&share_lock);
    if (grant_opened && !vcuda_share()) {
        the_share.granted = match_devices(&the_share);
        /* Also if there is none: a program that goes on in spite of the error is to find every card full. */
        __atomic_store_n(&vcuda_share_attached, &the_share, __ATOMIC_RELEASE);
    }
    if (grant_opened && the_share.granted == 0) {
        say("the driver shows none of the granted cards (first: %s); CUDA is not available here",
            vcuda_grant_card(&the_share.grant, 0)->uuid);
        result = VCUDA_ERROR_INIT;
    }
    vcuda_lock_give(&share_lock);
    return result;
}

int vcuda_current_card(const struct vcuda_share *share, CUresult *error) {
    CUdevice device;
    *error = vcuda_real.cuCtxGetDevice(&device);
    return *error == CUDA_SUCCESS ? vcuda_card_of(share, device) : -1;
}

CUresult vcuda_refuse(const struct vcuda_share *share, int card, uint64_t bytes) {
    if (card >= 0)
        vcuda_ledger_count_refusal(&share->ledger, (uint32_t)card, bytes);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

bool vcuda_share_view(const struct vcuda_view **view) {
    static struct vcuda_view the_view;
    static bool open;
    vcuda_lock_take(&share_lock);
    const char *dir = open ? NULL : grant_dir();
    char path[PATH_BYTES];
    if (dir && path_in(path, dir, "grant") &&
        vcuda_grant_open(&the_view.grant, path, NULL, 0) == VCUDA_GRANT_OK) {
        open = path_in(path, dir, "ledger") &&
               vcuda_ledger_open(&the_view.ledger, path, false) == VCUDA_LEDGER_OK;
        if (!open)
            vcuda_grant_close(&the_view.grant);
    }
    vcuda_lock_give(&share_lock);
    *view = &the_view;
    return open;
}

int vcuda_view_card(const struct vcuda_view *view, const char *uuid) {
    for (uint32_t card = 0; card < view->grant.card_count; card++)
        if (strcmp(vcuda_grant_card(&view->grant, card)->uuid, uuid) == 0)
            return (int)card;
    return -1;
}
