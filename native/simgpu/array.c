/*
 * Arrays and mipmapped arrays. How a card lays one out is hidden from the program, so the data is kept here
 * row after row, and only what it costs follows the card: blocks of 64 bytes x 8 rows; whole pages from 2 MiB
 * on; smaller ones share pages with others of their context, as many as their sum needs.
 */
#include "memory.h"

#include <stdlib.h>
#include <sys/mman.h>

#define BLOCK_BYTES 64U
#define BLOCK_ROWS 8U
#define MAX_LEVELS 32U

struct CUarray_st {
    struct sim_node node; /* start: its own address */
    struct CUctx_st *context;
    CUDA_ARRAY3D_DESCRIPTOR description;
    struct CUmipmappedArray_st *parent; /* of a level; NULL otherwise */
    unsigned char *data;
    uint64_t bytes, charged;          /* of the data; of the card's memory, 0 for a level */
    uint32_t texel_bytes, texel_side; /* a block of side x side elements takes so many bytes; mostly 1 */
};

struct CUmipmappedArray_st {
    struct sim_node node;
    struct CUctx_st *context;
    CUDA_ARRAY3D_DESCRIPTOR description;
    uint64_t charged;
    unsigned int levels;
    CUarray level[MAX_LEVELS];
};

static struct sim_node *arrays, *mipmaps;

/* ---- sizes ---- */

/* Bytes of one element, or of a compressed block of 4 x 4; false for formats of several planes. */
static bool texel_of(const CUDA_ARRAY3D_DESCRIPTOR *d, uint32_t *bytes, uint32_t *side) {
    *side = 1;
    if (d->Format >= CU_AD_FORMAT_UNORM_INT8X1 && d->Format <= CU_AD_FORMAT_SNORM_INT16X4) {
        /* Four groups of one, two and four channels: normalised 8 and 16 bits without sign, then with. */
        uint32_t at = d->Format - CU_AD_FORMAT_UNORM_INT8X1;
        *bytes = (1U << at % 3) * (at / 3 % 2 ? 2 : 1);
        return true;
    }
    if (d->Format >= CU_AD_FORMAT_BC1_UNORM && d->Format <= CU_AD_FORMAT_BC7_UNORM_SRGB) {
        bool half = d->Format <= CU_AD_FORMAT_BC1_UNORM_SRGB ||
                    (d->Format >= CU_AD_FORMAT_BC4_UNORM && d->Format <= CU_AD_FORMAT_BC4_SNORM);
        *bytes = half ? 8 : 16;
        *side = 4;
        return true;
    }
    switch (d->Format) {
    case CU_AD_FORMAT_UNSIGNED_INT8:
    case CU_AD_FORMAT_SIGNED_INT8:
        *bytes = d->NumChannels;
        return true;
    case CU_AD_FORMAT_UNSIGNED_INT16:
    case CU_AD_FORMAT_SIGNED_INT16:
    case CU_AD_FORMAT_HALF:
        *bytes = 2 * d->NumChannels;
        return true;
    case CU_AD_FORMAT_UNSIGNED_INT32:
    case CU_AD_FORMAT_SIGNED_INT32:
    case CU_AD_FORMAT_FLOAT:
        *bytes = 4 * d->NumChannels;
        return true;
    case CU_AD_FORMAT_UNORM_INT_101010_2:
        *bytes = 4;
        return true;
    default:
        return false;
    }
}

static bool is_layered(const CUDA_ARRAY3D_DESCRIPTOR *d) {
    return d->Flags & (CUDA_ARRAY3D_LAYERED | CUDA_ARRAY3D_CUBEMAP);
}

static uint64_t shrink(uint64_t extent, unsigned int level) {
    return extent == 0 ? 0 : extent >> level ? extent >> level : 1;
}

static CUDA_ARRAY3D_DESCRIPTOR level_of(const CUDA_ARRAY3D_DESCRIPTOR *d, unsigned int level) {
    CUDA_ARRAY3D_DESCRIPTOR smaller = *d;
    smaller.Width = shrink(d->Width, level);
    smaller.Height = shrink(d->Height, level);
    smaller.Depth = is_layered(d) ? d->Depth : shrink(d->Depth, level);
    return smaller;
}

