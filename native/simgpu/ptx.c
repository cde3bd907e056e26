/*
 * PTX: the kernels of a module, their parameters, and its global variables. A scanner of tokens; what it does
 * not know it skips up to the end of the statement or of the body.
 */
#include "image.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

struct scanner {
    const char *at, *end; /* end: NULL where the text ends with a zero */
    const char *token;
    size_t length; /* 0 = no more tokens */
};

static int peek(const struct scanner *scanner, size_t ahead) {
    if (!scanner->end) {
        for (size_t i = 0; i < ahead; i++)
            if (!scanner->at[i])
                return 0;
        return (unsigned char)scanner->at[ahead];
    }
    return scanner->at + ahead < scanner->end ? (unsigned char)scanner->at[ahead] : 0;
}

static void skip_blank(struct scanner *scanner) {
    for (;;) {
        int c = peek(scanner, 0);
        if (c == '/' && peek(scanner, 1) == '/') {
            while ((c = peek(scanner, 0)) != 0 && c != '\n')
                scanner->at++;
        } else if (c == '/' && peek(scanner, 1) == '*') {
            scanner->at += 2;
            while ((c = peek(scanner, 0)) != 0 && !(c == '*' && peek(scanner, 1) == '/'))
                scanner->at++;
            if (c)
                scanner->at += 2;
        } else if (c && isspace(c)) {
            scanner->at++;
        } else {
            return;
        }
    }
}

static bool in_word(int c) {
    return isalnum(c) || c == '_' || c == '$' || c == '%' || c == '.';
}

static bool next(struct scanner *scanner) {
    skip_blank(scanner);
    scanner->token = scanner->at;
    int c = peek(scanner, 0);
    if (c == '"') {
        do
            scanner->at++;
        while ((c = peek(scanner, 0)) != 0 && c != '"');
        scanner->at += c != 0;
    } else if (in_word(c)) {
        do
            scanner->at++;
        while (in_word(peek(scanner, 0)) && peek(scanner, 0) != '.');
    } else if (c) {
        scanner->at++;
    }
    scanner->length = (size_t)(scanner->at - scanner->token);
    return scanner->length > 0;
}

static bool is(const struct scanner *scanner, const char *text) {
    return scanner->length == strlen(text) && memcmp(scanner->token, text, scanner->length) == 0;
}

static uint64_t number(const struct scanner *scanner) {
    char digits[32] = "";
    memcpy(digits, scanner->token, scanner->length < 31 ? scanner->length : 31);
    return strtoull(digits, NULL, 0);
}

/* Bytes of a type such as .u64 or .bf16x2; 0 for what is no type. */
static uint32_t type_bytes(const struct scanner *scanner) {
    char text[16] = "";
    if (scanner->length < 3 || scanner->length > 8 || scanner->token[0] != '.')
        return 0;
    memcpy(text, scanner->token + 1, scanner->length - 1);
    const char *digits = text + (text[0] == 'b' && text[1] == 'f' ? 2 : 1);
    if (!strchr("busf", text[0]) || !isdigit((unsigned char)*digits))
        return strcmp(text, "texref") == 0 || strcmp(text, "surfref") == 0 ? 8 : 0;
    char *rest;
    unsigned long bits = strtoul(digits, &rest, 10);
    return (uint32_t)(bits / 8) * (*rest == 'x' ? (uint32_t)strtoul(rest + 1, NULL, 10) : 1);
}

/* What a declaration says between its state space and its end. */
struct declaration {
    const char *name;
    size_t length;
    uint32_t element, alignment, lanes;
    uint64_t count; /* product of the dimensions; 0 = an unknown one */
    bool managed;
};

/* Reads up to one of , ) ; = or {, which stays the current token. */
static void declare(struct scanner *scanner, struct declaration *declaration) {
    *declaration = (struct declaration){.alignment = 1, .lanes = 1, .count = 1};
    while (next(scanner) && !is(scanner, ",") && !is(scanner, ")") && !is(scanner, ";") &&
           !is(scanner, "=") && !is(scanner, "{")) {
        uint32_t bytes = type_bytes(scanner);
        if (bytes) {
            declaration->element = bytes;
        } else if (is(scanner, ".align")) {
            if (next(scanner) && number(scanner) && number(scanner) <= 4096)
                declaration->alignment = (uint32_t)number(scanner);
        } else if (is(scanner, ".v2") || is(scanner, ".v4") || is(scanner, ".v8")) {
            declaration->lanes = (uint32_t)(scanner->token[2] - '0');
        } else if (is(scanner, ".managed")) {
            declaration->managed = true;
        } else if (is(scanner, "[")) {
            uint64_t count = next(scanner) && !is(scanner, "]") ? number(scanner) : 0;
            declaration->count = count < ((uint64_t)1 << 40) ? declaration->count * count : 0;
            while (!is(scanner, "]") && next(scanner))
                ;
        } else if (scanner->token[0] != '.' && in_word((unsigned char)scanner->token[0])) {
            declaration->name = scanner->token;
            declaration->length = scanner->length;
        }
    }
}

static uint64_t declared_bytes(const struct declaration *declaration) {
    return declaration->element * declaration->lanes * declaration->count;
}

static uint64_t aligned(uint64_t offset, const struct declaration *declaration) {
    uint32_t natural = declaration->element * declaration->lanes;
    uint32_t alignment = declaration->alignment > natural ? declaration->alignment : natural ? natural : 1;
    return (offset + alignment - 1) / alignment * alignment;
}

