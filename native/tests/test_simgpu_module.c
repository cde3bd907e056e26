/*
 * Images of code on the simulated card: PTX, cubins, fat binaries; modules, libraries, functions, linking.
 *
 * build: native/simgpu/machine.c native/simgpu/models.c native/simgpu/timeline.c
 * build: build/native/sim/libcuda.so.1
 */
#include "simgpu_work.h"

#include <elf.h>

/* ---- PTX ---- */

PROMISE(functions_of_ptx_have_their_parameters) {
    CUmodule module, found;
    CUfunction function, all[3];
    const char *name;
    size_t offset, bytes, expected[4][2] = {{0, 8}, {8, 4}, {16, 24}, {40, 1}};
    unsigned int count;
    int value;
    on_v100();
    OK(cuModuleLoadData(&module, spin_ptx));
    OK(cuModuleGetFunctionCount(&count, module));
    CHECK_EQUAL(count, 3);
    OK(cuModuleEnumerateFunctions(all, 3, module));
    OK(cuFuncGetName(&name, all[0]));
    CHECK(strcmp(name, "spin") == 0);
    OK(cuModuleGetFunction(&function, module, "add"));
    CHECK_EQUAL(cuModuleGetFunction(&all[0], module, "ad"), CUDA_ERROR_NOT_FOUND);
    for (size_t i = 0; i < 4; i++) {
        OK(cuFuncGetParamInfo(function, i, &offset, &bytes));
        CHECK(offset == expected[i][0] && bytes == expected[i][1]);
    }
    CHECK_EQUAL(cuFuncGetParamInfo(function, 4, &offset, &bytes), CUDA_ERROR_INVALID_VALUE);
    OK(cuFuncGetModule(&found, function));
    CHECK(found == module);
    OK(cuFuncGetAttribute(&value, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, function));
    CHECK_EQUAL(value, 256);
    OK(cuFuncGetAttribute(&value, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function));
    CHECK_EQUAL(value, 1024);
    OK(cuFuncGetAttribute(&value, CU_FUNC_ATTRIBUTE_PTX_VERSION, function));
    CHECK_EQUAL(value, 50);
    OK(cuFuncGetAttribute(&value, CU_FUNC_ATTRIBUTE_BINARY_VERSION, function));
    CHECK_EQUAL(value, 70);
    OK(cuModuleUnload(module));
    CHECK_EQUAL(cuModuleUnload(module), CUDA_ERROR_INVALID_HANDLE);
    CHECK_EQUAL(cuFuncGetName(&name, function), CUDA_ERROR_INVALID_HANDLE);
}

PROMISE(global_variables_carry_data) {
    CUmodule module;
    CUdeviceptr at;
    size_t bytes;
    unsigned int in = 12345, out = 0;
    on_v100();
    OK(cuModuleLoadData(&module, spin_ptx));
    OK(cuModuleGetGlobal_v2(&at, &bytes, module, "counter"));
    CHECK_EQUAL(bytes, 4);
    OK(cuMemcpyDtoH_v2(&out, at, 4));
    CHECK_EQUAL(out, 0);
    OK(cuMemcpyHtoD_v2(at, &in, 4));
    OK(cuMemcpyDtoH_v2(&out, at, 4));
    CHECK_EQUAL(out, 12345);
    CHECK_EQUAL(cuModuleGetGlobal_v2(&at, &bytes, module, "count"), CUDA_ERROR_NOT_FOUND);
}

