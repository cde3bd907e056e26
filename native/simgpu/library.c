/*
 * Libraries: an image that belongs to no context. A context that uses it has a module of it, made when a
 * library is loaded with a context current, else when something of it is first asked for there.
 */
#include "module.h"

#include <stdlib.h>
#include <string.h>

static struct CUkern_st *add_kernel(struct CUlib_st *library, struct sim_entry *entry, bool own) {
    struct CUkern_st *kernel = calloc(1, sizeof *kernel);
    if (!kernel || !sim_handle_put(kernel, SIM_HANDLE_KERNEL)) {
        free(kernel);
        return NULL;
    }
    *kernel =
        (struct CUkern_st){.library = library, .next = library->kernels, .entry = entry, .own_entry = own};
    library->kernels = kernel;
    return kernel;
}

static void free_kernels(struct CUlib_st *library) {
    while (library->kernels) {
        struct CUkern_st *kernel = library->kernels;
        library->kernels = kernel->next;
        sim_handle_drop(kernel);
        if (kernel->own_entry)
            sim_entry_free(kernel->entry);
        free(kernel);
    }
}

/* The library's module in a context; the lock is held, and let go of to make one. */
static CUresult module_in(struct CUctx_st *context, struct CUlib_st *library, struct CUmod_st **module) {
    for (struct CUmod_st *at = library->modules; at; at = at->next_of_library) {
        if (at->context == context) {
            *module = at;
            return CUDA_SUCCESS;
        }
    }
    library->users++;
    sim_work_unlock();
    CUresult result = sim_module_make(context, library->image, library, module);
    sim_work_lock();
    library->users--;
    return result;
}

