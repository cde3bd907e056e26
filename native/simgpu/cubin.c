/*
 * Cubins: ELF files of NVIDIA's own machine type. Kernels are the functions of the symbol table that are
 * marked as entries; their parameters are in the section .nv.info.NAME, a list of (format, attribute, value).
 */
#include "image.h"

#include <elf.h>
#include <stdlib.h>
#include <string.h>

#define EM_CUDA_MACHINE 190
#define OS_ABI_NEW 0x41   /* of files whose flags have the architecture in their second byte */
#define SYMBOL_ENTRY 0x10 /* in a symbol's st_other: may be launched */
#define SECTION_LIMIT ((uint64_t)1 << 40)
#define RESERVED_SHARED 1024 /* of each block, on architecture 9.0 and later; part of .nv.shared.NAME */

enum { FORMAT_LONG = 4 }; /* a length, then so many bytes; the other formats are four bytes in all */
enum {
    ATTRIBUTE_MAX_THREADS = 0x05,
    ATTRIBUTE_FRAME = 0x11,
    ATTRIBUTE_PARAMETER = 0x17,
    ATTRIBUTE_REGISTERS = 0x2f
};

struct file {
    const unsigned char *at;
    size_t bytes; /* 0 = not known */
    const Elf64_Ehdr *header;
    const Elf64_Shdr *sections;
    uint64_t data_offset[3];
};

static const char *const data_sections[3] = {".nv.global.init", ".nv.constant3", ".nv.global"};

static bool has(const struct file *file, uint64_t offset, uint64_t bytes) {
    if (offset + bytes < offset || offset + bytes > SECTION_LIMIT)
        return false;
    return file->bytes ? offset + bytes <= file->bytes : sim_is_readable(file->at + offset, bytes);
}

bool sim_is_cubin(const void *at) {
    return sim_begins(at, ELFMAG, SELFMAG);
}

static const char *section_name(const struct file *file, const Elf64_Shdr *section) {
    const Elf64_Shdr *names = &file->sections[file->header->e_shstrndx];
    return section->sh_name < names->sh_size ? (const char *)file->at + names->sh_offset + section->sh_name
                                             : "";
}

static const Elf64_Shdr *section_of(const struct file *file, const char *prefix, const char *name) {
    size_t length = strlen(prefix);
    for (unsigned int i = 0; i < file->header->e_shnum; i++) {
        const char *found = section_name(file, &file->sections[i]);
        if (strncmp(found, prefix, length) == 0 && strcmp(found + length, name) == 0)
            return &file->sections[i];
    }
    return NULL;
}

static bool open_file(struct file *file) {
    file->header = (const Elf64_Ehdr *)file->at;
    if (!has(file, 0, sizeof *file->header))
        return false;
    const Elf64_Ehdr *header = file->header;
    if (header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_machine != EM_CUDA_MACHINE || !header->e_shoff ||
        header->e_shentsize != sizeof(Elf64_Shdr) || header->e_shstrndx >= header->e_shnum ||
        header->e_shoff % 8 || !has(file, header->e_shoff, (uint64_t)header->e_shnum * sizeof(Elf64_Shdr)))
        return false;
    file->sections = (const Elf64_Shdr *)(file->at + header->e_shoff);
    for (unsigned int i = 0; i < header->e_shnum; i++) {
        const Elf64_Shdr *section = &file->sections[i];
        if (section->sh_size > SECTION_LIMIT || (section->sh_type != SHT_NOBITS && section->sh_size &&
                                                 !has(file, section->sh_offset, section->sh_size)))
            return false;
        if (section->sh_type == SHT_STRTAB && section->sh_size &&
            file->at[section->sh_offset + section->sh_size - 1] != 0)
            return false;
    }
    return file->sections[header->e_shstrndx].sh_type == SHT_STRTAB;
}