PROMISE(images_that_are_none_are_refused) {
    CUmodule module;
    on_v100();
    CHECK_EQUAL(cuModuleLoadData(&module, "this is no image"), CUDA_ERROR_INVALID_IMAGE);
    CHECK_EQUAL(cuModuleLoadData(&module, ""), CUDA_ERROR_INVALID_IMAGE);
    CHECK_EQUAL(cuModuleLoadData(&module, NULL), CUDA_ERROR_INVALID_VALUE);
    CHECK_EQUAL(cuModuleLoadData(&module, ".version 6.0\n.target sm_90\n"), CUDA_ERROR_INVALID_PTX);
    CHECK_EQUAL(cuModuleLoadData(&module, ".version 99.0\n.target sm_50\n"),
                CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
    CHECK_EQUAL(cuModuleLoadData(&module, "// comment\n.version 6.0 .target sm_50 .entry k(.param .u64 a"),
                CUDA_ERROR_INVALID_PTX);
    CHECK_EQUAL(
        cuModuleLoadData(&module, "\177ELF and then nothing of the kind, for more than sixty-four bytes"),
        CUDA_ERROR_INVALID_IMAGE);
    CHECK_EQUAL(cuModuleLoad(&module, "/nonexistent"), CUDA_ERROR_FILE_NOT_FOUND);
    CHECK_EQUAL(data_bytes(), 0);
}

PROMISE(code_of_a_context_shares_pages) {
    static char large[3 << 20];
    CUmodule modules[4], big;
    CUcontext context = on_v100();
    for (int i = 0; i < 4; i++)
        OK(cuModuleLoadData(&modules[i], spin_ptx));
    CHECK_EQUAL(data_bytes(), PAGE);
    memset(large, ' ', sizeof large - 1);
    memcpy(large, spin_ptx, sizeof spin_ptx - 1);
    OK(cuModuleLoadData(&big, large));
    CHECK_EQUAL(data_bytes(), 3 * PAGE);
    OK(cuModuleUnload(big));
    for (int i = 0; i < 4; i++)
        OK(cuModuleUnload(modules[i]));
    CHECK_EQUAL(data_bytes(), 0);
    OK(cuModuleLoadData(&big, large));
    OK(cuCtxDestroy_v2(context));
    CHECK_EQUAL(used_of(0), 0);
}

/* ---- cubins ---- */

#define FLAGS_SM_70 0x460546

struct cubin {
    Elf64_Ehdr header;
    char names[96];
    Elf64_Sym symbols[3];
    unsigned char info[32], code[256], constants[8];
    Elf64_Shdr sections[7];
};

static size_t add_name(char *names, size_t *end, const char *name) {
    size_t at = *end;
    strcpy(names + at, name);
    *end += strlen(name) + 1;
    return at;
}

/* A kernel "spinning" of (u64, u32), and 4,096 bytes of a variable "table". */
static void make_cubin(struct cubin *cubin, unsigned int flags) {
    static const unsigned char info[32] = {4, 0x17, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xf0, 0x21, 0,
                                           4, 0x17, 12, 0, 0, 0, 0, 0, 1, 0, 8, 0, 0, 0xf0, 0x11, 0};
    size_t end = 1;
    memset(cubin, 0, sizeof *cubin);
    memcpy(cubin->header.e_ident, "\177ELF\2\1\1\x33\7", 9);
    cubin->header.e_type = ET_EXEC;
    cubin->header.e_machine = 190;
    cubin->header.e_flags = flags;
    cubin->header.e_shoff = offsetof(struct cubin, sections);
    cubin->header.e_shentsize = sizeof(Elf64_Shdr);
    cubin->header.e_shnum = 7;
    cubin->header.e_shstrndx = 1;
#define SECTION(i, name, type, flags_, member)                                                               \
    cubin->sections[i] = (Elf64_Shdr){.sh_name = (Elf64_Word)add_name(cubin->names, &end, name),             \
                                      .sh_type = type,                                                       \
                                      .sh_flags = flags_,                                                    \
                                      .sh_offset = offsetof(struct cubin, member),                           \
                                      .sh_size = sizeof cubin->member}
    SECTION(1, ".shstrtab", SHT_STRTAB, 0, names);
    SECTION(2, ".symtab", SHT_SYMTAB, 0, symbols);
    SECTION(3, ".nv.info.spinning", 0x70000000, 0, info);
    SECTION(4, ".text.spinning", SHT_PROGBITS, SHF_ALLOC | SHF_EXECINSTR, code);
    SECTION(5, ".nv.constant3", SHT_PROGBITS, SHF_ALLOC, constants);
    SECTION(6, ".nv.global", SHT_NOBITS, SHF_ALLOC | SHF_WRITE, names);
    cubin->sections[2].sh_link = 1;
    cubin->sections[6].sh_size = 4096;
    memcpy(cubin->info, info, sizeof info);
    memcpy(cubin->constants, "constant", 8);
    cubin->symbols[1] = (Elf64_Sym){(Elf64_Word)add_name(cubin->names, &end, "table"),
                                    ELF64_ST_INFO(STB_GLOBAL, STT_OBJECT),
                                    0,
                                    6,
                                    0,
                                    4096};
    cubin->symbols[2] =
        (Elf64_Sym){cubin->sections[4].sh_name + 6, ELF64_ST_INFO(STB_GLOBAL, STT_FUNC), 0x10, 4, 0, 256};
}

PROMISE(a_cubin_has_kernels_and_variables) {
    static struct cubin cubin;
    CUmodule module;
    CUfunction function;
    CUdeviceptr at;
    size_t offset, bytes;
    unsigned int n = 0;
    unsigned long long ns = 2 * MS;
    void *parameters[] = {&ns, &n};
    on_v100();
    make_cubin(&cubin, FLAGS_SM_70);
    OK(cuModuleLoadData(&module, &cubin));
    OK(cuModuleGetGlobal_v2(&at, &bytes, module, "table"));
    CHECK_EQUAL(bytes, 4096);
    OK(cuModuleGetFunction(&function, module, "spinning"));
    OK(cuFuncGetParamInfo(function, 0, &offset, &bytes));
    CHECK(offset == 0 && bytes == 8);
    OK(cuFuncGetParamInfo(function, 1, &offset, &bytes));
    CHECK(offset == 8 && bytes == 4);
    CUevent start = new_event(), end;
    hold(NULL);
    OK(cuEventRecord(start, NULL));
    OK(cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, NULL, parameters, NULL));
    end = recorded(NULL);
    release();
    OK(cuEventSynchronize(end));
    CHECK_NEAR(between(start, end), 2 * MS);
}

