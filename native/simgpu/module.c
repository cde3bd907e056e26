/*
 * Modules: an image in a context, with memory of the card for its code and variables.
 */
#include "module.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_LIMIT ((size_t)1 << 32)

static struct CUmod_st *modules; /* of this process */

struct sim_target sim_target_of(uint32_t card) {
    const struct sim_machine *machine = sim_machine();
    uint32_t version = machine->cuda_version;
    struct sim_target target = {machine->cards[card].model.major * 10 + machine->cards[card].model.minor, 0};
    /* PTX 7.0 came with CUDA 11.0, and the two have counted alike since. */
    target.ptx_version = version >= 11000 ? (version / 1000 - 4) * 10 + version % 1000 / 10 : 65;
    return target;
}

void *sim_file_read(const char *path, size_t *bytes) {
    FILE *file = path ? fopen(path, "rbe") : NULL;
    char *content = NULL;
    size_t room = 0;
    *bytes = 0;
    while (file && !feof(file) && !ferror(file) && room < FILE_LIMIT) {
        size_t more = room ? room : 65536;
        char *grown =
            realloc(content, room + more + 1); /* aligned for any type, as tables in an image need it */
        if (!grown)
            break;
        content = grown;
        room += more;
        *bytes += fread(content + *bytes, 1, room - *bytes, file);
    }
    if (file)
        fclose(file);
    if (*bytes)
        content[*bytes] = 0;
    else
        free(content);
    return *bytes ? content : NULL;
}

