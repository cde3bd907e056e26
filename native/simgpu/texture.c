/*
 * Texture and surface objects: remembered, since kernels, which would read through them, are not executed.
 */
#include "work.h"

#include <stdlib.h>

struct object {
    struct object *next;
    unsigned long long handle; /* never used twice */
    bool surface, has_view;
    CUDA_RESOURCE_DESC resource;
    CUDA_TEXTURE_DESC texture;
    CUDA_RESOURCE_VIEW_DESC view;
};

static struct object *objects;
static unsigned long long last_handle;

static CUresult create(unsigned long long *out, const CUDA_RESOURCE_DESC *resource,
                       const CUDA_TEXTURE_DESC *texture, const CUDA_RESOURCE_VIEW_DESC *view, bool surface) {
    struct CUctx_st *context;
    CUresult result = sim_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    if (!out || !resource || (!surface && !texture) ||
        (surface && resource->resType != CU_RESOURCE_TYPE_ARRAY) ||
        (unsigned int)resource->resType > CU_RESOURCE_TYPE_PITCH2D)
        return CUDA_ERROR_INVALID_VALUE;
    struct object *object = calloc(1, sizeof *object);
    if (!object)
        return CUDA_ERROR_OUT_OF_MEMORY;
    object->surface = surface;
    object->resource = *resource;
    if (texture)
        object->texture = *texture;
    if (view)
        object->view = *view;
    object->has_view = view != NULL;
    sim_work_lock();
    *out = object->handle = ++last_handle;
    object->next = objects;
    objects = object;
    sim_work_unlock();
    return CUDA_SUCCESS;
}

static struct object **find(unsigned long long handle, bool surface) {
    struct object **link = &objects;
    while (*link && ((*link)->handle != handle || (*link)->surface != surface))
        link = &(*link)->next;
    return link;
}

static CUresult destroy(unsigned long long handle, bool surface) {
    CUresult result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    sim_work_lock();
    struct object **link = find(handle, surface), *object = *link;
    if (object)
        *link = object->next;
    sim_work_unlock();
    free(object);
    return object ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* A copy of what is known of an object. */
static CUresult look(unsigned long long handle, bool surface, const void *answer, struct object *copy) {
    CUresult result = sim_initialised();
    if (result != CUDA_SUCCESS)
        return result;
    sim_work_lock();
    const struct object *object = *find(handle, surface);
    if (object)
        *copy = *object;
    sim_work_unlock();
    return object && answer ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_EXPORT CUresult cuTexObjectCreate(CUtexObject *pTexObject, const CUDA_RESOURCE_DESC *pResDesc,
                                      const CUDA_TEXTURE_DESC *pTexDesc,
                                      const CUDA_RESOURCE_VIEW_DESC *pResViewDesc) {
    return create(pTexObject, pResDesc, pTexDesc, pResViewDesc, false);
}
SIM_EXPORT CUresult cuTexObjectDestroy(CUtexObject texObject) {
    return destroy(texObject, false);
}
SIM_EXPORT CUresult cuTexObjectGetResourceDesc(CUDA_RESOURCE_DESC *pResDesc, CUtexObject texObject) {
    struct object object;
    CUresult result = look(texObject, false, pResDesc, &object);
    if (result == CUDA_SUCCESS)
        *pResDesc = object.resource;
    return result;
}
SIM_EXPORT CUresult cuTexObjectGetTextureDesc(CUDA_TEXTURE_DESC *pTexDesc, CUtexObject texObject) {
    struct object object;
    CUresult result = look(texObject, false, pTexDesc, &object);
    if (result == CUDA_SUCCESS)
        *pTexDesc = object.texture;
    return result;
}
SIM_EXPORT CUresult cuTexObjectGetResourceViewDesc(CUDA_RESOURCE_VIEW_DESC *pResViewDesc,
                                                   CUtexObject texObject) {
    struct object object;
    CUresult result = look(texObject, false, pResViewDesc, &object);
    if (result == CUDA_SUCCESS && !object.has_view)
        result = CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        *pResViewDesc = object.view;
    return result;
}
SIM_EXPORT CUresult cuSurfObjectCreate(CUsurfObject *pSurfObject, const CUDA_RESOURCE_DESC *pResDesc) {
    return create(pSurfObject, pResDesc, NULL, NULL, true);
}
SIM_EXPORT CUresult cuSurfObjectDestroy(CUsurfObject surfObject) {
    return destroy(surfObject, true);
}
SIM_EXPORT CUresult cuSurfObjectGetResourceDesc(CUDA_RESOURCE_DESC *pResDesc, CUsurfObject surfObject) {
    struct object object;
    CUresult result = look(surfObject, true, pResDesc, &object);
    if (result == CUDA_SUCCESS)
        *pResDesc = object.resource;
    return result;
}