CUresult sim_function_of(struct CUctx_st *context, CUfunction handle, struct CUfunc_st **function) {
    *function = handle;
    if (sim_handle_is(handle, SIM_HANDLE_FUNCTION))
        return CUDA_SUCCESS;
    if (!sim_handle_is(handle, SIM_HANDLE_KERNEL))
        return CUDA_ERROR_INVALID_HANDLE;
    struct CUkern_st *kernel = (CUkernel)handle;
    struct CUmod_st *module;
    CUresult result = module_in(context, kernel->library, &module);
    if (result != CUDA_SUCCESS)
        return result;
    *function = sim_function_find(module, kernel->entry->name);
    return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

static CUresult make(CUlibrary *handle, struct sim_image *image) {
    struct CUlib_st *library = calloc(1, sizeof *library);
    if (!library)
        return CUDA_ERROR_OUT_OF_MEMORY;
    library->image = image;
    sim_work_lock();
    bool made = sim_handle_put(library, SIM_HANDLE_LIBRARY);
    for (size_t i = image->entry_count; made && i-- > 0;)
        made = add_kernel(library, &image->entries[i], false) != NULL;
    if (!made) {
        free_kernels(library);
        sim_handle_drop(library);
    }
    sim_work_unlock();
    if (!made) {
        free(library);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *handle = library;
    return CUDA_SUCCESS;
}

static void end(struct CUlib_st *library) {
    sim_work_lock();
    sim_handle_drop(library);
    free_kernels(library);
    while (library->modules) {
        struct CUctx_st *context = library->modules->context;
        CUdeviceptr memory = library->modules->memory;
        sim_module_end(library->modules);
        sim_work_unlock();
        sim_memory_small_free(context, memory);
        sim_work_lock();
    }
    sim_work_unlock();
    sim_image_free(library->image);
    free(library);
}

static CUresult load(CUlibrary *handle, const void *code, size_t bytes) {
    struct CUctx_st *context = NULL;
    struct sim_image *image;
    struct CUmod_st *module;
    CUresult result = sim_initialised();
    if (result == CUDA_SUCCESS)
        result = sim_fault("cuLibraryLoadData");
    if (result != CUDA_SUCCESS)
        return result;
    if (!handle || !code)
        return CUDA_ERROR_INVALID_VALUE;
    if (sim_current(&context) != CUDA_SUCCESS)
        context = NULL;
    result = sim_image_read(code, bytes, sim_target_of(context ? context->card : 0), &image);
    if (result != CUDA_SUCCESS)
        return result;
    result = make(handle, image);
    if (result != CUDA_SUCCESS) {
        sim_image_free(image);
        return result;
    }
    if (context && (result = sim_module_make(context, image, *handle, &module)) != CUDA_SUCCESS)
        end(*handle);
    return result;
}

SIM_EXPORT CUresult cuLibraryLoadData(CUlibrary *library, const void *code, CUjit_option *jitOptions,
                                      void **jitOptionsValues, unsigned int numJitOptions,
                                      CUlibraryOption *libraryOptions, void **libraryOptionValues,
                                      unsigned int numLibraryOptions) {
    (void)libraryOptions, (void)libraryOptionValues, (void)numLibraryOptions;
    CUresult result = load(library, code, 0);
    sim_jit_answer(numJitOptions, jitOptions, jitOptionsValues, NULL);
    return result;
}

SIM_EXPORT CUresult cuLibraryLoadFromFile(CUlibrary *library, const char *fileName, CUjit_option *jitOptions,
                                          void **jitOptionsValues, unsigned int numJitOptions,
                                          CUlibraryOption *libraryOptions, void **libraryOptionValues,
                                          unsigned int numLibraryOptions) {
    size_t bytes = 0;
    (void)libraryOptions, (void)libraryOptionValues, (void)numLibraryOptions;
    CUresult result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    if (!library || !fileName)
        return CUDA_ERROR_INVALID_VALUE;
    void *content = sim_file_read(fileName, &bytes);
    if (!content)
        return CUDA_ERROR_FILE_NOT_FOUND;
    result = load(library, content, bytes);
    free(content);
    sim_jit_answer(numJitOptions, jitOptions, jitOptionsValues, NULL);
    return result;
}

/* Take the lock for a look at a handle: held after success only. */
static CUresult enter(const void *handle, enum sim_handle_kind kind, const void *answer) {
    CUresult result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    if (!answer)
        return CUDA_ERROR_INVALID_VALUE;
    sim_work_lock();
    if (sim_handle_is(handle, kind))
        return CUDA_SUCCESS;
    sim_work_unlock();
    return CUDA_ERROR_INVALID_HANDLE;
}

static CUresult leave(CUresult result) {
    sim_work_unlock();
    return result;
}

SIM_EXPORT CUresult cuLibraryUnload(CUlibrary library) {
    CUresult result = enter(library, SIM_HANDLE_LIBRARY, library);
    if (result != CUDA_SUCCESS)
        return library ? result : CUDA_ERROR_INVALID_HANDLE;
    if (library->users) /* another thread is loading it into a context */
        return leave(CUDA_ERROR_NOT_PERMITTED);
    sim_handle_drop(library);
    sim_work_unlock();
    end(library);
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuLibraryGetKernel(CUkernel *pKernel, CUlibrary library, const char *name) {
    CUresult result = enter(library, SIM_HANDLE_LIBRARY, name ? (const void *)pKernel : NULL);
    if (result != CUDA_SUCCESS)
        return result;
    struct CUkern_st *kernel = library->kernels;
    while (kernel && strcmp(kernel->entry->name, name) != 0)
        kernel = kernel->next;
    if (!kernel && library->image->opaque) {
        struct sim_entry *entry = sim_entry_invent(name);
        kernel = entry ? add_kernel(library, entry, true) : NULL;
        if (!kernel)
            sim_entry_free(entry);
    }
    if (kernel)
        *pKernel = kernel;
    return leave(kernel ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND);
}

SIM_EXPORT CUresult cuLibraryGetKernelCount(unsigned int *count, CUlibrary lib) {
    CUresult result = enter(lib, SIM_HANDLE_LIBRARY, count);
    if (result != CUDA_SUCCESS)
        return result;
    *count = 0;
    for (struct CUkern_st *kernel = lib->kernels; kernel; kernel = kernel->next)
        ++*count;
    return leave(CUDA_SUCCESS);
}

SIM_EXPORT CUresult cuLibraryEnumerateKernels(CUkernel *kernels, unsigned int numKernels, CUlibrary lib) {
    unsigned int count = 0;
    CUresult result = enter(lib, SIM_HANDLE_LIBRARY, kernels);
    if (result != CUDA_SUCCESS)
        return result;
    for (struct CUkern_st *kernel = lib->kernels; kernel && count < numKernels; kernel = kernel->next)
        kernels[count++] = kernel;
    return leave(CUDA_SUCCESS);
}

/* The current context's module of a library; the lock is held after success only. */
static CUresult enter_module(CUlibrary library, const void *answer, struct CUmod_st **module) {
    struct CUctx_st *context;
    CUresult result = sim_current(&context);
    if (result == CUDA_SUCCESS)
        result = enter(library, SIM_HANDLE_LIBRARY, answer);
    if (result != CUDA_SUCCESS)
        return result;
    result = module_in(context, library, module);
    return result == CUDA_SUCCESS ? result : leave(result);
}

SIM_EXPORT CUresult cuLibraryGetModule(CUmodule *pMod, CUlibrary library) {
    struct CUmod_st *module;
    CUresult result = enter_module(library, pMod, &module);
    if (result != CUDA_SUCCESS)
        return result;
    *pMod = module;
    return leave(CUDA_SUCCESS);
}

static CUresult get_global(CUdeviceptr *address, size_t *bytes, CUlibrary library, const char *name,
                           bool managed) {
    struct CUmod_st *module;
    CUresult result = enter_module(library, name, &module);
    if (result != CUDA_SUCCESS)
        return result;
    for (size_t i = 0; i < module->image->global_count; i++) {
        const struct sim_global *global = &module->image->globals[i];
        if (strcmp(global->name, name) != 0 || (managed && !global->managed))
            continue;
        if (address)
            *address = module->memory + global->offset;
        if (bytes)
            *bytes = global->bytes;
        return leave(CUDA_SUCCESS);
    }
    return leave(CUDA_ERROR_NOT_FOUND);
}

SIM_EXPORT CUresult cuLibraryGetGlobal(CUdeviceptr *dptr, size_t *bytes, CUlibrary library,
                                       const char *name) {
    return get_global(dptr, bytes, library, name, false);
}
SIM_EXPORT CUresult cuLibraryGetManaged(CUdeviceptr *dptr, size_t *bytes, CUlibrary library,
                                        const char *name) {
    return get_global(dptr, bytes, library, name, true);
}

SIM_EXPORT CUresult cuLibraryGetUnifiedFunction(void **fptr, CUlibrary library, const char *symbol) {
    CUresult result = enter(library, SIM_HANDLE_LIBRARY, symbol ? (const void *)fptr : NULL);
    return result == CUDA_SUCCESS ? leave(CUDA_ERROR_NOT_FOUND) : result;
}

SIM_EXPORT CUresult cuKernelGetFunction(CUfunction *pFunc, CUkernel kernel) {
    struct CUctx_st *context;
    struct CUfunc_st *function;
    CUresult result = sim_current(&context);
    if (result == CUDA_SUCCESS)
        result = enter(kernel, SIM_HANDLE_KERNEL, pFunc);
    if (result != CUDA_SUCCESS)
        return result;
    result = sim_function_of(context, (CUfunction)kernel, &function);
    if (result == CUDA_SUCCESS)
        *pFunc = function;
    return leave(result);
}

SIM_EXPORT CUresult cuKernelGetLibrary(CUlibrary *pLib, CUkernel kernel) {
    CUresult result = enter(kernel, SIM_HANDLE_KERNEL, pLib);
    if (result != CUDA_SUCCESS)
        return result;
    *pLib = kernel->library;
    return leave(CUDA_SUCCESS);
}