void sim_jit_answer(unsigned int count, CUjit_option *options, void **values, const char *error) {
    size_t room[2] = {0, 0};
    static const CUjit_option logs[2] = {CU_JIT_INFO_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER};
    static const CUjit_option sizes[2] = {CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES,
                                          CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
    for (unsigned int i = 0; options && values && i < count; i++)
        for (int log = 0; log < 2; log++)
            if (options[i] == sizes[log])
                room[log] = (size_t)(uintptr_t)values[i] & UINT32_MAX;
    for (unsigned int i = 0; options && values && i < count; i++) {
        for (int log = 0; log < 2; log++) {
            const char *text = log && error ? error : "";
            if (options[i] == logs[log] && values[i] && room[log])
                snprintf(values[i], room[log], "%s", text);
            else if (options[i] == sizes[log])
                values[i] = (void *)(uintptr_t)strnlen(text, room[log]);
        }
        if (options[i] == CU_JIT_WALL_TIME)
            memset(&values[i], 0, sizeof(float));
    }
}

struct sim_entry *sim_entry_invent(const char *name) {
    struct sim_entry *entry = calloc(1, sizeof *entry);
    if (!entry)
        return NULL;
    entry->name = strdup(name);
    if (!entry->name) {
        free(entry);
        return NULL;
    }
    entry->registers = 32;
    entry->max_threads = 1024;
    entry->spins = strncmp(name, "spin", 4) == 0;
    return entry;
}

void sim_entry_free(struct sim_entry *entry) {
    if (entry) {
        free(entry->name);
        free(entry->parameters);
        free(entry);
    }
}

static struct CUfunc_st *add_function(struct CUmod_st *module, struct sim_entry *entry, bool own) {
    struct CUfunc_st *function = calloc(1, sizeof *function);
    if (!function || !sim_handle_put(function, SIM_HANDLE_FUNCTION)) {
        free(function);
        return NULL;
    }
    function->module = module;
    function->entry = entry;
    function->own_entry = own;
    function->max_dynamic_shared = -1;
    function->carveout = -1;
    function->block[0] = function->block[1] = function->block[2] = 1;
    function->next = module->functions;
    module->functions = function;
    return function;
}

struct CUfunc_st *sim_function_find(struct CUmod_st *module, const char *name) {
    for (struct CUfunc_st *function = module->functions; function; function = function->next)
        if (strcmp(function->entry->name, name) == 0)
            return function;
    if (!module->image->opaque)
        return NULL;
    struct sim_entry *entry = sim_entry_invent(name);
    struct CUfunc_st *function = entry ? add_function(module, entry, true) : NULL;
    if (!function)
        sim_entry_free(entry);
    return function;
}

static void free_functions(struct CUmod_st *module) {
    while (module->functions) {
        struct CUfunc_st *function = module->functions;
        module->functions = function->next;
        sim_handle_drop(function);
        if (function->own_entry)
            sim_entry_free(function->entry);
        free(function->parameters);
        free(function);
    }
}

void sim_module_end(struct CUmod_st *module) {
    for (struct CUmod_st **link = &modules; *link; link = &(*link)->next) {
        if (*link == module) {
            *link = module->next;
            break;
        }
    }
    struct CUmod_st **link = module->library ? &module->library->modules : NULL;
    while (link && *link && *link != module)
        link = &(*link)->next_of_library;
    if (link && *link)
        *link = module->next_of_library;
    sim_handle_drop(module);
    free_functions(module);
    if (!module->library)
        sim_image_free(module->image);
    free(module);
}

CUresult sim_module_make(struct CUctx_st *context, struct sim_image *image, struct CUlib_st *library,
                         struct CUmod_st **out) {
    CUdeviceptr memory = 0;
    CUresult result = sim_memory_small(context, image->code_bytes ? image->code_bytes : 1, &memory);
    if (result != CUDA_SUCCESS)
        return result;
    struct CUmod_st *module = calloc(1, sizeof *module);
    if (!module) {
        sim_memory_small_free(context, memory);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *module = (struct CUmod_st){.context = context, .library = library, .image = image, .memory = memory};
    if (image->value_bytes)
        memcpy((void *)(uintptr_t)memory, image->data, image->value_bytes);
    sim_work_lock();
    bool made = sim_handle_put(module, SIM_HANDLE_MODULE);
    for (size_t i = image->entry_count; made && i-- > 0;)
        made = add_function(module, &image->entries[i], false) != NULL;
    if (made) {
        module->next = modules;
        modules = module;
        if (library) {
            module->next_of_library = library->modules;
            library->modules = module;
        }
        *out = module;
    } else {
        sim_handle_drop(module);
        free_functions(module);
    }
    sim_work_unlock();
    if (made)
        return CUDA_SUCCESS;
    sim_memory_small_free(context, memory);
    free(module);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

void sim_modules_context_ends(struct CUctx_st *context) {
    sim_work_lock();
    for (struct CUmod_st *module = modules, *next; module; module = next) {
        next = module->next;
        if (module->context == context)
            sim_module_end(module);
    }
    sim_work_unlock();
}

void sim_modules_forget(void) {
    modules = NULL;
}

/* ---- the calls ---- */

static CUresult load(CUmodule *handle, const void *image_at, size_t bytes) {
    struct CUctx_st *context;
    struct sim_image *image;
    CUresult result = sim_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    if (!handle || !image_at)
        return CUDA_ERROR_INVALID_VALUE;
    if ((result = sim_fault("cuModuleLoadData")) != CUDA_SUCCESS)
        return result;
    result = sim_image_read(image_at, bytes, sim_target_of(context->card), &image);
    if (result != CUDA_SUCCESS)
        return result;
    result = sim_module_make(context, image, NULL, handle);
    if (result != CUDA_SUCCESS)
        sim_image_free(image);
    return result;
}

SIM_EXPORT CUresult cuModuleLoad(CUmodule *module, const char *fname) {
    size_t bytes = 0;
    CUresult result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    if (!module || !fname)
        return CUDA_ERROR_INVALID_VALUE;
    void *content = sim_file_read(fname, &bytes);
    if (!content)
        return CUDA_ERROR_FILE_NOT_FOUND;
    result = load(module, content, bytes);
    free(content);
    return result;
}

SIM_EXPORT CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    return load(module, image, 0);
}

SIM_EXPORT CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned int numOptions,
                                       CUjit_option *options, void **optionValues) {
    CUresult result = load(module, image, 0);
    sim_jit_answer(numOptions, options, optionValues,
                   result == CUDA_ERROR_INVALID_PTX ? "the PTX cannot be compiled for this card" : NULL);
    return result;
}

SIM_EXPORT CUresult cuModuleLoadFatBinary(CUmodule *module, const void *fatCubin) {
    return load(module, fatCubin, 0);
}

SIM_EXPORT CUresult cuModuleUnload(CUmodule hmod) {
    CUresult result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    sim_work_lock();
    if (!sim_handle_is(hmod, SIM_HANDLE_MODULE) || hmod->library) {
        sim_work_unlock();
        return CUDA_ERROR_INVALID_HANDLE;
    }
    struct CUctx_st *context = hmod->context;
    CUdeviceptr memory = hmod->memory;
    sim_module_end(hmod);
    sim_work_unlock();
    sim_memory_small_free(context, memory);
    return CUDA_SUCCESS;
}

/* Take the lock for a look at a module: held after success only. */
static CUresult enter(CUmodule module, const void *answer, const void *question) {
    CUresult result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    if (!answer || !question)
        return CUDA_ERROR_INVALID_VALUE;
    sim_work_lock();
    if (sim_handle_is(module, SIM_HANDLE_MODULE))
        return CUDA_SUCCESS;
    sim_work_unlock();
    return CUDA_ERROR_INVALID_HANDLE;
}

SIM_EXPORT CUresult cuModuleGetFunction(CUfunction *hfunc, CUmodule hmod, const char *name) {
    CUresult result = enter(hmod, hfunc, name);
    if (result != CUDA_SUCCESS)
        return result;
    struct CUfunc_st *function = sim_function_find(hmod, name);
    sim_work_unlock();
    if (!function)
        return CUDA_ERROR_NOT_FOUND;
    *hfunc = function;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuModuleGetFunctionCount(unsigned int *count, CUmodule mod) {
    CUresult result = enter(mod, count, count);
    if (result != CUDA_SUCCESS)
        return result;
    *count = 0;
    for (struct CUfunc_st *function = mod->functions; function; function = function->next)
        ++*count;
    sim_work_unlock();
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuModuleEnumerateFunctions(CUfunction *functions, unsigned int numFunctions,
                                               CUmodule mod) {
    CUresult result = enter(mod, functions, functions);
    if (result != CUDA_SUCCESS)
        return result;
    unsigned int count = 0;
    for (struct CUfunc_st *function = mod->functions; function && count < numFunctions;
         function = function->next)
        functions[count++] = function;
    sim_work_unlock();
    return CUDA_SUCCESS;
}

static CUresult get_global(CUdeviceptr *address, size_t *bytes, CUmodule module, const char *name) {
    CUresult result = enter(module, name, name);
    if (result != CUDA_SUCCESS)
        return result;
    result = CUDA_ERROR_NOT_FOUND;
    for (size_t i = 0; i < module->image->global_count && result != CUDA_SUCCESS; i++) {
        const struct sim_global *global = &module->image->globals[i];
        if (strcmp(global->name, name) != 0)
            continue;
        if (address)
            *address = module->memory + global->offset;
        if (bytes)
            *bytes = global->bytes;
        result = CUDA_SUCCESS;
    }
    sim_work_unlock();
    return result;
}

SIM_EXPORT CUresult cuModuleGetGlobal_v2(CUdeviceptr *dptr, size_t *bytes, CUmodule hmod, const char *name) {
    return get_global(dptr, bytes, hmod, name);
}

SIM_EXPORT CUresult cuModuleGetGlobal(CUdeviceptr_v1 *dptr, unsigned int *bytes, CUmodule hmod,
                                      const char *name) {
    CUdeviceptr address = 0;
    size_t size = 0;
    CUresult result = get_global(&address, &size, hmod, name);
    if (result != CUDA_SUCCESS)
        return result;
    if (dptr)
        *dptr = (CUdeviceptr_v1)address;
    if (bytes)
        *bytes = (unsigned int)size;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuModuleGetLoadingMode(CUmoduleLoadingMode *mode) {
    const char *wanted = getenv("CUDA_MODULE_LOADING");
    CUresult result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    if (!mode)
        return CUDA_ERROR_INVALID_VALUE;
    *mode = wanted && strcmp(wanted, "EAGER") == 0 ? CU_MODULE_EAGER_LOADING : CU_MODULE_LAZY_LOADING;
    return CUDA_SUCCESS;
}