PROMISE(a_cubin_of_another_architecture_does_not_run_here) {
    static struct cubin cubin;
    CUmodule module;
    on_v100();
    unsigned int others[] = {0x46053c, 0x46054b, 0x460550, 0x46055a}; /* 6.0, 7.5, 8.0, 9.0 */
    for (int i = 0; i < 4; i++) {
        make_cubin(&cubin, others[i]);
        CHECK_EQUAL(cuModuleLoadData(&module, &cubin), CUDA_ERROR_NO_BINARY_FOR_GPU);
    }
}

static void write_file(const char *path, const void *content, size_t bytes) {
    FILE *file = fopen(path, "w");
    CHECK(file && fwrite(content, 1, bytes, file) == bytes && fclose(file) == 0);
}

PROMISE(broken_cubins_are_refused_wherever_they_are_broken) {
    static struct cubin good, broken;
    char path[256];
    CUmodule module;
    on_v100();
    make_cubin(&good, FLAGS_SM_70);
    snprintf(path, sizeof path, "%s/broken.cubin", getenv("SIMGPU_DIR"));
    for (size_t i = 0; i < sizeof good; i += 3) { /* whatever the answer: no crash */
        broken = good;
        ((unsigned char *)&broken)[i] ^= 0xff;
        write_file(path, &broken, sizeof broken);
        if (cuModuleLoad(&module, path) == CUDA_SUCCESS)
            OK(cuModuleUnload(module));
    }
    for (size_t bytes = 1; bytes < sizeof good; bytes += 61) {
        write_file(path, &good, bytes);
        CHECK_EQUAL(cuModuleLoad(&module, path), CUDA_ERROR_INVALID_IMAGE);
    }
    unlink(path);
}

/* ---- fat binaries ---- */

struct item {
    uint16_t kind, version;
    uint32_t header_bytes;
    uint64_t bytes;
    uint32_t packed_bytes, options;
    uint16_t minor, major;
    uint32_t arch, name_offset, name_bytes;
    uint64_t flags, reserved, unpacked_bytes;
};