static bool read_parameters(struct scanner *scanner, struct sim_entry *entry) {
    uint64_t offset = 0;
    uint32_t index = 0;
    while (next(scanner) && !is(scanner, ")")) {
        struct declaration declaration;
        if (!is(scanner, ".param"))
            continue;
        declare(scanner, &declaration);
        offset = aligned(offset, &declaration);
        if (!sim_entry_parameter(entry, index++, (uint32_t)offset, (uint32_t)declared_bytes(&declaration)))
            return false;
        offset += declared_bytes(&declaration);
        if (is(scanner, ")"))
            return true;
    }
    return true;
}

static void read_body(struct scanner *scanner, struct sim_entry *entry) {
    bool timer = false;
    uint64_t shared = 0;
    for (int depth = 1; depth && next(scanner);) {
        struct declaration declaration;
        if (is(scanner, "{"))
            depth++;
        else if (is(scanner, "}"))
            depth--;
        else if (is(scanner, "%globaltimer"))
            timer = true;
        else if (is(scanner, ".shared") && isspace((unsigned char)scanner->token[-1])) {
            declare(scanner, &declaration);
            shared = aligned(shared, &declaration) + declared_bytes(&declaration);
        }
    }
    entry->shared_bytes = (uint32_t)(shared < UINT32_MAX ? shared : UINT32_MAX);
    entry->spins = timer && entry->parameter_count && entry->parameters[0].bytes == 8;
}

static CUresult read_entry(struct scanner *scanner, struct sim_image *image) {
    if (!next(scanner) || !in_word((unsigned char)scanner->token[0]))
        return CUDA_ERROR_INVALID_PTX;
    struct sim_entry *entry = sim_image_entry(image, scanner->token, scanner->length);
    if (!entry)
        return CUDA_ERROR_OUT_OF_MEMORY;
    entry->registers = 16;
    while (next(scanner)) {
        if (is(scanner, "(")) {
            if (!read_parameters(scanner, entry))
                return CUDA_ERROR_OUT_OF_MEMORY;
        } else if (is(scanner, ".maxntid") || is(scanner, ".reqntid")) {
            uint64_t threads = 1;
            do {
                if (next(scanner))
                    threads *= number(scanner);
                skip_blank(scanner);
            } while (peek(scanner, 0) == ',' && next(scanner));
            entry->max_threads = threads && threads <= 1024 ? (uint32_t)threads : 1024;
        } else if (is(scanner, "{")) {
            read_body(scanner, entry);
            return CUDA_SUCCESS;
        } else if (is(scanner, ";")) { /* only declared */
            free(entry->name);
            free(entry->parameters);
            image->entry_count--;
            return CUDA_SUCCESS;
        }
    }
    return CUDA_ERROR_INVALID_PTX;
}

static CUresult read_global(struct scanner *scanner, struct sim_image *image) {
    struct declaration declaration;
    declare(scanner, &declaration);
    while (!is(scanner, ";") && next(scanner)) /* first values are not read: they stay zero */
        ;
    uint64_t bytes = declared_bytes(&declaration);
    if (!declaration.name || !bytes)
        return CUDA_SUCCESS;
    struct sim_global *global = sim_image_global(image, declaration.name, declaration.length);
    if (!global)
        return CUDA_ERROR_OUT_OF_MEMORY;
    global->offset = (aligned(image->data_bytes, &declaration) + 15) & ~(uint64_t)15;
    global->bytes = bytes;
    global->managed = declaration.managed;
    image->data_bytes = global->offset + bytes;
    return CUDA_SUCCESS;
}

static void skip_body(struct scanner *scanner) {
    for (int depth = 0; next(scanner);) {
        bool ends = is(scanner, "}") || is(scanner, ";");
        depth += is(scanner, "{") - is(scanner, "}");
        if (ends && depth <= 0)
            return;
    }
}

static CUresult read_header(struct scanner *scanner, struct sim_target target, struct sim_image *image) {
    if (!next(scanner) || !is(scanner, ".version"))
        return CUDA_ERROR_INVALID_IMAGE;
    if (!next(scanner))
        return CUDA_ERROR_INVALID_PTX;
    uint32_t major = (uint32_t)number(scanner), minor = 0;
    if (next(scanner) && scanner->token[0] == '.' && isdigit((unsigned char)scanner->token[1])) {
        minor = (uint32_t)strtoul(scanner->token + 1, NULL, 10);
        next(scanner);
    }
    if (!is(scanner, ".target") || !next(scanner))
        return CUDA_ERROR_INVALID_PTX;
    if (major * 10 + minor > target.ptx_version)
        return CUDA_ERROR_UNSUPPORTED_PTX_VERSION;
    if (scanner->length < 5 || memcmp(scanner->token, "sm_", 3) != 0)
        return CUDA_ERROR_INVALID_PTX;
    image->arch = (uint32_t)strtoul(scanner->token + 3, NULL, 10);
    image->ptx_version = (int)image->arch;
    image->binary_version = (int)target.arch;
    return image->arch > target.arch ? CUDA_ERROR_INVALID_PTX : CUDA_SUCCESS;
}

CUresult sim_ptx_read(const char *text, size_t bytes, struct sim_target target, struct sim_image *image) {
    struct scanner scanner = {.at = text, .end = bytes ? text + bytes : NULL};
    CUresult result = text ? read_header(&scanner, target, image) : CUDA_ERROR_INVALID_IMAGE;
    while (result == CUDA_SUCCESS && next(&scanner)) {
        if (is(&scanner, ".entry"))
            result = read_entry(&scanner, image);
        else if (is(&scanner, ".func") || is(&scanner, ".section"))
            skip_body(&scanner);
        else if (is(&scanner, ".global") || is(&scanner, ".const"))
            result = read_global(&scanner, image);
    }
    image->code_bytes = (uint64_t)(scanner.at - text);
    return result;
}