static uint32_t word(const unsigned char *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

/* Go through a section's attributes; `symbol` is the kernel's number, for attributes that name it. */
static bool read_attributes(const struct file *file, const Elf64_Shdr *section, struct sim_entry *entry,
                            uint32_t symbol) {
    const unsigned char *at = file->at + section->sh_offset, *end = at + section->sh_size;
    while (end - at >= 4) {
        uint32_t length = at[0] == FORMAT_LONG ? (uint32_t)at[2] | (uint32_t)at[3] << 8 : 0;
        const unsigned char *value = at + 4;
        if (length > (size_t)(end - value))
            return true;
        if (at[1] == ATTRIBUTE_PARAMETER && length >= 12) {
            uint32_t ordinal = word(value + 4) & 0xffff, offset = word(value + 4) >> 16;
            if (!sim_entry_parameter(entry, ordinal, offset, word(value + 8) >> 18))
                return false;
        } else if (at[1] == ATTRIBUTE_MAX_THREADS && length >= 12) {
            uint64_t threads = (uint64_t)word(value) * word(value + 4) * word(value + 8);
            entry->max_threads = threads && threads < 1024 ? (uint32_t)threads : 1024;
        } else if (at[1] == ATTRIBUTE_REGISTERS && length >= 8 && word(value) == symbol) {
            entry->registers = word(value + 4);
        } else if (at[1] == ATTRIBUTE_FRAME && length >= 8 && word(value) == symbol) {
            entry->local_bytes = word(value + 4);
        }
        at = value + length;
    }
    return true;
}

static uint32_t size_of(const struct file *file, const char *prefix, const char *name) {
    const Elf64_Shdr *section = section_of(file, prefix, name);
    return section && section->sh_size < UINT32_MAX ? (uint32_t)section->sh_size : 0;
}

static CUresult read_kernel(const struct file *file, struct sim_image *image, const char *name,
                            uint32_t symbol) {
    struct sim_entry *entry = sim_image_entry(image, name, strlen(name));
    if (!entry)
        return CUDA_ERROR_OUT_OF_MEMORY;
    const Elf64_Shdr *own = section_of(file, ".nv.info.", name), *common = section_of(file, ".nv.info", "");
    if ((own && !read_attributes(file, own, entry, symbol)) ||
        (common && !read_attributes(file, common, entry, symbol)))
        return CUDA_ERROR_OUT_OF_MEMORY;
    entry->shared_bytes = size_of(file, ".nv.shared.", name);
    if (image->arch >= 90 && entry->shared_bytes >= RESERVED_SHARED)
        entry->shared_bytes -= RESERVED_SHARED;
    entry->constant_bytes = size_of(file, ".nv.constant3", "");
    entry->spins = strncmp(name, "spin", 4) == 0 && entry->parameter_count && entry->parameters[0].bytes == 8;
    return CUDA_SUCCESS;
}

static CUresult read_variable(const struct file *file, struct sim_image *image, const char *name,
                              const Elf64_Sym *symbol) {
    const char *section = section_name(file, &file->sections[symbol->st_shndx]);
    for (int i = 0; i < 3; i++) {
        if (strcmp(section, data_sections[i]) != 0)
            continue;
        if (symbol->st_value + symbol->st_size > file->sections[symbol->st_shndx].sh_size)
            return CUDA_ERROR_INVALID_IMAGE;
        struct sim_global *global = sim_image_global(image, name, strlen(name));
        if (!global)
            return CUDA_ERROR_OUT_OF_MEMORY;
        global->offset = file->data_offset[i] + symbol->st_value;
        global->bytes = symbol->st_size;
    }
    return CUDA_SUCCESS;
}

static CUresult read_symbols(const struct file *file, struct sim_image *image) {
    for (unsigned int i = 0; i < file->header->e_shnum; i++) {
        const Elf64_Shdr *table = &file->sections[i];
        if (table->sh_type != SHT_SYMTAB || table->sh_link >= file->header->e_shnum || table->sh_offset % 8)
            continue;
        const Elf64_Shdr *strings = &file->sections[table->sh_link];
        const Elf64_Sym *symbols = (const Elf64_Sym *)(file->at + table->sh_offset);
        for (uint64_t s = 0; s < table->sh_size / sizeof *symbols; s++) {
            const Elf64_Sym *symbol = &symbols[s];
            if (strings->sh_type != SHT_STRTAB || symbol->st_name >= strings->sh_size || !symbol->st_shndx ||
                symbol->st_shndx >= file->header->e_shnum)
                continue;
            const char *name = (const char *)file->at + strings->sh_offset + symbol->st_name;
            CUresult result = CUDA_SUCCESS;
            if (ELF64_ST_TYPE(symbol->st_info) == STT_FUNC && (symbol->st_other & SYMBOL_ENTRY))
                result = read_kernel(file, image, name, (uint32_t)s);
            else if (ELF64_ST_TYPE(symbol->st_info) == STT_OBJECT && symbol->st_size)
                result = read_variable(file, image, name, symbol);
            if (result != CUDA_SUCCESS)
                return result;
        }
    }
    return CUDA_SUCCESS;
}

/* Where the variables lie in the module's memory, and with what in them: those with values come first. */
static CUresult read_data(struct file *file, struct sim_image *image) {
    for (int i = 0; i < 3; i++) {
        const Elf64_Shdr *section = section_of(file, data_sections[i], "");
        file->data_offset[i] = (image->data_bytes + 255) & ~(uint64_t)255;
        if (!section)
            continue;
        image->data_bytes = file->data_offset[i] + section->sh_size;
        if (section->sh_type == SHT_NOBITS || !section->sh_size)
            continue;
        unsigned char *data = realloc(image->data, image->data_bytes);
        if (!data)
            return CUDA_ERROR_OUT_OF_MEMORY;
        memset(data + image->value_bytes, 0, file->data_offset[i] - image->value_bytes);
        memcpy(data + file->data_offset[i], file->at + section->sh_offset, section->sh_size);
        image->data = data;
        image->value_bytes = image->data_bytes;
    }
    return CUDA_SUCCESS;
}

/* Where a file whose size nobody told ends: behind the last of its sections and its table of them. */
static size_t whole_bytes(const unsigned char *at) {
    Elf64_Ehdr header;
    Elf64_Shdr section;
    memcpy(&header, at, sizeof header);
    uint64_t end = header.e_shoff + (uint64_t)header.e_shnum * sizeof section;
    if (end > SECTION_LIMIT || !sim_is_readable(at, end))
        return 0;
    for (unsigned int i = 0; i < header.e_shnum; i++) {
        memcpy(&section, at + header.e_shoff + i * sizeof section, sizeof section);
        if (section.sh_type != SHT_NOBITS && section.sh_offset < SECTION_LIMIT &&
            section.sh_size < SECTION_LIMIT && section.sh_offset + section.sh_size > end)
            end = section.sh_offset + section.sh_size;
    }
    return sim_is_readable(at, end) ? end : 0;
}

CUresult sim_cubin_read(const unsigned char *at, size_t bytes, struct sim_target target,
                        struct sim_image *image) {
    struct file file = {.at = at, .bytes = bytes};
    if ((uintptr_t)at % 8) { /* images may lie anywhere; the tables are read in place */
        bytes = bytes ? bytes : whole_bytes(at);
        void *moved = bytes ? aligned_alloc(8, (bytes + 7) & ~(size_t)7) : NULL;
        if (!moved)
            return CUDA_ERROR_INVALID_IMAGE;
        memcpy(moved, at, bytes);
        CUresult result = sim_cubin_read(moved, bytes, target, image);
        free(moved);
        return result;
    }
    if (!open_file(&file))
        return CUDA_ERROR_INVALID_IMAGE;
    uint32_t flags = file.header->e_flags;
    image->arch = file.header->e_ident[EI_OSABI] == OS_ABI_NEW ? flags >> 8 & 0xff : flags & 0xff;
    image->ptx_version = image->binary_version = (int)image->arch;
    if (image->arch / 10 != target.arch / 10 || image->arch > target.arch)
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    for (unsigned int i = 0; i < file.header->e_shnum; i++)
        if (file.sections[i].sh_flags & SHF_ALLOC)
            image->code_bytes += file.sections[i].sh_size;
    CUresult result = read_data(&file, image);
    return result == CUDA_SUCCESS ? read_symbols(&file, image) : result;
}