static unsigned char container[8192];

static void begin_fatbin(void) {
    uint32_t magic = 0xba55ed50;
    uint16_t rest[2] = {1, 16};
    memset(container, 0, sizeof container);
    memcpy(container, &magic, 4);
    memcpy(container + 4, rest, 4);
}

static void add_item(uint16_t kind, uint32_t arch, uint64_t flags, const void *payload, size_t bytes,
                     size_t unpacked) {
    uint64_t size;
    memcpy(&size, container + 8, 8);
    struct item item = {.kind = kind,
                        .header_bytes = sizeof item,
                        .bytes = (bytes + 7) & ~7UL,
                        .arch = arch,
                        .flags = flags,
                        .packed_bytes = (uint32_t)bytes,
                        .unpacked_bytes = unpacked};
    CHECK(16 + size + sizeof item + item.bytes <= sizeof container);
    memcpy(container + 16 + size, &item, sizeof item);
    memcpy(container + 16 + size + sizeof item, payload, bytes);
    size += sizeof item + item.bytes;
    memcpy(container + 8, &size, 8);
}

PROMISE(the_best_entry_of_a_fatbin_is_taken) {
    static struct cubin cubin;
    CUmodule module;
    CUfunction function;
    on_v100();
    struct {
        uint32_t magic, version;
        const void *data, *more;
    } wrapper = {0x466243b1, 1, container, NULL};
    begin_fatbin();
    add_item(1, 90, 0, ".version 7.0 .target sm_90 .entry for_90() { }", 46, 0);
    add_item(1, 50, 0, ".version 6.0 .target sm_50 .entry for_50() { }", 46, 0);
    OK(cuModuleLoadFatBinary(&module, container));
    OK(cuModuleGetFunction(&function, module, "for_50"));
    make_cubin(&cubin, FLAGS_SM_70);
    add_item(2, 70, 0, &cubin, sizeof cubin, 0);
    OK(cuModuleLoadData(&module, &wrapper));
    OK(cuModuleGetFunction(&function, module, "spinning"));
    CHECK_EQUAL(cuModuleGetFunction(&function, module, "for_50"), CUDA_ERROR_NOT_FOUND);
    begin_fatbin();
    add_item(1, 90, 0, ".version 7.0 .target sm_90 .entry for_90() { }", 46, 0);
    CHECK_EQUAL(cuModuleLoadData(&module, container), CUDA_ERROR_NO_BINARY_FOR_GPU);
}

PROMISE(compressed_entries_are_unpacked_or_trusted) {
    /* LZ4: 15 + 31 literals; then a copy of 8 bytes from 2 back, and a last literal. */
    static const char text[] = ".version 6.0 .target sm_50 .entry packed(.param .u64 a) {        }";
    unsigned char packed[128];
    size_t literals = sizeof text - 1 - 9, at = 0;
    CUmodule module;
    CUfunction function;
    on_v100();
    packed[at++] = 0xf4;
    packed[at++] = (unsigned char)(literals - 15);
    memcpy(packed + at, text, literals);
    at += literals;
    packed[at++] = 1; /* one back, 8 = 4 + 4 bytes */
    packed[at++] = 0;
    packed[at++] = 0x10;
    packed[at++] = '}';
    begin_fatbin();
    add_item(1, 50, 0x2000, packed, at, sizeof text - 1);
    OK(cuModuleLoadData(&module, container));
    OK(cuModuleGetFunction(&function, module, "packed"));
    CHECK_EQUAL(cuModuleGetFunction(&function, module, "other"), CUDA_ERROR_NOT_FOUND);
    begin_fatbin();
    add_item(2, 70, 0x8000, "not to be unpacked here", 24, 100);
    OK(cuModuleLoadData(&module, container));
    OK(cuModuleGetFunction(&function, module, "any_name_at_all"));
    OK(cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL));
    OK(cuCtxSynchronize());
}

/* ---- libraries, linking ---- */

