/*
 * Modules, libraries, functions and kernels, and launching them.
 */
#ifndef SIM_MODULE_H
#define SIM_MODULE_H

#include "image.h"
#include "work.h"

#define SIM_PARAMETERS_LIMIT 32764 /* bytes of a kernel's parameters, at most */

struct CUfunc_st {
    struct CUmod_st *module;
    struct CUfunc_st *next; /* of its module */
    struct sim_entry *entry;
    bool own_entry;
    int max_dynamic_shared, carveout, cluster[3], nonportable_cluster, cluster_policy;
    bool cluster_required;
    /* what the calls of CUDA 3 set for the next cuLaunch */
    unsigned int block[3], shared_bytes, parameter_bytes;
    unsigned char *parameters;
};

struct CUmod_st {
    struct CUctx_st *context;
    struct CUlib_st *library; /* whose it is, or NULL */
    struct CUmod_st *next, *next_of_library;
    struct sim_image *image; /* the library's where there is one */
    CUdeviceptr memory;      /* variables, then code */
    struct CUfunc_st *functions;
};

struct CUkern_st {
    struct CUlib_st *library;
    struct CUkern_st *next;
    struct sim_entry *entry;
    bool own_entry;
};

struct CUlib_st {
    struct sim_image *image;
    struct CUmod_st *modules; /* one per context that uses it */
    struct CUkern_st *kernels;
    uint32_t users; /* calls that are inside and have let go of the lock */
};

/* What this card and this driver can run. */
struct sim_target sim_target_of(uint32_t card);
/* The contents of a file; NULL where it cannot be read. To be freed. */
void *sim_file_read(const char *path, size_t *bytes);
/* Make a module of an image in a context, its memory taken. The image stays the caller's where it fails. */
CUresult sim_module_make(struct CUctx_st *context, struct sim_image *image, struct CUlib_st *library,
                         struct CUmod_st **module);
/* Answers for the options of a compilation: empty logs. */
void sim_jit_answer(unsigned int count, CUjit_option *options, void **values, const char *error);
/* An entry that an opaque image is believed to have. */
struct sim_entry *sim_entry_invent(const char *name);
void sim_entry_free(struct sim_entry *entry);

/* Lock held. A function's module ends, or a library does. */
void sim_module_end(struct CUmod_st *module);
struct CUfunc_st *sim_function_find(struct CUmod_st *module, const char *name);
/* The function behind a handle, which may be a kernel's too: its module is then loaded into the context, for
 * which the lock is let go of. */
CUresult sim_function_of(struct CUctx_st *context, CUfunction handle, struct CUfunc_st **function);

/* ---- launches (launch.c) ---- */

struct sim_launch {
    struct CUfunc_st *function;
    unsigned int grid[3], block[3], shared_bytes, cluster[3];
    bool cooperative;
};

/* Lock held. Check a launch as the driver does, and say how long it takes of how much of the card. */
CUresult sim_launch_check(const struct sim_launch *launch, void **parameters, void **extra,
                          struct sim_job *job);
/* A copy of what a launch's parameters point to, in one piece of memory; NULL in *copy where there are none.
 */
CUresult sim_launch_keep(const struct CUfunc_st *function, void **parameters, void **extra, void ***copy);
/* Add a launch to the graph that the stream captures. */
CUresult sim_capture_kernel(struct CUstream_st *stream, const struct sim_launch *launch,
                            const struct sim_job *job, CUfunction handle, void **parameters, void **extra);
/* How many blocks of a function run on one SM at once. */
uint32_t sim_blocks_per_sm(const struct CUfunc_st *function, uint32_t threads);

#endif