static uint64_t at_least_one(uint64_t extent) {
    return extent ? extent : 1;
}

static uint64_t row_bytes(const struct CUarray_st *array) {
    return (array->description.Width + array->texel_side - 1) / array->texel_side * array->texel_bytes;
}

static uint64_t rows(const struct CUarray_st *array) {
    return (at_least_one(array->description.Height) + array->texel_side - 1) / array->texel_side;
}

static uint64_t card_bytes(const struct CUarray_st *array) {
    uint64_t tall = array->description.Height ? sim_round_up(rows(array), BLOCK_ROWS) : 1;
    return sim_round_up(row_bytes(array), BLOCK_BYTES) * tall * at_least_one(array->description.Depth);
}

/* ---- the descriptions that are possible ---- */

static CUresult extents_check(const CUDA_ARRAY3D_DESCRIPTOR *d) {
    bool layered = d->Flags & CUDA_ARRAY3D_LAYERED, cube = d->Flags & CUDA_ARRAY3D_CUBEMAP;
    uint64_t most_wide = 131072, most_high = 65536, most_deep = 0;
    if (layered || cube) {
        most_wide = most_high = 32768;
        most_deep = cube ? 2046 : 2048;
        if (!d->Depth || (cube && (d->Width != d->Height || d->Depth % 6 || (!layered && d->Depth != 6))))
            return CUDA_ERROR_INVALID_VALUE;
    } else if (d->Depth) {
        most_wide = most_high = most_deep = 16384;
        if (!d->Height)
            return CUDA_ERROR_INVALID_VALUE;
    }
    bool fits = d->Width && d->Width <= most_wide && d->Height <= most_high && d->Depth <= most_deep;
    return fits ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult description_check(const CUDA_ARRAY3D_DESCRIPTOR *d) {
    const unsigned int known = CUDA_ARRAY3D_LAYERED | CUDA_ARRAY3D_SURFACE_LDST | CUDA_ARRAY3D_CUBEMAP |
                               CUDA_ARRAY3D_TEXTURE_GATHER | CUDA_ARRAY3D_DEPTH_TEXTURE |
                               CUDA_ARRAY3D_COLOR_ATTACHMENT | CUDA_ARRAY3D_VIDEO_ENCODE_DECODE;
    uint32_t bytes, side;
    if (d->Flags & (CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING))
        return CUDA_ERROR_NOT_SUPPORTED;
    if (d->Flags & ~known || (d->NumChannels != 1 && d->NumChannels != 2 && d->NumChannels != 4))
        return CUDA_ERROR_INVALID_VALUE;
    if (!texel_of(d, &bytes, &side))
        return CUDA_ERROR_NOT_SUPPORTED;
    return extents_check(d);
}

/* ---- making and ending; lock held ---- */

static bool charge(struct CUctx_st *context, uint64_t bytes) {
    return bytes < SIM_PAGE_BYTES ? sim_heap_charge(context, bytes)
                                  : sim_pages_take(context->card, sim_round_up(bytes, SIM_PAGE_BYTES));
}

static void discharge(struct CUctx_st *context, uint64_t bytes) {
    if (bytes < SIM_PAGE_BYTES)
        sim_heap_discharge(context, bytes);
    else
        sim_pages_give(context->card, sim_round_up(bytes, SIM_PAGE_BYTES));
}

/* An array that the card has not been charged for. */
static CUarray make(struct CUctx_st *context, const CUDA_ARRAY3D_DESCRIPTOR *description) {
    CUarray array = calloc(1, sizeof *array);
    if (!array)
        return NULL;
    array->context = context;
    array->description = *description;
    texel_of(description, &array->texel_bytes, &array->texel_side);
    array->bytes = row_bytes(array) * rows(array) * at_least_one(description->Depth);
    void *data =
        mmap(NULL, array->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) {
        free(array);
        return NULL;
    }
    madvise(data, array->bytes, MADV_DONTFORK);
    array->data = data;
    array->node = (struct sim_node){.start = (uint64_t)(uintptr_t)array, .bytes = 1};
    sim_tree_put(&arrays, &array->node);
    return array;
}

static void end(CUarray array) {
    sim_tree_drop(&arrays, &array->node);
    munmap(array->data, array->bytes);
    if (array->charged)
        discharge(array->context, array->charged);
    free(array);
}

static void end_mipmap(CUmipmappedArray mipmap) {
    sim_tree_drop(&mipmaps, &mipmap->node);
    for (unsigned int level = 0; level < mipmap->levels; level++)
        if (mipmap->level[level])
            end(mipmap->level[level]);
    if (mipmap->charged)
        discharge(mipmap->context, mipmap->charged);
    free(mipmap);
}

void sim_arrays_context_ends(struct CUctx_st *context) {
    struct sim_node *node, *next;
    sim_memory_lock();
    for (node = sim_tree_from(mipmaps, 0); node; node = next) {
        next = sim_tree_from(mipmaps, node->start + 1);
        if (((CUmipmappedArray)node)->context == context)
            end_mipmap((CUmipmappedArray)node);
    }
    for (node = sim_tree_from(arrays, 0); node; node = next) {
        next = sim_tree_from(arrays, node->start + 1);
        if (((CUarray)node)->context == context)
            end((CUarray)node);
    }
    sim_memory_unlock();
}

bool sim_array_view(CUarray array, struct sim_array_view *view) {
    if (!sim_tree_has(arrays, array))
        return false;
    *view = (struct sim_array_view){.data = array->data,
                                    .width_bytes = row_bytes(array),
                                    .height = rows(array),
                                    .depth = at_least_one(array->description.Depth),
                                    .row_bytes = row_bytes(array),
                                    .slice_bytes = row_bytes(array) * rows(array),
                                    .element_bytes = array->texel_bytes,
                                    .card = array->context->card};
    return true;
}

/* ---- arrays: the calls ---- */

static CUresult create(struct CUctx_st *context, CUarray *made, const CUDA_ARRAY3D_DESCRIPTOR *description) {
    CUresult result = description_check(description);
    if (result == CUDA_SUCCESS)
        result = sim_capture_forbids();
    if (result != CUDA_SUCCESS)
        return result;
    sim_memory_lock();
    CUarray array = make(context, description);
    uint64_t bytes = array ? card_bytes(array) : 0;
    if (array && charge(context, bytes)) {
        array->charged = bytes;
        *made = array;
    } else {
        if (array)
            end(array);
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    sim_memory_unlock();
    return result;
}

SIM_EXPORT CUresult cuArray3DCreate_v2(CUarray *pHandle, const CUDA_ARRAY3D_DESCRIPTOR *pAllocateArray) {
    SIM_BEGIN_IN(context);
    return pHandle && pAllocateArray ? create(context, pHandle, pAllocateArray) : CUDA_ERROR_INVALID_VALUE;
}

SIM_EXPORT CUresult cuArrayCreate_v2(CUarray *pHandle, const CUDA_ARRAY_DESCRIPTOR *pAllocateArray) {
    SIM_BEGIN_IN(context);
    if (!pHandle || !pAllocateArray)
        return CUDA_ERROR_INVALID_VALUE;
    CUDA_ARRAY3D_DESCRIPTOR description = {.Width = pAllocateArray->Width,
                                           .Height = pAllocateArray->Height,
                                           .Format = pAllocateArray->Format,
                                           .NumChannels = pAllocateArray->NumChannels};
    return create(context, pHandle, &description);
}

SIM_EXPORT CUresult cuArrayCreate(CUarray *pHandle, const CUDA_ARRAY_DESCRIPTOR_v1 *pAllocateArray) {
    SIM_BEGIN_IN(context);
    if (!pHandle || !pAllocateArray)
        return CUDA_ERROR_INVALID_VALUE;
    CUDA_ARRAY3D_DESCRIPTOR description = {.Width = pAllocateArray->Width,
                                           .Height = pAllocateArray->Height,
                                           .Format = pAllocateArray->Format,
                                           .NumChannels = pAllocateArray->NumChannels};
    return create(context, pHandle, &description);
}

SIM_EXPORT CUresult cuArray3DCreate(CUarray *pHandle, const CUDA_ARRAY3D_DESCRIPTOR_v1 *pAllocateArray) {
    SIM_BEGIN_IN(context);
    if (!pHandle || !pAllocateArray)
        return CUDA_ERROR_INVALID_VALUE;
    CUDA_ARRAY3D_DESCRIPTOR description = {.Width = pAllocateArray->Width,
                                           .Height = pAllocateArray->Height,
                                           .Depth = pAllocateArray->Depth,
                                           .Format = pAllocateArray->Format,
                                           .NumChannels = pAllocateArray->NumChannels,
                                           .Flags = pAllocateArray->Flags};
    return create(context, pHandle, &description);
}

static CUresult describe(CUarray array, CUDA_ARRAY3D_DESCRIPTOR *description) {
    sim_memory_lock();
    bool known = sim_tree_has(arrays, array);
    if (known)
        *description = array->description;
    sim_memory_unlock();
    return known ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

SIM_EXPORT CUresult cuArray3DGetDescriptor_v2(CUDA_ARRAY3D_DESCRIPTOR *pArrayDescriptor, CUarray hArray) {
    SIM_BEGIN_IN(context);
    (void)context;
    return pArrayDescriptor ? describe(hArray, pArrayDescriptor) : CUDA_ERROR_INVALID_VALUE;
}

SIM_EXPORT CUresult cuArrayGetDescriptor_v2(CUDA_ARRAY_DESCRIPTOR *pArrayDescriptor, CUarray hArray) {
    SIM_BEGIN_IN(context);
    (void)context;
    CUDA_ARRAY3D_DESCRIPTOR found;
    CUresult result = pArrayDescriptor ? describe(hArray, &found) : CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        *pArrayDescriptor =
            (CUDA_ARRAY_DESCRIPTOR){found.Width, found.Height, found.Format, found.NumChannels};
    return result;
}

SIM_EXPORT CUresult cuArrayGetDescriptor(CUDA_ARRAY_DESCRIPTOR_v1 *pArrayDescriptor, CUarray hArray) {
    SIM_BEGIN_IN(context);
    (void)context;
    CUDA_ARRAY3D_DESCRIPTOR found;
    CUresult result = pArrayDescriptor ? describe(hArray, &found) : CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        *pArrayDescriptor = (CUDA_ARRAY_DESCRIPTOR_v1){(unsigned int)found.Width, (unsigned int)found.Height,
                                                       found.Format, found.NumChannels};
    return result;
}

SIM_EXPORT CUresult cuArray3DGetDescriptor(CUDA_ARRAY3D_DESCRIPTOR_v1 *pArrayDescriptor, CUarray hArray) {
    SIM_BEGIN_IN(context);
    (void)context;
    CUDA_ARRAY3D_DESCRIPTOR found;
    CUresult result = pArrayDescriptor ? describe(hArray, &found) : CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        *pArrayDescriptor =
            (CUDA_ARRAY3D_DESCRIPTOR_v1){(unsigned int)found.Width, (unsigned int)found.Height,
                                         (unsigned int)found.Depth, found.Format,
                                         found.NumChannels,         found.Flags};
    return result;
}

/* There are no sparse or deferred arrays, and none of several planes. */
static CUresult has_none(CUarray array, const void *answer) {
    CUDA_ARRAY3D_DESCRIPTOR found;
    CUresult result = answer ? describe(array, &found) : CUDA_ERROR_INVALID_VALUE;
    return result == CUDA_SUCCESS ? CUDA_ERROR_INVALID_VALUE : result;
}

SIM_EXPORT CUresult cuArrayGetSparseProperties(CUDA_ARRAY_SPARSE_PROPERTIES *sparseProperties,
                                               CUarray array) {
    SIM_BEGIN_IN(context);
    (void)context;
    return has_none(array, sparseProperties);
}

SIM_EXPORT CUresult cuArrayGetMemoryRequirements(CUDA_ARRAY_MEMORY_REQUIREMENTS *memoryRequirements,
                                                 CUarray array, CUdevice device) {
    SIM_BEGIN_IN(context);
    (void)context;
    (void)device;
    return has_none(array, memoryRequirements);
}

SIM_EXPORT CUresult cuArrayGetPlane(CUarray *pPlaneArray, CUarray hArray, unsigned int planeIdx) {
    SIM_BEGIN_IN(context);
    (void)context;
    (void)planeIdx;
    return has_none(hArray, pPlaneArray);
}

SIM_EXPORT CUresult cuArrayDestroy(CUarray hArray) {
    SIM_BEGIN_IN(context);
    CUresult result = sim_capture_forbids();
    if (result != CUDA_SUCCESS)
        return result;
    sim_memory_lock();
    bool known = sim_tree_has(arrays, hArray) && !hArray->parent;
    struct CUctx_st *owner = known ? hArray->context : context;
    sim_memory_unlock();
    if (!known)
        return CUDA_ERROR_INVALID_HANDLE;
    sim_context_synchronize(owner);
    sim_memory_lock();
    known = sim_tree_has(arrays, hArray);
    if (known)
        end(hArray);
    sim_memory_unlock();
    return known ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

/* ---- mipmapped arrays: the calls ---- */

static unsigned int most_levels(const CUDA_ARRAY3D_DESCRIPTOR *d) {
    uint64_t largest = d->Width > d->Height ? d->Width : d->Height;
    if (!is_layered(d) && d->Depth > largest)
        largest = d->Depth;
    unsigned int levels = 1;
    while (largest >>= 1)
        levels++;
    return levels;
}

static CUmipmappedArray make_mipmap(struct CUctx_st *context, const CUDA_ARRAY3D_DESCRIPTOR *description,
                                    unsigned int levels) {
    CUmipmappedArray mipmap = calloc(1, sizeof *mipmap);
    if (!mipmap)
        return NULL;
    mipmap->node = (struct sim_node){.start = (uint64_t)(uintptr_t)mipmap, .bytes = 1};
    mipmap->context = context;
    mipmap->description = *description;
    mipmap->levels = levels;
    sim_tree_put(&mipmaps, &mipmap->node);
    uint64_t bytes = 0;
    for (unsigned int level = 0; level < levels; level++) {
        CUDA_ARRAY3D_DESCRIPTOR smaller = level_of(description, level);
        CUarray array = make(context, &smaller);
        mipmap->level[level] = array;
        if (!array) {
            end_mipmap(mipmap);
            return NULL;
        }
        array->parent = mipmap;
        bytes += card_bytes(array);
    }
    if (!charge(context, bytes)) {
        end_mipmap(mipmap);
        return NULL;
    }
    mipmap->charged = bytes;
    return mipmap;
}

SIM_EXPORT CUresult cuMipmappedArrayCreate(CUmipmappedArray *pHandle,
                                           const CUDA_ARRAY3D_DESCRIPTOR *pMipmappedArrayDesc,
                                           unsigned int numMipmapLevels) {
    SIM_BEGIN_IN(context);
    if (!pHandle || !pMipmappedArrayDesc)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = description_check(pMipmappedArrayDesc);
    if (result == CUDA_SUCCESS)
        result = sim_capture_forbids();
    if (result != CUDA_SUCCESS)
        return result;
    unsigned int most = most_levels(pMipmappedArrayDesc);
    unsigned int levels = numMipmapLevels < 1 ? 1 : numMipmapLevels > most ? most : numMipmapLevels;
    sim_memory_lock();
    CUmipmappedArray made = make_mipmap(context, pMipmappedArrayDesc, levels);
    sim_memory_unlock();
    if (made)
        *pHandle = made;
    return made ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

SIM_EXPORT CUresult cuMipmappedArrayGetLevel(CUarray *pLevelArray, CUmipmappedArray hMipmappedArray,
                                             unsigned int level) {
    SIM_BEGIN_IN(context);
    (void)context;
    if (!pLevelArray)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = CUDA_ERROR_INVALID_HANDLE;
    sim_memory_lock();
    if (sim_tree_has(mipmaps, hMipmappedArray)) {
        result = level < hMipmappedArray->levels ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
        if (result == CUDA_SUCCESS)
            *pLevelArray = hMipmappedArray->level[level];
    }
    sim_memory_unlock();
    return result;
}

SIM_EXPORT CUresult cuMipmappedArrayDestroy(CUmipmappedArray hMipmappedArray) {
    SIM_BEGIN_IN(context);
    CUresult result = sim_capture_forbids();
    if (result != CUDA_SUCCESS)
        return result;
    sim_context_synchronize(context);
    sim_memory_lock();
    bool known = sim_tree_has(mipmaps, hMipmappedArray);
    if (known)
        end_mipmap(hMipmappedArray);
    sim_memory_unlock();
    return known ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}