PROMISE(a_library_is_loaded_into_each_context_that_uses_it) {
    CUcontext second, first = on_v100(), current;
    CUlibrary library, owner;
    CUkernel kernel;
    CUfunction functions[2];
    CUmodule module;
    CUdeviceptr at[2];
    unsigned long long ns = MS;
    void *parameters[] = {&ns};
    unsigned int count;
    OK(cuLibraryLoadData(&library, spin_ptx, NULL, NULL, 0, NULL, NULL, 0));
    CHECK_EQUAL(data_bytes(), PAGE);
    OK(cuLibraryGetKernel(&kernel, library, "spin"));
    OK(cuLibraryGetKernelCount(&count, library));
    CHECK_EQUAL(count, 3);
    OK(cuKernelGetLibrary(&owner, kernel));
    CHECK(owner == library);
    OK(cuKernelGetFunction(&functions[0], kernel));
    OK(cuLibraryGetGlobal(&at[0], NULL, library, "counter"));
    OK(cuCtxCreate_v2(&second, 0, 0));
    CHECK_EQUAL(data_bytes(), PAGE + V100_CONTEXT);
    OK(cuLaunchKernel((CUfunction)kernel, 1, 1, 1, 1, 1, 1, 0, NULL, parameters, NULL));
    CHECK_EQUAL(data_bytes(), 2 * PAGE + V100_CONTEXT);
    OK(cuKernelGetFunction(&functions[1], kernel));
    OK(cuLibraryGetModule(&module, library));
    OK(cuLibraryGetGlobal(&at[1], NULL, library, "counter"));
    CHECK(functions[0] != functions[1] && at[0] != at[1]);
    CHECK_EQUAL(cuModuleUnload(module), CUDA_ERROR_INVALID_HANDLE);
    OK(cuCtxSynchronize());
    OK(cuCtxDestroy_v2(second));
    CHECK_EQUAL(data_bytes(), PAGE);
    OK(cuCtxGetCurrent(&current));
    CHECK(current == first);
    OK(cuLibraryUnload(library));
    CHECK_EQUAL(data_bytes(), 0);
    CHECK_EQUAL(cuKernelGetLibrary(&owner, kernel), CUDA_ERROR_INVALID_HANDLE);
}

PROMISE(linked_ptx_has_the_kernels_of_all_inputs) {
    CUlinkState state;
    CUmodule module;
    CUfunction function;
    void *image;
    size_t bytes;
    char log[64] = "garbage";
    CUjit_option options[] = {CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
    void *values[] = {log, (void *)sizeof log};
    char other[] = ".version 6.0\n.target sm_50\n.visible .entry other() { ret; }";
    on_v100();
    OK(cuLinkCreate_v2(2, options, values, &state));
    OK(cuLinkAddData_v2(state, CU_JIT_INPUT_PTX, (void *)(uintptr_t)spin_ptx, sizeof spin_ptx, "spin", 0,
                        NULL, NULL));
    OK(cuLinkAddData_v2(state, CU_JIT_INPUT_PTX, other, sizeof other, "other", 0, NULL, NULL));
    OK(cuLinkComplete(state, &image, &bytes));
    CHECK(log[0] == 0 && values[1] == NULL);
    OK(cuModuleLoadData(&module, image));
    OK(cuLinkDestroy(state));
    OK(cuModuleGetFunction(&function, module, "spin"));
    OK(cuModuleGetFunction(&function, module, "other"));
    OK(cuLinkCreate_v2(2, options, values, &state));
    CHECK_EQUAL(cuLinkAddData_v2(state, CU_JIT_INPUT_PTX, log, sizeof log, NULL, 0, NULL, NULL),
                CUDA_ERROR_INVALID_PTX);
    OK(cuLinkDestroy(state));
}

/* ---- occupancy ---- */

PROMISE(occupancy_follows_threads_and_shared_memory) {
    int blocks, grid, block;
    size_t bytes;
    on_v100();
    CUfunction none = function_of("none"), add = function_of("add");
    OK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, none, 256, 0));
    CHECK_EQUAL(blocks, 8);
    OK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, none, 32, 0));
    CHECK_EQUAL(blocks, 32);
    OK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, none, 32, 48 << 10));
    CHECK_EQUAL(blocks, 2);
    OK(cuOccupancyMaxPotentialBlockSize(&grid, &block, none, NULL, 0, 0));
    CHECK(block == 1024 && grid == 160);
    OK(cuOccupancyMaxPotentialBlockSize(&grid, &block, add, NULL, 0, 0));
    CHECK(block == 256 && grid == 640);
    OK(cuOccupancyAvailableDynamicSMemPerBlock(&bytes, none, 2, 32));
    CHECK_EQUAL(bytes, 48 << 10);
}

