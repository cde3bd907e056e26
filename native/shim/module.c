/*
 * Modules and libraries: code and global variables that the driver puts on the card.
 *
 * What a module takes is not to be seen from inside while neighbours allocate, so it is computed from its
 * image: the sections that an ELF image asks to be allocated, or the length of an image that is compiled or
 * unpacked first. Drivers pack code into pages, so a context is charged the pages that its modules' sum
 * needs.
 */
#include "memory.h"

#include <elf.h>
#include <string.h>

#define FATBIN_WRAPPER_MAGIC 0x466243b1 /* as fatbinary_section.h of the CUDA toolkit declares it */
#define FATBIN_MAGIC 0xba55ed50
#define IMAGE_MOST ((uint64_t)1 << 40)

/* key: module or library; size: bytes of its image; owner: the context (0 for a library). */
static struct vcuda_table modules;

/* Per card: bytes of images, and what is charged for them. */
static struct {
    vcuda_lock lock;
    uint64_t bytes[VCUDA_MAX_CARDS], charged[VCUDA_MAX_CARDS];
} code;

void vcuda_modules_forget_process(void) {
    code.lock = (vcuda_lock){0};
    for (int card = 0; card < VCUDA_MAX_CARDS; card++)
        code.bytes[card] = code.charged[card] = 0;
}

static uint64_t elf_bytes(const unsigned char *image) {
    const Elf64_Ehdr *header = (const Elf64_Ehdr *)image;
    uint64_t bytes = 0;
    if (header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_shentsize != sizeof(Elf64_Shdr))
        return 0;
    const Elf64_Shdr *sections = (const Elf64_Shdr *)(image + header->e_shoff);
    for (unsigned int i = 0; header->e_shoff && i < header->e_shnum; i++)
        if ((sections[i].sh_flags & SHF_ALLOC) && sections[i].sh_size < IMAGE_MOST)
            bytes += sections[i].sh_size;
    return bytes < IMAGE_MOST ? bytes : 0;
}

/* The driver reads the image too, so it is there; only its kinds are told apart here. */
static uint64_t image_bytes(const void *image) {
    uint32_t magic;
    const unsigned char *at = image;
    memcpy(&magic, at, sizeof magic);
    if (magic == FATBIN_WRAPPER_MAGIC) {
        struct {
            int magic, version;
            const void *data;
        } wrapper;
        memcpy(&wrapper, at, sizeof wrapper);
        if (!wrapper.data)
            return 0;
        at = wrapper.data;
        memcpy(&magic, at, sizeof magic);
    }
    if (magic == FATBIN_MAGIC) { /* magic, version (16), header size (16), size of what follows (64) */
        uint64_t size;
        memcpy(&size, at + 8, sizeof size);
        return size < IMAGE_MOST ? size : 0;
    }
    if (memcmp(at, ELFMAG, SELFMAG) == 0)
        return elf_bytes(at);
    return strlen((const char *)at); /* PTX */
}

static bool pay(struct vcuda_share *share, int card, uint64_t bytes) {
    uint64_t page = vcuda_page_bytes(share, card);
    vcuda_lock_take(&code.lock);
    uint64_t wanted = vcuda_round_up(code.bytes[card] + bytes, page);
    bool paid = wanted <= code.charged[card] ||
                vcuda_reserve_or_settle(share, card, VCUDA_KIND_MODULE, wanted - code.charged[card]);
    if (paid) {
        code.bytes[card] += bytes;
        code.charged[card] = wanted > code.charged[card] ? wanted : code.charged[card];
    }
    vcuda_lock_give(&code.lock);
    return paid;
}

static void give_back(struct vcuda_share *share, int card, uint64_t bytes) {
    vcuda_lock_take(&code.lock);
    code.bytes[card] -= bytes < code.bytes[card] ? bytes : code.bytes[card];
    uint64_t wanted = vcuda_round_up(code.bytes[card], vcuda_page_bytes(share, card));
    vcuda_release(share, card, VCUDA_KIND_MODULE, code.charged[card] - wanted);
    code.charged[card] = wanted;
    vcuda_lock_give(&code.lock);
}

static uint64_t file_bytes(const char *path) {
    struct stat st;
    int fd = path ? sys_open(path, O_RDONLY) : -1;
    uint64_t bytes = fd >= 0 && sys_fstat(fd, &st) == 0 && st.st_size > 0 ? (uint64_t)st.st_size : 0;
    if (fd >= 0)
        close(fd);
    return bytes;
}

static CUresult loaded(struct vcuda_share *share, int card, uint64_t bytes, CUresult result, void *handle,
                       bool bound) {
    CUcontext context = NULL;
    if (result == CUDA_SUCCESS) {
        if (bound)
            vcuda_real.cuCtxGetCurrent(&context);
        struct vcuda_record record = {.key = (uint64_t)(uintptr_t)handle,
                                      .size = bytes,
                                      .card = (int16_t)card,
                                      .owner = (uint64_t)(uintptr_t)context,
                                      .kind = VCUDA_KIND_MODULE};
        if (vcuda_record_put(&modules, &record))
            return result;
    }
    give_back(share, card, bytes);
    return result;
}

