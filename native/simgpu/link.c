/*
 * The driver's linker. Nothing is compiled: PTX texts are joined, and of images of machine code the one that
 * has kernels is what comes out.
 */
#include "module.h"

#include <stdlib.h>
#include <string.h>

struct input {
    char *content;
    size_t bytes;
    CUjitInputType type;
    size_t kernels;
};

struct CUlinkState_st {
    struct input *inputs;
    size_t count;
    uint32_t card;
    unsigned int option_count;
    CUjit_option *options; /* copies of what was given: buffers for logs are the program's */
    void **values, **program_values;
    char *image; /* what came out */
};

static void *copied(const void *from, size_t bytes) {
    void *to = bytes ? malloc(bytes) : NULL;
    if (to)
        memcpy(to, from, bytes);
    return to;
}

static void free_state(struct CUlinkState_st *state) {
    for (size_t i = 0; i < state->count; i++)
        free(state->inputs[i].content);
    free(state->inputs);
    free(state->options);
    free(state->values);
    free(state->image);
    free(state);
}

/* Logs and their sizes go where the program said at the beginning. */
static void answer(struct CUlinkState_st *state, const char *error) {
    for (unsigned int i = 0; i < state->option_count; i++)
        state->program_values[i] = state->values[i];
    sim_jit_answer(state->option_count, state->options, state->program_values, error);
}

/* The lock is held after success only. */
static CUresult enter(CUlinkState state) {
    CUresult result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    sim_work_lock();
    if (sim_handle_is(state, SIM_HANDLE_LINK))
        return CUDA_SUCCESS;
    sim_work_unlock();
    return CUDA_ERROR_INVALID_HANDLE;
}