/* ---- entry points ---- */

PROMISE(procedures_are_found_by_name_version_and_stream) {
    void *found, *per_thread;
    CUdriverProcAddressQueryResult status;
    fresh_machine("V100-SXM2-16GB");
    setenv("SIMGPU_CUDA", "12020", 1);
    OK(cuInit(0));
    OK(cuGetProcAddress_v2("cuMemAlloc", &found, 3020, CU_GET_PROC_ADDRESS_DEFAULT, &status));
    CHECK(found == (void *)cuMemAlloc_v2 && status == CU_GET_PROC_ADDRESS_SUCCESS);
    OK(cuGetProcAddress_v2("cuMemAlloc", &found, 2000, CU_GET_PROC_ADDRESS_DEFAULT, NULL));
    CHECK(found == (void *)cuMemAlloc);
    OK(cuGetProcAddress_v2("cuStreamQuery", &found, 12000, CU_GET_PROC_ADDRESS_LEGACY_STREAM, NULL));
    OK(cuGetProcAddress_v2("cuStreamQuery", &per_thread, 12000, CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM,
                           NULL));
    CHECK(found == (void *)cuStreamQuery && per_thread == (void *)cuStreamQuery_ptsz);
    OK(cuGetProcAddress_v2("cuGetProcAddress", &found, 12000, 0, NULL));
    CHECK(found == (void *)cuGetProcAddress_v2);
    OK(cuGetProcAddress_v2("cuGetProcAddress", &found, 11030, 0, NULL));
    CHECK(found == (void *)cuGetProcAddress);
    OK(cuGetProcAddress_v2("cuLaunchKernelEx", &found, 11000, 0, &status));
    CHECK(!found && status == CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT);
    OK(cuGetProcAddress_v2("cuMemAlloc_v2", &found, 12000, 0, &status));
    CHECK(!found && status == CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND);
    /* newer than the simulated CUDA: not there, whatever the program was built for */
    OK(cuGetProcAddress_v2("cuStreamBeginCaptureToGraph", &found, 12090, 0, &status));
    CHECK(!found && status == CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND);
    OK(cuGetProcAddress_v2("cuEventElapsedTime", &found, 12080, 0, NULL));
    CHECK(found == (void *)cuEventElapsedTime);
    CHECK_EQUAL(cuGetProcAddress("cuNothing", &found, 12000, 0), CUDA_ERROR_NOT_FOUND);
    CHECK_EQUAL(cuGetProcAddress_v2("cuInit", &found, 12000, 4, NULL), CUDA_ERROR_INVALID_VALUE);
}

PROMISE(errors_have_names_and_texts) {
    const char *text;
    OK(cuGetErrorName(CUDA_ERROR_OUT_OF_MEMORY, &text));
    CHECK(strcmp(text, "CUDA_ERROR_OUT_OF_MEMORY") == 0);
    OK(cuGetErrorString(CUDA_ERROR_OUT_OF_MEMORY, &text));
    CHECK(strcmp(text, "out of memory") == 0);
    OK(cuGetErrorName(CUDA_SUCCESS, &text));
    CHECK_EQUAL(cuGetErrorName((CUresult)12345, &text), CUDA_ERROR_INVALID_VALUE);
    CHECK(text == NULL);
}

int main(int argc, char **argv) {
    return keep_promises(argc, argv);
}