/* One handler's shape. Without a context the driver answers as it will; a library then is charged to card 0.
 */
#define LOAD(handle, size, call, bound)                                                                      \
    do {                                                                                                     \
        struct vcuda_share *share = vcuda_limited_share();                                                   \
        if (!share || vcuda_depth || !(handle))                                                              \
            return (call);                                                                                   \
        CUresult error;                                                                                      \
        int card = vcuda_current_card(share, &error);                                                        \
        if (card < 0 && (bound))                                                                             \
            return (call);                                                                                   \
        card = card < 0 ? 0 : card;                                                                          \
        uint64_t bytes = (size);                                                                             \
        if (!pay(share, card, bytes))                                                                        \
            return vcuda_refuse(share, card, bytes);                                                         \
        vcuda_depth++;                                                                                       \
        CUresult result = (call);                                                                            \
        vcuda_depth--;                                                                                       \
        return loaded(share, card, bytes, result, result == CUDA_SUCCESS ? *(handle) : NULL, (bound));       \
    } while (0)

VCUDA_EXPORT CUresult cuModuleLoad(CUmodule *module, const char *fname) {
    LOAD(module, file_bytes(fname), vcuda_real.cuModuleLoad(module, fname), true);
}
VCUDA_EXPORT CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    LOAD(module, image ? image_bytes(image) : 0, vcuda_real.cuModuleLoadData(module, image), true);
}
VCUDA_EXPORT CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned int numOptions,
                                         CUjit_option *options, void **optionValues) {
    LOAD(module, image ? image_bytes(image) : 0,
         vcuda_real.cuModuleLoadDataEx(module, image, numOptions, options, optionValues), true);
}
VCUDA_EXPORT CUresult cuModuleLoadFatBinary(CUmodule *module, const void *fatCubin) {
    LOAD(module, fatCubin ? image_bytes(fatCubin) : 0, vcuda_real.cuModuleLoadFatBinary(module, fatCubin),
         true);
}
VCUDA_EXPORT CUresult cuLibraryLoadData(CUlibrary *library, const void *code_, CUjit_option *jitOptions,
                                        void **jitOptionsValues, unsigned int numJitOptions,
                                        CUlibraryOption *libraryOptions, void **libraryOptionValues,
                                        unsigned int numLibraryOptions) {
    LOAD(library, code_ ? image_bytes(code_) : 0,
         vcuda_real.cuLibraryLoadData(library, code_, jitOptions, jitOptionsValues, numJitOptions,
                                      libraryOptions, libraryOptionValues, numLibraryOptions),
         false);
}
VCUDA_EXPORT CUresult cuLibraryLoadFromFile(CUlibrary *library, const char *fileName,
                                            CUjit_option *jitOptions, void **jitOptionsValues,
                                            unsigned int numJitOptions, CUlibraryOption *libraryOptions,
                                            void **libraryOptionValues, unsigned int numLibraryOptions) {
    LOAD(library, file_bytes(fileName),
         vcuda_real.cuLibraryLoadFromFile(library, fileName, jitOptions, jitOptionsValues, numJitOptions,
                                          libraryOptions, libraryOptionValues, numLibraryOptions),
         false);
}

#define UNLOAD(handle, call)                                                                                 \
    do {                                                                                                     \
        struct vcuda_share *share = vcuda_limited_share();                                                   \
        struct vcuda_record record;                                                                          \
        if (!share || !vcuda_record_take(&modules, (uint64_t)(uintptr_t)(handle), &record))                  \
            return (call);                                                                                   \
        CUresult result = (call);                                                                            \
        if (result == CUDA_SUCCESS)                                                                          \
            give_back(share, record.card, record.size);                                                      \
        else                                                                                                 \
            vcuda_record_put(&modules, &record);                                                             \
        return result;                                                                                       \
    } while (0)

VCUDA_EXPORT CUresult cuModuleUnload(CUmodule hmod) {
    UNLOAD(hmod, vcuda_real.cuModuleUnload(hmod));
}
VCUDA_EXPORT CUresult cuLibraryUnload(CUlibrary library) {
    UNLOAD(library, vcuda_real.cuLibraryUnload(library));
}

struct ending {
    struct vcuda_share *share;
    uint64_t context;
};

static bool goes_along(struct vcuda_record *record, void *data) {
    struct ending *ending = data;
    if (record->owner != ending->context)
        return false;
    give_back(ending->share, record->card, record->size);
    return true;
}

void vcuda_modules_forget_context(struct vcuda_share *share, CUcontext context) {
    struct ending ending = {share, (uint64_t)(uintptr_t)context};
    if (context)
        vcuda_table_sweep(&modules, goes_along, &ending);
}