static CUresult create(unsigned int count, CUjit_option *options, void **values, CUlinkState *out) {
    struct CUctx_st *context;
    CUresult result = sim_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    if (!out || (count && (!options || !values)))
        return CUDA_ERROR_INVALID_VALUE;
    struct CUlinkState_st *state = calloc(1, sizeof *state);
    if (!state)
        return CUDA_ERROR_OUT_OF_MEMORY;
    state->card = context->card;
    state->options = copied(options, count * sizeof *options);
    state->values = copied(values, count * sizeof *values);
    state->program_values = values;
    state->option_count = state->options && state->values ? count : 0;
    sim_work_lock();
    bool put = sim_handle_put(state, SIM_HANDLE_LINK);
    sim_work_unlock();
    if (!put) {
        free_state(state);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *out = state;
    return CUDA_SUCCESS;
}

/* Takes the content over. */
static CUresult add(CUlinkState state, CUjitInputType type, char *content, size_t bytes) {
    struct sim_image *image = NULL;
    struct input input = {content, bytes, type, 0};
    if ((unsigned int)type > CU_JIT_INPUT_NVVM) {
        free(content);
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUresult result = enter(state);
    if (result != CUDA_SUCCESS) {
        free(content);
        return result;
    }
    uint32_t card = state->card;
    sim_work_unlock();
    if (type == CU_JIT_INPUT_CUBIN || type == CU_JIT_INPUT_PTX || type == CU_JIT_INPUT_FATBINARY ||
        type == CU_JIT_INPUT_OBJECT) {
        result = sim_image_read(content, bytes, sim_target_of(card), &image);
        if (result == CUDA_ERROR_INVALID_IMAGE && type == CU_JIT_INPUT_PTX)
            result = CUDA_ERROR_INVALID_PTX;
        input.kernels = image ? image->entry_count + image->opaque : 0;
        sim_image_free(image);
    }
    sim_work_lock();
    struct input *grown = NULL;
    if (!sim_handle_is(state, SIM_HANDLE_LINK))
        result = CUDA_ERROR_INVALID_HANDLE;
    else if (result != CUDA_SUCCESS)
        answer(state, "the input cannot be compiled for this card");
    else if ((grown = realloc(state->inputs, (state->count + 1) * sizeof *grown)) == NULL)
        result = CUDA_ERROR_OUT_OF_MEMORY;
    if (grown) {
        state->inputs = grown;
        grown[state->count++] = input;
    } else {
        free(content);
    }
    sim_work_unlock();
    return result;
}

static CUresult add_data(CUlinkState state, CUjitInputType type, const void *data, size_t bytes) {
    if (!data || !bytes)
        return CUDA_ERROR_INVALID_VALUE;
    char *content = aligned_alloc(16, (bytes + 16) & ~(size_t)15);
    if (!content)
        return CUDA_ERROR_OUT_OF_MEMORY;
    memcpy(content, data, bytes);
    content[bytes] = 0;
    return add(state, type, content, bytes);
}

static CUresult add_file(CUlinkState state, CUjitInputType type, const char *path) {
    size_t bytes = 0;
    if (!path)
        return CUDA_ERROR_INVALID_VALUE;
    char *content = sim_file_read(path, &bytes);
    return content ? add(state, type, content, bytes) : CUDA_ERROR_FILE_NOT_FOUND;
}

/* All the PTX, if all is PTX; else the first image that has kernels. */
static CUresult join(struct CUlinkState_st *state, size_t *bytes) {
    const struct input *chosen = NULL;
    size_t sum = 1;
    bool all_ptx = state->count > 0;
    for (size_t i = 0; i < state->count; i++) {
        all_ptx &= state->inputs[i].type == CU_JIT_INPUT_PTX;
        sum += state->inputs[i].bytes + 1;
        if (!chosen || (state->inputs[i].kernels && !chosen->kernels))
            chosen = &state->inputs[i];
    }
    if (!chosen)
        return CUDA_ERROR_INVALID_IMAGE;
    free(state->image);
    state->image = calloc(1, all_ptx ? sum : chosen->bytes + 1);
    if (!state->image)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *bytes = chosen->bytes;
    if (!all_ptx) {
        memcpy(state->image, chosen->content, chosen->bytes);
        return CUDA_SUCCESS;
    }
    char *to = state->image;
    for (size_t i = 0; i < state->count; i++) {
        size_t length = strnlen(state->inputs[i].content, state->inputs[i].bytes);
        memcpy(to, state->inputs[i].content, length);
        to += length;
        *to++ = '\n';
    }
    *bytes = (size_t)(to - state->image) + 1;
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuLinkComplete(CUlinkState state, void **cubinOut, size_t *sizeOut) {
    size_t bytes = 0;
    if (!cubinOut)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = enter(state);
    if (result != CUDA_SUCCESS)
        return result;
    result = join(state, &bytes);
    if (result == CUDA_SUCCESS) {
        *cubinOut = state->image;
        if (sizeOut)
            *sizeOut = bytes;
    }
    answer(state, result == CUDA_SUCCESS ? NULL : "nothing to link");
    sim_work_unlock();
    return result;
}

SIM_EXPORT CUresult cuLinkDestroy(CUlinkState state) {
    CUresult result = enter(state);
    if (result != CUDA_SUCCESS)
        return result;
    sim_handle_drop(state);
    sim_work_unlock();
    free_state(state);
    return CUDA_SUCCESS;
}

SIM_EXPORT CUresult cuLinkCreate(unsigned int numOptions, CUjit_option *options, void **optionValues,
                                 CUlinkState *stateOut) {
    return create(numOptions, options, optionValues, stateOut);
}
SIM_EXPORT CUresult cuLinkCreate_v2(unsigned int numOptions, CUjit_option *options, void **optionValues,
                                    CUlinkState *stateOut) {
    return create(numOptions, options, optionValues, stateOut);
}
SIM_EXPORT CUresult cuLinkAddData(CUlinkState state, CUjitInputType type, void *data, size_t size,
                                  const char *name, unsigned int numOptions, CUjit_option *options,
                                  void **optionValues) {
    (void)name, (void)numOptions, (void)options, (void)optionValues;
    return add_data(state, type, data, size);
}
SIM_EXPORT CUresult cuLinkAddData_v2(CUlinkState state, CUjitInputType type, void *data, size_t size,
                                     const char *name, unsigned int numOptions, CUjit_option *options,
                                     void **optionValues) {
    (void)name, (void)numOptions, (void)options, (void)optionValues;
    return add_data(state, type, data, size);
}
SIM_EXPORT CUresult cuLinkAddFile(CUlinkState state, CUjitInputType type, const char *path,
                                  unsigned int numOptions, CUjit_option *options, void **optionValues) {
    (void)numOptions, (void)options, (void)optionValues;
    return add_file(state, type, path);
}
SIM_EXPORT CUresult cuLinkAddFile_v2(CUlinkState state, CUjitInputType type, const char *path,
                                     unsigned int numOptions, CUjit_option *options, void **optionValues) {
    (void)numOptions, (void)options, (void)optionValues;
    return add_file(state, type, path);
}
